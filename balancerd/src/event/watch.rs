//! News of a file: whether something happened in its directory, or in one that a link on its path lies in. So an editor
//! that replaces the file by a rename is seen as well as one that writes into it, and a link that is exchanged, wherever on
//! the path it is.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// A directory that was removed, renamed or unmounted is not watched any more.
const GONE: AddWatchFlags =
    AddWatchFlags::IN_DELETE_SELF.union(AddWatchFlags::IN_MOVE_SELF).union(AddWatchFlags::IN_IGNORED);

/// Links on a path that are followed: the kernel follows as many.
const MOST_LINKS: usize = 40;

/// What there is to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    /// Nothing.
    None,
    /// Something happened.
    Some,
    /// The directory has gone, and this watch with it.
    Lost,
}

/// The directory of a file, watched.
#[derive(Debug)]
pub(crate) struct Watch(Inotify);

impl Watch {
    /// Watches the directory of `file`, and those of all links on the way to it at this moment. It asks the disk, which may
    /// hang: not for the loop's thread.
    pub(crate) fn new(file: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let news = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF;
        inotify.add_watch(directory(file), news)?;
        for directory in directories(file) {
            // A link that leads nowhere now is one that is watched by its own directory.
            let _ = inotify.add_watch(&directory, news);
        }
        Ok(Self(inotify))
    }

    /// Takes the news. What it means is asked of the file.
    pub(crate) fn take(&self) -> News {
        // One read takes more than a storm in one turn leaves; level-triggered, the rest comes back.
        match self.0.read_events() {
            Ok(events) if events.iter().any(|event| event.mask.intersects(GONE)) => News::Lost,
            Ok(_) => News::Some,
            Err(Errno::EAGAIN | Errno::EINTR) => News::None,
            Err(_) => News::Lost,
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn directory(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new("/"))
}

/// The directories in which a change may lead the path elsewhere: of the file, and of each link on the way to it.
fn directories(file: &Path) -> BTreeSet<PathBuf> {
    let (mut found, mut path) = (BTreeSet::new(), file.to_path_buf());
    for _ in 0..MOST_LINKS {
        found.insert(directory(&path).to_path_buf());
        let parts: Vec<&Path> = path.ancestors().collect();
        let Some(link) = parts.into_iter().rev().find(|part| part.is_symlink()) else { break };
        let Ok(target) = fs::read_link(link) else { break };
        found.insert(directory(link).to_path_buf());
        let rest = path.strip_prefix(link).unwrap_or(Path::new(""));
        let target = directory(link).join(target);
        path = if rest.as_os_str().is_empty() { target } else { target.join(rest) };
    }
    found
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn every_link_on_the_way_is_watched_where_it_lies() {
        let top = tempfile::tempdir().expect("a directory");
        let top = top.path().canonicalize().expect("it is there");
        fs::create_dir_all(top.join("releases/2")).expect("made");
        fs::create_dir(top.join("etc")).expect("made");
        fs::write(top.join("releases/2/a.toml"), "").expect("written");
        symlink("releases/2", top.join("current")).expect("linked");
        symlink("../current/a.toml", top.join("etc/a.toml")).expect("linked");
        let found = directories(&top.join("etc/a.toml"));
        // The file's own as it is named, that of the link `current`, and that where the file is in the end.
        let there: BTreeSet<_> = found.iter().filter_map(|path| path.canonicalize().ok()).collect();
        assert_eq!(there, [top.join("etc"), top.clone(), top.join("releases/2")].into());
        // A circle ends.
        symlink("b", top.join("a")).expect("linked");
        symlink("a", top.join("b")).expect("linked");
        assert_eq!(directories(&top.join("a")), [top].into());
    }
}
