//! What `lontra pub` and `lontra sub` have in common: where to connect, as whom, and how a run ends.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use bytes::Bytes;
use clap::{ArgAction, Args, ValueEnum};

use super::property::Properties;
use crate::client::tls::{TlsOptions, TlsOptionsError};
use crate::client::{Address, Client, ClientError, ConnectError, Connection, ConnectionEnd, RequestError, connect};
use crate::protocol::codec::{
    ConnAck, Connect, Disconnect, EncodeError, QoS, ReasonCode, UserProperties, Version, Will, connack_return_code,
    topic_grammar,
};

/// Where to connect, and as whom.
#[derive(Args)]
pub struct MqttOptions {
    /// Broker to connect to: name or address.
    #[arg(
        short = 'h',
        long,
        value_name = "HOST",
        default_value = "localhost",
        help_heading = "Connection"
    )]
    host: String,

    /// TCP port of the broker; 1883, over TLS 8883.
    #[arg(short, long, help_heading = "Connection", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,

    /// Broker, and over what: mqtt://HOST:PORT, mqtts://, ws://HOST:PORT/PATH, wss://. Instead of -h and -p.
    #[arg(
        short = 'L',
        long,
        value_name = "URL",
        value_parser = Address::parse,
        conflicts_with_all = ["host", "port"],
        help_heading = "Connection"
    )]
    url: Option<Address>,

    #[command(flatten)]
    tls: TlsArguments,

    /// Version of MQTT to speak. Only MQTT 5 has reasons for refusals, and properties.
    #[arg(
        short = 'V',
        long,
        value_name = "VERSION",
        default_value = "mqttv5",
        help_heading = "Connection"
    )]
    protocol_version: ProtocolVersion,

    /// Client id; without one, the broker gives one (MQTT 3.1: lontra- and the process id).
    #[arg(short, long, conflicts_with = "id_prefix", help_heading = "Connection")]
    id: Option<String>,

    /// Client id: this, and the process id.
    #[arg(short = 'I', long, value_name = "PREFIX", help_heading = "Connection")]
    id_prefix: Option<String>,

    /// User name.
    #[arg(short, long, value_name = "NAME", help_heading = "Connection")]
    username: Option<String>,

    /// Password. Others on this machine can see it in the list of processes.
    #[arg(
        short = 'P',
        long = "pw",
        value_name = "PASSWORD",
        allow_hyphen_values = true,
        help_heading = "Connection"
    )]
    password: Option<String>,

    /// Seconds without a packet after which to ping; 0: never.
    #[arg(
        short,
        long,
        value_name = "SECONDS",
        default_value_t = 60,
        help_heading = "Connection"
    )]
    keepalive: u16,

    /// Keep the session when the connection ends: what is published for it meanwhile waits. Needs -i.
    #[arg(short = 'c', long, requires = "id", help_heading = "Connection")]
    disable_clean_session: bool,

    /// Seconds for which the session is kept after the connection ended; -1: for ever, as with -c alone. MQTT 5.
    #[arg(
        short = 'x',
        long,
        value_name = "SECONDS",
        value_parser = session_expiry,
        allow_negative_numbers = true,
        help_heading = "MQTT 5"
    )]
    session_expiry_interval: Option<u32>,

    #[command(flatten)]
    pub properties: Properties,

    /// Will: the topic on which the broker publishes if this connection breaks.
    #[arg(long, value_name = "TOPIC", value_parser = topic_name, help_heading = "Will")]
    will_topic: Option<String>,

    /// Payload of the will; empty without.
    #[arg(
        long,
        value_name = "PAYLOAD",
        requires = "will_topic",
        allow_hyphen_values = true,
        help_heading = "Will"
    )]
    will_payload: Option<String>,

    /// QoS of the will.
    #[arg(long, value_name = "QOS", default_value = "0", value_parser = qos, requires = "will_topic", help_heading = "Will")]
    will_qos: QoS,

    /// The will is retained.
    #[arg(long, requires = "will_topic", help_heading = "Will")]
    will_retain: bool,

    /// Say on standard error what is done.
    #[arg(short, long)]
    pub debug: bool,

    /// Print this help. (-h is the host, as in mosquitto_pub and mosquitto_sub.)
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

/// How TLS is spoken. Any of these options means that it is.
#[derive(Args, Clone, Debug)]
pub struct TlsArguments {
    /// Over TLS; the broker's certificate is checked against the system's authorities, or those of --cafile.
    #[arg(long, help_heading = "TLS")]
    tls: bool,

    /// PEM file of the authorities that the broker's certificate must be signed by.
    #[arg(long, value_name = "FILE", help_heading = "TLS")]
    cafile: Option<PathBuf>,

    /// PEM file of the client's certificate.
    #[arg(long, value_name = "FILE", requires = "key", help_heading = "TLS")]
    cert: Option<PathBuf>,

