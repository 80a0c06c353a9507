//! Strict checks of SUBSCRIBE and UNSUBSCRIBE, and the own decoder of the MQTT 5 UNSUBSCRIBE, which mqttbytes must not
//! see.
//!
//! A filter against the grammar ends the connection. One that is only above this broker's limits is answered alone, see
//! `control`; so is each where a SUBSCRIBE has too many.

use super::control::Checked;
use super::framer::Header;
use super::properties::{self, Property, PropertyIter, Scope};
use super::reader::Reader;
use super::topic_grammar;
use super::{Direction, Limits, QoS, ReasonCode, Subscribe, SubscribeFilter, Unsubscribe, Version, Violation};
use crate::protocol::checks::{Check, on};
use bytes::Bytes;
use std::num::NonZeroU16;

/// A SUBSCRIBE that is well-formed.
pub(super) enum Asked {
    Within(Checked),
    /// More filters than a packet may have: each is answered that it is too many.
    TooMany(Subscribe),
}

pub(super) fn check_subscribe(
    frame: Bytes,
    header: Header,
    version: Version,
    limits: &Limits,
) -> Result<Asked, Violation> {
    let mut reader = Reader::new(&frame, header.length);
    let packet_id = reader.packet_id()?;
    if version.is_v5() {
        properties::check(&mut reader, Scope::SUBSCRIBE, Direction::ClientToServer, limits)?;
    }
    let mut filters = 0;
    while !reader.is_empty() {
        filters += 1;
        let filter = reader.string()?;
        let options = reader.u8()?;
        topic_grammar::check_topic_filter(filter)?;
        check_options(options, topic_grammar::is_shared(filter), version)?;
    }
    if filters == 0 && on(Check::SubscribeEmpty) {
        return Err(Violation::protocol_error("MQTT-3.8.3-2", "no topic filter"));
    }
    match filters > limits.filters_per_packet {
        true => Ok(Asked::TooMany(too_many(packet_id, filters))),
        false => Ok(Asked::Within(Checked::new(frame, header))),
    }
}

/// `budget-first`: nothing of what was asked for is kept, only how much it was, which the packet's size bounds.
fn too_many(packet_id: NonZeroU16, filters: usize) -> Subscribe {
    let refused = SubscribeFilter {
        filter: String::new(),
        qos: QoS::AtMostOnce,
        no_local: false,
        retain_as_published: false,
        retain_handling: 0,
        valid: Err(ReasonCode::QUOTA_EXCEEDED),
    };
    Subscribe {
        packet_id,
        subscription_identifier: None,
        filters: vec![refused; filters],
        user_properties: Vec::new(),
    }
}

/// [MQTT-3.8.3-4] [MQTT-3.8.3-5]
fn check_options(options: u8, is_shared: bool, version: Version) -> Result<(), Violation> {
    let reserved = if version.is_v5() { 0b1100_0000 } else { 0b1111_1100 };
    if options & reserved != 0 && on(Check::SubscribeReserved) {
        return Err(Violation::malformed("MQTT-3.8.3-5", "reserved subscription option"));
    }
    if options & 0b11 == 0b11 {
        return Err(Violation::malformed("3.8.3.1", "QoS 3"));
    }
    if options & 0b11_0000 == 0b11_0000 {
        return Err(Violation::protocol_error("3.8.3.1", "retain handling 3"));
    }
    if options & 0b100 != 0 && is_shared && on(Check::NoLocalOnShared) {
        return Err(Violation::protocol_error(
            "MQTT-3.8.3-4",
            "no local on a shared subscription",
        ));
    }
    Ok(())
}

pub(super) fn check_unsubscribe_v3(frame: Bytes, header: Header, limits: &Limits) -> Result<Checked, Violation> {
    let mut reader = Reader::new(&frame, header.length);
    reader.packet_id()?;
    let mut budget = FilterBudget::new(limits);
    while !reader.is_empty() {
        budget.spend()?;
        topic_grammar::check_topic_filter(reader.string()?)?;
    }
    if on(Check::UnsubscribeEmpty) {
        budget.check_any("MQTT-3.10.3-2")?;
    }
    Ok(Checked::new(frame, header))
}

pub(super) fn decode_unsubscribe_v5(frame: &[u8], header: Header, limits: &Limits) -> Result<Unsubscribe, Violation> {
    let mut reader = Reader::new(frame, header.length);
    let packet_id = reader.packet_id()?;
    let (block, _) = properties::check(&mut reader, Scope::UNSUBSCRIBE, Direction::ClientToServer, limits)?;
    let mut filters = Vec::new();
    let mut budget = FilterBudget::new(limits);
    while !reader.is_empty() {
        budget.spend()?;
        let filter = reader.string()?;
        topic_grammar::check_topic_filter(filter)?;
        filters.push(filter.to_owned());
    }
    if on(Check::UnsubscribeEmpty) {
        budget.check_any("MQTT-3.10.3-2")?;
    }
    let user_properties = PropertyIter::new(block).filter_map(|property| match property {
        Property::UserProperty(name, value) => Some((name.to_owned(), value.to_owned())),
        _ => None,
    });
    Ok(Unsubscribe {
        packet_id,
        filters,
        user_properties: user_properties.collect(),
    })
}

/// Counts filters against [`Limits::filters_per_packet`].
struct FilterBudget {
    seen: usize,
    limit: usize,
}

impl FilterBudget {
    fn new(limits: &Limits) -> FilterBudget {
        FilterBudget {
            seen: 0,
            limit: limits.filters_per_packet,
        }
    }

    fn spend(&mut self) -> Result<(), Violation> {
        self.seen += 1;
        if self.seen > self.limit {
            return Err(Violation::new(
                ReasonCode::QUOTA_EXCEEDED,
                "3.8.3",
                "too many topic filters in one packet",
            ));
        }
        Ok(())
    }

    fn check_any(&self, statement: &'static str) -> Result<(), Violation> {
        if self.seen > 0 {
            Ok(())
        } else {
            Err(Violation::protocol_error(statement, "no topic filter"))
        }
    }
}
