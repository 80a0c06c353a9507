//! The few bytes of HTTP that the command line speaks with a node: one request over plain TCP, blocking.
//!
//! HTTP/1.0 on purpose: the answer ends with the connection, in one piece.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// A node's HTTP listener: host and port; and the key that is shown there.
#[derive(Clone)]
pub struct Endpoint {
    authority: String,
    key: Option<String>,
}

/// Why a node gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("{url} is no address of a node: it should look like http://127.0.0.1:18083")]
    Url { url: String },
    #[error("no answer from {at}: {source}; is a node running, and is this its http.listen?")]
    Unreachable { at: String, source: io::Error },
    #[error("{at} does not speak HTTP: is this a node's http.listen, not another of its ports?")]
    NotHttp { at: String },
    #[error("the key of the admin API is no word of printable ASCII characters: lontra_…_…")]
    Key,
    #[error("{at} answers {status} to {path}: {why}", why = why(body))]
    Status {
        at: String,
        path: String,
        status: u16,
        body: String,
    },
}

impl Endpoint {
    /// Of `http://HOST:PORT`.
    ///
    /// # Errors
    /// [`FetchError::Url`].
    pub fn parse(url: &str) -> Result<Endpoint, FetchError> {
        let authority = url
            .strip_prefix("http://")
            .map(|rest| rest.strip_suffix('/').unwrap_or(rest));
        let has_port = |authority: &&str| {
            let parts = authority.rsplit_once(':');
            parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        };
        let is_plain = |authority: &&str| !authority.contains(['/', '@', '?', '#', ' ', '\r', '\n']);
        match authority.filter(has_port).filter(is_plain) {
            Some(authority) => Ok(Endpoint {
                authority: authority.to_owned(),
                key: None,
            }),
            None => Err(FetchError::Url { url: url.to_owned() }),
        }
    }

    /// Shows this key of the admin API.
    ///
    /// # Errors
    /// No header can hold it.
    pub fn with_key(mut self, key: Option<String>) -> Result<Endpoint, FetchError> {
        let is_wrong = |key: &String| key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic());
        if key.as_ref().is_some_and(is_wrong) {
            return Err(FetchError::Key);
        }
        self.key = key;
        Ok(self)
    }

    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The body of the answer to `GET path`. Each step may take `patience`.
    ///
    /// # Errors
    /// Nobody answers in time, or not with 200.
    pub fn get(&self, path: &str, patience: Duration) -> Result<String, FetchError> {
        self.ask("GET", path, "", patience)
    }

    /// The body of the answer to a request with a body of JSON. `path` is escaped already.
    ///
    /// # Errors
    /// As [`Endpoint::get`]. After [`FetchError::Unreachable`] it may have been carried out.
    pub fn ask(&self, method: &str, path: &str, body: &str, patience: Duration) -> Result<String, FetchError> {
        let at = || self.authority.clone();
        let answer = self
            .exchange(method, path, body, patience)
            .map_err(|source| FetchError::Unreachable { at: at(), source })?;
        let Some((status, body)) = parse(&answer) else {
            return Err(FetchError::NotHttp { at: at() });
        };
        match status {
            200 => Ok(body.to_owned()),
            status => Err(FetchError::Status {
                at: at(),
                path: path.to_owned(),
                status,
                body: body.trim().to_owned(),
            }),
        }
    }

    fn exchange(&self, method: &str, path: &str, body: &str, patience: Duration) -> io::Result<String> {
        let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in self.authority.to_socket_addrs()? {
            let mut stream = match TcpStream::connect_timeout(&address, patience) {
                Ok(stream) => stream,
                Err(error) => {
                    failed = error;
                    continue;
                }
            };
            stream.set_read_timeout(Some(patience))?;
            stream.set_write_timeout(Some(patience))?;
            let mut head = format!("{method} {path} HTTP/1.0\r\nHost: {}\r\n", self.authority);
            if let Some(key) = &self.key {
                head += &format!("Authorization: Bearer {key}\r\n");
            }
            if !body.is_empty() {
                head += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
            }
            stream.write_all(format!("{head}\r\n{body}").as_bytes())?;
            let mut answer = Vec::new();
            stream.take(ANSWER_MAX).read_to_end(&mut answer)?;
            return Ok(String::from_utf8_lossy(&answer).into_owned());
        }
        Err(failed)
    }
}

