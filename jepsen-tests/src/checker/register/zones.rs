//! The zone algorithm of Gibbons and Korach for registers whose values are written once each.
//!
//! The *cluster* of a value is its write and its reads. With `f` its least completion and `s` its greatest invocation,
//!
//!     f < s: a forward zone    ├────┤     the register surely held the value from f to s
//!     s ≤ f: a backward zone   ├┄┄┄┄┤     the register held it at some moment between s and f
//!
//! The history is linearizable if and only if every value read was written, no read completes before its write is invoked,
//! no two forward zones overlap, and no backward zone lies strictly inside a forward zone. A write that did not complete
//! has completion ∞; never read, it may never have happened.
//!
//! The value `None` is written once, before everything.

use super::Access;
use crate::checker::model::{Index, Map, NEVER};

/// Values that cannot all be explained, with the events that show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    pub class: &'static str,
    pub what: &'static str,
    pub values: Vec<Option<u32>>,
    pub events: Vec<Index>,
}

/// Signed, and doubled, so that the initial write comes before event 0.
type Moment = i128;

#[derive(Clone, Debug)]
struct Cluster {
    value: Option<u32>,
    written: Option<(Moment, Moment)>,
    read: bool,
    least_end: (Moment, Index),
    greatest_invoke: (Moment, Index),
    first_read_end: (Moment, Index),
}

impl Cluster {
    fn is_forward(&self) -> bool {
        self.least_end.0 < self.greatest_invoke.0
    }

    fn events(&self) -> [Index; 2] {
        [self.least_end.1, self.greatest_invoke.1]
    }
}

pub fn check(accesses: &[Access]) -> Vec<Conflict> {
    let clusters = clusters(accesses);
    let mut conflicts = Vec::new();
    for cluster in &clusters {
        let problem = match cluster.written {
            None => Some(("unwritten-read", "a read without a write")),
            Some((invoke, _)) if cluster.first_read_end.0 < invoke => {
                Some(("read-before-write", "a read before its write"))
            }
            Some(_) => None,
        };
        if let Some((class, what)) = problem {
            conflicts.push(Conflict {
                class,
                what,
                values: vec![cluster.value],
                events: vec![cluster.first_read_end.1],
            });
        }
    }
    let mut forward: Vec<&Cluster> = clusters.iter().filter(|cluster| cluster.is_forward()).collect();
    forward.sort_by_key(|cluster| cluster.least_end.0);
    let mut widest: Option<&Cluster> = None;
    for cluster in &forward {
        if let Some(before) = widest
            && before.greatest_invoke.0 > cluster.least_end.0
        {
            conflicts.push(conflict("overlapping forward zones", before, cluster));
        }
        if widest.is_none_or(|before| before.greatest_invoke.0 < cluster.greatest_invoke.0) {
            widest = Some(cluster);
        }
    }
    // Of the forward zones that begin before a backward zone, the one that reaches farthest.
    let mut farthest: Vec<&Cluster> = Vec::with_capacity(forward.len());
    for cluster in &forward {
        match farthest.last() {
            Some(before) if before.greatest_invoke.0 >= cluster.greatest_invoke.0 => farthest.push(before),
            _ => farthest.push(cluster),
        }
    }
    for cluster in clusters.iter().filter(|cluster| !cluster.is_forward()) {
        let began = forward.partition_point(|zone| zone.least_end.0 < cluster.greatest_invoke.0);
        if let Some(zone) = began.checked_sub(1).map(|at| farthest[at])
            && zone.greatest_invoke.0 > cluster.least_end.0
        {
            conflicts.push(conflict("a backward zone inside a forward zone", zone, cluster));
        }
    }
    conflicts
}

fn conflict(what: &'static str, a: &Cluster, b: &Cluster) -> Conflict {
    Conflict {
        class: "stale-read",
        what,
        values: vec![a.value, b.value],
        events: a.events().into_iter().chain(b.events()).collect(),
    }
}

fn clusters(accesses: &[Access]) -> Vec<Cluster> {
    let moment = |index: Index| if index == NEVER { INFINITY } else { index as Moment };
    let mut clusters: Map<Option<u32>, Cluster> = Map::default();
    let initial = Cluster {
        value: None,
        written: Some((-2, -1)),
        read: false,
        least_end: (-1, NEVER),
        greatest_invoke: (-2, NEVER),
        first_read_end: (INFINITY, NEVER),
    };
    clusters.insert(None, initial);
    for access in accesses {
        let (invoke, end) = (moment(access.invoke), moment(access.end));
        let cluster = clusters.entry(access.value).or_insert_with(|| Cluster {
            value: access.value,
            written: None,
            read: false,
            least_end: (INFINITY, NEVER),
            greatest_invoke: (-2, NEVER),
            first_read_end: (INFINITY, NEVER),
        });
        if access.write {
            cluster.written = Some((invoke, end));
        } else {
            cluster.read = true;
            cluster.first_read_end = cluster.first_read_end.min((end, access.end));
        }
        cluster.least_end = cluster.least_end.min((end, access.end));
        cluster.greatest_invoke = cluster.greatest_invoke.max((invoke, access.invoke));
    }
    let happened = |cluster: &Cluster| cluster.read || cluster.written.is_some_and(|(_, end)| end != INFINITY);
    clusters.into_values().filter(happened).collect()
}

const INFINITY: Moment = Moment::MAX;
