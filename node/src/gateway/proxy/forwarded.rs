//! `X-Forwarded-For`: each proxy appends the address that it was connected from.
//!
//!     X-Forwarded-For: 203.0.113.7, 192.0.2.4, 10.0.0.2      read from the right, past those that are trusted
//!                      anybody's   the client  a proxy

use std::net::{IpAddr, SocketAddr};

use crate::config::Network;

/// The client, as the proxies that are trusted tell it: `peer` itself if it is none of them, or tells nothing. `lines`
/// are the header's, in their order.
pub fn client<'a>(peer: IpAddr, lines: impl DoubleEndedIterator<Item = &'a str>, trusted: &[Network]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut client = peer;
    for told in lines.rev().flat_map(|line| line.rsplit(',')) {
        if !is_trusted(client) {
            break;
        }
        match address(told.trim()) {
            Some(address) => client = address,
            // Who wrote that may have written anything before it, too.
            None => break,
        }
    }
    client
}

/// With or without a port; IPv6 with or without brackets.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let address = bare.unwrap_or(text).parse().ok();
    address.or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(peer: &str, lines: &[&str], expected: &str) {
        let trusted = ["10.0.0.0/8", "::1"].map(|network| network.parse().expect("a network"));
        let found = client(peer.parse().expect("an address"), lines.iter().copied(), &trusted);
        assert_eq!(found.to_string(), expected, "{peer} {lines:?}");
    }

    #[test]
    fn only_proxies_that_are_trusted_are_believed() {
        check("192.0.2.1", &["203.0.113.7"], "192.0.2.1");
        check("10.0.0.1", &[], "10.0.0.1");
        check("10.0.0.1", &["203.0.113.7"], "203.0.113.7");
        check("10.0.0.1", &["198.51.100.9, 203.0.113.7"], "203.0.113.7");
        check("10.0.0.1", &["198.51.100.9, 203.0.113.7, 10.0.0.2"], "203.0.113.7");
        check("10.0.0.1", &["198.51.100.9", "203.0.113.7", "10.0.0.2"], "203.0.113.7");
        check("::1", &["10.0.0.3"], "10.0.0.3");
    }

    #[test]
    fn forms_of_addresses() {
        check("::1", &["[2001:db8::1]:443"], "2001:db8::1");
        check("::1", &["[2001:db8::1]"], "2001:db8::1");
        check("::1", &["2001:db8::1"], "2001:db8::1");
        check("::1", &["192.0.2.1:80"], "192.0.2.1");
    }

    #[test]
    fn what_is_no_address_ends_it() {
        check("10.0.0.1", &["203.0.113.7, unknown"], "10.0.0.1");
        check("10.0.0.1", &["203.0.113.7, , 10.0.0.2"], "10.0.0.2");
        check("10.0.0.1", &[""], "10.0.0.1");
        check("10.0.0.1", &["203.0.113.7; 10.0.0.2"], "10.0.0.1");
    }
}
