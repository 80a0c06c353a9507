//! What a client connection runs over. TCP today; TLS and WebSocket will be further ways to make a [`Transport`].

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

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
}

/// Opens a TCP connection to the first address of `host` that answers.
///
/// # Errors
/// None does; the error is that of the last one.
pub async fn connect(host: &str, port: u16) -> Result<Box<dyn Transport>, ConnectError> {
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
                return Ok(Box::new(stream));
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
