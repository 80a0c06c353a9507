//! What one client may send: it is held back, not refused, until it is below its rates again.
//!
//! ```text
//!   frame ─▶ charge: client, listener, node ─▶ held? ─▶ not read from until the latest of them is free
//!                                                └ its own rates, without a break longer than `over_rate_max` ─▶ 0x96
//! ```
//!
//! Sans-io. The rates of the listener and of the node hold clients back too, and end none: what is beyond them is not one
//! client's fault.

use std::time::Duration;

use super::Limit;
use super::rate::{Bucket, Moment, Rate, SharedBucket};

/// Rates of PUBLISH packets, and of bytes of all packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    pub messages: Option<Rate>,
    pub bytes: Option<Rate>,
}

/// What clients together have sent.
#[derive(Debug, Default)]
pub struct Sent {
    messages: SharedBucket,
    bytes: SharedBucket,
}

impl Sent {
    fn charge(&self, rates: &Rates, messages: u64, bytes: u64, now: Moment) {
        if let Some(rate) = rates.messages
            && messages > 0
        {
            self.messages.charge(rate, messages, now);
        }
        if let Some(rate) = rates.bytes {
            self.bytes.charge(rate, bytes, now);
        }
    }

    fn free_at(&self, rates: &Rates, now: Moment) -> [Option<Moment>; 2] {
        [
            rates.messages.and_then(|rate| self.messages.free_at(rate, now)),
            rates.bytes.and_then(|rate| self.bytes.free_at(rate, now)),
        ]
    }
}

/// What holds for the clients of a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowLimits {
    pub client: Rates,
    pub listener: Rates,
    pub node: Rates,
    /// None: a client is held back for as long as it takes.
    pub over_rate_max: Option<Duration>,
}

impl FlowLimits {
    /// Whether anything is limited.
    pub fn any(&self) -> bool {
        let rates = [&self.client, &self.listener, &self.node];
        rates
            .iter()
            .any(|rates| rates.messages.is_some() || rates.bytes.is_some())
    }
}

/// What one client has sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flow {
    messages: Bucket,
    bytes: Bucket,
    over_since: Option<Moment>,
    is_held: bool,
}

/// What is to be done about a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    Free,
    /// Not to be read from until then; `begins` is the limit, if it was not held before.
    Held {
        until: Moment,
        begins: Option<Limit>,
    },
    /// It was above its own rates for too long: 0x96.
    Hopeless,
}

impl Flow {
    /// A whole packet of the client came.
    pub fn charge(
        &mut self,
        limits: &FlowLimits,
        listener: &Sent,
        node: &Sent,
        is_publish: bool,
        bytes: usize,
        now: Moment,
    ) {
        let (messages, bytes) = (u64::from(is_publish), bytes as u64);
        if let Some(rate) = limits.client.messages
            && is_publish
        {
            self.messages.charge(rate, messages, now);
        }
        if let Some(rate) = limits.client.bytes {
            self.bytes.charge(rate, bytes, now);
        }
        listener.charge(&limits.listener, messages, bytes, now);
        node.charge(&limits.node, messages, bytes, now);
    }

    /// Whether the client may be read from now.
    pub fn pace(&mut self, limits: &FlowLimits, listener: &Sent, node: &Sent, now: Moment) -> Pace {
        let own = self.own(limits, now);
        let [of_messages, of_bytes] = own;
        let [all_messages, all_bytes] = listener.free_at(&limits.listener, now);
        let [node_messages, node_bytes] = node.free_at(&limits.node, now);
        let waits = [
            (of_messages, Limit::ClientMessages),
            (of_bytes, Limit::ClientBytes),
            (all_messages, Limit::ListenerMessages),
            (all_bytes, Limit::ListenerBytes),
            (node_messages, Limit::NodeMessages),
            (node_bytes, Limit::NodeBytes),
        ];
        let latest = waits
            .into_iter()
            .filter_map(|(free, limit)| Some((free?, limit)))
            .max_by_key(|(free, _)| *free);
        if own.iter().any(Option::is_some) {
            self.over_since.get_or_insert(now);
        } else if self.has_slack(limits, now) {
            self.over_since = None;
        }
        let Some((until, limit)) = latest else {
            self.is_held = false;
            return Pace::Free;
        };
        let ends = match (limits.over_rate_max, self.over_since) {
            (Some(max), Some(since)) => Some(since.after(max)),
            _ => None,
        };
        if own.iter().any(Option::is_some) && ends.is_some_and(|ends| ends <= now) {
            return Pace::Hopeless;
        }
        let begins = (!std::mem::replace(&mut self.is_held, true)).then_some(limit);
        let until = ends.map_or(until, |ends| if ends > now { until.min(ends) } else { until });
        Pace::Held { until, begins }
    }

