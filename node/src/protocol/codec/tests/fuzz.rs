//! `no-panic-on-wire`, and what decodes can be said again.

use super::*;

#[test]
fn mutated_frames_never_panic_and_what_decodes_encodes_to_the_same() {
    let corpus = corpus();
    let mut random = Random(0x10_7A_4A_01);
    let limits = Limits::default();
    let mut accepted = 0;
    for _ in 0..200_000 {
        let frame = Bytes::from(mutated(&corpus, &mut random));
        for version in [None, Some(Version::V3_1), Some(Version::V3_1_1), Some(Version::V5)] {
            let length = frame_length(&frame, &limits, version);
            for direction in DIRECTIONS {
                let Ok(packet) = decode(frame.clone(), version, direction, &limits) else {
                    continue;
                };
                accepted += 1;
                assert_eq!(length, Ok(Some(frame.len())), "{}", to_hex(&frame));
                check_again(&frame, &packet, version, direction);
            }
        }
    }
    assert!(accepted > 100_000, "the mutations stay near the grammar: {accepted}");
}

fn check_again(frame: &Bytes, packet: &Packet, version: Option<Version>, direction: Direction) {
    let written_in = match packet {
        Packet::Connect(connect) => connect.version,
        _ => version.expect("only CONNECT is accepted without a version"),
    };
    let mut out = BytesMut::new();
    encode(packet, written_in, &mut out).unwrap_or_else(|error| panic!("{} {packet:?}: {error}", to_hex(frame)));
    let again = decode(out.clone().freeze(), version, direction, &Limits::default());
    let again = again.unwrap_or_else(|error| panic!("{} as {}: {error}", to_hex(frame), to_hex(&out)));
    assert!(
        same(packet, &again),
        "{} as {}: {packet:?} {again:?}",
        to_hex(frame),
        to_hex(&out)
    );
}

#[test]
fn random_bytes_never_panic() {
    let mut random = Random(0x10_7A_4A_02);
    for _ in 0..100_000 {
        let frame: Vec<u8> = (0..random.below(40)).map(|_| random.next() as u8).collect();
        for version in [None, Some(Version::V3_1), Some(Version::V5)] {
            let _ = frame_length(&frame, &Limits::default(), version);
            let _ = decode(
                Bytes::copy_from_slice(&frame),
                version,
                Direction::ClientToServer,
                &Limits::default(),
            );
        }
        let _ = PropertyIter::new(&frame).count();
        let _ = forwarded_properties(&frame);
        let _ = connect_version(&frame);
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let corpus = corpus();
    let run = |seed| {
        let mut random = Random(seed);
        (0..100).map(|_| mutated(&corpus, &mut random)).collect::<Vec<_>>()
    };
    assert_eq!(run(7), run(7));
}
