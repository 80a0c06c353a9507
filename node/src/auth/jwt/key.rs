//! Keys that tokens are signed with, and the algorithms that each is for.
//!
//! ```text
//!   secret ────────▶ HS256 HS384 HS512        as far as it is long enough (RFC 7518, section 3.2)
//!   RSA ───────────▶ RS256 RS384 RS512 PS256 PS384 PS512
//!   P-256, P-384 ──▶ ES256, ES384
//!   Ed25519 ───────▶ EdDSA
//! ```
//!
//! Invariant: a key decides which algorithms are good with it, never the token. There is no `none`, and a public key is no
//! secret for HMAC: it is of another kind here.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512,
    RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};
use ring::{digest, hmac};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;
use yasna::ASN1Result;
use yasna::tags::TAG_OID;

/// `alg` of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Hs256,
    Hs384,
    Hs512,
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    EdDsa,
}

/// SHA-256 of a key: tells keys apart, and tells nothing of a secret that is long enough.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; digest::SHA256_OUTPUT_LEN]);

/// One key.
#[derive(Clone)]
pub struct Key {
    /// `kid`; none for one from a file, which is good for tokens of any.
    id: Option<Box<str>>,
    /// What the set that it is from says that it is for.
    only: Option<Algorithm>,
    material: Material,
    fingerprint: Fingerprint,
}

#[derive(Clone)]
enum Material {
    Secret(Box<[u8]>),
    Rsa { n: Box<[u8]>, e: Box<[u8]> },
    P256(Box<[u8]>),
    P384(Box<[u8]>),
    Ed25519(Box<[u8]>),
}

/// Why there is no key.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NoKey {
    #[error("the secret has {0} bytes: fewer than the 32 that HS256 asks for (RFC 7518)")]
    Short(usize),
    #[error("it holds no public key in PEM (BEGIN PUBLIC KEY)")]
    NotPem,
    #[error("its key is none of RSA (2048 to 8192 bits), P-256, P-384 and Ed25519")]
    Kind,
    #[error("it is no JWK set: {0}")]
    NotASet(&'static str),
    #[error("its JWK set has more than {KEYS_MAX} keys")]
    TooMany,
    #[error("its JWK set has no public key that can be used (RSA of 2048 to 8192 bits, P-256, P-384, Ed25519)")]
    Empty,
}

impl Key {
    /// The secret of a file: what stands in it, without a newline at the end.
    ///
    /// # Errors
    /// It is too short for any algorithm.
    pub fn secret(bytes: &[u8]) -> Result<Self, NoKey> {
        let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        match bytes.len() < 32 {
            true => Err(NoKey::Short(bytes.len())),
            false => Ok(Key::of(Material::Secret(bytes.into()))),
        }
    }

