//! A healthy pair on a node that is attacked: a publisher at a steady rate, a subscriber, and how long each message took.
//!
//!     a thread and a runtime of their own ─▶ PUBLISH every 5 ms ─▶ node ─▶ subscriber       the attackers' work is not theirs
//!
//! Latencies count from when a message was due, not from when it could be sent: a publisher that is held up does not make its
//! own numbers good.

use super::client::Client;
use super::codec::{Packet, Publish, Version};
use super::{SOON, eventually};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The pair, until it is dropped.
pub struct Steady {
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What a stretch of time was like for the pair and its node.
#[derive(Clone, Copy, Debug)]
pub struct Quality {
    pub messages: usize,
    pub p50: Duration,
    pub p99: Duration,
    pub max: Duration,
    /// How late a timer of the pair's own thread went off, half of the time and at the worst: what the machine is like, whatever the
    /// node does.
    pub late: Duration,
    pub late_max: Duration,
    /// The most that the node's process had in memory meanwhile.
    pub resident_max: u64,
}

#[derive(Default)]
struct Shared {
    sent: AtomicU64,
    latencies: Mutex<Vec<Duration>>,
    late: Mutex<Vec<Duration>>,
    resident_max: AtomicU64,
}

impl Steady {
    /// Both on the node at `address`, whose process is `pid`; returns once messages flow.
    pub async fn start(address: &str, pid: u32, tag: &str) -> Steady {
        let shared = Arc::new(Shared::default());
        let (stop, stopped) = oneshot::channel::<()>();
        let (of_thread, address, tag) = (shared.clone(), address.to_owned(), tag.to_owned());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                tokio::select! {
                    () = talk(&address, &tag, &of_thread) => {}
                    () = watch(pid, &of_thread) => {}
                    () = look_at_the_clock(&of_thread) => {}
                    _ = stopped => {}
                }
            });
        });
        let steady = Steady {
            shared,
            stop: Some(stop),
            thread: Some(thread),
        };
        eventually("messages flow", SOON, || async {
            (steady.received() > 10).then_some(())
        })
        .await;
        steady
    }

    fn received(&self) -> usize {
        self.shared.latencies.lock().expect("no panic").len()
    }

    /// What it is like while `work` is done. Every message that was sent meanwhile arrives.
    pub async fn during<T>(&self, work: impl Future<Output = T>) -> (T, Quality) {
        let from = self.received();
        self.shared.resident_max.store(0, Ordering::Relaxed);
        self.shared.late.lock().expect("no panic").clear();
        let done = work.await;
        let sent = self.shared.sent.load(Ordering::Relaxed);
        eventually("every message of the pair", SOON, || async {
            assert!(
                self.thread.as_ref().is_some_and(|thread| !thread.is_finished()),
                "the pair has failed, see above"
            );
            (self.received() as u64 >= sent).then_some(())
        })
        .await;
        let mut latencies = self.shared.latencies.lock().expect("no panic")[from..].to_vec();
        latencies.sort();
        let mut late = self.shared.late.lock().expect("no panic").clone();
        late.sort();
        let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
        let quality = Quality {
            messages: latencies.len(),
            p50: at(0.5),
            p99: at(0.99),
            max: at(1.0),
            late: late.get(late.len() / 2).copied().unwrap_or_default(),
            late_max: late.last().copied().unwrap_or_default(),
            resident_max: self.shared.resident_max.load(Ordering::Relaxed),
        };
        (done, quality)
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the pair has failed");
        }
    }
}

async fn talk(address: &str, tag: &str, shared: &Shared) {
    let topic = format!("steady/{tag}");
    let mut subscriber = Client::open(address, Version::V5, &format!("steady-s-{tag}")).await;
    subscriber.subscribe(&[(&topic, 1)]).await;
    let mut publisher = Client::open(address, Version::V5, &format!("steady-p-{tag}")).await;
    let began = Instant::now();
    let due = |n: u64| began + PERIOD * n as u32;
    let publishing = async {
        let mut n = 0;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(due(n).into()) => {
                    let publish = Publish { pid: publisher.next_pid(), ..Publish::new(&topic, n.to_string(), 1) };
                    publisher.send(&publish.encode(Version::V5)).await.expect("PUBLISH");
                    n += 1;
                    shared.sent.store(n, Ordering::Relaxed);
                }
                answer = publisher.packet() => match answer {
                    Ok(Packet::Puback { code: 0, .. }) => {}
                    other => panic!("{tag}: PUBACK expected, not {other:?}"),
                },
            }
        }
    };
    let receiving = async {
        for n in 0.. {
            assert_eq!(subscriber.message().await.text(), n.to_string(), "{tag}: in order");
            shared.latencies.lock().expect("no panic").push(due(n).elapsed());
        }
    };
    tokio::join!(publishing, receiving);
}

async fn watch(pid: u32, shared: &Shared) {
    loop {
        shared.resident_max.fetch_max(resident(pid), Ordering::Relaxed);
        tokio::time::sleep(LOOK).await;
    }
}

async fn look_at_the_clock(shared: &Shared) {
    loop {
        let due = Instant::now() + PERIOD;
        tokio::time::sleep_until(due.into()).await;
        shared.late.lock().expect("no panic").push(due.elapsed());
    }
}

/// Bytes of a process that are in memory.
pub fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}

const PERIOD: Duration = Duration::from_millis(5);
const LOOK: Duration = Duration::from_millis(20);
