//! `-D PACKET NAME VALUE`: MQTT 5 properties, in the words of mosquitto_pub and mosquitto_sub.

use bytes::Bytes;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::protocol::codec::{ConnectProperties, UserProperties, WillProperties, topic_grammar};

/// The properties of one run, by packet.
#[derive(Clone, Debug, Default)]
pub struct Properties {
    pub connect: ConnectProperties,
    pub publish: WillProperties,
    pub topic_alias: Option<u16>,
    pub will: WillProperties,
    /// Whether any was given for the will.
    pub has_will: bool,
    pub subscribe: UserProperties,
    pub subscription_identifier: Option<u32>,
    pub unsubscribe: UserProperties,
    pub disconnect: UserProperties,
    pub disconnect_session_expiry: Option<u32>,
    /// Whether any was given at all.
    pub any: bool,
}

impl Args for Properties {
    fn augment_args(command: Command) -> Command {
        command.arg(
            Arg::new(ID)
                .short('D')
                .long("property")
                .num_args(3..=4)
                .value_names(["PACKET", "NAME", "VALUE"])
                .allow_negative_numbers(true)
                .action(ArgAction::Append)
                .help_heading("MQTT 5")
                .help("Add a property: -D publish content-type text/plain, -D connect user-property NAME VALUE")
                .long_help(LONG_HELP),
        )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Properties {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut properties = Properties::default();
        properties.update_from_arg_matches(matches)?;
        Ok(properties)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for occurrence in matches.get_occurrences::<String>(ID).into_iter().flatten() {
            let words: Vec<&str> = occurrence.map(String::as_str).collect();
            self.add(&words).map_err(|problem| {
                let line = format!("-D {}: {problem}\n", words.join(" "));
                clap::Error::raw(clap::error::ErrorKind::ValueValidation, line)
            })?;
        }
        Ok(())
    }
}

impl Properties {
    fn add(&mut self, words: &[&str]) -> Result<(), String> {
        self.any = true;
        let [packet, name, values @ ..] = words else {
            return Err("a packet, a name and a value are due".to_owned());
        };
        let value = match (*name, values) {
            ("user-property", [_, _]) => Value {
                first: values[0],
                second: values[1],
            },
            ("user-property", _) => return Err("a user property has a name and a value".to_owned()),
            (_, [value]) => Value {
                first: value,
                second: "",
            },
            _ => return Err(format!("{name} has one value")),
        };
        match *packet {
            "connect" => add_to_connect(&mut self.connect, name, value),
            "publish" if *name == "topic-alias" => value.number().and_then(|alias| match alias {
                0 => Err("0 is no topic alias".to_owned()),
                alias => {
                    self.topic_alias = Some(alias);
                    Ok(())
                }
            }),
            "publish" => add_to_message(&mut self.publish, name, value),
            "will" => {
                self.has_will = true;
                match *name {
                    "will-delay-interval" => value.number().map(|seconds| self.will.delay_interval = seconds),
                    _ => add_to_message(&mut self.will, name, value),
                }
            }
            "subscribe" => match *name {
                "user-property" => {
                    self.subscribe.push(value.pair());
                    Ok(())
                }
                "subscription-identifier" => match value.number()? {
                    identifier @ 1..=268_435_455 => {
                        self.subscription_identifier = Some(identifier);
                        Ok(())
                    }
                    _ => Err("it is 1 to 268435455".to_owned()),
                },
                _ => Err(unknown(name, packet)),
            },
            "unsubscribe" if *name == "user-property" => {
                self.unsubscribe.push(value.pair());
                Ok(())
            }
            "disconnect" => match *name {
                "user-property" => {
                    self.disconnect.push(value.pair());
                    Ok(())
                }
                "session-expiry-interval" => {
                    self.disconnect_session_expiry = Some(value.number()?);
                    Ok(())
                }
                _ => Err(unknown(name, packet)),
            },
            "unsubscribe" => Err(unknown(name, packet)),
            _ => Err("the packets are connect, publish, will, subscribe, unsubscribe and disconnect".to_owned()),
        }
    }
}

fn add_to_connect(to: &mut ConnectProperties, name: &str, value: Value<'_>) -> Result<(), String> {
    match name {
        "authentication-data" => to.authentication_data = Some(value.bytes()),
        "authentication-method" => to.authentication_method = Some(value.first.to_owned()),
        "maximum-packet-size" => to.maximum_packet_size = Some(value.number()?),
        "receive-maximum" => to.receive_maximum = Some(value.number()?),
        "request-problem-information" => to.request_problem_information = value.flag()?,
        "request-response-information" => to.request_response_information = value.flag()?,
        "session-expiry-interval" => to.session_expiry_interval = Some(value.number()?),
        "topic-alias-maximum" => to.topic_alias_maximum = value.number()?,
        "user-property" => to.user_properties.push(value.pair()),
        _ => return Err(unknown(name, "connect")),
    }
    Ok(())
}

fn add_to_message(to: &mut WillProperties, name: &str, value: Value<'_>) -> Result<(), String> {
    match name {
        "content-type" => to.content_type = Some(value.first.to_owned()),
        "correlation-data" => to.correlation_data = Some(value.bytes()),
        "message-expiry-interval" => to.message_expiry_interval = Some(value.number()?),
        "payload-format-indicator" => to.payload_format_indicator = Some(value.flag()?.into()),
        "response-topic" => {
            topic_grammar::check_topic_name(value.first).map_err(|violation| violation.to_string())?;
            to.response_topic = Some(value.first.to_owned());
        }
        "user-property" => to.user_properties.push(value.pair()),
        _ => return Err(unknown(name, "this packet")),
    }
    Ok(())
}

fn unknown(name: &str, packet: &str) -> String {
    format!("{name} is not a property that can be given for {packet}")
}

#[derive(Clone, Copy)]
struct Value<'a> {
    first: &'a str,
    /// Of a user property; else empty.
    second: &'a str,
}

