//! `lontra sub`: subscribes and prints what comes.
//!
//!     client ──Event::Message──▶ filters (-R -T --retained-only) ──▶ print, flush ──▶ answer (PUBACK, PUBREC)
//!
//! A message is acknowledged when it has been printed: what a broken pipe or -C leaves is still there for the next run
//! of a kept session (-c).

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Args;
use lontra_storage::topic::matches;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep_until, timeout};

use super::format::{Format, print_plain};
use super::mqtt_options::{MqttError, MqttOptions, qos, run, topic_filter};
use crate::client::{Client, Event};
use crate::protocol::codec::{PropertiesOut, Publish, PublishFields, QoS, SubAck, SubscribeFilter};

#[derive(Args)]
#[command(
    disable_help_flag = true,
    arg_required_else_help = true,
    after_help = AFTER_HELP
)]
pub struct Options {
    /// Topic filter to subscribe to; may come several times. `$share/NAME/FILTER` shares the messages.
    #[arg(
        short,
        long = "topic",
        value_name = "FILTER",
        value_parser = topic_filter,
        required_unless_present = "unsubscribe",
        help_heading = "Subscription"
    )]
    topics: Vec<String>,

    /// Highest QoS at which to get messages.
    #[arg(short, long, default_value = "0", value_parser = qos, help_heading = "Subscription")]
    qos: QoS,

    /// Unsubscribe from this filter first; may come several times. For sessions that were kept.
    #[arg(short = 'U', long, value_name = "FILTER", value_parser = topic_filter, help_heading = "Subscription")]
    unsubscribe: Vec<String>,

    /// Live messages keep the retain flag that they were published with. MQTT 5.
    #[arg(long, help_heading = "Subscription")]
    retain_as_published: bool,

    /// Do not print what matches this filter; may come several times.
    #[arg(short = 'T', long, value_name = "FILTER", value_parser = topic_filter, help_heading = "Which messages")]
    filter_out: Vec<String>,

    /// Do not print stale messages: those with the retain flag.
    #[arg(
        short = 'R',
        long = "no-retain",
        conflicts_with = "retained_only",
        help_heading = "Which messages"
    )]
    no_retain: bool,

    /// Print messages with the retain flag only, and end at the first without.
    #[arg(long, help_heading = "Which messages")]
    retained_only: bool,

    /// Remove the retained messages that come (except those of -T) from the broker.
    #[arg(long, help_heading = "Which messages")]
    remove_retained: bool,

    /// End after so many messages.
    #[arg(
        short = 'C',
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u64).range(1..),
        help_heading = "When to end"
    )]
    count: Option<u64>,

    /// End after so many seconds, with exit code 27.
    #[arg(
        short = 'W',
        long,
        value_name = "SECONDS",
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "When to end"
    )]
    timeout: Option<u32>,

    /// End when the broker has acknowledged all subscriptions; with -c, to have messages wait.
    #[arg(short = 'E', long, help_heading = "When to end")]
    exit_subscribed: bool,

    /// Print topic and payload.
    #[arg(short, long, conflicts_with = "format", help_heading = "Output")]
    verbose: bool,

    /// Print each message in this format; see --help.
    #[arg(
        short = 'F',
        long,
        value_parser = Format::parse,
        allow_hyphen_values = true,
        help_heading = "Output",
        long_help = FORMAT_HELP
    )]
    format: Option<Format>,

    /// No end of line after a message.
    #[arg(short = 'N', long = "no-eol", help_heading = "Output")]
    no_end_of_line: bool,

    #[command(flatten)]
    mqtt: MqttOptions,
}

/// Subscribes and prints until the options, a signal or the broker end it.
///
/// # Errors
/// No connection, a refused subscription, or standard output is gone.
pub fn subscribe(options: &Options) -> Result<ExitCode, MqttError> {
    run(subscribe_until_done(options))
}

/// Why printing ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Done,
    TimedOut,
}

async fn subscribe_until_done(options: &Options) -> Result<ExitCode, MqttError> {
    let mut stop = Stop::of(options)?;
    let opened = tokio::select! {
        opened = options.mqtt.open(IN_FLIGHT_MAX, Some(RECEIVE_MAXIMUM)) => Ok(opened?),
        end = stop.reached() => Err(end),
    };
    let end = match opened {
        Err(end) => end,
        Ok(mut client) => {
            let mut run = Run::new(options);
            let end = tokio::select! {
                done = run.receive(&mut client) => done.map(|()| End::Done),
                end = stop.reached() => Ok(end),
            };
            if matches!(end, Err(MqttError::Client(_))) {
                return end.map(|_| ExitCode::FAILURE);
            }
            // A clean end, also of a run that failed: no will.
            finish(&mut client).await?;
            options.mqtt.close(client).await?;
            end?
        }
    };
    Ok(match end {
        End::Done => ExitCode::SUCCESS,
        End::TimedOut => {
            eprintln!("Timed out");
            ExitCode::from(TIMED_OUT)
        }
    })
}

