//! All clients of a run on one thread and one epoll.
//!
//!     Closed ─▶ Dialing ─▶ AwaitConnack ─┬─────────────────▶ Ready ─▶ Leaving ─▶ Closed
//!                  │                     └─▶ AwaitSuback ──▶   ▲
//!                  └── raw: no CONNECT ────────────────────────┘
//!
//! A turn waits once, handles what came, then lets publishers with room send; each client's bytes leave in one write.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU64};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::ClientConfig;

use super::link::Link;
use super::options::Options;
use super::publisher::{Answered, Publisher};
use super::subscriber::Subscriber;
use super::tally::Tally;
use super::{BenchError, EndOfClient};
use crate::protocol::codec::{
    self, AckKind, Connect, ConnectProperties, Direction, Disconnect, Limits, Packet, ReasonCode, Subscribe,
    SubscribeFilter, Version,
};

#[derive(Debug)]
pub enum Role {
    /// TCP and nothing else.
    Raw,
    Idle,
    Subscriber(Subscriber),
    Publisher(u32, Box<Publisher>),
}

#[derive(Debug)]
pub struct Client {
    pub broker: SocketAddr,
    pub source: Option<Ipv4Addr>,
    pub client_id: String,
    /// Its session outlives the connection.
    pub is_persistent: bool,
    pub role: Role,
    link: Option<Link>,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Closed,
    Dialing,
    AwaitConnack,
    AwaitSuback,
    Ready,
    Leaving,
}

pub struct Clients {
    epoll: OwnedFd,
    events: Vec<Event>,
    buffer: Vec<u8>,
    began: Instant,
    version: Version,
    /// Over WebSocket, there.
    path: Option<String>,
    tls: Option<Arc<ClientConfig>>,
    limits: Limits,
    all: Vec<Client>,
    /// By publisher, its place among all.
    publishers: Vec<usize>,
    is_sending: bool,
    pub tally: Tally,
    /// On their way to Ready.
    connecting: usize,
    /// Ready or leaving.
    connected: usize,
    /// Ended though they should not have.
    pub disconnected: u64,
    pub first_end: Option<(usize, EndOfClient)>,
}

impl Client {
    pub fn new(broker: SocketAddr, client_id: String, role: Role) -> Client {
        Client {
            broker,
            source: None,
            client_id,
            is_persistent: false,
            role,
            link: None,
            phase: Phase::Closed,
        }
    }

    fn is_raw(&self) -> bool {
        matches!(self.role, Role::Raw)
    }

    fn connect_packet(&self, version: Version) -> Connect {
        Connect {
            version,
            clean_start: !self.is_persistent,
            keep_alive_seconds: 0,
            client_id: self.client_id.clone(),
            will: None,
            user_name: None,
            password: None,
            properties: ConnectProperties {
                session_expiry_interval: (self.is_persistent && version.is_v5()).then_some(SESSION_EXPIRY_SECONDS),
                ..ConnectProperties::default()
            },
        }
    }

    fn subscribe_packet(&self) -> Option<Subscribe> {
        let Role::Subscriber(subscriber) = &self.role else {
            return None;
        };
        Some(Subscribe {
            packet_id: NonZeroU16::MIN,
            subscription_identifier: None,
            filters: vec![SubscribeFilter {
                filter: subscriber.filter.clone(),
                qos: subscriber.qos,
                no_local: false,
                retain_as_published: false,
                retain_handling: 0,
                valid: Ok(()),
            }],
            user_properties: Vec::new(),
        })
    }
}

impl Clients {
    /// # Errors
    /// The system has no more descriptors.
    pub fn new(options: &Options, run: u64, all: Vec<Client>) -> Result<Clients, BenchError> {
        // Default 50 µs: as much as a broker's latency. Without it, schedules are merely kept less exactly.
        let _ = rustix::thread::set_current_timer_slack(Some(NonZeroU64::MIN));
        let publishers: Vec<usize> = (0..all.len())
            .filter(|at| matches!(all[*at].role, Role::Publisher(..)))
            .collect();
        Ok(Clients {
            epoll: epoll::create(CreateFlags::CLOEXEC).map_err(|error| BenchError::Poll(error.into()))?,
            events: Vec::with_capacity(EVENTS_PER_TURN),
            buffer: Vec::new(),
            began: Instant::now(),
            version: options.version(),
            path: options.websocket.clone(),
            tls: match options.tls.is_wanted() {
                true => Some(options.tls.options(options.websocket.is_some()).config()?),
                false => None,
            },
            limits: Limits {
                packet_bytes: usize::MAX,
                control_packet_bytes: usize::MAX,
                ..Limits::default()
            },
            tally: Tally::new(run, publishers.len()),
            publishers,
            is_sending: false,
            all,
            connecting: 0,
            connected: 0,
            disconnected: 0,
            first_end: None,
        })
    }

