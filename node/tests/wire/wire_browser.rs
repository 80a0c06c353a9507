//! A page in a browser, subscribed with MQTT.js over WebSocket, when the node that it is connected to is killed: every
//! acknowledged message reaches it. [P1, P10]
//!
//!     test ── publishes ──▶ node 2          node 1 ──ws──▶ Chromium, page.html
//!      ▲                                   kill -9 ┘   └─ws──▶ node 2 or 3, by itself
//!      └───────────── POST /report: what it was told, and what it got ─────────────┘

use crate::support::client::Client;
use crate::support::cluster::Cluster;
use crate::support::codec::Version;
use crate::support::foreign::installed;
use crate::support::{START, eventually};
use serde_json::Value;
use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

#[tokio::test]
async fn a_page_whose_node_is_killed_gets_all_that_was_acknowledged() {
    let cluster = Cluster::start(3).await;
    let site = Site::serve().await;
    let ports: Vec<&str> = cluster
        .nodes
        .iter()
        .map(|node| node.ws.rsplit_once(':').expect("host:port").1)
        .collect();
    let dir = tempfile::Builder::new().prefix("lontra-wire-").tempdir();
    let dir = dir.expect("a directory");
    let url = format!("http://{}/?ports={}", site.address, ports.join(","));
    let mut browser = chromium(dir.path(), &url);
    let log = || std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();
    let told = |what: &'static str| eventually(what, START, || async { site.has("subscribed").then_some(()) });
    told("the page subscribed").await;
    assert_eq!(site.all("subscribed"), [1], "{}", log());
    assert_eq!(site.all("connected"), [ports[0].parse::<u64>().expect("a port")]);

    // Publishes until the page has been back for a while.
    let publisher = async {
        let mut client = Client::open(cluster.mqtt(1), Version::V5, "publisher").await;
        let mut pace = tokio::time::interval(Duration::from_millis(5));
        let mut acknowledged = Vec::new();
        let mut rest = MESSAGES_AFTER;
        for n in 0.. {
            pace.tick().await;
            if client.publish_code("page/n", n.to_string(), 1).await < 0x80 {
                acknowledged.push(n);
            }
            if site.all("connected").len() > 1 {
                rest -= 1;
            }
            if rest == 0 {
                break;
            }
        }
        acknowledged
    };
    let murder = async {
        eventually("the first messages in the page", START, || async {
            (site.messages().len() >= MESSAGES_BEFORE).then_some(())
        })
        .await;
        let killed = Instant::now();
        cluster.kill(1).await;
        eventually("the page at another node", START, || async {
            (site.all("connected").len() > 1).then_some(())
        })
        .await;
        killed.elapsed()
    };
    let (acknowledged, back) = tokio::join!(publisher, murder);

    eventually("every acknowledged message in the page", START, || async {
        let got = site.messages();
        acknowledged.iter().all(|n| got.contains(n)).then_some(())
    })
    .await;
    let present: Vec<Value> = site.values("session_present");
    assert_eq!(present[..2], [false, true], "the session came along");
    assert!(!site.has("failed"), "{:?}", site.values("failed"));
    // What is sent again may come twice; the first time, all come in order.
    let got = site.messages();
    let mut first = Vec::new();
    for n in &got {
        if !first.contains(n) {
            first.push(*n);
        }
    }
    assert!(first.is_sorted(), "{first:?}");
    cluster.assert_no_panic();
    println!(
        "{} messages acknowledged, all in the page ({} twice); it was back after {back:?}",
        acknowledged.len(),
        got.len() - first.len(),
    );
    // Its processes write to the directory until they are gone.
    browser.kill().await.expect("chromium ends");
}

/// The page and MQTT.js on loopback; keeps what the page reports.
struct Site {
    address: String,
    reports: Arc<Mutex<Vec<Value>>>,
}

impl Site {
    async fn serve() -> Site {
        let bundle = std::fs::read(installed("node_modules/mqtt/dist/mqtt.min.js")).expect("MQTT.js for browsers");
        let bundle: Arc<[u8]> = bundle.into();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let reports = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&reports);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (bundle, kept) = (Arc::clone(&bundle), Arc::clone(&kept));
                // A browser opens connections that it then does not use.
                tokio::spawn(async move { answer(stream, &bundle, &kept).await.ok() });
            }
        });
        Site { address, reports }
    }

    /// What the page reported under this key, in order.
    fn values(&self, key: &str) -> Vec<Value> {
        let reports = self.reports.lock().expect("no panic");
        reports.iter().filter_map(|report| report.get(key)).cloned().collect()
    }

    fn all(&self, key: &str) -> Vec<u64> {
        let number = |value: Value| value.as_u64().unwrap_or_else(|| panic!("{key}: {value}"));
        self.values(key).into_iter().map(number).collect()
    }

    fn has(&self, key: &str) -> bool {
        !self.values(key).is_empty()
    }

    fn messages(&self) -> Vec<u32> {
        let number = |value: Value| value.as_str().and_then(|text| text.parse().ok()).expect("a number");
        self.values("message").into_iter().map(number).collect()
    }
}

/// One request and its answer.
async fn answer(mut stream: TcpStream, bundle: &[u8], reports: &Mutex<Vec<Value>>) -> std::io::Result<()> {
    let mut request = Vec::new();
    let (head, start) = loop {
        if let Some(end) = request.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break (String::from_utf8_lossy(&request[..end]).to_lowercase(), end + 4);
        }
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length: usize = length.map_or(0, |value| value.trim().parse().expect("a length"));
    while request.len() < start + length {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let (status, kind, body): (_, _, &[u8]) = match head.split(' ').nth(1).unwrap_or_default() {
        "/mqtt.js" => ("200 OK", "text/javascript", bundle),
        "/report" => {
            let report = serde_json::from_slice(&request[start..]).expect("JSON");
            reports.lock().expect("no panic").push(report);
            ("204 No Content", "text/plain", b"")
        }
        path if path.starts_with("/?") => ("200 OK", "text/html", PAGE),
        _ => ("404 Not Found", "text/plain", b""),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).await?;
    stream.shutdown().await
}

/// Chromium without a window, on its own profile in `dir`; its processes end with it.
fn chromium(dir: &Path, url: &str) -> Child {
    let log = File::create(dir.join("log")).expect("a file");
    Command::new("chromium")
        .args([
            "--headless",
            // Its sandbox wants what containers and root do not have; the page is ours.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            // Nothing but loopback.
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            // A page in the background would be slowed down.
            "--disable-background-timer-throttling",
            "--disable-renderer-backgrounding",
            "--enable-logging=stderr",
            // Waits for a debugger that never comes; without it, it ends after the page has loaded.
            "--remote-debugging-port=0",
        ])
        .arg(format!("--user-data-dir={}", dir.join("profile").display()))
        .arg(url)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("chromium does not start ({error}): run ops/clients/install"))
}

const PAGE: &[u8] = include_bytes!("../../../ops/clients/page.html");
const MESSAGES_BEFORE: usize = 50;
const MESSAGES_AFTER: u32 = 100;
