//! Every property of MQTT 5.0 in every packet that a client sends: where it belongs, where not, twice, and with values that
//! are none. One node and three answer alike.

use crate::support::script::conforms;
use std::fmt::Write;

/// Identifier and a good value, in the script's bytes. [MQTT 5 table 2-4]
const PROPERTIES: &[(&str, &str)] = &[
    ("01", "01"),
    ("02", "0000003c"),
    ("03", "\"text/plain\""),
    ("08", "\"reply/to\""),
    ("09", "0002 00ff"),
    ("0b", "07"),
    ("11", "00000000"),
    ("12", "\"assigned\""),
    ("13", "003c"),
    ("15", "\"SCRAM-SHA-1\""),
    ("16", "0002 00ff"),
    ("17", "01"),
    ("18", "00000000"),
    ("19", "01"),
    ("1a", "\"response\""),
    ("1c", "\"server\""),
    ("1f", "\"reason\""),
    ("21", "0010"),
    ("22", "0001"),
    ("23", "0001"),
    ("24", "01"),
    ("25", "01"),
    ("26", "\"name\" \"value\""),
    ("27", "00010000"),
    ("28", "01"),
    ("29", "01"),
    ("2a", "01"),
];

/// A packet with a property block in it, and what becomes of it.
struct Carrier {
    name: &'static str,
    /// What comes before; `raw` for a CONNECT.
    open: &'static str,
    /// The block stands for `P`.
    packet: &'static str,
    accepted: &'static str,
    allowed: &'static [&'static str],
    /// Of the packet, but not from a client, or not without something else.
    refused: &'static [(&'static str, &'static str)],
}

const CARRIERS: &[Carrier] = &[
    Carrier {
        name: "CONNECT",
        open: "raw",
        packet: "10 {@ 02 003c [P] \"properties\"}",
        accepted: "a < 20 {00 00 [..]}",
        allowed: &["11", "17", "19", "21", "22", "26", "27"],
        refused: &[("15", "8c"), ("16", "82")],
    },
    Carrier {
        name: "the will of CONNECT",
        open: "raw",
        packet: "10 {@ 06 003c [] \"will-properties\" [P] \"properties/will\" \"x\"}",
        accepted: "a < 20 {00 00 [..]}\na > e000\na !",
        allowed: &["01", "02", "03", "08", "09", "18", "26"],
        refused: &[],
    },
    Carrier {
        name: "PUBLISH",
        open: "@",
        packet: "30 {\"properties/t\" [P] 'x'}",
        accepted: "a -",
        allowed: &["01", "02", "03", "08", "09", "23", "26"],
        refused: &[("0b", "82")],
    },
    Carrier {
        name: "PUBACK",
        open: "@",
        packet: "40 {0009 00 [P]}",
        accepted: "a -",
        allowed: &["1f", "26"],
        refused: &[],
    },
    Carrier {
        name: "PUBREC",
        open: "@",
        packet: "50 {0009 00 [P]}",
        accepted: "a < 62 {0009 92}",
        allowed: &["1f", "26"],
        refused: &[],
    },
    Carrier {
        name: "PUBREL",
        open: "@",
        packet: "62 {0009 00 [P]}",
        accepted: "a < 70 {0009}",
        allowed: &["1f", "26"],
        refused: &[],
    },
    Carrier {
        name: "PUBCOMP",
        open: "@",
        packet: "70 {0009 00 [P]}",
        accepted: "a -",
        allowed: &["1f", "26"],
        refused: &[],
    },
    Carrier {
        name: "SUBSCRIBE",
        open: "@",
        packet: "82 {0001 [P] \"properties/s\" 00}",
        accepted: "a < 90 {0001 [] 00}",
        allowed: &["0b", "26"],
        refused: &[],
    },
    Carrier {
        name: "UNSUBSCRIBE",
        open: "@",
        packet: "a2 {0001 [P] \"properties/u\"}",
        accepted: "a < b0 {0001 [] 11}",
        allowed: &["26"],
        refused: &[],
    },
    Carrier {
        name: "DISCONNECT",
        open: "@",
        packet: "e0 {00 [P]}",
        accepted: "a !",
        allowed: &["11", "1c", "1f", "26"],
        refused: &[],
    },
    Carrier {
        // No method is in use: what is well-formed is a protocol error. [MQTT-4.12.0-7]
        name: "AUTH",
        open: "@",
        packet: "f0 {18 [15 \"m\" P]}",
        accepted: "a ! 82",
        allowed: &["16", "1f", "26"],
        refused: &[("15", "82")],
    },
];

impl Carrier {
    fn says(&self, what: &str, block: &str, outcome: &str) -> String {
        let packet = self.packet.replace("P", block);
        format!(
            "== 5 {}: {what}\na = {}\na > {packet}\n{outcome}\n",
            self.name, self.open
        )
    }

    /// The end with this code: a CONNACK where none was sent yet.
    fn ends(&self, code: &str) -> String {
        match self.open {
            "raw" => format!("a < 20 {{00 {code} [..]}}\na !"),
            _ => format!("a ! {code}"),
        }
    }

