//! Keys from each form, what openssl-made and RFC-made signatures say, and the algorithms that a key is not for.

use base64::engine::general_purpose::STANDARD;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, RSA_PSS_SHA256, RsaKeyPair};

use super::*;

const ALL: [&str; 12] = [
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA",
];

fn allowed(key: &Key) -> Vec<&'static str> {
    let is_allowed = |name: &&str| key.allows(Algorithm::of(name).expect("an algorithm"));
    ALL.into_iter().filter(is_allowed).collect()
}

#[test]
fn a_key_allows_the_algorithms_of_its_kind_only() {
    let secret = |bytes: usize| Key::secret(&vec![b'x'; bytes]).expect("long enough");
    assert_eq!(allowed(&secret(32)), ["HS256"]);
    assert_eq!(allowed(&secret(48)), ["HS256", "HS384"]);
    assert_eq!(allowed(&secret(64)), ["HS256", "HS384", "HS512"]);
    let pem = |algorithm| KeyPair::generate_for(algorithm).expect("a key").public_key_pem();
    let key = |pem: String| Key::from_pem(pem.as_bytes()).expect("a public key");
    assert_eq!(allowed(&key(pem(&PKCS_ECDSA_P256_SHA256))), ["ES256"]);
    assert_eq!(allowed(&key(pem(&PKCS_ECDSA_P384_SHA384))), ["ES384"]);
    assert_eq!(allowed(&key(pem(&PKCS_ED25519))), ["EdDSA"]);
    assert_eq!(
        allowed(&Key::from_pem(RSA_PUBLIC.as_bytes()).expect("a public key")),
        ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]
    );
    for none in ["none", "None", "", "HS1", "ES512", "hs256", "dir"] {
        assert!(Algorithm::of(none).is_none(), "{none}");
    }
}

/// RFC 7515, appendix A.1: HS256.
#[test]
fn the_hmac_of_rfc_7515_is_verified() {
    let secret = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
    let secret = URL_SAFE_NO_PAD.decode(secret).expect("Base64");
    let key = Key::secret(&secret).expect("64 bytes");
    let message =
        b"eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leG\
                    FtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let signature = URL_SAFE_NO_PAD
        .decode("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk")
        .expect("Base64");
    assert!(key.verifies(Algorithm::Hs256, message, &signature));
    assert!(!key.verifies(Algorithm::Hs384, message, &signature));
    assert!(!key.verifies(Algorithm::Hs256, b"other", &signature));
    assert!(!key.verifies(Algorithm::Hs256, message, &[]));
}

#[test]
fn signatures_of_each_kind_are_verified_and_of_others_not() {
    let random = SystemRandom::new();
    let message = b"header.payload";
    let mut signed: Vec<(Key, Algorithm, Vec<u8>)> = Vec::new();

    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
    let ec = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pair.serialized_der(), &random).expect("a key");
    let key = Key::from_pem(pair.public_key_pem().as_bytes()).expect("a public key");
    let signature = ec.sign(&random, message).expect("a signature");
    signed.push((key, Algorithm::Es256, signature.as_ref().to_vec()));

    let pair = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
    let ed = Ed25519KeyPair::from_pkcs8(pair.serialized_der()).expect("a key");
    let key = Key::from_pem(pair.public_key_pem().as_bytes()).expect("a public key");
    signed.push((key, Algorithm::EdDsa, ed.sign(message).as_ref().to_vec()));

    let rsa = STANDARD.decode(RSA_PRIVATE).expect("Base64");
    let rsa = RsaKeyPair::from_pkcs8(&rsa).expect("a key");
    for (how, algorithm) in [
        (
            &ring::signature::RSA_PKCS1_SHA256 as &dyn ring::signature::RsaEncoding,
            Algorithm::Rs256,
        ),
        (&ring::signature::RSA_PKCS1_SHA512, Algorithm::Rs512),
        (&RSA_PSS_SHA256, Algorithm::Ps256),
    ] {
        let mut signature = vec![0; rsa.public().modulus_len()];
        rsa.sign(how, &random, message, &mut signature).expect("a signature");
        let key = Key::from_pem(RSA_PUBLIC.as_bytes()).expect("a public key");
        signed.push((key, algorithm, signature));
    }
    for (at, (key, algorithm, signature)) in signed.iter().enumerate() {
        assert!(key.verifies(*algorithm, message, signature), "{algorithm:?}");
        assert!(!key.verifies(*algorithm, b"header.payloae", signature), "{algorithm:?}");
        for (other, (_, theirs, _)) in signed.iter().enumerate() {
            assert_eq!(
                key.verifies(*theirs, message, signature),
                at == other,
                "{algorithm:?} as {theirs:?}"
            );
        }
    }
}

