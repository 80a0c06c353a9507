//! The name in a client certificate that TLS has verified.
//!
//! ```text
//!   cn          the Common Name of the subject; the first, if it has several
//!   dn          the whole subject as RFC 4514 writes it: CN=sensor-7,O=Example
//!   san-dns, san-email, san-uri    the first Subject Alternative Name of that kind
//! ```
//!
//! Invariant: two subjects never have the same text: what separates is escaped within a value.

use yasna::models::TaggedDerValue;
use yasna::tags::{
    TAG_BMPSTRING, TAG_GENERALIZEDTIME, TAG_IA5STRING, TAG_NUMERICSTRING, TAG_PRINTABLESTRING, TAG_TELETEXSTRING,
    TAG_UTCTIME, TAG_UTF8STRING,
};
use yasna::{ASN1Result, BERReader, Tag};

use super::identity::is_name;
use crate::config::auth::CertificateUser;

/// None: the certificate has no such name, or one that cannot be a user's.
pub fn user_name(der: &[u8], which: CertificateUser) -> Option<String> {
    let names = Names::parse(der).ok()?;
    let alternative = |tag: u64| {
        let mut names = names.alternative.iter();
        let found = names.find(|name| name.tag() == Tag::context(tag))?;
        std::str::from_utf8(found.value()).ok().map(str::to_owned)
    };
    // RFC 5280, section 4.2.1.6.
    let name = match which {
        CertificateUser::Cn => names.common_name(),
        CertificateUser::Dn => names.distinguished_name(),
        CertificateUser::SanEmail => alternative(1),
        CertificateUser::SanDns => alternative(2),
        CertificateUser::SanUri => alternative(6),
    };
    name.filter(|name| is_name(name))
}

/// The last second in which it is good, since 1970. None: it does not say so as RFC 5280, section 4.1.2.5, has it.
pub fn not_after(der: &[u8]) -> Option<u64> {
    let names = Names::parse(der).ok()?;
    let digits = std::str::from_utf8(names.not_after.value()).ok()?.strip_suffix('Z')?;
    let is_all_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
    let (year, rest) = match (names.not_after.tag(), digits.len()) {
        (TAG_UTCTIME, 12) if is_all_digits => {
            let year: u64 = digits[..2].parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, &digits[2..])
        }
        (TAG_GENERALIZEDTIME, 14) if is_all_digits => (digits[..4].parse().ok()?, &digits[4..]),
        _ => return None,
    };
    let part = |at: usize| rest[at..at + 2].parse::<u64>().ok();
    let (month, day) = (part(0)?, part(2)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || year < 1970 {
        return None;
    }
    // Days since 1970 of a year that begins in March, so that the leap day is its last.
    let (year, month) = if month <= 2 {
        (year - 1, month + 9)
    } else {
        (year, month - 3)
    };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    Some((days - DAYS_TO_1970) * 86_400 + part(4)? * 3_600 + part(6)? * 60 + part(8)?)
}

/// What a certificate says of its owner. (RFC 5280, section 4.1)
struct Names {
    not_after: TaggedDerValue,
    /// Parts of attributes.
    subject: Vec<Vec<Attribute>>,
    alternative: Vec<TaggedDerValue>,
}

struct Attribute {
    kind: Vec<u64>,
    value: TaggedDerValue,
}

