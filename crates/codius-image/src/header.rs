//! What stands before an entry's contents in a tar archive: a block of 512 bytes, and extended headers
//! that say what it has no room for.
//!
//! Strict where two readers could disagree, lenient where real archives are sloppy: an empty numeric
//! field means 0.

use crate::fault::Fault;

pub(crate) const BLOCK: usize = 512;
/// Bytes of the name of an extended attribute (Linux XATTR_NAME_MAX).
const XATTR_NAME_BYTES: usize = 255;
/// Bytes of the value of an extended attribute (Linux XATTR_SIZE_MAX).
const XATTR_VALUE_BYTES: usize = 64 << 10;
/// Keys of pax records that are extended attributes, as star and everyone after it writes them.
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";
/// Extended attributes of one file.
const MAX_XATTRS: usize = 64;

/// The 512 bytes before an entry's contents.
#[derive(Debug)]
pub(crate) struct Header<'a>(pub(crate) &'a [u8; BLOCK]);

impl Header<'_> {
    pub(crate) fn kind(&self) -> u8 {
        self.0[156]
    }

    pub(crate) fn size(&self) -> Result<u64, Fault> {
        self.number(124..136)
    }

    /// The sum of all bytes, those of the checksum itself taken as spaces.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        let sum: u64 = (0..BLOCK)
            .map(|at| {
                if (148..156).contains(&at) {
                    b' '
                } else {
                    self.0[at]
                }
            })
            .map(u64::from)
            .sum();
        if self.number(148..156).is_ok_and(|said| said == sum) {
            Ok(())
        } else {
            Err(Fault::invalid(
                "a layer is not a tar archive, or a broken one",
            ))
        }
    }

    /// An octal number, or a binary one if its first bit is set (GNU). Empty means 0, a negative
    /// number too: only times can be negative.
    pub(crate) fn number(&self, field: std::ops::Range<usize>) -> Result<u64, Fault> {
        let broken = || Fault::invalid("a layer has a number that cannot be read");
        let field = &self.0[field];
        match field[0] {
            0x80 => field[1..].iter().try_fold(0u64, |value, byte| {
                (value >> 56 == 0)
                    .then_some(value << 8 | u64::from(*byte))
                    .ok_or_else(broken)
            }),
            0xff => Ok(0),
            _ => {
                let digits = until_nul(field).trim_ascii();
                digits.iter().try_fold(0u64, |value, digit| match digit {
                    b'0'..=b'7' if value >> 61 == 0 => Ok(value << 3 | u64::from(digit - b'0')),
                    _ => Err(broken()),
                })
            }
        }
    }

    pub(crate) fn path(&self) -> Vec<u8> {
        let name = until_nul(&self.0[..100]);
        let prefix = until_nul(&self.0[345..500]);
        // Only POSIX ustar has a prefix there; GNU keeps times in the same place.
        if &self.0[257..263] != b"ustar\0" || prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, name].join(&b'/')
    }

    pub(crate) fn link(&self) -> Vec<u8> {
        until_nul(&self.0[157..257]).to_vec()
    }
}

pub(crate) fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

pub(crate) fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

pub(crate) fn id(number: u64) -> Result<u32, Fault> {
    u32::try_from(number).map_err(|_| Fault::invalid("it has a file of an impossible owner"))
}

pub(crate) fn clamped(seconds: u64) -> u32 {
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

/// What extended headers say of the entry that follows them.
#[derive(Debug, Default)]
pub(crate) struct Extensions {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u64>,
    pub(crate) gid: Option<u64>,
    pub(crate) mtime: Option<u32>,
    pub(crate) xattrs: Vec<Xattr>,
}

/// An extended attribute by its full name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Xattr {
    pub(crate) name: Box<[u8]>,
    pub(crate) value: Box<[u8]>,
}

impl Extensions {
    /// Reads `LENGTH KEY=VALUE\n` records; LENGTH counts the whole record.
    pub(crate) fn read_pax(&mut self, mut records: &[u8]) -> Result<(), Fault> {
        let broken = || Fault::invalid("a layer has an extended header that cannot be read");
        while !records.is_empty() {
            let space = records
                .iter()
                .position(|byte| *byte == b' ')
                .ok_or_else(broken)?;
            let length = decimal(&records[..space]).ok_or_else(broken)?;
            let length = usize::try_from(length).map_err(|_| broken())?;
            if length <= space + 1 || length > records.len() {
                return Err(broken());
            }
            let record;
            (record, records) = records.split_at(length);
            let pair = record[space + 1..].strip_suffix(b"\n").ok_or_else(broken)?;
            let equals = pair
                .iter()
                .position(|byte| *byte == b'=')
                .ok_or_else(broken)?;
            let (key, value) = (&pair[..equals], &pair[equals + 1..]);
            if key.starts_with(XATTR_PREFIX) && value.len() > XATTR_VALUE_BYTES {
                return Err(Fault::too_large(format!(
                    "it has an extended attribute of more than {XATTR_VALUE_BYTES} bytes"
                )));
            }
            self.set(key, value).ok_or_else(broken)?;
            if self.xattrs.len() > MAX_XATTRS {
                return Err(Fault::too_large(format!(
                    "it has a file with more than {MAX_XATTRS} extended attributes"
                )));
            }
            if key.starts_with(b"GNU.sparse.") {
                return Err(Fault::invalid("a layer has sparse files"));
            }
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(decimal(value)?),
            b"gid" => self.gid = Some(decimal(value)?),
            b"mtime" => {
                let whole = value.split(|byte| *byte == b'.').next()?;
                let before_1970 = whole.starts_with(b"-");
                self.mtime = Some(if before_1970 {
                    0
                } else {
                    clamped(decimal(whole)?)
                });
            }
            _ => {
                if let Some(name) = key.strip_prefix(XATTR_PREFIX)
                    && is_kept(name)
                {
                    self.xattrs.retain(|xattr| *xattr.name != *name);
                    self.xattrs.push(Xattr {
                        name: name.into(),
                        value: value.into(),
                    });
                }
            }
        }
        Some(())
    }
}

