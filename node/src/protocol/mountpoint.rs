//! What stands before the topics of a listener's clients in the cluster, which they do not see.
//!
//! ```text
//!   client            cluster
//!   a/b          ──▶  tenant/a/b             PUBLISH, will
//!   a/#          ──▶  tenant/a/#             SUBSCRIBE, UNSUBSCRIBE
//!   $share/g/a/# ──▶  $share/g/tenant/a/#
//!   a/b          ◀──  tenant/a/b             a topic without it leaves as it is: of a session that came from elsewhere
//!   $SYS/…       ◀─▶  $SYS/…
//! ```

use std::sync::Arc;

use super::codec::ReasonCode;
use super::codec::topic_grammar::split_shared;
use crate::sys::is_sys;

/// A prefix that ends with `/`, or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mountpoint(Option<Arc<str>>);

impl Mountpoint {
    /// Empty: none.
    pub fn new(prefix: &str) -> Self {
        Mountpoint((!prefix.is_empty()).then(|| prefix.into()))
    }

    /// A client's Topic Name in the cluster; `None`: it is the same.
    ///
    /// # Errors
    /// It is too long there.
    pub fn topic(&self, topic: &str) -> Result<Option<Arc<str>>, ReasonCode> {
        let Some(prefix) = self.0.as_ref().filter(|_| !is_sys(topic)) else {
            return Ok(None);
        };
        match prefix.len() + topic.len() <= TOPIC_BYTES_MAX {
            true => Ok(Some([prefix, topic].concat().into())),
            false => Err(ReasonCode::TOPIC_NAME_INVALID),
        }
    }

    /// A client's Topic Filter in the cluster.
    ///
    /// # Errors
    /// It is too long there.
    pub fn filter(&self, filter: String) -> Result<Box<str>, ReasonCode> {
        let Some(prefix) = &self.0 else {
            return Ok(filter.into());
        };
        let shared = split_shared(&filter);
        if is_sys(shared.map_or(&*filter, |(_, filter)| filter)) {
            return Ok(filter.into());
        }
        if prefix.len() + filter.len() > TOPIC_BYTES_MAX {
            return Err(ReasonCode::TOPIC_FILTER_INVALID);
        }
        Ok(match shared {
            Some((group, filter)) => format!("$share/{group}/{prefix}{filter}").into(),
            None => [prefix, &*filter].concat().into(),
        })
    }

    /// A topic of the cluster, as the client knows it.
    pub fn unmounted<'a>(&self, topic: &'a str) -> &'a str {
        let prefix = self.0.as_deref().unwrap_or_default();
        // A topic has at least one character.
        topic
            .strip_prefix(prefix)
            .filter(|rest| !rest.is_empty())
            .unwrap_or(topic)
    }
}

/// [MQTT-4.7.3-3]
const TOPIC_BYTES_MAX: usize = 65_535;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_and_filters_are_mounted_and_taken_down_again() {
        let mountpoint = Mountpoint::new("tenant/");
        for (client, cluster) in [("a/b", "tenant/a/b"), ("/", "tenant//"), ("$other", "tenant/$other")] {
            assert_eq!(mountpoint.topic(client).expect("short").as_deref(), Some(cluster));
            assert_eq!(mountpoint.unmounted(cluster), client);
        }
        for (client, cluster) in [
            ("#", "tenant/#"),
            ("+/b", "tenant/+/b"),
            ("$share/g/a/+", "$share/g/tenant/a/+"),
            ("$share/g//", "$share/g/tenant//"),
            ("$SYS/#", "$SYS/#"),
            ("$share/g/$SYS/#", "$share/g/$SYS/#"),
        ] {
            assert_eq!(mountpoint.filter(client.into()).expect("short").as_ref(), cluster);
        }
        assert_eq!(mountpoint.topic("$SYS/broker/uptime"), Ok(None));
        for other in ["$SYS/broker/uptime", "elsewhere", "tenant", "tenant/"] {
            assert_eq!(mountpoint.unmounted(other), other);
        }
    }

    #[test]
    fn without_one_nothing_changes() {
        let none = Mountpoint::new("");
        assert_eq!(none, Mountpoint::default());
        assert_eq!(none.topic("a"), Ok(None));
        assert_eq!(none.filter("a/#".into()).as_deref(), Ok("a/#"));
        assert_eq!(none.unmounted("a/b"), "a/b");
    }

    #[test]
    fn what_would_be_too_long_is_refused() {
        let mountpoint = Mountpoint::new("tenant/");
        let fitting = "x".repeat(TOPIC_BYTES_MAX - 7);
        assert!(mountpoint.topic(&fitting).is_ok() && mountpoint.filter(fitting.clone()).is_ok());
        let long = fitting + "x";
        assert_eq!(mountpoint.topic(&long), Err(ReasonCode::TOPIC_NAME_INVALID));
        assert_eq!(mountpoint.filter(long), Err(ReasonCode::TOPIC_FILTER_INVALID));
    }
}
