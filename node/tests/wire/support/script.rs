//! Conversations in bytes: what clients send, and what the broker must answer, run against one node and against three.
//!
//! ```text
//!   == 45 a second CONNECT is a protocol error       a conversation, in MQTT 3.1.1 and in 5.0 (3 is MQTT 3.1)
//!   a = @                                            connection a, with an ephemeral session
//!   a > 10 {@ 02 003c [] "again"}                    it sends these bytes
//!   a ! 82                                           DISCONNECT with this code, then the end; in 3.x the end alone
//! ```
//!
//! | line | meaning |
//! |---|---|
//! | `a = @` | connects to the next node, with a Client Identifier of its own, and takes the CONNACK |
//! | `a = raw` | connects to the next node and says nothing |
//! | `a > …` | sends |
//! | `a < …` | the next packet is exactly this |
//! | `a -` | nothing has come: SUBACK and a message of its own are next |
//! | `a ! 82`, `a !` | the broker ends the connection, with or without a reason |
//! | `a x` | the client closes the socket |
//!
//! | bytes | meaning |
//! |---|---|
//! | `1f` | hexadecimal |
//! | `"text"`, `'text'` | with and without its two bytes of length; `%` in it is the version's number |
//! | `{…}` | the bytes with their length in front, as a variable byte integer |
//! | `[…]`, `(…)` | in 5.0 alone: a property block with its length; bytes without one. Nothing in 3.x |
//! | `@` | protocol name and level of the version |
//! | `$p` | two bytes: what an earlier answer had there |
//! | `?`, `..` | any byte; any bytes to the end of the group |
//!
//! Each connection goes to the next node in turn, so what one sends and another hears crosses nodes wherever there are
//! several. Each conversation is told apart in what it says of a failure; a test fails with all of them.

