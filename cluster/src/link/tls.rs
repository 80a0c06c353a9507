//! Certificates of the peer links: one authority per cluster, one certificate per node.
//!
//! ```text
//! create_authority ─▶ ca.pem, ca-key.pem        10 years; the key stays with the operator
//! issue_node       ─▶ node-3.pem, node-3-key.pem    2 years; name node-3.<cluster>
//! NodeTls::load    ─▶ what quinn needs, checked: the files, the key, the dates, the name
//! ```
//!
//! A certificate is good for the link if it is signed by the authority and for the name of the node that speaks: whoever
//! holds one may be that node and no other. Session resumption and 0-RTT are off: every connection proves its keys.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lontra_storage::ids::NodeId;
use quinn::crypto::HmacKey;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::CertificateError;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, VerifierBuilderError, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::tls13::HkdfExpander;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{RootCertStore, SupportedCipherSuite};

use super::config::TlsFiles;

/// Names the protocol and its version in TLS.
pub const ALPN: &[u8] = b"lontra/1";

/// What is wrong with a certificate or key file, and the way out.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{path} does not exist: make it with `lontra cert`, or correct the path", path = path.display())]
    Missing { path: PathBuf },
    #[error("{path} cannot be read: check its owner and mode", path = path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} holds no PEM {what}", path = path.display())]
    NotPem { path: PathBuf, what: &'static str },
    #[error("{key} is not the key of {certificate}: issue both anew", key = key.display(), certificate = certificate.display())]
    KeyMismatch { key: PathBuf, certificate: PathBuf },
    #[error("{path} has expired: issue a new one with `lontra cert`", path = path.display())]
    Expired { path: PathBuf },
    #[error("{path} is revoked by {crl}: issue a new one with `lontra cert`", path = path.display(), crl = crl.display())]
    Revoked { path: PathBuf, crl: PathBuf },
    #[error("{crl} has no list of the authority of {path}: it needs one of each authority", path = path.display(), crl = crl.display())]
    OtherList { path: PathBuf, crl: PathBuf },
    #[error("{path} is not valid yet: check this machine's clock", path = path.display())]
    NotYetValid { path: PathBuf },
    #[error("{path} is not signed by {ca}: issue it with that authority, or correct the path", path = path.display(), ca = ca.display())]
    OtherAuthority { path: PathBuf, ca: PathBuf },
    #[error("{path} is not for {name}: check node id and cluster name, or issue it anew", path = path.display())]
    OtherName { path: PathBuf, name: String },
    #[error("{path} cannot be used for TLS", path = path.display())]
    Unusable {
        path: PathBuf,
        #[source]
        source: rustls::Error,
    },
    #[error("{path} exists: an authority is made once; delete it if no node uses it", path = path.display())]
    Exists { path: PathBuf },
    #[error("{path} cannot be written: check that the directory exists and is writable", path = path.display())]
    Unwritable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("a certificate for {name} cannot be made")]
    Issue {
        name: String,
        #[source]
        source: rcgen::Error,
    },
}

/// Where the authority of a cluster lies.
#[derive(Debug, Clone)]
pub struct Authority {
    /// `ca.pem`: every node has a copy.
    pub certificate: PathBuf,
    /// `ca-key.pem`: needed only to issue.
    pub key: PathBuf,
}

impl Authority {
    /// The files that [`create_authority`] writes to `directory`.
    pub fn in_directory(directory: &Path) -> Self {
        Authority {
            certificate: directory.join("ca.pem"),
            key: directory.join("ca-key.pem"),
        }
    }
}

/// The name that the certificate of a node is for: `node-<id>.<cluster>`, the cluster's name made fit for DNS.
pub fn node_name(node: NodeId, cluster: &str) -> String {
    let label: String = cluster
        .chars()
        .map(|char| char.to_ascii_lowercase())
        .map(|char| if char.is_ascii_alphanumeric() { char } else { '-' })
        .take(LABEL_MAX)
        .collect();
    let label = label.trim_matches('-');
    format!("node-{node}.{}", if label.is_empty() { "cluster" } else { label })
}

