//! Where a balancer keeps its files. Both programs must come to the same answer, so it is worked out here.
//!
//! | given | socket and pid file | state and log file |
//! |---|---|---|
//! | nothing, as root | `/run/balancer` | `/var/lib/balancer` |
//! | nothing, as somebody else | `$XDG_RUNTIME_DIR/balancer` | `$XDG_STATE_HOME/balancer`, by default `~/.local/state/balancer` |
//! | `--socket PATH` | beside that socket | beside that socket |
//! | `--state DIR` | as without it | `DIR` |
//!
//! The names of the others follow the socket's: `control.sock` goes with `control.pid`, `control.state`, `control.log`.
//! So two balancers whose sockets differ share no file.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The name of the control socket where none is given.
const SOCKET_NAME: &str = "control.sock";

/// The longest path that a Unix socket can have, in bytes: `sun_path` less its end.
const SOCKET_PATH_LIMIT: usize = 107;

/// The files of one balancer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The control socket.
    pub socket: PathBuf,
    /// The pid file.
    pub pid: PathBuf,
    /// The state file.
    pub state: PathBuf,
    /// The log file of a daemon in the background.
    pub log: PathBuf,
}

/// What of the environment decides where the files are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// Whether root asks.
    pub root: bool,
    /// `$XDG_RUNTIME_DIR`.
    pub runtime_dir: Option<PathBuf>,
    /// `$XDG_STATE_HOME`.
    pub state_home: Option<PathBuf>,
    /// `$HOME`.
    pub home: Option<PathBuf>,
}

/// Why no place could be found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// Neither an option nor the environment says where the socket is.
    #[error("XDG_RUNTIME_DIR is not set, so there is no usual place for the control socket; give --socket PATH")]
    NoRuntimeDir,
    /// Neither an option nor the environment says where the state is.
    #[error("neither XDG_STATE_HOME nor HOME is set, so there is no usual place for the state; give --state DIR")]
    NoStateHome,
    /// The path does not end in a file's name.
    #[error("{:?} names no file; give the path of a socket, such as /tmp/mine/control.sock", .0)]
    NoFileName(PathBuf),
    /// The kernel takes no path of this length.
    #[error("{} is too long for a socket: {} bytes, the limit is {SOCKET_PATH_LIMIT}", .0.display(), .0.as_os_str().len())]
    TooLong(PathBuf),
}

impl Environment {
    /// The environment of this process. Relative paths in it are ignored, as the XDG specification asks.
    #[must_use]
    pub fn current() -> Self {
        let path = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        Self {
            root: nix::unistd::geteuid().is_root(),
            runtime_dir: path("XDG_RUNTIME_DIR"),
            state_home: path("XDG_STATE_HOME"),
            home: path("HOME"),
        }
    }
}

impl Places {
    /// The files of the balancer that `--socket` and `--state` mean in this environment.
    ///
    /// # Errors
    /// When neither the options nor the environment say enough, or the socket's path cannot be one.
    pub fn find(socket: Option<&Path>, state: Option<&Path>, environment: &Environment) -> Result<Self, PlaceError> {
        let at = socket_path(socket, environment)?;
        let name = at.file_name().ok_or_else(|| PlaceError::NoFileName(at.clone()))?;
        let stem = match Path::new(name).extension() {
            Some(extension) if extension == "sock" => Path::new(name).file_stem().unwrap_or(name),
            _ => name,
        };
        let beside = at.parent().map(Path::to_path_buf).unwrap_or_default();
        let kept = match (state, socket) {
            (Some(directory), _) => directory.to_path_buf(),
            (None, Some(_)) => beside.clone(),
            (None, None) => state_directory(environment)?,
        };
        let named = |directory: &Path, extension: &str| {
            let mut name = OsString::from(stem);
            name.push(extension);
            directory.join(name)
        };
        Ok(Self { pid: named(&beside, ".pid"), state: named(&kept, ".state"), log: named(&kept, ".log"), socket: at })
    }
}

