//! Subscriptions over time: one [`Hold`] for each filter of each life, from its SUBSCRIBE to its UNSUBSCRIBE.
//!
//!          SUBSCRIBE      SUBACK                  UNSUBSCRIBE    UNSUBACK
//!     ─────────┼────────────┼──────────────────────────┼────────────┼─────▶
//!              possible     sure                       possible      gone
//!
//! A SUBSCRIBE for a filter that is held already replaces its options without a gap [MQTT-3.8.4-3]: another [`Grant`] of
//! the same hold.

use super::*;
use crate::history::{Kind, Op, Process};

#[derive(Clone, Debug)]
pub struct Hold<'h> {
    pub client: u32,
    pub life: u32,
    /// Lives up to this one may be the same session.
    pub last_life: u32,
    /// As subscribed.
    pub filter: &'h str,
    /// Of a shared subscription: share name and filter.
    pub group: Option<String>,
    pub from_possible: Index,
    /// [`NEVER`]: never acknowledged.
    pub from_sure: Index,
    /// From here on it may be gone.
    pub until_possible: Index,
    pub until_sure: Index,
    /// UNSUBACK came.
    pub unsubscribed: bool,
    pub grants: Vec<Grant>,
}

/// Options of a hold, from one SUBSCRIBE to the next.
#[derive(Clone, Debug)]
pub struct Grant {
    pub qos: u8,
    pub no_local: bool,
    pub retain_as_published: bool,
    pub id: Option<u32>,
    pub from_possible: Index,
    pub from_sure: Index,
    pub until_sure: Index,
}

impl Hold<'_> {
    /// The options that may be in force at some point of `from..=until`.
    pub fn grants_within(&self, from: Index, until: Index) -> impl Iterator<Item = &Grant> + '_ {
        self.grants
            .iter()
            .filter(move |grant| grant.from_possible <= until && grant.until_sure >= from)
    }

    /// The least QoS that may be granted within.
    pub fn least_qos(&self, from: Index, until: Index) -> u8 {
        self.grants_within(from, until)
            .map(|grant| grant.qos)
            .min()
            .unwrap_or(0)
    }

    /// May be in force somewhere in `from..=until`.
    pub fn is_possible_within(&self, from: Index, until: Index) -> bool {
        self.from_possible < until && self.until_sure > from
    }

    pub fn is_sure_within(&self, from: Index, until: Index) -> bool {
        self.from_sure < from && self.until_possible > until
    }
}

pub fn trace(model: &mut Model) {
    let mut current: Map<(u32, &str), usize> = Map::default();
    let mut open: Map<u64, usize> = Map::default();
    for (index, event) in model.events.iter().enumerate() {
        let (Op::Subscribe { conn, filter, .. } | Op::Unsubscribe { conn, filter, .. }) = &event.op else {
            continue;
        };
        let Some(connection) = model.connection(*conn) else {
            continue;
        };
        let Some(life) = model.connections[connection as usize].life else {
            continue;
        };
        let process = match event.process {
            Process::Number(process) => process,
            Process::Name(_) => continue,
        };
        let key = (life, filter.as_str());
        match (&event.op, event.kind) {
            (Op::Subscribe { .. }, Kind::Invoke) => {
                let at = *current.entry(key).or_insert_with(|| {
                    model
                        .holds
                        .push(new_hold(model.lives[life as usize].client, life, filter, index));
                    model.holds.len() - 1
                });
                model.holds[at].grants.extend(grant(event, index));
                open.insert(process, at);
            }
            (Op::Subscribe { reason, .. }, kind) => {
                if let Some(at) = open.remove(&process) {
                    subscribed(&mut model.holds[at], event, index, kind, *reason);
                    if model.holds[at].grants.is_empty() && current.get(&key) == Some(&at) {
                        current.remove(&key);
                    }
                }
            }
            (_, Kind::Invoke) => {
                if let Some(at) = current.get(&key) {
                    let hold = &mut model.holds[*at];
                    hold.until_possible = hold.until_possible.min(index);
                    open.insert(process, *at);
                }
            }
            (_, Kind::Ok) => {
                if let Some(at) = open.remove(&process) {
                    let hold = &mut model.holds[at];
                    hold.until_sure = hold.until_sure.min(index);
                    hold.unsubscribed = true;
                    if current.get(&key) == Some(&at) {
                        current.remove(&key);
                    }
                }
            }
            // Unknown, or refused: the hold stays possible. A later SUBSCRIBE of the filter makes a new one.
            _ => {
                if open.remove(&process).is_some() {
                    current.remove(&key);
                }
            }
        }
    }
    bound_by_lives(model);
}

fn new_hold(client: u32, life: u32, filter: &str, index: Index) -> Hold<'_> {
    Hold {
        client,
        life,
        last_life: life,
        filter,
        group: Filter::new(filter).group().map(|group| group.into_owned()),
        from_possible: index,
        from_sure: NEVER,
        until_possible: NEVER,
        until_sure: NEVER,
        unsubscribed: false,
        grants: Vec::new(),
    }
}

fn grant(event: &Event, index: Index) -> Option<Grant> {
    let Op::Subscribe {
        qos,
        no_local,
        retain_as_published,
        id,
        ..
    } = &event.op
    else {
        return None;
    };
    Some(Grant {
        qos: *qos,
        no_local: *no_local,
        retain_as_published: *retain_as_published,
        id: *id,
        from_possible: index,
        from_sure: NEVER,
        until_sure: NEVER,
    })
}

/// A SUBSCRIBE was answered, or was not.
fn subscribed(hold: &mut Hold, event: &Event, index: Index, kind: Kind, reason: Option<u8>) {
    let Some(invoked) = grant(event, index) else { return };
    let mine = |grant: &Grant| grant.from_sure == NEVER && grant.qos == invoked.qos && grant.id == invoked.id;
    let Some(at) = hold.grants.iter().rposition(mine) else {
        return;
    };
    match kind {
        Kind::Ok => {
            hold.from_sure = hold.from_sure.min(index);
            hold.grants[at].from_sure = index;
            if let Some(granted @ 0..=2) = reason {
                hold.grants[at].qos = granted;
            }
            let from = hold.grants[at].from_possible;
            for earlier in hold.grants[..at].iter_mut().filter(|grant| grant.from_possible < from) {
                earlier.until_sure = earlier.until_sure.min(index);
            }
        }
        Kind::Fail => {
            hold.grants.remove(at);
        }
        _ => {}
    }
}

/// A hold ends with its life, and lasts as long as later lives may be the same session.
fn bound_by_lives(model: &mut Model) {
    model.holds.retain(|hold| !hold.grants.is_empty());
    for hold in &mut model.holds {
        let mut last = hold.life as usize;
        hold.until_possible = hold.until_possible.min(model.lives[last].until_possible);
        while let Some(next) = model.lives.get(last + 1)
            && next.client == hold.client
            && next.maybe_same
        {
            last += 1;
        }
        hold.last_life = last as u32;
        hold.until_sure = hold.until_sure.min(model.lives[last].until_sure);
    }
}
