//! What a token must say, and when.

use std::time::Duration;

use serde_json::json;

use super::*;

const NOW: u64 = 1_000_000;
const SECRET: &[u8] = b"a secret that is long enough for HS256";

fn signed(header: &Value, payload: &[u8]) -> String {
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let text = format!("{}.{}", encode(header.to_string().as_bytes()), encode(payload));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET);
    let signature = ring::hmac::sign(&key, text.as_bytes());
    format!("{text}.{}", encode(signature.as_ref()))
}

fn settings() -> Jwt {
    Jwt {
        leeway: Duration::from_secs(10),
        ..Jwt::default()
    }
}

fn claims_of(settings: &Jwt, payload: &Value) -> Result<Claims, BadToken> {
    let text = signed(&json!({ "alg": "HS256" }), payload.to_string().as_bytes());
    let token = Token::parse(text.as_bytes()).expect("a token");
    token.signed_by(&[Key::secret(SECRET).expect("long enough")])?;
    token.claims(settings, NOW)
}

fn refused(settings: &Jwt, payload: &Value) -> BadToken {
    claims_of(settings, payload).expect_err("not good")
}

/// A good payload with one member changed; null takes it away.
fn with(name: &str, value: Value) -> Value {
    let mut payload = json!({ "sub": "alice", "exp": NOW + 60, "iat": NOW - 5, "nbf": NOW - 5 });
    match value {
        Value::Null => drop(payload.as_object_mut().expect("an object").remove(name)),
        value => payload[name] = value,
    }
    payload
}

#[test]
fn a_good_token_says_who_for_how_long_and_what_it_may() {
    let payload = json!({
        "sub": "alice", "exp": NOW + 60, "groups": ["ops", "staff"],
        "acl": { "publish": ["own/%u/#"], "subscribe": ["news/#"] },
    });
    let claims = claims_of(&settings(), &payload).expect("good");
    assert_eq!((&*claims.user, claims.expires), ("alice", NOW + 70));
    assert_eq!(claims.groups.join("+"), "ops+staff");
    assert_eq!(claims.rules.map(|rules| rules.len()), Some(2));
    assert_eq!(claims.client_id, None);
    let nested = Jwt {
        user_claim: "user.name".to_owned(),
        groups_claim: "https://example.org/roles".to_owned(),
        client_id_claim: "device".to_owned(),
        ..settings()
    };
    let payload =
        json!({ "user": { "name": "bob" }, "https://example.org/roles": "ops", "device": "d-1", "exp": 1_000_001.5 });
    let claims = claims_of(&nested, &payload).expect("good");
    assert_eq!((&*claims.user, claims.groups.join("+").as_str()), ("bob", "ops"));
    assert_eq!(
        (claims.client_id.as_deref(), claims.rules.is_none()),
        (Some("d-1"), true)
    );
    assert_eq!(claims.expires, NOW + 12, "rounded up");
}

#[test]
fn times_hold_with_leeway() {
    let of = |name: &str, value: Value| claims_of(&settings(), &with(name, value)).map(|claims| claims.expires);
    assert_eq!(of("exp", json!(NOW - 9)), Ok(NOW + 1));
    assert_eq!(of("exp", json!(NOW - 10)), Err(BadToken::Expired));
    assert_eq!(of("exp", Value::Null), Err(BadToken::Expired), "one that never ends");
    for name in ["nbf", "iat"] {
        assert!(of(name, json!(NOW + 10)).is_ok() && of(name, Value::Null).is_ok());
        assert_eq!(of(name, json!(NOW + 11)), Err(BadToken::Early), "{name}");
    }
    for bad in [json!("1000060"), json!(-1), json!(1e12), json!([]), json!(true)] {
        for name in ["exp", "nbf", "iat"] {
            assert_eq!(
                of(name, bad.clone()),
                Err(BadToken::Claim(name.to_owned())),
                "{name}: {bad}"
            );
        }
    }
}

