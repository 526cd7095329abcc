//! Tells the service manager how the balancer is, as sd_notify(3) has it, by a thread of its own: a manager whose queue is
//! full, or whose socket lies on a disk that hangs, holds the thread and never the loop.

use std::collections::VecDeque;
use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing::{info, warn};

/// The service manager's socket.
const SOCKET: &str = "NOTIFY_SOCKET";

/// Within how many microseconds the service manager wants to hear that the loop lives, and which process is meant.
const WATCHDOG: &str = "WATCHDOG_USEC";
const WATCHDOG_PROCESS: &str = "WATCHDOG_PID";

/// The shortest pause between two signs of life. A shorter one would keep the loop busy with nothing else.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);

/// News that wait for the thread. The oldest gives way to the next: how the balancer is now is what counts.
const MOST_WAITING: usize = 8;

/// How long the end of the process waits until the last news is sent.
const LAST_PATIENCE: Duration = Duration::from_millis(200);

/// What there is to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum News {
    /// Clients can connect.
    Ready,
    /// No new clients.
    Stopping,
    /// The loop lives.
    Alive,
}

impl fmt::Display for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "READY=1\n",
            Self::Stopping => "STOPPING=1\n",
            Self::Alive => "WATCHDOG=1\n",
        })
    }
}

/// The way to the thread; where there is no service manager there is no thread.
#[derive(Debug)]
pub(crate) struct Notifier {
    desk: Option<Arc<Desk>>,
    /// The log has been told that the service manager reads nothing.
    told: bool,
}

/// Where the news lies that is to be sent next.
#[derive(Debug, Default)]
struct Desk {
    pile: Mutex<Pile>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Pile {
    waiting: VecDeque<News>,
    /// The thread sends what it took last.
    is_sending: bool,
}

impl Notifier {
    /// Starts the thread, if the environment names a service manager.
    pub(crate) fn start() -> io::Result<Self> {
        let Some(name) = env::var_os(SOCKET) else { return Ok(Self { desk: None, told: false }) };
        let desk = match address(&name) {
            Ok(address) => {
                let desk = Arc::new(Desk::default());
                let its_desk = Arc::clone(&desk);
                let name = name.to_string_lossy().into_owned();
                thread::Builder::new().name("notify".to_owned()).spawn(move || run(&address, &name, &its_desk))?;
                Some(desk)
            }
            Err(error) => {
                warn!(socket = %name.display(), %error, "the service manager is not told how the balancer is: NOTIFY_SOCKET makes no sense");
                None
            }
        };
        Ok(Self { desk, told: false })
    }

    /// Has the service manager told, and waits for nothing.
    pub(crate) fn tell(&mut self, news: News) {
        let Some(desk) = &self.desk else { return };
        let mut pile = desk.pile();
        // A sign of life says no more when there are two of it; that the one before still waits says much.
        let is_alive = news == News::Alive;
        let is_stuck = is_alive && pile.waiting.contains(&News::Alive);
        if !is_stuck {
            if pile.waiting.len() == MOST_WAITING {
                pile.waiting.pop_front();
            }
            pile.waiting.push_back(news);
            desk.changed.notify_all();
        }
        drop(pile);
        if is_alive && is_stuck != self.told {
            if is_stuck {
                warn!("the service manager reads nothing of what it is told: it may take the balancer for dead");
            } else {
                info!("the service manager reads again what it is told");
            }
            self.told = is_stuck;
        }
    }

