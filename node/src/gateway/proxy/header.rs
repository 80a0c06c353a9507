//! The header of the PROXY protocol, versions 1 and 2: who the client is, told by the proxy in front of it.
//!
//! ```text
//!   v1   PROXY TCP4 192.0.2.1 198.51.100.1 56324 1883\r\n
//!   v2   signature (12) │ version, command │ family, protocol │ length (2) │ addresses │ TLVs
//! ```
//!
//! Sans-io, and strict: what is not exactly a header is an error, so that no client's bytes are taken for one. (The
//! specification: haproxy's proxy-protocol.txt.)
//!
//! Invariants
//! - no byte behind the header is taken: [`Header::take`] says how many of the bytes that came belong to it.
//! - `bounded`: at most V1_MAX or V2_MAX bytes are kept.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A header that is being received.
#[derive(Debug, Default)]
pub struct Header {
    bytes: Vec<u8>,
}

/// What a header says of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Client(SocketAddr),
    /// `UNKNOWN`, `LOCAL`, or no IP address: the proxy speaks for itself, as in health checks.
    Nothing,
}

/// Why the bytes are no header. What follows has no meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("it does not begin as a PROXY header")]
    NoHeader,
    #[error("the PROXY line is not as version 1 has it")]
    Line,
    #[error("the PROXY header has another version than 2, or a command that version 2 does not know")]
    Version,
    #[error("the PROXY header has an address family or protocol that version 2 does not know")]
    Family,
    #[error("the PROXY header is shorter or longer than what it says is in it")]
    Length,
}

impl Header {
    /// Takes what of `available` belongs to the header; how many bytes that is, and what the header says once it is
    /// whole. Nothing may be handed in after that.
    ///
    /// # Errors
    /// It is no header.
    pub fn take(&mut self, available: &[u8]) -> Result<(usize, Option<Told>), HeaderError> {
        let mut taken = 0;
        loop {
            let wanted = self.wanted()?;
            if wanted == 0 {
                return parse(&self.bytes).map(|told| (taken, Some(told)));
            }
            let rest = &available[taken..];
            let piece = &rest[..wanted.min(rest.len())];
            if piece.is_empty() {
                return Ok((taken, None));
            }
            self.bytes.extend_from_slice(piece);
            taken += piece.len();
        }
    }

    /// How many more bytes surely belong to it; 0: it is whole.
    fn wanted(&self) -> Result<usize, HeaderError> {
        let bytes = &self.bytes[..];
        match bytes.first() {
            None => Ok(1),
            Some(b'P') => {
                let known = bytes.len().min(V1_BEGIN.len());
                if bytes[..known] != V1_BEGIN[..known] {
                    return Err(HeaderError::NoHeader);
                }
                if bytes.ends_with(b"\r\n") {
                    return Ok(0);
                }
                // Byte by byte: nobody knows where it ends.
                match bytes.len() < V1_MAX && (bytes.len() < 2 || !bytes[..bytes.len() - 1].contains(&b'\r')) {
                    true => Ok(1),
                    false => Err(HeaderError::Line),
                }
            }
            Some(_) => {
                let known = bytes.len().min(SIGNATURE.len());
                if bytes[..known] != SIGNATURE[..known] {
                    return Err(HeaderError::NoHeader);
                }
                match bytes.len() {
                    length if length < SIGNATURE.len() => return Ok(SIGNATURE.len() - length),
                    length if length < V2_FIXED => return Ok(V2_FIXED - length),
                    _ => {}
                }
                let length = V2_FIXED + usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
                if length > V2_MAX {
                    return Err(HeaderError::Length);
                }
                Ok(length - bytes.len())
            }
        }
    }
}

fn parse(header: &[u8]) -> Result<Told, HeaderError> {
    match header.first() {
        Some(b'P') => parse_line(header),
        _ => parse_binary(header),
    }
}

fn parse_line(header: &[u8]) -> Result<Told, HeaderError> {
    let line = header.strip_suffix(b"\r\n").ok_or(HeaderError::Line)?;
    let line = std::str::from_utf8(line).map_err(|_| HeaderError::Line)?;
    if line == "PROXY UNKNOWN" || line.starts_with("PROXY UNKNOWN ") {
        return Ok(Told::Nothing);
    }
    let fields: Vec<&str> = line.split(' ').collect();
    let [_, family, source, destination, source_port, destination_port] = fields[..] else {
        return Err(HeaderError::Line);
    };
    let address = |text: &str| -> Result<IpAddr, HeaderError> {
        match family {
            "TCP4" => text.parse::<Ipv4Addr>().map(IpAddr::V4).map_err(|_| HeaderError::Line),
            "TCP6" => text.parse::<Ipv6Addr>().map(IpAddr::V6).map_err(|_| HeaderError::Line),
            _ => Err(HeaderError::Line),
        }
    };
    let port = |text: &str| -> Result<u16, HeaderError> {
        let is_decimal = text == "0" || text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
        text.parse().ok().filter(|_| is_decimal).ok_or(HeaderError::Line)
    };
    let (client, port_of_client) = (address(source)?, port(source_port)?);
    address(destination)?;
    port(destination_port)?;
    Ok(Told::Client(SocketAddr::new(client, port_of_client)))
}

fn parse_binary(header: &[u8]) -> Result<Told, HeaderError> {
    let (fixed, rest) = header.split_at_checked(V2_FIXED).ok_or(HeaderError::Length)?;
    let is_local = match fixed[12] {
        0x20 => true,
        0x21 => false,
        _ => return Err(HeaderError::Version),
    };
    // Address family above, transport protocol below: stream or datagram.
    let (family, protocol) = (fixed[13] >> 4, fixed[13] & 0x0f);
    if protocol > 2 {
        return Err(HeaderError::Family);
    }
    let addresses = match family {
        0 => 0,
        1 => 12,
        2 => 36,
        3 => 216,
        _ => return Err(HeaderError::Family),
    };
    if is_local && rest.len() < addresses {
        // A LOCAL header may say anything behind its length: it is to be ignored.
        return Ok(Told::Nothing);
    }
    let (addresses, tlvs) = rest.split_at_checked(addresses).ok_or(HeaderError::Length)?;
    if family > 0 && !is_local {
        check_tlvs(tlvs)?;
    }
    let port = |at: usize| u16::from_be_bytes([addresses[at], addresses[at + 1]]);
    match family {
        _ if is_local => Ok(Told::Nothing),
        1 => {
            let address: [u8; 4] = addresses[..4].try_into().map_err(|_| HeaderError::Length)?;
            Ok(Told::Client(SocketAddr::new(address.into(), port(8))))
        }
        2 => {
            let address: [u8; 16] = addresses[..16].try_into().map_err(|_| HeaderError::Length)?;
            Ok(Told::Client(SocketAddr::new(address.into(), port(32))))
        }
        _ => Ok(Told::Nothing),
    }
}

/// Type, length, value, until the end.
fn check_tlvs(mut tlvs: &[u8]) -> Result<(), HeaderError> {
    while !tlvs.is_empty() {
        let Some(([_, high, low], rest)) = tlvs.split_first_chunk::<3>() else {
            return Err(HeaderError::Length);
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        tlvs = rest.get(length..).ok_or(HeaderError::Length)?;
    }
    Ok(())
}

const V1_BEGIN: &[u8] = b"PROXY ";
/// The longest line that the specification has, with its end.
const V1_MAX: usize = 107;
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_FIXED: usize = 16;
/// Addresses and what proxies tell of their own TLS and networks; the specification asks for 232 at least.
const V2_MAX: usize = 4096;

#[cfg(test)]
mod tests;
