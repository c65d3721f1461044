//! Users and groups from `/etc/passwd` and `/etc/group` (passwd(5), group(5)), without the C library's name services.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Who a command runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    pub name: OsString,
    pub home: PathBuf,
    pub shell: OsString,
}

/// Finds `NAME`, `NUMBER`, `USER:GROUP`; empty is root. The error is a sentence.
pub fn find(wanted: &[u8]) -> Result<User, String> {
    // A guest without these files has only root, and numbers.
    let passwd = fs::read("/etc/passwd").unwrap_or_default();
    let group = fs::read("/etc/group").unwrap_or_default();
    find_in(wanted, &passwd, &group)
}

fn find_in(wanted: &[u8], passwd: &[u8], group: &[u8]) -> Result<User, String> {
    let (user, wanted_group) = match wanted.iter().position(|byte| *byte == b':') {
        Some(at) => (wanted.get(..at).unwrap_or_default(), wanted.get(at + 1..)),
        None => (wanted, None),
    };
    let user = if user.is_empty() { b"0".as_slice() } else { user };
    let mut found = account(user, passwd).ok_or_else(|| {
        format!("there is no user `{}` in the guest; give a name of its /etc/passwd or a number", lossy(user))
    })?;
    found.groups = memberships(&found, group);
    if let Some(wanted) = wanted_group {
        found.gid = number_of_group(wanted, group).ok_or_else(|| {
            format!("there is no group `{}` in the guest; give a name of its /etc/group or a number", lossy(wanted))
        })?;
        found.groups = vec![found.gid];
    }
    Ok(found)
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn number(text: &[u8]) -> Option<u32> {
    // The highest number means “no change” to the kernel's calls.
    std::str::from_utf8(text).ok()?.parse().ok().filter(|number| *number != u32::MAX)
}

fn lines(file: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    file.split(|byte| *byte == b'\n').map(|line| line.split(|byte| *byte == b':').collect())
}

fn account(wanted: &[u8], passwd: &[u8]) -> Option<User> {
    let wanted_number = number(wanted);
    let text = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    for fields in lines(passwd) {
        let [name, _, uid, gid, _, home, rest @ ..] = fields.as_slice() else { continue };
        let (Some(uid), Some(gid)) = (number(uid), number(gid)) else { continue };
        if *name == wanted || wanted_number == Some(uid) {
            let shell = rest.first().copied().filter(|shell| !shell.is_empty()).unwrap_or(b"/bin/sh");
            let home = if home.is_empty() { b"/" } else { *home };
            let (name, shell) = (text(name), text(shell));
            return Some(User { uid, gid, groups: vec![gid], name, home: text(home).into(), shell });
        }
    }
    let uid = wanted_number?;
    let name = if uid == 0 { "root".into() } else { text(wanted) };
    Some(User { uid, gid: uid, groups: vec![uid], name, home: "/".into(), shell: "/bin/sh".into() })
}

fn memberships(user: &User, group: &[u8]) -> Vec<u32> {
    use std::os::unix::ffi::OsStrExt;
    let mut groups = vec![user.gid];
    for fields in lines(group) {
        let [_, _, gid, members, ..] = fields.as_slice() else { continue };
        let is_member = members.split(|byte| *byte == b',').any(|member| member == user.name.as_bytes());
        if let Some(gid) = number(gid).filter(|gid| is_member && !groups.contains(gid)) {
            groups.push(gid);
        }
    }
    groups
}

fn number_of_group(wanted: &[u8], group: &[u8]) -> Option<u32> {
    let named = lines(group).find(|fields| fields.first() == Some(&wanted));
    named.and_then(|fields| number(fields.get(2)?)).or_else(|| number(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\nbroken\nann:x:1000:1000:Ann:/home/ann:/bin/bash\n";
    const GROUP: &[u8] = b"root:x:0:\nwheel:x:10:bob,ann\nann:x:1000:\n";

    #[test]
    fn names_and_numbers_find_the_same_user() {
        let user = find_in(b"ann", PASSWD, GROUP).unwrap();
        assert_eq!((user.uid, user.gid, user.groups.as_slice()), (1000, 1000, &[1000, 10][..]));
        assert_eq!((user.home.as_path(), user.shell.as_os_str()), ("/home/ann".as_ref(), "/bin/bash".as_ref()));
        assert_eq!(find_in(b"1000", PASSWD, GROUP).unwrap(), user);
    }

    #[test]
    fn nobody_named_is_root_even_without_files() {
        assert_eq!(find_in(b"", PASSWD, GROUP).unwrap().home, PathBuf::from("/root"));
        assert_eq!(find_in(b"", b"", b"").unwrap().uid, 0);
    }

    #[test]
    fn a_group_replaces_the_users_own() {
        let user = find_in(b"ann:wheel", PASSWD, GROUP).unwrap();
        assert_eq!((user.uid, user.gid, user.groups.as_slice()), (1000, 10, &[10][..]));
        assert_eq!(find_in(b"7:8", PASSWD, GROUP).unwrap().gid, 8);
    }

    #[test]
    fn who_is_not_there_is_named() {
        assert!(find_in(b"bob", PASSWD, GROUP).unwrap_err().contains("`bob`"));
        assert!(find_in(b"ann:x", PASSWD, GROUP).unwrap_err().contains("`x`"));
        assert!(find_in(b"4294967295", PASSWD, GROUP).is_err());
    }
}