    /// PEM file of the private key of --cert.
    #[arg(long, value_name = "FILE", requires = "cert", help_heading = "TLS")]
    key: Option<PathBuf>,

    /// The broker's certificate may be for another name than the one that was connected to. For tests.
    #[arg(long, help_heading = "TLS")]
    insecure: bool,
}

impl TlsArguments {
    pub fn is_wanted(&self) -> bool {
        self.tls || self.insecure || self.cafile.is_some() || self.cert.is_some()
    }

    pub fn options(&self, is_websocket: bool) -> TlsOptions {
        TlsOptions {
            cafile: self.cafile.clone(),
            certificate: self.cert.clone(),
            key: self.key.clone(),
            insecure: self.insecure,
            alpn: is_websocket.then_some(b"http/1.1"),
        }
    }
}

/// Why a command ended before it was done.
#[derive(Debug, thiserror::Error)]
pub enum MqttError {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Tls(#[from] TlsOptionsError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The options make a packet that the standard forbids.
    #[error("these options make no valid packet: {0}")]
    Packet(#[from] EncodeError),
    #[error("{refused} of {all} messages were refused: {last}")]
    PublishRefused { refused: u64, all: u64, last: String },
    #[error("subscription refused: {0}")]
    SubscribeRefused(String),
    #[error("cannot read {what}: {source}")]
    Read { what: String, source: std::io::Error },
    #[error("cannot write to standard output: {0}")]
    Write(std::io::Error),
    #[error("cannot start: {0}")]
    Runtime(std::io::Error),
}

impl MqttError {
    /// As mosquitto_pub and mosquitto_sub end: a refused CONNECT with its code, a wrong command line with 2 (here as in
    /// all of lontra), anything else with 1.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            MqttError::Usage(_) | MqttError::Packet(_) => ExitCode::from(2),
            MqttError::Client(ClientError::Ended {
                end: ConnectionEnd::Refused { reason, .. },
                is_v5,
                ..
            }) => {
                let code = if *is_v5 { None } else { connack_return_code(*reason) };
                ExitCode::from(code.unwrap_or(reason.0))
            }
            _ => ExitCode::FAILURE,
        }
    }
}

/// Runs a command on this thread.
///
/// # Errors
/// That of the command, or this thread cannot wait for sockets.
pub fn run<T>(command: impl Future<Output = Result<T, MqttError>>) -> Result<T, MqttError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(MqttError::Runtime)?;
    let done = runtime.block_on(command);
    // A look-up of a name that takes too long holds up nothing.
    runtime.shutdown_background();
    done
}

impl MqttOptions {
    pub fn version(&self) -> Version {
        match self.protocol_version {
            ProtocolVersion::Mqttv31 => Version::V3_1,
            ProtocolVersion::Mqttv311 => Version::V3_1_1,
            ProtocolVersion::Mqttv5 => Version::V5,
        }
    }

    /// Connects. `receive_maximum` is announced unless `-D connect receive-maximum` says otherwise.
    ///
    /// # Errors
    /// Nobody listens, or who does refuses.
    pub async fn open(&self, in_flight_max: u16, receive_maximum: Option<u16>) -> Result<Client, MqttError> {
        let connect_packet = self.connect_packet(receive_maximum)?;
        let connection = Connection::new(&connect_packet, in_flight_max, Instant::now())?;
        let address = self.address()?;
        let tls = match address.tls {
            true => Some(self.tls.options(address.path.is_some()).config()?),
            false => None,
        };
        let transport = connect(&address, tls).await?;
        let (client, connack) =
            Client::open(transport, connection, address.to_string(), self.version().is_v5()).await?;
        self.tell(|| connected(&address, &connect_packet, &connack));
        Ok(client)
    }

    fn address(&self) -> Result<Address, MqttError> {
        let tls = self.tls.is_wanted();
        match &self.url {
            Some(url) if tls && !url.tls => Err(MqttError::Usage("TLS with this URL is mqtts:// or wss://".to_owned())),
            Some(url) => Ok(url.clone()),
            None => Ok(Address {
                host: self.host.clone(),
                port: self.port.unwrap_or(if tls { 8883 } else { 1883 }),
                tls,
                path: None,
            }),
        }
    }

    /// Ends the connection in the words of `-D disconnect`.
    ///
    /// # Errors
    /// These words are no valid DISCONNECT.
    pub async fn close(&self, client: Client) -> Result<(), MqttError> {
        let disconnect = Disconnect {
            session_expiry_interval: self.properties.disconnect_session_expiry,
            user_properties: self.properties.disconnect.clone(),
            ..Disconnect::new(ReasonCode::NORMAL_DISCONNECTION)
        };
        client.close(&disconnect).await?;
        self.tell(|| "disconnected".to_owned());
        Ok(())
    }

