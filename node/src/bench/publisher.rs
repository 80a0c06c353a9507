//! One publisher: what it sends next, and what it waits for.
//!
//!     free ids ──PUBLISH──▶ AwaitPuback ─────────PUBACK──▶ free
//!                    └────▶ AwaitPubrec ─PUBREC─▶ AwaitPubcomp ─PUBCOMP─▶ free
//!
//! Sans-io: bytes go to `out`, acknowledgements and times come in.

use std::collections::VecDeque;
use std::num::NonZeroU16;

use bytes::BytesMut;

use super::EndOfClient;
use super::stamp::Stamp;
use crate::protocol::codec::{
    Ack, AckKind, EncodeError, PropertiesOut, PublishFields, PublishFrame, QoS, ReasonCode, Version, encode_ack,
};

/// When messages leave.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// As soon as fewer than so many are under way.
    Closed { window: u16 },
    /// The first at `first` after the start, then every `interval`; nanoseconds.
    Open { first: f64, interval: f64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InFlight {
    Free,
    AwaitPuback,
    AwaitPubrec,
    AwaitPubcomp,
}

#[derive(Debug)]
pub struct Publisher {
    index: u32,
    run: u64,
    version: Version,
    qos: QoS,
    frame: PublishFrame,
    payload_bytes: usize,
    pace: Pace,
    /// Messages to send in all.
    limit: u64,
    pub sent: u64,
    pub acknowledged: u64,
    pub refused: u64,
    /// Arrivals at subscribers, all together; bounds what is under way at QoS 0.
    pub arrived: u64,
    /// Arrivals that are not waited for any more.
    written_off: u64,
    subscribers: u64,
    /// By packet identifier − 1.
    in_flight: Vec<InFlight>,
    sent_at: Vec<u64>,
    free: VecDeque<NonZeroU16>,
}

/// What of a publisher an acknowledgement ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// PUBREC; PUBREL follows.
    Half,
    /// Nanoseconds since it was sent.
    Whole(u64),
}

impl Publisher {
    /// # Errors
    /// The topic or payload cannot be expressed.
    pub fn new(settings: &Settings<'_>) -> Result<Publisher, EncodeError> {
        let payload = vec![b'x'; settings.payload_bytes];
        let frame = PublishFrame::encode(&PublishFields {
            version: settings.version,
            qos: settings.qos,
            retain: false,
            topic: settings.topic,
            properties: PropertiesOut::default(),
            payload: &payload,
        })?;
        Ok(Publisher {
            index: settings.index,
            run: settings.run,
            version: settings.version,
            qos: settings.qos,
            frame,
            payload_bytes: settings.payload_bytes,
            pace: settings.pace,
            limit: settings.limit,
            sent: 0,
            acknowledged: 0,
            refused: 0,
            arrived: 0,
            written_off: 0,
            subscribers: u64::from(settings.subscribers),
            in_flight: Vec::new(),
            sent_at: Vec::new(),
            free: VecDeque::new(),
        })
    }

    /// CONNACK named the server's Receive Maximum. [MQTT-3.3.4-7]
    pub fn connected(&mut self, receive_maximum: u16) {
        if self.qos == QoS::AtMostOnce {
            return;
        }
        let window = match self.pace {
            Pace::Closed { window } => window.min(receive_maximum),
            Pace::Open { .. } => receive_maximum,
        };
        self.in_flight = vec![InFlight::Free; usize::from(window)];
        self.sent_at = vec![0; usize::from(window)];
        self.free = (1..=window).filter_map(NonZeroU16::new).collect();
    }

    /// A schedule begins at `now`.
    pub fn start(&mut self, now: u64) {
        if let Pace::Open { first, .. } = &mut self.pace {
            *first += now as f64;
        }
    }

