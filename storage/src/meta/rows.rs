//! The control plane's rows: how all of it stands in the tables, and how memory is rebuilt from them.

use std::collections::BTreeMap;
use std::io;

use super::access::{ApiKey, Ban, StoredUser};
use super::sessions::Connected;
use super::{MetaState, NodeRecord, ScheduledWill, Session, SubscriptionOptions};
use crate::command::{
    BanTarget, KeyRole, Owner, Subscription, Will, read_hidden, read_offsets, read_strings, write_offsets,
    write_strings,
};
use crate::encoding::{DecodeError, Reader, Writer};
use crate::ids::{Incarnation, MetaIndex, NodeId, SessionEpoch, SessionId};
use crate::keys;
use crate::machine::{TableBatch, Tables};
use crate::message::LogTime;
use crate::topic::share_parts;

const NODE_VERSION: u8 = 1;
/// 1: no will.
/// 1: without will. 2: its will has no author.
const SESSION_VERSION: u8 = 3;
const GROUP_VERSION: u8 = 1;
/// 1: without author.
const WILL_VERSION: u8 = 2;
const USER_VERSION: u8 = 1;
const RULES_VERSION: u8 = 1;
const BAN_VERSION: u8 = 1;
const KEY_VERSION: u8 = 1;

pub(super) fn put_head(batch: &mut TableBatch<'_>, log_time: LogTime) {
    batch.put(&[keys::META_HEAD], &log_time.0.to_be_bytes());
}

pub(super) fn put_node(batch: &mut TableBatch<'_>, node: NodeId, record: &NodeRecord) {
    let mut writer = Writer::new();
    writer
        .u8(NODE_VERSION)
        .bool(record.up)
        .var(record.incarnation.0)
        .u64(record.start);
    batch.put(&keys::number(keys::NODE, node), &writer.finish());
}

pub(super) fn put_session(batch: &mut TableBatch<'_>, id: SessionId, session: &Session) {
    let mut writer = Writer::new();
    // The oldest version that can say it: rows of a release before stay as they are.
    let has_author = session.will.as_ref().is_some_and(Will::is_authored);
    writer
        .u8(if has_author { SESSION_VERSION } else { 2 })
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
    writer.option(session.will.as_ref(), |w, will| will.write(w, has_author));
    batch.put(&keys::number(keys::SESSION, id.0), &writer.finish());
}

pub(super) fn delete_session(batch: &mut TableBatch<'_>, id: SessionId) {
    batch.delete(&keys::number(keys::SESSION, id.0));
}