/// What a node says of it, without the JSON around it.
fn why(body: &str) -> String {
    let error = serde_json::from_str::<serde_json::Value>(body).ok();
    let error = error.and_then(|body| Some(body.get("error")?.as_str()?.to_owned()));
    error.unwrap_or_else(|| body.to_owned())
}

/// A name as one segment of a path, or a value of a query. [RFC 3986 section 2.3]
pub fn escaped(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(char::from(byte)),
            byte => escaped += &format!("%{byte:02X}"),
        }
    }
    escaped
}

/// Status code and body.
fn parse(answer: &str) -> Option<(u16, &str)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let mut words = head.split_ascii_whitespace();
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    Some((words.next()?.parse().ok()?, body))
}

/// 64 MiB: whatever answers, the command line does not fill the memory.
const ANSWER_MAX: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn an_endpoint_is_a_host_and_a_port() {
        for url in ["http://127.0.0.1:18083", "http://[::1]:18083/", "http://localhost:1"] {
            assert!(Endpoint::parse(url).is_ok(), "{url}");
        }
        for url in [
            "127.0.0.1:18083",
            "https://a:1",
            "http://a",
            "http://:1",
            "http://a:70000",
            "http://a:1/metrics",
            "http://user@a:1",
            "http://a b:1",
        ] {
            assert!(Endpoint::parse(url).is_err(), "{url}");
        }
    }

    /// What [`Endpoint::get`] makes of a server that answers each of `answers` once.
    fn ask(answer: &'static str) -> Result<String, FetchError> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = Endpoint::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.extend(byte);
            }
            assert!(request.starts_with(b"GET /x HTTP/1.0\r\n"));
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let got = endpoint.get("/x", Duration::from_secs(10));
        server.join().unwrap();
        got
    }

    #[test]
    fn names_are_escaped_and_keys_are_words() {
        assert_eq!(escaped("a-Z.9_~"), "a-Z.9_~");
        assert_eq!(escaped("a/b %é"), "a%2Fb%20%25%C3%A9");
        let endpoint = || Endpoint::parse("http://a:1").unwrap();
        assert!(endpoint().with_key(Some("lontra_a_b".to_owned())).is_ok());
        for wrong in ["", "a b", "a\r\nX: y", "é"] {
            assert!(endpoint().with_key(Some(wrong.to_owned())).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_refusal_is_told_in_the_words_of_the_node() {
        let refused = ask("HTTP/1.1 403 Forbidden\r\n\r\n{\"error\":\"no, because\"}").unwrap_err();
        assert!(
            refused.to_string().ends_with("answers 403 to /x: no, because"),
            "{refused}"
        );
    }

    #[test]
    fn answers_are_told_apart() {
        assert_eq!(
            ask("HTTP/1.0 200 OK\r\na: b\r\n\r\nbody\r\n\r\nmore").unwrap(),
            "body\r\n\r\nmore"
        );
        let refused = ask("HTTP/1.1 404 Not Found\r\n\r\n{}").unwrap_err();
        assert!(matches!(refused, FetchError::Status { status: 404, .. }), "{refused}");
        assert!(matches!(ask("SSH-2.0\r\n").unwrap_err(), FetchError::NotHttp { .. }));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let free = listener.local_addr().unwrap();
        drop(listener);
        let endpoint = Endpoint::parse(&format!("http://{free}")).unwrap();
        let error = endpoint.get("/", Duration::from_secs(10)).unwrap_err();
        assert!(matches!(error, FetchError::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains(&free.to_string()), "{error}");
    }
}