    /// Waits for a moment until the last news is sent. For the end, when the loop is over.
    pub(crate) fn finish(&self) {
        let Some(desk) = &self.desk else { return };
        let is_busy = |pile: &mut Pile| pile.is_sending || !pile.waiting.is_empty();
        let _ = desk.changed.wait_timeout_while(desk.pile(), LAST_PATIENCE, is_busy);
    }
}

impl Desk {
    fn pile(&self) -> MutexGuard<'_, Pile> {
        self.pile.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next news. Nothing is being sent until then.
    fn take(&self) -> News {
        let mut pile = self.pile();
        pile.is_sending = false;
        self.changed.notify_all();
        loop {
            if let Some(news) = pile.waiting.pop_front() {
                pile.is_sending = true;
                return news;
            }
            pile = self.changed.wait(pile).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn run(address: &SocketAddr, name: &str, desk: &Desk) {
    // What went wrong the last time: the same is said once, not with each sign of life.
    let mut last = None;
    loop {
        let news = desk.take().to_string();
        // A socket each time: whoever reads there may have begun anew.
        let sent = UnixDatagram::unbound().and_then(|socket| socket.send_to_addr(news.as_bytes(), address));
        let fault = sent.err().map(|error| error.to_string());
        match &fault {
            Some(error) if fault != last => warn!(socket = name, error, "the service manager could not be told"),
            None if last.is_some() => info!(socket = name, "the service manager is told again"),
            _ => {}
        }
        last = fault;
    }
}

/// The address that a name stands for: a path, or with `@` a name of the abstract namespace.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'/', ..] => SocketAddr::from_pathname(Path::new(name)),
        [b'@', rest @ ..] if !rest.is_empty() => SocketAddr::from_abstract_name(rest),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "give an absolute path, or @NAME of the abstract namespace",
        )),
    }
}

/// How often the service manager wants a sign of life, if it does: twice in the time after which it takes the balancer for
/// dead.
pub(crate) fn watchdog_pause() -> Option<Duration> {
    pause(env::var(WATCHDOG).ok().as_deref(), env::var(WATCHDOG_PROCESS).ok().as_deref(), std::process::id())
}

fn pause(limit: Option<&str>, process: Option<&str>, own: u32) -> Option<Duration> {
    if process.is_some_and(|process| process.parse() != Ok(own)) {
        return None;
    }
    match limit?.parse::<u64>() {
        Ok(microseconds) if microseconds > 0 && microseconds < u64::MAX => {
            Some((Duration::from_micros(microseconds) / 2).max(SHORTEST_PAUSE))
        }
        // As sd_watchdog_enabled(3) has it: neither is a time.
        _ => {
            warn!(WATCHDOG_USEC = limit, "the watchdog is off: give a time in microseconds that is more than 0");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_time_of_nothing_is_none_and_a_very_short_one_keeps_nobody_busy() {
        let of = |limit| pause(limit, None, 7);
        assert_eq!(of(None), None);
        assert_eq!(of(Some("30000000")), Some(Duration::from_secs(15)));
        assert_eq!(of(Some("1")), Some(SHORTEST_PAUSE));
        for wrong in ["0", "", "-1", "18446744073709551615", "soon"] {
            assert_eq!(of(Some(wrong)), None, "{wrong}");
        }
        assert_eq!(pause(Some("30000000"), Some("7"), 7), Some(Duration::from_secs(15)));
        assert_eq!(pause(Some("30000000"), Some("8"), 7), None, "it is meant for another process");
    }

    #[test]
    fn a_name_is_a_path_or_one_of_the_abstract_namespace() {
        let of = |name: &str| address(OsStr::new(name));
        assert_eq!(of("/run/notify").expect("a path").as_pathname(), Some(Path::new("/run/notify")));
        assert_eq!(of("@notify").expect("a name").as_abstract_name(), Some(b"notify".as_slice()));
        for wrong in ["", "@", "notify", "vsock:2:1234"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_last_sign_of_life_is_enough_and_older_news_gives_way() {
        let desk = Arc::new(Desk::default());
        let mut notifier = Notifier { desk: Some(Arc::clone(&desk)), told: false };
        for _ in 0..100 {
            notifier.tell(News::Alive);
        }
        assert!(notifier.told);
        assert_eq!(desk.pile().waiting, [News::Alive]);
        for _ in 0..100 {
            notifier.tell(News::Ready);
        }
        notifier.tell(News::Stopping);
        let waiting = &desk.pile().waiting;
        assert_eq!((waiting.len(), waiting.back()), (MOST_WAITING, Some(&News::Stopping)));
    }
}
