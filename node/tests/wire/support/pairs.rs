//! Publisher and subscriber on every ordered pair of nodes (the same node twice included), with the raw client.

use super::client::Client;
use super::cluster::Cluster;
use super::codec::VERSIONS;

/// QoS 0 and 1, 3.1.1 and 5: published right after the SUBACK arrived, delivered in order and once.
pub async fn every_pair_delivers(cluster: &Cluster) {
    for version in VERSIONS {
        for qos in [0, 1] {
            for (s, subscriber) in cluster.nodes.iter().enumerate() {
                for (p, publisher) in cluster.nodes.iter().enumerate() {
                    let name = format!("pair-{version:?}-{qos}-{s}-{p}");
                    let topic = format!("pairs/{name}");
                    let mut sender = Client::open(&publisher.mqtt, version, &format!("{name}-p")).await;
                    let mut receiver = Client::open(&subscriber.mqtt, version, &format!("{name}-s")).await;
                    receiver.subscribe(&[(&topic, qos)]).await;
                    for n in 0..PER_PAIR {
                        sender.publish(&topic, format!("{name} {n}"), qos).await;
                    }
                    for n in 0..PER_PAIR {
                        let message = receiver.message().await;
                        assert_eq!(message.text(), format!("{name} {n}"));
                        assert_eq!((message.topic.as_str(), message.qos), (topic.as_str(), qos));
                        assert!(!message.dup && !message.retain, "{message:?}");
                    }
                }
            }
        }
    }
}

const PER_PAIR: usize = 5;
