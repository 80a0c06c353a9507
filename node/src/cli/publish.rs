//! `lontra pub`: publishes messages and ends when each has been acknowledged.
//!
//!     -m -n -f -s, --repeat ─┐
//!     -l: lines of stdin ────┴─ feed ──▶ client, as long as it has room     one task: acknowledgements make room
//!
//! Ends with 0 only if every message was acknowledged (QoS 0: written) and none refused.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use clap::{ArgGroup, Args};
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::mqtt_options::{MqttError, MqttOptions, qos, run, topic_name};
use crate::client::{Client, Event};
use crate::protocol::codec::{PropertiesOut, PublishFields, QoS, ReasonCode, Will};

#[derive(Args)]
#[command(
    disable_help_flag = true,
    arg_required_else_help = true,
    after_help = AFTER_HELP,
    group = ArgGroup::new("payload").required(true).args(["message", "null_message", "file", "stdin_file", "stdin_line"])
)]
pub struct Options {
    /// Topic to publish to.
    #[arg(short, long, value_parser = topic_name, help_heading = "Message")]
    topic: String,

    /// Payload.
    #[arg(
        short,
        long,
        value_name = "PAYLOAD",
        allow_hyphen_values = true,
        help_heading = "Message"
    )]
    message: Option<String>,

    /// An empty payload; with -r it removes the retained message.
    #[arg(short, long, help_heading = "Message")]
    null_message: bool,

    /// The content of a file as payload.
    #[arg(short, long, value_name = "FILE", help_heading = "Message")]
    file: Option<PathBuf>,

    /// All of standard input as one payload.
    #[arg(short, long, help_heading = "Message")]
    stdin_file: bool,

    /// Each line of standard input as a message.
    #[arg(short = 'l', long, help_heading = "Message")]
    stdin_line: bool,

    /// QoS: 0 at most once, 1 at least once, 2 exactly once.
    #[arg(short, long, default_value = "0", value_parser = qos, help_heading = "Message")]
    qos: QoS,

    /// The broker keeps the message for later subscribers.
    #[arg(short, long, help_heading = "Message")]
    retain: bool,

    /// Publish so many times.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u64).range(1..),
        conflicts_with = "stdin_line",
        help_heading = "Message"
    )]
    repeat: u64,

    /// Seconds between repeats, 0.5 for half a second.
    #[arg(
        long,
        value_name = "SECONDS",
        value_parser = seconds,
        requires = "repeat",
        conflicts_with = "stdin_line",
        help_heading = "Message"
    )]
    repeat_delay: Option<Duration>,

    /// How many messages above QoS 0 may be unacknowledged at a time, within what the broker allows.
    #[arg(
        short = 'M',
        long,
        value_name = "N",
        default_value_t = IN_FLIGHT_MAX,
        value_parser = clap::value_parser!(u16).range(1..),
        help_heading = "Message"
    )]
    max_inflight: u16,

    #[command(flatten)]
    mqtt: MqttOptions,
}

/// Publishes what the options say.
///
/// # Errors
/// Not everything was acknowledged.
pub fn publish(options: &Options) -> Result<ExitCode, MqttError> {
    run(publish_all(options)).map(|()| ExitCode::SUCCESS)
}

async fn publish_all(options: &Options) -> Result<(), MqttError> {
    let mut feed = Feed::of(options)?;
    let mut client = options.mqtt.open(options.max_inflight, None).await?;
    let done = publish_feed(options, &mut feed, &mut client).await;
    if !matches!(done, Err(MqttError::Client(_))) {
        // A clean end, also of a run that failed: no will.
        options.mqtt.close(client).await?;
    }
    done?.result()
}

async fn publish_feed(options: &Options, feed: &mut Feed, client: &mut Client) -> Result<Tally, MqttError> {
    let properties = forwarded(options)?;
    let mut tally = Tally::default();
    let mut is_fed = false;
    while !(is_fed && client.is_idle()) {
        tokio::select! {
            turn = client.turn() => {
                if let Some(event) = turn? {
                    tally.note(options, event);
                }
            }
            payload = feed.next(), if !is_fed && client.has_room() => {
                let mut next = payload?;
                is_fed = next.is_none();
                while let Some(payload) = next {
                    send(options, &properties, &payload, client)?;
                    tally.sent += 1;
                    next = if client.has_room() { feed.at_hand() } else { None };
                }
            }
        }
    }
    Ok(tally)
}

