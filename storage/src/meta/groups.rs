//! Shared groups: the sessions that subscribed to one `$share/{name}/{filter}`, and take turns. [MQTT-4.8.2-4]
//!
//!     first subscription ─▶ group, under a fresh id ─▶ last subscription gone ─▶ ended, the id is never used again

use std::collections::BTreeMap;

use super::{Change, MetaEvent, MetaState, SubscriptionOptions, rows};
use crate::ids::SessionId;

/// The subscriptions with one Share Name and one Topic Filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareGroup {
    pub name: Box<str>,
    pub filter: Box<str>,
    /// Durable and ephemeral sessions; never empty.
    pub members: BTreeMap<SessionId, SubscriptionOptions>,
}

impl MetaState {
    /// A group while it has a subscription. Its id is of the same numbers as those of sessions.
    pub fn share_group(&self, group: SessionId) -> Option<&ShareGroup> {
        self.groups.get(&group)
    }

    /// All groups, by id.
    pub fn share_groups(&self) -> impl Iterator<Item = (SessionId, &ShareGroup)> {
        self.groups.iter().map(|(id, group)| (*id, group))
    }

    pub fn group_of(&self, name: &str, filter: &str) -> Option<(SessionId, &ShareGroup)> {
        let id = *self.routes.get(filter)?.groups.get(name)?;
        Some((id, self.groups.get(&id)?))
    }

    /// The group is made when its first member comes.
    pub(super) fn join_group(
        &mut self,
        name: &str,
        filter: &str,
        session: SessionId,
        options: SubscriptionOptions,
        change: &mut Change<'_, '_>,
    ) {
        if self.group_of(name, filter).is_none() {
            let id = SessionId(change.fresh_id());
            rows::put_group(change.batch, id, name, filter);
            self.link_group(id, name, filter);
        }
        let joined = self.link_member(name, filter, session, options);
        debug_assert!(joined, "the group was made above");
    }

    /// Memory only: also used when the rows are loaded. Members follow.
    pub(super) fn link_group(&mut self, id: SessionId, name: &str, filter: &str) {
        self.routes.entry(filter).groups.insert(name.into(), id);
        let group = ShareGroup {
            name: name.into(),
            filter: filter.into(),
            members: BTreeMap::new(),
        };
        self.groups.insert(id, group);
    }

    /// Memory only: also used when the rows are loaded. False if there is no such group.
    pub(super) fn link_member(
        &mut self,
        name: &str,
        filter: &str,
        session: SessionId,
        options: SubscriptionOptions,
    ) -> bool {
        let id = self.group_of(name, filter).map(|(id, _)| id);
        let Some(group) = id.and_then(|id| self.groups.get_mut(&id)) else {
            return false;
        };
        group.members.insert(session, options);
        true
    }

    /// The group ends with its last member.
    pub(super) fn leave_group(&mut self, name: &str, filter: &str, session: SessionId, change: &mut Change<'_, '_>) {
        let Some((id, _)) = self.group_of(name, filter) else {
            return;
        };
        let Some(group) = self.groups.get_mut(&id) else { return };
        group.members.remove(&session);
        if !group.members.is_empty() {
            return;
        }
        self.groups.remove(&id);
        self.routes.update(filter, |route| {
            route.groups.remove(name);
            route.is_used()
        });
        rows::delete_group(change.batch, id);
        change.events.push(MetaEvent::GroupEnded { group: id });
    }
}
