//! Configuration files as balancerd understands them: it is asked, with `--check`, so that there is one reader of them.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use wire::Settings;
use wire::settings::FILE_LIMIT;

use crate::failure::Failure;
use crate::output::Output;
use crate::start::{DAEMON, StartError, complaint, find_daemon};

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// It cannot be read.
    #[error("{} cannot be read: {source}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    /// It is longer than any configuration file.
    #[error("{} is longer than {} MiB, the limit of a configuration file", .0.display(), FILE_LIMIT >> 20)]
    TooLong(PathBuf),
    /// It is no text.
    #[error("{} is not UTF-8: byte {at} belongs to no character", .path.display())]
    NoText { path: PathBuf, at: usize },
    /// balancerd says what is wrong with it.
    #[error("{said}")]
    Wrong { said: String, code: u8 },
    /// balancerd says nothing that this program understands.
    #[error("{} gave no answer that this program understands; use the balancerctl that was installed with it", .0.display())]
    Garbled(PathBuf),
}

/// What the file says, in balancerd's own words: the answer to `check`.
///
/// # Errors
/// When the file cannot be used, or balancerd not be run.
pub(crate) fn check(file: &Path, output: &Output) -> Result<(), Failure> {
    let answer = ask(file, output.is_json())?;
    output.both(answer.trim_end())
}

/// What the file says.
///
/// # Errors
/// As [`check`].
pub(crate) fn settings(file: &Path) -> Result<Settings, Failure> {
    let answer = ask(file, true)?;
    Ok(serde_json::from_str(&answer).map_err(|_| FileError::Garbled(PathBuf::from(DAEMON)))?)
}

fn ask(file: &Path, json: bool) -> Result<String, Failure> {
    let program = find_daemon()?;
    let mut command = Command::new(&program);
    // Only the options count: an environment that is wrong for a daemon is no fault of the file.
    command.env_remove("BALANCER_SOCKET").env_remove("BALANCER_LOG").arg("--check").arg(file);
    if json {
        command.arg("--json");
    }
    let result = command.stdin(Stdio::null()).output();
    let output = result.map_err(|source| StartError::Run { program: program.clone(), source })?;
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout).map_err(|_| FileError::Garbled(program))?);
    }
    let code = output.status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    let said = complaint(String::from_utf8_lossy(&output.stderr).trim(), output.status, None);
    Err(FileError::Wrong { said, code }.into())
}

/// The text of a file, or of standard input for `-`.
///
/// # Errors
/// When it cannot be read, or is too long, or no text.
pub(crate) fn read(path: &Path) -> Result<String, FileError> {
    let failed = |source| FileError::Read { path: path.to_path_buf(), source };
    let mut bytes = Vec::new();
    // One more than may be there, which tells a longer file from one that just fits.
    let limit = FILE_LIMIT as u64 + 1;
    if path == Path::new("-") {
        io::stdin().lock().take(limit).read_to_end(&mut bytes).map_err(failed)?;
    } else {
        File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes)).map_err(failed)?;
    }
    if bytes.len() > FILE_LIMIT {
        return Err(FileError::TooLong(path.to_path_buf()));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to() + 1;
        FileError::NoText { path: path.to_path_buf(), at }
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_that_cannot_be_one_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("f");
        assert!(matches!(read(&path), Err(FileError::Read { .. })));
        assert!(matches!(read(directory.path()), Err(FileError::Read { .. })));
        fs::write(&path, b"a\xff").expect("written");
        assert!(
            read(&path).expect_err("no text").to_string().ends_with("is not UTF-8: byte 2 belongs to no character")
        );
        fs::write(&path, vec![b'#'; FILE_LIMIT]).expect("written");
        assert_eq!(read(&path).expect("it just fits").len(), FILE_LIMIT);
        fs::write(&path, vec![b'#'; FILE_LIMIT + 1]).expect("written");
        assert!(
            read(&path)
                .expect_err("too long")
                .to_string()
                .ends_with("is longer than 8 MiB, the limit of a configuration file")
        );
    }
}