/// The oldest attack on tokens: HMAC with the text of a public key, which everybody has.
#[test]
fn a_public_key_is_no_secret() {
    let message = b"header.payload";
    for secret in [RSA_PUBLIC.as_bytes(), RSA_PUBLIC.trim_end().as_bytes()] {
        let forged = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message);
        let key = Key::from_pem(RSA_PUBLIC.as_bytes()).expect("a public key");
        assert!(!key.verifies(Algorithm::Hs256, message, forged.as_ref()));
        assert!(!key.verifies(Algorithm::Rs256, message, forged.as_ref()));
    }
}

#[test]
fn a_set_brings_its_public_keys_by_their_ids() {
    let set = format!(
        r#"{{"keys":[
            {{"kty":"OKP","crv":"Ed25519","kid":"ed","x":"{ED}"}},
            {{"kty":"OKP","crv":"Ed25519","kid":"for-encryption","use":"enc","x":"{ED}"}},
            {{"kty":"OKP","crv":"X25519","kid":"other-curve","x":"{ED}"}},
            {{"kty":"oct","kid":"secret","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"}},
            {{"kty":"EC","crv":"P-256","kid":"ec","alg":"ES256","use":"sig",
              "x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}},
            {{"kty":"EC","crv":"P-256","kid":"wrong-algorithm","alg":"ES512","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}}
        ]}}"#
    );
    let keys = key_set(set.as_bytes()).expect("a set");
    let ids: Vec<&str> = keys.iter().filter_map(|key| key.id.as_deref()).collect();
    assert_eq!(ids, ["ed", "ec"]);
    assert!(keys[0].is_called(Some("ed")) && keys[0].is_called(None) && !keys[0].is_called(Some("ec")));
    assert_eq!(allowed(&keys[1]), ["ES256"]);
    assert!(keys[0].fingerprint() != keys[1].fingerprint());
}

#[test]
fn what_is_no_key_is_told_apart() {
    assert_eq!(Key::secret(b"short\n").err(), Some(NoKey::Short(5)));
    assert_eq!(
        Key::secret(&[b"x".repeat(31), b"\r\n".to_vec()].concat()).err(),
        Some(NoKey::Short(31))
    );
    assert_eq!(Key::from_pem(b"x").err(), Some(NoKey::NotPem));
    let certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert_eq!(Key::from_pem(certificate.as_bytes()).err(), Some(NoKey::NotPem));
    assert_eq!(key_set(b"{").err(), Some(NoKey::NotASet("it is not JSON")));
    assert_eq!(key_set(b"{}").err(), Some(NoKey::NotASet("it has no list `keys`")));
    assert_eq!(key_set(br#"{"keys":[]}"#).err(), Some(NoKey::Empty));
    let many = format!(r#"{{"keys":[{}]}}"#, vec!["{}"; 65].join(","));
    assert_eq!(key_set(many.as_bytes()).err(), Some(NoKey::TooMany));
    // An RSA key of 1024 bits, in a set.
    let short = format!(
        r#"{{"keys":[{{"kty":"RSA","e":"AQAB","n":"{}"}}]}}"#,
        URL_SAFE_NO_PAD.encode([0xff; 128])
    );
    assert_eq!(key_set(short.as_bytes()).err(), Some(NoKey::Empty));
}

#[test]
fn secrets_are_not_printed() {
    let key = Key::secret(b"hunter2hunter2hunter2hunter2hunter2").expect("long enough");
    assert!(!format!("{key:?} {:?}", key.fingerprint()).contains("hunter"));
}

/// RFC 8037, appendix A.2.
const ED: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";

/// Made for these tests by `openssl genpkey`: it guards nothing.
const RSA_PRIVATE: &str = concat!(
    "MIIEvgIBADANBgkqhkiG9w0BAQEFAASCBKgwggSkAgEAAoIBAQCmLLwoZl5qJP+xMgQ8KAis1WROQHO9KBB7WXzpWbZVYEDcP/MC",
    "ltfw9M1m47RnqWZbl+P5OK3k7jcB+7/KkupnPobVFxWBJB4E24FgkkWKvylZzW9vMjqLlFAHBXF1Iw+Aecrdrjp737I+eYBajcth",
    "Zfe2nk8OV4XHumDPd9grapKZkNnVbw8VQOFdyhqUyKyvZPbUFVMb6L+FPnOsLjFrFJieHveQg7afEDHstzhHrrxQBpNgxM/7CAXZ",
    "H4Zi4eX64PqfLn48oN1DBLXCgyCOEfi2QXR5ZhVMSYd/Om4rOaVqpXqrZXNRhD6gVlemGvqAGIuNo1xmnec431zmtFMpAgMBAAEC",
    "ggEADL8Ts7medl/eKRZgEskzWSaJKiNxfUnscbm8hh22ibf3Ya2aE1HEwJvWgZTnyqfIzS/KcdxyIkRPfdx0qrI4PrEiIIhDwwMl",
    "NlQsCV9O7ESbhGLosEvXB8vZk6BMQqLs1nsBH530qHnRL0+ck9Waix8KMDzWbZAzF83pDSDxOOs1KedA+FExeo5FI0u2qVZ46ilO",
    "cf/SM9Bxc2TEcPCaMpESMBEGB/xmQXYoqeD/FrChJop95HNwbGW0Fcpo1Cu2sBUvP2fmue27B1nfGJpjuNU8RvPmCifge89Tk7vd",
    "evUHbH3jOwiTDvuRvuF7+AL5054DszfnPepQ26PXg0L6AQKBgQDUP2sBxg6RVCmofa3mqcTyYtACT68I89DQvOiOfqD3F9TlgK76",
    "3a4pgoRz5w9yANF4k6GrxcRejmWmRc76CtCI7xy76bQfgzmZ1KpcUkOTz4NFX6KdQmaaTETooan9Uu7Nanisman/RIp42sh+8vcd",
    "oHhcyMxlFBZWnMRnw9wWwQKBgQDIbfzBA0ykEAmJ+FuoVHky6IDCCPGcNyJo6LZ1G16FyZW5eT6VukxY0ZAql5+t2Um+M63BnkuD",
    "Tq8UfKC5OvZHT7UAZcXVinpp0wloIbJ4kRVkPgPGQQjRb42w484zsWkf7mLmxZv6G5wvrDuPMJI5uwTLWffkIgVCZCdtKTx+aQKB",
    "gQDRYAYlZ8WzI308004bf1njagqcXRLkF/DkGZaoCs6rMf04sSrsGobWOASFeWhJI/l/otMXai5+wKYR0keNbeGtU4Pa835Wn9LQ",
    "p3OvQw+a3lg2tVLrIzen+pj3i5LvbUJZrTCBw8xpHqoi8mBaqz+PIF/b19GZ3Kj0pA0z94hDgQKBgQCkERy4psnC9vnH/gyRk2yO",
    "1rIno4ib9qntNKm+3QOYArbUV8J6cED0577ajrmAZwEteEJA3yIzP2KkI4yxc+mL4FxrEeRK9AtWuxDVM9hTR3g6UWVnkW71ehqD",
    "dUcjG5PRNqOxAou2xYkpoRQ0F29rYIMBLwlzrsGdYjy/5+SEGQKBgHR3OIN7Py5b4gvYFB34IgBp1ABJ1a0xD93MGXAYUDf+nWPl",
    "I0qwmhqgqiW9Esfh5AYuu3fTM+UMmgx4PR89h0W2ix2E7r6rKVWXlk1U6Osh5SBZsA/6A54yjgGYPG/OrxRQ9g2h0Hg+sHmLq1H9",
    "6TgsZFFm1Rb9ppiaMzCOIxKF",
);
const RSA_PUBLIC: &str = "\
-----BEGIN PUBLIC KEY-----\n\
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEApiy8KGZeaiT/sTIEPCgI\n\
rNVkTkBzvSgQe1l86Vm2VWBA3D/zApbX8PTNZuO0Z6lmW5fj+Tit5O43Afu/ypLq\n\
Zz6G1RcVgSQeBNuBYJJFir8pWc1vbzI6i5RQBwVxdSMPgHnK3a46e9+yPnmAWo3L\n\
YWX3tp5PDleFx7pgz3fYK2qSmZDZ1W8PFUDhXcoalMisr2T21BVTG+i/hT5zrC4x\n\
axSYnh73kIO2nxAx7Lc4R668UAaTYMTP+wgF2R+GYuHl+uD6ny5+PKDdQwS1woMg\n\
jhH4tkF0eWYVTEmHfzpuKzmlaqV6q2VzUYQ+oFZXphr6gBiLjaNcZp3nON9c5rRT\n\
KQIDAQAB\n\
-----END PUBLIC KEY-----\n\
";
