//! Certificates for clients and for the listeners that clients connect to, signed by an authority of
//! [`create_authority`](super::tls::create_authority).
//!
//! Not the cluster's: whoever holds a certificate of that one, made out to a node's name, is that node.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose};

use super::tls::{Authority, NODE_LIFE, TlsError, authority_params, read_file, set_dates, write_file};

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A listener: its names are those by which clients reach it.
    Server,
    /// A client: its first name is who it is.
    Client,
}

/// Where a certificate and its key were written.
#[derive(Clone, Debug)]
pub struct Issued {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Issued {
    /// The files of `stem` in `directory`.
    pub fn in_directory(directory: &Path, stem: &str) -> Self {
        Issued {
            certificate: directory.join(format!("{stem}.pem")),
            key: directory.join(format!("{stem}-key.pem")),
        }
    }
}

/// Issues (or renews) a certificate for `names` (host names and addresses; at least one) into `directory`, which exists.
/// Blocks on the disk.
///
/// # Errors
/// A file of the authority cannot be used, a name cannot be in a certificate, or the files cannot be written.
pub fn issue(
    directory: &Path,
    authority: &Authority,
    stem: &str,
    names: &[String],
    purpose: Purpose,
) -> Result<Issued, TlsError> {
    let name = names.first().cloned().unwrap_or_default();
    let issue_error = |source| TlsError::Issue {
        name: name.clone(),
        source,
    };
    let not_pem = |_| TlsError::NotPem {
        path: authority.key.clone(),
        what: "private key",
    };
    let pem = String::from_utf8_lossy(&read_file(&authority.key)?).into_owned();
    let authority_params = authority_params();
    let issuer = Issuer::from_params(&authority_params, KeyPair::from_pem(&pem).map_err(not_pem)?);

    // A client's name need not be one of DNS.
    let subjects = match purpose {
        Purpose::Server => names.to_vec(),
        Purpose::Client => Vec::new(),
    };
    let mut params = CertificateParams::new(subjects).map_err(issue_error)?;
    let common_name = names
        .iter()
        .find(|name| name.parse::<IpAddr>().is_err())
        .unwrap_or(&name);
    params.distinguished_name.push(DnType::CommonName, common_name.clone());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![match purpose {
        Purpose::Server => ExtendedKeyUsagePurpose::ServerAuth,
        Purpose::Client => ExtendedKeyUsagePurpose::ClientAuth,
    }];
    params.use_authority_key_identifier_extension = true;
    set_dates(&mut params, NODE_LIFE);
    let key = KeyPair::generate().map_err(issue_error)?;
    let certificate = params.signed_by(&key, &issuer).map_err(issue_error)?;

    let files = Issued::in_directory(directory, stem);
    write_file(&files.key, &key.serialize_pem(), 0o600)?;
    write_file(&files.certificate, &certificate.pem(), 0o644)?;
    Ok(files)
}
