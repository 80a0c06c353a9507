//! Which web pages may connect: the `Origin` that a browser sends for the page, and only browsers send (RFC 6454, 6455 10.2).
//!
//! A browser lets any page open a WebSocket to any address that it can reach, the user's own machine included. The server
//! alone can tell a page of its owner from one that the user happened to visit. Programs say no origin, or any they like:
//! this protects users of browsers, it does not authenticate.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An entry of `websocket.origins`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WebOrigin {
    /// `"*"`: every page.
    Any,
    /// `"loopback"`: pages that this machine serves: `http` or `https` on `localhost`, 127.0.0.0/8 or `[::1]`, any port.
    Loopback,
    /// `"null"`: pages without an origin of their own: files, sandboxed frames of any page.
    Null,
    /// `"scheme://host[:port]"`, in lower case, without the scheme's own port: as browsers send it.
    Exact(String),
}

/// Why a text names no origin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an origin: write \"https://host\" or \"https://host:port\", \"loopback\", \"null\" or \"*\"")]
pub struct NotAnOrigin(String);

impl WebOrigin {
    /// Whether a page of this `Origin` may connect by this entry.
    pub fn admits(&self, origin: &str) -> bool {
        match self {
            WebOrigin::Any => true,
            WebOrigin::Null => origin == NULL,
            WebOrigin::Loopback => parts(origin).is_some_and(|(scheme, host, _)| is_web(&scheme) && is_loopback(&host)),
            WebOrigin::Exact(exact) => normal(origin).as_ref() == Some(exact),
        }
    }
}

impl FromStr for WebOrigin {
    type Err = NotAnOrigin;

    fn from_str(text: &str) -> Result<Self, NotAnOrigin> {
        match text {
            ANY => Ok(WebOrigin::Any),
            LOOPBACK => Ok(WebOrigin::Loopback),
            NULL => Ok(WebOrigin::Null),
            text => normal(text)
                .map(WebOrigin::Exact)
                .ok_or_else(|| NotAnOrigin(text.to_owned())),
        }
    }
}

impl fmt::Display for WebOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WebOrigin::Any => ANY,
            WebOrigin::Loopback => LOOPBACK,
            WebOrigin::Null => NULL,
            WebOrigin::Exact(origin) => origin,
        })
    }
}

impl Serialize for WebOrigin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for WebOrigin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

fn normal(origin: &str) -> Option<String> {
    let (scheme, host, port) = parts(origin)?;
    match port {
        Some(port) if default_port(&scheme) != Some(port) => Some(format!("{scheme}://{host}:{port}")),
        _ => Some(format!("{scheme}://{host}")),
    }
}

/// Scheme, host (IPv6 in its brackets) and port; `None` for whatever is more or less than that.
fn parts(origin: &str) -> Option<(String, String, Option<u16>)> {
    let (scheme, authority) = origin.split_once("://")?;
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port.parse().ok()?)),
        _ => (authority, None),
    };
    let of_scheme = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let good_host = match bare {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && !host.contains(|c: char| "/:[]?#@*\\".contains(c) || !c.is_ascii_graphic()),
    };
    if scheme.is_empty() || !scheme.chars().all(of_scheme) || !good_host {
        return None;
    }
    Some((scheme.to_ascii_lowercase(), host.to_ascii_lowercase(), port))
}

fn is_web(scheme: &str) -> bool {
    default_port(scheme).is_some()
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

/// By its text alone: a name that merely resolves to this machine may be anybody's.
fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

const ANY: &str = "*";
const LOOPBACK: &str = "loopback";
const NULL: &str = "null";

#[cfg(test)]
mod tests {
    use super::*;

    fn check(entry: &str, admitted: &[&str], refused: &[&str]) {
        let entry: WebOrigin = entry.parse().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(entry.to_string().parse(), Ok(entry.clone()));
        for origin in admitted {
            assert!(entry.admits(origin), "{entry} does not admit {origin}");
        }
        for origin in refused {
            assert!(!entry.admits(origin), "{entry} admits {origin}");
        }
    }

    #[test]
    fn loopback_is_told_by_the_text_of_the_origin() {
        check(
            "loopback",
            &[
                "http://localhost",
                "http://localhost:3000",
                "https://127.0.0.1:8443",
                "http://127.9.9.9",
                "http://[::1]:80",
            ],
            &[
                "http://localhost.example.org",
                "http://example.org",
                "http://127.0.0.1.example.org",
                "http://10.0.0.1",
                "http://localhost@example.org",
                "http://localhost/x",
                "ftp://localhost",
                "null",
                "",
                "localhost",
            ],
        );
    }

    #[test]
    fn an_exact_origin_is_scheme_host_and_port() {
        check(
            "https://Example.org:443",
            &["https://example.org"],
            &[
                "http://example.org",
                "https://example.org:8443",
                "https://a.example.org",
                "null",
            ],
        );
        check(
            "http://[2001:db8::1]:8080",
            &["http://[2001:db8::1]:8080"],
            &["http://[2001:db8::1]"],
        );
        check("null", &["null"], &["http://localhost", "*"]);
        check("*", &["null", "http://example.org", "anything"], &[]);
    }

    #[test]
    fn what_is_no_origin_is_refused() {
        for text in [
            "",
            "example.org",
            "https://",
            "https://example.org/",
            "https://example.org/path",
            "https://*.example.org",
            "https://example.org:port",
            "https://user@example.org",
            "https://[::1",
            "https://::1",
            "Loopback",
        ] {
            let refused = text.parse::<WebOrigin>();
            assert_eq!(refused, Err(NotAnOrigin(text.to_owned())));
        }
    }
}