/// Waits a little until what was begun is complete: acknowledgements written, QoS 2 messages released. Messages that come
/// meanwhile are not acknowledged: the broker keeps them if it keeps the session.
async fn finish(client: &mut Client) -> Result<(), MqttError> {
    let settled = async {
        while !client.is_settled() {
            client.turn().await?;
        }
        Ok(())
    };
    // Later the session can still tell what is complete.
    timeout(FINISH_PATIENCE, settled).await.unwrap_or(Ok(()))
}

/// What was received so far.
struct Run<'a> {
    options: &'a Options,
    printed: u64,
    awaited: usize,
    line: Vec<u8>,
}

impl<'a> Run<'a> {
    fn new(options: &'a Options) -> Self {
        Run {
            options,
            printed: 0,
            awaited: 0,
            line: Vec::new(),
        }
    }

    async fn receive(&mut self, client: &mut Client) -> Result<(), MqttError> {
        self.ask(client)?;
        loop {
            match client.turn().await? {
                Some(Event::Message(message)) => {
                    let more = match self.take(&message, client) {
                        // `lontra sub | head -1`: the reader has what it wanted. This message it has not.
                        Err(MqttError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                        more => more?,
                    };
                    client.answer(&message);
                    if !more {
                        return Ok(());
                    }
                }
                Some(Event::Subscribed(suback)) => {
                    self.subscribed(&suback)?;
                    self.awaited -= 1;
                }
                Some(Event::Unsubscribed(_)) => {
                    self.options.mqtt.tell(|| "unsubscribed".to_owned());
                    self.awaited -= 1;
                }
                Some(Event::Published { reason, .. }) if reason.is_error() => {
                    eprintln!("lontra: a retained message was not removed: {reason}");
                }
                Some(Event::Connected(_) | Event::Published { .. }) | None => {}
            }
            if self.awaited == 0 && (self.options.exit_subscribed || self.options.topics.is_empty()) {
                return Ok(());
            }
        }
    }

    fn ask(&mut self, client: &mut Client) -> Result<(), MqttError> {
        let options = self.options;
        let properties = &options.mqtt.properties;
        if !options.unsubscribe.is_empty() {
            client.unsubscribe(options.unsubscribe.clone(), properties.unsubscribe.clone())?;
            self.awaited += 1;
        }
        if !options.topics.is_empty() {
            let filters = options.topics.iter().map(|filter| SubscribeFilter {
                filter: filter.clone(),
                qos: options.qos,
                no_local: false,
                retain_as_published: options.retain_as_published,
                retain_handling: 0,
                valid: Ok(()),
            });
            let user_properties = properties.subscribe.clone();
            client.subscribe(filters.collect(), properties.subscription_identifier, user_properties)?;
            self.awaited += 1;
        }
        Ok(())
    }

    /// Some subscriptions are better than none; without any there is nothing to wait for.
    fn subscribed(&self, suback: &SubAck) -> Result<(), MqttError> {
        let mut refused = Vec::new();
        for (filter, reason) in self.options.topics.iter().zip(&suback.reasons) {
            if reason.is_error() {
                refused.push(format!("{filter}: {reason}"));
            } else {
                self.options
                    .mqtt
                    .tell(|| format!("subscribed to {filter}, QoS {}", reason.0));
            }
        }
        if let Some(why) = &suback.reason_string {
            refused.extend((!refused.is_empty()).then(|| why.clone()));
        }
        if refused.is_empty() {
            return Ok(());
        }
        if suback.reasons.iter().all(|reason| reason.is_error()) {
            return Err(MqttError::SubscribeRefused(refused.join(", ")));
        }
        eprintln!("lontra: subscription refused: {}", refused.join(", "));
        Ok(())
    }

    /// Prints a message if it is wanted; whether more are.
    fn take(&mut self, message: &Publish, client: &mut Client) -> Result<bool, MqttError> {
        let options = self.options;
        options.mqtt.tell(|| {
            format!(
                "received {:?}, QoS {}, {} bytes",
                message.topic(),
                message.qos() as u8,
                message.payload().len()
            )
        });
        if options.retained_only && !message.retain() {
            return Ok(false);
        }
        let is_stale = options.no_retain && message.retain();
        if is_stale || options.filter_out.iter().any(|filter| matches(filter, message.topic())) {
            return Ok(true);
        }
        if options.remove_retained && message.retain() {
            remove_retained(options, message, client)?;
        }
        self.print(message)?;
        self.printed += 1;
        Ok(options.count != Some(self.printed))
    }

    fn print(&mut self, message: &Publish) -> Result<(), MqttError> {
        let options = self.options;
        self.line.clear();
        match &options.format {
            None => print_plain(message, options.verbose, !options.no_end_of_line, &mut self.line),
            Some(format) => match format.print(message, SystemTime::now(), &mut self.line) {
                Ok(()) if options.no_end_of_line => {}
                Ok(()) => self.line.push(b'\n'),
                Err(error) => eprintln!("lontra: {error}"),
            },
        }
        let mut out = io::stdout().lock();
        out.write_all(&self.line)
            .and_then(|()| out.flush())
            .map_err(MqttError::Write)
    }
}

/// An empty retained message in its place, acknowledged before the end.
fn remove_retained(options: &Options, message: &Publish, client: &mut Client) -> Result<(), MqttError> {
    client.publish(&PublishFields {
        version: options.mqtt.version(),
        qos: QoS::AtLeastOnce,
        retain: true,
        topic: message.topic(),
        properties: PropertiesOut::default(),
        payload: b"",
    })?;
    Ok(())
}

/// -W, SIGINT and SIGTERM.
struct Stop {
    deadline: Option<Instant>,
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn of(options: &Options) -> Result<Stop, MqttError> {
        let deadline = options
            .timeout
            .map(|seconds| Instant::now() + Duration::from_secs(seconds.into()));
        Ok(Stop {
            deadline,
            interrupt: signal(SignalKind::interrupt()).map_err(MqttError::Runtime)?,
            terminate: signal(SignalKind::terminate()).map_err(MqttError::Runtime)?,
        })
    }

