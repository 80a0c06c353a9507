//! `lontra user --node | acl | ban | key`: what the cluster keeps of who may do what, by the admin API of a node that runs.
//!
//! ```text
//!   arguments ─▶ requests of the admin API ─▶ what to print        a change is printed once it is in effect on every node
//! ```
//!
//! The key of the API comes from a file or LONTRA_API_KEY, passwords from standard input: arguments can be seen by everybody
//! on the machine.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use lontra_ops::client::{Endpoint, FetchError, escaped};
use serde_json::{Map, Value, json};

use crate::auth::rule::{NotARule, Rule};
use crate::auth::secret::Secret;

/// Which node is asked, and with which key.
#[derive(Args)]
pub struct Api {
    /// HTTP address (http.listen) of any running node.
    #[arg(long, visible_alias = "api", value_name = "URL", default_value = DEFAULT_NODE)]
    node: String,

    #[command(flatten)]
    key: KeyFile,
}

#[derive(Args)]
pub struct KeyFile {
    /// File with the key of the admin API; without it the variable LONTRA_API_KEY, if there is one.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

impl KeyFile {
    pub fn file(&self) -> Option<&Path> {
        self.key_file.as_deref()
    }
}

#[derive(Subcommand)]
pub enum Acl {
    /// Print the rules of the cluster, in their order.
    List(Api),
    /// Add a rule behind the others, or before the one at a place.
    Add {
        /// As in [auth] rules: "allow user=alice publish plant/#".
        rule: Rule,
        /// Before the rule that is there now, counted from 1.
        #[arg(long, value_name = "PLACE", value_parser = clap::value_parser!(u64).range(1..))]
        at: Option<u64>,
        #[command(flatten)]
        api: Api,
    },
    /// Remove a rule.
    Remove {
        /// The rule.
        rule: Rule,
        #[command(flatten)]
        api: Api,
    },
    /// Replace all rules by those of a file, one a line; # begins a comment. An empty one removes all.
    Set {
        /// The file.
        file: PathBuf,
        #[command(flatten)]
        api: Api,
    },
}

#[derive(Subcommand)]
pub enum Ban {
    /// Print who is banned.
    List(Api),
    /// Ban a client id, a user, or an address; whoever it is about is disconnected.
    Add {
        #[command(flatten)]
        target: Target,
        /// For how many seconds; without it, for good.
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
        seconds: Option<u32>,
        /// Why, for other operators.
        #[arg(long, default_value = "")]
        reason: String,
        #[command(flatten)]
        api: Api,
    },
    /// Lift a ban.
    Remove {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        api: Api,
    },
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct Target {
    /// A client id.
    #[arg(long, value_name = "ID")]
    client: Option<String>,
    /// A user name.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// An address, or a network like 10.0.0.0/8.
    #[arg(long, value_name = "NETWORK")]
    address: Option<String>,
}

#[derive(Subcommand)]
pub enum Key {
    /// Print the keys of the admin API: not their secrets, which nobody has but who made them.
    List(Api),
    /// Make a key and print it, this once.
    Create {
        /// What it may do; each may what the one before may.
        #[arg(long)]
        role: RoleName,
        /// What it is for, for other operators.
        #[arg(long, default_value = "")]
        label: String,
        #[command(flatten)]
        api: Api,
    },
    /// Remove a key.
    Remove {
        /// Its id, as `list` prints it.
        id: String,
        /// Also if it is the last one: then whoever is on a node's machine may do everything.
        #[arg(long)]
        even_last: bool,
        #[command(flatten)]
        api: Api,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub enum RoleName {
    Read,
    Operate,
    Admin,
}

/// Why there is nothing to print.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("cannot read {path}: {source}", path = path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("the password is not UTF-8: hash it with `lontra user hash`, and give the hash to the API")]
    Password,
    #[error("LONTRA_API_KEY is not text")]
    KeyVariable,
    #[error("{path}, line {line}: {source}", path = path.display())]
    Rule {
        path: PathBuf,
        line: usize,
        source: NotARule,
    },
    #[error("there is no rule {place}: the last one is {last}")]
    NoPlace { place: u64, last: usize },
    #[error("the cluster has no such rule: {rule}")]
    NoRule { rule: Rule },
    #[error("node at {at} answers what this version of lontra does not understand: is it of another version?")]
    NotUnderstood { at: String },
}

type Printed = Result<String, OperatorError>;

/// The key of the admin API, from a file or the environment.
///
/// # Errors
/// The file cannot be read.
pub fn key(file: Option<&Path>) -> Result<Option<String>, OperatorError> {
    let text = match file {
        Some(path) => Some(read(path)?),
        None => match std::env::var("LONTRA_API_KEY") {
            Ok(key) => Some(key),
            Err(std::env::VarError::NotPresent) => None,
            Err(std::env::VarError::NotUnicode(_)) => return Err(OperatorError::KeyVariable),
        },
    };
    Ok(text.map(|text| text.trim().to_owned()))
}

/// The rules of the cluster.
///
/// # Errors
/// Nothing has changed, but where the error says otherwise.
pub fn acl(command: &Acl) -> Printed {
    match command {
        Acl::List(api) => {
            let (rules, _) = Asked::new(api)?.rules()?;
            Ok(rules.join("\n"))
        }
        Acl::Add { rule, at, api } => {
            let asked = Asked::new(api)?;
            let (mut rules, version) = asked.rules()?;
            let last = rules.len();
            let place = at.map_or(last, |place| usize::try_from(place - 1).unwrap_or(usize::MAX));
            if place > last {
                let place = at.unwrap_or_default();
                return Err(OperatorError::NoPlace { place, last });
            }
            rules.insert(place, rule.to_string());
            asked.set_rules(&rules, Some(version))?;
            Ok(format!("rule {} of {}: {rule}", place + 1, rules.len()))
        }
        Acl::Remove { rule, api } => {
            let asked = Asked::new(api)?;
            let (mut rules, version) = asked.rules()?;
            let text = rule.to_string();
            let Some(at) = rules.iter().position(|one| *one == text) else {
                return Err(OperatorError::NoRule { rule: rule.clone() });
            };
            rules.remove(at);
            asked.set_rules(&rules, Some(version))?;
            Ok(format!("removed: {rule}"))
        }
        Acl::Set { file, api } => {
            let mut rules = Vec::new();
            for (at, text) in read(file)?.lines().enumerate() {
                let text = text.trim();
                if text.is_empty() || text.starts_with('#') {
                    continue;
                }
                let rule: Rule = text.parse().map_err(|source| OperatorError::Rule {
                    path: file.clone(),
                    line: at + 1,
                    source,
                })?;
                rules.push(rule.to_string());
            }
            Asked::new(api)?.set_rules(&rules, None)?;
            Ok(format!("{} rules", rules.len()))
        }
    }
}

/// Who is banned.
///
/// # Errors
/// As [`acl`].
pub fn ban(command: &Ban) -> Printed {
    match command {
        Ban::List(api) => {
            let asked = Asked::new(api)?;
            let body = asked.list("bans")?;
            Ok(body.iter().map(ban_line).collect::<Vec<_>>().join("\n"))
        }
        Ban::Add {
            target,
            seconds,
            reason,
            api,
        } => {
            let (kind, whom) = target.named();
            let mut body = Map::new();
            body.insert(kind.to_owned(), json!(whom));
            body.insert("reason".to_owned(), json!(reason));
            if let Some(seconds) = seconds {
                body.insert("seconds".to_owned(), json!(seconds));
            }
            let existed = Asked::new(api)?.change("POST", "/api/v1/bans", &Value::Object(body))?;
            let was = if existed { " (it was before)" } else { "" };
            Ok(format!("banned: {kind} {whom}{was}"))
        }
        Ban::Remove { target, api } => {
            let (kind, whom) = target.named();
            let path = format!("/api/v1/bans?{kind}={}", escaped(whom));
            let existed = Asked::new(api)?.change("DELETE", &path, &Value::Null)?;
            let what = if existed {
                "not banned any more"
            } else {
                "was not banned"
            };
            Ok(format!("{kind} {whom}: {what}"))
        }
    }
}

/// Keys of the admin API.
///
/// # Errors
/// As [`acl`].
pub fn keys(command: &Key) -> Printed {
    match command {
        Key::List(api) => {
            let asked = Asked::new(api)?;
            let body = asked.list("keys")?;
            let line = |key: &Value| {
                let text = |name: &str| key[name].as_str().unwrap_or_default().to_owned();
                format!("{}  {:<7}  {}", text("id"), text("role"), text("label"))
                    .trim_end()
                    .to_owned()
            };
            Ok(body.iter().map(line).collect::<Vec<_>>().join("\n"))
        }
        Key::Create { role, label, api } => {
            let asked = Asked::new(api)?;
            let role = role.to_possible_value().map(|value| value.get_name().to_owned());
            let made = asked.ask("POST", "/api/v1/keys", &json!({ "role": role, "label": label }))?;
            let key = made["key"].as_str().ok_or_else(|| asked.not_understood())?;
            Ok(key.to_owned())
        }
        Key::Remove { id, even_last, api } => {
            let last = if *even_last { "?even_last=true" } else { "" };
            let path = format!("/api/v1/keys/{}{last}", escaped(id));
            let existed = Asked::new(api)?.change("DELETE", &path, &Value::Null)?;
            Ok(match existed {
                true => format!("removed: key {id}"),
                false => format!("there was no key {id}"),
            })
        }
    }
}

/// `lontra user … --node`: a user of the cluster comes, or gets another password.
///
/// # Errors
/// As [`acl`].
pub fn put_user(node: &str, key: &KeyFile, name: &str, groups: Option<&[String]>, password: &Secret) -> Printed {
    let asked = Asked::at(node, key)?;
    let mut body = Map::new();
    let password = std::str::from_utf8(password.expose()).map_err(|_| OperatorError::Password)?;
    body.insert("password".to_owned(), json!(password));
    if let Some(groups) = groups {
        body.insert("groups".to_owned(), json!(groups));
    }
    let path = format!("/api/v1/users/{}", escaped(name));
    let existed = asked.change("PUT", &path, &Value::Object(body))?;
    let done = if existed { "changed" } else { "added" };
    Ok(format!("{done} `{name}` on every node"))
}

/// As [`put_user`]: whoever is connected as that user is let go.
///
/// # Errors
/// As [`acl`].
pub fn remove_user(node: &str, key: &KeyFile, name: &str) -> Printed {
    let path = format!("/api/v1/users/{}", escaped(name));
    let existed = Asked::at(node, key)?.change("DELETE", &path, &Value::Null)?;
    Ok(match existed {
        true => format!("removed `{name}` from every node"),
        false => format!("there was no user `{name}`"),
    })
}

/// As [`put_user`].
///
/// # Errors
/// As [`acl`].
pub fn list_users(node: &str, key: &KeyFile) -> Printed {
    let asked = Asked::at(node, key)?;
    let body = asked.list("users")?;
    let line = |user: &Value| {
        let name = user["name"].as_str().unwrap_or_default();
        let groups: Vec<&str> = user["groups"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        match groups.is_empty() {
            true => name.to_owned(),
            false => format!("{name} ({})", groups.join(", ")),
        }
    };
    Ok(body.iter().map(line).collect::<Vec<_>>().join("\n"))
}

fn ban_line(ban: &Value) -> String {
    let kind = ["client", "user", "address"]
        .into_iter()
        .find(|kind| ban[kind].is_string());
    let kind = kind.unwrap_or("client");
    let text = |name: &str| ban[name].as_str().unwrap_or_default().to_owned();
    let left = match ban["ends_in_ms"].as_u64() {
        None => "for good".to_owned(),
        Some(left) => format!("{} s left", left.div_ceil(1000)),
    };
    format!("{kind} {}  {left}  by {}  {}", text(kind), text("by"), text("reason"))
        .trim_end()
        .to_owned()
}

impl Target {
    fn named(&self) -> (&'static str, &str) {
        match (&self.client, &self.user, &self.address) {
            (Some(client_id), ..) => ("client", client_id),
            (_, Some(name), _) => ("user", name),
            (.., address) => ("address", address.as_deref().unwrap_or_default()),
        }
    }
}

/// One node.
struct Asked(Endpoint);

impl Asked {
    fn new(api: &Api) -> Result<Asked, OperatorError> {
        Asked::at(&api.node, &api.key)
    }

    fn at(node: &str, file: &KeyFile) -> Result<Asked, OperatorError> {
        let key = key(file.file())?;
        Ok(Asked(Endpoint::parse(node)?.with_key(key)?))
    }

    fn get(&self, path: &str) -> Result<Value, OperatorError> {
        self.understood(&self.0.get(path, PATIENCE)?)
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Value, OperatorError> {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        self.understood(&self.0.ask(method, path, &body, PATIENCE)?)
    }

    /// Whether what it is about was there before.
    fn change(&self, method: &str, path: &str, body: &Value) -> Result<bool, OperatorError> {
        let answer = self.ask(method, path, body)?;
        answer["existed"].as_bool().ok_or_else(|| self.not_understood())
    }

    fn rules(&self) -> Result<(Vec<String>, u64), OperatorError> {
        let body = self.get("/api/v1/rules")?;
        let rules = self
            .rows(&body, "rules")?
            .iter()
            .map(|rule| rule.as_str().map(str::to_owned));
        let rules: Option<Vec<String>> = rules.collect();
        let version = body["version"].as_u64();
        rules.zip(version).ok_or_else(|| self.not_understood())
    }

    fn set_rules(&self, rules: &[String], version: Option<u64>) -> Result<(), OperatorError> {
        let body = json!({ "rules": rules, "version": version });
        self.change("PUT", "/api/v1/rules", &body).map(|_| ())
    }

    fn rows<'a>(&self, body: &'a Value, name: &str) -> Result<&'a [Value], OperatorError> {
        let rows = body[name].as_array().map(Vec::as_slice);
        rows.ok_or_else(|| self.not_understood())
    }

    /// All of a list, page by page.
    fn list(&self, name: &str) -> Result<Vec<Value>, OperatorError> {
        let (mut all, mut path) = (Vec::new(), format!("/api/v1/{name}"));
        loop {
            let mut page = self.get(&path)?;
            match page[name].take() {
                Value::Array(rows) => all.extend(rows),
                _ => return Err(self.not_understood()),
            }
            let Some(next) = page["next"].as_str() else {
                return Ok(all);
            };
            path = format!("/api/v1/{name}?after={}", escaped(next));
        }
    }

    fn understood(&self, body: &str) -> Result<Value, OperatorError> {
        serde_json::from_str(body).map_err(|_| self.not_understood())
    }

    fn not_understood(&self) -> OperatorError {
        OperatorError::NotUnderstood {
            at: self.0.authority().to_owned(),
        }
    }
}

fn read(path: &Path) -> Result<String, OperatorError> {
    std::fs::read_to_string(path).map_err(|source| OperatorError::Unreadable {
        path: path.to_owned(),
        source,
    })
}

const DEFAULT_NODE: &str = "http://127.0.0.1:18083";
/// Longer than the cluster takes to let go of a node that is cut off, twice.
const PATIENCE: Duration = Duration::from_secs(25);