/// Of the extended attributes, file capabilities and the user's own mean something in a pod.
/// `trusted.` would reach into the overlay file system, the other `security.` ones belong to
/// modules that are not loaded, and squashfs cannot store `system.`.
fn is_kept(name: &[u8]) -> bool {
    let length_is_good = name.len() <= XATTR_NAME_BYTES && !name.contains(&0);
    length_is_good && (name == b"security.capability" || name.starts_with(b"user."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(field: &[u8; 12]) -> Option<u64> {
        let mut block = [0; BLOCK];
        block[124..136].copy_from_slice(field);
        Header(&block).size().ok()
    }

    #[test]
    fn numbers_are_octal_or_binary() {
        assert_eq!(number(b"00000000017\0"), Some(15));
        assert_eq!(number(b"     17 \0\0\0\0"), Some(15));
        assert_eq!(number(b"777777777777"), Some((1 << 36) - 1));
        assert_eq!(number(&[0; 12]), Some(0));
        assert_eq!(
            number(b"\x80\0\0\0\0\0\0\x02\0\0\0\x01"),
            Some((2 << 32) + 1)
        );
        assert_eq!(number(&[0xff; 12]), Some(0), "negative");
        assert_eq!(
            number(b"\x80\x01\0\0\0\0\0\0\0\0\0\0"),
            None,
            "more than 64 bits"
        );
        assert_eq!(number(b"00000000018\0"), None);
        assert_eq!(number(b"-0000000017\0"), None);
    }

    fn records(pairs: &[(&str, &str)]) -> Vec<u8> {
        let record = |(key, value): &(&str, &str)| {
            let rest = format!(" {key}={value}\n");
            // The length's own digits make it at most one digit longer.
            let digits = (rest.len() + (rest.len() + 2).to_string().len()).to_string();
            format!("{digits}{rest}").into_bytes()
        };
        pairs.iter().flat_map(record).collect()
    }

    #[test]
    fn pax_records_are_read() {
        let mut extensions = Extensions::default();
        let records = records(&[
            ("path", "abc"),
            ("size", "017"),
            ("uid", "7"),
            ("mtime", "1234.56789"),
            ("mtime", "-1"),
            ("SCHILY.xattr.user.k", "a=\0b"),
            ("SCHILY.xattr.user.k", "w"),
            ("SCHILY.xattr.trusted.k", "v"),
            ("other", "x"),
        ]);
        extensions.read_pax(&records).expect("good records");
        assert_eq!(extensions.path.as_deref(), Some(&b"abc"[..]));
        assert_eq!((extensions.size, extensions.uid), (Some(17), Some(7)));
        assert_eq!(extensions.mtime, Some(0), "before 1970");
        let xattr = Xattr {
            name: (*b"user.k").into(),
            value: (*b"w").into(),
        };
        assert_eq!(extensions.xattrs, [xattr]);
    }

    #[test]
    fn broken_pax_records_are_refused() {
        for records in [
            &b"x"[..],
            b"5 a=b",
            b"6 a=bc",
            b"99 a=b\n",
            b"0 a=b\n",
            b"-6 a=b\n",
            b"6 abc\n",
            b" a=b\n",
            b"10 uid=abc\n",
            b"99999999999999999999 a=b\n",
            b"25 GNU.sparse.major=1\n2",
        ] {
            let result = Extensions::default().read_pax(records);
            assert!(result.is_err(), "{}", String::from_utf8_lossy(records));
        }
    }

    #[test]
    fn there_is_an_end_to_attributes() {
        let names: Vec<_> = (0..65)
            .map(|number| format!("SCHILY.xattr.user.{number}"))
            .collect();
        let pairs: Vec<_> = names.iter().map(|name| (name.as_str(), "v")).collect();
        let mut extensions = Extensions::default();
        extensions
            .read_pax(&records(&pairs[..64]))
            .expect("as many as allowed");
        let result = extensions.read_pax(&records(&pairs[64..]));
        assert!(matches!(result, Err(Fault::TooLarge(_))));
    }
}
