//! Writes what commands changed into the configuration file: `save`. What the file is to say `edit` makes; here it is
//! checked, before and after, and put in the place of the old one at once.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use serde::Serialize;
use tempfile::NamedTempFile;
use wire::difference::{Difference, differences};
use wire::health::CheckKind;
use wire::report::SettingsReport;
use wire::settings::{Policy, PoolSettings};
use wire::{Client, Refusal, Request, Response, Settings};

use crate::check::{self, FileError};
use crate::command::accepted;
use crate::edit::{EditError, edit};
use crate::failure::Failure;
use crate::output::Output;

/// What was or would be written: printed for `save --json`.
#[derive(Debug, Serialize)]
pub(crate) struct Saved {
    /// The file.
    pub(crate) file: PathBuf,
    /// Nothing was written.
    pub(crate) dry_run: bool,
    /// What the file says otherwise from now on.
    pub(crate) changes: Vec<Difference>,
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SaveError {
    /// Somebody edited it meanwhile.
    #[error(
        "{file} does not say any more what the balancer read from it; `balancerctl diff {file}` shows what is new there, reload it first", file = .0.display()
    )]
    Edited(PathBuf),
    /// There is a file already, and none that the balancer knows.
    #[error("{} is there already, and the balancer was not started with a file; name one that is not there", .0.display())]
    There(PathBuf),
    /// The text is written in a way that is not known here.
    #[error("{} cannot be edited: {source}; change it yourself, `balancerctl list` shows what differs", .path.display())]
    Edit { path: PathBuf, source: EditError },
    /// The text would not say what it should.
    #[error(
        "{} is written in a way that this program cannot edit; change it yourself, `balancerctl list` shows what differs", .0.display()
    )]
    NotWritten(PathBuf),
    /// No file can say what the balancer is set to.
    #[error("no file can say what the balancer is set to: {0}")]
    NotSaid(String),
    /// The file cannot be written.
    #[error("{} cannot be written: {source}", .path.display())]
    Write { path: PathBuf, source: io::Error },
    /// It is written, and the balancer does not take it.
    #[error("{} is written, but the balancer does not read it: {refusal}", .path.display())]
    NotReloaded { path: PathBuf, refusal: Refusal },
}

impl SaveError {
    /// Whether something says no, rather than failing.
    pub(crate) fn refused(&self) -> bool {
        !matches!(self, Self::Write { .. })
    }

    /// The name that programs know it by.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Edited(_) => "edited",
            Self::There(_) => "there",
            Self::Edit { .. } | Self::NotWritten(_) => "cannot-edit",
            Self::NotSaid(_) => "cannot-say",
            Self::Write { .. } => "io",
            Self::NotReloaded { .. } => "not-reloaded",
        }
    }
}

/// Writes the present state into a file, that of the balancer if no other is named, and has the balancer read it.
///
/// # Errors
/// When the file is another one than the balancer read, or cannot say what holds, or not be written.
pub(crate) fn save(client: &mut Client, file: Option<&Path>, dry_run: bool, output: &Output) -> Result<Saved, Failure> {
    let Response::Settings(report) = accepted(client.call(&Request::Settings)?)? else {
        return Err(Failure::Unexpected);
    };
    let own = report.file.as_deref().map(Path::new);
    let Some(path) = file.or(own) else { return Err(Failure::Refused(Refusal::NoFile)) };
    // A link stays one: what it leads to is written.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let is_own = own.and_then(|own| fs::canonicalize(own).ok()).is_some_and(|own| own == path);

    let (said, text) = before(&path, &report)?;
    let now = expressible(&report.now);
    let changes = differences(&said, &now);
    let saved = Saved { file: path, dry_run, changes };
    if saved.changes.is_empty() {
        return Ok(saved);
    }
    let path = &saved.file;
    let edited = edit(&text, &said, &now).map_err(|source| SaveError::Edit { path: path.clone(), source })?;
    let written = write_beside(path, &edited, dry_run)?;
    verify(path, written.path(), &now)?;
    if dry_run {
        return Ok(saved);
    }
    put(written, path, &text)?;
    if is_own {
        match client.call(&Request::Reload { instead: None, dry_run: false })? {
            Response::Reloaded(report) => {
                report.unsaved.iter().for_each(|reason| {
                    output.note(format_args!("warning: the state file does not have it yet: {reason}"));
                });
            }
            Response::Refused(refusal) => return Err(SaveError::NotReloaded { path: path.clone(), refusal }.into()),
            _ => return Err(Failure::Unexpected),
        }
    }
    Ok(saved)
}