    fn takes(&self, id: &str) -> bool {
        self.allowed.contains(&id)
    }
}

/// [MQTT-2.2.2-1]
#[tokio::test]
async fn each_property_where_it_belongs_and_nowhere_else() {
    let mut script = String::new();
    for carrier in CARRIERS {
        script += &carrier.says("no property", "", carrier.accepted);
        for (id, value) in PROPERTIES {
            let refused = carrier.refused.iter().find(|(refused, _)| refused == id);
            let outcome = match refused {
                Some((_, code)) => carrier.ends(code),
                None if carrier.takes(id) => carrier.accepted.to_owned(),
                None => carrier.ends("81"),
            };
            script += &carrier.says(&format!("property {id}"), &format!("{id} {value}"), &outcome);
        }
        for id in ["00", "04", "14", "2b", "3f", "40", "7f", "80 01", "ff"] {
            script += &carrier.says(
                &format!("unknown property {id}"),
                &format!("{id} 00"),
                &carrier.ends("81"),
            );
        }
    }
    conforms(&script).await;
}

#[tokio::test]
async fn each_property_comes_once_but_for_user_properties() {
    let mut script = String::new();
    for carrier in CARRIERS {
        for (id, value) in PROPERTIES.iter().filter(|(id, _)| carrier.takes(id)) {
            let outcome = match *id {
                "26" => carrier.accepted.to_owned(),
                _ => carrier.ends("82"),
            };
            let twice = format!("{id} {value} {id} {value}");
            script += &carrier.says(&format!("property {id} twice"), &twice, &outcome);
        }
    }
    conforms(&script).await;
}

/// Values that a property must not have, and the code. [MQTT-1.5.4-1] [MQTT-1.5.4-2] [MQTT-1.5.5-1] [MQTT-1.5.7-1]
/// [MQTT-3.3.2-8] [MQTT-3.3.2-13] [MQTT-3.3.2-14] [MQTT-3.3.2-19]
const WRONG: &[(&str, &str, &str)] = &[
    ("01", "02", "82"),
    ("17", "02", "82"),
    ("19", "02", "82"),
    ("21", "0000", "82"),
    ("27", "00000000", "82"),
    ("23", "0000", "94"),
    ("0b", "00", "82"),
    ("0b", "8100", "81"),
    ("0b", "ffffffff01", "81"),
    ("08", "\"reply/+\"", "90"),
    ("08", "\"\"", "90"),
    ("08", "0001 ff", "81"),
    ("03", "0001 ff", "81"),
    ("03", "0002 6100", "81"),
    ("1f", "0001 ff", "81"),
    ("1c", "0003 eda080", "81"),
    ("26", "0001 ff \"value\"", "81"),
    ("26", "\"name\" 0001 ff", "81"),
    ("26", "\"name\" 0002 6100", "81"),
    ("26", "\"name\"", "81"),
    ("01", "", "81"),
    ("02", "0000", "81"),
    ("09", "0005 00", "81"),
    ("11", "000000", "81"),
    ("18", "00", "81"),
    ("16", "0009 00", "81"),
];

#[tokio::test]
async fn values_that_are_none_are_refused() {
    let mut script = String::new();
    let mut used = 0;
    for (id, value, code) in WRONG {
        for carrier in CARRIERS.iter().filter(|carrier| carrier.takes(id)) {
            used += 1;
            let outcome = carrier.ends(code);
            script += &carrier.says(
                &format!("property {id} with {value:?}"),
                &format!("{id} {value}"),
                &outcome,
            );
        }
    }
    assert!(used > WRONG.len(), "each value is tried");
    conforms(&script).await;
}

/// The largest and smallest values that are right. [MQTT-3.1.2-24]
#[tokio::test]
async fn values_at_their_bounds_are_taken() {
    let mut script = String::new();
    for (id, value) in [
        ("01", "00"),
        ("02", "00000000"),
        ("02", "ffffffff"),
        ("03", "\"\""),
        ("09", "0000"),
        ("0b", "01"),
        ("0b", "ffffff7f"),
        ("17", "00"),
        ("19", "00"),
        ("21", "0001"),
        ("21", "ffff"),
        ("22", "0000"),
        ("22", "ffff"),
        ("26", "\"\" \"\""),
        ("27", "ffffffff"),
    ] {
        let carriers = CARRIERS.iter().filter(|carrier| carrier.takes(id));
        for carrier in carriers {
            script += &carrier.says(
                &format!("property {id} with {value}"),
                &format!("{id} {value}"),
                carrier.accepted,
            );
        }
    }
    let mut many = String::new();
    for number in 0..128 {
        write!(many, "26 \"name\" \"{number}\" ").expect("a string takes all");
    }
    let publish = &CARRIERS[2];
    script += &publish.says("128 user properties", &many, publish.accepted);
    many += "26 \"one\" \"too many\"";
    script += &publish.says("129 user properties", &many, &publish.ends("97"));
    conforms(&script).await;
}
