//! Users, rules and bans that the cluster keeps, as every thread of a node reads them: from memory, without waiting.
//!
//! ```text
//!   meta's view ─┬─ users, bans: looked up in the view
//!                └─ rules: parsed once per change, shared
//! ```
//!
//! Invariant `deny-by-default`: a rule that this version does not understand (a later one wrote it) denies everything that
//! reaches it.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use lontra_storage::command::{BanTarget, Hidden};
use lontra_storage::ids::MetaIndex;
use lontra_storage::meta::MetaView;

use super::decoys::Decoys;
use super::password::PasswordRecord;
use super::password_file::User;
use super::rule::Rule;
use crate::protocol::checks::{Check, on};

/// One for the node, whatever is reloaded.
#[derive(Default)]
pub struct ClusterAccess {
    /// None before the cluster has started: nobody, and no rules.
    view: OnceLock<MetaView>,
    /// Guards the parsed rules; never held over an await.
    rules: RwLock<Arc<[Rule]>>,
    /// None: they are to be made, since users have changed. Guarded likewise.
    decoys: RwLock<Option<Arc<Decoys>>>,
}

impl ClusterAccess {
    /// From here on it is what the cluster keeps.
    pub fn bind(&self, view: MetaView) {
        let _ = self.view.set(view);
        self.rules_changed();
        self.users_changed();
    }

    /// The view shows other users.
    pub fn users_changed(&self) {
        *self.decoys.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The view shows other rules.
    pub fn rules_changed(&self) {
        let Some(view) = self.view.get() else { return };
        // Under the lock, so that of two changes the later one stays.
        let mut rules = self.rules.write().unwrap_or_else(PoisonError::into_inner);
        *rules = parsed(view.read().access().rules().0);
    }

    /// In their order.
    pub fn rules(&self) -> Arc<[Rule]> {
        self.rules.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A user, and the entry that made it so.
    pub fn user(&self, name: &str) -> Option<(Arc<User>, MetaIndex)> {
        let (user, version) = {
            let view = self.view.get()?.read();
            let user = view.access().user(name)?;
            ((user.record.clone(), user.groups.clone()), user.version)
        };
        match record(&user.0) {
            Some(record) => Some((Arc::new(User { record, groups: user.1 }), version)),
            None => {
                tracing::error!(
                    user = name,
                    "the user's password hash is none that this version knows: set it again"
                );
                None
            }
        }
    }

    /// Whether the user is still what that entry made it.
    pub fn knows(&self, name: &str, version: MetaIndex) -> bool {
        let Some(view) = self.view.get() else { return false };
        view.read()
            .access()
            .user(name)
            .is_some_and(|user| user.version == version)
    }

    /// Whose hashes are checked, in vain, for users that there are not.
    pub fn decoys(&self) -> Arc<Decoys> {
        if let Some(decoys) = &*self.decoys.read().unwrap_or_else(PoisonError::into_inner) {
            return decoys.clone();
        }
        // Made under the lock, so that a change meanwhile makes them anew.
        let mut kept = self.decoys.write().unwrap_or_else(PoisonError::into_inner);
        kept.get_or_insert_with(|| Arc::new(self.sample())).clone()
    }

    /// Of some users, evenly: this is made where clients are served.
    fn sample(&self) -> Decoys {
        let Some(view) = self.view.get() else {
            return Decoys::default();
        };
        let hidden: Vec<Hidden> = {
            let view = view.read();
            let step = view.access().users().count() / DECOYS_MAX + 1;
            let some = view.access().users().step_by(step);
            some.map(|(_, user)| user.record.clone()).collect()
        };
        let records: Vec<PasswordRecord> = hidden.iter().filter_map(record).collect();
        Decoys::of(&records)
    }

    /// Whom the ban is about that holds for a client now.
    pub fn ban_of(&self, client_id: &str, user: Option<&str>, address: Option<IpAddr>) -> Option<BanTarget> {
        let view = self.view.get()?.read();
        let ban = view.access().ban_of(client_id, user, address, view.log_time());
        ban.map(|(target, _)| target.clone()).filter(|_| on(Check::Ban))
    }
}

fn record(bytes: &Hidden) -> Option<PasswordRecord> {
    PasswordRecord::parse(std::str::from_utf8(bytes.expose()).ok()?).ok()
}

/// Up to one that is none, which denies everything.
fn parsed(texts: &[Box<str>]) -> Arc<[Rule]> {
    let mut rules: Vec<Rule> = Vec::with_capacity(texts.len());
    for text in texts {
        match text.parse() {
            Ok(rule) => rules.push(rule),
            Err(error) => {
                tracing::error!(%error, "a rule of the cluster is none that this version knows: it denies everything");
                let deny = DENY_ALL.map(|rule| rule.parse().expect("a rule"));
                rules.extend::<[Rule; 2]>(deny);
                break;
            }
        }
    }
    rules.into()
}

impl fmt::Debug for ClusterAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterAccess")
    }
}

/// A millisecond or two of parsing.
const DECOYS_MAX: usize = 1_000;
const DENY_ALL: [&str; 2] = ["deny publish,subscribe #", "deny publish,subscribe $SYS/#"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_rule_denies_everything_behind_it() {
        let texts = ["allow publish a", "permit publish b", "allow publish c"].map(Into::into);
        let rules: Vec<String> = parsed(&texts).iter().map(Rule::to_string).collect();
        assert_eq!(rules, ["allow publish a", DENY_ALL[0], DENY_ALL[1]]);
        assert_eq!(parsed(&[]).len(), 0);
    }

    #[test]
    fn before_the_cluster_has_started_nobody_is_known() {
        let access = ClusterAccess::default();
        assert!(access.user("al").is_none() && access.decoys().users() == 0);
        assert!(!access.knows("al", MetaIndex(0)) && access.rules().is_empty());
        assert!(access.ban_of("c", Some("al"), None).is_none());
        access.bind(MetaView::default());
        assert!(access.user("al").is_none() && !access.knows("al", MetaIndex(0)));
        assert!(access.ban_of("c", Some("al"), None).is_none());
    }
}
