//! One arm per operation, one call per arm.

use std::io;

use super::append::RecipientSet;
use super::rows::Rows;
use super::senders::Sequenced;
use super::{Shard, pending, repeats, retained};
use crate::command::{BatchReply, NodeBatch, OperationResult, ShardOperation};
use crate::ids::MetaIndex;
use crate::test_bugs::{Bug, has};

impl Shard {
    /// Sequence, then incarnation, then gap, then route: the order in which a batch is refused. (DESIGN §3.3)
    pub(super) fn apply_batch(&mut self, batch: NodeBatch, rows: &mut Rows<'_, '_>) -> io::Result<BatchReply> {
        match self.senders.check(batch.node, batch.incarnation, batch.sequence) {
            Sequenced::Answered(reply) => return Ok(reply),
            Sequenced::Next => {}
        }
        if let Some(floor) = self.stale_route(&batch) {
            return Ok(BatchReply::StaleRoute { floor });
        }
        let sets: Vec<RecipientSet> = batch.recipient_sets.into_iter().map(RecipientSet::new).collect();
        let mut results = Vec::new();
        for (position, operation) in batch.operations.into_iter().enumerate() {
            if let Some(result) = self.apply_operation(operation, &sets, batch.route_version, rows)? {
                results.push((position as u32, result));
            }
        }
        let reply = BatchReply::Applied {
            upto: self.head.last_offset,
            results,
        };
        self.senders
            .record(batch.node, batch.incarnation, batch.sequence, reply.clone(), rows.batch);
        Ok(reply)
    }

    /// The route version that the retained messages of `batch` must be matched at, if they were not. A replay that the
    /// batch itself begins counts too: a message behind it would be newer than the first page and yet not matched live.
    fn stale_route(&self, batch: &NodeBatch) -> Option<MetaIndex> {
        if batch.route_version == MetaIndex(0) {
            return None;
        }
        let begun = batch.operations.iter().filter_map(|operation| match operation {
            ShardOperation::EnqueueRetained(ask) => Some(ask.version),
            _ => None,
        });
        let floor = begun.fold(self.head.route_floor, MetaIndex::max);
        (batch.route_version < floor).then_some(floor)
    }

    fn apply_operation(
        &mut self,
        operation: ShardOperation,
        sets: &[RecipientSet],
        route_version: MetaIndex,
        rows: &mut Rows<'_, '_>,
    ) -> io::Result<Option<OperationResult>> {
        match operation {
            ShardOperation::Append(append) => {
                let set = &sets[append.recipients as usize];
                return self.append(append, set, route_version, rows);
            }
            ShardOperation::Delay(delay) => return self.delay(delay, rows),
            ShardOperation::Tick => {}
            ShardOperation::Ack { session, how, offsets } => {
                for offset in offsets {
                    if has(Bug::ShareRedeliverAcked) && self.is_members(session, offset, rows)? {
                        continue;
                    }
                    if rows.counts.settle(rows.tables, rows.batch, session, offset)?.is_some() {
                        self.head.ledger.leave(how);
                    }
                }
            }
            ShardOperation::Release { session, offsets } => {
                for offset in offsets {
                    pending::release(rows, session, offset)?;
                }
            }
            ShardOperation::ReleaseReceived {
                session,
                epoch,
                packet_id,
            } => repeats::release(rows, session, epoch, packet_id)?,
            ShardOperation::Sweep { session } => return self.sweep(session, rows),
            ShardOperation::EnqueueRetained(ask) => return self.enqueue_retained(&ask, rows),
            ShardOperation::ForgetReplay {
                session,
                filter,
                version,
            } => retained::forget_replay(rows, session, &filter, version)?,
            ShardOperation::ExpireRetained { limit } => return self.expire_retained(limit as usize, rows),
            ShardOperation::Assign { group, assignments } => {
                for assignment in assignments {
                    self.assign(group, &assignment, rows)?;
                }
            }
            ShardOperation::Unassign { session, offsets } => {
                for offset in offsets {
                    self.unassign(session, offset, rows)?;
                }
            }
            ShardOperation::ForgetWills { wills } => repeats::forget_wills(rows, &wills),
            ShardOperation::Fence { node, incarnation } => {
                self.senders.fence(node, incarnation, rows.batch);
                if has(Bug::DropQos2IdsOnFailover) {
                    repeats::forget_received(rows)?;
                }
            }
        }
        Ok(None)
    }
}
