//! `[topics]`: what is made of the topics that clients name, and how much may wait for its time. How it works: `protocol/topic_rules.rs`.

use std::fmt;

use regex::Regex;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::check::Violation;
use crate::protocol::codec::topic_grammar::{check_topic_filter, is_exclusive, is_shared};
use crate::sys::is_sys;

/// `[topics]`: rules in three lists, of each the first that fits. Default: none. Equal on all nodes: what a client gets must not
/// depend on the node it came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Topics {
    /// Topics and filters that are replaced. At most 100; each costs every PUBLISH a look.
    pub rewrite: Vec<Rewrite>,

    /// What each client is subscribed to when it connects, besides what it asks for. At most 100.
    pub subscribe: Vec<AutoSubscription>,

    /// What may be published where. At most 1000.
    pub policy: Vec<Policy>,

    /// Messages to `$delayed/` that may wait for their time in the whole cluster, spread over the shards. A publish beyond is
    /// refused with 0x97. Default 0: no limit but the disk watermark.
    pub delayed_messages_max: u64,
}

/// One of `topics.rewrite`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rewrite {
    /// `publish` (wills too), `subscribe` or `all`.
    pub on: RewriteOn,

    /// A regular expression. What it matches of the topic is replaced: `^…$` for the whole.
    pub from: Pattern,

    /// In its place: `$1` or `${name}` for what a group matched, `%c` the client id, `%u` the user name.
    pub to: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RewriteOn {
    Publish,
    Subscribe,
    All,
}

/// One of `topics.subscribe`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AutoSubscription {
    /// A Topic Filter, in which `%c` stands for the client id and `%u` for the user name.
    pub filter: String,

    /// The highest QoS delivered. Default 0.
    #[serde(default)]
    pub qos: u8,

    /// Not what the client itself publishes. Default false.
    #[serde(default)]
    pub no_local: bool,

    /// Default false.
    #[serde(default)]
    pub retain_as_published: bool,

    /// Retained messages: 0 sends them, 1 and 2 for a new session and never. Default 0.
    #[serde(default)]
    pub retain_handling: u8,
}

/// One of `topics.policy`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// The topics that it is about.
    pub filter: String,

    /// A PUBLISH of a higher QoS is refused with 0x83. Default 2.
    #[serde(default = "qos_2")]
    pub qos_max: u8,

    /// What becomes of RETAIN: `allow`, `ignore` (it is a plain message) or `refuse` (0x83). Default `allow`.
    #[serde(default)]
    pub retain: RetainPolicy,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RetainPolicy {
    #[default]
    Allow,
    Ignore,
    Refuse,
}

/// A regular expression (syntax of the crate `regex`): linear in the length of the topic, whatever it says.
#[derive(Clone, Debug)]
pub struct Pattern(pub Regex);

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // The crate draws where it is wrong, on lines of its own; its last line says what is.
        let what = |error: regex::Error| {
            let drawn = error.to_string();
            let last = drawn.lines().last().unwrap_or_default();
            format!(
                "`{text}` is no regular expression: {}",
                last.trim_start_matches("error: ")
            )
        };
        Regex::new(&text)
            .map(Pattern)
            .map_err(|error| serde::de::Error::custom(what(error)))
    }
}

impl Topics {
    pub(super) fn check(&self) -> Result<(), Violation> {
        for (list, length, max) in [
            ("rewrite", self.rewrite.len(), 100),
            ("subscribe", self.subscribe.len(), 100),
            ("policy", self.policy.len(), 1000),
        ] {
            if length > max {
                return Err(refused(list, None, "", format!("{length} rules are more than {max}")));
            }
        }
        for (at, rule) in self.rewrite.iter().enumerate() {
            if let Some(name) = unknown_group(&rule.from.0, &rule.to) {
                let problem =
                    format!("`from` has no group `{name}`; write ${{1}}x for group 1 before an x, $$ for a $");
                return Err(refused("rewrite", Some(at), ".to", problem));
            }
        }
        for (at, rule) in self.subscribe.iter().enumerate() {
            let refuse = |key, problem| Err(refused("subscribe", Some(at), key, problem));
            if let Err(problem) = filter(&rule.filter) {
                return refuse(".filter", problem);
            }
            if rule.qos > 2 {
                return refuse(".qos", format!("{} is not 0, 1 or 2", rule.qos));
            }
            if rule.retain_handling > 2 {
                return refuse(".retain_handling", format!("{} is not 0, 1 or 2", rule.retain_handling));
            }
            if is_exclusive(&rule.filter) {
                return refuse(".filter", "exclusive is what a client asks for itself".to_owned());
            }
            if rule.no_local && is_shared(&rule.filter) {
                return refuse(".no_local", "not for a shared subscription".to_owned()); // [MQTT-3.8.3-4]
            }
        }
        for (at, rule) in self.policy.iter().enumerate() {
            let refuse = |key, problem| Err(refused("policy", Some(at), key, problem));
            if let Err(problem) = filter(&rule.filter) {
                return refuse(".filter", problem);
            }
            if is_shared(&rule.filter) || is_exclusive(&rule.filter) {
                return refuse(".filter", "not for a shared or exclusive subscription".to_owned());
            }
            if rule.qos_max > 2 {
                return refuse(".qos_max", format!("{} is not 0, 1 or 2", rule.qos_max));
            }
        }
        Ok(())
    }
}

