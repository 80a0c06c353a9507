//! Who may do what, as the cluster keeps it: users, rules, bans, keys of the admin API. Every node has all of it in memory.
//!
//!     AccessOp ─▶ users | rules | bans | keys ─▶ rows · AccessReply · MetaEvent::AccessChanged, of what did change
//!
//! Invariants
//! - `apply-deterministic`: a ban ends in log time; until it is swept, readers pass over what has ended.
//! - `bounded`: as many of each as the constants below say; beyond, nothing is added.
//! - keys: while there is one, one of them may administer; a change of keys that was allowed by a key is void once that is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Change, MetaEvent, MetaState, rows};
use crate::command::{AccessOp, AccessReply, BanTarget, Hidden, KeyRole, Subnet};
use crate::ids::MetaIndex;
use crate::message::LogTime;

/// What changed, for those who must look again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessChange {
    /// A user came, changed or went.
    User(Box<str>),
    Rules,
    /// A ban came or changed; not told when one goes.
    Ban(BanTarget),
}

/// A user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredUser {
    /// Password hash.
    pub record: Hidden,
    /// For access rules.
    pub groups: Vec<Box<str>>,
    /// The entry that made it so.
    pub version: MetaIndex,
}

/// Somebody who is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ban {
    /// None: for good.
    pub ends_at: Option<LogTime>,
    pub since: LogTime,
    pub reason: Box<str>,
    /// A key, a node, or whoever was at a node's loopback address.
    pub by: Box<str>,
}

/// A key of the admin API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// Of the secret: that is kept nowhere.
    pub digest: Hidden,
    pub role: KeyRole,
    pub label: Box<str>,
    pub since: LogTime,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessState {
    users: BTreeMap<Box<str>, StoredUser>,
    rules: Vec<Box<str>>,
    /// The entry that set the rules; 0 for none.
    rules_version: MetaIndex,
    bans: BTreeMap<BanTarget, Ban>,
    /// Bans that end, by when.
    ends: BTreeSet<(LogTime, BanTarget)>,
    /// How many networks of each prefix are banned, IPv4 first.
    prefixes: BTreeMap<(bool, u8), usize>,
    keys: BTreeMap<Box<str>, ApiKey>,
}

impl AccessState {
    pub fn user(&self, name: &str) -> Option<&StoredUser> {
        self.users.get(name)
    }

    /// In the order of their names.
    pub fn users(&self) -> impl Iterator<Item = (&str, &StoredUser)> {
        self.users.iter().map(|(name, user)| (&**name, user))
    }

    /// In their order, with the entry that set them.
    pub fn rules(&self) -> (&[Box<str>], MetaIndex) {
        (&self.rules, self.rules_version)
    }

    pub fn bans(&self) -> impl Iterator<Item = (&BanTarget, &Ban)> {
        self.bans.iter()
    }

    /// The ban that holds for a client at `now`.
    pub fn ban_of(
        &self,
        client_id: &str,
        user: Option<&str>,
        address: Option<IpAddr>,
        now: LogTime,
    ) -> Option<(&BanTarget, &Ban)> {
        if self.bans.is_empty() {
            return None;
        }
        let holds = |target: BanTarget| {
            let (target, ban) = self.bans.get_key_value(&target)?;
            ban.ends_at.is_none_or(|at| at > now).then_some((target, ban))
        };
        holds(BanTarget::Client(client_id.into()))
            .or_else(|| holds(BanTarget::User(user?.into())))
            .or_else(|| {
                let address = address?.to_canonical();
                let family = self.prefixes.keys().filter(|(is_v6, _)| *is_v6 == address.is_ipv6());
                let mut networks = family.filter_map(|(_, prefix)| Subnet::around(address, *prefix));
                networks.find_map(|network| holds(BanTarget::Network(network)))
            })
    }

    /// When the next ban ends, in log time.
    pub fn next_ban_end(&self) -> Option<LogTime> {
        self.ends.first().map(|(at, _)| *at)
    }

    pub fn key(&self, id: &str) -> Option<&ApiKey> {
        self.keys.get(id)
    }

    pub fn keys(&self) -> impl Iterator<Item = (&str, &ApiKey)> {
        self.keys.iter().map(|(id, key)| (&**id, key))
    }

    pub(super) fn link_user(&mut self, name: Box<str>, user: StoredUser) {
        self.users.insert(name, user);
    }

    pub(super) fn link_rules(&mut self, rules: Vec<Box<str>>, version: MetaIndex) {
        (self.rules, self.rules_version) = (rules, version);
    }

