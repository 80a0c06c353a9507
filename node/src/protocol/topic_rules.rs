//! What the operator's `[topics]` makes of the topics that clients name: rewritten, subscribed for them, refused.
//!
//! ```text
//!   PUBLISH, will      topic  ─▶ rewrite ─▶ mountpoint ─▶ policy ─▶ access ─▶ cluster
//!   SUBSCRIBE          filter ─▶ rewrite ─▶ mountpoint ─▶ access ─▶ cluster      $share/{name}/ stays in front
//!   CONNECT            filters of `topics.subscribe`  ─▶ mountpoint ─▶ cluster
//! ```
//!
//! Sans-io. Access is decided on what comes out, so that no rule leads past it.
//!
//! Invariants
//! - `rewrite-once`: the first rule that fits is the only one; what it gives is not rewritten again.
//! - `placeholder-is-a-level`: a client id or user name that would bring `/`, `+` or `#` into a topic makes the rule void for
//!   that client: nobody widens a rule by the name that he chose.

use std::borrow::Cow;
use std::sync::Arc;

use lontra_storage::command::Subscription;
use lontra_storage::topic::matches;
use regex::Regex;

use super::codec::topic_grammar::{check_topic_filter, check_topic_name, is_exclusive, split_shared};
use super::codec::{QoS, ReasonCode};
use super::delayed::is_delayed;
use crate::config::topics::{RetainPolicy, RewriteOn, Topics};
use crate::sys::is_sys;

/// Who names a topic.
#[derive(Clone, Copy, Debug)]
pub struct Namer<'a> {
    pub client_id: &'a str,
    pub user_name: Option<&'a str>,
}

/// The rules of a node, ready for use. Cheap to clone; empty without any.
#[derive(Clone, Debug, Default)]
pub struct TopicRules(Option<Arc<Rules>>);

#[derive(Debug)]
struct Rules {
    rewrites: Vec<Rewrite>,
    subscriptions: Vec<Subscription>,
    policies: Vec<Policy>,
    offered: Offered,
}

/// What may be published anywhere at all: CONNACK tells it, so that no client tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offered {
    pub qos_max: QoS,
    pub retain: bool,
}

impl Default for Offered {
    fn default() -> Self {
        Offered {
            qos_max: QoS::ExactlyOnce,
            retain: true,
        }
    }
}

impl Offered {
    /// Policies decide for every topic only up to one that matches all: what it and those before it grant, and no more, is to
    /// be had. Topics that begin with `$` match no such filter; they get no more than the others, or CONNACK would be untrue.
    fn by(policies: &[Policy]) -> Self {
        let is_last = |policy: &Policy| matches!(&*policy.filter, "#" | "+/#");
        let Some(last) = policies.iter().position(is_last) else {
            return Offered::default();
        };
        let in_force = &policies[..=last];
        let qos_max = in_force.iter().map(|policy| policy.qos_max).max();
        Offered {
            qos_max: match qos_max {
                Some(0) => QoS::AtMostOnce,
                Some(1) => QoS::AtLeastOnce,
                _ => QoS::ExactlyOnce,
            },
            retain: in_force.iter().any(|policy| policy.retain != RetainPolicy::Refuse),
        }
    }
}

#[derive(Debug)]
struct Rewrite {
    on: RewriteOn,
    from: Regex,
    to: String,
}

#[derive(Debug)]
struct Policy {
    filter: Box<str>,
    qos_max: u8,
    retain: RetainPolicy,
}

/// What a PUBLISH may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    AsItIs,
    /// Nothing is retained of it.
    WithoutRetain,
    /// It is refused there, for this: a will is told it.
    Refused(ReasonCode),
    /// It is refused everywhere, as CONNACK said: 0x9A or 0x9B. [MQTT-3.2.2-11] [MQTT-3.2.2-14]
    NotOffered(ReasonCode),
}

