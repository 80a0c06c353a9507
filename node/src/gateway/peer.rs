//! Who is at the other end of a connection, as far as the transport knows.

use std::fmt;
use std::net::SocketAddr;

use rustls::pki_types::CertificateDer;

/// Of one connection; kept with its client.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// The client's, also where a proxy that is trusted is in between; port 0 where the proxy tells none. None over Unix
    /// sockets.
    pub address: Option<SocketAddr>,
    /// The certificate that the client has shown and that was good then, and those between it and an authority.
    pub chain: Option<Box<[CertificateDer<'static>]>>,
    /// It is one more than may be connected: it is only told so.
    pub is_surplus: bool,
}

impl Peer {
    /// IPv4 that comes in by an IPv6 socket is IPv4.
    pub fn at(address: Option<SocketAddr>) -> Self {
        Peer {
            address: address.map(|address| SocketAddr::new(address.ip().to_canonical(), address.port())),
            chain: None,
            is_surplus: false,
        }
    }

    /// The client's own certificate, in DER.
    pub fn certificate(&self) -> Option<&[u8]> {
        self.chain.as_ref()?.first().map(|own| &own[..])
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            None => f.write_str("local"),
            Some(address) if address.port() == 0 => address.ip().fmt(f),
            Some(address) => address.fmt(f),
        }
    }
}
