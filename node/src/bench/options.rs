//! The command line of `lontra bench`.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::stamp::STAMP_BYTES;
use crate::cli::TlsArguments;
use crate::protocol::codec::{QoS, Version};

#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// Who sends to whom.
    pub scenario: Scenario,

    /// Brokers, as HOST:PORT; several with commas. Publishers and subscribers are spread round robin, the two ends of
    /// a pair on neighbours in this list.
    #[arg(
        short,
        long = "broker",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        default_value = "127.0.0.1:1883"
    )]
    pub brokers: Vec<String>,

    /// Pairs; subscribers of fan-out; publishers of fan-in.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub count: u32,

    /// QoS of publishers and subscriptions.
    #[arg(short, long, default_value = "0", value_parser = qos)]
    pub qos: QoS,

    /// Version of MQTT: 5 or 3.1.1.
    #[arg(short = 'V', long = "protocol-version", value_name = "VERSION", default_value = "5")]
    version: ProtocolVersion,

    /// Over WebSocket instead of TCP, at this path.
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = "/mqtt", require_equals = true)]
    pub websocket: Option<String>,

    #[command(flatten)]
    pub tls: TlsArguments,

    /// Bytes of a payload; the first hold publisher, sequence and time.
    #[arg(long, value_name = "BYTES", default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(STAMP_BYTES as i64..=1_000_000))]
    pub payload: u32,

    /// Subscribers (idle: all clients) have sessions that outlive their connection. They are ended
    /// afterwards.
    #[arg(long)]
    pub persistent: bool,

    /// Closed loop: messages that a publisher has under way. A message is under way until its PUBACK or PUBCOMP, at
    /// QoS 0 until all its subscribers have it.
    #[arg(short, long, value_name = "MESSAGES", default_value_t = 16,
          value_parser = clap::value_parser!(u16).range(1..), help_heading = "Load")]
    pub window: u16,

    /// Open loop: messages a second of all publishers together, whatever the broker does. Latency counts from the
    /// time at which a message was due, so that a stalled broker cannot hide what it kept from being sent.
    #[arg(
        short,
        long,
        value_name = "PER SECOND",
        conflicts_with = "window",
        value_parser = rate,
        help_heading = "Load"
    )]
    pub rate: Option<f64>,

    /// How long to measure.
    #[arg(short, long, default_value = "10", value_parser = seconds, help_heading = "Load")]
    pub seconds: Duration,

    /// How long to send before measuring.
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds, help_heading = "Load")]
    pub warmup: Duration,

    /// Send so many messages per publisher and measure from the first to the last arrival, instead of for a time.
    #[arg(short, long, value_name = "N", conflicts_with_all = ["seconds", "warmup"], help_heading = "Load",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub messages: Option<u64>,

    /// After sending: how long to wait, after the last arrival, for what is missing.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds, help_heading = "Load")]
    pub patience: Duration,

    /// Idle: numbers of connections at which to measure, ascending. Memory per connection is the slope between the
    /// first and the last.
    #[arg(
        long,
        value_name = "N,N",
        value_delimiter = ',',
        default_value = "100,1000",
        help_heading = "Idle connections"
    )]
    pub steps: Vec<u32>,

    /// Idle: how long to wait at each step before measuring.
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds, help_heading = "Idle connections")]
    pub settle: Duration,

    /// Idle: TCP connections that never send CONNECT. (Brokers close such connections after a while.)
    #[arg(long, conflicts_with_all = ["persistent", "websocket", "tls"], help_heading = "Idle connections")]
    pub raw: bool,

    /// Idle: connect from so many addresses 127.0.0.x, if the broker is on 127.0.0.1.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u8).range(1..=250),
          help_heading = "Idle connections")]
    pub sources: u8,

    /// Processes whose CPU seconds and resident memory to report, with commas: those of all brokers, for CPU per
    /// delivered message.
    #[arg(short, long = "pid", value_name = "PID", value_delimiter = ',')]
    pub pids: Vec<u32>,

    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// N publishers, each with one subscriber of its own.
    Pairs,
    /// One publisher, N subscribers of its topic.
    FanOut,
    /// N publishers with a topic each, one subscriber of all.
    FanIn,
    /// Connections that do nothing: what they cost.
    Idle,
}

impl Scenario {
    pub fn name(self) -> &'static str {
        match self {
            Scenario::Pairs => "pairs",
            Scenario::FanOut => "fan-out",
            Scenario::FanIn => "fan-in",
            Scenario::Idle => "idle",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ProtocolVersion {
    #[value(name = "3.1.1", aliases = ["311", "mqttv311"])]
    V3_1_1,
    #[value(name = "5", aliases = ["5.0", "mqttv5"])]
    V5,
}

impl Options {
    pub fn version(&self) -> Version {
        match self.version {
            ProtocolVersion::V3_1_1 => Version::V3_1_1,
            ProtocolVersion::V5 => Version::V5,
        }
    }

    pub fn transport(&self) -> &'static str {
        match (&self.websocket, self.tls.is_wanted()) {
            (None, false) => "TCP",
            (None, true) => "TLS",
            (Some(_), false) => "WebSocket",
            (Some(_), true) => "WebSocket over TLS",
        }
    }
}

fn qos(text: &str) -> Result<QoS, String> {
    let bits = text.parse().map_err(|_| "0, 1 or 2".to_owned())?;
    QoS::from_bits(bits).ok_or_else(|| "0, 1 or 2".to_owned())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "a number of seconds".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if duration <= SECONDS_MAX => Ok(duration),
        _ => Err(format!("between 0 and {} seconds", SECONDS_MAX.as_secs())),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.01..=1e7).contains(&rate) => Ok(rate),
        _ => Err("between 0.01 and 10000000 messages a second".to_owned()),
    }
}

/// A day.
const SECONDS_MAX: Duration = Duration::from_secs(86_400);

const EXAMPLES: &str = "\
Examples:
  lontra bench pairs -n 50 -q 1                      as fast as 50 windows of 16 allow, for 10 s
  lontra bench pairs -q 0 --rate 1000                latency at 1000 messages a second
  lontra bench pairs -q 1 --persistent -b 127.0.0.1:18800,127.0.0.1:18801,127.0.0.1:18802
  lontra bench fan-out -n 200 --pid $(pidof mosquitto)
  lontra bench pairs --websocket -b 127.0.0.1:8083   over WebSocket, at /mqtt
  lontra bench idle --cafile ca.pem -b 127.0.0.1:8883    over TLS; the certificate is for the broker's address
  lontra bench fan-in -n 100 -q 2 --messages 1000 --json
  lontra bench idle --steps 1000,19000 --pid 4711    memory per connection (raise ulimit -n on both sides)

Exit code: 0 if every message arrived once and in order; 3 if something was lost, came twice, out of order, was refused,
not answered, or a connection broke (the report says how much); 1 if there is no result; 2 if the command line was not
understood.";
