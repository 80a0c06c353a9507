//! An access rule of the configuration, as one line of text.
//!
//! ```text
//!   allow user=alice publish,subscribe plant/%u/#
//!   deny  group=guests address=10.0.0.0/8 subscribe $SYS/#
//!   allow anonymous subscribe public/#
//!   effect who…  what  filter                               all of `who` must hold; none of them: everybody
//! ```

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::filters::is_filter;
use crate::config::Network;

/// Whether what a rule is about may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Allow,
    Deny,
}

/// What a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Actions {
    pub publish: bool,
    /// SUBSCRIBE, and each delivery.
    pub subscribe: bool,
}

/// Whom a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    User(Name),
    Client(Name),
    Group(Box<str>),
    Address(Network),
    /// Nobody vouches for a user name.
    Anonymous,
}

/// A name, or with `*` at its end all names that begin so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(Box<str>);

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub effect: Effect,
    pub who: Vec<Who>,
    pub actions: Actions,
    /// With `%u` and `%c`.
    pub filter: Box<str>,
}

/// What rules ask of a client.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The user name, if somebody vouches for it.
    pub user: Option<&'a str>,
    pub client_id: &'a str,
    pub groups: &'a [Box<str>],
    pub address: Option<IpAddr>,
}

/// Why a text is no rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotARule {
    #[error("the rule `{0}` does not begin with allow or deny")]
    Effect(String),
    #[error(
        "`{word}` in the rule `{rule}` is none of user=, client=, group=, address=, anonymous, publish, subscribe and \
         publish,subscribe"
    )]
    Word { word: String, rule: String },
    #[error("the rule `{0}` ends before it says publish, subscribe or publish,subscribe, and a topic filter")]
    Short(String),
    #[error("`{filter}` in the rule `{rule}` is no topic filter")]
    Filter { filter: String, rule: String },
}

impl Rule {
    pub fn is_about(&self, subject: &Subject<'_>) -> bool {
        self.who.iter().all(|who| match who {
            Who::User(name) => subject.user.is_some_and(|user| name.is_name_of(user)),
            Who::Client(name) => name.is_name_of(subject.client_id),
            Who::Group(group) => subject.groups.contains(group),
            Who::Address(network) => subject.address.is_some_and(|address| network.contains(address)),
            Who::Anonymous => subject.user.is_none(),
        })
    }
}

impl Name {
    fn is_name_of(&self, name: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => name == &*self.0,
        }
    }
}

/// What a filter with placeholders means for a client; none if it means nothing for it: a name is missing, or has
/// characters that would make another filter of it.
pub fn substitute(filter: &str, subject: &Subject<'_>, forbidden: &[char]) -> Option<Box<str>> {
    if !filter.contains('%') {
        return Some(filter.into());
    }
    let mut substituted = String::with_capacity(filter.len() + subject.client_id.len());
    let mut rest = filter;
    while let Some(at) = rest.find('%') {
        substituted.push_str(&rest[..at]);
        let value = match rest.as_bytes().get(at + 1) {
            Some(b'u') => Some(subject.user?),
            Some(b'c') => Some(subject.client_id),
            _ => None,
        };
        match value {
            Some(value) if value.is_empty() || value.contains(forbidden) => return None,
            Some(value) => {
                substituted.push_str(value);
                rest = &rest[at + 2..];
            }
            None => {
                substituted.push('%');
                rest = &rest[at + 1..];
            }
        }
    }
    substituted.push_str(rest);
    Some(substituted.into())
}

impl FromStr for Rule {
    type Err = NotARule;

    fn from_str(text: &str) -> Result<Self, NotARule> {
        let rule = || text.to_owned();
        let (word, mut rest) = next_word(text);
        let effect = match word {
            "allow" => Effect::Allow,
            "deny" => Effect::Deny,
            _ => return Err(NotARule::Effect(rule())),
        };
        let mut who = Vec::new();
        let actions = loop {
            let (word, after) = next_word(rest);
            rest = after;
            if word.is_empty() {
                return Err(NotARule::Short(rule()));
            }
            match actions(word) {
                Some(actions) => break actions,
                None => who.push(whom(word).ok_or_else(|| NotARule::Word {
                    word: word.to_owned(),
                    rule: rule(),
                })?),
            }
        };
        // A topic filter may have blanks.
        let filter = rest.trim();
        match filter {
            "" => Err(NotARule::Short(rule())),
            filter if !is_filter(filter) => Err(NotARule::Filter {
                filter: filter.to_owned(),
                rule: rule(),
            }),
            filter => Ok(Rule {
                effect,
                who,
                actions,
                filter: filter.into(),
            }),
        }
    }
}

fn next_word(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    text.split_once(char::is_whitespace).unwrap_or((text, ""))
}

