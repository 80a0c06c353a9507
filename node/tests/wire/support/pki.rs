//! An authority of a test's own: certificates for any name, good and bad, and revocation lists.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevocationReason, RevokedCertParams, SerialNumber, date_time_ymd,
};
use std::path::{Path, PathBuf};

pub struct Pki {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    /// The authority's certificate.
    pub ca: String,
}

/// Paths, as command lines and configurations take them.
#[derive(Clone, Debug)]
pub struct Files {
    pub certificate: String,
    pub key: String,
}

impl Pki {
    /// An authority whose certificate is in `dir`.
    pub fn new(dir: &Path, name: &str) -> Pki {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let pki = Pki {
            dir: dir.to_owned(),
            issuer: Issuer::new(params, key),
            ca: text(&dir.join(format!("{name}.pem"))),
        };
        std::fs::write(&pki.ca, certificate.pem()).expect("written");
        pki
    }

    /// A server's certificate for these names; a second one of the same stem replaces the first.
    pub fn server(&self, stem: &str, names: &[&str]) -> Files {
        self.issue(stem, names, ExtendedKeyUsagePurpose::ServerAuth, 1, (2020, 2100))
    }

    /// A client's certificate, with this serial number.
    pub fn client(&self, stem: &str, serial: u64) -> Files {
        self.issue(stem, &[], ExtendedKeyUsagePurpose::ClientAuth, serial, (2020, 2100))
    }

    pub fn expired_client(&self, stem: &str) -> Files {
        self.issue(stem, &[], ExtendedKeyUsagePurpose::ClientAuth, 99, (2020, 2021))
    }

    fn issue(
        &self,
        stem: &str,
        names: &[&str],
        usage: ExtendedKeyUsagePurpose,
        serial: u64,
        (from, to): (i32, i32),
    ) -> Files {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name.push(DnType::CommonName, stem);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from(serial));
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(to, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let files = Files {
            certificate: text(&self.dir.join(format!("{stem}.pem"))),
            key: text(&self.dir.join(format!("{stem}-key.pem"))),
        };
        std::fs::write(&files.certificate, certificate.pem()).expect("written");
        std::fs::write(&files.key, key.serialize_pem()).expect("written");
        files
    }

    /// A list of these serial numbers; a second one of the same name replaces the first.
    pub fn revoke(&self, name: &str, serials: &[u64]) -> String {
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: Some(RevocationReason::KeyCompromise),
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2100, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let path = self.dir.join(name);
        let pem = list.signed_by(&self.issuer).expect("a list").pem().expect("PEM");
        std::fs::write(&path, pem).expect("written");
        text(&path)
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("text").to_owned()
}
