//! The examples of the standard, and what is not let in.

use super::super::password::PasswordRecord;
use super::*;

/// RFC 7677, section 3: user `user`, password `pencil`.
const THEIRS: &str = "rOprNGfwEbeRWgbNEkqO";
const OURS: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
const SALT: &str = "W22ZaJ0SNY7soEsUEjb6gQ==";

fn file() -> PasswordFile {
    let salt = STANDARD.decode(SALT).expect("Base64");
    let (stored_key, server_key) = keys(
        &Secret::new(*b"pencil"),
        &salt,
        NonZeroU32::new(4096).expect("it is not 0"),
    );
    let record = format!(
        "{METHOD}$4096:{SALT}${}:{}",
        STANDARD.encode(stored_key),
        STANDARD.encode(server_key)
    );
    let argon = PasswordRecord::make(&Secret::new(*b"x"));
    let argon = argon.text().expect("ours");
    PasswordFile::parse(&format!("user:{record}:ops\nargon:{argon}\n")).expect("a file")
}

fn first(name: &str) -> String {
    format!("n,,n={name},r={THEIRS}")
}

#[test]
fn the_exchange_of_rfc_7677_is_what_it_says() {
    let (exchange, challenge) = begin(&file(), first("user").as_bytes(), OURS).expect("a challenge");
    assert_eq!(
        String::from_utf8(challenge).expect("text"),
        format!("r={THEIRS}{OURS},s={SALT},i=4096")
    );
    let last = format!("c=biws,r={THEIRS}{OURS},p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=");
    let (identity, proof) = exchange.finish(last.as_bytes()).expect("let in");
    assert_eq!(proof, b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    assert_eq!(identity.user.as_deref(), Some("user"));
    assert_eq!(identity.groups.join(","), "ops");
}

/// What a client with this password answers; tests of the broker's own code only, see `wire_scram.rs` for another's.
fn answer(challenge: &[u8], name: &str, password: &[u8]) -> String {
    let challenge = std::str::from_utf8(challenge).expect("text");
    let mut parts = challenge.split(',').map(|part| &part[2..]);
    let (nonce, salt, iterations) = (parts.next(), parts.next(), parts.next());
    let salt = STANDARD.decode(salt.expect("a salt")).expect("Base64");
    let iterations = iterations.expect("a number").parse().expect("a number");
    let mut salted = [0; 32];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, &salt, password, &mut salted);
    let client_key = sign(&salted, b"Client Key");
    let stored_key = digest::digest(&digest::SHA256, &client_key);
    let without_proof = format!("c=biws,r={}", nonce.expect("a nonce"));
    let said = format!("n={name},r={THEIRS},{challenge},{without_proof}");
    let signature = sign(stored_key.as_ref(), said.as_bytes());
    let proof: Vec<u8> = client_key.iter().zip(signature).map(|(key, sign)| key ^ sign).collect();
    format!("{without_proof},p={}", STANDARD.encode(proof))
}

#[test]
fn only_the_right_proof_lets_in() {
    let finish = |name: &str, password: &[u8]| {
        let (exchange, challenge) = begin(&file(), first(name).as_bytes(), OURS).expect("a challenge");
        let last = answer(&challenge, name, password);
        exchange.finish(last.as_bytes()).map(|(identity, _)| identity.user)
    };
    assert_eq!(finish("user", b"pencil"), Ok(Some("user".into())));
    assert_eq!(finish("user", b"pencils"), Err(Failed::Wrong));
    assert_eq!(finish("nobody", b"pencil"), Err(Failed::UnknownUser));
    assert_eq!(finish("argon", b"x"), Err(Failed::UnknownUser), "no SCRAM record");
    // The zeros of a decoy are no key that anybody could have.
    assert_eq!(finish("nobody", b""), Err(Failed::UnknownUser));
}

#[test]
fn a_user_that_there_is_not_looks_like_one_that_there_is() {
    let challenge = |users: &PasswordFile, name: &str| {
        let (_, challenge) = begin(users, first(name).as_bytes(), OURS).expect("a challenge");
        String::from_utf8(challenge).expect("text")
    };
    let (real, fake) = (challenge(&file(), "user"), challenge(&file(), "nobody"));
    assert_eq!(real.len(), fake.len(), "{real} {fake}");
    assert!(fake.ends_with(",i=4096"), "as the others: {fake}");
    assert_eq!(fake, challenge(&file(), "nobody"), "the same on each node, each time");
    assert_ne!(fake, challenge(&file(), "nobody2"));
    assert_ne!(fake, challenge(&PasswordFile::default(), "nobody"), "made of a secret");
}