fn send(options: &Options, properties: &[u8], payload: &Bytes, client: &mut Client) -> Result<(), MqttError> {
    let packet_id = client.publish(&PublishFields {
        version: options.mqtt.version(),
        qos: options.qos,
        retain: options.retain,
        topic: &options.topic,
        properties: PropertiesOut {
            forwarded: properties,
            topic_alias: options.mqtt.properties.topic_alias,
            ..PropertiesOut::default()
        },
        payload,
    })?;
    options.mqtt.tell(|| {
        let id = packet_id.map_or_else(String::new, |id| format!(", packet identifier {id}"));
        format!(
            "publish to {:?}, QoS {}, {} bytes{id}",
            options.topic,
            options.qos as u8,
            payload.len()
        )
    });
    Ok(())
}

/// The properties of the message as bytes of the PUBLISH.
fn forwarded(options: &Options) -> Result<Vec<u8>, MqttError> {
    let message = Will {
        topic: options.topic.clone(),
        payload: Bytes::new(),
        qos: options.qos,
        retain: options.retain,
        properties: options.mqtt.properties.publish.clone(),
    };
    Ok(message.publish_properties()?)
}

/// What was sent, and what the broker would not have.
#[derive(Default)]
struct Tally {
    sent: u64,
    refused: u64,
    last: String,
}

impl Tally {
    fn note(&mut self, options: &Options, event: Event) {
        let Event::Published {
            packet_id,
            reason,
            reason_string,
        } = event
        else {
            // Messages for an older subscription of this client id: another process is to get them.
            return;
        };
        let why = reason_string.map_or_else(String::new, |why| format!(" ({why})"));
        options
            .mqtt
            .tell(|| format!("acknowledged: packet identifier {packet_id}, {reason}{why}"));
        // 0x92 answers a PUBREL after a repeat: the message is there.
        if reason.is_error() && reason != ReasonCode::PACKET_IDENTIFIER_NOT_FOUND {
            self.refused += 1;
            self.last = format!("{reason}{why}");
        }
    }

    fn result(self) -> Result<(), MqttError> {
        match self.refused {
            0 => Ok(()),
            refused => Err(MqttError::PublishRefused {
                refused,
                all: self.sent,
                last: self.last,
            }),
        }
    }
}

/// Where payloads come from.
enum Feed {
    Repeat {
        payload: Bytes,
        left: u64,
        delay: Option<Interval>,
    },
    Lines {
        batches: mpsc::Receiver<io::Result<VecDeque<Bytes>>>,
        read: VecDeque<Bytes>,
    },
}

impl Feed {
    fn of(options: &Options) -> Result<Feed, MqttError> {
        if options.stdin_line {
            return Ok(Feed::Lines {
                batches: lines()?,
                read: VecDeque::new(),
            });
        }
        let payload = if let Some(message) = &options.message {
            message.clone().into_bytes()
        } else if let Some(file) = &options.file {
            std::fs::read(file).map_err(|source| MqttError::Read {
                what: file.display().to_string(),
                source,
            })?
        } else if options.stdin_file {
            let mut payload = Vec::new();
            io::stdin().read_to_end(&mut payload).map_err(stdin_broke)?;
            payload
        } else {
            Vec::new()
        };
        let delay = options.repeat_delay.filter(|delay| !delay.is_zero());
        Ok(Feed::Repeat {
            payload: payload.into(),
            left: options.repeat,
            delay: delay.map(|delay| {
                let mut delay = interval(delay);
                delay.set_missed_tick_behavior(MissedTickBehavior::Delay);
                delay
            }),
        })
    }