fn actions(word: &str) -> Option<Actions> {
    let (publish, subscribe) = match word {
        "publish" => (true, false),
        "subscribe" => (false, true),
        "publish,subscribe" | "subscribe,publish" => (true, true),
        _ => return None,
    };
    Some(Actions { publish, subscribe })
}

fn whom(word: &str) -> Option<Who> {
    if word == "anonymous" {
        return Some(Who::Anonymous);
    }
    let (kind, value) = word.split_once('=').filter(|(_, value)| !value.is_empty())?;
    match kind {
        "user" => Some(Who::User(Name(value.into()))),
        "client" => Some(Who::Client(Name(value.into()))),
        "group" => Some(Who::Group(value.into())),
        "address" => value.parse().ok().map(Who::Address),
        _ => None,
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.effect {
            Effect::Allow => "allow",
            Effect::Deny => "deny",
        })?;
        for who in &self.who {
            match who {
                Who::User(name) => write!(f, " user={}", name.0)?,
                Who::Client(name) => write!(f, " client={}", name.0)?,
                Who::Group(group) => write!(f, " group={group}")?,
                Who::Address(network) => write!(f, " address={network}")?,
                Who::Anonymous => f.write_str(" anonymous")?,
            }
        }
        let actions = match (self.actions.publish, self.actions.subscribe) {
            (true, true) => "publish,subscribe",
            (true, false) => "publish",
            _ => "subscribe",
        };
        write!(f, " {actions} {}", self.filter)
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_read_and_print() {
        for text in [
            "allow publish a/#",
            "deny user=alice client=c* group=g address=10.0.0.0/8 subscribe a b/%u/+",
            "allow anonymous publish,subscribe #",
        ] {
            assert_eq!(text.parse::<Rule>().map(|rule| rule.to_string()).as_deref(), Ok(text));
        }
        let rule: Rule = "  allow\tuser=a   subscribe,publish  x ".parse().expect("a rule");
        assert_eq!(rule.to_string(), "allow user=a publish,subscribe x");
    }

    #[test]
    fn what_is_no_rule_is_told_apart() {
        let of = |text: &str| text.parse::<Rule>().expect_err("no rule").to_string();
        assert!(of("permit publish a").contains("does not begin with allow or deny"));
        assert!(of("allow user= publish a").contains("`user=`"));
        assert!(of("allow users=a publish a").contains("`users=a`"));
        assert!(of("allow address=10.0.0.0/99 publish a").contains("`address=10.0.0.0/99`"));
        for short in ["allow", "allow publish", "deny user=a", "allow publish  "] {
            assert!(of(short).contains("ends before"), "{short}");
        }
        assert!(of("allow publish a#").contains("`a#`"));
    }

    #[test]
    fn a_rule_is_about_those_for_whom_all_of_it_holds() {
        let subject = Subject {
            user: Some("alice"),
            client_id: "sensor-7",
            groups: &["ops".into()],
            address: Some("10.1.2.3".parse().expect("an address")),
        };
        let about = |who: &str| {
            let rule: Rule = format!("allow {who} publish a").parse().expect("a rule");
            rule.is_about(&subject)
        };
        assert!(about("") && about("user=alice") && about("user=*") && about("client=sensor-*"));
        assert!(about("group=ops address=10.0.0.0/8 user=al*"));
        assert!(!about("user=alic") && !about("user=bob") && !about("client=sensor") && !about("anonymous"));
        assert!(!about("user=alice group=dev") && !about("address=10.0.0.0/16"));
        let nobody = Subject {
            user: None,
            address: None,
            ..subject
        };
        let about = |who: &str| {
            let rule: Rule = format!("allow {who} publish a").parse().expect("a rule");
            rule.is_about(&nobody)
        };
        assert!(about("anonymous") && !about("user=*") && !about("address=0.0.0.0/0"));
    }

    #[test]
    fn placeholders_take_names_that_stay_within_one_level() {
        let of = |user, client_id, filter| {
            let subject = Subject {
                user,
                client_id,
                groups: &[],
                address: None,
            };
            substitute(filter, &subject, &['+', '#', '/'])
        };
        assert_eq!(of(Some("al"), "c", "x/%u/%c/%").as_deref(), Some("x/al/c/%"));
        assert_eq!(
            of(Some("%c"), "c", "%u").as_deref(),
            Some("%c"),
            "what came in is not looked at again"
        );
        assert_eq!(of(None, "c", "x/%u"), None);
        assert_eq!(of(None, "c", "x/%d/é%c").as_deref(), Some("x/%d/éc"));
        for bad in ["+", "a#", "a/b", ""] {
            assert_eq!(of(None, bad, "x/%c"), None, "{bad}");
        }
    }
}
