//! Where an entry of a layer belongs: the rules for names, and for names that mean something else
//! (OCI image-spec, layer.md, "Whiteouts").

use crate::fault::Fault;

/// Bytes of a whole path (Linux PATH_MAX, without its NUL).
pub(crate) const PATH_BYTES: usize = 4095;
/// Bytes of one name (Linux NAME_MAX).
const NAME_BYTES: usize = 255;
/// Prefix of a whiteout.
const WHITEOUT: &[u8] = b".wh.";
/// Prefix of AUFS's own files, all of which mean nothing but the next.
const WHITEOUT_META: &[u8] = b".wh..wh.";
/// Hides everything lower layers have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Where an entry belongs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Ordinary(Box<[u8]>),
    Whiteout(Box<[u8]>),
    Opaque(Box<[u8]>),
    /// A file of AUFS's own.
    Nothing,
}

impl Place {
    pub(crate) fn of(name: &[u8]) -> Result<Self, Fault> {
        let path = clean(name)?;
        let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        let (Some(last), Some(parents)) = (parts.last(), parts.split_last().map(|(_, rest)| rest))
        else {
            return Ok(Self::Ordinary(path));
        };
        let parent = || -> Box<[u8]> { parents.join(&b'/').into() };
        if parents.iter().any(|part| part.starts_with(WHITEOUT_META)) {
            return Ok(Self::Nothing);
        }
        if parents.iter().any(|part| part.starts_with(WHITEOUT)) {
            return Err(Fault::invalid(format!(
                "it has a file below a whiteout: {}",
                shown(name)
            )));
        }
        if *last == OPAQUE {
            return Ok(Self::Opaque(parent()));
        }
        if last.starts_with(WHITEOUT_META) {
            return Ok(Self::Nothing);
        }
        let Some(hidden) = last.strip_prefix(WHITEOUT) else {
            return Ok(Self::Ordinary(path));
        };
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Fault::invalid(format!(
                "it has a whiteout of nothing: {}",
                shown(name)
            )));
        }
        let mut target = parents.to_vec();
        target.push(hidden);
        Ok(Self::Whiteout(target.join(&b'/').into()))
    }
}

/// A path without empty and `.` parts. A leading slash means the image's root; `..` is refused,
/// because no honest tool writes it and readers disagree about it. The target of a hard link is such
/// a path too.
pub(crate) fn clean(name: &[u8]) -> Result<Box<[u8]>, Fault> {
    let refuse = |why: &str| {
        Err(Fault::invalid(format!(
            "it has a file {why}: {}",
            shown(name)
        )))
    };
    if name.len() > PATH_BYTES {
        return refuse("with too long a path");
    }
    if name.contains(&0) {
        return refuse("with a zero byte in its path");
    }
    let mut path = Vec::with_capacity(name.len());
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return refuse("with .. in its path"),
            _ if part.len() > NAME_BYTES => return refuse("with too long a name"),
            _ => {}
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(part);
    }
    Ok(path.into())
}

/// A path for a message: short and printable.
pub(crate) fn shown(path: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(path).chars().take(120).collect();
    format!("{text:?}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(name: &str) -> Option<Place> {
        Place::of(name.as_bytes()).ok()
    }

    #[test]
    fn names_are_cleaned() {
        for (name, path) in [
            ("a", "a"),
            ("./a/", "a"),
            ("/a//b/./c", "a/b/c"),
            ("", ""),
            (".", ""),
            ("...", "..."),
        ] {
            assert_eq!(
                place(name),
                Some(Place::Ordinary(path.as_bytes().into())),
                "{name}"
            );
        }
        for name in [
            "..",
            "a/..",
            "../a",
            "a/../b",
            "a\0b",
            &"n".repeat(256),
            &"n/".repeat(2048),
        ] {
            assert_eq!(place(name), None, "{name}");
        }
    }

    #[test]
    fn markers_are_told_from_files() {
        let whiteout = |path: &str| Some(Place::Whiteout(path.as_bytes().into()));
        assert_eq!(place(".wh.a"), whiteout("a"));
        assert_eq!(place("d/.wh..hidden"), whiteout("d/.hidden"));
        assert_eq!(place("d/.wh..wh..opq"), Some(Place::Opaque((*b"d").into())));
        assert_eq!(place(".wh..wh..opq"), Some(Place::Opaque((*b"").into())));
        assert_eq!(place(".wh..wh.aufs"), Some(Place::Nothing));
        assert_eq!(place(".wh..wh.plnk/x"), Some(Place::Nothing));
        assert_eq!(place("x.wh.y"), Some(Place::Ordinary((*b"x.wh.y").into())));
        for name in [".wh.", ".wh..", ".wh...", "a/.wh..", ".wh.a/b"] {
            assert_eq!(place(name), None, "{name}");
        }
    }

    proptest! {
        /// Whatever a name is, what comes out of it stays in the tree and is clean already.
        #[test]
        fn no_name_leads_out(name in prop::collection::vec(prop::sample::select(&b"a./\0w"[..]), 0..40)) {
            if let Ok(path) = clean(&name) {
                let is_good = |part: &[u8]| !matches!(part, b"" | b"." | b"..") && !part.contains(&0);
                let stays = path.is_empty() || path.split(|byte| *byte == b'/').all(is_good);
                prop_assert!(stays);
                prop_assert_eq!(&clean(&path).ok(), &Some(path));
            }
        }
    }
}
