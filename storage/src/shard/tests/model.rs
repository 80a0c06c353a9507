//! Random operations: what must hold whatever is said, in whatever order.

use super::*;

const SESSIONS: [u64; 4] = [10, 11, 12, 13];
const GROUPS: [u64; 2] = [50, 51];
const TOPICS: [&str; 7] = ["a", "a/b", "a/b/c", "a/c", "b", "b/a", "$x"];
const FILTERS: [&str; 6] = ["#", "a/#", "+/b", "a/b", "+", "b/+"];

const ALL: (LogTime, LogTime) = (LogTime(0), LogTime(u64::MAX));

/// Says what nodes could say, about what is there.
struct Speaker {
    random: Random,
    version: u64,
    with_sweeps: bool,
}

impl Speaker {
    fn new(seed: u64, with_sweeps: bool) -> Self {
        Speaker {
            random: Random(seed),
            version: 5,
            with_sweeps,
        }
    }

    fn session(&mut self) -> u64 {
        *self.random.one_of(&SESSIONS)
    }

    /// A few offsets, mostly of the queue of `session`.
    fn some_of(&mut self, fixture: &Fixture, session: u64) -> Vec<u64> {
        let queue = fixture.queue(session);
        let (last, _) = read_head(&fixture.tables).unwrap();
        (0..self.random.below(4))
            .map(|_| match queue.is_empty() || self.random.below(8) == 0 {
                true => self.random.below(last.0 + 1),
                false => *self.random.one_of(&queue),
            })
            .collect()
    }

    fn message(&mut self) -> Message {
        let random = &mut self.random;
        Message {
            topic: (*random.one_of(&TOPICS)).into(),
            payload: vec![b'x'; random.below(3) as usize].into(),
            qos: 1 + random.below(2) as u8,
            retain: random.below(3) == 0,
            publisher: SessionId(*random.one_of(&SESSIONS)),
            expiry_interval: (random.below(3) == 0).then(|| random.below(20) as u32),
            properties: Bytes::new(),
        }
    }

    fn recipients(&mut self) -> Vec<Recipient> {
        let mut recipients = Vec::new();
        for session in SESSIONS {
            if self.random.below(3) == 0 {
                let qos = 1 + self.random.below(2) as u8;
                recipients.push(Recipient {
                    qos,
                    ..recipient(session)
                });
            }
        }
        for queue in GROUPS {
            if self.random.below(4) == 0 {
                recipients.push(group(queue));
            }
        }
        recipients
    }

    fn operation(&mut self, fixture: &Fixture) -> ShardOperation {
        let (session, epoch) = (SessionId(self.session()), SessionEpoch(1 + self.random.below(3)));
        let filter: Box<str> = (*self.random.one_of(&FILTERS)).into();
        match self.random.below(if self.with_sweeps { 16 } else { 15 }) {
            0..=3 => append(self.message()),
            4 => {
                let packet_id = self.random.below(3) as u16;
                let origin = Origin::Received {
                    session,
                    epoch,
                    packet_id,
                };
                append_of(origin, self.message())
            }
            5 => {
                let not_after = LogTime((fixture.now + self.random.below(4000)).saturating_sub(1000));
                let origin = Origin::Will {
                    session,
                    epoch,
                    not_after,
                };
                append_of(origin, self.message())
            }
            6 => acknowledge(session.0, &self.some_of(fixture, session.0)),
            7 => ShardOperation::Release {
                session,
                offsets: offsets(&self.some_of(fixture, session.0)),
            },
            8 => ShardOperation::ReleaseReceived {
                session,
                epoch,
                packet_id: self.random.below(3) as u16,
            },
            9 => ShardOperation::EnqueueRetained(EnqueueRetained {
                no_local: self.random.below(2) == 0,
                ..enqueue(session.0, &filter, self.version - self.random.below(3))
            }),
            10 => ShardOperation::ForgetReplay {
                session,
                filter,
                version: MetaIndex(self.version - self.random.below(3)),
            },
            11 => ShardOperation::ExpireRetained {
                limit: self.random.below(4) as u32,
            },
            12 => {
                let group = *self.random.one_of(&GROUPS);
                let assignments = self.some_of(fixture, group).into_iter().map(|offset| Assignment {
                    offset: Offset(offset),
                    session,
                    epoch,
                    qos: self.random.below(3) as u8,
                    identifier: None,
                });
                ShardOperation::Assign {
                    group: SessionId(group),
                    assignments: assignments.collect(),
                }
            }
            13 => ShardOperation::Unassign {
                session,
                offsets: offsets(&self.some_of(fixture, session.0)),
            },
            14 => match self.random.below(9) {
                1 | 2 => ShardOperation::Delay(Delay {
                    message: self.message().encode(),
                    seconds: self.random.below(9) as u32,
                    count_max: (self.random.below(3) == 0).then_some(3),
                    origin: match self.random.below(2) {
                        0 => Origin::Plain,
                        _ => Origin::Received {
                            session,
                            epoch,
                            packet_id: self.random.below(3) as u16,
                        },
                    },
                }),
                3 | 4 => {
                    let waiting = read_delayed(&fixture.tables, ALL, 3, usize::MAX).unwrap();
                    match waiting.is_empty() {
                        true => ShardOperation::Tick,
                        false => {
                            let one = self.random.one_of(&waiting);
                            append_of(one.origin(), one.message.clone())
                        }
                    }
                }
                0 => ShardOperation::Fence {
                    node: 9,
                    incarnation: Incarnation(self.random.below(9)),
                },
                _ => ShardOperation::ForgetWills {
                    wills: vec![(session, epoch)],
                },
            },
            _ => sweep(match self.random.below(4) {
                0 => *self.random.one_of(&GROUPS),
                _ => session.0,
            }),
        }
    }

