//! Values as logfmt has them: `key=value`, in quotes where a blank, a quote, an equals sign or a control character would
//! make something else of it. Lines of the log and of events are written so.

use std::borrow::Cow;

use crate::printable::is_unprintable;

/// A value as it stands behind its key.
#[must_use]
pub fn logfmt(value: &str) -> Cow<'_, str> {
    let is_plain = |c: char| !(c.is_whitespace() || is_unprintable(c) || matches!(c, '"' | '=' | '\\'));
    if !value.is_empty() && value.chars().all(is_plain) {
        return Cow::Borrowed(value);
    }
    let mut quoted = String::with_capacity(value.len() + 16);
    quoted.push('"');
    for c in value.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            // As JSON has it, which those who read logfmt understand.
            c if is_unprintable(c) || c == '\u{2028}' || c == '\u{2029}' => {
                quoted.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    Cow::Owned(quoted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_in_quotes_where_it_would_be_something_else_without() {
        for same in ["web", "10.0.0.1:80", "[::1]:80", "/run/a.sock", "-1", "ü", "a,b;c", "{x}"] {
            assert!(matches!(logfmt(same), Cow::Borrowed(text) if text == same), "{same}");
        }
        for (value, expected) in [
            ("", r#""""#),
            ("connection refused", r#""connection refused""#),
            ("a=b", r#""a=b""#),
            ("say \"hi\"", r#""say \"hi\"""#),
            (r"C:\", r#""C:\\""#),
            ("two\nlines\t\r", r#""two\nlines\t\r""#),
            ("\u{1b}[31m\u{7f}\u{9b}", "\"\\u001b[31m\\u007f\\u009b\""),
            ("\u{202e}x\u{2028}", "\"\\u202ex\\u2028\""),
        ] {
            assert_eq!(logfmt(value), expected);
            // What is in quotes is a text of JSON, too.
            assert_eq!(serde_json::from_str::<String>(expected).expect("one"), value);
        }
    }
}