/// Makes the authority of a new cluster in `directory`, which exists. Blocks on the disk.
///
/// # Errors
/// There already is one, or the files cannot be written.
pub fn create_authority(directory: &Path) -> Result<Authority, TlsError> {
    let authority = Authority::in_directory(directory);
    for path in [&authority.certificate, &authority.key] {
        if path.exists() {
            return Err(TlsError::Exists { path: path.clone() });
        }
    }
    let issue_error = |source| TlsError::Issue {
        name: AUTHORITY_NAME.to_owned(),
        source,
    };
    let key = KeyPair::generate().map_err(issue_error)?;
    let mut params = authority_params();
    set_dates(&mut params, AUTHORITY_LIFE);
    let certificate = params.self_signed(&key).map_err(issue_error)?;
    write_file(&authority.key, &key.serialize_pem(), 0o600)?;
    write_file(&authority.certificate, &certificate.pem(), 0o644)?;
    Ok(authority)
}

/// Issues (or renews) the certificate of a node into `directory`: `node-<id>.pem`, `node-<id>-key.pem`. Blocks on the disk.
///
/// # Errors
/// A file of the authority cannot be used, or the new ones cannot be written.
pub fn issue_node(directory: &Path, authority: &Authority, cluster: &str, node: NodeId) -> Result<TlsFiles, TlsError> {
    let name = node_name(node, cluster);
    let issue_error = |source| TlsError::Issue {
        name: name.clone(),
        source,
    };
    let not_pem = |_| TlsError::NotPem {
        path: authority.key.clone(),
        what: "private key",
    };
    let authority_pem = String::from_utf8_lossy(&read_file(&authority.key)?).into_owned();
    let authority_key = KeyPair::from_pem(&authority_pem).map_err(not_pem)?;
    let authority_params = authority_params();
    let issuer = Issuer::from_params(&authority_params, authority_key);

    let key = KeyPair::generate().map_err(issue_error)?;
    let mut params = CertificateParams::new(vec![name.clone()]).map_err(issue_error)?;
    params.distinguished_name.push(DnType::CommonName, name.clone());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    set_dates(&mut params, NODE_LIFE);
    let certificate = params.signed_by(&key, &issuer).map_err(issue_error)?;

    let files = TlsFiles {
        ca: authority.certificate.clone(),
        certificate: directory.join(format!("node-{node}.pem")),
        key: directory.join(format!("node-{node}-key.pem")),
        crl: None,
    };
    write_file(&files.key, &key.serialize_pem(), 0o600)?;
    write_file(&files.certificate, &certificate.pem(), 0o644)?;
    // Also finds a ca-key.pem that is not the key of ca.pem.
    NodeTls::load(&files, cluster, node)?;
    Ok(files)
}

/// Equal for creation and issuing: an issuer is known by its name and its key.
pub(super) fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, AUTHORITY_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

pub(super) fn set_dates(params: &mut CertificateParams, life: Duration) {
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + life).into();
}

/// The files of a node, loaded and checked.
pub(super) struct NodeTls {
    pub server: Arc<rustls::ServerConfig>,
    pub client: Arc<rustls::ClientConfig>,
    pub reset_key: Arc<ResetKey>,
    pub trust: Trust,
}

/// What certificates of peers are held against.
#[derive(Clone, Debug)]
pub(super) struct Trust(Arc<WebPkiServerVerifier>);

impl Trust {
    /// Whether a peer, whose handshake may have been under other files, is `node` by these.
    pub fn knows(&self, connection: &quinn::Connection, node: NodeId, cluster: &str) -> bool {
        let Some(chain) = chain_of(connection) else {
            return false;
        };
        let Ok(name) = ServerName::try_from(node_name(node, cluster)) else {
            return false;
        };
        let Some((certificate, intermediates)) = chain.split_first() else {
            return false;
        };
        let verified = self
            .0
            .verify_server_cert(certificate, intermediates, &name, &[], UnixTime::now());
        verified.is_ok()
    }
}