    pub(super) fn link_key(&mut self, id: Box<str>, key: ApiKey) {
        self.keys.insert(id, key);
    }

    pub(super) fn link_ban(&mut self, target: BanTarget, ban: Ban) {
        self.unlink_ban(&target);
        if let Some(at) = ban.ends_at {
            self.ends.insert((at, target.clone()));
        }
        if let Some(prefix) = prefix_of(&target) {
            *self.prefixes.entry(prefix).or_default() += 1;
        }
        self.bans.insert(target, ban);
    }

    fn unlink_ban(&mut self, target: &BanTarget) -> bool {
        let Some(ban) = self.bans.remove(target) else {
            return false;
        };
        if let Some(at) = ban.ends_at {
            self.ends.remove(&(at, target.clone()));
        }
        if let Some(prefix) = prefix_of(target)
            && let Some(count) = self.prefixes.get_mut(&prefix)
        {
            *count -= 1;
            if *count == 0 {
                self.prefixes.remove(&prefix);
            }
        }
        true
    }

    /// Whether what was allowed by `authority`, a key or that there was none, is so still.
    fn is_authorised(&self, authority: Option<&str>) -> bool {
        match authority {
            None => self.keys.is_empty(),
            Some(id) => self.keys.get(id).is_some_and(|key| key.role == KeyRole::Admin),
        }
    }

    fn is_another_admin(&self, but: &str) -> bool {
        let mut others = self.keys.iter().filter(|(id, _)| &***id != but);
        others.any(|(_, key)| key.role == KeyRole::Admin)
    }
}

fn prefix_of(target: &BanTarget) -> Option<(bool, u8)> {
    match target {
        BanTarget::Network(network) => Some((network.address().is_ipv6(), network.prefix())),
        BanTarget::Client(_) | BanTarget::User(_) => None,
    }
}

impl MetaState {
    pub fn access(&self) -> &AccessState {
        &self.access
    }

    pub(super) fn change_access(&mut self, operation: AccessOp, change: &mut Change<'_, '_>) -> AccessReply {
        match operation {
            AccessOp::PutUser { name, record, groups } => self.put_user(name, record, groups, change),
            AccessOp::RemoveUser { name } => {
                let existed = self.access.users.remove(&name).is_some();
                if existed {
                    rows::delete_user(change.batch, &name);
                    changed(change, AccessChange::User(name));
                }
                AccessReply::Done { existed }
            }
            AccessOp::SetRules { rules, version } => self.set_rules(rules, version, change),
            AccessOp::PutBan {
                target,
                seconds,
                reason,
                by,
                only_longer,
            } => {
                let ban = Ban {
                    ends_at: seconds.map(|seconds| self.log_time.plus_seconds(seconds)),
                    since: self.log_time,
                    reason,
                    by,
                };
                self.put_ban(target, ban, only_longer, change)
            }
            AccessOp::RemoveBan { target } => AccessReply::Done {
                existed: self.remove_ban(&target, change),
            },
            AccessOp::ExpireBans { limit } => self.expire_bans(limit, change),
            AccessOp::PutKey {
                id,
                digest,
                role,
                label,
                authority,
            } => {
                let key = ApiKey {
                    digest,
                    role,
                    label,
                    since: self.log_time,
                };
                self.put_key(id, key, authority.as_deref(), change)
            }
            AccessOp::RemoveKey {
                id,
                even_last,
                authority,
            } => self.remove_key(&id, even_last, authority.as_deref(), change),
        }
    }

    fn put_user(
        &mut self,
        name: Box<str>,
        record: Option<Hidden>,
        groups: Option<Vec<Box<str>>>,
        change: &mut Change<'_, '_>,
    ) -> AccessReply {
        let known = self.access.users.get(&name);
        let existed = known.is_some();
        let Some(record) = record.or_else(|| known.map(|user| user.record.clone())) else {
            return AccessReply::NotFound;
        };
        let groups = groups
            .or_else(|| known.map(|user| user.groups.clone()))
            .unwrap_or_default();
        if known.is_some_and(|user| user.record == record && user.groups == groups) {
            // A repeat: who came in since must not be let go for it.
            return AccessReply::Done { existed };
        }
        if !existed && self.access.users.len() >= USERS_MAX {
            return AccessReply::Full;
        }
        let user = StoredUser {
            record,
            groups,
            version: MetaIndex(change.at.index),
        };
        rows::put_user(change.batch, &name, &user);
        self.access.link_user(name.clone(), user);
        changed(change, AccessChange::User(name));
        AccessReply::Done { existed }
    }

