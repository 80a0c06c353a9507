//! The serving lease, as the node that holds it sees it.
//!
//! ```text
//!   Starting ─admitted, granted─▶ Serving ─not renewed─▶ Paused ─1.5 s more, or NodeDown─▶ Refusing
//!                                    ▲                      │                                 │
//!                                    └──────── renewed ─────┘◀──── admitted anew, granted ────┘
//! ```
//!
//! Counted from *sending* the request, on the boot clock: however long the answer took, or the machine slept, the node
//! stops before the meta leader calls it Down.
//!
//! Invariant `lease-before-match`: a publish is matched only while the lease runs, checked after it was read.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lontra_storage::ids::{Incarnation, MetaIndex, NodeId, Offset, ShardId};
use std::sync::RwLock;

use crate::clock::boot_time;

/// What a node may do for clients now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serving {
    /// Not admitted yet: connections wait.
    Starting,
    Serving,
    /// Reads no more from clients; may resume.
    Paused,
    /// Lets its clients go.
    Refusing,
}

/// Shared by all workers.
#[derive(Debug, Default)]
pub struct Lease {
    /// Boot time in microseconds until which the node may serve.
    until: AtomicU64,
    incarnation: AtomicU64,
    /// 0 while not admitted: boot time in microseconds at which a lapsed lease ends the incarnation's service.
    refuse_at: AtomicU64,
    /// How often a grant ended a time without a lease.
    lapses: AtomicU64,
    /// Guards what the last renewal said of the cluster; read per publish, written four times a second.
    news: RwLock<News>,
}

/// What the meta leader tells every node with its lease.
#[derive(Debug, Default, Clone)]
struct News {
    applied_everywhere: Vec<Offset>,
    disk_low: Vec<ShardId>,
}

impl Lease {
    /// The incarnation was admitted; it serves once a renewal is granted.
    pub fn admit(&self, incarnation: Incarnation) {
        self.until.store(0, Ordering::Release);
        self.refuse_at.store(0, Ordering::Release);
        self.incarnation.store(incarnation.0, Ordering::Release);
    }

    /// A renewal of `incarnation` that was sent at `sent_at` was granted for `length`. Void if that ended meanwhile. True if it
    /// ended a time without a lease, however short: what waited for that must be told.
    pub fn grant(
        &self,
        incarnation: Incarnation,
        sent_at: Duration,
        length: Duration,
        applied_everywhere: Vec<Offset>,
        disk_low: Vec<ShardId>,
    ) -> bool {
        if incarnation != self.incarnation() {
            return false;
        }

        let until = (sent_at + length).as_micros() as u64;
        // Counted before it ends: whoever sees the new lease sees that there was none.
        let is_known = self.until.load(Ordering::Acquire) <= boot_time().as_micros() as u64;
        if is_known {
            self.lapses.fetch_add(1, Ordering::AcqRel);
        }
        let before = self.until.fetch_max(until, Ordering::AcqRel);
        // Whoever saw that there is none had read the clock before it read `before`: so this clock is not behind that one.
        let lapsed = is_known || before <= boot_time().as_micros() as u64;
        if lapsed && !is_known {
            self.lapses.fetch_add(1, Ordering::AcqRel);
        }
        self.refuse_at
            .fetch_max(until + PAUSE_MAX.as_micros() as u64, Ordering::AcqRel);
        *self.news.write().unwrap_or_else(std::sync::PoisonError::into_inner) = News {
            applied_everywhere,
            disk_low,
        };
        lapsed
    }

    /// Grows with every time without a lease that ended: who kept the number knows that there was one, however short.
    pub fn lapses(&self) -> u64 {
        self.lapses.load(Ordering::Acquire)
    }

    /// The incarnation is Down, or about to stop: it never serves again.
    pub fn revoke(&self) {
        self.until.store(0, Ordering::Release);
        self.refuse_at.store(1, Ordering::Release);
    }

    /// As [`Lease::revoke`], and no grant that is under way counts: the node must be admitted anew.
    pub fn end_incarnation(&self) {
        self.incarnation.store(0, Ordering::Release);
        self.revoke();
    }

    /// 0 before the first admission, and after [`Lease::end_incarnation`].
    pub fn incarnation(&self) -> Incarnation {
        Incarnation(self.incarnation.load(Ordering::Acquire))
    }

    /// Whether a publish may be matched now.
    pub fn is_valid(&self) -> bool {
        // In this order: `grant` relies on it.
        let now = boot_time().as_micros() as u64;
        self.until.load(Ordering::Acquire) > now
    }

