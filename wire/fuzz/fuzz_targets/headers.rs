//! What anybody may say first, on a connection or in a datagram, to a service that wants PROXY protocol headers. The balancer
//! is a program and no library, so its files are built in here.

#![no_main]

#[allow(unused_imports, reason = "the balancer names what is not needed here")]
#[path = "../../../balancerd/src/net/proxy/mod.rs"]
mod proxy;

use libfuzzer_sys::fuzz_target;
use proxy::{HEADER_LIMIT, decode, decode_datagram, encode, encode_datagram};
use wire::settings::SendProxy;

fuzz_target!(|data: &[u8]| {
    let whole = decode(data);
    if data.len() >= HEADER_LIMIT {
        assert_ne!(whole, Ok(None), "nobody is waited for beyond the limit");
    }
    // What was decided of the first bytes is decided, whatever follows.
    for end in 0..data.len().min(512) {
        let start = decode(&data[..end]);
        assert!(start == Ok(None) || start == whole, "{end}: {start:?} and then {whole:?}");
    }
    if let Ok(Some((header, length))) = whole {
        assert!(length <= data.len().min(HEADER_LIMIT));
        for how in [SendProxy::V1, SendProxy::V2 { crc32c: true, unique_id: true }] {
            let written = encode(how, header.addresses, header.unique_id.as_deref());
            let again = decode(&written).expect("own bytes are sound").expect("a whole header is there");
            assert_eq!(again.1, written.len());
            assert_eq!(again.0.addresses.is_some(), header.addresses.is_some());
            if how != SendProxy::V1 && header.addresses.is_some() {
                assert_eq!(again.0.unique_id, header.unique_id);
            }
        }
    }
    if let Ok((header, length)) = decode_datagram(data) {
        assert!(length <= data.len(), "what follows is the datagram");
        let how = SendProxy::V2 { crc32c: true, unique_id: true };
        let written = encode_datagram(how, header.addresses, header.unique_id.as_deref());
        let (again, length) = decode_datagram(&written).expect("own bytes are sound");
        assert_eq!((length, again.addresses.is_some()), (written.len(), header.addresses.is_some()));
        if header.addresses.is_some() {
            assert_eq!(again.unique_id, header.unique_id);
        }
    }
});
