//! Pages of retained messages, for a subscription that no shard keeps a queue for.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::{behind, expiry, range_of, topic_of, walk};
use crate::encoding::{DecodeError, Reader, Writer};
use crate::ids::Offset;
use crate::keys;
use crate::machine::Tables;
use crate::message::{LogTime, Message};
use crate::shard::read_head;

/// A retained message for a subscription.
#[derive(Clone, Debug)]
pub struct RetainedMessage {
    pub offset: Offset,
    pub appended_at: LogTime,
    pub message: Arc<Message>,
}

/// A piece of what a filter matches.
#[derive(Clone, Debug)]
pub struct RetainedPage {
    /// The page shows every entry up to this offset.
    pub upto: Offset,
    pub messages: Vec<RetainedMessage>,
    /// The topic to go on behind, if there may be more.
    pub next: Option<Box<str>>,
}

/// Reads retained messages that match `filter` and have not expired at `now`, behind `after` in order of topics, until
/// `messages_max` or `bytes_max` is reached (at least one).
///
/// # Errors
/// The engine cannot read, or a row is torn.
pub fn read_retained(
    tables: &Tables,
    filter: &str,
    after: Option<&str>,
    now: LogTime,
    messages_max: usize,
    bytes_max: usize,
) -> io::Result<RetainedPage> {
    // The head is read first: the scan then sees at least everything up to it.
    let (upto, _) = read_head(tables)?;
    let start = match after {
        Some(topic) => behind(&keys::retained(topic)),
        None => range_of(filter).0,
    };
    let (mut messages, mut bytes) = (Vec::new(), 0);
    let scan = |start: &[u8], end: &[u8], limit| tables.scan(start, end, limit);
    let last = walk(scan, filter, &start, |retained| {
        let message = Message::decode(&retained.encoded)?;
        if expiry(&message, retained.appended_at).is_none_or(|at| at > now) {
            bytes += message.size();
            messages.push(RetainedMessage {
                offset: retained.offset,
                appended_at: retained.appended_at,
                message: Arc::new(message),
            });
        }
        Ok(messages.is_empty() || (messages.len() < messages_max && bytes < bytes_max))
    })?;
    let next = last.as_ref().map(topic_of).transpose()?.map(Into::into);
    Ok(RetainedPage { upto, messages, next })
}

impl RetainedPage {
    /// As sent to a node that holds no replica.
    pub fn encode(&self) -> Bytes {
        let mut writer = Writer::with_capacity(256);
        writer.var(self.upto.0);
        writer.option(self.next.as_ref(), |w, next| {
            w.str(next);
        });
        writer.var(self.messages.len() as u64);
        for retained in &self.messages {
            writer
                .var(retained.offset.0)
                .var(retained.appended_at.0)
                .bytes(&retained.message.encode());
        }
        writer.finish()
    }

    /// # Errors
    /// The bytes are torn.
    pub fn decode(bytes: &Bytes) -> Result<RetainedPage, DecodeError> {
        let mut reader = Reader::new("retained page", bytes);
        let upto = Offset(reader.var()?);
        let next = reader.option(|r| r.str())?.map(Into::into);
        let mut messages = Vec::new();
        for _ in 0..reader.count()? {
            messages.push(RetainedMessage {
                offset: Offset(reader.var()?),
                appended_at: LogTime(reader.var()?),
                message: Arc::new(Message::decode(&reader.bytes()?)?),
            });
        }
        Ok(RetainedPage { upto, messages, next })
    }
}
