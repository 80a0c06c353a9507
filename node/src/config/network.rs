//! Networks, as a configuration names those of proxies: `10.0.0.0/8`, `2001:db8::/32`, one address alone.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// All addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    /// Bits that count.
    prefix: u8,
}

/// Why a text names no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotANetwork {
    #[error("`{0}` is not a network: write an address and the bits that count, like \"10.0.0.0/8\" or \"::1\"")]
    Form(String),
    #[error("`{0}` has bits set beyond its prefix: did you mean `{1}`?")]
    HostBits(String, Network),
}

impl Network {
    /// An IPv4 address that came in over IPv6 (`::ffff:10.0.0.1`) is the IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => {
                masked(address.to_canonical(), self.prefix) == self.address
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let form = || NotANetwork::Form(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| form())?;
        let prefix_max = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => prefix_max,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().map_err(|_| form())?,
            Some(_) => return Err(form()),
        };
        if prefix > prefix_max {
            return Err(form());
        }
        let network = Network {
            address: masked(address, prefix),
            prefix,
        };
        if network.address != address {
            return Err(NotANetwork::HostBits(text.to_owned(), network));
        }
        Ok(network)
    }
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V4((address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V6((address.to_bits() & mask).into())
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(network: &str, within: &[&str], outside: &[&str]) {
        let network: Network = network.parse().expect("a network");
        assert_eq!(network.to_string().parse(), Ok(network));
        for (addresses, is_within) in [(within, true), (outside, false)] {
            for address in addresses {
                let address = address.parse().expect("an address");
                assert_eq!(network.contains(address), is_within, "{network} {address}");
            }
        }
    }

    #[test]
    fn a_network_has_the_addresses_that_begin_with_its_bits() {
        check(
            "10.0.0.0/8",
            &["10.0.0.0", "10.255.255.255", "::ffff:10.1.2.3"],
            &["11.0.0.0", "9.255.255.255", "::1", "a00::"],
        );
        check("192.0.2.7", &["192.0.2.7"], &["192.0.2.6", "::1"]);
        check("0.0.0.0/0", &["0.0.0.0", "255.255.255.255"], &["::1"]);
        check("::/0", &["::1", "2001:db8::1"], &["127.0.0.1"]);
        check("2001:db8::/33", &["2001:db8:7fff::1"], &["2001:db8:8000::"]);
        check("::1", &["::1"], &["::2", "0.0.0.1"]);
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in [
            "",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "::/129",
            "localhost",
            "10.0.0/8",
            "/8",
        ] {
            assert_eq!(text.parse::<Network>(), Err(NotANetwork::Form(text.to_owned())));
        }
        let error = "10.0.0.1/8".parse::<Network>().expect_err("host bits").to_string();
        assert!(error.contains("did you mean `10.0.0.0/8`?"), "{error}");
    }
}
