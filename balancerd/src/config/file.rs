//! The configuration file: it is read, or its first mistakes are told by file, line, column and key. What its sections mean
//! is in `settings`; carrying it out is the daemon's business.

use std::fs::{self, FileType, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::OFlag;
use toml::de::DeTable;
use wire::Settings;
use wire::settings::FILE_LIMIT;

use super::section::{Faults, MAX_FAULTS, position};
use super::settings;

/// What a file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    /// Services, pools and servers.
    pub(crate) settings: Settings,
    /// Whether the balancer is to read it again by itself when it changes.
    pub(crate) watch: bool,
}

impl File {
    /// How much it is, as `2 services, 1 pool, 14 servers`.
    pub(crate) fn summary(&self) -> String {
        let Settings { services, pools, .. } = &self.settings;
        let servers = pools.values().map(|pool| pool.servers.len()).sum();
        [(services.len(), "service"), (pools.len(), "pool"), (servers, "server")]
            .map(|(count, noun)| format!("{count} {noun}{}", if count == 1 { "" } else { "s" }))
            .join(", ")
    }
}

/// Why a file is of no use: a line for each mistake, which begins with the file's name.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// The operating system would not open it.
    #[error("{name}: it cannot be opened: {source}")]
    Open {
        /// The file.
        name: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The operating system opened it and would not read it.
    #[error("{name}: it cannot be read: {source}")]
    Read {
        /// The file.
        name: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// It is something else than a file.
    #[error("{name}: it is {kind}, not a regular file")]
    Kind {
        /// The file.
        name: String,
        /// What it is.
        kind: &'static str,
    },
    /// It is longer than any file of its kind.
    #[error("{name}: it has more than {limit} bytes, which no {what} has")]
    Length {
        /// The file.
        name: String,
        /// Bytes that it may have.
        limit: usize,
        /// What it is to be.
        what: &'static str,
    },
    /// It is no text.
    #[error("{name}:{line}:{column}: byte {offset} of the file, {byte:#04x}, is not UTF-8")]
    Text {
        /// The file.
        name: String,
        /// The line, from 1.
        line: usize,
        /// The column in characters, from 1.
        column: usize,
        /// Bytes before it.
        offset: usize,
        /// The byte.
        byte: u8,
    },
    /// Its first mistakes.
    #[error("{}", lines(.name, .mistakes, *.more))]
    Wrong {
        /// The file.
        name: String,
        /// In the order of the file.
        mistakes: Vec<Mistake>,
        /// Whether there are others behind those.
        more: bool,
    },
}

/// A mistake of a file.
#[derive(Debug)]
pub(crate) struct Mistake {
    /// The line, from 1.
    pub(super) line: usize,
    /// The column in characters, from 1.
    pub(super) column: usize,
    /// The key, and what is wrong.
    pub(super) what: String,
}

fn lines(name: &str, mistakes: &[Mistake], more: bool) -> String {
    let told = mistakes.iter().map(|Mistake { line, column, what }| format!("{name}:{line}:{column}: {what}"));
    let rest = more.then(|| format!("{name}: it has more mistakes; these are the first {MAX_FAULTS}"));
    told.chain(rest).collect::<Vec<_>>().join("\n")
}

impl FileError {
    /// Whether there is no such file.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Self::Open { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Reads a file. It waits for no writer of a pipe and asks no device.
///
/// # Errors
/// When it cannot be read, or says what makes no sense.
pub(crate) fn read(path: &Path) -> Result<File, FileError> {
    parse(&path.display().to_string(), &text(path, FILE_LIMIT, "configuration")?)
}

/// The text of a file that has so many bytes at most; `what` it is to be.
///
/// # Errors
/// When it cannot be read, or is no text.
pub(super) fn text(path: &Path, limit: usize, what: &'static str) -> Result<String, FileError> {
    let name = path.display().to_string();
    let bytes = bytes(path, &name, limit, what)?;
    String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        let (valid, rest) = error.as_bytes().split_at(offset);
        let (line, column) = position(str::from_utf8(valid).unwrap_or_default(), offset);
        FileError::Text { name, line, column, offset, byte: rest.first().copied().unwrap_or_default() }
    })
}

fn bytes(path: &Path, name: &str, limit: usize, what: &'static str) -> Result<Vec<u8>, FileError> {
    let open = |source| FileError::Open { name: name.to_owned(), source };
    let read = |source| FileError::Read { name: name.to_owned(), source };
    // Asked before it is opened, since that alone may wind a tape, and after, since it may be another file by then.
    check_kind(fs::metadata(path).map_err(open)?.file_type(), name)?;
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).map_err(open)?;
    check_kind(file.metadata().map_err(read)?.file_type(), name)?;
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(read)?;
    if bytes.len() > limit {
        return Err(FileError::Length { name: name.to_owned(), limit, what });
    }
    Ok(bytes)
}

fn check_kind(kind: FileType, name: &str) -> Result<(), FileError> {
    let kind = match kind {
        kind if kind.is_file() => return Ok(()),
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a pipe",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    };
    Err(FileError::Kind { name: name.to_owned(), kind })
}

/// Reads the text of a file of this name.
///
/// # Errors
/// Tells the first [`MAX_FAULTS`] mistakes by their positions; when the text is no TOML, the first place where it is none.
pub(crate) fn parse(name: &str, text: &str) -> Result<File, FileError> {
    let mistake = |at, what| {
        let (line, column) = position(text, at);
        Mistake { line, column, what }
    };
    let document = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let message = error.message().replace('\n', " ");
        // The parser says so where it wants something else to be gone.
        let message = message.strip_suffix(", expected nothing").unwrap_or(&message);
        let mistakes = vec![mistake(at, format!("this is no TOML: {message}"))];
        FileError::Wrong { name: name.to_owned(), mistakes, more: false }
    })?;
    let mut faults = Faults::new(text);
    let file = settings::read(document.get_ref(), &mut faults);
    let (first, more) = faults.into_first();
    if first.is_empty() {
        return Ok(file);
    }
    let mistakes = first.into_iter().map(|(at, what)| mistake(at, what)).collect();
    Err(FileError::Wrong { name: name.to_owned(), mistakes, more })
}