    /// Batches of an entry: in sequence, mostly; some come twice, some too early.
    fn batches(&mut self, fixture: &mut Fixture) -> Vec<NodeBatch> {
        self.version += self.random.below(2);
        let mut batches = Vec::new();
        for _ in 0..1 + self.random.below(3) {
            let operations: Vec<_> = (0..self.random.below(5)).map(|_| self.operation(fixture)).collect();
            let (node, version) = (1 + self.random.below(3), self.version - self.random.below(2));
            let recipients = self.recipients();
            let batch = fixture.batch(node, version, &recipients, operations);
            if self.random.below(10) == 0 {
                batches.push(NodeBatch {
                    sequence: batch.sequence + 1,
                    ..batch.clone()
                });
            }
            batches.push(batch.clone());
            if self.random.below(5) == 0 {
                batches.push(batch);
            }
        }
        batches
    }
}

/// Sequences that were not taken (a stale route) come again.
fn note(fixture: &mut Fixture, batches: &[NodeBatch], replies: &[BatchReply]) {
    for (batch, reply) in batches.iter().zip(replies) {
        if let (BatchReply::StaleRoute { .. }, sequence) = (reply, batch.sequence) {
            let next = fixture.sequences.get_mut(&batch.node).unwrap();
            *next = (*next).min(sequence - 1);
        }
    }
}

/// What the rows of different kinds say of each other.
#[track_caller]
fn check_rows(fixture: &Fixture) {
    let mut queued = BTreeMap::<u64, u64>::new();
    let rows = fixture.tables.scan(&[0], &[255], usize::MAX).unwrap();
    for (key, _) in rows.iter().filter(|(key, _)| key[0] == keys::PENDING) {
        *queued.entry(keys::offset_of_pending(key).unwrap().0).or_default() += 1;
    }
    let offset = |key: &Bytes| u64::from_be_bytes(key[1..9].try_into().unwrap());
    let of_kind = |kind| rows.iter().filter(move |(key, _)| key[0] == kind);
    let bodies: Vec<_> = of_kind(keys::MESSAGE).map(|(key, _)| offset(key)).collect();
    assert_eq!(bodies, queued.keys().copied().collect::<Vec<_>>());
    let remaining: BTreeMap<_, _> = of_kind(keys::REMAINING)
        .map(|(key, row)| (offset(key), crate::encoding::Reader::new("count", row).var().unwrap()))
        .collect();
    assert_eq!(remaining, queued);
    let retained = read_retained_size(&fixture.tables).unwrap();
    assert_eq!(of_kind(keys::RETAINED).count() as u64, retained.count);
    let mut bytes = 0;
    let mut due = 0;
    for filter in ["#", "$x"] {
        let page = read_retained(&fixture.tables, filter, None, LogTime(0), usize::MAX, usize::MAX).unwrap();
        for one in page.messages {
            bytes += one.message.size() as u64;
            due += one.message.expiry_interval.is_some() as usize;
        }
    }
    assert_eq!((of_kind(keys::RETAINED_EXPIRY).count(), bytes), (due, retained.bytes));
    assert_eq!(fixture.effects().retained, retained);
    let delayed = read_delayed_size(&fixture.tables).unwrap();
    assert_eq!(of_kind(keys::DELAYED).count() as u64, delayed.count);
    assert_eq!(fixture.effects().delayed, delayed);
}

/// `apply-deterministic`: what a replica has in memory is what it would read from its tables.
#[test]
fn a_replica_that_restarts_after_every_entry_does_the_same() {
    for seed in 0..40 {
        let mut speaker = Speaker::new(seed, true);
        let (mut one, mut restarted) = (Fixture::new(), Fixture::new());
        for entry in 0..150 {
            let batches = speaker.batches(&mut one);
            let replies = one.apply(&batches);
            let again = restarted.apply(&batches);
            assert_eq!(replies, again, "seed {seed}, entry {entry}");
            assert_eq!(one.engine.rows(), restarted.engine.rows(), "seed {seed}, entry {entry}");
            let effects = [&one, &restarted].map(|fixture| format!("{:?}", fixture.effects()));
            assert_eq!(effects[0], effects[1], "seed {seed}, entry {entry}");
            note(&mut one, &batches, &replies);
            check_rows(&one);
            restarted.reload();
        }
        for session in SESSIONS.into_iter().chain(GROUPS) {
            one.operate_at(0, &[], vec![sweep(session)]);
        }
        for group in GROUPS {
            one.operate_at(0, &[], vec![sweep(group)]);
        }
        for kind in SESSION_KINDS {
            assert_eq!(
                next_session(&one.tables, kind, None).unwrap(),
                None,
                "seed {seed}, kind {kind}"
            );
        }
        check_rows(&one);
    }
}

/// What one entry has changed is seen by its next batch as if it stood in the tables. (Sweeps aside: what they miss of
/// their own entry they find the next time.)
#[test]
fn how_batches_fall_into_entries_does_not_matter() {
    for seed in 100..140 {
        let mut speaker = Speaker::new(seed, false);
        let (mut together, mut apart) = (Fixture::new(), Fixture::new());
        for entry in 0..150 {
            let batches = speaker.batches(&mut together);
            let now = together.now;
            let replies = together.apply(&batches);
            let mut told = Vec::new();
            for batch in &batches {
                apart.now = now;
                told.extend(apart.apply(std::slice::from_ref(batch)));
            }
            assert_eq!(replies, told, "seed {seed}, entry {entry}: {batches:#?}");
            assert_eq!(
                together.engine.rows(),
                apart.engine.rows(),
                "seed {seed}, entry {entry}: {batches:#?}"
            );
            note(&mut together, &batches, &replies);
        }
    }
}
