//! Which sessions lived, from what the CONNACKs of each client id tell.
//!
//!     CONNECT …………… CONNACK  session_present = 0   a new life; the one before has ended
//!     CONNECT …………… CONNACK  session_present = 1   the life goes on
//!     CONNECT … nothing                            may take effect later, or never
//!
//! Per client id an automaton over what is known: [`Presence`]. Concurrent CONNECTs of one client id are one step of it:
//! they took effect in some order, and the step asks whether any order explains all their CONNACKs.
//!
//! Where the answer does not tell which session it was (a CONNECT with Clean Start that was never answered may have replaced
//! it), a new life begins that *may be* the one before (`maybe_same`): it permits what the old one permitted, and nothing
//! that was subscribed before is owed to it.

use super::*;

#[derive(Clone, Debug)]
pub struct Life {
    pub client: u32,
    /// Outlives its connection: created with a Session Expiry Interval above 0.
    pub persistent: bool,
    /// Earliest and latest creation.
    pub from_possible: Index,
    pub from_sure: Index,
    /// From here on it may have ended. [`NEVER`]: it lived when the history ended.
    pub until_possible: Index,
    pub until_sure: Index,
    /// It may be the session of the life before.
    pub maybe_same: bool,
    pub connections: Vec<u32>,
}

/// CONNECTs of one client id that overlapped, or a single one.
#[derive(Clone, Debug)]
pub struct Connacks {
    pub client: u32,
    pub connections: Vec<u32>,
    /// What no order of them explains.
    pub lie: Option<Lie>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Session Present 1 after Clean Start 1.
    CleanButPresent,
    /// Session Present 1, where none can have been.
    Phantom,
    /// Session Present 0, where one must have been.
    Amnesia,
    /// Several CONNACKs that contradict each other.
    Inexplicable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    None,
    Exists,
    /// It exists, or it ended; no other can have been made since.
    Maybe,
    /// Some session, another one perhaps, or none.
    Unknown,
}

/// What is known of one client id between two steps.
struct Tracker {
    client: u32,
    presence: Presence,
    life: Option<u32>,
    /// Of the last step: whose end starts the expiry.
    attached: Vec<u32>,
    /// Least and greatest Session Expiry Interval that may be in force.
    expiry: (u32, u32),
    last_step: Index,
}

pub fn trace(model: &mut Model, limits: &Limits) {
    let mut of_client: Vec<Vec<u32>> = vec![Vec::new(); model.clients.len()];
    for (number, connection) in model.connections.iter().enumerate() {
        if connection.outcome != Outcome::Fail {
            of_client[connection.client as usize].push(number as u32);
        }
    }
    for (client, connections) in of_client.iter().enumerate() {
        trace_client(model, limits, client as u32, connections);
    }
    mark_doubtful(model);
}

fn trace_client(model: &mut Model, limits: &Limits, client: u32, connections: &[u32]) {
    let (answered, open): (Vec<u32>, Vec<u32>) = connections
        .iter()
        .partition(|at| model.connections[**at as usize].outcome == Outcome::Ok);
    let mut tracker = Tracker {
        client,
        presence: Presence::None,
        life: None,
        attached: Vec::new(),
        expiry: (0, 0),
        last_step: 0,
    };
    for step in overlapping(model, &answered) {
        tracker.step(model, limits, &step, &open);
    }
    tracker.finish(model, limits, &open);
}

/// Splits connections, sorted by invocation, into groups that do not overlap in time.
fn overlapping(model: &Model, connections: &[u32]) -> Vec<Vec<u32>> {
    let mut steps: Vec<Vec<u32>> = Vec::new();
    let mut until = 0;
    for at in connections {
        let connection = &model.connections[*at as usize];
        match steps.last_mut() {
            Some(step) if connection.invoke < until => step.push(*at),
            _ => steps.push(vec![*at]),
        }
        until = until.max(connection.answer);
    }
    steps
}

