//! (b) Exactly once: a QoS 2 message reaches the application of a QoS 2 subscriber at most once (that it does is (a)).
//!
//! A PUBLISH repeated under its Packet Identifier before PUBREL is not handed on by the client and is no second copy. The
//! same message under a new identifier is one, whatever the application makes of it. [MQTT-4.3.3-10] [MQTT-4.4.0-1]

use super::model::{Delivery, Model};
use super::{Findings, Limits};

pub fn check(model: &Model, _: &Limits) -> Findings {
    let mut findings = Findings::default();
    for (life, number, copies) in model.copy_groups() {
        let published = &model.messages[number as usize];
        if published.qos < 2 || published.will {
            continue;
        }
        let copies: Vec<&&Delivery> = copies
            .iter()
            .filter(|copy| copy.qos == 2 && model.is_live(copy))
            .collect();
        findings.count("exactly_once.delivered", 1.0);
        if copies.len() < 2 {
            continue;
        }
        // A copy for the session itself and one for each group that it is a member of.
        let groups = model
            .holds_of(life, published.topic)
            .filter(|hold| hold.group.is_some())
            .count();
        let ordinary = model.holds_of(life, published.topic).any(|hold| hold.group.is_none());
        let allowed = (groups + usize::from(ordinary)).max(1);
        let handed: Vec<&&&Delivery> = copies.iter().filter(|copy| copy.handed).collect();
        let Some((last, earlier)) = handed.split_last() else {
            continue;
        };
        let forgot = model.forgot_between(last.client, copies[0].index, last.index);
        if handed.len() <= allowed || forgot {
            continue;
        }
        let same_pid = earlier.iter().any(|copy| copy.pid == last.pid);
        let (class, how) = if same_pid {
            ("duplicate-qos2", "again")
        } else {
            ("new-packet-id", "again under another packet identifier")
        };
        let message = format!(
            "{} got {} {} of {}, QoS 2, {how}: {} copies",
            model.client_of(life),
            published.message.topic,
            published.message.seq,
            published.message.publisher,
            handed.len(),
        );
        let events = copies
            .iter()
            .map(|copy| copy.index)
            .chain([published.invoke, published.end]);
        findings.violation(("exactly_once", class, "P2"), message, events);
    }
    findings
}