fn chain_of(connection: &quinn::Connection) -> Option<Vec<CertificateDer<'static>>> {
    let chain: Box<Vec<CertificateDer<'static>>> = connection.peer_identity()?.downcast().ok()?;
    Some(*chain)
}

impl NodeTls {
    pub fn load(files: &TlsFiles, cluster: &str, node: NodeId) -> Result<NodeTls, TlsError> {
        let authority = read_certificates(&files.ca)?;
        let chain = read_certificates(&files.certificate)?;
        let key_pem = read_file(&files.key)?;
        let read_key = || {
            PrivateKeyDer::from_pem_slice(&key_pem).map_err(|_| TlsError::NotPem {
                path: files.key.clone(),
                what: "private key",
            })
        };
        let unusable = |path: &Path| {
            let path = path.to_owned();
            move |source| TlsError::Unusable { path, source }
        };
        let key_error = |source| match source {
            rustls::Error::InconsistentKeys(_) => TlsError::KeyMismatch {
                key: files.key.clone(),
                certificate: files.certificate.clone(),
            },
            source => TlsError::Unusable {
                path: files.key.clone(),
                source,
            },
        };

        let mut roots = RootCertStore::empty();
        for certificate in authority {
            roots.add(certificate).map_err(unusable(&files.ca))?;
        }
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let lists = match &files.crl {
            Some(path) => read_lists(path)?,
            None => Vec::new(),
        };
        let not_built = |error: VerifierBuilderError| {
            let path = match (&error, &files.crl) {
                (VerifierBuilderError::InvalidCrl(_), Some(crl)) => crl,
                _ => &files.ca,
            };
            unusable(path)(rustls::Error::General(error.to_string()))
        };
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone())
            .with_crls(lists.clone())
            .build()
            .map_err(not_built)?;
        check_own_certificate(files, &chain, &verifier, node_name(node, cluster))?;

        let client_verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .with_crls(lists)
            .build()
            .map_err(not_built)?;
        let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable(&files.certificate))?
            .with_client_cert_verifier(client_verifier)
            .with_single_cert(chain.clone(), read_key()?)
            .map_err(key_error)?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.send_tls13_tickets = 0;
        let mut client = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable(&files.certificate))?
            .with_webpki_verifier(verifier.clone())
            .with_client_auth_cert(chain, read_key()?)
            .map_err(key_error)?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();

        let reset_key = ResetKey::new(&provider, &key_pem).ok_or_else(|| {
            unusable(&files.key)(rustls::Error::General(
                "no TLS 1.3 cipher suite in this build".to_owned(),
            ))
        })?;
        Ok(NodeTls {
            server: Arc::new(server),
            client: Arc::new(client),
            reset_key: Arc::new(reset_key),
            trust: Trust(verifier),
        })
    }
}

/// The certificate as peers will see it: signed, in its dates, for this node.
fn check_own_certificate(
    files: &TlsFiles,
    chain: &[CertificateDer<'static>],
    verifier: &WebPkiServerVerifier,
    name: String,
) -> Result<(), TlsError> {
    let path = || files.certificate.clone();
    let [certificate, intermediates @ ..] = chain else {
        return Err(TlsError::NotPem {
            path: path(),
            what: "certificate",
        });
    };
    let Ok(server_name) = ServerName::try_from(name.clone()) else {
        return Err(TlsError::OtherName { path: path(), name });
    };
    let verified = verifier.verify_server_cert(certificate, intermediates, &server_name, &[], UnixTime::now());
    let Err(source) = verified else {
        return Ok(());
    };
    Err(match &source {
        rustls::Error::InvalidCertificate(error) => match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => TlsError::Expired { path: path() },
            CertificateError::Revoked => TlsError::Revoked {
                path: path(),
                crl: files.crl.clone().unwrap_or_default(),
            },
            CertificateError::UnknownRevocationStatus => TlsError::OtherList {
                path: path(),
                crl: files.crl.clone().unwrap_or_default(),
            },
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                TlsError::NotYetValid { path: path() }
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => TlsError::OtherAuthority {
                path: path(),
                ca: files.ca.clone(),
            },
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                TlsError::OtherName { path: path(), name }
            }
            _ => TlsError::Unusable { path: path(), source },
        },
        _ => TlsError::Unusable { path: path(), source },
    })
}