    /// Nanoseconds since the run began.
    pub fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    pub fn publishers(&self) -> impl Iterator<Item = &Publisher> {
        self.publishers.iter().filter_map(|at| match &self.all[*at].role {
            Role::Publisher(_, publisher) => Some(&**publisher),
            _ => None,
        })
    }

    fn publishers_mut(&mut self) -> impl Iterator<Item = &mut Publisher> {
        self.all.iter_mut().filter_map(|client| match &mut client.role {
            Role::Publisher(_, publisher) => Some(&mut **publisher),
            _ => None,
        })
    }

    /// Connects some of them, a bounded number at a time, and waits until they are ready.
    ///
    /// # Errors
    /// One cannot be.
    pub fn connect(&mut self, which: Range<usize>) -> Result<(), BenchError> {
        let clients = which.len();
        let mut next = which.start;
        let (mut left, mut progress) = (clients, Instant::now());
        loop {
            while self.connecting < CONNECTING_MAX && next < which.end {
                self.dial(next);
                next += 1;
            }
            if let Some((client, source)) = self.first_end.take() {
                let broker = self.all[client].broker;
                return Err(BenchError::Connect { client, broker, source });
            }
            let waiting = self.connecting + (which.end - next);
            if waiting == 0 {
                return Ok(());
            }
            if waiting < left {
                (left, progress) = (waiting, Instant::now());
            } else if progress.elapsed() > CONNECT_PATIENCE {
                let seconds = CONNECT_PATIENCE.as_secs();
                return Err(BenchError::Stuck {
                    waiting,
                    clients,
                    seconds,
                });
            }
            self.turn(TICK)?;
            if self.all[which.start].is_raw() {
                // The kernel accepts for the broker, and drops what the broker's queue does not hold.
                std::thread::sleep(ACCEPT_PAUSE);
            }
        }
    }

    /// Ends every connection, and with it every session.
    ///
    /// # Errors
    /// Sessions of MQTT 3.1.1, which need a further connection to be ended, are left behind.
    pub fn close(&mut self) -> Result<(), BenchError> {
        self.is_sending = false;
        self.leave()?;
        if !self.version.is_v5() && self.all.iter().any(|client| client.is_persistent) {
            // Only a connection with Clean Session ends one.
            self.all.retain(|client| client.is_persistent);
            self.publishers.clear();
            self.first_end = None;
            for client in &mut self.all {
                client.is_persistent = false;
                client.role = Role::Idle;
            }
            self.connect(0..self.all.len())?;
            self.leave()?;
        }
        Ok(())
    }

