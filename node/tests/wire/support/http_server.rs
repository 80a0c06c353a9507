//! A server that answers as a test says: what a broker asks whom it trusts.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// What it answers, by the body that came: a status and a body; none: nothing, ever.
type Answer = Box<dyn Fn(&str) -> Option<(u16, String)> + Send>;

/// HTTP/1.1 with keep-alive. Lives as long as the test's runtime.
pub struct HttpServer {
    pub address: String,
    answer: Arc<Mutex<Answer>>,
    pub connections: Arc<AtomicUsize>,
    /// Head and body of each request.
    pub requests: Arc<Mutex<Vec<(String, String)>>>,
}

impl HttpServer {
    pub async fn start(answer: impl Fn(&str) -> Option<(u16, String)> + Send + 'static) -> HttpServer {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let server = HttpServer {
            address: listener.local_addr().expect("an address").to_string(),
            answer: Arc::new(Mutex::new(Box::new(answer))),
            connections: Arc::default(),
            requests: Arc::default(),
        };
        let (answer, connections, requests) = (
            server.answer.clone(),
            server.connections.clone(),
            server.requests.clone(),
        );
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(stream, answer.clone(), requests.clone()));
            }
        });
        server
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn answer_with(&self, answer: impl Fn(&str) -> Option<(u16, String)> + Send + 'static) {
        *self.answer.lock().expect("no panic") = Box::new(answer);
    }

    pub fn requests(&self) -> Vec<(String, String)> {
        self.requests.lock().expect("no panic").clone()
    }
}

async fn serve(stream: TcpStream, answer: Arc<Mutex<Answer>>, requests: Arc<Mutex<Vec<(String, String)>>>) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = String::new();
        let mut length = 0;
        loop {
            let mut line = String::new();
            match stream.read_line(&mut line).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().expect("a length");
            }
            if line == "\r\n" {
                break;
            }
            head.push_str(&line);
        }
        let mut body = vec![0; length];
        if stream.read_exact(&mut body).await.is_err() {
            return;
        }
        let body = String::from_utf8(body).expect("text");
        let answered = answer.lock().expect("no panic")(&body);
        requests.lock().expect("no panic").push((head, body));
        let Some((status, text)) = answered else {
            std::future::pending::<()>().await;
            return;
        };
        let length = match status {
            204 => String::new(),
            _ => format!("content-length: {}\r\n", text.len()),
        };
        let response = format!("HTTP/1.1 {status} X\r\n{length}content-type: application/json\r\n\r\n{text}");
        if stream.write_all(response.as_bytes()).await.is_err() {
            return;
        }
    }
}
