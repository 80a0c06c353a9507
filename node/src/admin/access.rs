//! The admin API's part on users, rules, bans and keys: what is asked is understood here, and looked at before the cluster is
//! asked to keep it.
//!
//! Passwords are hashed on the node that takes the request; no answer has a hash, and a key is in the answer that made it alone.

use std::fmt::Display;
use std::net::IpAddr;

use lontra_cluster::access::BanRequest;
use lontra_cluster::{Cluster, MetaError};
use lontra_ops::admin::{AccessRequest, Page, Refusal};
use lontra_ops::guard::Caller;
use lontra_storage::command::{AccessOp, AccessReply, BanTarget, Hidden, Subnet};
use lontra_storage::ids::MetaIndex;
use lontra_storage::message::LogTime;
use serde_json::{Map, Value, json};
use tokio::runtime::Handle;

use super::key::{NewKey, role, role_named};
use crate::auth::hashing::Hashing;
use crate::auth::password::PasswordRecord;
use crate::auth::password_file::{NAME_MAX, is_user_name};
use crate::auth::rule::Rule;
use crate::auth::secret::Secret;

type Answered = Result<Value, Refusal>;

/// What the cluster says or does.
pub async fn answer(cluster: Cluster, hashing: Hashing, request: AccessRequest, caller: Caller) -> Answered {
    // The key that was shown may be none any more, and what is read may have changed: this node would not know.
    if !cluster.lease().is_valid() {
        return Err(no_lease());
    }
    match request {
        AccessRequest::Users(page) => Ok(users(&cluster, &page)),
        AccessRequest::PutUser { name, body } => put_user(&cluster, &hashing, name, body).await,
        AccessRequest::RemoveUser { name } => change(&cluster, AccessOp::RemoveUser { name: name.into() }).await,
        AccessRequest::Rules => {
            let meta = cluster.meta().read();
            let (rules, version) = meta.access().rules();
            Ok(json!({ "rules": rules, "version": version.0 }))
        }
        AccessRequest::SetRules { body } => change(&cluster, rules_of(&body)?).await,
        AccessRequest::Bans(page) => bans(&cluster, &page),
        AccessRequest::PutBan { body } => {
            let ban = ban_of(&body, caller.name())?;
            let existed = cluster.ban(ban).await.map_err(|error| match error {
                MetaError::Stale => Refusal::Conflict("as many are banned as may be: remove some".to_owned()),
                error => refusal(error),
            })?;
            Ok(json!({ "existed": existed }))
        }
        AccessRequest::RemoveBan { body } => {
            let fields = Fields::of(&body, &["client", "user", "address"])?;
            let target = target_of(&fields)?;
            change(&cluster, AccessOp::RemoveBan { target }).await
        }
        AccessRequest::Keys(page) => Ok(keys(&cluster, &page)),
        AccessRequest::PutKey { body } => put_key(&cluster, &body, caller).await,
        AccessRequest::RemoveKey { id, even_last } => {
            let operation = AccessOp::RemoveKey {
                id: id.into(),
                even_last,
                authority: caller.key.map(Into::into),
            };
            change(&cluster, operation).await
        }
    }
}

/// For whoever asks what only a node of the cluster's present state can tell.
pub fn no_lease() -> Refusal {
    Refusal::Unavailable(
        "this node has no lease now: what it knows may be out of date, and nothing has changed; ask again, or another node".to_owned(),
    )
}

/// A page of `rows`, each with its name, which come in order and begin behind `page.after`; and after what the next begins.
fn paged(list: &str, page: &Page, mut rows: impl Iterator<Item = (String, Value)>) -> Value {
    let mut last = None;
    let shown: Vec<Value> = rows
        .by_ref()
        .take(page.limit)
        .map(|(name, row)| {
            last = Some(name);
            row
        })
        .collect();
    let next = last.filter(|_| rows.next().is_some());
    json!({ list: shown, "next": next })
}

fn users(cluster: &Cluster, page: &Page) -> Value {
    let meta = cluster.meta().read();
    let is_behind = |name: &str| page.after.as_deref().is_none_or(|after| name > after);
    let users = meta.access().users().filter(|(name, _)| is_behind(name));
    let users = users.map(|(name, user)| (name.to_owned(), json!({ "name": name, "groups": user.groups })));
    paged("users", page, users)
}