    /// # Errors
    /// There is no public key that can be used.
    pub fn from_pem(pem: &[u8]) -> Result<Self, NoKey> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| NoKey::NotPem)?;
        let info = public_key_info(&der).map_err(|_| NoKey::NotPem)?;
        let bits = info.key;
        let material = match (&*info.algorithm, info.curve.as_deref()) {
            (RSA, _) => {
                let (modulus, exponent) = rsa_public_key(&bits).map_err(|_| NoKey::Kind)?;
                rsa(&modulus, &exponent)
            }
            (EC, Some(P_256)) if bits.len() == 65 => Some(Material::P256(bits.into())),
            (EC, Some(P_384)) if bits.len() == 97 => Some(Material::P384(bits.into())),
            (ED25519_KEY, _) if bits.len() == 32 => Some(Material::Ed25519(bits.into())),
            _ => None,
        };
        material.map(Key::of).ok_or(NoKey::Kind)
    }

    fn of(material: Material) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        let (kind, parts): (&[u8], [&[u8]; 2]) = match &material {
            Material::Secret(secret) => (b"oct:", [secret, b""]),
            Material::Rsa { n, e } => (b"rsa:", [n, e]),
            Material::P256(point) => (b"p-256:", [point, b""]),
            Material::P384(point) => (b"p-384:", [point, b""]),
            Material::Ed25519(key) => (b"ed25519:", [key, b""]),
        };
        context.update(kind);
        context.update(&(parts[0].len() as u64).to_be_bytes());
        parts.iter().for_each(|part| context.update(part));
        let mut fingerprint = [0; digest::SHA256_OUTPUT_LEN];
        fingerprint.copy_from_slice(context.finish().as_ref());
        Key {
            id: None,
            only: None,
            material,
            fingerprint: Fingerprint(fingerprint),
        }
    }

    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Whether a token that names `id` may be signed with it.
    pub fn is_called(&self, id: Option<&str>) -> bool {
        match (&self.id, id) {
            (Some(own), Some(id)) => &**own == id,
            (None, _) | (_, None) => true,
        }
    }

    /// Whether the algorithm is one for this key.
    pub fn allows(&self, algorithm: Algorithm) -> bool {
        use Algorithm::{EdDsa, Es256, Es384, Hs256, Hs384, Hs512, Ps256, Ps384, Ps512, Rs256, Rs384, Rs512};
        let is_of_its_kind = match (&self.material, algorithm) {
            (Material::Secret(_), Hs256) => true,
            (Material::Secret(secret), Hs384) => secret.len() >= 48,
            (Material::Secret(secret), Hs512) => secret.len() >= 64,
            (Material::Rsa { .. }, Rs256 | Rs384 | Rs512 | Ps256 | Ps384 | Ps512) => true,
            (Material::P256(_), Es256) | (Material::P384(_), Es384) | (Material::Ed25519(_), EdDsa) => true,
            _ => false,
        };
        is_of_its_kind && self.only.is_none_or(|only| only == algorithm)
    }

    /// Whether `signature` is this key's of `message`, by an algorithm that is for it.
    pub fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        if !self.allows(algorithm) {
            return false;
        }
        match &self.material {
            Material::Secret(secret) => {
                let hash = match algorithm {
                    Algorithm::Hs256 => hmac::HMAC_SHA256,
                    Algorithm::Hs384 => hmac::HMAC_SHA384,
                    Algorithm::Hs512 => hmac::HMAC_SHA512,
                    _ => return false,
                };
                // In constant time.
                hmac::verify(&hmac::Key::new(hash, secret), message, signature).is_ok()
            }
            Material::Rsa { n, e } => {
                let parameters = match algorithm {
                    Algorithm::Rs256 => &RSA_PKCS1_2048_8192_SHA256,
                    Algorithm::Rs384 => &RSA_PKCS1_2048_8192_SHA384,
                    Algorithm::Rs512 => &RSA_PKCS1_2048_8192_SHA512,
                    Algorithm::Ps256 => &RSA_PSS_2048_8192_SHA256,
                    Algorithm::Ps384 => &RSA_PSS_2048_8192_SHA384,
                    Algorithm::Ps512 => &RSA_PSS_2048_8192_SHA512,
                    _ => return false,
                };
                let key = RsaPublicKeyComponents { n, e };
                key.verify(parameters, message, signature).is_ok()
            }
            Material::P256(point) => is_signed(&ECDSA_P256_SHA256_FIXED, point, message, signature),
            Material::P384(point) => is_signed(&ECDSA_P384_SHA384_FIXED, point, message, signature),
            Material::Ed25519(key) => is_signed(&ED25519, key, message, signature),
        }
    }

    fn from_jwk(jwk: &Value) -> Option<Key> {
        let text = |name: &str| jwk.get(name).and_then(Value::as_str);
        let bytes = |name: &str| URL_SAFE_NO_PAD.decode(text(name)?).ok();
        if text("use").is_some_and(|purpose| purpose != "sig") {
            return None;
        }
        let point = |bytes_each: usize| {
            let (x, y) = (bytes("x")?, bytes("y")?);
            let is_whole = x.len() == bytes_each && y.len() == bytes_each;
            is_whole.then(|| [&[4][..], &x, &y].concat().into_boxed_slice())
        };
        let material = match (text("kty")?, text("crv")) {
            ("RSA", _) => rsa(&bytes("n")?, &bytes("e")?)?,
            ("EC", Some("P-256")) => Material::P256(point(32)?),
            ("EC", Some("P-384")) => Material::P384(point(48)?),
            ("OKP", Some("Ed25519")) => Material::Ed25519(bytes("x").filter(|key| key.len() == 32)?.into()),
            _ => return None,
        };
        let only = match text("alg") {
            None => None,
            Some(name) => Some(Algorithm::of(name)?),
        };
        Some(Key {
            id: text("kid").map(Into::into),
            only,
            ..Key::of(material)
        })
    }
}