    /// Sends what is due and has room; `late` gets how long after its time each message left.
    pub fn fill(&mut self, now: u64, out: &mut BytesMut, mut late: impl FnMut(u64)) {
        while self.sent < self.limit && out.len() < OUT_BYTES_MAX {
            let due = match self.pace {
                Pace::Closed { .. } => now,
                Pace::Open { .. } => self.next_due(),
            };
            if due > now {
                return;
            }
            let packet_id = match self.qos {
                QoS::AtMostOnce if self.under_way() < self.window() => None,
                QoS::AtMostOnce => return,
                QoS::AtLeastOnce | QoS::ExactlyOnce => match self.free.pop_front() {
                    Some(packet_id) => Some(packet_id),
                    None => return,
                },
            };
            late(now - due);
            self.append(packet_id, now, due, out);
        }
    }

    /// When the next message is due; in a closed loop, at once.
    fn next_due(&self) -> u64 {
        match self.pace {
            Pace::Closed { .. } => 0,
            Pace::Open { first, interval } => (first + self.sent as f64 * interval) as u64,
        }
    }

    /// Nothing more is sent.
    pub fn stop(&mut self) {
        self.limit = self.sent;
    }

    pub fn is_done(&self) -> bool {
        self.sent >= self.limit
    }

    /// At QoS 0 what did not come is not waited for.
    pub fn write_off(&mut self) {
        self.written_off = (self.sent * self.subscribers).saturating_sub(self.arrived);
    }

    pub fn unanswered(&self) -> u64 {
        (self.in_flight.len() - self.free.len()) as u64
    }

    /// PUBACK, PUBREC or PUBCOMP.
    ///
    /// # Errors
    /// It answers nothing.
    pub fn answer(&mut self, kind: AckKind, ack: &Ack, now: u64, out: &mut BytesMut) -> Result<Answered, EndOfClient> {
        let at = usize::from(ack.packet_id.get()) - 1;
        let awaited = match kind {
            AckKind::PubAck => InFlight::AwaitPuback,
            AckKind::PubRec => InFlight::AwaitPubrec,
            AckKind::PubComp => InFlight::AwaitPubcomp,
            AckKind::PubRel => return Err(EndOfClient::Unexpected("PUBREL to a publisher")),
        };
        if self.in_flight.get(at) != Some(&awaited) {
            return Err(EndOfClient::Unexpected("an acknowledgement of nothing in flight"));
        }
        let is_refused = ack.reason.0 >= FAILURE;
        if kind == AckKind::PubRec && !is_refused {
            self.in_flight[at] = InFlight::AwaitPubcomp;
            encode_ack(AckKind::PubRel, self.version, ack.packet_id, ReasonCode::SUCCESS, out);
            return Ok(Answered::Half);
        }
        self.in_flight[at] = InFlight::Free;
        self.free.push_back(ack.packet_id);
        if is_refused {
            self.refused += 1;
        } else {
            self.acknowledged += 1;
        }
        Ok(Answered::Whole(now.saturating_sub(self.sent_at[at])))
    }

    fn append(&mut self, packet_id: Option<NonZeroU16>, now: u64, due: u64, out: &mut BytesMut) {
        self.frame.append(packet_id, false, out);
        let payload_at = out.len() - self.payload_bytes;
        let stamp = Stamp {
            run: self.run,
            publisher: self.index,
            sequence: self.sent,
            due,
        };
        stamp.write(&mut out[payload_at..]);
        self.sent += 1;
        if let Some(packet_id) = packet_id {
            let at = usize::from(packet_id.get()) - 1;
            self.in_flight[at] = match self.qos {
                QoS::ExactlyOnce => InFlight::AwaitPubrec,
                _ => InFlight::AwaitPuback,
            };
            self.sent_at[at] = now;
        }
    }

    fn under_way(&self) -> u64 {
        self.sent
            .saturating_sub((self.arrived + self.written_off) / self.subscribers)
    }

    fn window(&self) -> u64 {
        match self.pace {
            Pace::Closed { window } => u64::from(window),
            Pace::Open { .. } => u64::MAX,
        }
    }
}

/// What a publisher is made of.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    pub index: u32,
    pub run: u64,
    pub version: Version,
    pub qos: QoS,
    pub topic: &'a str,
    pub payload_bytes: usize,
    pub pace: Pace,
    pub limit: u64,
    /// That get each message.
    pub subscribers: u32,
}

