//! Rules that come with an identity: the `acl` of a token, or of a server's answer.
//!
//! ```text
//!   { "publish": ["a/#"], "subscribe": ["b/#"], "all": ["c/%u/#"] }                     allows; `pub` and `sub` are the same
//!   [ { "permission": "allow", "action": "publish", "topic": "a/#" }, … ]               in their order
//! ```
//!
//! `%u` and `%c` are as in other rules; `${username}` and `${clientid}` are read as these. What is no rule refuses the client:
//! one that is left out could be the one that denies.

use serde_json::Value;

use super::filters::is_filter;
use super::rule::{Actions, Effect, Rule};

/// Why there are no rules. What it was about is in it, cut short: it came from outside.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NotGrants {
    #[error("it is neither an object of lists of topic filters, nor a list of rules")]
    Shape,
    #[error("`{0}` is none of publish, subscribe and all")]
    Action(String),
    #[error("`{0}` is none of allow and deny")]
    Permission(String),
    #[error("`{0}` is none of permission, action and topic")]
    Key(String),
    #[error("`{0}` is no topic filter")]
    Filter(String),
    #[error("it has more than {RULES_MAX} rules, or more than {BYTES_MAX} bytes of filters")]
    TooMany,
}

/// # Errors
/// They cannot be used as a whole.
pub fn parse(value: &Value) -> Result<Vec<Rule>, NotGrants> {
    let mut rules = Vec::new();
    match value {
        Value::Object(lists) => {
            for (action, filters) in lists {
                let actions = actions(action)?;
                for filter in filters.as_array().ok_or(NotGrants::Shape)? {
                    rules.push(rule(Effect::Allow, actions, filter)?);
                }
            }
        }
        Value::Array(list) => {
            for one in list {
                // A rule for one QoS would be one for all.
                if let Some(key) = one
                    .as_object()
                    .and_then(|rule| rule.keys().find(|key| !KEYS.contains(&&***key)))
                {
                    return Err(NotGrants::Key(short(key)));
                }
                let text = |key: &str| one.get(key).and_then(Value::as_str).ok_or(NotGrants::Shape);
                let effect = match text("permission")? {
                    "allow" => Effect::Allow,
                    "deny" => Effect::Deny,
                    other => return Err(NotGrants::Permission(short(other))),
                };
                let actions = match one.get("action") {
                    None => actions("all")?,
                    Some(_) => actions(text("action")?)?,
                };
                rules.push(rule(effect, actions, one.get("topic").ok_or(NotGrants::Shape)?)?);
            }
        }
        _ => return Err(NotGrants::Shape),
    }
    let bytes: usize = rules.iter().map(|rule| rule.filter.len()).sum();
    match rules.len() > RULES_MAX || bytes > BYTES_MAX {
        true => Err(NotGrants::TooMany),
        false => Ok(rules),
    }
}

fn rule(effect: Effect, actions: Actions, filter: &Value) -> Result<Rule, NotGrants> {
    let filter = filter.as_str().ok_or(NotGrants::Shape)?;
    let filter = filter.replace("${username}", "%u").replace("${clientid}", "%c");
    match is_filter(&filter) {
        true => Ok(Rule {
            effect,
            who: Vec::new(),
            actions,
            filter: filter.into(),
        }),
        false => Err(NotGrants::Filter(short(&filter))),
    }
}

fn actions(action: &str) -> Result<Actions, NotGrants> {
    let (publish, subscribe) = match action {
        "publish" | "pub" => (true, false),
        "subscribe" | "sub" => (false, true),
        "all" => (true, true),
        other => return Err(NotGrants::Action(short(other))),
    };
    Ok(Actions { publish, subscribe })
}

fn short(text: &str) -> String {
    text.chars().take(40).collect()
}

const KEYS: [&str; 3] = ["permission", "action", "topic"];
/// Each connection has its own: 64 KiB and some at the worst.
const RULES_MAX: usize = 256;
const BYTES_MAX: usize = 32 * 1024;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(value: &Value) -> Result<Vec<String>, NotGrants> {
        parse(value).map(|rules| rules.iter().map(Rule::to_string).collect())
    }

    #[test]
    fn lists_of_filters_allow_and_lists_of_rules_keep_their_order() {
        let lists = json!({ "pub": ["a/#", "own/${username}"], "subscribe": ["c/${clientid}/+"] });
        let rules = told(&lists).expect("rules");
        for expected in ["allow publish a/#", "allow publish own/%u", "allow subscribe c/%c/+"] {
            assert!(rules.iter().any(|rule| rule == expected), "{rules:?}");
        }
        let list = json!([
            { "permission": "deny", "action": "publish", "topic": "a/secret" },
            { "permission": "allow", "topic": "a/#" },
        ]);
        assert_eq!(
            told(&list).expect("rules"),
            ["deny publish a/secret", "allow publish,subscribe a/#"]
        );
        assert_eq!(told(&json!([])), Ok(Vec::new()));
    }

    #[test]
    fn what_is_no_rule_refuses_the_whole() {
        for (bad, error) in [
            (json!("a/#"), NotGrants::Shape),
            (json!({ "publish": "a/#" }), NotGrants::Shape),
            (json!({ "publish": [1] }), NotGrants::Shape),
            (json!({ "write": ["a"] }), NotGrants::Action("write".into())),
            (json!({ "publish": ["a#"] }), NotGrants::Filter("a#".into())),
            (json!([{ "action": "all", "topic": "a" }]), NotGrants::Shape),
            (
                json!([{ "permission": "maybe", "topic": "a" }]),
                NotGrants::Permission("maybe".into()),
            ),
            (json!([{ "permission": "deny" }]), NotGrants::Shape),
            (
                json!([{ "permission": "allow", "action": "publish", "topic": "a", "qos": [0] }]),
                NotGrants::Key("qos".into()),
            ),
            (json!({ "publish": vec!["a"; 257] }), NotGrants::TooMany),
            (json!({ "publish": ["x".repeat(40_000)] }), NotGrants::TooMany),
        ] {
            assert_eq!(told(&bad), Err(error), "{bad}");
        }
    }
}