impl Names {
    fn parse(der: &[u8]) -> ASN1Result<Self> {
        yasna::parse_der(der, |certificate| {
            certificate.read_sequence(|certificate| {
                let names = certificate.next().read_sequence(|signed| {
                    let _version =
                        signed.read_optional(|version| version.read_tagged(Tag::context(0), |one| one.read_u8()))?;
                    for _ in ["serial number", "signature", "issuer"] {
                        signed.next().read_der()?;
                    }
                    let not_after = signed.next().read_sequence(|validity| {
                        validity.next().read_tagged_der()?;
                        validity.next().read_tagged_der()
                    })?;
                    let subject = signed
                        .next()
                        .collect_sequence_of(|part| part.collect_set_of(attribute))?;
                    let _public_key = signed.next().read_der()?;
                    for unique_id in [1, 2] {
                        signed.read_optional(|id| {
                            id.read_tagged_implicit(Tag::context(unique_id), |one| one.read_bitvec_bytes())
                        })?;
                    }
                    let extensions = signed.read_optional(|list| {
                        list.read_tagged(Tag::context(3), |list| list.collect_sequence_of(extension))
                    })?;
                    let mut extensions = extensions.unwrap_or_default().into_iter();
                    let alternative = match extensions.find(|(kind, _)| kind == SUBJECT_ALTERNATIVE_NAME) {
                        None => Vec::new(),
                        Some((_, value)) => {
                            yasna::parse_der(&value, |names| names.collect_sequence_of(|one| one.read_tagged_der()))?
                        }
                    };
                    Ok(Names {
                        not_after,
                        subject,
                        alternative,
                    })
                })?;
                for _ in ["signature algorithm", "signature"] {
                    certificate.next().read_der()?;
                }
                Ok(names)
            })
        })
    }

    fn common_name(&self) -> Option<String> {
        let mut attributes = self.subject.iter().flatten();
        let first = attributes.find(|attribute| attribute.kind == COMMON_NAME)?;
        text(&first.value)
    }

    /// The last part of the name stands first. (RFC 4514, section 2.1)
    fn distinguished_name(&self) -> Option<String> {
        let part = |part: &Vec<Attribute>| {
            let attributes: Option<Vec<String>> = part.iter().map(Attribute::text).collect();
            attributes.map(|attributes| attributes.join("+"))
        };
        let parts: Option<Vec<String>> = self.subject.iter().rev().map(part).collect();
        parts.map(|parts| parts.join(","))
    }
}

impl Attribute {
    /// None: its value is no text.
    fn text(&self) -> Option<String> {
        let known = ATTRIBUTES.iter().find(|(kind, _)| *kind == self.kind);
        let name = match known {
            Some((_, name)) => (*name).to_owned(),
            None => self.kind.iter().map(u64::to_string).collect::<Vec<_>>().join("."),
        };
        Some(format!("{name}={}", escaped(&text(&self.value)?)))
    }
}

fn attribute(reader: BERReader<'_, '_>) -> ASN1Result<Attribute> {
    reader.read_sequence(|attribute| {
        Ok(Attribute {
            kind: attribute.next().read_oid()?.into_components(),
            value: attribute.next().read_tagged_der()?,
        })
    })
}

fn extension(reader: BERReader<'_, '_>) -> ASN1Result<(Vec<u64>, Vec<u8>)> {
    reader.read_sequence(|extension| {
        let kind = extension.next().read_oid()?.into_components();
        let _is_critical = extension.read_optional(|one| one.read_bool())?;
        Ok((kind, extension.next().read_bytes()?))
    })
}

/// None: it is no text, or one whose characters cannot be told.
fn text(value: &TaggedDerValue) -> Option<String> {
    let bytes = value.value();
    let tag = value.tag();
    if [TAG_UTF8STRING, TAG_PRINTABLESTRING, TAG_IA5STRING, TAG_NUMERICSTRING].contains(&tag) {
        return std::str::from_utf8(bytes).ok().map(str::to_owned);
    }
    if tag == TAG_TELETEXSTRING && bytes.is_ascii() {
        return Some(bytes.iter().map(|byte| char::from(*byte)).collect());
    }
    if tag == TAG_BMPSTRING && bytes.len().is_multiple_of(2) {
        let units = bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
        return char::decode_utf16(units).collect::<Result<_, _>>().ok();
    }
    None
}

