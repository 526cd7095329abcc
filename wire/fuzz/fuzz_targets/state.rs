//! What may lie in the place of the state file. The balancer is a program and no library, so its file is built in here.

#![no_main]

#[allow(dead_code, unreachable_pub, reason = "not all of it is asked for here")]
#[path = "../../../balancerd/src/state/kept.rs"]
mod kept;

use libfuzzer_sys::fuzz_target;
use wire::Settings;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(kept) = kept::Kept::parse(text) else { return };
    // What was taken is written as it was read, and means the same again.
    let again = kept::Kept::parse(&kept.text().expect("it can be written")).expect("own text is sound");
    assert_eq!(again, kept);
    assert_eq!(again.apply(&Settings::default()), kept.apply(&Settings::default()));
});