/// The public keys of a JWK set; others in it, and secrets, are left out.
///
/// # Errors
/// It is none, or has no key that can be used.
pub fn key_set(text: &[u8]) -> Result<Vec<Key>, NoKey> {
    let set: Value = serde_json::from_slice(text).map_err(|_| NoKey::NotASet("it is not JSON"))?;
    let keys = set.get("keys").and_then(Value::as_array);
    let keys = keys.ok_or(NoKey::NotASet("it has no list `keys`"))?;
    if keys.len() > KEYS_MAX {
        return Err(NoKey::TooMany);
    }
    let keys: Vec<Key> = keys.iter().filter_map(Key::from_jwk).collect();
    match keys.is_empty() {
        true => Err(NoKey::Empty),
        false => Ok(keys),
    }
}

/// SubjectPublicKeyInfo. (RFC 5280, section 4.1)
struct PublicKeyInfo {
    algorithm: Vec<u64>,
    /// Its parameters, if they are an identifier too.
    curve: Option<Vec<u64>>,
    key: Vec<u8>,
}

fn public_key_info(der: &[u8]) -> ASN1Result<PublicKeyInfo> {
    yasna::parse_der(der, |info| {
        info.read_sequence(|info| {
            let (algorithm, parameters) = info.next().read_sequence(|algorithm| {
                let kind = algorithm.next().read_oid()?.into_components();
                let parameters = algorithm.read_optional(|one| one.read_tagged_der())?;
                Ok((kind, parameters))
            })?;
            let (key, _) = info.next().read_bitvec_bytes()?;
            let named = parameters.filter(|parameters| parameters.tag() == TAG_OID);
            let curve = match named {
                None => None,
                Some(named) => {
                    let der = yasna::construct_der(|writer| writer.write_tagged_der(&named));
                    Some(yasna::parse_der(&der, |one| one.read_oid())?.into_components())
                }
            };
            Ok(PublicKeyInfo { algorithm, curve, key })
        })
    })
}

/// Modulus and exponent. (RFC 8017, appendix A.1.1)
fn rsa_public_key(der: &[u8]) -> ASN1Result<(Vec<u8>, Vec<u8>)> {
    yasna::parse_der(der, |key| {
        key.read_sequence(|key| {
            let (modulus, _) = key.next().read_bigint_bytes()?;
            let (exponent, _) = key.next().read_bigint_bytes()?;
            Ok((modulus, exponent))
        })
    })
}

fn rsa(modulus: &[u8], exponent: &[u8]) -> Option<Material> {
    // DER writes a zero before a number whose first bit is set; ring wants none.
    let stripped = |number: &[u8]| -> Box<[u8]> {
        let zeros = number.iter().take_while(|byte| **byte == 0).count();
        number[zeros..].into()
    };
    let (n, e) = (stripped(modulus), stripped(exponent));
    let is_good = (256..=1024).contains(&n.len()) && (1..=8).contains(&e.len());
    is_good.then_some(Material::Rsa { n, e })
}

fn is_signed(how: &'static dyn VerificationAlgorithm, key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(how, key).verify(message, signature).is_ok()
}

impl Algorithm {
    /// None: `none`, and whatever else is not there.
    pub fn of(name: &str) -> Option<Self> {
        Some(match name {
            "HS256" => Algorithm::Hs256,
            "HS384" => Algorithm::Hs384,
            "HS512" => Algorithm::Hs512,
            "RS256" => Algorithm::Rs256,
            "RS384" => Algorithm::Rs384,
            "RS512" => Algorithm::Rs512,
            "PS256" => Algorithm::Ps256,
            "PS384" => Algorithm::Ps384,
            "PS512" => Algorithm::Ps512,
            "ES256" => Algorithm::Es256,
            "ES384" => Algorithm::Es384,
            "EdDSA" => Algorithm::EdDsa,
            _ => return None,
        })
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("id", &self.id).finish_non_exhaustive()
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

const RSA: &[u64] = &[1, 2, 840, 113549, 1, 1, 1];
const EC: &[u64] = &[1, 2, 840, 10045, 2, 1];
const P_256: &[u64] = &[1, 2, 840, 10045, 3, 1, 7];
const P_384: &[u64] = &[1, 3, 132, 0, 34];
const ED25519_KEY: &[u64] = &[1, 3, 101, 112];
/// A token without `kid` is tried with each of its kind.
const KEYS_MAX: usize = 64;

#[cfg(test)]
mod tests;
