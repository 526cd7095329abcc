//! Why a command failed, and with which exit code.

use std::io;
use std::path::PathBuf;

use serde::Serialize;
use wire::{ClientError, PlaceError, Refusal};

use crate::address::{AddressError, ServerError};
use crate::check::FileError;
use crate::cli::pool::PoolError;
use crate::cli::service::ServiceError;
use crate::compare::CompareError;
use crate::demo::DemoError;
use crate::events::EventsError;
use crate::import::ImportError;
use crate::leave::LeaveError;
use crate::quantity::time;
use crate::save::SaveError;
use crate::start::StartError;

/// Exit code: what was asked is not done, and the balancer or this program says why.
const REFUSED: u8 = 1;

/// Exit code: the balancer cannot be reached, or the command cannot be understood.
const UNREACHABLE: u8 = 2;

/// Everything that ends a command before its time. The text is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The balancer does not do it.
    #[error("{0}")]
    Refused(Refusal),
    /// The balancer cannot be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// No balancer of this user answers, but there is one of the system.
    #[error(
        "no balancer answers at {}; to mean that of the system, give --socket {} (as root or a member of its group), or start one of your own with `balancerctl start ADDR PORT`", .tried.display(), .other.display()
    )]
    OtherBalancer {
        /// Where this user's balancer would be.
        tried: PathBuf,
        /// Where there is one.
        other: PathBuf,
    },
    /// The answer belongs to another question.
    #[error("the balancer gave an answer to another question; use the balancerctl that was installed with it")]
    Unexpected,
    /// It was told to stop, and is still there.
    #[error("the balancer, pid {pid}, is stopping but has not ended within {}; `balancerctl status` and its log say more", time(*.limit_ms))]
    StillThere {
        /// Its process.
        pid: u32,
        /// How long it was waited for.
        limit_ms: u64,
    },
    /// Nothing says where the balancer is.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// Not an address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The balancer could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Options that do not go together.
    #[error(transparent)]
    Usage(#[from] PoolError),
    /// The same, of a service.
    #[error(transparent)]
    ServiceUsage(#[from] ServiceError),
    /// A configuration file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// What commands changed cannot be written into the file.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// Two balancers cannot be compared.
    #[error(transparent)]
    Compare(#[from] CompareError),
    /// The file of another balancer cannot be converted.
    #[error("{}: {source}", .path.display())]
    Import { path: PathBuf, source: ImportError },
    /// A removed server was waited for in vain.
    #[error(transparent)]
    Leave(#[from] LeaveError),
    /// Events cannot be told.
    #[error(transparent)]
    Events(#[from] EventsError),
    /// The demonstration went wrong.
    #[error(transparent)]
    Demo(#[from] DemoError),
    /// A page could not be written.
    #[error("{} cannot be written: {source}", .path.display())]
    Page {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Standard output takes no more.
    #[error("standard output cannot be written: {0}")]
    Output(io::Error),
}

/// A failure as programs read it.
#[derive(Debug, Serialize)]
pub(crate) struct FailureReport<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<&'a Refusal>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
    message: String,
}

impl Failure {
    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Refused(_) | Self::Address(AddressError::LinkLocal(_)) | Self::Demo(_) => REFUSED,
            Self::Start(error) if error.refused() => REFUSED,
            Self::File(FileError::Wrong { code, .. }) => *code,
            Self::File(FileError::TooLong(_) | FileError::NoText { .. }) => REFUSED,
            Self::Save(error) if error.refused() => REFUSED,
            Self::Leave(_) | Self::Events(_) | Self::Compare(_) | Self::Import { .. } => REFUSED,
            _ => UNREACHABLE,
        }
    }

    /// Whether it is only that the reader of standard output has seen enough. That is no failure.
    pub(crate) fn reader_gone(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// Whether the words are balancerd's about a file: they begin with its name, the line and the column, as editors and
    /// other tools understand it, so that nothing goes before them.
    pub(crate) fn begins_with_its_place(&self) -> bool {
        matches!(self, Self::File(FileError::Wrong { .. }))
    }

    /// What programs read.
    pub(crate) fn report(&self) -> FailureReport<'_> {
        let (refused, error) = match self {
            Self::Refused(refusal) => (Some(refusal), None),
            _ => (None, Some(self.kind())),
        };
        FailureReport { refused, error, message: self.to_string() }
    }

    /// The name that programs know it by: `docs/json.md` lists them.
    fn kind(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::Client(error) => match error {
                ClientError::NoDaemon(_) => "no-daemon",
                ClientError::NotPermitted(_) => "not-permitted",
                ClientError::Version { .. } => "version",
                ClientError::Garbled { .. } => "garbled",
                ClientError::Request(_) => "request",
                ClientError::Closed(_) => "closed",
                ClientError::Ended(_) => "ended",
                ClientError::TimedOut(_) => "timed-out",
                ClientError::Io { .. } => "io",
            },
            Self::OtherBalancer { .. } => "no-daemon",
            Self::Unexpected => "garbled",
            Self::StillThere { .. } => "still-there",
            Self::Place(_) => "no-place",
            Self::Address(AddressError::Unresolved { .. }) => "unresolved",
            Self::Address(_) => "address",
            Self::Start(error) => error.kind(),
            Self::Usage(_) | Self::ServiceUsage(_) => "usage",
            Self::File(FileError::Read { .. }) => "io",
            Self::File(FileError::Garbled(_)) => "garbled",
            Self::File(_) | Self::Import { .. } => "bad-file",
            Self::Save(error) => error.kind(),
            Self::Compare(_) => "too-large",
            Self::Leave(LeaveError::BalancerEnded(_)) => "ended",
            Self::Leave(LeaveError::AddedAgain(_)) => "added-again",
            Self::Events(EventsError::Ended { .. }) => "ended",
            Self::Events(EventsError::NotYet { .. }) => "no-event",
            Self::Demo(_) => "demo",
            Self::Page { .. } | Self::Output(_) => "io",
        }
    }
}

impl From<ServerError> for Failure {
    fn from(error: ServerError) -> Self {
        match error {
            ServerError::Address(error) => Self::Address(error),
            ServerError::Refused(refusal) => Self::Refused(refusal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(failure: &Failure) -> String {
        serde_json::to_string(&failure.report()).expect("text")
    }

    #[test]
    fn a_refusal_is_told_in_its_own_shape() {
        let refused = Failure::Refused(Refusal::WeightTooLarge { weight: 257 });
        assert_eq!(refused.code(), 1);
        assert_eq!(
            json(&refused),
            r#"{"refused":{"weight-too-large":{"weight":257}},"message":"weight 257 is too large; give 0 to 256"}"#
        );
        assert!(json(&Failure::Refused(Refusal::Stopping)).starts_with(r#"{"refused":"stopping","message":"#));
    }

    #[test]
    fn what_cannot_be_reached_has_a_kind() {
        let gone = Failure::Client(ClientError::NoDaemon("/tmp/s".into()));
        assert_eq!(gone.code(), 2);
        assert!(json(&gone).starts_with(r#"{"error":"no-daemon","message":"no balancer answers at /tmp/s"#));
    }

    #[test]
    fn only_a_closed_pipe_is_no_failure() {
        assert!(Failure::Output(io::Error::from(io::ErrorKind::BrokenPipe)).reader_gone());
        assert!(!Failure::Output(io::Error::from(io::ErrorKind::StorageFull)).reader_gone());
        assert!(!Failure::Unexpected.reader_gone());
    }
}