/// RFC 4514, section 2.4.
fn escaped(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    let last = value.chars().count().saturating_sub(1);
    for (at, c) in value.chars().enumerate() {
        let is_special = match c {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' => true,
            ' ' => at == 0 || at == last,
            '#' => at == 0,
            _ => false,
        };
        if is_special {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

const COMMON_NAME: [u64; 4] = [2, 5, 4, 3];
const SUBJECT_ALTERNATIVE_NAME: &[u64] = &[2, 5, 29, 17];
/// RFC 4514, section 3, and what certificates of devices have besides. Others are told by their numbers.
const ATTRIBUTES: [(&[u64], &str); 13] = [
    (&COMMON_NAME, "CN"),
    (&[2, 5, 4, 4], "SN"),
    (&[2, 5, 4, 5], "serialNumber"),
    (&[2, 5, 4, 6], "C"),
    (&[2, 5, 4, 7], "L"),
    (&[2, 5, 4, 8], "ST"),
    (&[2, 5, 4, 9], "STREET"),
    (&[2, 5, 4, 10], "O"),
    (&[2, 5, 4, 11], "OU"),
    (&[2, 5, 4, 42], "GN"),
    (&[0, 9, 2342, 19200300, 100, 1, 1], "UID"),
    (&[0, 9, 2342, 19200300, 100, 1, 25], "DC"),
    (&[1, 2, 840, 113549, 1, 9, 1], "emailAddress"),
];

/// From 1 March of the year 0 to 1 January 1970.
const DAYS_TO_1970: u64 = 719_468;

#[cfg(test)]
mod tests {
    use rcgen::string::Ia5String;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn certificate(make: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        make(&mut params);
        let key = KeyPair::generate().expect("a key");
        params.self_signed(&key).expect("a certificate").der().to_vec()
    }

    fn ia5(text: &str) -> Ia5String {
        text.try_into().expect("IA5")
    }

    #[test]
    fn each_name_is_found_where_it_is() {
        let der = certificate(|params| {
            params.distinguished_name.push(DnType::OrganizationName, "Example");
            params.distinguished_name.push(DnType::CommonName, "sensor-7");
            params
                .distinguished_name
                .push(DnType::CustomDnType(vec![1, 3, 6, 1]), "x");
            params.subject_alt_names = vec![
                SanType::IpAddress([10, 0, 0, 1].into()),
                SanType::DnsName(ia5("s7.example.org")),
                SanType::DnsName(ia5("second.example.org")),
                SanType::Rfc822Name(ia5("s7@example.org")),
                SanType::URI(ia5("spiffe://example.org/s7")),
            ];
        });
        for (which, expected) in [
            (CertificateUser::Cn, "sensor-7"),
            (CertificateUser::Dn, "1.3.6.1=x,CN=sensor-7,O=Example"),
            (CertificateUser::SanDns, "s7.example.org"),
            (CertificateUser::SanEmail, "s7@example.org"),
            (CertificateUser::SanUri, "spiffe://example.org/s7"),
        ] {
            assert_eq!(user_name(&der, which).as_deref(), Some(expected), "{which:?}");
        }
    }

    #[test]
    fn what_is_not_there_or_cannot_be_a_name_is_none() {
        let bare = certificate(|params| params.distinguished_name.push(DnType::OrganizationName, "Example"));
        for which in [CertificateUser::Cn, CertificateUser::SanDns, CertificateUser::SanUri] {
            assert_eq!(user_name(&bare, which), None, "{which:?}");
        }
        for bad in ["", "a\nb", &"x".repeat(1025)] {
            let der = certificate(|params| params.distinguished_name.push(DnType::CommonName, bad));
            assert_eq!(user_name(&der, CertificateUser::Cn), None, "{bad:?}");
        }
        assert_eq!(user_name(b"no certificate", CertificateUser::Cn), None);
    }

    #[test]
    fn the_end_is_read_in_both_forms() {
        let ends = |year, month, day| {
            let der = certificate(|params| params.not_after = rcgen::date_time_ymd(year, month, day));
            not_after(&der)
        };
        assert_eq!(ends(2031, 2, 28), Some(1_930_003_200), "UTCTime");
        assert_eq!(ends(2060, 2, 29), Some(2_845_238_400), "GeneralizedTime");
        assert_eq!(ends(2000, 1, 1), Some(946_684_800));
        assert_eq!(not_after(b"no certificate"), None);
    }

    #[test]
    fn a_value_cannot_pretend_to_be_another_part() {
        let der = certificate(|params| params.distinguished_name.push(DnType::CommonName, "a,O=Admin"));
        assert_eq!(user_name(&der, CertificateUser::Dn).as_deref(), Some("CN=a\\,O=Admin"));
        assert_eq!(escaped(" #a\\+b "), "\\ #a\\\\\\+b\\ ");
        assert_eq!(escaped("#a"), "\\#a");
    }
}
