//! Headers of the PROXY protocol: the same is read of one however it comes, and never more than what belongs to it. An input
//! is how it is cut, then the bytes.

use super::corpus;
use super::fuzzing::{Target, fuzz, outcome};
use lontra::gateway::proxy::header::Header;

#[test]
fn proxy() {
    const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
    let v2 = [
        b"\x01".as_slice(),
        SIGNATURE,
        b"\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01\x04\xd2\x07\x5b",
        b"more",
    ]
    .concat();
    let target = Target {
        name: "proxy",
        corpus: &corpus("proxy"),
        seeds: vec![
            b"\x05PROXY TCP4 192.0.2.1 198.51.100.1 56324 1883\r\n\x10".to_vec(),
            b"\x03PROXY UNKNOWN\r\n".to_vec(),
            b"\x07PROXY TCP6 2001:db8::1 ::1 1 65535\r\nx".to_vec(),
            v2,
        ],
        words: &[
            b"PROXY ",
            b"TCP4 ",
            b"TCP6 ",
            b"UNKNOWN",
            b"\r\n",
            SIGNATURE,
            b"\x21\x11\0\x0c",
            b"\x20\0\0\0",
            b"::",
            b"255",
        ],
        memory: (4 << 10, 4),
    };
    fuzz(target, |input| {
        let Some((cut, bytes)) = input.split_first() else {
            return 0;
        };
        let whole = read(bytes, bytes.len().max(1));
        assert_eq!(read(bytes, usize::from(*cut % 16) + 1), whole);
        match whole {
            Ok((taken, told)) => {
                assert!(taken <= bytes.len());
                outcome((taken.min(64), told.map(|told| told.starts_with("Client"))))
            }
            Err(error) => outcome(error),
        }
    });
}

/// Bytes that belong to the header, and what it says once it is whole.
fn read(bytes: &[u8], cut: usize) -> Result<(usize, Option<String>), String> {
    let mut header = Header::default();
    let mut at = 0;
    // What is there grows; what was not taken is offered again.
    for end in (cut..bytes.len()).step_by(cut).chain([bytes.len()]) {
        let (taken, told) = header.take(&bytes[at..end]).map_err(|error| error.to_string())?;
        at += taken;
        if let Some(told) = told {
            return Ok((at, Some(format!("{told:?}"))));
        }
    }
    Ok((at, None))
}
