//! Files of ours in directories that others may write. Somebody who may make a file there may lay a link to another file in
//! its place, which the balancer would then write as root: such a link is not followed, and a file that somebody else has
//! laid there is not used. fs.protected_symlinks, fs.protected_hardlinks and fs.protected_regular do much of the same, where
//! they are on and the directory is a sticky one.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc::{S_IWGRP, S_IWOTH};
use nix::unistd::Uid;

/// Who may make files in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Makers {
    /// Root and the user of this process.
    Ours,
    /// A group, too.
    Group,
    /// Another user, or everybody.
    Anybody,
}

/// Opens a file with these flags and no link is followed that somebody else may have laid there.
///
/// # Errors
/// When its directory cannot be looked at.
pub(crate) fn flags(path: &Path) -> io::Result<OFlag> {
    Ok(if makers(path)? == Makers::Ours { OFlag::empty() } else { OFlag::O_NOFOLLOW })
}

/// Why a file could not be opened with those flags, in words.
pub(crate) fn told(path: &Path, error: io::Error) -> io::Error {
    let is_link = || fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink());
    if error.raw_os_error() == Some(Errno::ELOOP as i32) && is_link() {
        let place = if makers(path).is_ok_and(|makers| makers == Makers::Ours) {
            ""
        } else {
            " in a directory that others may write"
        };
        let said = format!("it is a symbolic link{place}, and is not followed; name the file that it leads to");
        return io::Error::new(io::ErrorKind::PermissionDenied, said);
    }
    error
}

/// Makes sure that nobody else has laid this open file there, where anybody may.
///
/// # Errors
/// When somebody has.
pub(crate) fn check(path: &Path, file: &File) -> io::Result<()> {
    if makers(path)? != Makers::Anybody {
        return Ok(());
    }
    let found = file.metadata()?;
    let fault = if found.is_file() && found.nlink() > 1 {
        "it is a further name of another file".to_owned()
    } else if !is_ours(found.uid()) {
        format!("it belongs to the user {}", found.uid())
    } else {
        return Ok(());
    };
    let said =
        format!("{fault}, in a directory that others may write, and is not used; remove it, or name another place");
    Err(io::Error::new(io::ErrorKind::PermissionDenied, said))
}

fn makers(path: &Path) -> io::Result<Makers> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let found = fs::metadata(directory)?;
    Ok(if !is_ours(found.uid()) || found.mode() & S_IWOTH != 0 {
        Makers::Anybody
    } else if found.mode() & S_IWGRP != 0 {
        Makers::Group
    } else {
        Makers::Ours
    })
}

fn is_ours(user: u32) -> bool {
    user == 0 || user == Uid::effective().as_raw()
}

#[cfg(test)]
mod tests {
    use std::fs::{OpenOptions, Permissions};
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};

    use super::*;

    /// A file and two further names of it, opened in a directory of this mode.
    fn opened(mode: u32, name: &str) -> Result<(), String> {
        let (elsewhere, directory) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("another"));
        let file = elsewhere.path().join("file");
        fs::write(&file, "").expect("written");
        fs::write(directory.path().join("own"), "").expect("written");
        symlink(&file, directory.path().join("link")).expect("made");
        fs::hard_link(&file, directory.path().join("name")).expect("made");
        fs::set_permissions(directory.path(), Permissions::from_mode(mode)).expect("set");
        let path = directory.path().join(name);
        let mut options = OpenOptions::new();
        let options = options.append(true).custom_flags(flags(&path).expect("there").bits());
        let file = options.open(&path).map_err(|error| told(&path, error).to_string())?;
        check(&path, &file).map_err(|error| error.to_string())
    }

    #[test]
    fn a_link_is_followed_only_where_nobody_else_can_have_laid_it() {
        for mode in [0o755, 0o750, 0o700] {
            for name in ["own", "link", "name"] {
                assert_eq!(opened(mode, name), Ok(()), "{mode:o} {name}");
            }
        }
        for mode in [0o777, 0o1777, 0o775] {
            assert_eq!(opened(mode, "own"), Ok(()), "{mode:o}");
            let refused = opened(mode, "link").expect_err("a link");
            assert!(refused.starts_with("it is a symbolic link in a directory that others may write"), "{refused}");
        }
        let refused = opened(0o1777, "name").expect_err("a further name");
        assert!(refused.starts_with("it is a further name of another file"), "{refused}");
        assert_eq!(opened(0o775, "name"), Ok(()), "a group has to be trusted that much");
    }

    #[test]
    fn a_file_of_somebody_else_is_not_used_where_anybody_may_lay_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        fs::write(&path, "").expect("written");
        if nix::unistd::chown(&path, Some(Uid::from_raw(12345)), None).is_err() {
            println!("skipped: this user may give no file away");
            return;
        }
        fs::set_permissions(directory.path(), Permissions::from_mode(0o1777)).expect("set");
        let refused = check(&path, &File::open(&path).expect("opened")).expect_err("not ours");
        assert!(refused.to_string().starts_with("it belongs to the user 12345"), "{refused}");
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).expect("set");
        check(&path, &File::open(&path).expect("opened")).expect("root has laid it there");
    }
}
