//! News of a file: whether something happened in its directory, or in that of the file that it is a link to. So an editor
//! that replaces the file by a rename is seen as well as one that writes into it, and a link that is exchanged.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// A directory that was removed, renamed or unmounted is not watched any more.
const GONE: AddWatchFlags =
    AddWatchFlags::IN_DELETE_SELF.union(AddWatchFlags::IN_MOVE_SELF).union(AddWatchFlags::IN_IGNORED);

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
    /// Watches the directory of `file`, and that of what it is a link to at this moment.
    pub(crate) fn new(file: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let news = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF;
        let directory = |file: &Path| file.parent().unwrap_or(Path::new("/")).to_path_buf();
        inotify.add_watch(&directory(file), news)?;
        // A link that leads nowhere now is one that is watched by its own directory.
        if let Ok(target) = file.canonicalize() {
            inotify.add_watch(&directory(&target), news)?;
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
