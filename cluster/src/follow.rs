//! Following a shard that this node does not hold: one ordered stream from any replica.
//!
//! The stream carries what connected sessions of the follower match, and resumes by offset from the replica's backlog.
//! Where that does not reach back the view jumps: durable sessions read pages (the pending entries are the truth),
//! ephemeral ones are let go.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lontra_storage::encoding::{DecodeError, Reader, Writer};
use lontra_storage::ids::{Offset, ShardId};
use lontra_storage::machine::EntryPosition;
use lontra_storage::message::{LogTime, Message, Recipient};
use lontra_storage::shard::{Appended, Applied, DelayedSize, Ledger, RetainedSize};

use crate::Inner;
use crate::requests::FOLLOW;

/// The last entries of a shard, for followers that lost their stream.
#[derive(Default)]
pub struct Backlog {
    entries: VecDeque<Arc<Applied>>,
    bytes: usize,
}

impl Backlog {
    pub fn push(&mut self, applied: Arc<Applied>) {
        self.bytes += size(&applied);
        self.entries.push_back(applied);
        while self.bytes > BACKLOG_BYTES
            && let Some(oldest) = self.entries.pop_front()
        {
            self.bytes -= size(&oldest);
        }
    }

    /// What was appended behind `after`; `None` if that is no longer known. `upto` is the shard's last offset.
    pub fn since(&self, after: Offset, upto: Offset) -> Option<Vec<Arc<Applied>>> {
        let reaches_back = match self.entries.front() {
            Some(first) => after >= first.after,
            None => after >= upto,
        };
        reaches_back.then(|| {
            self.entries
                .iter()
                .filter(|applied| applied.upto > after)
                .cloned()
                .collect()
        })
    }
}

fn size(applied: &Applied) -> usize {
    applied
        .appended
        .iter()
        .map(|appended| appended.encoded.len() + appended.recipients.len() * 32 + 64)
        .sum()
}

/// What a replica pushes.
pub enum Followed {
    Applied(Applied),
    Jumped(Offset),
}

pub fn encode_applied(applied: &Applied, wanted: &[&Appended]) -> Bytes {
    let mut writer = Writer::with_capacity(256);
    writer
        .u8(0)
        .var(applied.shard.0 as u64)
        .var(applied.at.term)
        .var(applied.at.index);
    writer
        .var(applied.after.0)
        .var(applied.upto.0)
        .var(applied.now.0)
        .var(applied.retained.count)
        .var(applied.retained.bytes)
        .var(wanted.len() as u64);
    for appended in wanted {
        writer
            .var(appended.offset.0)
            .var(appended.appended_at.0)
            .bool(appended.published)
            .bytes(&appended.encoded)
            .var(appended.recipients.len() as u64);
        for recipient in appended.recipients.iter() {
            recipient.write(&mut writer);
        }
    }
    writer.finish()
}

pub fn encode_jumped(upto: Offset) -> Bytes {
    let mut writer = Writer::new();
    writer.u8(1).var(upto.0);
    writer.finish()
}

fn decode(bytes: &Bytes) -> Result<Followed, DecodeError> {
    let mut reader = Reader::new("followed entry", bytes);
    if reader.u8()? == 1 {
        return Ok(Followed::Jumped(Offset(reader.var()?)));
    }
    let shard = ShardId(reader.var16()?);
    let at = EntryPosition {
        term: reader.var()?,
        index: reader.var()?,
    };
    let (after, upto, now) = (Offset(reader.var()?), Offset(reader.var()?), LogTime(reader.var()?));
    let retained = RetainedSize {
        count: reader.var()?,
        bytes: reader.var()?,
    };
    let mut appended = Vec::new();
    for _ in 0..reader.count()? {
        let offset = Offset(reader.var()?);
        let (appended_at, published) = (LogTime(reader.var()?), reader.bool()?);
        // Copied: a slice would pin the whole frame in every queue it enters.
        let encoded = Bytes::copy_from_slice(&reader.bytes()?);
        let mut recipients = Vec::new();
        for _ in 0..reader.count()? {
            recipients.push(Recipient::read(&mut reader)?);
        }
        let message = Arc::new(Message::decode(&encoded)?);
        appended.push(Appended {
            offset,
            appended_at,
            message,
            encoded,
            recipients: recipients.into(),
            published,
        });
    }
    Ok(Followed::Applied(Applied {
        shard,
        at,
        after,
        upto,
        now,
        appended,
        waiting: Vec::new(),
        retained,
        // Those that hold the shard tell these.
        delayed: DelayedSize::default(),
        ledger: Ledger::default(),
    }))
}