    pub fn serving(&self) -> Serving {
        let now = boot_time().as_micros() as u64;
        if self.until.load(Ordering::Acquire) > now {
            return Serving::Serving;
        }
        match self.refuse_at.load(Ordering::Acquire) {
            0 => Serving::Starting,
            at if at > now => Serving::Paused,
            _ => Serving::Refusing,
        }
    }

    /// Whether every Up node had applied `offset` of `shard` when the lease was last renewed.
    pub fn is_applied_everywhere(&self, shard: ShardId, offset: Offset) -> bool {
        let news = self.news.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        news.applied_everywhere
            .get(usize::from(shard.0))
            .is_some_and(|applied| *applied >= offset)
    }

    /// A replica of the shard is below the free-space watermark.
    pub fn is_disk_low(&self, shard: ShardId) -> bool {
        self.news
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .disk_low
            .contains(&shard)
    }
}

/// What the meta leader knows of one node's renewals.
#[derive(Clone, Debug, Default)]
pub(crate) struct Renewed {
    pub incarnation: Incarnation,
    /// Boot time of the last grant, or of when the incarnation was first seen.
    pub granted_at: Duration,
    /// The term in which this leader proposed its NodeDown: it is granted nothing more in that term.
    pub condemned: Option<u64>,
    pub applied: MetaIndex,
    pub leads: Vec<ShardId>,
    pub offsets: Vec<Offset>,
    pub disk_low: bool,
    /// It takes over no leadership: it stops, or its log is slow.
    pub leaving: bool,
    /// Up nodes that it has not reached for a lease.
    pub unreachable: Vec<NodeId>,
}

impl Renewed {
    /// Whether the node has just been granted a lease: one that died is Up until its lease is over.
    pub fn is_alive(&self, now: Duration) -> bool {
        now < self.granted_at + RENEW_INTERVAL * 2
    }
}

/// DESIGN §5: a node without a lease pauses this long before it lets its clients go.
pub const PAUSE_MAX: Duration = Duration::from_millis(1500);
/// DESIGN §5: added to the lease before NodeDown, for clocks that run at slightly different rates.
pub const LEASE_MARGIN: Duration = Duration::from_millis(300);
/// DESIGN §5.
pub const RENEW_INTERVAL: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_counts_from_sending_and_pauses_before_it_refuses() {
        let lease = Lease::default();
        assert_eq!(lease.serving(), Serving::Starting);
        lease.admit(Incarnation(4));
        assert_eq!(lease.serving(), Serving::Starting);
        let now = boot_time();
        lease.grant(
            Incarnation(4),
            now,
            Duration::from_secs(20),
            vec![Offset(5)],
            vec![ShardId(0)],
        );
        assert!(lease.is_valid());
        assert_eq!(lease.lapses(), 1);
        let renewed = |length| lease.grant(Incarnation(4), now, length, vec![Offset(5)], vec![ShardId(0)]);
        assert!(!renewed(Duration::from_secs(21)), "there was one all the time");
        assert_eq!(lease.lapses(), 1);
        assert!(lease.is_applied_everywhere(ShardId(0), Offset(5)));
        assert!(!lease.is_applied_everywhere(ShardId(0), Offset(6)));
        assert!(lease.is_disk_low(ShardId(0)) && !lease.is_disk_low(ShardId(1)));

        let lapsed = Lease::default();
        lapsed.grant(
            Incarnation(0),
            now.saturating_sub(Duration::from_millis(2100)),
            Duration::from_secs(2),
            vec![],
            vec![],
        );
        assert_eq!(lapsed.serving(), Serving::Paused);
        let before = lapsed.lapses();
        assert!(lapsed.grant(Incarnation(0), now, Duration::from_secs(20), vec![], vec![]));
        assert_eq!(lapsed.lapses(), before + 1);
        let lapsed = Lease::default();
        lapsed.grant(
            Incarnation(0),
            now.saturating_sub(Duration::from_millis(3600)),
            Duration::from_secs(2),
            vec![],
            vec![],
        );
        assert_eq!(lapsed.serving(), Serving::Refusing);
        lease.revoke();
        assert_eq!(lease.serving(), Serving::Refusing);
        lease.admit(Incarnation(5));
        assert_eq!(lease.serving(), Serving::Starting);
        lease.end_incarnation();
        lease.grant(Incarnation(5), now, Duration::from_secs(20), vec![], vec![]);
        assert_eq!(
            lease.serving(),
            Serving::Refusing,
            "a grant under way does not bring an ended incarnation back"
        );
    }
}