/// Whether a peer's certificate (already verified against the authority) is that of `node`.
///
/// # Errors
/// The name that it should be for.
pub(super) fn check_peer_certificate(
    connection: &quinn::Connection,
    node: NodeId,
    cluster: &str,
) -> Result<(), String> {
    let name = node_name(node, cluster);
    let identity = chain_of(connection);
    let verified = identity
        .as_ref()
        .and_then(|chain| chain.first())
        .is_some_and(|certificate| {
            let parsed = ParsedCertificate::try_from(certificate);
            let server_name = ServerName::try_from(name.as_str());
            match (parsed, server_name) {
                (Ok(parsed), Ok(server_name)) => rustls::client::verify_server_name(&parsed, &server_name).is_ok(),
                _ => false,
            }
        });
    if verified { Ok(()) } else { Err(name) }
}

/// Stateless resets stay valid over restarts of this node: peers of its old process learn at once that it is gone.
pub(super) struct ResetKey {
    expander: Box<dyn HkdfExpander>,
}

impl ResetKey {
    /// Derived from the node's private key, which is secret, its own, and outlives the process.
    fn new(provider: &CryptoProvider, key_pem: &[u8]) -> Option<ResetKey> {
        let suite = provider.cipher_suites.iter().find_map(SupportedCipherSuite::tls13)?;
        Some(ResetKey {
            expander: suite
                .hkdf_provider
                .extract_from_secret(Some(b"lontra stateless reset"), key_pem),
        })
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        // Fails beyond 255 hashes of output; quinn asks for `signature_len`.
        let expanded = self.expander.expand_slice(&[data], signature_out);
        debug_assert!(expanded.is_ok());
    }

    fn signature_len(&self) -> usize {
        RESET_SIGNATURE_BYTES
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), quinn::crypto::CryptoError> {
        let mut expected = [0; RESET_SIGNATURE_BYTES];
        self.sign(data, &mut expected);
        // No branch on the bytes: their number of equal leading ones must not show in the time.
        let differ = signature
            .iter()
            .zip(&expected)
            .fold(0, |differ, (a, b)| differ | (a ^ b));
        if differ == 0 && signature.len() == expected.len() {
            Ok(())
        } else {
            Err(quinn::crypto::CryptoError)
        }
    }
}

pub(super) fn read_file(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => TlsError::Missing { path: path.to_owned() },
        _ => TlsError::Unreadable {
            path: path.to_owned(),
            source,
        },
    })
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read_file(path)?;
    let certificates = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) | Err(_) => Err(TlsError::NotPem {
            path: path.to_owned(),
            what: "certificate",
        }),
    }
}

fn read_lists(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let pem = read_file(path)?;
    let lists = CertificateRevocationListDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let lists = lists.ok().filter(|lists| !lists.is_empty());
    lists.ok_or_else(|| TlsError::NotPem {
        path: path.to_owned(),
        what: "certificate revocation list",
    })
}

/// Beside, then renamed: a running node never reads half a file, and a key is never readable by others.
pub(super) fn write_file(path: &Path, contents: &str, mode: u32) -> Result<(), TlsError> {
    let beside = path.with_extension("pem.new");
    let written = (|| {
        match fs::remove_file(&beside) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&beside)?;
        file.write_all(contents.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    })();
    written.map_err(|source| TlsError::Unwritable {
        path: path.to_owned(),
        source,
    })
}

