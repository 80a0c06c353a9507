//! Asking a server over HTTP: keep-alive connections, TLS, an answer that is bounded in time and size.
//!
//! Redirections are not followed: who answers is whom the operator named.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::rt::ReadBufCursor;
use hyper::{Method, Request, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tower_service::Service;

use crate::client::tls::{TlsOptions, TlsOptionsError, TlsStream};
use crate::client::transport::Transport;

/// A client with connections of its own; clones share them.
#[derive(Clone)]
pub struct HttpClient {
    client: Client<Connector, Full<Bytes>>,
}

/// What a server said.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("it does not answer within {0:?}")]
    Timeout(Duration),
    #[error("no request can be made: {0}")]
    Request(#[from] hyper::http::Error),
    #[error("it cannot be reached: {0}")]
    Unreachable(String),
    #[error("its answer was not read: it broke off, or has more than {BODY_MAX} bytes")]
    Body,
}

/// Why a text is no address to ask at.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is no URL to ask at: write one like \"https://auth.example.org/mqtt\", without user name and password")]
pub struct NotAUrl(String);

/// # Errors
/// It is not http or https, or names no host.
pub fn address(url: &str) -> Result<Uri, NotAUrl> {
    let uri: Option<Uri> = url.parse().ok();
    let is_good = |uri: &Uri| {
        let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
        let authority = uri
            .authority()
            .is_some_and(|one| !one.host().is_empty() && !one.as_str().contains('@'));
        is_http && authority
    };
    uri.filter(is_good).ok_or_else(|| NotAUrl(url.to_owned()))
}

impl HttpClient {
    /// `ca` names authorities in PEM; empty: those of the system. Reads them only for an `https` URL.
    ///
    /// # Errors
    /// There are none to trust.
    pub fn new(url: &str, ca: &Path) -> Result<Self, TlsOptionsError> {
        let tls = match url.starts_with("https:") {
            false => None,
            true => {
                let options = TlsOptions {
                    cafile: (!ca.as_os_str().is_empty()).then(|| ca.to_owned()),
                    ..TlsOptions::default()
                };
                Some(options.config()?)
            }
        };
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .build(Connector { tls });
        Ok(HttpClient { client })
    }

    /// # Errors
    /// Nobody answers in time.
    pub async fn get(&self, url: &str, timeout: Duration) -> Result<Answer, HttpError> {
        let request = Request::builder().method(Method::GET).uri(url);
        let request = request.header(ACCEPT, "application/json").body(Full::default())?;
        self.ask(request, timeout).await
    }

    /// # Errors
    /// Nobody answers in time.
    pub async fn post_json(
        &self,
        url: &str,
        authorization: Option<HeaderValue>,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Answer, HttpError> {
        let mut request = Request::builder().method(Method::POST).uri(url);
        request = request
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/json");
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value);
        }
        self.ask(request.body(Full::new(body.into()))?, timeout).await
    }

    async fn ask(&self, request: Request<Full<Bytes>>, timeout: Duration) -> Result<Answer, HttpError> {
        let asking = async {
            let response = self.client.request(request).await;
            let response = response.map_err(|error| HttpError::Unreachable(with_sources(&error)))?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), BODY_MAX).collect().await;
            let body = body.map_err(|_| HttpError::Body)?.to_bytes();
            Ok(Answer { status, body })
        };
        let answer = tokio::time::timeout(timeout, asking).await;
        answer.unwrap_or(Err(HttpError::Timeout(timeout)))
    }
}

/// hyper says "client error (Connect)", and keeps what is behind it.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut told = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        told = format!("{told}: {error}");
        source = error.source();
    }
    told
}

/// Opens connections.
#[derive(Clone)]
struct Connector {
    tls: Option<Arc<ClientConfig>>,
}

/// TCP, or TLS over it.
struct HttpStream(TokioIo<Box<dyn Transport>>);

impl Service<Uri> for Connector {
    type Response = HttpStream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<HttpStream>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let tls = self.tls.clone();
        Box::pin(async move {
            let is_tls = uri.scheme_str() == Some("https");
            // IPv6 stands in brackets in a URL.
            let host = uri
                .host()
                .unwrap_or_default()
                .trim_start_matches('[')
                .trim_end_matches(']');
            let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
            let stream = TcpStream::connect((host, port)).await?;
            stream.set_nodelay(true)?;
            let stream: Box<dyn Transport> = match tls.filter(|_| is_tls) {
                Some(config) => {
                    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
                    Box::new(TlsStream::connect(stream, config, name).await?)
                }
                None if is_tls => return Err(io::Error::other("there are no authorities to trust")),
                None => Box::new(stream),
            };
            Ok(HttpStream(TokioIo::new(stream)))
        })
    }
}

impl Connection for HttpStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for HttpStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl hyper::rt::Write for HttpStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpClient").finish_non_exhaustive()
    }
}

/// A JWK set, or an answer with rules.
const BODY_MAX: usize = 1024 * 1024;
/// Shorter than servers keep idle connections: nginx 75 s, most others a minute.
const IDLE_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_http_and_https_with_a_host_are_asked() {
        for good in [
            "http://127.0.0.1:8080/auth",
            "https://auth.example.org",
            "https://[::1]:8443/x?y=z",
        ] {
            assert!(address(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "auth",
            "/auth",
            "ftp://a/b",
            "http://",
            "https://user:secret@host/",
            "mqtt://host",
        ] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}