    async fn reached(&mut self) -> End {
        let deadline = self.deadline;
        tokio::select! {
            () = async move { sleep_until(deadline.unwrap_or_else(Instant::now)).await }, if deadline.is_some() => End::TimedOut,
            _ = self.interrupt.recv() => End::Done,
            _ = self.terminate.recv() => End::Done,
        }
    }
}

/// MOSQ_ERR_TIMEOUT's exit code in mosquitto_sub.
const TIMED_OUT: u8 = 27;
/// Removals of retained messages: as many as packet identifiers.
const IN_FLIGHT_MAX: u16 = u16::MAX;
/// Enough for a round trip of 2 ms at 50,000 messages a second; little enough that a shared subscription is shared.
const RECEIVE_MAXIMUM: u16 = 100;
/// A few round trips.
const FINISH_PATIENCE: Duration = Duration::from_secs(2);

const FORMAT_HELP: &str = r"Print each message in this format; the codes are those of mosquitto_sub:

  %t topic          %p payload        %l its length    %x %X payload in hexadecimal
  %q QoS            %r retain flag    %m packet identifier
  %j JSON, payload as a string        %J JSON, payload is itself JSON
  %I time as in ISO 8601              %U seconds and nanoseconds since 1970
  %C content type   %E message expiry %F payload format indicator  %R response topic
  %D correlation data   %P user properties   %S subscription identifiers   %A topic alias
  %% a percent sign

%10t is at least 10 characters wide, %-10t aligned to the left, %05l filled with zeros, %.8t at most 8 wide.
@Y @m @d @H @M @S @N and other letters of strftime give the time of arrival; all times are UTC.
\n \r \t \0 \e \a \v \\ are what they are in C.";

const AFTER_HELP: &str = r"Examples:
  lontra sub -t 'sensors/#' -v                                 topic and payload, from localhost:1883
  lontra sub -t greeting -C 1 -W 10                            one message, or exit code 27 after 10 s
  lontra sub -t orders -q 1 -c -i billing                      a session that is kept: what comes meanwhile waits
  lontra sub -t orders -q 1 -c -i billing -E                   only subscribe
  lontra sub -t '$share/workers/jobs' -q 1 -c -i worker-1      one of several that share the messages
  lontra sub -t 'config/#' --retained-only -W 2 -F '%t %j'     what is retained
  lontra sub -t '#' -F '@H:@M:@S %q %t %p'

Exit code: 0 ended as told (also by SIGINT or SIGTERM), 27 timed out (-W), 2 the command line was not understood, the code
of CONNACK if the broker refused the connection, else 1.";