impl Value<'_> {
    fn number<N: TryFrom<u64>>(self) -> Result<N, String> {
        let number: u64 = self
            .first
            .parse()
            .map_err(|_| format!("{} is not a number", self.first))?;
        N::try_from(number).map_err(|_| format!("{number} is too large"))
    }

    fn flag(self) -> Result<bool, String> {
        match self.first {
            "0" => Ok(false),
            "1" => Ok(true),
            _ => Err("it is 0 or 1".to_owned()),
        }
    }

    fn bytes(self) -> Bytes {
        Bytes::copy_from_slice(self.first.as_bytes())
    }

    fn pair(self) -> (String, String) {
        (self.first.to_owned(), self.second.to_owned())
    }
}

const ID: &str = "property";

const LONG_HELP: &str = "\
Add an MQTT 5 property to a packet; may come several times. PACKET and the NAMEs it takes:

  connect      session-expiry-interval (or -x), receive-maximum, maximum-packet-size, topic-alias-maximum,
               request-problem-information, request-response-information, authentication-method,
               authentication-data, user-property
  publish      content-type, correlation-data, message-expiry-interval, payload-format-indicator, response-topic,
               topic-alias, user-property
  will         as publish, without topic-alias, and will-delay-interval
  subscribe    subscription-identifier, user-property
  unsubscribe  user-property
  disconnect   session-expiry-interval, user-property

user-property takes two values, its name and its value.";

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Properties, String> {
        let matches = Properties::augment_args(Command::new("x").arg(Arg::new("t").short('t')))
            .try_get_matches_from(line.split(' '))
            .map_err(|error| error.to_string())?;
        Properties::from_arg_matches(&matches).map_err(|error| error.to_string())
    }

    #[test]
    fn properties_go_to_their_packets() {
        let parsed = parse(
            "x -D publish content-type text/plain -D publish user-property a b -t x -D publish user-property a c \
             -D connect receive-maximum 7 -D will will-delay-interval 3 -D disconnect session-expiry-interval 9 \
             -D subscribe subscription-identifier 5 -D publish topic-alias 2",
        )
        .expect("well formed");
        assert_eq!(parsed.publish.content_type.as_deref(), Some("text/plain"));
        let pair = |value: &str| ("a".to_owned(), value.to_owned());
        assert_eq!(parsed.publish.user_properties, [pair("b"), pair("c")]);
        assert_eq!(parsed.connect.receive_maximum, Some(7));
        assert_eq!(parsed.will.delay_interval, 3);
        assert!(parsed.has_will && parsed.any);
        assert_eq!(parsed.disconnect_session_expiry, Some(9));
        assert_eq!(parsed.subscription_identifier, Some(5));
        assert_eq!(parsed.topic_alias, Some(2));
        assert!(!parse("x -t x").expect("none is well formed").any);
    }

    #[test]
    fn what_a_packet_cannot_carry_is_named() {
        for (line, told) in [
            (
                "x -D publish will-delay-interval 3",
                "will-delay-interval is not a property",
            ),
            ("x -D puback user-property a b", "the packets are"),
            ("x -D publish user-property a", "a name and a value"),
            ("x -D publish content-type a b", "content-type has one value"),
            ("x -D connect receive-maximum many", "many is not a number"),
            ("x -D connect receive-maximum 65536", "65536 is too large"),
            ("x -D publish payload-format-indicator 2", "0 or 1"),
            ("x -D publish response-topic a/#", "wildcard"),
            ("x -D publish topic-alias 0", "no topic alias"),
            ("x -D subscribe subscription-identifier 0", "1 to 268435455"),
            ("x -D publish", "required"),
        ] {
            let problem = parse(line).expect_err(line);
            assert!(problem.contains(told), "{line}: {problem}");
        }
    }
}
