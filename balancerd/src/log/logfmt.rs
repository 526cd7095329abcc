//! The fields of a line of the log as logfmt: the words of what happened, then `key=value`.

use std::fmt;

use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;
use wire::{logfmt, printable};

/// What `tracing` calls the words.
const WORDS: &str = "message";

/// Writes fields so.
#[derive(Debug)]
pub(super) struct Logfmt;

impl<'a> FormatFields<'a> for Logfmt {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'a>, fields: R) -> fmt::Result {
        let mut line = Line { writer, is_empty: true, result: Ok(()) };
        fields.record(&mut line);
        line.result
    }
}

struct Line<'a> {
    writer: Writer<'a>,
    is_empty: bool,
    result: fmt::Result,
}

impl Line<'_> {
    fn put(&mut self, field: &Field, value: &str) {
        if self.result.is_err() {
            return;
        }
        let space = if std::mem::take(&mut self.is_empty) { "" } else { " " };
        self.result = if field.name() == WORDS {
            // It is one line, whatever a library says.
            write!(self.writer, "{space}{}", printable(value).replace('\n', "\\n"))
        } else {
            write!(self.writer, "{space}{}={}", field.name(), logfmt(value))
        };
    }
}

impl Visit for Line<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, &format!("{value:?}"));
    }
}
