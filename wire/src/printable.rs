//! Text that came from elsewhere, as an argument, a path or a name, on its way to a terminal: a control character there may
//! colour what follows, write over what was before, or answer in the user's name.

use std::borrow::Cow;

/// The text with its control characters spelled out, as `\u{1b}`. Ends of lines and tabs stay.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unprintable) {
        return Cow::Borrowed(text);
    }
    let mut printable = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_unprintable(c) {
            printable.extend(c.escape_unicode());
        } else {
            printable.push(c);
        }
    }
    Cow::Owned(printable)
}

/// Control characters, and those that turn the direction of what is written around.
pub(crate) fn is_unprintable(c: char) -> bool {
    c.is_control() && c != '\n' && c != '\t' || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_spelled_out_and_all_else_stays() {
        for same in ["", "a b\n\tc", "ü \u{1f600} \\u{1b}"] {
            assert!(matches!(printable(same), Cow::Borrowed(text) if text == same));
        }
        assert_eq!(printable("a\u{1b}[31mb\r\u{7}\u{9b}1m\u{7f}"), "a\\u{1b}[31mb\\u{d}\\u{7}\\u{9b}1m\\u{7f}");
        assert_eq!(printable("\u{202e}txt.exe"), "\\u{202e}txt.exe");
    }
}
