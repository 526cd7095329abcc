//! A file of networks, for `allow_file` and `deny_file`: networks or addresses with line breaks, blanks or commas between
//! them; `#` begins a comment. Not the configuration file, which names it.

use std::path::Path;

use ipnet::IpNet;

use super::file::{FileError, Mistake, text};
use super::value::network_of;

/// Bytes of such a file: the most networks that there may be, each on a line with a comment.
const LIST_LIMIT: usize = 64 * 1024 * 1024;

/// Networks of such a file. The lists of whole countries and of all known senders of spam have less.
const MAX_NETWORKS: usize = 1_000_000;

/// Reads the networks of a file.
///
/// # Errors
/// When it cannot be read, has too many, or has something else: then the first of it, by line and column.
pub(crate) fn read(path: &Path) -> Result<Vec<IpNet>, FileError> {
    parse(&path.display().to_string(), &text(path, LIST_LIMIT, "list of networks")?)
}

fn parse(name: &str, text: &str) -> Result<Vec<IpNet>, FileError> {
    let mut networks = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let its = line.split_once('#').map_or(line, |(its, _)| its);
        for word in its.split(|letter: char| letter == ',' || letter.is_whitespace()).filter(|word| !word.is_empty()) {
            let wrong = |what: String| {
                let before = word.as_ptr() as usize - line.as_ptr() as usize;
                let column = line[..before].chars().count() + 1;
                let mistakes = vec![Mistake { line: index + 1, column, what }];
                FileError::Wrong { name: name.to_owned(), mistakes, more: false }
            };
            if networks.len() == MAX_NETWORKS {
                return Err(wrong(format!("there may be {MAX_NETWORKS} networks at most")));
            }
            networks.push(network_of(word).map_err(|fault| {
                let shown: String = word.chars().take(MOST_SHOWN).flat_map(char::escape_debug).collect();
                wrong(fault.unwrap_or_else(|| {
                    format!("expected a network such as 10.0.0.0/8 or an address, found \"{shown}\"")
                }))
            })?);
        }
    }
    Ok(networks)
}

/// Characters of a word that is no network that are shown.
const MOST_SHOWN: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<String>, String> {
        let networks = parse("deny.list", text).map_err(|error| error.to_string())?;
        Ok(networks.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn networks_stand_on_lines_of_their_own_or_with_commas_and_comments_are_left_out() {
        let text = "# all of them\r\n10.0.0.0/8 # ours\n\n 192.0.2.7, 192.0.2.8,2001:db8::/32\t::1\n::ffff:10.1.2.3#x";
        let expected = ["10.0.0.0/8", "192.0.2.7/32", "192.0.2.8/32", "2001:db8::/32", "::1/128", "10.1.2.3/32"];
        assert_eq!(parsed(text), Ok(expected.map(str::to_owned).to_vec()));
        assert_eq!(parsed("# nobody"), Ok(Vec::new()));
    }

    #[test]
    fn what_is_no_network_is_told_by_its_line() {
        for (text, fault) in [
            (
                "10.0.0.0/8\n  10.0.0.0/33\n",
                "2:3: expected a network such as 10.0.0.0/8 or an address, found \"10.0.0.0/33\"",
            ),
            ("\u{fc} x", "1:1: expected a network such as 10.0.0.0/8 or an address, found \"\u{fc}\""),
            (
                "10.0.0.1/8",
                "1:1: 10.0.0.1/8 has bits set behind its prefix; the network is 10.0.0.0/8, the one address 10.0.0.1",
            ),
        ] {
            assert_eq!(parsed(text), Err(format!("deny.list:{fault}")));
        }
        let many = "10.0.0.1\n".repeat(MAX_NETWORKS + 1);
        assert_eq!(parsed(&many), Err("deny.list:1000001:1: there may be 1000000 networks at most".to_owned()));
    }
}
