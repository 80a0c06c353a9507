//! Packets of a client as bytes.

use super::{Ack, Connect, Property, Publish, SESSION_EXPIRY_INTERVAL, Sent, Value, Version};

/// The whole packet.
///
/// # Panics
/// A text or payload of the will is longer than the standard can say.
pub fn encode(version: Version, packet: &Sent) -> Vec<u8> {
    match packet {
        Sent::Connect(packet) => connect(version, packet),
        Sent::Publish(packet) => publish(version, packet),
        Sent::Ack { kind, pid, reason } => ack(version, *kind, *pid, *reason),
        Sent::Subscribe {
            pid,
            filter,
            options,
            properties,
        } => {
            let mut body = pid.to_be_bytes().to_vec();
            put_properties(&mut body, version, properties);
            put_text(&mut body, filter);
            // The other bits are reserved in 3.1.1.
            body.push(if version.is_5() { *options } else { options & 3 });
            frame(0x82, &body)
        }
        Sent::Unsubscribe { pid, filter } => {
            let mut body = pid.to_be_bytes().to_vec();
            put_properties(&mut body, version, &[]);
            put_text(&mut body, filter);
            frame(0xa2, &body)
        }
        Sent::Ping => frame(0xc0, &[]),
        Sent::Disconnect { reason, expiry } => disconnect(version, *reason, *expiry),
    }
}

fn connect(version: Version, packet: &Connect) -> Vec<u8> {
    let mut body = Vec::new();
    put_text(&mut body, "MQTT");
    body.push(version.level());
    let will = packet.will.as_ref();
    let will_flags = will.map_or(0, |will| 0x04 | will.qos << 3 | u8::from(will.retain) << 5);
    body.push(u8::from(packet.clean) << 1 | will_flags);
    body.extend(packet.keep_alive.to_be_bytes());
    put_properties(&mut body, version, &packet.properties);
    put_text(&mut body, &packet.client_id);
    if let Some(will) = will {
        put_properties(&mut body, version, &will.properties);
        put_text(&mut body, &will.topic);
        put_binary(&mut body, &will.payload);
    }
    frame(0x10, &body)
}

pub fn publish(version: Version, packet: &Publish) -> Vec<u8> {
    let mut body = Vec::with_capacity(packet.payload.len() + packet.topic.len() + 16);
    put_text(&mut body, &packet.topic);
    if packet.qos > 0 {
        body.extend(packet.pid.to_be_bytes());
    }
    put_properties(&mut body, version, &packet.properties);
    body.extend(&packet.payload);
    let flags = u8::from(packet.dup) << 3 | packet.qos << 1 | u8::from(packet.retain);
    frame(0x30 | flags, &body)
}

fn ack(version: Version, kind: Ack, pid: u16, reason: u8) -> Vec<u8> {
    let first = match kind {
        Ack::Puback => 0x40,
        Ack::Pubrec => 0x50,
        Ack::Pubrel => 0x62,
        Ack::Pubcomp => 0x70,
    };
    let mut body = pid.to_be_bytes().to_vec();
    if version.is_5() && reason != 0 {
        body.push(reason);
    }
    frame(first, &body)
}

fn disconnect(version: Version, reason: u8, expiry: Option<u32>) -> Vec<u8> {
    let mut body = Vec::new();
    if version.is_5() && (reason != 0 || expiry.is_some()) {
        body.push(reason);
        let expiry = expiry.map(|seconds| Property(SESSION_EXPIRY_INTERVAL, Value::Four(seconds)));
        put_properties(&mut body, version, expiry.as_slice());
    }
    frame(0xe0, &body)
}

/// A packet of any first byte and body.
pub fn frame(first: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    put_var(&mut frame, body.len());
    frame.extend(body);
    frame
}

fn put_var(out: &mut Vec<u8>, mut value: usize) {
    loop {
        let more = u8::from(value > 0x7f) << 7;
        out.push((value & 0x7f) as u8 | more);
        value >>= 7;
        if value == 0 {
            return;
        }
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_binary(out, text.as_bytes());
}

fn put_binary(out: &mut Vec<u8>, binary: &[u8]) {
    out.extend(u16::try_from(binary.len()).expect("short bytes").to_be_bytes());
    out.extend(binary);
}

fn put_properties(out: &mut Vec<u8>, version: Version, properties: &[Property]) {
    if !version.is_5() {
        return;
    }
    let mut bytes = Vec::new();
    for Property(id, value) in properties {
        bytes.push(*id);
        match value {
            Value::Byte(byte) => bytes.push(*byte),
            Value::Two(value) => bytes.extend(value.to_be_bytes()),
            Value::Four(value) => bytes.extend(value.to_be_bytes()),
            Value::Var(value) => put_var(&mut bytes, *value as usize),
            Value::Text(text) => put_text(&mut bytes, text),
            Value::Binary(binary) => put_binary(&mut bytes, binary),
            Value::Pair(key, value) => {
                put_text(&mut bytes, key);
                put_text(&mut bytes, value);
            }
        }
    }
    put_var(out, bytes.len());
    out.extend(bytes);
}