impl Tracker {
    fn step(&mut self, model: &mut Model, limits: &Limits, step: &[u32], open: &[u32]) {
        let of = |at: &u32| &model.connections[*at as usize];
        let first = step.iter().map(|at| of(at).invoke).min().unwrap_or(0);
        let last = step.iter().map(|at| of(at).answer).max().unwrap_or(0);
        let late = self.late(model, limits, open, last);
        let presence = self.presence_at(model, limits, first, last, &late);
        let expiry_before = self.expiry;

        let lie = if presence == Presence::Unknown || step.len() > ORDERS_LIMIT {
            step.iter()
                .any(|at| of(at).clean && of(at).session_present == Some(true))
                .then_some(Lie::CleanButPresent)
        } else {
            unexplained(model, step, presence)
        };
        let goes_on = step
            .iter()
            .all(|at| !of(at).clean && of(at).session_present == Some(true));
        let same = goes_on && matches!(presence, Presence::Exists | Presence::Maybe) && self.life.is_some();
        let known_new = step.len() == 1 && of(&step[0]).session_present != Some(true);
        let end_possible = self.end_possible(model, limits, first, &late, expiry_before);

        let life = match self.life {
            Some(life) if same => life,
            before => {
                if let Some(before) = before {
                    let before = &mut model.lives[before as usize];
                    before.until_possible = before.until_possible.min(end_possible);
                    before.until_sure = last;
                }
                let persistent = step.iter().all(|at| model.connections[*at as usize].expiry > 0);
                model.lives.push(Life {
                    client: self.client,
                    persistent,
                    from_possible: first,
                    from_sure: last,
                    until_possible: NEVER,
                    until_sure: NEVER,
                    maybe_same: !known_new && before.is_some(),
                    connections: Vec::new(),
                });
                model.lives.len() as u32 - 1
            }
        };
        for at in step {
            model.connections[*at as usize].life = Some(life);
        }
        model.lives[life as usize].connections.extend(step);
        model.connacks.push(Connacks {
            client: self.client,
            connections: step.to_vec(),
            lie,
        });
        let expiries = || step.iter().map(|at| model.connections[*at as usize].expiry);
        self.expiry = (expiries().min().unwrap_or(0), expiries().max().unwrap_or(0));
        self.presence = Presence::Exists;
        self.life = Some(life);
        self.attached = step.to_vec();
        self.last_step = first;
    }

    /// Unanswered CONNECTs that may have taken effect since the last step, until `last`.
    fn late<'m, 'h>(
        &self,
        model: &'m Model<'h>,
        limits: &Limits,
        open: &[u32],
        last: Index,
    ) -> Vec<&'m Connection<'h>> {
        open.iter()
            .map(|at| &model.connections[*at as usize])
            .filter(|connection| {
                let given_up = connection.answer.min(model.events.len());
                let until = model.index_at(model.seconds(given_up) + limits.late_effect);
                connection.invoke < last && until > self.last_step
            })
            .collect()
    }

    fn presence_at(&self, model: &Model, limits: &Limits, first: Index, last: Index, late: &[&Connection]) -> Presence {
        let mut presence = self.presence;
        if presence == Presence::Exists {
            let (least, greatest) = self.ended(model, late);
            let end = self.end_of_service(model, limits);
            presence = match end {
                None => Presence::Exists,
                Some((_, latest)) if latest + greatest + limits.expiry_late < model.seconds(first) => Presence::None,
                Some((earliest, _)) if earliest + least - limits.expiry_early < model.seconds(last) => Presence::Maybe,
                Some(_) => Presence::Exists,
            };
        }
        let replaced = late.iter().any(|connection| connection.clean);
        let created = !late.is_empty() && presence != Presence::Exists;
        if replaced || created {
            Presence::Unknown
        } else {
            presence
        }
    }

    /// Least and greatest expiry in seconds, with what unanswered CONNECTs may have set.
    fn ended(&self, model: &Model, late: &[&Connection]) -> (f64, f64) {
        let (mut least, mut greatest) = self.expiry;
        for at in &self.attached {
            let connection = &model.connections[*at as usize];
            if let Some((disconnect, expiry)) = connection.disconnect.and_then(|d| Some((d, d.expiry?))) {
                if disconnect.processed {
                    (least, greatest) = (expiry, expiry);
                } else {
                    (least, greatest) = (least.min(expiry), greatest.max(expiry));
                }
            }
        }
        for connection in late {
            (least, greatest) = (least.min(connection.expiry), greatest.max(connection.expiry));
        }
        let seconds = |expiry: u32| {
            if expiry == u32::MAX {
                f64::INFINITY
            } else {
                expiry.into()
            }
        };
        (seconds(least), seconds(greatest))
    }

