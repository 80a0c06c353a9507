//! When to ping and when to give up. [MQTT-3.1.2-20] [MQTT-3.12.4-1]

use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct KeepAlive {
    /// `None`: off.
    interval: Option<Duration>,
    sent_at: Instant,
    pinged_at: Option<Instant>,
}

/// What the clock asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Due {
    Nothing,
    Ping,
    /// No PINGRESP within the interval.
    GiveUp(Duration),
}

impl KeepAlive {
    pub fn new(seconds: u16, now: Instant) -> Self {
        KeepAlive {
            interval: (seconds > 0).then(|| Duration::from_secs(seconds.into())),
            sent_at: now,
            pinged_at: None,
        }
    }

    /// The server's own value, where CONNACK brings one. [MQTT-3.2.2-21]
    pub fn set_interval(&mut self, seconds: u16) {
        self.interval = (seconds > 0).then(|| Duration::from_secs(seconds.into()));
    }

    pub fn sent(&mut self, now: Instant) {
        self.sent_at = now;
    }

    pub fn ponged(&mut self) {
        self.pinged_at = None;
    }

    pub fn deadline(&self) -> Option<Instant> {
        Some(self.pinged_at.unwrap_or(self.sent_at) + self.interval?)
    }

    pub fn due(&mut self, now: Instant) -> Due {
        let (Some(interval), Some(deadline)) = (self.interval, self.deadline()) else {
            return Due::Nothing;
        };
        if now < deadline {
            Due::Nothing
        } else if self.pinged_at.is_some() {
            Due::GiveUp(interval)
        } else {
            self.pinged_at = Some(now);
            Due::Ping
        }
    }
}