/// `owed`: see [`Session::retained_owed`].
pub(super) fn put_subscription(
    batch: &mut TableBatch<'_>,
    id: SessionId,
    subscription: &Subscription,
    owed: Option<MetaIndex>,
) {
    let mut writer = Writer::new();
    subscription.write(&mut writer);
    if let Some(version) = owed {
        writer.var(version.0);
    }
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

pub(super) fn put_group(batch: &mut TableBatch<'_>, id: SessionId, name: &str, filter: &str) {
    let mut writer = Writer::new();
    writer.u8(GROUP_VERSION).str(name).str(filter);
    batch.put(&keys::number(keys::SHARE_GROUP, id.0), &writer.finish());
}

pub(super) fn delete_group(batch: &mut TableBatch<'_>, id: SessionId) {
    batch.delete(&keys::number(keys::SHARE_GROUP, id.0));
}

pub(super) fn put_will(batch: &mut TableBatch<'_>, session: SessionId, epoch: SessionEpoch, scheduled: &ScheduledWill) {
    let mut writer = Writer::new();
    let has_author = scheduled.will.is_authored();
    writer
        .u8(if has_author { WILL_VERSION } else { 1 })
        .var(scheduled.due_at.0)
        .bool(scheduled.due);
    scheduled.will.write(&mut writer, has_author);
    batch.put(&keys::will(session, epoch), &writer.finish());
}

pub(super) fn delete_will(batch: &mut TableBatch<'_>, session: SessionId, epoch: SessionEpoch) {
    batch.delete(&keys::will(session, epoch));
}

pub(super) fn put_user(batch: &mut TableBatch<'_>, name: &str, user: &StoredUser) {
    let mut writer = Writer::new();
    writer.u8(USER_VERSION).bytes(user.record.expose());
    write_strings(&mut writer, &user.groups);
    writer.var(user.version.0);
    batch.put(&keys::named(keys::USER, name.as_bytes()), &writer.finish());
}

pub(super) fn delete_user(batch: &mut TableBatch<'_>, name: &str) {
    batch.delete(&keys::named(keys::USER, name.as_bytes()));
}

/// Also where there are none: their version stays.
pub(super) fn put_rules(batch: &mut TableBatch<'_>, rules: &[Box<str>], version: MetaIndex) {
    let mut writer = Writer::new();
    writer.u8(RULES_VERSION).var(version.0);
    write_strings(&mut writer, rules);
    batch.put(&[keys::ACCESS_RULES], &writer.finish());
}

pub(super) fn put_ban(batch: &mut TableBatch<'_>, target: &BanTarget, ban: &Ban) {
    let mut writer = Writer::new();
    writer.u8(BAN_VERSION).option(ban.ends_at, |w, at| {
        w.var(at.0);
    });
    writer.var(ban.since.0).str(&ban.reason).str(&ban.by);
    batch.put(&ban_key(target), &writer.finish());
}

pub(super) fn delete_ban(batch: &mut TableBatch<'_>, target: &BanTarget) {
    batch.delete(&ban_key(target));
}

fn ban_key(target: &BanTarget) -> Vec<u8> {
    let mut writer = Writer::new();
    target.write(&mut writer);
    keys::named(keys::BAN, &writer.finish())
}

pub(super) fn put_key(batch: &mut TableBatch<'_>, id: &str, key: &ApiKey) {
    let mut writer = Writer::new();
    writer.u8(KEY_VERSION).bytes(key.digest.expose()).u8(key.role.code());
    writer.str(&key.label).var(key.since.0);
    batch.put(&keys::named(keys::API_KEY, id.as_bytes()), &writer.finish());
}

pub(super) fn delete_key(batch: &mut TableBatch<'_>, id: &str) {
    batch.delete(&keys::named(keys::API_KEY, id.as_bytes()));
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
        state.durable_sessions += usize::from(session.durable);
        state.sessions.insert(id, Box::new(session));
    }
    // Before the subscriptions, which make the members.
    for (key, row) in scan(tables, keys::SHARE_GROUP)? {
        let (id, _) = split_key(&key)?;
        let mut reader = versioned("shared group", &row, GROUP_VERSION)?.1;
        state.link_group(SessionId(id), reader.str()?, reader.str()?);
    }
    for (key, row) in scan(tables, keys::SUBSCRIPTION)? {
        let (id, _) = split_key(&key)?;
        load_subscription(&mut state, SessionId(id), &row)?;
    }
    for (key, _) in scan(tables, keys::NODE_ROUTE)? {
        let (node, filter) = split_key(&key)?;
        state.link_node_route(node, filter.into());
    }
    for (key, row) in scan(tables, keys::WILL)? {
        let (session, epoch) = split_will_key(&key)?;
        state.wills.insert(session, epoch, read_will(&row)?);
    }
    load_access(tables, &mut state)?;
    Ok(state)
}