/// The control socket that `--socket` means in this environment.
///
/// # Errors
/// When neither says where it is, or it cannot be a socket's path.
pub fn socket_path(socket: Option<&Path>, environment: &Environment) -> Result<PathBuf, PlaceError> {
    let path = match (socket, environment) {
        (Some(path), _) => path.to_path_buf(),
        (None, Environment { root: true, .. }) => Path::new("/run/balancer").join(SOCKET_NAME),
        (None, Environment { runtime_dir: Some(directory), .. }) => directory.join("balancer").join(SOCKET_NAME),
        (None, _) => return Err(PlaceError::NoRuntimeDir),
    };
    if path.file_name().is_none() {
        Err(PlaceError::NoFileName(path))
    } else if path.as_os_str().len() > SOCKET_PATH_LIMIT {
        Err(PlaceError::TooLong(path))
    } else {
        Ok(path)
    }
}

fn state_directory(environment: &Environment) -> Result<PathBuf, PlaceError> {
    match environment {
        Environment { root: true, .. } => Ok(PathBuf::from("/var/lib/balancer")),
        Environment { state_home: Some(directory), .. } => Ok(directory.join("balancer")),
        Environment { home: Some(directory), .. } => Ok(directory.join(".local/state/balancer")),
        _ => Err(PlaceError::NoStateHome),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> Environment {
        Environment {
            root: false,
            runtime_dir: Some("/run/user/7".into()),
            state_home: None,
            home: Some("/home/seven".into()),
        }
    }

    fn places(socket: &str, pid: &str, state: &str, log: &str) -> Places {
        Places { socket: socket.into(), pid: pid.into(), state: state.into(), log: log.into() }
    }

    #[test]
    fn root_has_the_system_directories() {
        let root = Environment { root: true, ..user() };
        assert_eq!(
            Places::find(None, None, &root),
            Ok(places(
                "/run/balancer/control.sock",
                "/run/balancer/control.pid",
                "/var/lib/balancer/control.state",
                "/var/lib/balancer/control.log"
            ))
        );
    }

    #[test]
    fn others_have_their_own() {
        assert_eq!(
            Places::find(None, None, &user()),
            Ok(places(
                "/run/user/7/balancer/control.sock",
                "/run/user/7/balancer/control.pid",
                "/home/seven/.local/state/balancer/control.state",
                "/home/seven/.local/state/balancer/control.log"
            ))
        );
        let bare = Environment::default();
        assert_eq!(Places::find(None, None, &bare), Err(PlaceError::NoRuntimeDir));
        let homeless = Environment { home: None, ..user() };
        assert_eq!(Places::find(None, None, &homeless), Err(PlaceError::NoStateHome));
    }

    #[test]
    fn everything_lies_beside_a_given_socket() {
        let a = Places::find(Some(Path::new("/tmp/x/a.sock")), None, &user());
        assert_eq!(a, Ok(places("/tmp/x/a.sock", "/tmp/x/a.pid", "/tmp/x/a.state", "/tmp/x/a.log")));
        let b = Places::find(Some(Path::new("/tmp/x/b")), None, &user());
        assert_eq!(b, Ok(places("/tmp/x/b", "/tmp/x/b.pid", "/tmp/x/b.state", "/tmp/x/b.log")));
    }

    #[test]
    fn state_goes_where_it_is_told() {
        let found = Places::find(Some(Path::new("/tmp/x/a.sock")), Some(Path::new("/srv")), &user());
        assert_eq!(found, Ok(places("/tmp/x/a.sock", "/tmp/x/a.pid", "/srv/a.state", "/srv/a.log")));
    }

    #[test]
    fn a_path_that_cannot_be_a_socket_is_named() {
        let long = PathBuf::from(format!("/tmp/{}", "x".repeat(110)));
        assert_eq!(Places::find(Some(&long), None, &user()), Err(PlaceError::TooLong(long)));
        let none = PathBuf::from("/");
        assert_eq!(Places::find(Some(&none), None, &user()), Err(PlaceError::NoFileName(none)));
    }
}