/// Each with every key, for whoever needs to know which there are.
pub(super) fn a_rewrite() -> Rewrite {
    Rewrite {
        on: RewriteOn::All,
        from: Pattern(Regex::new("a").expect("a regular expression")),
        to: "b".to_owned(),
    }
}

pub(super) fn a_subscription() -> AutoSubscription {
    AutoSubscription {
        filter: "a".to_owned(),
        qos: 0,
        no_local: false,
        retain_as_published: false,
        retain_handling: 0,
    }
}

pub(super) fn a_policy() -> Policy {
    Policy {
        filter: "a".to_owned(),
        qos_max: qos_2(),
        retain: RetainPolicy::default(),
    }
}

fn refused(list: &str, at: Option<usize>, key: &str, problem: String) -> Violation {
    let element = at.map(|at| format!("[{at}]")).unwrap_or_default();
    Violation {
        key: format!("topics.{list}{element}{key}").into(),
        problem,
    }
}

fn filter(filter: &str) -> Result<(), String> {
    check_topic_filter(filter).map_err(|violation| format!("`{filter}` is no Topic Filter: {}", violation.what))?;
    match is_sys(filter) {
        true => Err("$SYS is the node's own".to_owned()),
        false => Ok(()),
    }
}

/// A group that a replacement names and its expression does not have: it would silently be empty.
fn unknown_group(from: &Regex, to: &str) -> Option<String> {
    let mut rest = to;
    while let Some(at) = rest.find('$') {
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            rest = after;
            continue;
        }
        let name = match rest.strip_prefix('{') {
            Some(within) => within.split_once('}').map_or(within, |(name, _)| name),
            None => {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                &rest[..end.unwrap_or(rest.len())]
            }
        };
        let is_known = match name.parse::<usize>() {
            Ok(number) => number < from.captures_len(),
            Err(_) => from.capture_names().flatten().any(|known| known == name),
        };
        if !is_known {
            return Some(name.to_owned());
        }
    }
    None
}

fn qos_2() -> u8 {
    2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_that_could_not_work_is_refused_by_its_key() {
        for (toml, key) in [
            (
                r#"rewrite = [{ on = "all", from = '(a)', to = '$2' }]"#,
                "topics.rewrite[0].to",
            ),
            (
                r#"rewrite = [{ on = "all", from = '(a)', to = '$1x' }]"#,
                "topics.rewrite[0].to",
            ),
            (
                r#"rewrite = [{ on = "all", from = 'a', to = 'b$' }]"#,
                "topics.rewrite[0].to",
            ),
            (
                r##"subscribe = [{ filter = "a" }, { filter = "a#" }]"##,
                "topics.subscribe[1].filter",
            ),
            (r#"subscribe = [{ filter = "a", qos = 3 }]"#, "topics.subscribe[0].qos"),
            (
                r#"subscribe = [{ filter = "$share/g/a", no_local = true }]"#,
                "topics.subscribe[0].no_local",
            ),
            (
                r#"subscribe = [{ filter = "a", retain_handling = 3 }]"#,
                "topics.subscribe[0].retain_handling",
            ),
            (
                r#"subscribe = [{ filter = "$exclusive/a" }]"#,
                "topics.subscribe[0].filter",
            ),
            (r#"policy = [{ filter = "$exclusive/a" }]"#, "topics.policy[0].filter"),
            (r#"policy = [{ filter = "" }]"#, "topics.policy[0].filter"),
            (r##"policy = [{ filter = "$SYS/#" }]"##, "topics.policy[0].filter"),
            (r#"policy = [{ filter = "$share/g/a" }]"#, "topics.policy[0].filter"),
            (
                r#"policy = [{ filter = "a", qos_max = 3 }]"#,
                "topics.policy[0].qos_max",
            ),
        ] {
            let topics: Topics = toml::from_str(toml).expect(toml);
            assert_eq!(topics.check().expect_err(toml).key, key, "{toml}");
        }
        let good = r#"rewrite = [{ on = "all", from = '(?P<x>a)(b)', to = '${x}_$$%$2/$0' }]"#;
        assert_eq!(toml::from_str::<Topics>(good).expect("good").check(), Ok(()));
        assert!(toml::from_str::<Topics>(r#"rewrite = [{ on = "all", from = '(', to = '' }]"#).is_err());
    }
}
