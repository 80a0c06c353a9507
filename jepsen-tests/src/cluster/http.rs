//! One request over HTTP/1.0 to a node's operator port, with a limit. Requests share nothing, so that a node that stands
//! still delays nobody else.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The status code and the body.
///
/// # Errors
/// The node is not there, or did not answer within `limit`.
pub async fn get(address: SocketAddr, path: &str, limit: Duration) -> io::Result<(u16, String)> {
    exchange(
        address,
        &format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n"),
        limit,
    )
    .await
}

/// As [`get`], with a body of JSON.
///
/// # Errors
/// As of [`get`].
pub async fn post(address: SocketAddr, path: &str, body: &str, limit: Duration) -> io::Result<(u16, String)> {
    let length = body.len();
    let request = format!("POST {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: {length}\r\n\r\n{body}");
    exchange(address, &request, limit).await
}

async fn exchange(address: SocketAddr, request: &str, limit: Duration) -> io::Result<(u16, String)> {
    let exchanged = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<_, io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = timeout(limit, exchanged).await.map_err(io::Error::other)??;
    parse(&answer).ok_or_else(|| io::Error::other(format!("not HTTP: {answer:?}")))
}

fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let code = head.split_whitespace().nth(1)?.parse().ok()?;
    Some((code, body.to_owned()))
}
