//! Which client ids a user may have. A session belongs to a client id: whoever comes with it gets its queue, and ends the
//! connection that it has.

use crate::config::auth::ClientIds;

/// Whether `client_id` is allowed to `user`; none: nobody vouches for one.
pub fn is_allowed(rule: ClientIds, client_id: &str, user: Option<&str>) -> bool {
    match (rule, user) {
        (ClientIds::Any, _) => true,
        (_, None) => false,
        (ClientIds::User, Some(user)) => client_id == user,
        (ClientIds::UserPrefix, Some(user)) => client_id
            .strip_prefix(user)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', ':'])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_id_is_its_users_or_begins_with_it() {
        for (rule, client_id, user, allowed) in [
            (ClientIds::Any, "x", None, true),
            (ClientIds::Any, "x", Some("alice"), true),
            (ClientIds::User, "alice", Some("alice"), true),
            (ClientIds::User, "alice-1", Some("alice"), false),
            (ClientIds::User, "Alice", Some("alice"), false),
            (ClientIds::User, "alice", None, false),
            (ClientIds::User, "", Some(""), true),
            (ClientIds::UserPrefix, "alice", Some("alice"), true),
            (ClientIds::UserPrefix, "alice-1", Some("alice"), true),
            (ClientIds::UserPrefix, "alice:é", Some("alice"), true),
            (ClientIds::UserPrefix, "alice/1", Some("alice"), false),
            (ClientIds::UserPrefix, "alice1", Some("alice"), false),
            (ClientIds::UserPrefix, "ali", Some("alice"), false),
            (ClientIds::UserPrefix, "bob", Some("alice"), false),
            (ClientIds::UserPrefix, "anybody", None, false),
        ] {
            assert_eq!(
                is_allowed(rule, client_id, user),
                allowed,
                "{rule:?} {client_id} {user:?}"
            );
        }
    }
}
