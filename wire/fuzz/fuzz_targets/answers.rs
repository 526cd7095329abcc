//! What a server may answer to a check by HTTP or DNS. The balancer is a program and no library, so its files are built in here.

#![no_main]

#[allow(dead_code, unreachable_pub, reason = "not all of it is asked for here")]
#[path = "../../../balancerd/src/net/probe/dns.rs"]
mod dns;
#[allow(dead_code, unreachable_pub, reason = "not all of it is asked for here")]
#[path = "../../../balancerd/src/net/probe/http.rs"]
mod http;

use libfuzzer_sys::fuzz_target;
use wire::dns::DnsCheck;

fuzz_target!(|data: &[u8]| {
    let wants_200 = |status| status == 200;
    let whole = http::look(data, "GET", wants_200);
    // A status that is there stays what it is, whatever follows.
    for end in 0..data.len().min(512) {
        if let Ok(Some(start)) = http::look(&data[..end], "GET", wants_200) {
            let status = whole.as_ref().ok().and_then(Option::as_ref).map(|answer| answer.status);
            assert_eq!(status, Some(start.status), "{end}");
        }
    }
    if let Ok(Some(http::Answer { body: Some(mut body), .. })) = whole {
        body.on_bytes(data);
    }
    // Bytes answer a question or do not, and a question is no answer to itself.
    let question = dns::Question::new(&DnsCheck::default(), 0x1234);
    let _ = question.answered(data);
    assert!(question.answered(question.bytes()).is_err());
});
