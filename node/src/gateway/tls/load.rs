//! From the files of a listener to what rustls serves with. Blocks on the disk; all or nothing.
//!
//! ```text
//!   certificate, key, sni ─▶ Certificates ─┐
//!   client_ca, client_crl ─▶ verifier ─────┼─▶ ServerConfig      one for each listener, until the next SIGHUP
//!   a fresh key for tickets ───────────────┘
//! ```
//!
//! Tickets are the clients' to keep; a node keeps nothing. What is loaded anew has a new key: a client whose certificate
//! was revoked meanwhile cannot come back by a ticket.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::digest;
use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{
    ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert, ServerConfig, VerifierBuilderError,
    WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{CertRevocationListError, RootCertStore};

use crate::config::ListenerKind;
use crate::config::listener::{ClientCertificates, Listener, ListenerTls, TlsVersion};

/// Why a listener has no TLS, by the file that is wrong.
#[derive(Debug, thiserror::Error)]
pub enum TlsFileError {
    #[error("listener {listener}: {path} cannot be read: {source}; check the path, its owner and mode", path = path.display())]
    Unreadable {
        listener: String,
        path: PathBuf,
        source: io::Error,
    },
    #[error("listener {listener}: {path} holds no PEM {what}", path = path.display())]
    NotPem {
        listener: String,
        path: PathBuf,
        what: &'static str,
    },
    #[error("listener {listener}: {key} is not the key of {certificate}", key = key.display(), certificate = certificate.display())]
    KeyMismatch {
        listener: String,
        key: PathBuf,
        certificate: PathBuf,
    },
    #[error("listener {listener}: {path} cannot be used for TLS: {problem}", path = path.display())]
    Unusable {
        listener: String,
        path: PathBuf,
        problem: String,
    },
}

/// What a listener over TLS serves with.
///
/// # Errors
/// The first file that is missing, no PEM, or does not fit the others.
pub fn load(listener: &Listener) -> Result<Loaded, TlsFileError> {
    let loader = Loader {
        listener: &listener.name,
        provider: Arc::new(default_provider()),
    };
    loader.load(listener.kind, &listener.tls)
}

pub struct Loaded {
    pub config: Arc<ServerConfig>,
    /// None: no certificate is asked for.
    pub clients: Option<ClientTrust>,
}

/// Which certificates of clients are good.
pub struct ClientTrust {
    verifier: Arc<dyn ClientCertVerifier>,
    /// Of the authorities and revocation lists.
    digest: digest::Digest,
}

impl ClientTrust {
    /// Whether a certificate that was good under `before` is good now.
    pub fn still_takes(&self, before: Option<&ClientTrust>, chain: &[CertificateDer<'_>]) -> bool {
        // A reload that changed nothing of it costs no signatures; dates are looked after by whoever has the connection.
        if before.is_some_and(|before| before.digest.as_ref() == self.digest.as_ref()) {
            return true;
        }
        let Some((own, between)) = chain.split_first() else {
            return false;
        };
        self.verifier.verify_client_cert(own, between, UnixTime::now()).is_ok()
    }
}

struct Loader<'a> {
    listener: &'a str,
    provider: Arc<CryptoProvider>,
}

impl Loader<'_> {
    fn load(&self, kind: ListenerKind, tls: &ListenerTls) -> Result<Loaded, TlsFileError> {
        let mut keys = vec![self.certified_key(&tls.certificate, &tls.key)?];
        for one in &tls.sni {
            keys.push(self.certified_key(&one.certificate, &one.key)?);
        }
        let versions: &[_] = match tls.version_min {
            TlsVersion::V1_2 => &[&TLS13, &TLS12],
            TlsVersion::V1_3 => &[&TLS13],
        };
        let clients = self.clients(tls)?;
        let verifier = clients
            .as_ref()
            .map_or_else(WebPkiClientVerifier::no_client_auth, |clients| clients.verifier.clone());
        let unusable = |error: rustls::Error| self.unusable(&tls.certificate, &error);
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(versions)
            .map_err(unusable)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(Certificates(keys)));
        config.alpn_protocols = vec![alpn(kind).to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = Ticketer::new().map_err(unusable)?;
        config.send_tls13_tickets = TICKETS;
        Ok(Loaded {
            config: Arc::new(config),
            clients,
        })
    }

    fn certified_key(&self, certificate: &Path, key: &Path) -> Result<Arc<CertifiedKey>, TlsFileError> {
        let chain = self.certificates(certificate)?;
        let pem = self.read(key)?;
        let private = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| self.not_pem(key, "private key"))?;
        let certified = CertifiedKey::from_der(chain, private, &self.provider).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => TlsFileError::KeyMismatch {
                listener: self.listener.to_owned(),
                key: key.to_owned(),
                certificate: certificate.to_owned(),
            },
            error => self.unusable(key, &error),
        })?;
        // What is no certificate would be found out by the first client.
        let parsed = certified
            .end_entity_cert()
            .and_then(|first| ParsedCertificate::try_from(first).map(drop));
        parsed.map_err(|error| self.unusable(certificate, &error))?;
        Ok(Arc::new(certified))
    }

    fn clients(&self, tls: &ListenerTls) -> Result<Option<ClientTrust>, TlsFileError> {
        if tls.client_certificates == ClientCertificates::Off {
            return Ok(None);
        }
        let mut digest = digest::Context::new(&digest::SHA256);
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates(&tls.client_ca)? {
            digest.update(&certificate);
            roots
                .add(certificate)
                .map_err(|error| self.unusable(&tls.client_ca, &error))?;
        }
        let mut verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), self.provider.clone());
        if !tls.client_crl.as_os_str().is_empty() {
            let lists = self.revocation_lists(&tls.client_crl)?;
            for list in &lists {
                digest.update(list);
            }
            verifier = verifier.with_crls(lists);
        }
        if tls.client_certificates == ClientCertificates::Optional {
            verifier = verifier.allow_unauthenticated();
        }
        let verifier = verifier.build().map_err(|error| match error {
            VerifierBuilderError::InvalidCrl(problem) => self.unusable(&tls.client_crl, &crl_problem(&problem)),
            error => self.unusable(&tls.client_ca, &error),
        })?;
        Ok(Some(ClientTrust {
            verifier,
            digest: digest.finish(),
        }))
    }

    fn certificates(&self, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
        let pem = self.read(path)?;
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let found = found.ok().filter(|found| !found.is_empty());
        found.ok_or_else(|| self.not_pem(path, "certificate"))
    }

    fn revocation_lists(&self, path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsFileError> {
        let pem = self.read(path)?;
        let found: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&pem).collect();
        let found = found.ok().filter(|found| !found.is_empty());
        found.ok_or_else(|| self.not_pem(path, "certificate revocation list"))
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>, TlsFileError> {
        fs::read(path).map_err(|source| TlsFileError::Unreadable {
            listener: self.listener.to_owned(),
            path: path.to_owned(),
            source,
        })
    }

    fn not_pem(&self, path: &Path, what: &'static str) -> TlsFileError {
        TlsFileError::NotPem {
            listener: self.listener.to_owned(),
            path: path.to_owned(),
            what,
        }
    }

    fn unusable(&self, path: &Path, problem: &dyn std::fmt::Display) -> TlsFileError {
        TlsFileError::Unusable {
            listener: self.listener.to_owned(),
            path: path.to_owned(),
            problem: problem.to_string(),
        }
    }
}

fn crl_problem(problem: &CertRevocationListError) -> String {
    format!("it is no list that can be checked ({problem:?})")
}

/// The protocol within, as clients that care name it. One that names only others is refused (RFC 7301).
fn alpn(kind: ListenerKind) -> &'static [u8] {
    match kind.is_websocket() {
        true => b"http/1.1",
        false => b"mqtt",
    }
}

/// The first certificate is for clients that ask for no name, or for one that no certificate has.
#[derive(Debug)]
struct Certificates(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let is_for = |key: &&Arc<CertifiedKey>, name: &ServerName<'_>| {
            let certificate = key.end_entity_cert().and_then(ParsedCertificate::try_from);
            certificate.is_ok_and(|certificate| verify_server_name(&certificate, name).is_ok())
        };
        let named = name
            .filter(|_| self.0.len() > 1)
            .and_then(|name| self.0.iter().find(|key| is_for(key, &name)));
        named.or(self.0.first()).cloned()
    }
}

/// An MQTT client has one connection, and needs one ticket for the next.
const TICKETS: usize = 1;
