//! Bytes of the fuzzer as a peer's stream: what both targets share.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;
use wire::frame::{Decoder, frame, greeting};

/// Feeds `data` to a decoder in portions that `data` itself chooses, and checks what holds for every stream.
///
/// The first byte says whether a sound greeting goes before the rest; without it hardly an input would get as far as a
/// message. Then each portion is a byte for its length and that many bytes.
///
/// # Panics
/// When a promise of the codec is broken: that is what the fuzzer looks for.
pub fn feed<T: Serialize + DeserializeOwned + Debug>(data: &[u8], limit: usize) {
    let Some((&first, mut rest)) = data.split_first() else { return };
    let mut portions = Vec::new();
    if first & 1 == 0 {
        portions.push(greeting());
    }
    while let Some((&length, behind)) = rest.split_first() {
        let (portion, behind) = behind.split_at(usize::from(length).min(behind.len()));
        portions.push(portion.to_vec());
        rest = behind;
    }

    let whole = messages::<T>([portions.concat()], limit);
    assert_eq!(messages::<T>(portions, limit), whole, "the portions of a stream decide nothing");
}

/// The messages of a stream, and whether it broke. Each is compared as its bytes: what was read can be written, and is
/// the same when it is read again.
fn messages<T: Serialize + DeserializeOwned + Debug>(
    portions: impl IntoIterator<Item = Vec<u8>>,
    limit: usize,
) -> (Vec<Vec<u8>>, bool) {
    let mut decoder = Decoder::<T>::new(limit);
    let mut messages = Vec::new();
    let mut pushed = 0;
    for portion in portions {
        decoder.push(&portion);
        pushed += portion.len();
        loop {
            match decoder.next() {
                Ok(Some(message)) => messages.push(again(&message)),
                Ok(None) => break,
                Err(_) => return (messages, true),
            }
        }
        assert!(decoder.pending() <= pushed, "nothing is held that was not pushed");
    }
    (messages, false)
}

fn again<T: Serialize + DeserializeOwned + Debug>(message: &T) -> Vec<u8> {
    let bytes = frame(message).expect("what came in a frame fits into one");
    let mut decoder = Decoder::<T>::new(bytes.len());
    decoder.push(&greeting());
    decoder.push(&bytes);
    let second = decoder.next().expect("own bytes are sound").expect("a whole frame is there");
    assert_eq!(frame(&second).expect("it did before"), bytes, "{message:?} is not {second:?}");
    bytes
}
