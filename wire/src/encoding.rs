//! The only file that knows bincode: values to bytes and back, one whole frame at a time.
//!
//! bincode is unmaintained (RUSTSEC-2025-0141) and the owner's choice; `deny.toml` gives the reason. The options below
//! write the same bytes as bincode 2 in legacy mode and as serde-wincode, so the wire survives a change of crate.

use bincode::Options;
use serde::{Serialize, de::DeserializeOwned};

/// Why bytes could not be made from a value, or a value from bytes.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct EncodingError(#[from] bincode::Error);

fn options(limit: usize) -> impl Options {
    bincode::DefaultOptions::new().with_fixint_encoding().with_limit(limit as u64).reject_trailing_bytes()
}

/// The bytes of `value`, at most `limit` of them.
pub(crate) fn encode<T: Serialize>(value: &T, limit: usize) -> Result<Vec<u8>, EncodingError> {
    Ok(options(limit).serialize(value)?)
}

/// The value that `bytes` are, all of them. A length inside never reserves more than `bytes` can hold: bincode counts
/// each element against the limit, which is the number of bytes that are here.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, EncodingError> {
    Ok(options(bytes.len()).deserialize(bytes)?)
}