fn bans(cluster: &Cluster, page: &Page) -> Answered {
    let after = page.after.as_deref().map(ban_named).transpose()?;
    let now = cluster.meta_time();
    let meta = cluster.meta().read();
    let behind = meta
        .access()
        .bans()
        .filter(|(target, _)| after.as_ref().is_none_or(|after| *target > after));
    let bans = behind.map(|(target, ban)| {
        let (kind, whom) = match target {
            BanTarget::Client(client_id) => ("client", client_id.to_string()),
            BanTarget::User(name) => ("user", name.to_string()),
            BanTarget::Network(network) => ("address", network.to_string()),
        };
        let left = |at: LogTime| at.0.saturating_sub(now.0);
        let row = json!({
            kind: whom,
            "reason": ban.reason,
            "by": ban.by,
            "age_ms": now.0.saturating_sub(ban.since.0),
            "ends_in_ms": ban.ends_at.map(left),
        });
        (format!("{kind}:{whom}"), row)
    });
    Ok(paged("bans", page, bans))
}

/// As `next` names it.
fn ban_named(name: &str) -> Result<BanTarget, Refusal> {
    match name.split_once(':') {
        Some(("client", client_id)) => Ok(BanTarget::Client(client_id.into())),
        Some(("user", user)) => Ok(BanTarget::User(user.into())),
        Some(("address", network)) => subnet(network).map(BanTarget::Network),
        _ => Err(bad("after is what `next` of the page before says")),
    }
}

fn keys(cluster: &Cluster, page: &Page) -> Value {
    let now = cluster.meta_time();
    let meta = cluster.meta().read();
    let is_behind = |id: &str| page.after.as_deref().is_none_or(|after| id > after);
    let keys = meta.access().keys().filter(|(id, _)| is_behind(id)).map(|(id, key)| {
        let row = json!({
            "id": id,
            "role": role(key.role).name(),
            "label": key.label,
            "age_ms": now.0.saturating_sub(key.since.0),
        });
        (id.to_owned(), row)
    });
    paged("keys", page, keys)
}

async fn put_user(cluster: &Cluster, hashing: &Hashing, name: String, mut body: Value) -> Answered {
    if !is_user_name(&name) {
        return Err(bad(format_args!(
            "`{name}` is no user name: it has 1 to {NAME_MAX} bytes, no colon, no control characters, and no # at its beginning"
        )));
    }
    // Taken out first, so that no text below has it.
    let secrets = ["password", "hash"].map(|key| body.as_object_mut().and_then(|fields| fields.remove(key)));
    let fields = Fields::of(&body, &["groups"])?;
    let groups = fields.strings("groups")?;
    let is_bad = |group: &str| group.is_empty() || group.contains([':', ',', ' ', '\t', '\r', '\n']);
    if let Some(group) = groups.iter().flatten().find(|group| is_bad(group)) {
        return Err(bad(format_args!(
            "`{group}` is no group: it is not empty, and has no colon, comma or blank"
        )));
    }
    let record = match secrets {
        [None, None] => None,
        [Some(Value::String(password)), None] if !password.is_empty() => {
            let password = Secret::new(password.into_bytes());
            let runtime = Handle::current();
            let hashed = hashing.run(None, &runtime, move || PasswordRecord::make(&password));
            let record = hashed
                .await
                .map_err(|_| Refusal::Unavailable("as many passwords are being hashed as may: ask again".to_owned()))?;
            Some(record.text().expect("what is made here has a text").to_owned())
        }
        [None, Some(Value::String(hash))] => {
            PasswordRecord::parse(&hash).map_err(|error| bad(format_args!("the hash cannot be used: {error}")))?;
            Some(hash)
        }
        [Some(_), Some(_)] => return Err(bad("give a password or a hash, not both")),
        _ => return Err(bad("password and hash are strings that are not empty")),
    };
    let operation = AccessOp::PutUser {
        name: name.into(),
        record: record.map(|record| Hidden::new(record.into_bytes())),
        groups,
    };
    change(cluster, operation).await
}

fn rules_of(body: &Value) -> Result<AccessOp, Refusal> {
    let fields = Fields::of(body, &["rules", "version"])?;
    let Some(rules) = fields.strings("rules")? else {
        return Err(bad(
            r#"the body has no rules, as in {"rules": ["allow user=al publish a/#"]}"#,
        ));
    };
    // Kept as this version writes them: no two texts for one rule.
    let rules = rules.iter().map(|text| match text.parse::<Rule>() {
        Ok(rule) => Ok(rule.to_string().into()),
        Err(error) => Err(bad(error)),
    });
    Ok(AccessOp::SetRules {
        rules: rules.collect::<Result<_, _>>()?,
        version: fields.number("version")?.map(MetaIndex),
    })
}