const AUTHORITY_NAME: &str = "Lontra cluster authority";
/// 10 years.
const AUTHORITY_LIFE: Duration = Duration::from_secs(3652 * 24 * 3600);
/// 2 years.
pub(super) const NODE_LIFE: Duration = Duration::from_secs(731 * 24 * 3600);
/// Clocks of machines that are set up together differ by no more than a day.
const CLOCK_SKEW: Duration = Duration::from_secs(24 * 3600);
/// Longest label of a DNS name.
const LABEL_MAX: usize = 63;
const RESET_SIGNATURE_BYTES: usize = 32;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn issued() -> (tempfile::TempDir, Authority, TlsFiles) {
        let directory = tempfile::tempdir().unwrap();
        let authority = create_authority(directory.path()).unwrap();
        let files = issue_node(directory.path(), &authority, "Otters!", 3).unwrap();
        (directory, authority, files)
    }

    #[test]
    fn names_fit_dns() {
        assert_eq!(node_name(3, "Otters of_the sea!"), "node-3.otters-of-the-sea");
        assert_eq!(node_name(3, "é"), "node-3.cluster");
        assert_eq!(node_name(1, &"a".repeat(99)).len(), "node-1.".len() + 63);
    }

    #[test]
    fn keys_are_private_and_an_authority_is_made_once() {
        let (directory, authority, files) = issued();
        for key in [&authority.key, &files.key] {
            assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert!(matches!(
            create_authority(directory.path()),
            Err(TlsError::Exists { .. })
        ));
        issue_node(directory.path(), &authority, "Otters!", 3).expect("a certificate can be renewed");
    }

    #[test]
    fn what_is_wrong_with_a_file_is_named() {
        let (directory, authority, files) = issued();
        let load = |files: &TlsFiles, node| {
            NodeTls::load(files, "Otters!", node)
                .map(|_| ())
                .unwrap_err()
                .to_string()
        };
        let check = |change: &dyn Fn(&mut TlsFiles), expected: &str| {
            let mut files = files.clone();
            change(&mut files);
            let error = load(&files, 3);
            assert!(error.contains(expected), "{error:?} does not say {expected:?}");
        };
        let empty = directory.path().join("empty.pem");
        fs::write(&empty, "nothing").unwrap();
        let other = tempfile::tempdir().unwrap();
        let other_authority = create_authority(other.path()).unwrap();

        check(
            &|files| files.key = "/nowhere/key.pem".into(),
            "/nowhere/key.pem does not exist",
        );
        check(&|files| files.certificate = directory.path().into(), "cannot be read");
        check(
            &|files| files.certificate = empty.clone(),
            "empty.pem holds no PEM certificate",
        );
        check(&|files| files.key = empty.clone(), "empty.pem holds no PEM private key");
        check(&|files| files.key = authority.key.clone(), "is not the key of");
        check(
            &|files| files.ca = other_authority.certificate.clone(),
            "is not signed by",
        );
        assert!(load(&files, 4).contains("is not for node-4.otters"));

        let mixed = Authority {
            certificate: authority.certificate.clone(),
            key: other_authority.key,
        };
        assert!(matches!(
            issue_node(other.path(), &mixed, "Otters!", 5),
            Err(TlsError::OtherAuthority { .. })
        ));
    }

    #[test]
    fn an_expired_certificate_is_named() {
        let (directory, authority, mut files) = issued();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![node_name(3, "Otters!")]).unwrap();
        params.not_before = (SystemTime::now() - NODE_LIFE).into();
        params.not_after = (SystemTime::now() - CLOCK_SKEW).into();
        let authority_key = KeyPair::from_pem(&fs::read_to_string(&authority.key).unwrap()).unwrap();
        let authority_params = authority_params();
        let issuer = Issuer::from_params(&authority_params, authority_key);
        files.certificate = directory.path().join("old.pem");
        files.key = directory.path().join("old-key.pem");
        fs::write(&files.certificate, params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
        assert!(matches!(
            NodeTls::load(&files, "Otters!", 3),
            Err(TlsError::Expired { .. })
        ));
    }

    #[test]
    fn the_reset_key_outlives_the_process() {
        let (_directory, _authority, files) = issued();
        let sign = || {
            let mut signature = [0; RESET_SIGNATURE_BYTES];
            let tls = NodeTls::load(&files, "Otters!", 3).unwrap();
            tls.reset_key.sign(b"connection id", &mut signature);
            tls.reset_key.verify(b"connection id", &signature).unwrap();
            assert!(tls.reset_key.verify(b"other", &signature).is_err());
            signature
        };
        assert_eq!(sign(), sign());
    }
}
