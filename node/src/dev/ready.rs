//! Asks nodes whether they are ready: `GET /health/ready`, until each has said 200.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::layout::NodeLayout;
use crate::cli::say;

/// Until every node is ready; says from time to time which one is not, and why.
pub async fn wait(nodes: &[NodeLayout]) {
    for node in nodes {
        let mut told = Instant::now();
        while let Err(reason) = ask(node.config.http.listen).await {
            if told.elapsed() > TELL_INTERVAL {
                say(format_args!(
                    "node {} is not ready yet: {reason}; its log is {}",
                    node.id,
                    node.log_path().display()
                ));
                told = Instant::now();
            }
            sleep(ASK_INTERVAL).await;
        }
    }
}

/// `Err` holds why not.
async fn ask(http: SocketAddr) -> Result<(), String> {
    let answer = timeout(ANSWER_WAIT_MAX, get(http)).await;
    let answer = answer
        .map_err(|_| "it does not answer".to_owned())?
        .map_err(|error| error.to_string())?;
    if answer.starts_with("HTTP/1.1 200 ") {
        return Ok(());
    }
    Err(answer.rsplit("\r\n\r\n").next().unwrap_or_default().to_owned())
}

async fn get(http: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(http).await?;
    stream
        .write_all(b"GET /health/ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .await?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).await?;
    Ok(answer)
}

const ASK_INTERVAL: Duration = Duration::from_millis(50);
const TELL_INTERVAL: Duration = Duration::from_secs(10);
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(2);

/// A page of reasons; a node sends far less.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn answered(answer: &'static str) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 256];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            stream.write_all(answer.as_bytes()).await.unwrap();
        };
        tokio::join!(served, ask(address)).1
    }

    #[tokio::test]
    async fn only_200_is_ready_and_the_body_says_why_not() {
        assert_eq!(answered("HTTP/1.1 200 OK\r\n\r\n{}").await, Ok(()));
        let waiting = answered("HTTP/1.1 503 Service Unavailable\r\n\r\n{\"reasons\":[\"no lease\"]}").await;
        assert_eq!(waiting, Err("{\"reasons\":[\"no lease\"]}".to_owned()));
        assert!(ask("127.0.0.1:1".parse().unwrap()).await.is_err());
    }
}