pub fn encode_hello(shard: ShardId, after: Offset) -> Bytes {
    let mut writer = Writer::new();
    writer.var(shard.0 as u64).var(after.0);
    writer.finish()
}

pub fn decode_hello(bytes: &Bytes) -> Result<(ShardId, Offset), DecodeError> {
    let mut reader = Reader::new("follow", bytes);
    Ok((ShardId(reader.var16()?), Offset(reader.var()?)))
}

/// Follows `shard` for the life of the node, from whichever replica answers.
pub(crate) async fn run(inner: Arc<Inner>, shard: ShardId) {
    let replicas: Vec<_> = inner.shards.replicas(shard).collect();
    let view = inner.views[usize::from(shard.0)].clone();
    let mut turn = inner.config.node as usize;
    loop {
        turn += 1;
        let replica = replicas[turn % replicas.len()];
        let hello = encode_hello(shard, Offset(view.offset.current()));
        let Some(links) = inner.links.get() else { return };
        if links.is_up(replica)
            && let Ok(mut source) = links.open_stream(replica, FOLLOW, hello).await
        {
            while let Ok(Some(frame)) = source.next().await {
                match decode(&frame) {
                    // A replica that lags repeats what another sent already.
                    Ok(Followed::Applied(applied)) if applied.upto.0 <= view.offset.current() => {}
                    Ok(Followed::Applied(applied)) => {
                        view.clock.observe(applied.now);
                        view.note_retained(applied.retained);
                        let upto = applied.upto.0;
                        if !applied.appended.is_empty() {
                            inner.local.applied(Arc::new(applied));
                        }
                        view.offset.advance(upto);
                    }
                    Ok(Followed::Jumped(upto)) => {
                        inner.local.jumped(shard, upto);
                        view.offset.advance(upto.0);
                    }
                    Err(error) => {
                        tracing::error!(shard = shard.0, replica, %error, "a followed entry does not decode");
                        break;
                    }
                }
            }
        }
        tokio::time::sleep(RETRY_WAIT).await;
    }
}

/// 16 MiB: some seconds of a busy shard, longer than a link takes to come back.
const BACKLOG_BYTES: usize = 16 * 1024 * 1024;
const RETRY_WAIT: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use lontra_storage::ids::SessionId;

    use super::*;

    fn applied(after: u64, upto: u64) -> Arc<Applied> {
        let message = Message {
            topic: "t".into(),
            payload: Bytes::from(vec![0; 1024 * 1024]),
            qos: 1,
            retain: false,
            publisher: SessionId(1),
            expiry_interval: None,
            properties: Bytes::new(),
        };
        let encoded = message.encode();
        let appended = (after + 1..=upto)
            .map(|offset| Appended {
                offset: Offset(offset),
                appended_at: LogTime(4),
                message: Arc::new(message.clone()),
                encoded: encoded.clone(),
                recipients: Arc::from(vec![]),
                published: true,
            })
            .collect();
        Arc::new(Applied {
            shard: ShardId(3),
            at: EntryPosition { term: 1, index: upto },
            after: Offset(after),
            upto: Offset(upto),
            now: LogTime(5),
            appended,
            waiting: vec![],
            retained: RetainedSize::default(),
            delayed: DelayedSize::default(),
            ledger: Ledger::default(),
        })
    }

    #[test]
    fn a_backlog_resumes_or_says_that_it_cannot() {
        let mut backlog = Backlog::default();
        assert!(
            backlog
                .since(Offset(9), Offset(9))
                .is_some_and(|missed| missed.is_empty())
        );
        assert!(backlog.since(Offset(8), Offset(9)).is_none());
        for n in 0..30 {
            backlog.push(applied(n, n + 1));
        }
        assert!(backlog.since(Offset(3), Offset(30)).is_none(), "bounded");
        let missed = backlog.since(Offset(25), Offset(30)).unwrap();
        assert_eq!(
            missed.iter().map(|applied| applied.upto.0).collect::<Vec<_>>(),
            [26, 27, 28, 29, 30]
        );
    }

    #[test]
    fn a_followed_entry_survives_encoding() {
        let applied = applied(4, 5);
        let bytes = encode_applied(&applied, &applied.appended.iter().collect::<Vec<_>>());
        let Ok(Followed::Applied(copy)) = decode(&bytes) else {
            panic!("an entry")
        };
        assert_eq!(
            (copy.shard, copy.after, copy.upto, copy.now),
            (ShardId(3), Offset(4), Offset(5), LogTime(5))
        );
        assert_eq!(copy.appended[0].message, applied.appended[0].message);
    }
}