    /// The next payload, or `None` after the last.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    async fn next(&mut self) -> Result<Option<Bytes>, MqttError> {
        match self {
            Feed::Lines { batches, read } if read.is_empty() => {
                *read = batches
                    .recv()
                    .await
                    .transpose()
                    .map_err(stdin_broke)?
                    .unwrap_or_default();
            }
            Feed::Repeat { left: 0, .. } | Feed::Lines { .. } => {}
            Feed::Repeat {
                payload,
                left,
                delay: Some(delay),
            } => {
                delay.tick().await;
                *left -= 1;
                return Ok(Some(payload.clone()));
            }
            Feed::Repeat { delay: None, .. } => {}
        }
        Ok(self.at_hand())
    }

    /// The next payload, if that needs no waiting.
    fn at_hand(&mut self) -> Option<Bytes> {
        match self {
            Feed::Lines { read, .. } => read.pop_front(),
            Feed::Repeat { left: 0, .. } | Feed::Repeat { delay: Some(_), .. } => None,
            Feed::Repeat { payload, left, .. } => {
                *left -= 1;
                Some(payload.clone())
            }
        }
    }
}

/// Standard input can only be read by a thread that waits. It stays behind when the connection ends first, and ends with
/// the process.
fn lines() -> Result<mpsc::Receiver<io::Result<VecDeque<Bytes>>>, MqttError> {
    let (sender, receiver) = mpsc::channel(BATCHES_AHEAD);
    let read = move || {
        let mut input = BufReader::with_capacity(READ_BYTES, io::stdin());
        loop {
            let batch = read_lines(&mut input);
            let is_end = batch.as_ref().map_or(true, VecDeque::is_empty);
            if sender.blocking_send(batch).is_err() || is_end {
                return;
            }
        }
    };
    let spawned = thread::Builder::new().name("lontra-stdin".to_owned()).spawn(read);
    spawned.map(|_| receiver).map_err(MqttError::Runtime)
}

/// At least one line, and all that came with it; none at the end.
fn read_lines<R: Read>(input: &mut BufReader<R>) -> io::Result<VecDeque<Bytes>> {
    let mut lines = VecDeque::new();
    loop {
        let mut line = Vec::new();
        if input.read_until(b'\n', &mut line)? == 0 {
            return Ok(lines);
        }
        line.pop_if(|last| *last == b'\n');
        lines.push_back(line.into());
        if !input.buffer().contains(&b'\n') {
            return Ok(lines);
        }
    }
}

fn stdin_broke(source: io::Error) -> MqttError {
    MqttError::Read {
        what: "standard input".to_owned(),
        source,
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// What is read at a time.
const READ_BYTES: usize = 64 * 1024;
/// One is being sent, one waits, one is being read.
const BATCHES_AHEAD: usize = 1;
/// Hides a round trip of 2 ms at 50,000 messages a second.
const IN_FLIGHT_MAX: u16 = 100;

const AFTER_HELP: &str = "\
Examples:
  lontra pub -t greeting -m hello                              QoS 0 to localhost:1883
  lontra pub -h 10.0.0.7 -p 1884 -t greeting -m hello -q 1     ends when the cluster has stored it
  lontra pub -t config/lamp -r -f lamp.json                    retained, from a file
  lontra pub -t config/lamp -r -n                              removes the retained message
  journalctl -f | lontra pub -t log -l -q 1                    one message per line
  lontra pub -t t -m x -D publish message-expiry-interval 60 -D publish user-property colour red

Exit code: 0 every message was acknowledged (QoS 0: sent), 2 the command line was not understood, the code of CONNACK if
the broker refused the connection, else 1.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_in_batches_and_keep_what_they_are() {
        let check = |text: &str, capacity, expected: &[&[&str]]| {
            let mut input = BufReader::with_capacity(capacity, text.as_bytes());
            for batch in expected {
                let lines = read_lines(&mut input).expect("readable");
                assert_eq!(lines, *batch, "{text:?}");
            }
            assert!(read_lines(&mut input).expect("readable").is_empty(), "{text:?}");
        };
        check("", 64, &[]);
        check("a\nb\n", 64, &[&["a", "b"]]);
        check("a\n\nb", 64, &[&["a", ""], &["b"]]);
        check("one\ntwo\nthree\n", 4, &[&["one"], &["two"], &["three"]]);
        check("\r\n", 64, &[&["\r"]]);
    }
}