    /// Waits for at most `timeout`, handles what came, sends what may be sent.
    ///
    /// # Errors
    /// epoll fails.
    pub fn turn(&mut self, timeout: Duration) -> Result<(), BenchError> {
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        let waited = self.wait(timeout).and_then(|()| {
            let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
            epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&at_once))
        });
        match waited {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(BenchError::Poll(error.into())),
        }
        for event in &events {
            self.happened(event.data.u64() as usize, event.flags);
        }
        self.events = events;
        self.send();
        Ok(())
    }

    /// Publishers begin to send, their schedules now.
    pub fn start_sending(&mut self) {
        let now = self.now();
        self.publishers_mut().for_each(|publisher| publisher.start(now));
        self.is_sending = true;
        self.wake_all();
        self.send();
    }

    pub fn stop_sending(&mut self) {
        self.publishers_mut().for_each(Publisher::stop);
    }

    /// What has not arrived is not waited for any more.
    pub fn write_off(&mut self) {
        self.publishers_mut().for_each(Publisher::write_off);
        self.wake_all();
        self.send();
    }

    fn wake_all(&mut self) {
        (0..self.publishers.len()).for_each(|index| self.tally.wake(index as u32));
    }

    /// Lets woken publishers fill their windows.
    pub fn send(&mut self) {
        if !self.is_sending {
            return;
        }
        while let Some(index) = self.tally.next_woken() {
            let at = self.publishers[index as usize];
            let now = self.now();
            let client = &mut self.all[at];
            let (Role::Publisher(_, publisher), Some(link), Phase::Ready) =
                (&mut client.role, &mut client.link, client.phase)
            else {
                continue;
            };
            publisher.arrived = self.tally.arrived_of[index as usize];
            publisher.fill(now, &mut link.out, |late_by| self.tally.sent(late_by));
            self.flush(at);
        }
    }

    /// Until there are events. By ppoll: epoll's own timeout counts milliseconds, too coarse for schedules.
    fn wait(&self, timeout: Duration) -> rustix::io::Result<()> {
        let timeout = Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        let mut epoll = [PollFd::new(&self.epoll, PollFlags::IN)];
        poll(&mut epoll, Some(&timeout)).map(|_| ())
    }

    fn dial(&mut self, at: usize) {
        let client = &mut self.all[at];
        client.phase = Phase::Dialing;
        self.connecting += 1;
        let dialled =
            Link::dial(client.broker, client.source, self.path.as_deref(), self.tls.as_ref()).and_then(|link| {
                epoll::add(
                    &self.epoll,
                    &link,
                    EventData::new_u64(at as u64),
                    READ | EventFlags::OUT,
                )?;
                Ok(link)
            });
        match dialled {
            Ok(link) => client.link = Some(link),
            Err(error) => self.ended(at, error.into()),
        }
    }

    fn happened(&mut self, at: usize, flags: EventFlags) {
        let phase = self.all[at].phase;
        let handled = match phase {
            Phase::Closed => return,
            Phase::Dialing => self.dialled(at),
            _ if flags.intersects(READ | EventFlags::ERR | EventFlags::HUP) => self.readable(at),
            _ => Ok(()),
        };
        match handled {
            Ok(()) => self.flush(at),
            Err(end) => self.ended(at, end),
        }
    }

    fn dialled(&mut self, at: usize) -> Result<(), EndOfClient> {
        let client = &mut self.all[at];
        let Some(link) = &mut client.link else { return Ok(()) };
        link.error()?;
        if client.is_raw() {
            self.ready(at);
            return Ok(());
        }
        client.phase = Phase::AwaitConnack;
        let connect = client.connect_packet(self.version);
        let link = client.link.as_mut().expect("it was there");
        codec::encode_connect(&connect, &mut link.out)?;
        Ok(())
    }

    fn ready(&mut self, at: usize) {
        self.all[at].phase = Phase::Ready;
        self.connecting -= 1;
        self.connected += 1;
    }

    fn readable(&mut self, at: usize) -> Result<(), EndOfClient> {
        let Some(link) = &mut self.all[at].link else {
            return Ok(());
        };
        let Some(bytes) = link.read(&mut self.buffer)? else {
            return Ok(());
        };
        let now = self.began.elapsed().as_nanos() as u64;
        let version = Some(self.version);
        let mut start = 0;
        while let Some(length) = codec::frame_length(&bytes[start..], &self.limits, version)? {
            let frame = bytes.slice(start..start + length);
            start += length;
            let packet = codec::decode(frame, version, Direction::ServerToClient, &self.limits)?;
            self.packet(at, &packet, now)?;
        }
        if let Some(link) = &mut self.all[at].link
            && start < bytes.len()
        {
            link.keep(&bytes[start..]);
        }
        Ok(())
    }

    fn packet(&mut self, at: usize, packet: &Packet, now: u64) -> Result<(), EndOfClient> {
        match self.all[at].phase {
            Phase::AwaitConnack => self.connack(at, packet),
            Phase::AwaitSuback => match packet {
                Packet::SubAck(suback) => match suback.reasons.first() {
                    Some(reason) if reason.0 < 0x80 => {
                        self.ready(at);
                        Ok(())
                    }
                    reason => Err(EndOfClient::SubscriptionRefused(
                        reason.copied().unwrap_or(ReasonCode::UNSPECIFIED_ERROR),
                    )),
                },
                // A kept session may have messages waiting.
                packet => self.load(at, packet, now),
            },
            Phase::Ready => self.load(at, packet, now),
            Phase::Leaving | Phase::Closed | Phase::Dialing => Ok(()),
        }
    }

    fn connack(&mut self, at: usize, packet: &Packet) -> Result<(), EndOfClient> {
        let Packet::ConnAck(connack) = packet else {
            return Err(EndOfClient::Unexpected("a packet before CONNACK"));
        };
        if connack.reason != ReasonCode::SUCCESS {
            return Err(EndOfClient::Refused(connack.reason));
        }
        let client = &mut self.all[at];
        if let Role::Publisher(_, publisher) = &mut client.role {
            publisher.connected(connack.properties.receive_maximum.unwrap_or(u16::MAX));
        }
        let (Some(subscribe), Some(link)) = (client.subscribe_packet(), &mut client.link) else {
            self.ready(at);
            return Ok(());
        };
        client.phase = Phase::AwaitSuback;
        codec::encode_subscribe(self.version, &subscribe, &mut link.out)?;
        Ok(())
    }

    fn load(&mut self, at: usize, packet: &Packet, now: u64) -> Result<(), EndOfClient> {
        if let Packet::Disconnect(disconnect) = packet {
            return Err(EndOfClient::Disconnected(disconnect.reason));
        }
        let client = &mut self.all[at];
        let Some(link) = &mut client.link else { return Ok(()) };
        match &mut client.role {
            Role::Subscriber(subscriber) => subscriber.handle(packet, &mut self.tally, now, &mut link.out),
            Role::Publisher(index, publisher) => {
                let (kind, ack) = match packet {
                    Packet::PubAck(ack) => (AckKind::PubAck, ack),
                    Packet::PubRec(ack) => (AckKind::PubRec, ack),
                    Packet::PubComp(ack) => (AckKind::PubComp, ack),
                    _ => return Err(EndOfClient::Unexpected("no acknowledgement at a publisher")),
                };
                if let Answered::Whole(after) = publisher.answer(kind, ack, now, &mut link.out)? {
                    self.tally.acknowledged(after);
                    self.tally.wake(*index);
                }
                Ok(())
            }
            Role::Idle | Role::Raw => Err(EndOfClient::Unexpected("a packet at an idle client")),
        }
    }

    fn flush(&mut self, at: usize) {
        let client = &mut self.all[at];
        let Some(link) = &mut client.link else { return };
        if client.phase == Phase::Dialing {
            return;
        }
        let flushed = link.flush().and_then(|()| {
            let waits_to_write = link.is_blocked();
            let waited = std::mem::replace(&mut link.waits_to_write, waits_to_write);
            if waits_to_write != waited {
                let interest = if waits_to_write { READ | EventFlags::OUT } else { READ };
                epoll::modify(&self.epoll, &*link, EventData::new_u64(at as u64), interest)?;
            }
            Ok(waited && !waits_to_write)
        });
        match (flushed, &client.role) {
            (Err(error), _) => self.ended(at, error.into()),
            (Ok(true), Role::Publisher(index, _)) => self.tally.wake(*index),
            (Ok(_), _) => {}
        }
    }

    fn ended(&mut self, at: usize, end: EndOfClient) {
        let client = &mut self.all[at];
        client.link = None;
        match std::mem::replace(&mut client.phase, Phase::Closed) {
            Phase::Leaving => self.connected -= 1,
            Phase::Closed => {}
            phase => {
                if phase == Phase::Ready {
                    self.connected -= 1;
                } else {
                    self.connecting -= 1;
                }
                self.disconnected += 1;
                self.first_end.get_or_insert((at, end));
            }
        }
    }

    fn leave(&mut self) -> Result<(), BenchError> {
        for at in 0..self.all.len() {
            let client = &mut self.all[at];
            let (Some(link), Phase::Ready) = (&mut client.link, client.phase) else {
                continue;
            };
            client.phase = Phase::Leaving;
            if !matches!(client.role, Role::Raw) {
                let disconnect = Disconnect {
                    reason: ReasonCode::SUCCESS,
                    session_expiry_interval: (client.is_persistent && self.version.is_v5()).then_some(0),
                    reason_string: None,
                    server_reference: None,
                    user_properties: Vec::new(),
                };
                codec::encode_disconnect(self.version, &disconnect, &mut link.out)?;
            }
            self.flush(at);
            if let Some(link) = self.all[at].link.as_ref().filter(|link| !link.is_blocked()) {
                link.shut();
            }
        }
        let began = Instant::now();
        while self.connected > 0 && began.elapsed() < LEAVE_PATIENCE {
            self.turn(TICK)?;
        }
        for at in 0..self.all.len() {
            self.ended(at, io::Error::from(io::ErrorKind::TimedOut).into());
        }
        Ok(())
    }
}

/// An address of this machine for the `index`-th client, so that one address need not have ports for all.
pub fn source(broker: SocketAddr, sources: u8, index: usize) -> Option<Ipv4Addr> {
    let last = 1 + (index % usize::from(sources)) as u8;
    match broker.ip() {
        IpAddr::V4(Ipv4Addr::LOCALHOST) => Some(Ipv4Addr::new(127, 0, 0, last)),
        _ => None,
    }
}

const READ: EventFlags = EventFlags::IN.union(EventFlags::RDHUP);

const EVENTS_PER_TURN: usize = 512;

/// Below the accept queues of common brokers.
const CONNECTING_MAX: usize = 64;
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);
const CONNECT_PATIENCE: Duration = Duration::from_secs(20);
/// A closing broker may have much to clean up; nothing depends on its end.
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(100);

/// If a run is killed, what it leaves behind ends by itself.
const SESSION_EXPIRY_SECONDS: u32 = 600;
