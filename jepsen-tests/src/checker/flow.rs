//! (l) Flow control: never more unacknowledged than Receive Maximum allows [MQTT-3.3.4-9]; acknowledgements of a connection
//! in the order of what they acknowledge, per kind [MQTT-4.6.0-2] [MQTT-4.6.0-3].

use super::model::{ExchangeKind, Map, Model};
use super::{Findings, Limits};
use crate::history::Op;

pub fn check(model: &Model, _: &Limits) -> Findings {
    let mut findings = Findings::default();
    for delivery in &model.deliveries {
        let Op::Recv { in_flight, .. } = &model.events[delivery.index].op else {
            continue;
        };
        let connection = &model.connections[delivery.connection as usize];
        findings.greatest("flow.in_flight", (*in_flight).into());
        if *in_flight == u32::from(connection.receive_maximum) {
            findings.count("flow.full", 1.0);
        }
        if *in_flight > u32::from(connection.receive_maximum) {
            let message = format!(
                "{} had {in_flight} unacknowledged on connection {}; its Receive Maximum is {}",
                model.clients.name(connection.client),
                connection.number,
                connection.receive_maximum,
            );
            let events = [connection.answer, delivery.index];
            findings.violation(("flow", "receive-maximum", "-"), message, events);
        }
    }
    acknowledgement_order(model, &mut findings);
    findings
}

fn acknowledgement_order(model: &Model, findings: &mut Findings) {
    // Exchanges stand in the order of their answers.
    let mut newest: Map<(u32, bool), (usize, usize)> = Map::default();
    for exchange in &model.exchanges {
        if !matches!(exchange.kind, ExchangeKind::Publish1 | ExchangeKind::Publish2) {
            continue;
        }
        let key = (exchange.connection, exchange.kind == ExchangeKind::Publish2);
        let (sent, answered) = *newest.get(&key).unwrap_or(&(exchange.sent, exchange.answered));
        if exchange.sent < sent {
            let connection = &model.connections[exchange.connection as usize];
            let message = format!(
                "{} acknowledged two PUBLISH of connection {} in another order than they were sent",
                model.nodes.name(connection.node),
                connection.number,
            );
            let events = [exchange.sent, sent, answered, exchange.answered];
            findings.violation(("flow", "ack-order", "P3"), message, events);
        } else {
            newest.insert(key, (exchange.sent, exchange.answered));
        }
    }
}
