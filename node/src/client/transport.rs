//! What a client connection runs over: TCP, TLS over it, WebSocket over either. Each is a way to make a [`Transport`].

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::address::Address;
use super::framed::Framed;
use super::tls::TlsStream;

/// A stream of bytes both ways.
pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot find {host}: {source}")]
    Name { host: String, source: io::Error },
    #[error("{host} has no address")]
    NoAddress { host: String },
    #[error(
        "connection refused by {at}: {source}; is a node running? \
         `lontra serve` starts one, `lontra dev --nodes 3 --data-dir DIR` a cluster"
    )]
    Refused { at: SocketAddr, source: io::Error },
    #[error("no connection to {at} within {waited:?}: is it the right address, and does a firewall let it through?")]
    Timeout { at: SocketAddr, waited: Duration },
    #[error("cannot connect to {at}: {source}")]
    Io { at: SocketAddr, source: io::Error },
    #[error("`{host}` is no name that a certificate can be for")]
    ServerName { host: String },
    #[error("no TLS with {to}: {source}")]
    Tls { to: String, source: io::Error },
    #[error("no WebSocket at {to}{path}: {source}")]
    WebSocket {
        to: String,
        path: String,
        source: io::Error,
    },
    #[error("no answer from {to} within {waited:?}: does it speak {what}?")]
    Silent {
        to: String,
        what: &'static str,
        waited: Duration,
    },
}

/// Opens a connection to `address`; over TLS with `tls`, if the address says so.
///
/// # Errors
/// Nobody answers, or not as they should.
pub async fn connect(address: &Address, tls: Option<Arc<ClientConfig>>) -> Result<Box<dyn Transport>, ConnectError> {
    let to = address.to_string();
    let mut transport: Box<dyn Transport> = Box::new(connect_tcp(&address.host, address.port).await?);
    if let Some(config) = tls.filter(|_| address.tls) {
        let host = &address.host;
        let name = ServerName::try_from(host.clone()).map_err(|_| ConnectError::ServerName { host: host.clone() })?;
        let stream = within(&to, "TLS", TlsStream::connect(transport, config, name)).await?;
        transport = Box::new(stream.map_err(|source| ConnectError::Tls { to: to.clone(), source })?);
    }
    if let Some(path) = &address.path {
        let framed = within(&to, "WebSocket", Framed::connect(transport, &address.authority(), path)).await?;
        transport = Box::new(framed.map_err(|source| ConnectError::WebSocket {
            to,
            path: path.clone(),
            source,
        })?);
    }
    Ok(transport)
}

async fn within<T>(to: &str, what: &'static str, done: impl Future<Output = T>) -> Result<T, ConnectError> {
    timeout(CONNECT_PATIENCE, done).await.map_err(|_| ConnectError::Silent {
        to: to.to_owned(),
        what,
        waited: CONNECT_PATIENCE,
    })
}

/// Opens a TCP connection to the first address of `host` that answers. If none does, the error is that of the last one.
async fn connect_tcp(host: &str, port: u16) -> Result<TcpStream, ConnectError> {
    let addresses = lookup_host((host, port)).await.map_err(|source| ConnectError::Name {
        host: host.to_owned(),
        source,
    })?;
    let mut error = ConnectError::NoAddress { host: host.to_owned() };
    for at in addresses {
        match timeout(CONNECT_PATIENCE, TcpStream::connect(at)).await {
            Ok(Ok(stream)) => {
                // Many small packets, written together where they come together.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(source)) if source.kind() == io::ErrorKind::ConnectionRefused => {
                error = ConnectError::Refused { at, source };
            }
            Ok(Err(source)) => error = ConnectError::Io { at, source },
            Err(_) => {
                error = ConnectError::Timeout {
                    at,
                    waited: CONNECT_PATIENCE,
                };
            }
        }
    }
    Err(error)
}

/// TCP repeats its SYN after 1, 3 and 7 s.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