    fn own(&self, limits: &FlowLimits, now: Moment) -> [Option<Moment>; 2] {
        [
            limits.client.messages.and_then(|rate| self.messages.free_at(rate, now)),
            limits.client.bytes.and_then(|rate| self.bytes.free_at(rate, now)),
        ]
    }

    fn has_slack(&self, limits: &FlowLimits, now: Moment) -> bool {
        let of = |bucket: &Bucket, rate: Option<Rate>| rate.is_none_or(|rate| bucket.has_slack(rate, now));
        of(&self.messages, limits.client.messages) && of(&self.bytes, limits.client.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment(millis * 1_000_000)
    }

    fn rate(per_second: u64) -> Option<Rate> {
        Rate::new(per_second, Duration::from_secs(1))
    }

    struct Scene {
        limits: FlowLimits,
        listener: Sent,
        node: Sent,
        flow: Flow,
    }

    impl Scene {
        fn new(limits: FlowLimits) -> Scene {
            let (listener, node, flow) = (Sent::default(), Sent::default(), Flow::default());
            Scene {
                limits,
                listener,
                node,
                flow,
            }
        }

        fn send(&mut self, is_publish: bool, bytes: usize, now: Moment) -> Pace {
            self.flow
                .charge(&self.limits, &self.listener, &self.node, is_publish, bytes, now);
            self.pace(now)
        }

        fn pace(&mut self, now: Moment) -> Pace {
            self.flow.pace(&self.limits, &self.listener, &self.node, now)
        }
    }

    fn client(messages: u64, bytes: u64) -> FlowLimits {
        let client = Rates {
            messages: rate(messages),
            bytes: rate(bytes),
        };
        FlowLimits {
            client,
            ..FlowLimits::default()
        }
    }

    #[test]
    fn a_client_above_its_rate_waits_and_goes_on() {
        let mut scene = Scene::new(client(10, 0));
        for _ in 0..9 {
            assert_eq!(scene.send(true, 5, at(0)), Pace::Free);
        }
        let until = at(100);
        let begins = Some(Limit::ClientMessages);
        assert_eq!(scene.send(true, 5, at(0)), Pace::Held { until, begins });
        assert_eq!(scene.pace(at(50)), Pace::Held { until, begins: None }, "told once");
        assert_eq!(scene.pace(at(100)), Pace::Free);
        // What is no PUBLISH is no message.
        assert_eq!(scene.send(false, 5, at(100)), Pace::Free);
    }

    #[test]
    fn bytes_count_of_all_packets_and_the_latest_wait_counts() {
        let mut scene = Scene::new(client(10, 1000));
        let begins = Some(Limit::ClientBytes);
        let until = Moment(4_001_000_000);
        assert_eq!(scene.send(false, 5000, at(0)), Pace::Held { until, begins });
    }

    #[test]
    fn over_rate_max_ends_who_never_pauses() {
        let mut scene = Scene::new(FlowLimits {
            over_rate_max: Some(Duration::from_secs(3)),
            ..client(10, 0)
        });
        let (mut now, mut sent) = (at(0), 0);
        let ended = loop {
            match scene.pace(now) {
                Pace::Free => {
                    scene.send(true, 5, now);
                    sent += 1;
                }
                Pace::Held { until, .. } => now = until,
                Pace::Hopeless => break now,
            }
        };
        assert_eq!(ended, at(3000));
        assert!((39..=41).contains(&sent), "{sent}");
        // One that pauses begins anew.
        let mut scene = Scene::new(scene.limits);
        for second in 0..20 {
            for _ in 0..10 {
                scene.send(true, 5, at(second * 2000));
            }
            assert!(matches!(scene.pace(at(second * 2000)), Pace::Held { .. }));
            assert_eq!(scene.pace(at(second * 2000 + 1000)), Pace::Free);
        }
    }

    #[test]
    fn the_others_rate_holds_everybody_and_ends_nobody() {
        let mut scene = Scene::new(FlowLimits {
            node: Rates {
                messages: rate(10),
                bytes: None,
            },
            over_rate_max: Some(Duration::from_millis(1)),
            ..client(0, 0)
        });
        assert!(scene.limits.any() && !client(0, 0).any());
        for _ in 0..100 {
            scene.send(true, 5, at(0));
        }
        // Another client, which has sent nothing.
        scene.flow = Flow::default();
        let begins = Some(Limit::NodeMessages);
        let until = at(9100);
        assert_eq!(scene.pace(at(0)), Pace::Held { until, begins });
        assert_eq!(scene.pace(at(5000)), Pace::Held { until, begins: None });
        assert_eq!(scene.pace(at(9100)), Pace::Free);
    }
}
