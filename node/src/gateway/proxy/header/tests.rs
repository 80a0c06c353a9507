use super::*;

/// The header in pieces of each length, with bytes behind it that must not be taken.
fn check(header: &[u8], expected: Result<Told, HeaderError>) {
    let stream = [header, b"\x10\x0cMQTT\r\n"].concat();
    for size in [1, 2, 7, 16, 4096] {
        let (mut received, mut at) = (Header::default(), 0);
        let outcome = loop {
            let available = &stream[at..(at + size).min(stream.len())];
            match received.take(available) {
                Ok((taken, None)) => {
                    assert!(
                        taken == available.len(),
                        "all of a header that is not whole: {header:?}"
                    );
                    at += taken;
                    if at >= stream.len() {
                        break None;
                    }
                }
                Ok((taken, Some(told))) => {
                    at += taken;
                    break Some(Ok(told));
                }
                Err(error) => break Some(Err(error)),
            }
        };
        assert_eq!(
            outcome,
            Some(expected),
            "{size}: {:?}",
            header.escape_ascii().to_string()
        );
        if expected.is_ok() {
            assert_eq!(at, header.len(), "{size}: nothing behind it is taken");
        }
    }
}

fn client(text: &str) -> Result<Told, HeaderError> {
    Ok(Told::Client(text.parse().expect("an address")))
}

fn binary(version: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u16).to_be_bytes();
    [&SIGNATURE[..], &[version, family], &length, body].concat()
}

#[test]
fn a_line_tells_the_client() {
    check(
        b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 1883\r\n",
        client("192.0.2.1:56324"),
    );
    check(b"PROXY TCP6 2001:db8::1 ::1 1 65535\r\n", client("[2001:db8::1]:1"));
    check(b"PROXY TCP4 0.0.0.0 255.255.255.255 0 0\r\n", client("0.0.0.0:0"));
    check(b"PROXY UNKNOWN\r\n", Ok(Told::Nothing));
    check(b"PROXY UNKNOWN ffff::1 whatever 1 2\r\n", Ok(Told::Nothing));
}

#[test]
fn a_line_that_is_not_exactly_one_is_refused() {
    for line in [
        &b"PROXY TCP4 192.0.2.1 198.51.100.1 56324\r\n"[..],
        b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 1883 \r\n",
        b"PROXY TCP4  192.0.2.1 198.51.100.1 56324 1883\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 056324 1883\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 65536 1883\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 +1 1883\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 -1 1883\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 1 \r\n",
        b"PROXY TCP4 2001:db8::1 ::1 1 1\r\n",
        b"PROXY TCP6 192.0.2.1 198.51.100.1 1 1\r\n",
        b"PROXY TCP4 192.0.2.01 198.51.100.1 1 1\r\n",
        b"PROXY TCP4 192.0.2.1 example.org 1 1\r\n",
        b"PROXY UDP4 192.0.2.1 198.51.100.1 1 1\r\n",
        b"PROXY UNKNOWNX\r\n",
        b"PROXY \r\n",
        b"PROXY TCP4 192.0.2.1\xff 198.51.100.1 1 1\r\n",
        b"PROXY TCP4 192.0.2.1\r198.51.100.1 1 1\r\n",
    ] {
        check(line, Err(HeaderError::Line));
    }
    let long = [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; 100]].concat();
    check(&long, Err(HeaderError::Line));
}

#[test]
fn the_longest_line_is_taken() {
    let v6 = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    let line = format!("PROXY UNKNOWN {v6} {v6} 65535 65535\r\n");
    assert_eq!(line.len(), V1_MAX);
    check(line.as_bytes(), Ok(Told::Nothing));
}

#[test]
fn what_begins_otherwise_is_no_header() {
    for bytes in [
        &b"\x10\x0c\x00\x04MQTT\x05"[..],
        b"GET /mqtt HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"proxy TCP4 1.1.1.1 1.1.1.1 1 1\r\n",
        b"PROXX TCP4",
        b"\r\n\r\n\0\r\nQUIT\r",
        b"\r\nPROXY",
    ] {
        check(bytes, Err(HeaderError::NoHeader));
    }
}

#[test]
fn a_binary_header_tells_the_client() {
    let v4 = [192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 4, 7, 0x5b];
    check(&binary(0x21, 0x11, &v4), client("192.0.2.1:56324"));
    let v6 = [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[1], &[0; 16], &[0, 1, 0, 2]].concat();
    check(&binary(0x21, 0x21, &v6), client("[2001:db8::1]:1"));
    // TLVs: a network namespace, and one without a value.
    let tlvs = [&v4[..], &[0x30, 0, 2, b'n', b's', 4, 0, 0]].concat();
    check(&binary(0x21, 0x11, &tlvs), client("192.0.2.1:56324"));
    check(&binary(0x20, 0x11, &v4), Ok(Told::Nothing));
    check(&binary(0x20, 0x00, &[]), Ok(Told::Nothing));
    check(&binary(0x20, 0x00, &[1, 2, 3]), Ok(Told::Nothing));
    check(&binary(0x21, 0x00, &[]), Ok(Told::Nothing));
    check(&binary(0x21, 0x31, &[0; 216]), Ok(Told::Nothing));
}

#[test]
fn a_binary_header_that_does_not_add_up_is_refused() {
    let v4 = [192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 4, 7, 0x5b];
    check(&binary(0x21, 0x11, &v4[..11]), Err(HeaderError::Length));
    check(&binary(0x21, 0x21, &v4), Err(HeaderError::Length));
    check(&binary(0x21, 0x31, &[0; 215]), Err(HeaderError::Length));
    for tlvs in [&[4][..], &[4, 0], &[4, 0, 1], &[4, 0, 0, 4, 0xff, 0xff, 1]] {
        check(&binary(0x21, 0x11, &[&v4[..], tlvs].concat()), Err(HeaderError::Length));
    }
    for version in [0x11, 0x22, 0x2f, 0x31, 0x00] {
        check(&binary(version, 0x11, &v4), Err(HeaderError::Version));
    }
    for family in [0x13, 0x41, 0xf1] {
        check(&binary(0x21, family, &v4), Err(HeaderError::Family));
    }
    check(&binary(0x21, 0x11, &[0; V2_MAX]), Err(HeaderError::Length));
}

/// No bytes make it panic, take more than it was given, or wait for more than a header may have.
#[test]
fn whatever_comes_is_taken_or_refused_within_bounds() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let v4 = binary(0x21, 0x11, &[7; 20]);
    let seeds = [
        &b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 1883\r\n"[..],
        &v4,
        b"PROXY UNKNOWN\r\n",
    ];
    for _ in 0..200_000 {
        let mut bytes = seeds[random() as usize % seeds.len()].to_vec();
        for _ in 0..random() % 4 {
            let at = random() as usize % bytes.len();
            match random() % 3 {
                0 => bytes[at] = random() as u8,
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, random() as u8),
            }
        }
        bytes.resize(bytes.len() + 5000, random() as u8);
        let (mut header, mut at) = (Header::default(), 0);
        loop {
            let size = 1 + random() as usize % 64;
            let available = &bytes[at..(at + size).min(bytes.len())];
            assert!(!available.is_empty(), "it waits for more than {V2_MAX} bytes");
            match header.take(available) {
                Ok((taken, told)) => {
                    assert!(taken <= available.len());
                    at += taken;
                    if told.is_some() {
                        break;
                    }
                }
                Err(_) => break,
            }
        }
    }
}