    /// `-d`.
    pub fn tell(&self, line: impl FnOnce() -> String) {
        if self.debug {
            eprintln!("lontra: {}", line());
        }
    }

    fn connect_packet(&self, receive_maximum: Option<u16>) -> Result<Connect, MqttError> {
        self.check()?;
        let mut properties = self.properties.connect.clone();
        if self.version().is_v5() {
            properties.receive_maximum = properties.receive_maximum.or(receive_maximum);
            properties.session_expiry_interval = self
                .session_expiry_interval
                .or(properties.session_expiry_interval)
                .or(self.disable_clean_session.then_some(u32::MAX));
        }
        Ok(Connect {
            version: self.version(),
            clean_start: !self.disable_clean_session,
            keep_alive_seconds: self.keepalive,
            client_id: self.client_id(),
            will: self.will(),
            user_name: self.username.clone(),
            password: self.password.clone().map(Bytes::from),
            properties,
        })
    }

    fn check(&self) -> Result<(), MqttError> {
        let usage = |problem: &str| Err(MqttError::Usage(problem.to_owned()));
        if !self.version().is_v5() && self.properties.any {
            return usage("-D is for MQTT 5 only: leave -V out");
        }
        if !self.version().is_v5() && self.session_expiry_interval.is_some() {
            return usage("-x is for MQTT 5 only: leave -V out");
        }
        if self.properties.has_will && self.will_topic.is_none() {
            return usage("-D will needs --will-topic");
        }
        if !self.version().is_v5() && self.password.is_some() && self.username.is_none() {
            return usage("-P needs -u: before MQTT 5 there is no password without a user name");
        }
        Ok(())
    }

    fn client_id(&self) -> String {
        match (&self.id, &self.id_prefix, self.version()) {
            (Some(id), _, _) => id.clone(),
            (None, Some(prefix), _) => format!("{prefix}{}", std::process::id()),
            (None, None, Version::V3_1) => format!("lontra-{}", std::process::id()),
            (None, None, _) => String::new(),
        }
    }

    fn will(&self) -> Option<Will> {
        Some(Will {
            topic: self.will_topic.clone()?,
            payload: Bytes::from(self.will_payload.clone().unwrap_or_default()),
            qos: self.will_qos,
            retain: self.will_retain,
            properties: self.properties.will.clone(),
        })
    }
}

fn connected(address: &Address, connect: &Connect, connack: &ConnAck) -> String {
    let properties = &connack.properties;
    let id = properties
        .assigned_client_identifier
        .as_ref()
        .unwrap_or(&connect.client_id);
    let mut line = format!(
        "connected to {address} as {id:?}, session present: {}",
        connack.session_present
    );
    for (what, value) in [
        ("session expiry", properties.session_expiry_interval),
        ("keep alive", properties.server_keep_alive.map(u32::from)),
        ("receive maximum", properties.receive_maximum.map(u32::from)),
        ("maximum packet size", properties.maximum_packet_size),
    ] {
        if let Some(value) = value {
            line += &format!(", {what} {value}");
        }
    }
    line + &user_properties(&properties.user_properties)
}

fn user_properties(properties: &UserProperties) -> String {
    properties
        .iter()
        .map(|(name, value)| format!(", {name}: {value}"))
        .collect()
}

/// `-q`, `--will-qos`.
///
/// # Errors
/// Not 0, 1 or 2.
pub fn qos(text: &str) -> Result<QoS, String> {
    let bits = text.parse().ok().and_then(QoS::from_bits);
    bits.ok_or_else(|| "QoS is 0, 1 or 2".to_owned())
}

/// A Topic Name on the command line.
///
/// # Errors
/// What is wrong with it.
pub fn topic_name(text: &str) -> Result<String, String> {
    topic_grammar::check_topic_name(text).map_err(|violation| violation.what.to_owned())?;
    Ok(text.to_owned())
}

/// A Topic Filter on the command line.
///
/// # Errors
/// What is wrong with it.
pub fn topic_filter(text: &str) -> Result<String, String> {
    topic_grammar::check_topic_filter(text).map_err(|violation| violation.what.to_owned())?;
    Ok(text.to_owned())
}

/// `-x`
fn session_expiry(text: &str) -> Result<u32, String> {
    match text {
        "-1" | "∞" => Ok(u32::MAX),
        seconds => seconds
            .parse()
            .map_err(|_| "it is 0 to 4294967295 seconds, or -1 for ever".to_owned()),
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum ProtocolVersion {
    #[value(name = "mqttv31", aliases = ["31", "3.1"])]
    Mqttv31,
    #[value(name = "mqttv311", aliases = ["311", "3.1.1"])]
    Mqttv311,
    #[value(name = "mqttv5", aliases = ["5", "5.0"])]
    Mqttv5,
}