use super::SOON;
use super::cluster::{shared, shared_single};
use std::collections::BTreeMap;
use std::iter::Peekable;
use std::str::Chars;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Runs every conversation of `script` in each of its versions against one node, then against three behind round robin;
/// panics with all that was not as expected.
pub async fn conforms(script: &str) {
    let failures = failures(script).await;
    assert!(
        failures.is_empty(),
        "{} failures:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

/// As [`conforms`], at places of a cluster: each a name, and the `address:port` of each of its nodes, where bytes are MQTT's.
pub async fn conforms_at(script: &str, places: &[(&str, Vec<String>)]) {
    let mut failures = Vec::new();
    for (name, addresses) in places {
        failures_at(script, name, addresses, &mut failures).await;
    }
    assert!(
        failures.is_empty(),
        "{} failures:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

/// What was not as expected, one for each conversation, version and size of cluster.
pub async fn failures(script: &str) -> Vec<String> {
    let mut failures = Vec::new();
    for (name, cluster) in [("one node", shared_single()), ("three nodes", shared())] {
        let addresses: Vec<String> = (0..cluster.nodes.len())
            .map(|index| cluster.mqtt(index).to_owned())
            .collect();
        failures_at(script, name, &addresses, &mut failures).await;
        cluster.assert_no_panic();
    }
    failures
}

async fn failures_at(script: &str, name: &str, addresses: &[String], failures: &mut Vec<String>) {
    let conversations = parse(script);
    assert!(!conversations.is_empty(), "no conversation in the script");
    for conversation in &conversations {
        for version in &conversation.versions {
            if let Err(why) = run(addresses, conversation, *version).await {
                failures.push(format!("{name}, version {version}, {}: {why}", conversation.what));
            }
        }
    }
}

/// What comes of one frame: sent first if it is a CONNECT, else by a client that is connected; each answer as its type and what
/// of it does not depend on who asks (a CONNACK's code, an acknowledgement's identifier and code), and `end`.
pub async fn answers(addresses: &[String], version: u8, frame: &[u8]) -> Result<Vec<String>, String> {
    let mut wire = Wire::open(addresses).await?;
    let first = frame.first().ok_or("no frame")?;
    if first >> 4 != 1 {
        wire.connect(version).await?;
    }
    // In one write: what comes after the end would make it a reset.
    wire.send(&[frame, &[0xc0, 0]].concat()).await?;
    let mut due = vec![0xd0];
    due.extend(match first >> 4 {
        1 => Some(0x20),
        3 if first & 0x06 == 0x02 => Some(0x40),
        3 if first & 0x06 == 0x04 => Some(0x50),
        // PUBREL, SUBSCRIBE, UNSUBSCRIBE.
        6 => Some(0x70),
        8 => Some(0x90),
        10 => Some(0xb0),
        _ => None,
    });
    let mut answers = Vec::new();
    while !due.is_empty() {
        let Some(packet) = wire.packet().await? else {
            answers.push("end".to_owned());
            break;
        };
        let kind = packet[0] & 0xf0;
        due.retain(|due| *due != kind);
        answers.push(match kind {
            0x20 => format!("20 {}", hex(packet.get(3..4).unwrap_or_default())),
            0xe0 => format!("e0 {}", hex(packet.get(2..3).unwrap_or_default())),
            0xd0 => continue,
            0x30 => "30".to_owned(),
            // Whether anybody subscribed is told of it too.
            0x40 | 0x50 => format!("{kind:02x} {}", hex(&packet[2..]).trim_end_matches("10")),
            _ => format!("{kind:02x} {}", hex(&packet[2..])),
        });
    }
    answers.sort_unstable();
    Ok(answers)
}

struct Conversation {
    what: String,
    /// 3, 4 or 5.
    versions: Vec<u8>,
    lines: Vec<String>,
}

fn parse(script: &str) -> Vec<Conversation> {
    let mut found: Vec<Conversation> = Vec::new();
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Some(head) = line.strip_prefix("== ") {
            let (versions, what) = head.split_once(' ').expect("== versions what");
            let versions = versions.bytes().map(|digit| digit - b'0').collect::<Vec<_>>();
            assert!(versions.iter().all(|version| (3..=5).contains(version)), "{line}");
            found.push(Conversation {
                what: what.to_owned(),
                versions,
                lines: Vec::new(),
            });
        } else {
            let conversation = found.last_mut().expect("a conversation begins with ==");
            conversation.lines.push(line.to_owned());
        }
    }
    for conversation in &found {
        let expects =
            |line: &String| [" < ", " ! "].iter().any(|verb| line.contains(verb)) || line.ends_with(['!', '-']);
        assert!(
            conversation.lines.iter().any(expects),
            "{}: expects nothing",
            conversation.what
        );
    }
    found
}

async fn run(addresses: &[String], conversation: &Conversation, version: u8) -> Result<(), String> {
    let mut connections = BTreeMap::new();
    let mut bound = BTreeMap::new();
    for line in &conversation.lines {
        let step = step(addresses, version, line, &mut connections, &mut bound).await;
        step.map_err(|why| format!("`{line}`: {why}"))?;
    }
    Ok(())
}

async fn step(
    addresses: &[String],
    version: u8,
    line: &str,
    connections: &mut BTreeMap<String, Wire>,
    bound: &mut Bound,
) -> Result<(), String> {
    let mut words = line.splitn(3, ' ');
    let name = words.next().unwrap_or_default();
    let verb = words.next().ok_or("no verb")?;
    let rest = words.next().unwrap_or_default();
    if verb == "=" {
        let mut wire = Wire::open(addresses).await?;
        if rest == "@" {
            wire.connect(version).await?;
        } else if rest != "raw" {
            return Err("`@` or `raw`".into());
        }
        connections.insert(name.to_owned(), wire);
        return Ok(());
    }
    if verb == "x" {
        return connections.remove(name).map(drop).ok_or("no such connection".into());
    }
    let wire = connections.get_mut(name).ok_or("no such connection")?;
    let items = items(&mut rest.chars().peekable(), version, None);
    match verb {
        ">" => wire.send(&bytes(&items, bound)).await,
        "<" => {
            let packet = wire.packet().await?.ok_or("the connection ended")?;
            matches(&items, &packet, bound).map_err(|why| format!("{why} in {}", hex(&packet)))
        }
        "-" => wire.is_silent(version).await,
        "!" => {
            let told = wire.packet().await?;
            let expected = match (version, &items[..]) {
                (5, [Item::Byte(code)]) => Some(*code),
                _ => None,
            };
            let code = told.as_ref().map(|packet| match &packet[..] {
                [0xe0, 0] => Ok(0),
                [0xe0, _, code, ..] => Ok(*code),
                other => Err(format!("a packet instead of the end: {}", hex(other))),
            });
            let code = code.transpose()?;
            if code != expected {
                return Err(format!("DISCONNECT {code:02x?}, not {expected:02x?}"));
            }
            match told.is_some().then_some(wire.packet().await?).flatten() {
                Some(after) => Err(format!("after DISCONNECT: {}", hex(&after))),
                None => Ok(()),
            }
        }
        other => Err(format!("no such verb: {other}")),
    }
}

/// One socket and what came of it.
struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Wire {
    async fn open(addresses: &[String]) -> Result<Wire, String> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let index = NEXT.fetch_add(1, Ordering::Relaxed) % addresses.len();
        let stream = timeout(SOON, TcpStream::connect(&addresses[index]));
        let stream = stream.await.map_err(|_| "no connection in time")?;
        let stream = stream.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        Ok(Wire {
            stream,
            buffer: Vec::new(),
        })
    }

    async fn connect(&mut self, version: u8) -> Result<(), String> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let id = format!("script-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let connect = format!("10 {{@ 02 003c [] \"{id}\"}}");
        let connect = items(&mut connect.chars().peekable(), version, None);
        self.send(&bytes(&connect, &Bound::new())).await?;
        match self.packet().await? {
            Some(packet) if packet.starts_with(&[0x20]) && packet.get(3) == Some(&0) => Ok(()),
            other => Err(format!("CONNACK: {}", hex(&other.unwrap_or_default()))),
        }
    }

    /// Whatever was under way would have come before the SUBACK, which every node has a part in, or before the message.
    async fn is_silent(&mut self, version: u8) -> Result<(), String> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let topic = format!("s/{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        for (sent, expected) in [
            (format!("82 {{fffe [] \"{topic}\" 00}}"), "90 {fffe [] 00}".to_owned()),
            (format!("30 {{\"{topic}\" []}}"), format!("30 {{\"{topic}\" []}}")),
        ] {
            let [sent, expected] = [sent, expected].map(|text| items(&mut text.chars().peekable(), version, None));
            self.send(&bytes(&sent, &Bound::new())).await?;
            let packet = self.packet().await?.ok_or("the connection ended")?;
            matches(&expected, &packet, &mut Bound::new()).map_err(|_| format!("something came: {}", hex(&packet)))?;
        }
        Ok(())
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        let sent = timeout(SOON, self.stream.write_all(bytes)).await;
        sent.map_err(|_| "not taken in time")?
            .map_err(|error| error.to_string())
    }

    /// The next packet, or `None` at the end of the connection.
    async fn packet(&mut self) -> Result<Option<Vec<u8>>, String> {
        let read = timeout(SOON, async {
            loop {
                if let Some(length) = packet_length(&self.buffer) {
                    return Ok(Some(self.buffer.drain(..length).collect()));
                }
                match self.stream.read_buf(&mut self.buffer).await {
                    Ok(0) if self.buffer.is_empty() => return Ok(None),
                    Ok(0) => return Err(format!("half a packet: {}", hex(&self.buffer))),
                    Ok(_) => {}
                    // What the broker did not read makes its end a reset.
                    Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(None),
                    Err(error) => return Err(error.to_string()),
                }
            }
        });
        read.await.unwrap_or(Err("nothing came in time".into()))
    }
}

fn packet_length(buffer: &[u8]) -> Option<usize> {
    let (length, rest) = length(buffer.get(1..)?).ok()?;
    let whole = buffer.len() - rest.len() + length;
    (buffer.len() >= whole).then_some(whole)
}

// ---- bytes ----

enum Item {
    Byte(u8),
    Any,
    Rest,
    /// Bytes with their length in front.
    Group(Vec<Item>),
    /// Two bytes under a name.
    Name(String),
}

type Bound = BTreeMap<String, [u8; 2]>;

/// Reads items up to `end`, or to the end of the text.
fn items(text: &mut Peekable<Chars<'_>>, version: u8, end: Option<char>) -> Vec<Item> {
    let mut found = Vec::new();
    while let Some(next) = text.next() {
        match next {
            ' ' => {}
            _ if Some(next) == end => return found,
            '{' => found.push(Item::Group(items(text, version, Some('}')))),
            '[' => {
                let inner = items(text, version, Some(']'));
                found.extend((version == 5).then_some(Item::Group(inner)));
            }
            '(' => {
                let inner = items(text, version, Some(')'));
                found.extend(inner.into_iter().filter(|_| version == 5));
            }
            '"' => found.extend(string(text, version, '"').into_iter().map(Item::Byte)),
            '\'' => found.extend(string(text, version, '\'').into_iter().skip(2).map(Item::Byte)),
            '@' => {
                let (name, level) = if version == 3 { ("MQIsdp", 3) } else { ("MQTT", version) };
                found.extend(
                    [0, name.len() as u8]
                        .into_iter()
                        .chain(name.bytes())
                        .chain([level])
                        .map(Item::Byte),
                );
            }
            '$' => {
                let name = std::iter::from_fn(|| text.next_if(char::is_ascii_alphanumeric)).collect();
                found.push(Item::Name(name));
            }
            '?' => found.push(Item::Any),
            '.' => {
                assert_eq!(text.next(), Some('.'), "`..`");
                found.push(Item::Rest);
            }
            high => {
                let digits = [Some(high), text.next()].map(|digit| digit.and_then(|digit| digit.to_digit(16)));
                let [Some(high), Some(low)] = digits else {
                    panic!("not hexadecimal: {next}")
                };
                found.push(Item::Byte((high * 16 + low) as u8));
            }
        }
    }
    assert!(end.is_none(), "{end:?} is missing");
    found
}

fn string(text: &mut Peekable<Chars<'_>>, version: u8, quote: char) -> Vec<u8> {
    let read: String = text.take_while(|next| *next != quote).collect();
    let read = read.replace('%', &version.to_string());
    let mut bytes = (read.len() as u16).to_be_bytes().to_vec();
    bytes.extend(read.bytes());
    bytes
}

fn bytes(items: &[Item], bound: &Bound) -> Vec<u8> {
    let mut out = Vec::new();
    for item in items {
        match item {
            Item::Byte(byte) => out.push(*byte),
            Item::Name(name) => out.extend(bound.get(name).unwrap_or_else(|| panic!("${name} is not known"))),
            Item::Group(inner) => {
                let inner = bytes(inner, bound);
                let mut length = inner.len();
                while length > 0x7f {
                    out.push(length as u8 & 0x7f | 0x80);
                    length >>= 7;
                }
                out.push(length as u8);
                out.extend(inner);
            }
            Item::Any | Item::Rest => panic!("any bytes cannot be sent"),
        }
    }
    out
}

fn matches(items: &[Item], mut left: &[u8], bound: &mut Bound) -> Result<(), String> {
    for (index, item) in items.iter().enumerate() {
        let mut take = |count: usize| {
            let (taken, rest) = left
                .split_at_checked(count)
                .ok_or(format!("it ends before item {index}"))?;
            left = rest;
            Ok::<&[u8], String>(taken)
        };
        match item {
            Item::Byte(byte) => match take(1)?[0] {
                found if found == *byte => {}
                found => return Err(format!("{found:02x} instead of {byte:02x} as item {index}")),
            },
            Item::Any => {
                take(1)?;
            }
            Item::Rest => return Ok(()),
            Item::Name(name) => {
                let found = take(2)?.try_into().expect("two bytes");
                bound.insert(name.clone(), found);
            }
            Item::Group(inner) => {
                let (count, rest) = length(left)?;
                left = rest;
                let (group, rest) = left.split_at_checked(count).ok_or("a length that is too long")?;
                matches(inner, group, bound)?;
                left = rest;
            }
        }
    }
    match left.is_empty() {
        true => Ok(()),
        false => Err(format!("{} more than expected", hex(left))),
    }
}

/// A variable byte integer and what follows it.
fn length(bytes: &[u8]) -> Result<(usize, &[u8]), String> {
    let mut value = 0;
    for (index, byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok((value, &bytes[index + 1..]));
        }
    }
    Err("no length".into())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