fn load_access(tables: &Tables, state: &mut MetaState) -> io::Result<()> {
    for (key, row) in scan(tables, keys::USER)? {
        let mut reader = versioned("user", &row, USER_VERSION)?.1;
        let user = StoredUser {
            record: read_hidden(&mut reader)?,
            groups: read_strings(&mut reader)?,
            version: MetaIndex(reader.var()?),
        };
        state.access.link_user(name_of(&key)?, user);
    }
    if let Some(row) = tables.get(&[keys::ACCESS_RULES])? {
        let mut reader = versioned("access rules", &row, RULES_VERSION)?.1;
        let version = MetaIndex(reader.var()?);
        state.access.link_rules(read_strings(&mut reader)?, version);
    }
    for (key, row) in scan(tables, keys::BAN)? {
        let target = BanTarget::read(&mut Reader::new("ban key", &key.slice(1..)))?;
        let mut reader = versioned("ban", &row, BAN_VERSION)?.1;
        let ban = Ban {
            ends_at: reader.option(|r| r.var().map(LogTime))?,
            since: LogTime(reader.var()?),
            reason: reader.str()?.into(),
            by: reader.str()?.into(),
        };
        state.access.link_ban(target, ban);
    }
    for (key, row) in scan(tables, keys::API_KEY)? {
        let mut reader = versioned("key of the admin API", &row, KEY_VERSION)?.1;
        let api_key = ApiKey {
            digest: read_hidden(&mut reader)?,
            role: KeyRole::read(&mut reader)?,
            label: reader.str()?.into(),
            since: LogTime(reader.var()?),
        };
        state.access.link_key(name_of(&key)?, api_key);
    }
    Ok(())
}

fn name_of(key: &bytes::Bytes) -> Result<Box<str>, DecodeError> {
    let name = std::str::from_utf8(key.get(1..).unwrap_or_default());
    Ok(name.map_err(|_| Reader::new("name in a key", key).error())?.into())
}

fn load_subscription(state: &mut MetaState, id: SessionId, row: &bytes::Bytes) -> Result<(), DecodeError> {
    let mut reader = Reader::new("subscription", row);
    let subscription = Subscription::read(&mut reader)?;
    let (filter, options) = (&subscription.filter, SubscriptionOptions::of(&subscription));
    let Some(session) = state.sessions.get_mut(&id) else {
        return Ok(());
    };
    let is_durable = session.durable;
    session.subscriptions.insert(filter.clone(), options);
    if !reader.is_at_end() {
        session.retained_owed.insert(filter.clone(), MetaIndex(reader.var()?));
    }
    match share_parts(filter) {
        Some((name, filter)) if !state.link_member(name, filter, id, options) => Err(reader.error()),
        Some(_) => Ok(()),
        None => {
            if options.exclusive {
                state.hold(filter, id);
            }
            if is_durable {
                state.link_subscription(id, filter, options);
            }
            Ok(())
        }
    }
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

fn split_will_key(key: &bytes::Bytes) -> Result<(SessionId, SessionEpoch), DecodeError> {
    let mut reader = Reader::new("will key", key);
    reader.u8()?;
    Ok((SessionId(reader.u64()?), SessionEpoch(reader.u64()?)))
}

fn read_will(row: &bytes::Bytes) -> Result<ScheduledWill, DecodeError> {
    let (version, mut reader) = versioned("will", row, WILL_VERSION)?;
    Ok(ScheduledWill {
        due_at: LogTime(reader.var()?),
        due: reader.bool()?,
        will: Will::read(&mut reader, version >= 2)?,
    })
}

fn read_node(row: &bytes::Bytes) -> Result<NodeRecord, DecodeError> {
    let mut reader = versioned("node", row, NODE_VERSION)?.1;
    Ok(NodeRecord {
        up: reader.bool()?,
        incarnation: Incarnation(reader.var()?),
        start: reader.u64()?,
    })
}

fn read_session(row: &bytes::Bytes) -> Result<Session, DecodeError> {
    let (version, mut reader) = versioned("session", row, SESSION_VERSION)?;
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
        will: match version {
            1 => None,
            _ => reader.option(|r| Will::read(r, version >= 3))?,
        },
        subscriptions: BTreeMap::new(),
        retained_owed: BTreeMap::new(),
    })
}

fn read_owner(reader: &mut Reader<'_>) -> Result<Owner, DecodeError> {
    Ok(Owner {
        node: reader.var()?,
        incarnation: Incarnation(reader.var()?),
    })
}

/// The row's version, at most `newest`, and what follows it.
fn versioned<'a>(what: &'static str, row: &'a bytes::Bytes, newest: u8) -> Result<(u8, Reader<'a>), DecodeError> {
    let mut reader = Reader::new(what, row);
    let version = reader.u8()?;
    if (1..=newest).contains(&version) {
        Ok((version, reader))
    } else {
        Err(reader.error())
    }
}
