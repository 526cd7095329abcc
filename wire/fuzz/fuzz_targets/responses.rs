//! What whoever answers at the socket may send to balancerctl: no bytes make the codec panic, hang or reserve what a length claims.

#![no_main]

mod feed;

use libfuzzer_sys::fuzz_target;
use wire::control::Response;
use wire::frame::RESPONSE_LIMIT;

fuzz_target!(|data: &[u8]| feed::feed::<Response>(data, RESPONSE_LIMIT));
