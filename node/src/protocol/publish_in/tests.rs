//! Publishes, PUBRELs and outcomes in; answers out.

mod simulation;

use super::*;
use crate::protocol::codec::Version;
use Do::*;

/// What happens to the inbound half. Outcomes name the packet identifier whose answer they decide.
#[derive(Clone, Copy)]
enum Do {
    One(u16),
    OneAgain(u16),
    Two(u16),
    Release(u16),
    PubAck(u16, ReasonCode),
    PubRec(u16, ReasonCode),
    PubComp(u16),
}

const OK: ReasonCode = ReasonCode::SUCCESS;
const FULL: ReasonCode = ReasonCode::QUOTA_EXCEEDED;
const V3: Version = Version::V3_1_1;
const V5: Version = Version::V5;

struct Fixture {
    inbound: Inbound,
    out: BytesMut,
    tokens: HashMap<(u64, u16), u64>,
    told: Vec<String>,
}

impl Fixture {
    fn new(version: Version, receive_maximum: u16) -> Self {
        let answers = Answers {
            problem_information: false,
            ..Answers::of_version(version)
        };
        Fixture {
            inbound: Inbound::new(answers, receive_maximum),
            out: BytesMut::new(),
            tokens: HashMap::new(),
            told: Vec::new(),
        }
    }

    fn step(&mut self, step: Do) {
        let (now, id) = (Instant::now(), |id| NonZeroU16::new(id).unwrap());
        let Fixture { inbound, out, .. } = self;
        let (kind, packet_id, received) = match step {
            One(n) => (PUBACK, n, inbound.publish(id(n), QoS::AtLeastOnce, false, now, out)),
            OneAgain(n) => (PUBACK, n, inbound.publish(id(n), QoS::AtLeastOnce, true, now, out)),
            Two(n) => (PUBREC, n, inbound.publish(id(n), QoS::ExactlyOnce, false, now, out)),
            Release(n) => (PUBCOMP, n, inbound.pubrel(id(n), now)),
            PubAck(n, reason) => return self.decide(PUBACK, n, reason),
            PubRec(n, reason) => return self.decide(PUBREC, n, reason),
            PubComp(n) => return self.decide(PUBCOMP, n, OK),
        };
        match received {
            Received::New(token) => {
                assert_eq!(token >> 62, 0, "the session marks its own tokens there");
                assert!(!self.tokens.values().any(|known| *known == token), "tokens are unique");
                self.tokens.insert((kind, packet_id), token);
            }
            Received::Again => self.told.push(format!("again {packet_id}")),
            Received::Wait => self.told.push(format!("wait {packet_id}")),
            Received::Refused(reason) => self.told.push(format!("refused {packet_id} {:02x}", reason.0)),
        }
    }

    fn decide(&mut self, kind: u64, packet_id: u16, reason: ReasonCode) {
        let token = self.tokens[&(kind, packet_id)];
        let acknowledged = self.inbound.decide(token, reason, &mut self.out);
        if let Some(reason) = acknowledged.close {
            self.told.push(format!("close {:02x}", reason.0));
        }
    }
}

/// Runs `steps`; `expected` is what was told besides, then the bytes written in hex.
fn check(version: Version, receive_maximum: u16, steps: &[Do], expected: &[&str], written: &str) {
    let mut fixture = Fixture::new(version, receive_maximum);
    for step in steps {
        fixture.step(*step);
    }
    let hex: String = fixture.out.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(fixture.told, expected);
    assert_eq!(hex, written);
}

#[test]
fn pubacks_leave_in_order_of_receipt() {
    let sent = [One(7), One(8), One(9), PubAck(9, OK), PubAck(8, OK)];
    check(V3, 10, &sent, &[], "");
    let all = [&sent[..], &[PubAck(7, OK)]].concat();
    check(V3, 10, &all, &[], "400200074002000840020009");
}

#[test]
fn pubrecs_and_pubcomps_leave_in_order_each_and_wait_for_no_puback() {
    let steps = [
        One(1),
        Two(2),
        Two(3),
        One(4),
        PubRec(3, OK),
        PubRec(2, OK),
        Release(2),
        Release(3),
        PubComp(3),
    ];
    check(V5, 10, &steps, &[], "5002000250020003");
    let all = [&steps[..], &[PubComp(2), PubAck(1, OK), PubAck(4, OK)]].concat();
    let written = ["50020002", "50020003", "70020002", "70020003", "40020001", "40020004"].concat();
    check(V5, 10, &all, &[], &written);
}

