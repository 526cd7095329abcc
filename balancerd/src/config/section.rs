//! A table of the configuration file whose keys are known beforehand, and the first mistakes of the file. A section is
//! opened with its keys, complains about any other, and gives the value of each through a reader of `value`. It does not
//! know what the keys mean: that is `settings`.

use std::collections::BTreeMap;
use std::fmt;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{elsewhere, value};

/// Turns a value of the file into one of ours, or says what it expected and what it found.
pub(super) type Reader<T> = fn(&DeValue<'_>) -> Result<T, String>;

/// Mistakes of a file that are told at once.
pub(super) const MAX_FAULTS: usize = 20;

/// The first mistakes of a file by their position, [`MAX_FAULTS`] at most, and one at each position. All are looked for,
/// since a walk over sorted tables does not meet them in the order of the file.
#[derive(Debug)]
pub(super) struct Faults<'t> {
    text: &'t str,
    first: BTreeMap<usize, String>,
    /// Whether there are others behind those.
    more: bool,
}

impl<'t> Faults<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, first: BTreeMap::new(), more: false }
    }

    /// Keeps the mistake if it is one of the first so far; only then it is put into words.
    pub(super) fn note(&mut self, at: usize, what: impl FnOnce() -> String) {
        if self.first.contains_key(&at) {
            return;
        }
        if self.first.len() == MAX_FAULTS {
            self.more = true;
            if self.first.last_key_value().is_some_and(|(last, _)| *last < at) {
                return;
            }
            self.first.pop_last();
        }
        self.first.insert(at, what());
    }

    pub(super) fn none_yet(&self) -> bool {
        self.first.is_empty()
    }

    /// The mistakes with the bytes of the text where they are, in the order of the file, and whether there are more.
    pub(super) fn into_first(self) -> (BTreeMap<usize, String>, bool) {
        (self.first, self.more)
    }

    /// The text of the file, for a mistake that speaks of two places.
    pub(super) fn text(&self) -> &'t str {
        self.text
    }
}

/// Line and column of a byte, both from 1; a column is a character.
pub(super) fn position(text: &str, at: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..at.min(text.len())];
    let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    // Every byte of a character but its first is 10xxxxxx.
    (line, before[start..].iter().filter(|byte| **byte & 0xc0 != 0x80).count() + 1)
}

/// The line of a byte, from 1.
pub(super) fn line(text: &str, at: usize) -> usize {
    position(text, at).0
}

/// Where a key or section is in the file, as `pool.web.servers[2]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Path(String);

impl Path {
    /// Of the file as a whole.
    pub(super) fn root() -> Self {
        Self(String::new())
    }

    /// Of a key of this section.
    pub(super) fn key(&self, key: &str) -> Self {
        let bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let key = match !key.is_empty() && key.len() <= value::SHOWN && key.bytes().all(bare) {
            true => key.to_owned(),
            false => value::shown(key),
        };
        if self.0.is_empty() { Self(key) } else { Self(format!("{}.{key}", self.0)) }
    }

    /// Of an element of this array.
    pub(super) fn element(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A table of the file.
#[derive(Debug)]
pub(super) struct Section<'d, 'i> {
    pub(super) path: Path,
    /// Where its heading is, for what is missing in it.
    pub(super) at: usize,
    table: &'d DeTable<'i>,
    keys: &'static [&'static str],
    complete: bool,
}

impl<'d, 'i> Section<'d, 'i> {
    /// A table that may have these keys and no others.
    pub(super) fn open(
        path: Path,
        at: usize,
        table: &'d DeTable<'i>,
        keys: &'static [&'static str],
        faults: &mut Faults<'_>,
    ) -> Self {
        let mut complete = true;
        for key in table.keys().filter(|key| !keys.contains(&key.get_ref().as_ref())) {
            complete = false;
            faults.note(key.span().start, || {
                let name = key.get_ref();
                let path = path.key(name);
                if let Some(ours) = elsewhere::key(name) {
                    return format!("{path}: unknown key; in this file that is {ours}");
                }
                let meant = match value::nearest(name, keys.iter().copied()) {
                    Some(near) => format!("; did you mean \"{near}\"?"),
                    None => ".".to_owned(),
                };
                format!("{path}: unknown key{meant} Keys here: {}", keys.join(", "))
            });
        }
        Self { path, at, table, keys, complete }
    }

    /// The value of a key, if it is there.
    pub(super) fn value(&self, key: &str) -> Option<&'d Spanned<DeValue<'i>>> {
        debug_assert!(self.keys.contains(&key), "{key} is not among the keys of the section");
        self.table.get(key)
    }

    /// The place of a key, if it is there.
    pub(super) fn place(&self, key: &str) -> Option<usize> {
        self.table.get_key_value(key).map(|(key, _)| key.span().start)
    }

    /// The value of a key as the reader has it; nothing when it is not there or not right.
    pub(super) fn take<T>(&self, key: &str, read: Reader<T>, faults: &mut Faults<'_>) -> Option<T> {
        self.take_spanned(key, read, faults).map(Spanned::into_inner)
    }

    /// As [`Section::take`], with its place.
    pub(super) fn take_spanned<T>(&self, key: &str, read: Reader<T>, faults: &mut Faults<'_>) -> Option<Spanned<T>> {
        self.value(key).and_then(|value| self.read(key, value, read, faults))
    }

