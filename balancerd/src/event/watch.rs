//! News of a file: whether something happened in its directory. So an editor that replaces the file by a rename is seen
//! as well as one that writes into it, and a link that is exchanged.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// The directory of a file, watched.
#[derive(Debug)]
pub(crate) struct Watch(Inotify);

impl Watch {
    /// Watches the directory of `file`.
    pub(crate) fn new(file: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let directory = file.parent().filter(|directory| !directory.as_os_str().is_empty());
        let news = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CREATE;
        inotify.add_watch(directory.unwrap_or(Path::new(".")), news)?;
        Ok(Self(inotify))
    }

    /// Takes the news. It is only that there is some: what it means is asked of the file.
    pub(crate) fn take(&self) {
        // One read takes more than a storm in one turn leaves; level-triggered, the rest comes back.
        match self.0.read_events() {
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => debug_assert!(false, "{error}"),
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