impl TopicRules {
    /// Of a configuration that was checked.
    pub fn new(topics: &Topics) -> Self {
        if *topics == Topics::default() {
            return TopicRules(None);
        }
        let rewrites = topics.rewrite.iter().map(|rule| Rewrite {
            on: rule.on,
            from: rule.from.0.clone(),
            to: rule.to.clone(),
        });
        let subscriptions = topics.subscribe.iter().map(|rule| Subscription {
            filter: rule.filter.as_str().into(),
            qos: rule.qos,
            no_local: rule.no_local,
            retain_as_published: rule.retain_as_published,
            retain_handling: rule.retain_handling,
            identifier: None,
            exclusive: false,
        });
        let policies = topics.policy.iter().map(|rule| Policy {
            filter: rule.filter.as_str().into(),
            qos_max: rule.qos_max,
            retain: rule.retain,
        });
        let policies: Vec<Policy> = policies.collect();
        TopicRules(Some(Arc::new(Rules {
            rewrites: rewrites.collect(),
            subscriptions: subscriptions.collect(),
            offered: Offered::by(&policies),
            policies,
        })))
    }

    /// What CONNACK says of QoS and RETAIN.
    pub fn offered(&self) -> Offered {
        self.0.as_ref().map_or_else(Offered::default, |rules| rules.offered)
    }

    /// The Topic Name that a publish or will goes to; `None`: the one that it names.
    ///
    /// # Errors
    /// What a rule made of it is none.
    pub fn topic(&self, topic: &str, namer: Namer<'_>) -> Result<Option<Box<str>>, ReasonCode> {
        let Some(rewritten) = self.rewritten(topic, RewriteOn::Publish, namer) else {
            return Ok(None);
        };
        check_topic_name(&rewritten).map_err(|violation| violation.reason)?;
        if is_delayed(&rewritten) || is_sys(&rewritten) {
            return Err(ReasonCode::TOPIC_NAME_INVALID);
        }
        Ok(Some(rewritten.into()))
    }

    /// The Topic Filter that is subscribed in place of `filter`, which may be it.
    ///
    /// # Errors
    /// What a rule made of it is none.
    pub fn filter<'a>(&self, filter: &'a str, namer: Namer<'_>) -> Result<Cow<'a, str>, ReasonCode> {
        let shared = split_shared(filter);
        let within = shared.map_or(filter, |(_, within)| within);
        let Some(rewritten) = self.rewritten(within, RewriteOn::Subscribe, namer) else {
            return Ok(Cow::Borrowed(filter));
        };
        let rewritten = match shared {
            Some((group, _)) => format!("$share/{group}/{rewritten}"),
            None => rewritten,
        };
        check_topic_filter(&rewritten).map_err(|violation| violation.reason)?;
        if is_exclusive(&rewritten) {
            return Err(ReasonCode::TOPIC_FILTER_INVALID);
        }
        Ok(Cow::Owned(rewritten))
    }

    fn rewritten(&self, name: &str, on: RewriteOn, namer: Namer<'_>) -> Option<String> {
        let rules = self.0.as_ref().filter(|_| !is_sys(name))?;
        let fits = |rule: &&Rewrite| (rule.on == on || rule.on == RewriteOn::All) && rule.from.is_match(name);
        let rule = rules.rewrites.iter().find(fits)?;
        let to = filled(&rule.to, namer, |value| value.replace('$', "$$"))?;
        Some(rule.from.replace(name, &*to).into_owned())
    }

    /// What a client that connects is subscribed to, besides what it asks for.
    pub fn subscriptions(&self, namer: Namer<'_>) -> Vec<Subscription> {
        let Some(rules) = &self.0 else { return Vec::new() };
        let subscriptions = rules.subscriptions.iter().filter_map(|rule| {
            let filter = filled(&rule.filter, namer, str::to_owned)?;
            Some(Subscription {
                filter: filter.as_ref().into(),
                ..rule.clone()
            })
        });
        subscriptions.collect()
    }

    /// What becomes of a PUBLISH to `topic`, as its client knows it after rewriting: the first policy whose filter matches.
    pub fn verdict(&self, topic: &str, qos: u8, retain: bool) -> Verdict {
        let Some(rules) = &self.0 else {
            return Verdict::AsItIs;
        };
        if qos > rules.offered.qos_max as u8 {
            return Verdict::NotOffered(ReasonCode::QOS_NOT_SUPPORTED);
        }
        if retain && !rules.offered.retain {
            return Verdict::NotOffered(ReasonCode::RETAIN_NOT_SUPPORTED);
        }
        let mut policies = rules.policies.iter();
        let Some(policy) = policies.find(|policy| matches(&policy.filter, topic)) else {
            return Verdict::AsItIs;
        };
        if qos > policy.qos_max {
            return Verdict::Refused(ReasonCode::QOS_NOT_SUPPORTED);
        }
        match policy.retain {
            RetainPolicy::Refuse if retain => Verdict::Refused(ReasonCode::RETAIN_NOT_SUPPORTED),
            RetainPolicy::Ignore if retain => Verdict::WithoutRetain,
            RetainPolicy::Allow | RetainPolicy::Ignore | RetainPolicy::Refuse => Verdict::AsItIs,
        }
    }
}