#[test]
fn what_is_not_scram_or_asks_for_more_is_refused() {
    for (message, failed) in [
        ("", Failed::Malformed),
        ("n,,", Failed::Malformed),
        ("n,,n=user", Failed::Malformed),
        ("n,,n=,r=x", Failed::Malformed),
        ("n,,n=us=er,r=x", Failed::Malformed),
        ("n,,n=user,r=", Failed::Malformed),
        ("n,,n=user,r=a b", Failed::Malformed),
        ("n,,m=x,n=user,r=x", Failed::Malformed),
        ("x,,n=user,r=x", Failed::Malformed),
        ("n,,n=us\u{7}er,r=x", Failed::Malformed),
        ("p=tls-exporter,,n=user,r=x", Failed::Unsupported),
        ("n,a=admin,n=user,r=x", Failed::Unsupported),
    ] {
        assert_eq!(
            begin(&file(), message.as_bytes(), OURS).err(),
            Some(failed),
            "{message}"
        );
    }
    assert_eq!(begin(&file(), b"n,,n=\xff,r=x", OURS).err(), Some(Failed::Malformed));
    let long = first(&"x".repeat(MESSAGE_MAX));
    assert_eq!(begin(&file(), long.as_bytes(), OURS).err(), Some(Failed::Malformed));
    let zeros = STANDARD.encode([0; 32]);
    for (last, failed) in [
        (String::new(), Failed::Malformed),
        (format!("c=biws,r={THEIRS}{OURS}"), Failed::Malformed),
        (format!("c=biws,r={THEIRS}{OURS},p=AAAA"), Failed::Malformed),
        (format!("r={THEIRS}{OURS},c=biws,p={zeros}"), Failed::Malformed),
        (format!("c=biws,r={THEIRS},p={zeros}"), Failed::Wrong),
        (format!("c=eSws,r={THEIRS}{OURS},p={zeros}"), Failed::Wrong),
        (format!("c=biws,r={THEIRS}{OURS},p={zeros}"), Failed::Wrong),
    ] {
        let (exchange, _) = begin(&file(), first("user").as_bytes(), OURS).expect("a challenge");
        assert_eq!(exchange.finish(last.as_bytes()).err(), Some(failed), "{last}");
    }
}

#[test]
fn names_are_unescaped() {
    assert_eq!(unescaped("a=2Cb=3Dc").as_deref(), Some("a,b=c"));
    assert_eq!(unescaped("a=2"), None);
    assert_eq!(unescaped("a=2cb"), None);
    assert_eq!(unescaped("é=2Cé").as_deref(), Some("é,é"));
    assert_eq!(unescaped("=é"), None);
}

#[test]
fn records_are_made_read_and_checked() {
    let record = ScramRecord::make(&Secret::new("pass word é".as_bytes()), &[7; SALT_BYTES]);
    let read = ScramRecord::parse(record.text()).expect("a record");
    assert!(read == record && read.is_of(&Secret::new("pass word é".as_bytes())));
    // SASLprep: the same letter, written as two.
    assert!(read.is_of(&Secret::new("pass word e\u{301}".as_bytes())));
    assert!(!read.is_of(&Secret::new(*b"pass word")));
    assert!(!format!("{read:?}").contains("SCRAM"));
    let zeros = STANDARD.encode([0; 32]);
    for bad in [
        "SCRAM-SHA-256",
        &format!("SCRAM-SHA-256$4096:AAAA${zeros}"),
        &format!("SCRAM-SHA-256$4096:${zeros}:{zeros}"),
        &format!("SCRAM-SHA-256$4095:AAAA${zeros}:{zeros}"),
        &format!("SCRAM-SHA-256$10000001:AAAA${zeros}:{zeros}"),
        &format!("SCRAM-SHA-256$4096:AAAA${zeros}:AAAA"),
        &format!("SCRAM-SHA-1$4096:AAAA${zeros}:{zeros}"),
    ] {
        assert!(ScramRecord::parse(bad).is_none(), "{bad}");
    }
}
