//! One subscriber: answers what comes, and has it counted.

use bytes::BytesMut;

use super::EndOfClient;
use super::arrivals::Arrivals;
use super::tally::Tally;
use crate::protocol::codec::{AckKind, Packet, Publish, QoS, ReasonCode, Version, encode_ack};

#[derive(Debug)]
pub struct Subscriber {
    pub filter: String,
    pub qos: QoS,
    version: Version,
    first_publisher: u32,
    /// By publisher, from the first on.
    arrivals: Vec<Arrivals>,
}

impl Subscriber {
    pub fn new(filter: String, qos: QoS, version: Version, first_publisher: u32, publishers: u32) -> Subscriber {
        Subscriber {
            filter,
            qos,
            version,
            first_publisher,
            arrivals: vec![Arrivals::default(); publishers as usize],
        }
    }

    /// # Errors
    /// It is nothing for a subscriber.
    pub fn handle(
        &mut self,
        packet: &Packet,
        tally: &mut Tally,
        now: u64,
        out: &mut BytesMut,
    ) -> Result<(), EndOfClient> {
        match packet {
            Packet::Publish(publish) => {
                self.answer(publish, out);
                tally.arrived(publish.payload(), self.first_publisher, &mut self.arrivals, now);
                Ok(())
            }
            Packet::PubRel(ack) => {
                encode_ack(AckKind::PubComp, self.version, ack.packet_id, ReasonCode::SUCCESS, out);
                Ok(())
            }
            _ => Err(EndOfClient::Unexpected("a packet for publishers at a subscriber")),
        }
    }

    fn answer(&self, publish: &Publish, out: &mut BytesMut) {
        let kind = match publish.qos() {
            QoS::AtMostOnce => return,
            QoS::AtLeastOnce => AckKind::PubAck,
            QoS::ExactlyOnce => AckKind::PubRec,
        };
        if let Some(packet_id) = publish.packet_id() {
            encode_ack(kind, self.version, packet_id, ReasonCode::SUCCESS, out);
        }
    }
}
