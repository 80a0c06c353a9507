//! QoS 2 towards a durable session: who waits for what, on this connection and the next.

use super::*;
use Do::*;

#[derive(Clone, Copy)]
enum Do {
    /// PUBREC of an offset in `S`.
    Rec(u16),
    RecError(u16),
    Comp(u16),
    CompNotFound(u16),
    /// The cluster committed the release, or applied the settlement.
    Released(u16),
    Settled(u16),
}

fn entry_of(offset: u64, qos: u8) -> PendingEntry {
    let mut entry = entry(offset);
    entry.granted.qos = qos;
    entry
}

fn released(offset: u64) -> PendingEntry {
    PendingEntry {
        released: true,
        ..entry_of(offset, 2)
    }
}

fn fixture(version: Version, receive_maximum: u16, entries: Vec<PendingEntry>) -> Fixture {
    let mut fixture = Fixture::of(Answers::of_version(version), receive_maximum, 0, true);
    fixture.entries(entries);
    fixture
}

impl Fixture {
    fn step(&mut self, step: Do) {
        let id = |offset: u16| NonZeroU16::new(FIRST + offset).unwrap();
        let Fixture {
            outbound, out, effects, ..
        } = self;
        match step {
            Rec(offset) => outbound.pubrec(id(offset), ReasonCode::SUCCESS, out, effects),
            RecError(offset) => outbound.pubrec(id(offset), ReasonCode::UNSPECIFIED_ERROR, out, effects),
            // What the reason says makes no difference here: the client is done with it.
            Comp(offset) | CompNotFound(offset) => {
                outbound.pubcomp(id(offset), effects);
            }
            Released(offset) => outbound.released(FIRST + offset),
            Settled(offset) => outbound.settled(FIRST + offset),
        }
    }

    /// What left after `step`, then what was wished for.
    fn after(&mut self, step: Do) -> Vec<String> {
        self.step(step);
        let mut told = self.told();
        told.extend(self.wishes().iter().map(|wish| match wish {
            Wish::Settle(S, offset, id, _) if *id == FIRST + offset.0 as u16 => format!("settle {offset}"),
            Wish::Release(S, offset, id) if *id == FIRST + offset.0 as u16 => format!("release {offset}"),
            other => panic!("{other:?}"),
        }));
        told
    }
}

/// Sends `entries`, then checks what follows each step.
fn check(version: Version, entries: Vec<PendingEntry>, sent: &[&str], steps: &[(Do, &[&str])]) {
    let mut fixture = fixture(version, 10, entries);
    assert_eq!(fixture.told(), sent);
    for (at, (step, expected)) in steps.iter().enumerate() {
        assert_eq!(fixture.after(*step), *expected, "step {at}");
    }
}

#[test]
fn pubrel_waits_for_the_committed_release() {
    check(
        Version::V3_1_1,
        vec![entry_of(3, 2)],
        &["PUBLISH 3 q2"],
        &[
            (Comp(3), &[]),
            (Rec(3), &["release 3"]),
            (Rec(3), &[]),
            (Comp(3), &[]),
            (Released(3), &["PUBREL 3"]),
            (Released(3), &[]),
            (Rec(3), &["PUBREL 3"]),
            (Comp(3), &["settle 3"]),
            (Comp(3), &[]),
        ],
    );
}

#[test]
fn pubrels_leave_in_the_order_of_their_pubrecs() {
    check(
        Version::V5,
        vec![entry_of(1, 2), entry_of(2, 2), entry_of(3, 2)],
        &["PUBLISH 1 q2", "PUBLISH 2 q2", "PUBLISH 3 q2"],
        &[
            (Rec(2), &["release 2"]),
            (Rec(1), &["release 1"]),
            (Rec(3), &["release 3"]),
            (Released(1), &[]),
            (Released(2), &["PUBREL 2", "PUBREL 1"]),
            (Released(3), &["PUBREL 3"]),
        ],
    );
}

#[test]
fn a_refusal_of_the_client_ends_the_exchange() {
    check(
        Version::V5,
        vec![entry_of(1, 2), entry_of(2, 2)],
        &["PUBLISH 1 q2", "PUBLISH 2 q2"],
        &[
            (RecError(1), &["settle 1"]),
            (Rec(2), &["release 2"]),
            (Released(2), &["PUBREL 2"]),
            (CompNotFound(2), &["settle 2"]),
        ],
    );
}

#[test]
fn a_pubrec_of_nothing_is_answered() {
    check(
        Version::V5,
        vec![],
        &[],
        &[(Rec(9), &["PUBREL 9 92"]), (RecError(9), &[])],
    );
    check(Version::V3_1_1, vec![], &[], &[(Rec(9), &["PUBREL 9"])]);
    // PUBREC for a PUBLISH of QoS 1 settles nothing.
    check(
        Version::V3_1_1,
        vec![entry(1)],
        &["PUBLISH 1 q1"],
        &[(Rec(1), &["PUBREL 1"])],
    );
}