    /// When the broker saw the last connection end, in seconds: at the earliest, at the latest. None: it serves it still.
    fn end_of_service(&self, model: &Model, limits: &Limits) -> Option<(f64, f64)> {
        let mut ends: Option<(f64, f64)> = None;
        for at in &self.attached {
            let connection = &model.connections[*at as usize];
            let end = connection.end?;
            let earliest = model.seconds(connection.proof);
            let latest = model.seconds(end) + limits.detection;
            let (least, greatest) = ends.unwrap_or((earliest, latest));
            ends = Some((least.min(earliest), greatest.max(latest)));
        }
        ends
    }

    /// From where on the life may have ended, given that a step began at `first` that did not continue it.
    fn end_possible(
        &self,
        model: &Model,
        limits: &Limits,
        first: Index,
        late: &[&Connection],
        expiry: (u32, u32),
    ) -> Index {
        let replaced = late.iter().filter(|connection| connection.clean);
        let mut end = replaced.map(|connection| connection.invoke).min().unwrap_or(first);
        let least = expiry.0.min(self.ended(model, late).0.min(f64::from(u32::MAX)) as u32);
        if least < u32::MAX
            && let Some((earliest, _)) = self.end_of_service(model, limits)
        {
            let expired = model.index_at(earliest + f64::from(least) - limits.expiry_early);
            end = end.min(expired.max(self.last_step));
        }
        end.min(first)
    }

    /// After the last CONNACK: the session may yet have expired, or been replaced.
    fn finish(&self, model: &mut Model, limits: &Limits, open: &[u32]) {
        let Some(life) = self.life else { return };
        let late = self.late(model, limits, open, NEVER);
        let Some((earliest, _)) = self.end_of_service(model, limits) else {
            return;
        };
        let (least, _) = self.ended(model, &late);
        let mut end = NEVER;
        if least.is_finite() {
            end = model.index_at(earliest + least - limits.expiry_early);
        }
        if let Some(replaced) = late.iter().filter(|at| at.clean).map(|at| at.invoke).min() {
            end = end.min(replaced);
        }
        model.lives[life as usize].until_possible = end;
    }
}

/// What is wrong with the CONNACKs of a step, if no order of its CONNECTs explains them.
fn unexplained(model: &Model, step: &[u32], presence: Presence) -> Option<Lie> {
    if explains(model, &mut step.to_vec(), 0, presence) {
        return None;
    }
    let [only] = step else {
        return Some(Lie::Inexplicable);
    };
    let connection = &model.connections[*only as usize];
    Some(match (connection.clean, connection.session_present == Some(true)) {
        (true, _) => Lie::CleanButPresent,
        (false, true) => Lie::Phantom,
        (false, false) => Lie::Amnesia,
    })
}

/// Whether some order of `step[done..]` explains their answers, beginning with `presence`.
fn explains(model: &Model, step: &mut [u32], done: usize, presence: Presence) -> bool {
    if done == step.len() {
        return true;
    }
    for choice in done..step.len() {
        let connection = &model.connections[step[choice] as usize];
        let too_early = step[done..]
            .iter()
            .any(|other| model.connections[*other as usize].answer < connection.invoke);
        let present = connection.session_present == Some(true);
        let told = match (connection.clean, presence) {
            (true, _) | (false, Presence::None) => !present,
            (false, Presence::Exists) => present,
            (false, Presence::Maybe | Presence::Unknown) => true,
        };
        if too_early || !told {
            continue;
        }
        // A session without expiry may end with the connection that is taken over.
        let next = if connection.expiry == 0 {
            Presence::Maybe
        } else {
            Presence::Exists
        };
        step.swap(done, choice);
        let explained = explains(model, step, done + 1, next);
        step.swap(done, choice);
        if explained {
            return true;
        }
    }
    false
}

/// A client that forgot its QoS 2 exchanges and kept its session uses identifiers that the broker may take for old ones.
fn mark_doubtful(model: &mut Model) {
    for number in 0..model.messages.len() {
        let published = &model.messages[number];
        let Some((connection, sent)) = published.sends.first().copied() else {
            continue;
        };
        if published.qos < 2 {
            continue;
        }
        let connection = &model.connections[connection as usize];
        let from = connection.life.map_or(0, |life| {
            let mut life = life as usize;
            while model.lives[life].maybe_same {
                life -= 1;
            }
            model.lives[life].from_possible
        });
        let forgot = model
            .crashes
            .iter()
            .any(|(client, at)| *client == published.client && *at > from && *at < sent);
        model.messages[number].doubtful = forgot;
    }
}

/// 6: their orders are at most 720. More CONNECTs at once of one client id are not explained, only followed.
const ORDERS_LIMIT: usize = 6;
