//! What a peer may send to the daemon: no bytes make the codec panic, hang or reserve what a length claims.

#![no_main]

mod feed;

use libfuzzer_sys::fuzz_target;
use wire::control::Request;
use wire::frame::REQUEST_LIMIT;

fuzz_target!(|data: &[u8]| feed::feed::<Request>(data, REQUEST_LIMIT));