fn ban_of(body: &Value, by: String) -> Result<BanRequest, Refusal> {
    let fields = Fields::of(body, &["client", "user", "address", "seconds", "reason"])?;
    let seconds = match fields.number("seconds")? {
        None => None,
        Some(0) => return Err(bad("a ban of 0 seconds is none; without seconds it is for good")),
        Some(seconds) => Some(u32::try_from(seconds).map_err(|_| bad("seconds is up to 4294967295"))?),
    };
    let reason = fields.string("reason")?.unwrap_or_default();
    if reason.len() > TEXT_MAX {
        return Err(bad(format_args!("the reason is longer than {TEXT_MAX} bytes")));
    }
    Ok(BanRequest {
        target: target_of(&fields)?,
        seconds,
        reason: reason.into(),
        by: by.into(),
        only_longer: false,
    })
}

fn target_of(fields: &Fields<'_>) -> Result<BanTarget, Refusal> {
    match (
        fields.string("client")?,
        fields.string("user")?,
        fields.string("address")?,
    ) {
        (Some(client_id), None, None) => {
            check_name("client", client_id)?;
            Ok(BanTarget::Client(client_id.into()))
        }
        (None, Some(name), None) => {
            check_name("user", name)?;
            Ok(BanTarget::User(name.into()))
        }
        (None, None, Some(network)) => subnet(network).map(BanTarget::Network),
        _ => Err(bad("name one of client, user and address")),
    }
}

/// MQTT's strings have 65,535 bytes at most.
fn check_name(what: &str, name: &str) -> Result<(), Refusal> {
    match name.len() {
        1..=65_535 => Ok(()),
        _ => Err(bad(format_args!("{what} has 1 to 65535 bytes"))),
    }
}

fn subnet(text: &str) -> Result<Subnet, Refusal> {
    let wrong = || {
        bad(format_args!(
            "`{text}` is no address or network: write 192.0.2.7, 10.0.0.0/8 or 2001:db8::/32, without bits behind the prefix"
        ))
    };
    let (address, prefix) = match text.split_once('/') {
        None => (text, None),
        Some((address, prefix)) if prefix.bytes().all(|byte| byte.is_ascii_digit()) => (address, Some(prefix)),
        Some(_) => return Err(wrong()),
    };
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let prefix = match prefix {
        None if address.is_ipv4() => 32,
        None => 128,
        Some(prefix) => prefix.parse().map_err(|_| wrong())?,
    };
    Subnet::new(address, prefix).ok_or_else(wrong)
}

async fn put_key(cluster: &Cluster, body: &Value, caller: Caller) -> Answered {
    let fields = Fields::of(body, &["role", "label"])?;
    let named = fields.string("role")?.and_then(role_named);
    let kept = named.ok_or_else(|| bad("role is read, operate or admin"))?;
    let label = fields.string("label")?.unwrap_or_default();
    if label.len() > TEXT_MAX {
        return Err(bad(format_args!("the label is longer than {TEXT_MAX} bytes")));
    }
    let key = NewKey::make();
    let operation = AccessOp::PutKey {
        id: key.id.clone().into(),
        digest: key.digest,
        role: kept,
        label: label.into(),
        authority: caller.key.map(Into::into),
    };
    change(cluster, operation).await?;
    let token = std::str::from_utf8(key.token.expose()).expect("made of ASCII");
    Ok(json!({ "id": key.id, "role": role(kept).name(), "key": token }))
}

async fn change(cluster: &Cluster, operation: AccessOp) -> Answered {
    match cluster.change_access(operation).await.map_err(refusal)? {
        AccessReply::Done { existed } => Ok(json!({ "existed": existed })),
        AccessReply::NotFound => Err(Refusal::NotFound(
            "no such user: one that comes needs a password or a hash".to_owned(),
        )),
        AccessReply::Conflict => Err(Refusal::Conflict(
            "it was changed meanwhile: look again, and ask with the present version".to_owned(),
        )),
        AccessReply::Full => Err(Refusal::Conflict("there are as many as may be, or they are too long".to_owned())),
        AccessReply::NeedsAdmin => Err(Refusal::Conflict(
            "no key could administer then: the first key has the role admin, and the last such key stays (the very last of all \
             goes with even_last=true: then whoever is on a node's machine may do everything)"
                .to_owned(),
        )),
        AccessReply::Unauthorised => Err(Refusal::Forbidden(
            "who may change keys has changed meanwhile: show a key of the role admin".to_owned(),
        )),
        // Not what was asked for.
        AccessReply::Expired { .. } => Err(Refusal::Failed("the cluster answered something else".to_owned())),
    }
}

