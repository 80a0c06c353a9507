//! A delayed PUBLISH: it is kept in its topic's shard as soon as it is acknowledged, and matched when it is due.
//!
//! It takes no part in `order-per-publisher`: it has no place among what its connection publishes on the topic meanwhile,
//! and waits for none of it.

use lontra_cluster::DelayedPublish;
use lontra_storage::message::Message;

use super::execute::{origin_of, ticket};
use crate::auth::Authorized;
use crate::protocol::codec::Publish;
use crate::worker::{Client, Worker};

/// Durable whatever its QoS: nobody could deliver it later otherwise.
pub fn delay(
    worker: &Worker,
    client: &Client,
    message: &Authorized<Message>,
    packet: &Publish,
    seconds: u32,
    token: u64,
) {
    let shard = worker.cluster.shards().shard_of(&message.topic);
    let encoded = message.encode();
    worker.hold(client, token, encoded.len());
    let publish = DelayedPublish {
        message: encoded,
        seconds,
        retain: message.retain && !message.payload.is_empty(),
        origin: origin_of(client, packet, message.publisher, shard),
        ticket: ticket(worker, client, token),
    };
    worker.publisher.delayed(shard, publish);
}
