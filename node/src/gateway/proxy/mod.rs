//! Behind a proxy: who the client is, as proxies tell that the listener trusts.
//!
//!     PROXY header, before any other byte ─▶ header      every transport but Unix sockets
//!     X-Forwarded-For, in the handshake ──▶ forwarded    WebSocket

pub mod forwarded;
pub mod header;

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpStream;

pub use self::header::HeaderError;
use self::header::{Header, Told};

/// Why a connection with a PROXY header is not served.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("the connection ended before its PROXY header did")]
    Lost(#[source] io::Error),
    #[error(transparent)]
    Header(#[from] HeaderError),
}

/// Reads the header that the connection begins with, and nothing beyond; `None` if it tells no address.
///
/// # Errors
/// There is none, or the connection is lost.
pub async fn receive(stream: &TcpStream) -> Result<Option<SocketAddr>, ProxyError> {
    let mut header = Header::default();
    let mut buffer = [0; PEEK_BYTES];
    loop {
        let available = stream.peek(&mut buffer).await.map_err(ProxyError::Lost)?;
        if available == 0 {
            return Err(ProxyError::Lost(io::ErrorKind::UnexpectedEof.into()));
        }
        let (taken, told) = header.take(&buffer[..available])?;
        take(stream, &mut buffer[..taken])?;
        match told {
            Some(Told::Client(address)) => return Ok(Some(address)),
            Some(Told::Nothing) => return Ok(None),
            None => {}
        }
    }
}

/// Takes bytes that were seen to be there.
fn take(stream: &TcpStream, mut bytes: &mut [u8]) -> Result<(), ProxyError> {
    while !bytes.is_empty() {
        let read = stream.try_read(bytes).map_err(ProxyError::Lost)?;
        bytes = &mut bytes[read..];
    }
    Ok(())
}

/// Most headers are whole in it.
const PEEK_BYTES: usize = 256;