#[test]
fn a_refusal_is_told_in_5_and_closes_in_3() {
    check(V5, 10, &[One(7), PubAck(7, FULL)], &[], "4003000797");
    check(V5, 10, &[Two(7), PubRec(7, FULL)], &[], "5003000797");
    // Never acknowledge behind a gap.
    let one = [One(7), One(8), PubAck(8, OK), PubAck(7, FULL)];
    check(V3, 10, &one, &["close 97"], "");
    let two = [Two(7), Two(8), PubRec(8, OK), PubRec(7, FULL)];
    check(V3, 10, &two, &["close 97"], "");
}

#[test]
fn a_refused_pubrec_ends_the_exchange() {
    // The identifier may be used again, and counts no more.
    let steps = [Two(7), PubRec(7, FULL), Two(7), PubRec(7, OK)];
    check(V5, 1, &steps, &[], "500300079750020007");
}

#[test]
fn a_repeat_is_not_handed_on_while_its_exchange_is_under_way() {
    check(V3, 10, &[Two(7), Two(7), PubRec(7, OK)], &["again 7"], "50020007");
    check(
        V3,
        10,
        &[Two(7), PubRec(7, OK), Two(7)],
        &["again 7"],
        "5002000750020007",
    );
    check(V3, 10, &[One(7), OneAgain(7), PubAck(7, OK)], &["again 7"], "40020007");
    check(V3, 10, &[OneAgain(7), PubAck(7, OK)], &[], "40020007");
    let early = [Two(7), PubRec(7, OK), Release(7), Two(7), PubComp(7), Two(7)];
    check(V5, 10, &early, &["wait 7"], "5002000770020007");
}

#[test]
fn a_repeat_counts_once() {
    let steps = [Two(7), Two(7), OneAgain(8), OneAgain(8), One(9)];
    check(V5, 2, &steps, &["again 7", "again 8", "refused 9 93"], "");
}

#[test]
fn a_pubrel_of_an_earlier_connection_is_handed_on() {
    let steps = [Release(7), Release(7), PubComp(7), Release(7), PubComp(7)];
    check(V5, 10, &steps, &["again 7"], "7002000770020007");
}

#[test]
fn the_identifier_of_a_pubrec_is_known_while_it_waits() {
    let mut fixture = Fixture::new(V5, 10);
    [One(7), Two(8), Two(9)].iter().for_each(|step| fixture.step(*step));
    let (one, two) = (fixture.tokens[&(PUBACK, 7)], fixture.tokens[&(PUBREC, 9)]);
    assert_eq!(fixture.inbound.awaits_pubrec(one), None);
    assert_eq!(fixture.inbound.awaits_pubrec(two), NonZeroU16::new(9));
    fixture.step(PubRec(8, OK));
    assert_eq!(fixture.inbound.awaits_pubrec(two), NonZeroU16::new(9));
    fixture.step(PubRec(9, OK));
    assert_eq!(fixture.inbound.awaits_pubrec(two), None);
}

#[test]
fn pubrel_answers_a_pubrec() {
    check(V5, 10, &[Two(7), Release(7)], &["refused 7 82"], "");
}

#[test]
fn receive_maximum_counts_until_puback_and_pubcomp() {
    let full = [One(1), Two(2)];
    let refused = |more: &[Do], expected: &[&str], written: &str| {
        check(V5, 2, &[&full[..], more].concat(), expected, written);
    };
    refused(&[Two(3)], &["refused 3 93"], "");
    refused(&[PubAck(1, OK), Two(3)], &[], "40020001");
    refused(&[PubRec(2, OK), One(3)], &["refused 3 93"], "50020002");
    refused(&[PubRec(2, OK), Release(2), One(3)], &["refused 3 93"], "50020002");
    refused(
        &[PubRec(2, OK), Release(2), PubComp(2), One(3)],
        &[],
        "5002000270020002",
    );
    // What an earlier connection published does not count.
    check(V5, 1, &[Release(9), One(1)], &[], "");
}

#[test]
fn only_what_waits_for_the_cluster_holds_a_client_back() {
    let has_room = |version, steps: &[Do]| {
        let mut fixture = Fixture::new(version, 2);
        steps.iter().for_each(|step| fixture.step(*step));
        fixture.inbound.has_room()
    };
    assert!(!has_room(V3, &[One(1), Two(2)]));
    assert!(has_room(V3, &[Two(1), Two(2), PubRec(1, OK)]), "PUBREL must be read");
    assert!(!has_room(V3, &[Release(1), Release(2)]));
    // A 5.0 client is in error if it publishes more; but may have PUBRELs of earlier connections.
    assert!(has_room(V5, &[One(1), Two(2)]));
    assert!(!has_room(V5, &[Release(1), Release(2)]));
}
