//! TLS by `openssl s_client`, which shares nothing with the broker's: as a relay for any client of the tests, and to look
//! at a handshake.

use super::SOON;
use std::process::Stdio;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// An address where a [`super::client::Client`] connects to reach `address` over TLS. Lives as long as the test's runtime.
pub async fn relay(address: &str, arguments: &[&str]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let relay = listener.local_addr().expect("an address").to_string();
    let mut all = vec!["-quiet".to_owned(), "-verify_return_error".to_owned()];
    all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
    let address = address.to_owned();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            client.set_nodelay(true).ok();
            tokio::spawn(relay_one(client, s_client(&address, &all)));
        }
    });
    relay
}

async fn relay_one(client: TcpStream, mut child: Child) {
    let (mut to_server, mut from_server) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
    let (mut from_client, mut to_client) = client.into_split();
    tokio::select! {
        _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
        _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
    }
    to_client.shutdown().await.ok();
    // The socket of the broker closes with it.
    child.kill().await.ok();
}

fn s_client(address: &str, arguments: &[String]) -> Child {
    Command::new("openssl")
        .args(["s_client", "-connect", address])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("openssl")
}

/// What `openssl s_client` says of one handshake, with `said` sent after it: whether it succeeded, and all of its output.
pub async fn handshake(address: &str, arguments: &[&str], said: &[u8]) -> (bool, String) {
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", address, "-verify_return_error"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("openssl");
    let mut input = child.stdin.take().expect("piped");
    input.write_all(said).await.ok();
    // Its end ends the connection.
    drop(input);
    let output = timeout(SOON, child.wait_with_output())
        .await
        .expect("openssl ends")
        .expect("openssl runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    // OpenSSL 3.0 writes names with spaces.
    (output.status.success(), said.replace(" = ", "="))
}

/// An address where bytes go to `address` behind `prefix`.
pub async fn prefixed(address: &str, prefix: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let relay = listener.local_addr().expect("an address").to_string();
    let address = address.to_owned();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (address, prefix) = (address.clone(), prefix.clone());
            tokio::spawn(async move {
                let Ok(mut server) = TcpStream::connect(&address).await else {
                    return;
                };
                if server.write_all(&prefix).await.is_ok() {
                    tokio::io::copy_bidirectional(&mut client, &mut server).await.ok();
                }
            });
        }
    });
    relay
}

/// An address where bytes go to the Unix socket at `path`.
pub async fn to_unix(path: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let relay = listener.local_addr().expect("an address").to_string();
    let path = path.to_owned();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let path = path.clone();
            tokio::spawn(async move {
                if let Ok(mut server) = UnixStream::connect(&path).await {
                    tokio::io::copy_bidirectional(&mut client, &mut server).await.ok();
                }
            });
        }
    });
    relay
}

/// What comes from `stream` until it ends.
pub async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    timeout(SOON, stream.read_to_end(&mut bytes))
        .await
        .expect("it ends")
        .ok();
    bytes
}