#[test]
fn what_was_released_before_is_resumed_with_pubrel() {
    check(
        Version::V5,
        vec![entry_of(1, 2), released(2), entry_of(3, 2)],
        &["PUBLISH 1 q2", "PUBREL 2", "PUBLISH 3 q2"],
        &[(Rec(2), &["PUBREL 2"]), (RecError(2), &[]), (Comp(2), &["settle 2"])],
    );
}

#[test]
fn quota_counts_publishes_until_they_are_over_and_no_resumed_pubrels() {
    let entries = vec![released(1), released(2), entry_of(3, 2), entry_of(4, 2), released(5)];
    let mut fixture = fixture(Version::V5, 1, entries);
    assert_eq!(fixture.told(), ["PUBREL 1", "PUBREL 2", "PUBLISH 3 q2"]);
    assert_eq!(fixture.after(Comp(1)), ["settle 1"]);
    assert_eq!(fixture.after(Rec(3)), ["release 3"]);
    assert_eq!(fixture.after(Released(3)), ["PUBREL 3"]);
    assert_eq!(fixture.after(Comp(3)), ["PUBLISH 4 q2", "PUBREL 5", "settle 3"]);
    // Without a commit: PUBREC >= 0x80 gives the quota back.
    fixture.push(6);
    assert_eq!(fixture.after(RecError(4)), ["PUBLISH 6 q1", "settle 4"]);
}

#[test]
fn an_identifier_is_busy_until_the_exchange_is_gone_in_apply() {
    let wrapped = 1 + 5461;
    let mut fixture = fixture(Version::V5, 10, vec![entry_of(1, 2), entry_of(wrapped, 2)]);
    assert_eq!(fixture.told(), ["PUBLISH 1 q2"]);
    for (step, expected) in [
        (Rec(1), &["release 1"][..]),
        (Released(1), &["PUBREL 1"]),
        (Comp(1), &["settle 1"]),
        (Settled(1), &["PUBLISH 1 q2"]),
    ] {
        assert_eq!(fixture.after(step), expected);
    }
}

#[test]
fn qos_0_in_a_queue_is_settled_as_it_leaves() {
    let mut fixture = fixture(Version::V5, 1, vec![entry_of(1, 2), entry_of(2, 0), entry_of(3, 1)]);
    assert_eq!(fixture.told(), ["PUBLISH 1 q2", "PUBLISH - q0"]);
    assert_eq!(
        fixture.wishes(),
        [Wish::Settle(S, Offset(2), FIRST + 2, Left::Delivered)]
    );
}

/// `Message Expiry Interval` passed, or too large for the client; at each QoS, sent before or not.
#[test]
fn what_may_have_been_sent_at_qos_2_is_never_dropped() {
    let outcome = |qos: u8, maybe_sent: bool, expired: bool| {
        let answers = Answers {
            packet_size_max: if expired { 100 } else { 4 },
            ..Answers::of_version(Version::V5)
        };
        let mut fixture = Fixture::of(answers, 10, 0, true);
        let sent = [Offset(0), Offset(0), Offset(u64::from(maybe_sent))];
        fixture.outbound.resume(Some(&sent));
        let mut entry = entry_of(1, qos);
        entry.message = Arc::new(Message {
            expiry_interval: Some(1),
            ..(*entry.message).clone()
        });
        entry.appended_at = LogTime(if expired { 0 } else { 1000 });
        fixture.entries(vec![entry]);
        let mut told = fixture.told();
        told.extend(
            fixture
                .wishes()
                .iter()
                .map(|wish| format!("{wish:?}").chars().take(3).collect()),
        );
        (told.join(" "), fixture.effects.dropped)
    };
    let (expired, large) = (vec![Drop::Expired], vec![Drop::TooLarge]);
    for (qos, maybe_sent, is_expired, told, dropped) in [
        (1, false, true, "Set", &expired),
        (2, false, true, "Set", &expired),
        (1, true, true, "PUBLISH 1 q1 dup", &vec![]),
        (2, true, true, "PUBLISH 1 q2 dup", &vec![]),
        (1, false, false, "Set", &large),
        (2, false, false, "Set", &large),
        (1, true, false, "Set", &large),
        // Closed by PUBREL and PUBCOMP: the client has it, or never will.
        (2, true, false, "Rel", &large),
    ] {
        let expected = (told.to_owned(), dropped.clone());
        assert_eq!(
            outcome(qos, maybe_sent, is_expired),
            expected,
            "{qos} {maybe_sent} {is_expired}"
        );
    }
}

#[test]
fn what_cannot_be_sent_again_is_closed_by_pubrel() {
    let answers = Answers {
        packet_size_max: 4,
        ..Answers::of_version(Version::V5)
    };
    let mut fixture = Fixture::of(answers, 1, 0, true);
    fixture.outbound.resume(Some(&[Offset(0), Offset(0), Offset(1)]));
    fixture.entries(vec![entry_of(1, 2)]);
    assert_eq!(fixture.told(), [""; 0]);
    assert_eq!(fixture.wishes(), [Wish::Release(S, Offset(1), FIRST + 1)]);
    assert_eq!(fixture.after(Released(1)), ["PUBREL 1"]);
    assert_eq!(fixture.after(CompNotFound(1)), ["settle 1"]);
    assert_eq!(fixture.outbound.free_quota(), 1);
}
