//! `lontra cert`: the certificates that nodes of a cluster show each other, and those of listeners and clients.
//!
//!     lontra cert authority --dir CA                                            once per cluster; CA/key stays private
//!     lontra cert node --authority CA --cluster NAME --node ID --dir NODE       once per node; goes to that node
//!     lontra cert server --authority CLIENTS-CA --name HOST --dir DIR           a listener's, for `[[listeners]]`
//!     lontra cert client --authority CLIENTS-CA --name WHO --dir DIR            a client's
//!
//! Give the clients an authority of their own: a certificate of the cluster's opens the links between nodes.
//!
//! The cryptography is `lontra_cluster::link::tls` and `issue`; here are the command line and what `dev` needs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use lontra_cluster::link::issue::{self, Issued, Purpose};
use lontra_cluster::link::tls::{self, Authority, TlsError};

use crate::config::Tls;

#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Make a cluster's certificate authority: a certificate for all nodes and a key for nobody else.
    Authority {
        /// Where its files are written; made if missing. An authority that is there already is not replaced.
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },

    /// Make the certificate and key of one node.
    Node {
        /// The directory that `lontra cert authority` wrote.
        #[arg(long, value_name = "DIR")]
        authority: PathBuf,

        /// The cluster's name (cluster.name).
        #[arg(long, value_name = "NAME")]
        cluster: String,

        /// The node's number (node.id).
        #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u64).range(1..=65535))]
        node: u64,

        /// Where its files are written; made if missing. A certificate that is there already is not replaced.
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },

    /// Make the certificate and key of a listener over TLS.
    Server(Leaf),

    /// Make the certificate and key of a client, for listeners that ask for one.
    Client(Leaf),
}

#[derive(Clone, Debug, clap::Args)]
pub struct Leaf {
    /// The directory that `lontra cert authority` wrote: another authority than that of the nodes.
    #[arg(long, value_name = "DIR")]
    authority: PathBuf,

    /// A host name or address by which clients reach the listener (several times); the client's name.
    #[arg(long = "name", value_name = "NAME", required = true)]
    names: Vec<String>,

    /// Where server.pem and server-key.pem, or client.pem and client-key.pem, are written; made if missing. A certificate
    /// that is there already is not replaced.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    #[error("cannot make {}: {source}; choose a directory that this user can write", path.display())]
    Unwritable { path: PathBuf, source: io::Error },
    #[error("cannot copy the authority's certificate {}: {source}; make it with `lontra cert authority`", path.display())]
    NoAuthority { path: PathBuf, source: io::Error },
    #[error("{} is there already: delete it first if the node shall have a new one", path.display())]
    Exists { path: PathBuf },
    #[error("cannot make a certificate in {}: {source}", path.display())]
    Tls { path: PathBuf, source: TlsError },
}

/// Runs the command, and returns what to tell the user.
///
/// # Errors
/// See [`CertError`]. Nothing that was there was changed.
pub fn run(command: &Command) -> Result<String, CertError> {
    match command {
        Command::Authority { dir } => {
            make_directory(dir)?;
            let authority = tls::create_authority(dir).map_err(in_directory(dir))?;
            Ok(format!(
                "wrote {} (for every node) and {} (keep it private: whoever has it can make nodes)",
                authority.certificate.display(),
                authority.key.display(),
            ))
        }
        Command::Server(leaf) => issue_leaf(leaf, Purpose::Server),
        Command::Client(leaf) => issue_leaf(leaf, Purpose::Client),
        Command::Node {
            authority,
            cluster,
            node,
            dir,
        } => {
            let files = node_files(dir, *node);
            for path in [&files.certificate, &files.key] {
                if path.exists() {
                    return Err(CertError::Exists { path: path.clone() });
                }
            }
            issue_node(dir, authority, cluster, *node)?;
            let mut named = toml::Table::try_from(&files).expect("paths of the command line are TOML strings");
            // Nothing is taken back yet.
            named.remove("crl");
            Ok(format!(
                "wrote the files of node {node} of cluster {cluster}; name them in its configuration:\n\n[cluster.tls]\n{}",
                toml::to_string(&named)
                    .expect("three paths of the command line are TOML strings")
                    .trim_end(),
            ))
        }
    }
}

/// Where the files of a node lie in its directory: a copy of the authority's certificate, its own, and its key.
pub fn node_files(dir: &Path, node: u64) -> Tls {
    Tls {
        ca: Authority::in_directory(dir).certificate,
        certificate: dir.join(format!("node-{node}.pem")),
        key: dir.join(format!("node-{node}-key.pem")),
        crl: PathBuf::new(),
    }
}

/// An authority in `dir`: the one that is there, or a new one.
///
/// # Errors
/// See [`CertError`].
pub fn ensure_authority(dir: &Path) -> Result<(), CertError> {
    let authority = Authority::in_directory(dir);
    if authority.certificate.exists() && authority.key.exists() {
        return Ok(());
    }
    make_directory(dir)?;
    tls::create_authority(dir).map(|_| ()).map_err(in_directory(dir))
}

/// Certificate and key of a node in `dir`: those that are there, or new ones.
///
/// # Errors
/// See [`CertError`].
pub fn ensure_node(dir: &Path, authority: &Path, cluster: &str, node: u64) -> Result<(), CertError> {
    let Tls {
        ca, certificate, key, ..
    } = node_files(dir, node);
    if [ca, certificate, key].iter().all(|path| path.exists()) {
        return Ok(());
    }
    issue_node(dir, authority, cluster, node)
}

