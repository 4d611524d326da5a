//! Who a container runs as: the image config's `User` looked up in the image's own `/etc/passwd` and
//! `/etc/group`, with the rules of Docker (a name, or a number that need not be in the files; the
//! groups of the user unless a group is named).

/// Numbers above this are refused, as by Docker.
const MAX_ID: u32 = i32::MAX as u32;
/// The most supplementary groups that are taken from `/etc/group`.
const MAX_GROUPS: usize = 1024;

/// A resolved user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// Resolves `user`, `uid`, `user:group`, …; empty is root. The error is for the uploader.
pub(crate) fn resolve(spec: &str, passwd: &str, group: &str) -> Result<Account, String> {
    let (user, group_name) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (spec, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = user.parse::<u32>().ok().filter(|&id| id <= MAX_ID);
    let entry = passwd
        .lines()
        .filter_map(User::parse)
        .find(|entry| entry.name == user || (Some(entry.uid) == number));
    let mut account = match (&entry, number) {
        (Some(entry), _) => Account {
            uid: entry.uid,
            gid: entry.gid,
            groups: Vec::new(),
            home: entry.home.to_owned(),
        },
        (None, Some(uid)) => Account {
            uid,
            gid: 0,
            groups: Vec::new(),
            home: String::new(),
        },
        (None, None) => return Err(format!("the image has no user {user:?}")),
    };
    if account.home.is_empty() {
        "/".clone_into(&mut account.home);
    }
    let mut groups = group.lines().filter_map(Group::parse);
    if let Some(wanted) = group_name {
        let number = wanted.parse::<u32>().ok().filter(|&id| id <= MAX_ID);
        account.gid = groups
            .find(|entry| entry.name == wanted || Some(entry.gid) == number)
            .map(|entry| entry.gid)
            .or(number)
            .ok_or_else(|| format!("the image has no group {wanted:?}"))?;
    } else if let Some(entry) = entry {
        account.groups = groups
            .filter(|group| group.members.split(',').any(|member| member == entry.name))
            .map(|group| group.gid)
            .take(MAX_GROUPS)
            .collect();
    }
    Ok(account)
}

/// A line of `/etc/passwd`.
struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> User<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, rest @ ..] = &fields[..] else {
            return None;
        };
        let id = |text: &str| text.parse().ok().filter(|&id| id <= MAX_ID);
        let home = rest.get(1).copied().unwrap_or("");
        Some(Self {
            name,
            uid: id(uid)?,
            gid: id(gid)?,
            home,
        })
    }
}

/// A line of `/etc/group`.
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> Group<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.splitn(4, ':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
        let gid = gid.parse().ok().filter(|&id| id <= MAX_ID)?;
        Some(Self {
            name,
            gid,
            members: fields.next().unwrap_or(""),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken\n\
        node:x:1000:1001:Node:/home/node:/bin/sh\nbig:x:4294967295:0::/:\n1000:x:7:7::/seven:\n";
    const GROUP: &str = "root:x:0:\nnode:x:1001:\nvideo:x:44:node,other\nwheel:x:10:root,node\n";

    fn account(spec: &str) -> Result<(u32, u32, Vec<u32>, String), String> {
        let account = resolve(spec, PASSWD, GROUP)?;
        Ok((account.uid, account.gid, account.groups, account.home))
    }

    #[test]
    fn every_form_of_docker_is_understood() {
        let node = (1000, 1001, vec![44, 10], "/home/node".to_owned());
        assert_eq!(account(""), Ok((0, 0, vec![10], "/root".into())));
        assert_eq!(account("node"), Ok(node.clone()));
        assert_eq!(account("1000"), Ok(node.clone()));
        assert_eq!(account("node:"), Ok(node));
        assert_eq!(
            account("node:video"),
            Ok((1000, 44, vec![], "/home/node".into()))
        );
        assert_eq!(
            account("node:77"),
            Ok((1000, 77, vec![], "/home/node".into()))
        );
        assert_eq!(account("4242"), Ok((4242, 0, vec![], "/".into())));
        assert_eq!(account("4242:4243"), Ok((4242, 4243, vec![], "/".into())));
        assert_eq!(account(":10"), Ok((0, 10, vec![], "/root".into())));
    }

    #[test]
    fn who_is_not_there_is_named() {
        assert_eq!(
            account("nobody"),
            Err("the image has no user \"nobody\"".into())
        );
        assert_eq!(
            account("node:nogroup"),
            Err("the image has no group \"nogroup\"".into())
        );
        assert!(account("4294967295").is_err());
        assert!(account("-1").is_err());
        assert!(account("big").is_err());
    }

    #[test]
    fn an_image_without_the_files_still_has_numbers() {
        let account = resolve("65532:65532", "", "").unwrap();
        assert_eq!(
            (account.uid, account.gid, account.home.as_str()),
            (65532, 65532, "/")
        );
        assert_eq!(resolve("", "", "").unwrap().uid, 0);
    }
}