/// `%c` and `%u` replaced; `None` where that is not to be (`placeholder-is-a-level`).
fn filled<'a>(template: &'a str, namer: Namer<'_>, escape: impl Fn(&str) -> String) -> Option<Cow<'a, str>> {
    let mut filled = Cow::Borrowed(template);
    // A value that looks like a placeholder is not one: both are found in the template.
    if !template.contains('%') {
        return Some(filled);
    }
    let mut rest = template;
    let mut done = String::with_capacity(template.len() + 32);
    while let Some(at) = rest.find('%') {
        let (before, placeholder) = rest.split_at(at);
        done.push_str(before);
        let value = match placeholder.get(..2) {
            Some("%c") => Some(namer.client_id),
            Some("%u") => Some(namer.user_name?),
            _ => None,
        };
        match value {
            None => done.push('%'),
            Some(value) if value.is_empty() || value.contains(['/', '+', '#', '\0']) => return None,
            Some(value) => done.push_str(&escape(value)),
        }
        rest = &placeholder[if value.is_some() { 2 } else { 1 }..];
    }
    done.push_str(rest);
    filled = Cow::Owned(done);
    Some(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(toml: &str) -> TopicRules {
        TopicRules::new(&toml::from_str(toml).expect("a [topics]"))
    }

    const NAMER: Namer<'static> = Namer {
        client_id: "c-1",
        user_name: Some("$0"),
    };

    #[test]
    fn the_first_rule_that_fits_rewrites_and_no_other() {
        let rules = rules(
            r#"
            rewrite = [
                { on = "publish", from = '^old/(.+)$', to = 'new/$1' },
                { on = "all", from = '^(old|new)/(.+)$', to = 'all/$2' },
                { on = "subscribe", from = '^mine$', to = 'of/%c/%u' },
            ]
            "#,
        );
        assert_eq!(rules.topic("old/a/b", NAMER).unwrap().as_deref(), Some("new/a/b"));
        assert_eq!(rules.topic("new/a", NAMER).unwrap().as_deref(), Some("all/a"));
        assert_eq!(rules.topic("mine", NAMER), Ok(None));
        assert_eq!(rules.filter("old/+/#", NAMER).unwrap(), "all/+/#");
        assert_eq!(rules.filter("$share/g/old/+", NAMER).unwrap(), "$share/g/all/+");
        // What a name brings is not read as a capture.
        assert_eq!(rules.filter("mine", NAMER).unwrap(), "of/c-1/$0");
        assert_eq!(rules.filter("other", NAMER).unwrap(), "other");
    }

    #[test]
    fn what_a_rule_makes_is_a_topic_or_refused() {
        let rules = rules(
            r##"
            rewrite = [
                { on = "publish", from = '^wild$', to = 'a/#' },
                { on = "subscribe", from = '^wild$', to = 'a#' },
                { on = "all", from = '^gone$', to = '' },
                { on = "publish", from = '^later$', to = '$$delayed/5/a' },
                { on = "subscribe", from = '^mine$', to = '$$exclusive/a' },
            ]
            "##,
        );
        assert_eq!(rules.topic("wild", NAMER), Err(ReasonCode::TOPIC_NAME_INVALID));
        assert_eq!(rules.filter("wild", NAMER), Err(ReasonCode::TOPIC_FILTER_INVALID));
        assert_eq!(rules.topic("gone", NAMER), Err(ReasonCode::TOPIC_NAME_INVALID));
        assert!(rules.filter("gone", NAMER).is_err());
        assert_eq!(rules.topic("later", NAMER), Err(ReasonCode::TOPIC_NAME_INVALID));
        assert_eq!(rules.filter("mine", NAMER), Err(ReasonCode::TOPIC_FILTER_INVALID));
    }

    #[test]
    fn no_name_widens_a_rule() {
        let rules = rules(
            r#"
            rewrite = [{ on = "all", from = '^me$', to = 'clients/%c' }]
            subscribe = [{ filter = "clients/%c/in" }, { filter = "users/%u" }]
            "#,
        );
        for client_id in ["+", "#", "a/b", "a+", "x\0"] {
            let namer = Namer {
                client_id,
                user_name: None,
            };
            assert_eq!(rules.topic("me", namer), Ok(None), "{client_id:?}");
            assert!(rules.subscriptions(namer).is_empty(), "{client_id:?}");
        }
        let namer = Namer {
            client_id: "%u",
            user_name: Some("%c"),
        };
        let filters: Vec<_> = rules.subscriptions(namer).into_iter().map(|one| one.filter).collect();
        assert_eq!(filters, ["clients/%u/in".into(), "users/%c".into()] as [Box<str>; 2]);
    }

    #[test]
    fn the_first_policy_that_matches_decides() {
        let rules = rules(
            r##"
            policy = [
                { filter = "a/keep/#", qos_max = 2 },
                { filter = "a/#", qos_max = 1, retain = "ignore" },
                { filter = "b/+", retain = "refuse" },
            ]
            "##,
        );
        for (topic, qos, retain, expected) in [
            ("a/keep/x", 2, true, Verdict::AsItIs),
            ("a/x", 2, false, Verdict::Refused(ReasonCode::QOS_NOT_SUPPORTED)),
            ("a/x", 1, true, Verdict::WithoutRetain),
            ("a/x", 1, false, Verdict::AsItIs),
            ("b/x", 2, true, Verdict::Refused(ReasonCode::RETAIN_NOT_SUPPORTED)),
            ("b/x", 2, false, Verdict::AsItIs),
            ("b/x/y", 2, true, Verdict::AsItIs),
        ] {
            assert_eq!(rules.verdict(topic, qos, retain), expected, "{topic} {qos} {retain}");
        }
    }

    #[test]
    fn what_no_topic_grants_is_not_offered() {
        let offered = |policies: &str| rules(&format!("policy = [{policies}]")).offered();
        let [some, all] = [
            r##"{ filter = "a/#", qos_max = 1, retain = "refuse" }"##,
            r##"{ filter = "#" }"##,
        ];
        for (policies, qos_max, retain) in [
            (some.to_owned(), QoS::ExactlyOnce, true),
            (format!("{some}, {all}"), QoS::ExactlyOnce, true),
            (
                r##"{ filter = "#", qos_max = 1, retain = "refuse" }, { filter = "a" }"##.to_owned(),
                QoS::AtLeastOnce,
                false,
            ),
            (
                r##"{ filter = "a", qos_max = 1 }, { filter = "+/#", qos_max = 0, retain = "refuse" }"##.to_owned(),
                QoS::AtLeastOnce,
                true,
            ),
            (
                r##"{ filter = "#", qos_max = 0, retain = "ignore" }"##.to_owned(),
                QoS::AtMostOnce,
                true,
            ),
        ] {
            assert_eq!(offered(&policies), Offered { qos_max, retain }, "{policies}");
        }
        let none = rules(r##"policy = [{ filter = "#", qos_max = 1, retain = "refuse" }]"##);
        for (topic, qos, retain, expected) in [
            ("a", 1, false, Verdict::AsItIs),
            ("a", 2, true, Verdict::NotOffered(ReasonCode::QOS_NOT_SUPPORTED)),
            ("$a", 0, true, Verdict::NotOffered(ReasonCode::RETAIN_NOT_SUPPORTED)),
        ] {
            assert_eq!(none.verdict(topic, qos, retain), expected, "{topic}");
        }
    }

    #[test]
    fn without_rules_nothing_happens() {
        let none = TopicRules::new(&Topics::default());
        assert!(none.0.is_none());
        assert_eq!(none.topic("a", NAMER), Ok(None));
        assert_eq!(none.filter("a/#", NAMER).unwrap(), "a/#");
        assert_eq!(none.verdict("a", 2, true), Verdict::AsItIs);
    }
}
