//! Where a client connects to, and over what.

use std::fmt;

/// `mqtt://host:port`, `mqtts://host:port`, `ws://host:port/path`, `wss://host:port/path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub host: String,
    pub port: u16,
    pub tls: bool,
    /// Over WebSocket, there.
    pub path: Option<String>,
}

impl Address {
    /// # Errors
    /// What is wrong with it.
    pub fn parse(url: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(format!("`{url}` is no URL: write one like wss://host:8084/mqtt"));
        };
        let (tls, is_websocket, port) = match scheme {
            "mqtt" => (false, false, 1883),
            "mqtts" => (true, false, 8883),
            "ws" => (false, true, 80),
            "wss" => (true, true, 443),
            _ => return Err(format!("`{scheme}` is none of mqtt, mqtts, ws and wss")),
        };
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if !is_websocket && !matches!(path, "" | "/") {
            return Err(format!("{scheme}:// has no path: the topic goes to -t"));
        }
        if authority.contains('@') {
            return Err("user name and password go to -u and -P".to_owned());
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, digits)) if !digits.ends_with(']') => {
                let port = digits.parse().ok().filter(|port| *port > 0);
                (host, port.ok_or_else(|| format!("`{digits}` is no port"))?)
            }
            _ => (authority, port),
        };
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        if host.is_empty() {
            return Err(format!("`{url}` names no host"));
        }
        Ok(Address {
            host: host.to_owned(),
            port,
            tls,
            path: is_websocket.then(|| if path.is_empty() { "/mqtt" } else { path }.to_owned()),
        })
    }

    /// As HTTP names it.
    pub fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str, host: &str, port: u16, tls: bool, path: Option<&str>) {
        let expected = Address {
            host: host.into(),
            port,
            tls,
            path: path.map(str::to_owned),
        };
        assert_eq!(Address::parse(url), Ok(expected), "{url}");
    }

    #[test]
    fn urls_name_host_port_and_transport() {
        check("mqtt://a", "a", 1883, false, None);
        check("mqtts://a.example/", "a.example", 8883, true, None);
        check("mqtts://[::1]:1", "::1", 1, true, None);
        check("ws://127.0.0.1:8083", "127.0.0.1", 8083, false, Some("/mqtt"));
        check("wss://[::1]/other/path?x=1", "::1", 443, true, Some("/other/path?x=1"));
    }

    #[test]
    fn what_is_no_such_url_is_refused() {
        for url in [
            "a",
            "http://a",
            "mqtt://",
            "mqtt://a:0",
            "mqtt://a:x",
            "mqtt://a/topic",
            "mqtt://u@a",
            "ws://:1",
        ] {
            assert!(Address::parse(url).is_err(), "{url}");
        }
    }
}