fn refusal(error: MetaError) -> Refusal {
    match error {
        MetaError::Unavailable { .. } => Refusal::Unavailable(
            "no majority of the cluster answers: nothing has changed; ask again, or another node".to_owned(),
        ),
        MetaError::Unknown { .. } | MetaError::Stale => Refusal::Unknown(
            "it may have been done, or is not in effect on every node yet: ask again, which is safe".to_owned(),
        ),
    }
}

fn bad(why: impl Display) -> Refusal {
    Refusal::BadRequest(why.to_string())
}

/// The fields of a body, all of them known.
struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    fn of(body: &'a Value, known: &[&str]) -> Result<Self, Refusal> {
        let Some(fields) = body.as_object() else {
            return Err(bad("the body is no JSON object"));
        };
        match fields.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(bad(format_args!(
                "`{key}` is not known here: there is {}",
                known.join(", ")
            ))),
            None => Ok(Fields(fields)),
        }
    }

    fn string(&self, key: &str) -> Result<Option<&'a str>, Refusal> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(bad(format_args!("{key} is a string"))),
        }
    }

    fn number(&self, key: &str) -> Result<Option<u64>, Refusal> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value
                .as_u64()
                .map(Some)
                .ok_or_else(|| bad(format_args!("{key} is a whole number"))),
        }
    }

    fn strings(&self, key: &str) -> Result<Option<Vec<Box<str>>>, Refusal> {
        let wrong = || bad(format_args!("{key} is a list of strings"));
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(list)) => {
                let strings = list.iter().map(|one| one.as_str().map(Into::into).ok_or_else(wrong));
                strings.collect::<Result<_, _>>().map(Some)
            }
            Some(_) => Err(wrong()),
        }
    }
}

/// Reasons and labels.
const TEXT_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ban_names_one_target_and_nothing_unknown() {
        let ban = |body: Value| ban_of(&body, "local".to_owned());
        let good = ban(json!({ "client": "c", "seconds": 60, "reason": "noise" })).expect("a ban");
        assert_eq!((good.target, good.seconds), (BanTarget::Client("c".into()), Some(60)));
        let mapped = ban(json!({ "address": "::ffff:10.1.2.3" })).expect("a ban");
        let plain = ban(json!({ "address": "10.1.2.3/32" })).expect("a ban");
        assert_eq!(mapped.target, plain.target);
        for bad in [
            json!({}),
            json!([]),
            json!({ "client": "c", "user": "u" }),
            json!({ "client": "" }),
            json!({ "client": 7 }),
            json!({ "client": "c", "seconds": 0 }),
            json!({ "client": "c", "seconds": -1 }),
            json!({ "client": "c", "seconds": 4_294_967_296_u64 }),
            json!({ "client": "c", "second": 1 }),
            json!({ "address": "10.0.0.1/8" }),
            json!({ "address": "10.0.0.0/33" }),
            json!({ "address": "10.0.0.0/+8" }),
            json!({ "address": "localhost" }),
            json!({ "client": "c", "reason": "x".repeat(1025) }),
        ] {
            assert!(matches!(ban(bad.clone()), Err(Refusal::BadRequest(_))), "{bad}");
        }
    }

    #[test]
    fn a_page_tells_where_the_next_begins() {
        let page = |limit| Page { limit, after: None };
        let rows = || ["a", "b", "c"].into_iter().map(|name| (name.to_owned(), json!(name)));
        assert_eq!(paged("l", &page(2), rows()), json!({ "l": ["a", "b"], "next": "b" }));
        assert_eq!(
            paged("l", &page(3), rows()),
            json!({ "l": ["a", "b", "c"], "next": null })
        );
        assert_eq!(paged("l", &page(3), rows().take(0)), json!({ "l": [], "next": null }));
        for good in ["client:a:b", "user:", "address:10.0.0.0/8"] {
            assert!(ban_named(good).is_ok(), "{good}");
        }
        assert!(ban_named("a").is_err() && ban_named("address:x").is_err());
    }

    #[test]
    fn rules_are_looked_at_and_written_one_way() {
        let body = json!({ "rules": ["allow   user=al publish  a/#"], "version": 7 });
        let expected = AccessOp::SetRules {
            rules: vec!["allow user=al publish a/#".into()],
            version: Some(MetaIndex(7)),
        };
        assert_eq!(rules_of(&body), Ok(expected));
        for bad in [
            json!({}),
            json!({ "rules": "allow publish a" }),
            json!({ "rules": ["permit publish a"] }),
            json!({ "rules": [1] }),
            json!({ "rules": [], "version": "7" }),
        ] {
            assert!(matches!(rules_of(&bad), Err(Refusal::BadRequest(_))), "{bad}");
        }
    }
}
