//! The control plane's rows: how nodes, sessions and routes stand in the tables, and how memory is rebuilt from them.

use std::collections::BTreeMap;
use std::io;

use super::sessions::Connected;
use super::{MetaState, NodeRecord, Session, SubscriptionOptions};
use crate::command::{Owner, Subscription, read_offsets, write_offsets};
use crate::encoding::{DecodeError, Reader, Writer};
use crate::ids::{Incarnation, NodeId, SessionEpoch, SessionId};
use crate::keys;
use crate::machine::{TableBatch, Tables};
use crate::message::LogTime;

const ROW_VERSION: u8 = 1;

pub(super) fn put_head(batch: &mut TableBatch<'_>, log_time: LogTime) {
    batch.put(&[keys::META_HEAD], &log_time.0.to_be_bytes());
}

pub(super) fn put_node(batch: &mut TableBatch<'_>, node: NodeId, record: &NodeRecord) {
    let mut writer = Writer::new();
    writer
        .u8(ROW_VERSION)
        .bool(record.up)
        .var(record.incarnation.0)
        .u64(record.start);
    batch.put(&keys::number(keys::NODE, node), &writer.finish());
}

pub(super) fn put_session(batch: &mut TableBatch<'_>, id: SessionId, session: &Session) {
    let mut writer = Writer::new();
    writer
        .u8(ROW_VERSION)
        .str(&session.client_id)
        .var(session.epoch.0)
        .bool(session.durable);
    writer.var(session.expiry as u64);
    writer.option(session.owner, |w, owner| {
        w.var(owner.node).var(owner.incarnation.0);
    });
    writer.option(session.expires_at, |w, at| {
        w.var(at.0);
    });
    writer.option(session.sent.as_deref(), write_offsets);
    let Connected {
        incarnation,
        request,
        present,
        previous,
    } = session.connected;
    writer.var(incarnation.0).var(request).bool(present);
    writer.option(previous, |w, owner| {
        w.var(owner.node).var(owner.incarnation.0);
    });
    batch.put(&keys::number(keys::SESSION, id.0), &writer.finish());
}

pub(super) fn delete_session(batch: &mut TableBatch<'_>, id: SessionId) {
    batch.delete(&keys::number(keys::SESSION, id.0));
}

pub(super) fn put_subscription(batch: &mut TableBatch<'_>, id: SessionId, subscription: &Subscription) {
    let mut writer = Writer::new();
    subscription.write(&mut writer);
    batch.put(&keys::subscription(id, &subscription.filter), &writer.finish());
}

pub(super) fn delete_subscription(batch: &mut TableBatch<'_>, id: SessionId, filter: &str) {
    batch.delete(&keys::subscription(id, filter));
}

pub(super) fn put_node_route(batch: &mut TableBatch<'_>, node: NodeId, filter: &str) {
    batch.put(&keys::node_route(node, filter), &[]);
}

pub(super) fn delete_node_route(batch: &mut TableBatch<'_>, node: NodeId, filter: &str) {
    batch.delete(&keys::node_route(node, filter));
}

/// Rebuilds memory from the tables.
pub(super) fn load(tables: &Tables) -> io::Result<MetaState> {
    let mut state = MetaState::default();
    if let Some(row) = tables.get(&[keys::META_HEAD])? {
        state.log_time = LogTime(Reader::new("meta head", &row).u64()?);
    }
    for (key, row) in scan(tables, keys::NODE)? {
        let (node, _) = split_key(&key)?;
        state.nodes.insert(node, read_node(&row)?);
    }
    for (key, row) in scan(tables, keys::SESSION)? {
        let (id, _) = split_key(&key)?;
        let session = read_session(&row)?;
        let id = SessionId(id);
        state.clients.insert(session.client_id.clone(), id);
        if let Some(owner) = session.owner {
            state.owned.entry(owner.node).or_default().insert(id);
        }
        if let Some(at) = session.expires_at {
            state.expiring.insert((at, id));
        }
        state.sessions.insert(id, session);
    }
    for (key, row) in scan(tables, keys::SUBSCRIPTION)? {
        let (id, _) = split_key(&key)?;
        let subscription = Subscription::read(&mut Reader::new("subscription", &row))?;
        let options = SubscriptionOptions::of(&subscription);
        if let Some(session) = state.sessions.get_mut(&SessionId(id)) {
            session.subscriptions.insert(subscription.filter.clone(), options);
            state.link_subscription(SessionId(id), &subscription.filter, options);
        }
    }
    for (key, _) in scan(tables, keys::NODE_ROUTE)? {
        let (node, filter) = split_key(&key)?;
        state.link_node_route(node, filter.into());
    }
    Ok(state)
}

fn scan(tables: &Tables, kind: u8) -> io::Result<Vec<(bytes::Bytes, bytes::Bytes)>> {
    let (start, end) = keys::kind_range(kind);
    tables.scan(&start, &end, usize::MAX)
}

fn split_key(key: &bytes::Bytes) -> Result<(u64, &str), DecodeError> {
    let mut reader = Reader::new("meta key", key);
    reader.u8()?;
    let number = reader.u64()?;
    let text = std::str::from_utf8(&key[9..]).map_err(|_| reader.error())?;
    Ok((number, text))
}

fn read_node(row: &bytes::Bytes) -> Result<NodeRecord, DecodeError> {
    let mut reader = versioned("node", row)?;
    Ok(NodeRecord {
        up: reader.bool()?,
        incarnation: Incarnation(reader.var()?),
        start: reader.u64()?,
    })
}

fn read_session(row: &bytes::Bytes) -> Result<Session, DecodeError> {
    let mut reader = versioned("session", row)?;
    Ok(Session {
        client_id: reader.str()?.into(),
        epoch: SessionEpoch(reader.var()?),
        durable: reader.bool()?,
        expiry: reader.var32()?,
        owner: reader.option(read_owner)?,
        expires_at: reader.option(|r| r.var().map(LogTime))?,
        sent: reader.option(read_offsets)?,
        connected: Connected {
            incarnation: Incarnation(reader.var()?),
            request: reader.var()?,
            present: reader.bool()?,
            previous: reader.option(read_owner)?,
        },
        subscriptions: BTreeMap::new(),
    })
}

fn read_owner(reader: &mut Reader<'_>) -> Result<Owner, DecodeError> {
    Ok(Owner {
        node: reader.var()?,
        incarnation: Incarnation(reader.var()?),
    })
}

fn versioned<'a>(what: &'static str, row: &'a bytes::Bytes) -> Result<Reader<'a>, DecodeError> {
    let mut reader = Reader::new(what, row);
    if reader.u8()? == ROW_VERSION {
        Ok(reader)
    } else {
        Err(reader.error())
    }
}