fn issue_leaf(leaf: &Leaf, purpose: Purpose) -> Result<String, CertError> {
    let files = Issued::in_directory(&leaf.dir, stem(purpose));
    if let Some(path) = [&files.certificate, &files.key].into_iter().find(|path| path.exists()) {
        return Err(CertError::Exists { path: path.clone() });
    }
    make_directory(&leaf.dir)?;
    let authority = Authority::in_directory(&leaf.authority);
    let issued = issue::issue(&leaf.dir, &authority, stem(purpose), &leaf.names, purpose);
    let files = issued.map_err(in_directory(&leaf.dir))?;
    Ok(format!(
        "wrote {} and {}",
        files.certificate.display(),
        files.key.display()
    ))
}

/// Certificate and key in `dir`: those that are there, or new ones.
///
/// # Errors
/// See [`CertError`].
pub fn ensure_leaf(dir: &Path, authority: &Path, names: &[&str], purpose: Purpose) -> Result<(), CertError> {
    let files = leaf_files(dir, purpose);
    if files.certificate.exists() && files.key.exists() {
        return Ok(());
    }
    make_directory(dir)?;
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let issued = issue::issue(dir, &Authority::in_directory(authority), stem(purpose), &names, purpose);
    issued.map(drop).map_err(in_directory(dir))
}

/// Where they lie.
pub fn leaf_files(dir: &Path, purpose: Purpose) -> Issued {
    Issued::in_directory(dir, stem(purpose))
}

fn stem(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Server => "server",
        Purpose::Client => "client",
    }
}

fn issue_node(dir: &Path, authority: &Path, cluster: &str, node: u64) -> Result<(), CertError> {
    make_directory(dir)?;
    let authority = Authority::in_directory(authority);
    tls::issue_node(dir, &authority, cluster, node).map_err(in_directory(dir))?;
    // The node gets a directory that is complete without the authority's, which stays with the operator.
    let copied = fs::copy(&authority.certificate, node_files(dir, node).ca);
    copied.map(|_| ()).map_err(|source| CertError::NoAuthority {
        path: authority.certificate,
        source,
    })
}

fn make_directory(dir: &Path) -> Result<(), CertError> {
    fs::create_dir_all(dir).map_err(|source| CertError::Unwritable {
        path: dir.to_owned(),
        source,
    })
}

fn in_directory(dir: &Path) -> impl FnOnce(TlsError) -> CertError {
    let path = dir.to_owned();
    move |source| CertError::Tls { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node_command(root: &Path, node: u64) -> Command {
        let [authority, dir] = ["authority", "node"].map(|name| root.join(name));
        Command::Node {
            authority,
            cluster: "lontra".to_owned(),
            node,
            dir,
        }
    }

    #[test]
    fn an_authority_and_a_node_are_made_once() {
        let root = tempfile::tempdir().unwrap();
        let authority = Command::Authority {
            dir: root.path().join("authority"),
        };
        assert!(run(&authority).unwrap().contains("keep it private"));
        let told = run(&node_command(root.path(), 2)).unwrap();
        let files = node_files(&root.path().join("node"), 2);
        for path in [&files.ca, &files.certificate, &files.key] {
            assert!(path.exists() && told.contains(&path.display().to_string()), "{told}");
        }

        let before = fs::read(&files.key).unwrap();
        let error = run(&node_command(root.path(), 2)).unwrap_err().to_string();
        assert!(error.contains("node-2.pem is there already"), "{error}");
        assert!(run(&authority).unwrap_err().to_string().contains("exists"));
        assert_eq!(fs::read(&files.key).unwrap(), before);
    }

    #[test]
    fn a_server_and_a_client_get_certificates_once() {
        let root = tempfile::tempdir().unwrap();
        let authority = root.path().join("authority");
        ensure_authority(&authority).unwrap();
        for (purpose, name) in [(Purpose::Server, "localhost"), (Purpose::Client, "a client")] {
            let leaf = Leaf {
                authority: authority.clone(),
                names: vec![name.to_owned(), "127.0.0.1".to_owned()],
                dir: root.path().join("leaf"),
            };
            let command = match purpose {
                Purpose::Server => Command::Server(leaf),
                Purpose::Client => Command::Client(leaf),
            };
            let told = run(&command).unwrap();
            let files = leaf_files(&root.path().join("leaf"), purpose);
            assert!(
                told.contains(&files.key.display().to_string()) && files.certificate.exists(),
                "{told}"
            );
            let error = run(&command).unwrap_err().to_string();
            assert!(error.contains("is there already"), "{error}");
        }
    }

    #[test]
    fn a_missing_authority_and_an_unwritable_directory_are_named() {
        let root = tempfile::tempdir().unwrap();
        let error = run(&node_command(root.path(), 1)).unwrap_err().to_string();
        assert!(error.contains("authority/ca-key.pem does not exist"), "{error}");
        fs::write(root.path().join("file"), "").unwrap();
        let error = run(&Command::Authority {
            dir: root.path().join("file/authority"),
        })
        .unwrap_err()
        .to_string();
        assert!(error.contains("file/authority"), "{error}");
    }
}
