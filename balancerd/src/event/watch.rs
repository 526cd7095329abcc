//! News of a file: whether something happened in its directory, or in that of the file that it is a link to. So an editor
//! that replaces the file by a rename is seen as well as one that writes into it, and a link that is exchanged.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

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
            | AddWatchFlags::IN_ATTRIB;
        let directory = |file: &Path| file.parent().unwrap_or(Path::new("/")).to_path_buf();
        inotify.add_watch(&directory(file), news)?;
        // A link that leads nowhere now is one that is watched by its own directory.
        if let Ok(target) = file.canonicalize() {
            inotify.add_watch(&directory(&target), news)?;
        }
        Ok(Self(inotify))
    }

    /// Takes the news; whether there is some. What it means is asked of the file.
    pub(crate) fn take(&self) -> bool {
        // One read takes more than a storm in one turn leaves; level-triggered, the rest comes back.
        match self.0.read_events() {
            Ok(news) => !news.is_empty(),
            Err(Errno::EAGAIN | Errno::EINTR) => false,
            Err(_) => true,
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