    fn set_rules(
        &mut self,
        rules: Vec<Box<str>>,
        version: Option<MetaIndex>,
        change: &mut Change<'_, '_>,
    ) -> AccessReply {
        let existed = !self.access.rules.is_empty();
        if self.access.rules == rules {
            // Also a repeat, which names the version before.
            return AccessReply::Done { existed };
        }
        if version.is_some_and(|version| version != self.access.rules_version) {
            return AccessReply::Conflict;
        }
        if rules.len() > RULES_MAX || rules.iter().map(|rule| rule.len()).sum::<usize>() > RULES_BYTES_MAX {
            return AccessReply::Full;
        }
        let version = MetaIndex(change.at.index);
        rows::put_rules(change.batch, &rules, version);
        self.access.link_rules(rules, version);
        changed(change, AccessChange::Rules);
        AccessReply::Done { existed }
    }

    fn put_ban(&mut self, target: BanTarget, ban: Ban, only_longer: bool, change: &mut Change<'_, '_>) -> AccessReply {
        let known = self.access.bans.get(&target);
        let existed = known.is_some();
        // None, for good, is the longest.
        let lasts_as_long = |known: &Ban| match (known.ends_at, ban.ends_at) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(known), Some(new)) => known >= new,
        };
        if only_longer && known.is_some_and(lasts_as_long) {
            return AccessReply::Done { existed };
        }
        // What machines decide leaves room for what people do.
        let max = if only_longer { BANS_MAX / 2 } else { BANS_MAX };
        if !existed && self.access.bans.len() >= max {
            return AccessReply::Full;
        }
        rows::put_ban(change.batch, &target, &ban);
        self.access.link_ban(target.clone(), ban);
        changed(change, AccessChange::Ban(target));
        AccessReply::Done { existed }
    }

    fn remove_ban(&mut self, target: &BanTarget, change: &mut Change<'_, '_>) -> bool {
        let existed = self.access.unlink_ban(target);
        if existed {
            rows::delete_ban(change.batch, target);
        }
        existed
    }

    fn expire_bans(&mut self, limit: u32, change: &mut Change<'_, '_>) -> AccessReply {
        let mut count = 0;
        while count < limit
            && let Some((at, target)) = self.access.ends.first().cloned()
            && at <= self.log_time
        {
            self.remove_ban(&target, change);
            count += 1;
        }
        AccessReply::Expired { count }
    }

    fn put_key(
        &mut self,
        id: Box<str>,
        key: ApiKey,
        authority: Option<&str>,
        change: &mut Change<'_, '_>,
    ) -> AccessReply {
        if let Some(known) = self.access.keys.get(&id) {
            // A repeat of what made it; an id names one key for good.
            return match known.digest == key.digest && known.role == key.role {
                true => AccessReply::Done { existed: false },
                false => AccessReply::Conflict,
            };
        }
        if !self.access.is_authorised(authority) {
            return AccessReply::Unauthorised;
        }
        if key.role != KeyRole::Admin && self.access.keys.is_empty() {
            return AccessReply::NeedsAdmin;
        }
        if self.access.keys.len() >= KEYS_MAX {
            return AccessReply::Full;
        }
        rows::put_key(change.batch, &id, &key);
        self.access.link_key(id, key);
        AccessReply::Done { existed: false }
    }

    fn remove_key(
        &mut self,
        id: &str,
        even_last: bool,
        authority: Option<&str>,
        change: &mut Change<'_, '_>,
    ) -> AccessReply {
        if !self.access.keys.contains_key(id) {
            return AccessReply::Done { existed: false };
        }
        if !self.access.is_authorised(authority) {
            return AccessReply::Unauthorised;
        }
        let is_last = self.access.keys.len() == 1;
        let may_go = self.access.is_another_admin(id) || is_last && even_last;
        if !may_go {
            return AccessReply::NeedsAdmin;
        }
        rows::delete_key(change.batch, id);
        self.access.keys.remove(id);
        AccessReply::Done { existed: true }
    }
}

fn changed(change: &mut Change<'_, '_>, what: AccessChange) {
    change.events.push(MetaEvent::AccessChanged(what));
}

/// All of them are in the memory of every node.
const USERS_MAX: usize = 100_000;
const BANS_MAX: usize = 100_000;
const KEYS_MAX: usize = 1_000;
/// Every connection walks through them once, and one entry has them all.
const RULES_MAX: usize = 4_096;
const RULES_BYTES_MAX: usize = 512 * 1024;