    /// One value, or an array of them.
    pub(super) fn list<T>(&self, key: &str, read: Reader<T>, faults: &mut Faults<'_>) -> Vec<Spanned<T>> {
        let Some(value) = self.value(key) else { return Vec::new() };
        match value.get_ref() {
            DeValue::Array(array) => {
                let read_one = |(index, value): (usize, &Spanned<DeValue<'_>>)| {
                    let range = value.span();
                    match read(value.get_ref()) {
                        Ok(value) => Some(Spanned::new(range, value)),
                        Err(fault) => {
                            faults.note(range.start, || format!("{}: {fault}", self.path.key(key).element(index)));
                            None
                        }
                    }
                };
                array.iter().enumerate().filter_map(read_one).collect()
            }
            _ => self.read(key, value, read, faults).into_iter().collect(),
        }
    }

    /// Complains about a key that is not there. Not when another one is unknown: that is it, misspelt.
    pub(super) fn require(&self, key: &str, what: &str, faults: &mut Faults<'_>) {
        if self.complete && self.value(key).is_none() {
            faults.note(self.at, || format!("{}: missing; give {what}", self.path.key(key)));
        }
    }

    /// Complains about an array without anything in it; `what` is what to do instead.
    pub(super) fn not_empty(&self, key: &str, what: &str, faults: &mut Faults<'_>) {
        if let Some(value) = self.value(key)
            && value.get_ref().as_array().is_some_and(|array| array.is_empty())
        {
            faults.note(value.span().start, || format!("{}: the list is empty; {what}", self.path.key(key)));
        }
    }

    /// Complains about keys that mean nothing here.
    pub(super) fn refuse(&self, keys: &[&str], only_with: &str, faults: &mut Faults<'_>) {
        for key in keys {
            if let Some(at) = self.place(key) {
                faults.note(at, || format!("{}: it goes with {only_with}", self.path.key(key)));
            }
        }
    }

    /// The tables in a table, in the order of the file: of `[pool.web]` and `[pool.db]` those two.
    pub(super) fn tables(&self, key: &str, faults: &mut Faults<'_>) -> Vec<Named<'d, 'i>> {
        let path = self.path.key(key);
        let expected = || format!("a table with a name, [{key}.NAME]");
        let Some(value) = self.value(key) else { return Vec::new() };
        let DeValue::Table(tables) = value.get_ref() else {
            let at = self.place(key).unwrap_or(value.span().start);
            faults.note(at, || format!("{path}: {}", value::unexpected(&expected(), value.get_ref())));
            return Vec::new();
        };
        let mut found = Vec::with_capacity(tables.len());
        for (name, value) in tables {
            let at = name.span().start;
            match value.get_ref() {
                DeValue::Table(table) => found.push(Named { name: name.get_ref().as_ref(), at, table }),
                other => {
                    let path = path.key(name.get_ref());
                    faults.note(at, || format!("{path}: {}", value::unexpected(&expected(), other)));
                }
            }
        }
        found.sort_by_key(|named| named.at);
        found
    }

    fn read<T>(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        read: Reader<T>,
        faults: &mut Faults<'_>,
    ) -> Option<Spanned<T>> {
        let range = value.span();
        match read(value.get_ref()) {
            Ok(value) => Some(Spanned::new(range, value)),
            Err(fault) => {
                faults.note(range.start, || format!("{}: {fault}", self.path.key(key)));
                None
            }
        }
    }
}

/// A table and its name in the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Named<'d, 'i> {
    pub(super) name: &'d str,
    pub(super) at: usize,
    pub(super) table: &'d DeTable<'i>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_is_a_character() {
        let text = "a\nüb = 1\n";
        assert_eq!(position(text, 0), (1, 1));
        assert_eq!(position(text, text.find('b').expect("there")), (2, 2));
        assert_eq!(position(text, text.len()), (3, 1));
        assert_eq!(position("", 7), (1, 1));
    }

    #[test]
    fn the_first_mistakes_by_position_are_kept_and_no_others_put_into_words() {
        let mut faults = Faults::new("");
        for at in (1..=MAX_FAULTS).rev() {
            faults.note(at * 2, || at.to_string());
        }
        faults.note(6, || unreachable!("there is one already"));
        assert!(!faults.more);
        faults.note(1000, || unreachable!("it is not among the first"));
        faults.note(3, || "three".to_owned());
        let (first, more) = faults.into_first();
        assert!(more);
        assert_eq!(first.len(), MAX_FAULTS);
        assert_eq!(first.into_iter().take(3).map(|(at, _)| at).collect::<Vec<_>>(), [2, 3, 4]);
    }

    #[test]
    fn paths_quote_what_is_no_bare_key() {
        let pool = Path::root().key("pool");
        assert_eq!(pool.key("web").key("servers").element(2).to_string(), "pool.web.servers[2]");
        assert_eq!(pool.key("a.b").to_string(), r#"pool."a.b""#);
        assert_eq!(pool.key("a\n").to_string(), r#"pool."a\n""#);
        assert_eq!(pool.key("").to_string(), r#"pool."""#);
    }
}