#[test]
fn issuer_and_audience_are_those_that_are_named() {
    let strict = Jwt {
        issuer: "https://id.example.org".to_owned(),
        audience: "mqtt".to_owned(),
        ..settings()
    };
    let payload =
        |issuer: Value, audience: Value| json!({ "sub": "a", "exp": NOW + 60, "iss": issuer, "aud": audience });
    let ours = json!("https://id.example.org");
    assert!(claims_of(&strict, &payload(ours.clone(), json!("mqtt"))).is_ok());
    assert!(claims_of(&strict, &payload(ours.clone(), json!(["web", "mqtt"]))).is_ok());
    for bad in [
        json!("https://id.example.org/"),
        json!(null),
        json!(["https://id.example.org"]),
    ] {
        assert_eq!(refused(&strict, &payload(bad, json!("mqtt"))), BadToken::Issuer);
    }
    for bad in [
        json!("web"),
        json!([]),
        json!(null),
        json!({ "mqtt": 1 }),
        json!([["mqtt"]]),
    ] {
        assert_eq!(refused(&strict, &payload(ours.clone(), bad)), BadToken::Audience);
    }
}

#[test]
fn claims_that_cannot_be_used_are_refused() {
    for bad in [Value::Null, json!(""), json!(7), json!("a\nb"), json!("x".repeat(1025))] {
        assert_eq!(
            refused(&settings(), &with("sub", bad)),
            BadToken::Claim("sub".to_owned())
        );
    }
    for bad in [json!([1]), json!([""]), json!({}), json!(vec!["g"; 65])] {
        assert_eq!(
            refused(&settings(), &with("groups", bad)),
            BadToken::Claim("groups".to_owned())
        );
    }
    assert!(matches!(
        refused(&settings(), &with("acl", json!("#"))),
        BadToken::Rules(_)
    ));
    let bound = Jwt {
        client_id_claim: "cid".to_owned(),
        ..settings()
    };
    assert_eq!(refused(&bound, &with("x", json!(1))), BadToken::Claim("cid".to_owned()));
    assert_eq!(refused(&settings(), &json!(["sub"])), BadToken::Payload);
}

#[test]
fn a_header_that_is_not_understood_is_not_believed() {
    let payload = with("x", json!(1)).to_string();
    let key = [Key::secret(SECRET).expect("long enough")];
    for (header, error) in [
        (json!({ "alg": "none" }), BadToken::Header),
        (json!({ "alg": "NONE" }), BadToken::Header),
        (json!({ "alg": "HS256", "crit": ["exp"] }), BadToken::Header),
        (json!({ "alg": "HS384" }), BadToken::Signature),
        (json!({ "alg": "RS256" }), BadToken::Signature),
    ] {
        let text = signed(&header, payload.as_bytes());
        let token = Token::parse(text.as_bytes()).expect("a token");
        assert_eq!(token.signed_by(&key).err(), Some(error), "{header}");
    }
    let good = signed(&json!({ "alg": "HS256" }), payload.as_bytes());
    // Without its signature, with another's, and changed.
    let (head, _) = good.rsplit_once('.').expect("three parts");
    for bad in [format!("{head}."), format!("{head}.AAAA"), good.replacen("ey", "eY", 1)] {
        let signer = Token::parse(bad.as_bytes()).map(|token| token.signed_by(&key).map(drop));
        assert!(matches!(signer, None | Some(Err(BadToken::Signature))), "{bad}");
    }
}

#[test]
fn what_is_no_token_is_left_to_others() {
    for other in [
        "",
        "password",
        "a.b",
        "a.b.c",
        "a.b.c.d",
        "e30.e30.e30",
        "eyJhbGciOjF9.e30.AA",
        "..",
        "é.é.é",
    ] {
        assert!(Token::parse(other.as_bytes()).is_none(), "{other}");
    }
    assert!(Token::parse(b"\xff.a.b").is_none());
    let long = signed(&json!({ "alg": "HS256" }), &[b'x'; TOKEN_MAX]);
    assert!(Token::parse(long.as_bytes()).is_none());
}