/// What the file says and its text. It must say what the balancer read; a new one says nothing.
fn before(path: &Path, report: &SettingsReport) -> Result<(Settings, String), Failure> {
    match &report.said {
        Some(said) => {
            let text = check::read(path)?;
            if check::settings(path)? == *said {
                Ok((said.clone(), text))
            } else {
                Err(SaveError::Edited(path.to_path_buf()).into())
            }
        }
        None if path.exists() => Err(SaveError::There(path.to_path_buf()).into()),
        None => Ok((Settings::default(), String::new())),
    }
}

/// The settings as a file can say them: what belongs to the ring has no place beside another policy, and how servers are
/// checked none where they are not.
fn expressible(settings: &Settings) -> Settings {
    let mut settings = settings.clone();
    let usual = PoolSettings::default();
    for pool in settings.pools.values_mut() {
        if pool.policy != Policy::ConsistentHash {
            pool.key = usual.key;
            pool.max_load = usual.max_load;
            pool.points_per_weight = usual.points_per_weight;
        }
        if pool.health.check.kind == CheckKind::None {
            pool.health.check = usual.health.check.clone();
        }
    }
    settings
}

/// The new text in a file that is not in its place yet.
fn write_beside(path: &Path, text: &str, dry_run: bool) -> Result<NamedTempFile, SaveError> {
    let failed = |source| SaveError::Write { path: path.to_path_buf(), source };
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".balancer-").suffix(".toml");
    // What is not to be written needs no permission to write.
    let made = if dry_run { builder.tempfile() } else { builder.tempfile_in(directory) };
    let mut file = made.map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    Ok(file)
}

/// Has balancerd read what was written: it must say what holds.
fn verify(path: &Path, written: &Path, now: &Settings) -> Result<(), Failure> {
    match check::settings(written) {
        Ok(settings) if settings == *now => Ok(()),
        Ok(_) => Err(SaveError::NotWritten(path.to_path_buf()).into()),
        Err(Failure::File(FileError::Wrong { said, .. })) => {
            // The place is one in a text that nobody knows.
            let said = said.strip_prefix(&written.display().to_string()).unwrap_or(&said);
            let said = said.trim_start_matches(|c: char| c == ':' || c == ' ' || c.is_ascii_digit());
            Err(SaveError::NotSaid(said.to_owned()).into())
        }
        Err(failure) => Err(failure),
    }
}

/// Puts the written file into its place, with the mode and owner of the one that is there, unless that has changed.
fn put(mut written: NamedTempFile, path: &Path, text: &str) -> Result<(), Failure> {
    let failed = |source| SaveError::Write { path: path.to_path_buf(), source };
    match path.metadata() {
        Ok(metadata) => {
            // As another user than its owner one cannot give files away; then it is one's own.
            let _ = chown(written.path(), Some(metadata.uid()), Some(metadata.gid()));
            written.as_file().set_permissions(metadata.permissions()).map_err(failed)?;
            if check::read(path)? != text {
                return Err(SaveError::Edited(path.to_path_buf()).into());
            }
        }
        Err(_) => written.as_file().set_permissions(fs::Permissions::from_mode(0o644)).map_err(failed)?,
    }
    written.flush().and_then(|()| written.as_file().sync_all()).map_err(failed)?;
    written.persist(path).map_err(|error| failed(error.error))?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_keeps_its_mode_and_is_left_alone_when_it_has_changed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("b.toml");
        fs::write(&path, "old").expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).expect("changed");
        let written = write_beside(&path, "new", false).expect("written");
        assert!(matches!(put(written, &path, "other"), Err(Failure::Save(SaveError::Edited(_)))));
        assert_eq!(fs::read_to_string(&path).expect("text"), "old");
        put(write_beside(&path, "new", false).expect("written"), &path, "old").expect("it is put");
        assert_eq!(fs::read_to_string(&path).expect("text"), "new");
        assert_eq!(path.metadata().expect("there").permissions().mode() & 0o777, 0o604);
        assert_eq!(fs::read_dir(directory.path()).expect("a directory").count(), 1, "nothing lies about");
    }
}
