//! Who connects where, sends and subscribes to what. Decides; `run.rs` does.

use std::net::{SocketAddr, ToSocketAddrs};

use super::BenchError;
use super::options::{Options, Scenario};

/// The clients of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub subscribers: Vec<SubscriberPlan>,
    pub publishers: Vec<PublisherPlan>,
    /// That get each message.
    pub subscribers_per_publisher: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct SubscriberPlan {
    pub broker: SocketAddr,
    pub client_id: String,
    pub filter: String,
    /// Whose messages it gets: so many from the first on.
    pub first_publisher: u32,
    pub publishers: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct PublisherPlan {
    pub broker: SocketAddr,
    pub client_id: String,
    pub topic: String,
}

impl Plan {
    /// `run` makes client ids and topics this run's own.
    pub fn new(options: &Options, brokers: &[SocketAddr], run: u64) -> Plan {
        let count = options.count;
        let (publishers, subscribers) = match options.scenario {
            Scenario::Pairs => (count, count),
            Scenario::FanOut => (1, count),
            Scenario::FanIn => (count, 1),
            Scenario::Idle => (0, 0),
        };
        let broker = |i: u32| brokers[i as usize % brokers.len()];
        let subscriber = |i: u32| {
            let (filter, first_publisher, publishers) = match options.scenario {
                Scenario::Pairs => (topic(run, i), i, 1),
                Scenario::FanOut => (topic(run, 0), 0, 1),
                Scenario::FanIn | Scenario::Idle => (format!("bench/{run:x}/+"), 0, publishers),
            };
            SubscriberPlan {
                broker: broker(i),
                client_id: format!("s{run:x}-{i}"),
                filter,
                first_publisher,
                publishers,
            }
        };
        let publisher = |i: u32| PublisherPlan {
            broker: broker(i + 1),
            client_id: format!("p{run:x}-{i}"),
            topic: topic(run, i),
        };
        Plan {
            subscribers: (0..subscribers).map(subscriber).collect(),
            publishers: (0..publishers).map(publisher).collect(),
            subscribers_per_publisher: match options.scenario {
                Scenario::FanOut => count,
                _ => 1,
            },
        }
    }
}

/// The first address of each broker.
///
/// # Errors
/// One has none.
pub fn resolve(brokers: &[String]) -> Result<Vec<SocketAddr>, BenchError> {
    let first = |broker: &String| {
        let mut addresses = broker.to_socket_addrs().map_err(|source| BenchError::Name {
            broker: broker.clone(),
            source,
        })?;
        addresses
            .next()
            .ok_or_else(|| BenchError::NoAddress { broker: broker.clone() })
    };
    brokers.iter().map(first).collect()
}

fn topic(run: u64, publisher: u32) -> String {
    format!("bench/{run:x}/{publisher}")
}