/// Enough for one write; more would age in this process instead of in the broker.
const OUT_BYTES_MAX: usize = 64 * 1024;

/// Reason codes from here on are failures.
const FAILURE: u8 = 0x80;

#[cfg(test)]
mod tests {
    use super::*;

    fn publisher(qos: QoS, pace: Pace) -> Publisher {
        let mut publisher = Publisher::new(&Settings {
            index: 3,
            run: 9,
            version: Version::V5,
            qos,
            topic: "a",
            payload_bytes: 64,
            pace,
            limit: 100,
            subscribers: 2,
        })
        .expect("valid");
        publisher.connected(10);
        publisher
    }

    fn fill(publisher: &mut Publisher, now: u64) -> u64 {
        let before = publisher.sent;
        publisher.fill(now, &mut BytesMut::new(), |_| ());
        publisher.sent - before
    }

    fn ack(packet_id: u16, reason: ReasonCode) -> Ack {
        Ack::new(NonZeroU16::new(packet_id).expect("not 0"), reason)
    }

    #[test]
    fn a_window_is_refilled_by_acknowledgements_and_at_qos_0_by_arrivals() {
        let mut acknowledged = publisher(QoS::AtLeastOnce, Pace::Closed { window: 16 });
        assert_eq!(fill(&mut acknowledged, 5), 10, "the server's Receive Maximum");
        let mut out = BytesMut::new();
        let success = ack(1, ReasonCode::SUCCESS);
        let answered = acknowledged.answer(AckKind::PubAck, &success, 9, &mut out);
        assert_eq!(answered.expect("in flight"), Answered::Whole(4));
        assert_eq!(fill(&mut acknowledged, 9), 1);
        acknowledged
            .answer(AckKind::PubComp, &success, 9, &mut out)
            .expect_err("QoS 1 has no PUBCOMP");

        let mut arriving = publisher(QoS::AtMostOnce, Pace::Closed { window: 16 });
        assert_eq!(fill(&mut arriving, 5), 16);
        arriving.arrived += 5;
        assert_eq!(fill(&mut arriving, 5), 2, "two subscribers have had two messages");
        arriving.write_off();
        assert_eq!(fill(&mut arriving, 5), 16, "whatever is lost");
        arriving.arrived += 32;
        assert_eq!(fill(&mut arriving, 5), 16, "and what came afterwards");
    }

    #[test]
    fn a_qos_2_message_is_answered_twice_and_a_refused_one_once() {
        let mut publisher = publisher(QoS::ExactlyOnce, Pace::Closed { window: 2 });
        fill(&mut publisher, 0);
        let mut out = BytesMut::new();
        let mut answer = |kind, ack| publisher.answer(kind, &ack, 7, &mut out).expect("in flight");
        assert_eq!(answer(AckKind::PubRec, ack(1, ReasonCode::SUCCESS)), Answered::Half);
        assert_eq!(
            answer(AckKind::PubComp, ack(1, ReasonCode::SUCCESS)),
            Answered::Whole(7)
        );
        assert_eq!(
            answer(AckKind::PubRec, ack(2, ReasonCode::QUOTA_EXCEEDED)),
            Answered::Whole(7)
        );
        assert_eq!(
            (publisher.acknowledged, publisher.refused, publisher.unanswered()),
            (1, 1, 0)
        );
        assert_eq!(out[..], [0x62, 2, 0, 1]);
    }

    #[test]
    fn a_schedule_is_kept_and_says_how_late_it_is() {
        let pace = Pace::Open {
            first: 100.0,
            interval: 50.0,
        };
        let mut publisher = publisher(QoS::AtMostOnce, pace);
        assert_eq!(fill(&mut publisher, 99), 0);
        assert_eq!(fill(&mut publisher, 100), 1);
        let mut late = Vec::new();
        publisher.fill(210, &mut BytesMut::new(), |by| late.push(by));
        assert_eq!(late, [60, 10]);
        assert_eq!(publisher.next_due(), 250);
    }
}
