//! From a TOML file and the environment to a `Config`.
//!
//!     file ── DeTable (spans) ──▶ one Setting per key: path, value, origin ─┐
//!                                                                           ├─▶ applied to the defaults ─▶ check
//!     LONTRA__SECTION__KEY ────▶ one Setting per variable ──────────────────┘
//!
//! Settings are applied one at a time, so that whatever serde refuses is the fault of that one key, whose origin is
//! known.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::check::check;
use super::{Config, Seed, list_lines};

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    File { path: PathBuf, line: usize },
    Variable(String),
    Default,
}

/// What a configuration is read from, at the start and at every reload.
#[derive(Clone, Debug)]
pub struct Source {
    /// A TOML file; without one, the defaults.
    pub file: Option<PathBuf>,
}

/// A configuration, and who set what in it.
#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    /// By `section.key`, `listeners[0].key`; what nobody set is not in it.
    pub origins: HashMap<String, Origin>,
}

/// Why there is no configuration. Nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {}: {source}; name a file that this user can read", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },

    #[error("{origin}: not TOML: {problem}")]
    Syntax { origin: Origin, problem: String },

    #[error("{origin}: unknown key `{key}`{hint}")]
    UnknownKey { origin: Origin, key: String, hint: String },

    #[error("{origin}: `{key}` has no such value: {problem}")]
    Value {
        origin: Origin,
        key: String,
        problem: String,
    },

    #[error("{origin}: `{key}`: {problem}")]
    OutOfBounds {
        origin: Origin,
        key: String,
        problem: String,
    },
}

impl Source {
    /// The file and this process's environment.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load(&self) -> Result<Config, ConfigError> {
        Ok(self.load_with_origins()?.config)
    }

    /// # Errors
    /// As [`Config::load`].
    pub fn load_with_origins(&self) -> Result<Loaded, ConfigError> {
        Config::load_with_origins(self.file.as_deref(), environment())
    }
}

/// The variables whose name and value are text; no other can be one of Lontra's.
pub(crate) fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

impl Config {
    /// The defaults, changed by the file (if one is named), changed by the variables `LONTRA__SECTION__KEY` of `env`.
    ///
    /// A variable's value is read as TOML (`12`, `"5s"`, `[{ id = 1, address = "…" }]`), and where that fails as the
    /// text itself (`5s`). Variables without the prefix are not looked at, but for near misses (`LONTRA_MQTT__LISTEN`).
    ///
    /// # Errors
    /// The first mistake, with its origin and its key; everything is checked, so that a `Config` returned keeps every
    /// bound.
    pub fn load(path: Option<&Path>, env: impl Iterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        Ok(Self::load_with_origins(path, env)?.config)
    }

    /// # Errors
    /// As [`Config::load`].
    pub fn load_with_origins(
        path: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Loaded, ConfigError> {
        let mut settings = match path {
            Some(path) => from_file(path)?,
            None => Vec::new(),
        };
        let env: Vec<(String, String)> = env.collect();
        refuse_near_misses(env.iter().map(|(name, _)| name))?;
        settings.extend(from_environment(env.into_iter()));

        let schema = schema();
        let mut table = Table::try_from(Self::default()).expect("every field is a TOML value");
        let mut origins = HashMap::new();
        for setting in settings {
            setting.refuse_unknown(&schema)?;
            table = setting.apply(table)?;
            // What was within is replaced too.
            let within = format!("{}[", setting.key());
            origins.retain(|key: &String, _| !key.starts_with(&within));
            origins.insert(setting.key(), setting.origin);
            origins.extend(setting.within);
        }

        let config = Self::deserialize(Value::Table(table)).expect("each setting was deserialised when it was applied");
        check(&config).map_err(|violation| ConfigError::OutOfBounds {
            origin: origin_of(&origins, &violation.key).cloned().unwrap_or(Origin::Default),
            key: violation.key.into_owned(),
            problem: violation.problem,
        })?;
        Ok(Loaded { config, origins })
    }
}

/// One key and the value that somebody gave it.
struct Setting {
    path: Vec<String>,
    /// The value; a variable has a second reading, as plain text.
    value: Value,
    text: Option<String>,
    origin: Origin,
    /// Where the parts of a list of tables come from.
    within: Vec<(String, Origin)>,
}

/// Where a key comes from, or else the list or table that it is in.
pub(super) fn origin_of<'a>(origins: &'a HashMap<String, Origin>, key: &str) -> Option<&'a Origin> {
    let outside = || key.rfind(['.', '[']).and_then(|end| origin_of(origins, &key[..end]));
    origins.get(key).or_else(outside)
}

impl Setting {
    fn key(&self) -> String {
        self.path.join(".")
    }

    /// `config-closed`: serde would refuse an unknown key too, but could not say which one was meant.
    fn refuse_unknown(&self, schema: &Table) -> Result<(), ConfigError> {
        let mut level = schema;
        for (depth, name) in self.path.iter().enumerate() {
            match level.get(name) {
                Some(Value::Table(below)) => level = below,
                Some(_) if depth + 1 == self.path.len() => return Ok(()),
                Some(Value::Array(_)) if depth == 0 => {
                    return Err(ConfigError::UnknownKey {
                        origin: self.origin.clone(),
                        key: self.key(),
                        hint: format!(": `{name}` is a list: begin each of them with [[{name}]]"),
                    });
                }
                _ => {
                    let prefix = self.path[..depth].join(".");
                    return Err(ConfigError::UnknownKey {
                        origin: self.origin.clone(),
                        key: self.key(),
                        hint: elsewhere(name, depth + 1 == self.path.len(), schema)
                            .unwrap_or_else(|| hint(name, &prefix, level.keys())),
                    });
                }
            }
        }
        let prefix = self.key();
        Err(ConfigError::UnknownKey {
            origin: self.origin.clone(),
            key: prefix.clone(),
            hint: format!(": it is a section, with the keys {}", known(&prefix, level.keys())),
        })
    }

    /// `table` with this setting in it; refused if the whole would then be no `Config`.
    fn apply(&self, table: Table) -> Result<Table, ConfigError> {
        let as_given = self.applied(table.clone(), self.value.clone());
        match (as_given, &self.text) {
            (Ok(table), _) => Ok(table),
            (Err(problem), None) => Err(self.refused(problem)),
            (Err(problem), Some(text)) => self
                .applied(table, Value::String(text.clone()))
                .map_err(|_| self.refused(problem)),
        }
    }

    fn applied(&self, mut table: Table, value: Value) -> Result<Table, String> {
        let (last, sections) = self.path.split_last().expect("an empty path was refused as unknown");
        let mut level = &mut table;
        for section in sections {
            level = level
                .get_mut(section)
                .and_then(Value::as_table_mut)
                .expect("an unknown section was refused");
        }
        level.insert(last.clone(), value);
        match Config::deserialize(Value::Table(table.clone())) {
            Ok(_) => Ok(table),
            Err(error) => Err(error.message().trim().to_owned()),
        }
    }

    fn refused(&self, problem: String) -> ConfigError {
        ConfigError::Value {
            origin: self.origin.clone(),
            key: self.key(),
            problem,
        }
    }
}

fn from_file(path: &Path) -> Result<Vec<Setting>, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let source = SourceText { path, text: &text };
    let spans = DeTable::parse(&text).map_err(|error| source.syntax_error(&error))?;
    let values: Table = text.parse().map_err(|error| source.syntax_error(&error))?;

    let mut settings = Vec::new();
    source.collect(&mut Vec::new(), spans.get_ref(), &values, &mut settings)?;
    settings.sort_by_key(|(offset, _)| *offset);
    Ok(settings.into_iter().map(|(_, setting)| setting).collect())
}

pub(super) struct SourceText<'a> {
    path: &'a Path,
    text: &'a str,
}

impl SourceText<'_> {
    /// Every key below `prefix` that is not a section, with the offset at which it stands.
    fn collect(
        &self,
        prefix: &mut Vec<String>,
        spans: &DeTable<'_>,
        values: &Table,
        settings: &mut Vec<(usize, Setting)>,
    ) -> Result<(), ConfigError> {
        for (name, span) in spans {
            let (key, value) = (name.get_ref().to_string(), &values[name.get_ref().as_ref()]);
            prefix.push(key);
            match (span.get_ref(), value) {
                (DeValue::Table(spans), Value::Table(values)) if !values.is_empty() => {
                    self.collect(prefix, spans, values, settings)?;
                }
                // An empty section says nothing, but its name must be right.
                (_, Value::Table(_)) if is_section(prefix) => {}
                (spans, value) => {
                    if prefix[..] == ["cluster", "seeds"] {
                        self.check_seeds(prefix, spans)?;
                    }
                    let within = list_lines::look(self, prefix, spans, value)?;
                    let setting = Setting {
                        path: prefix.clone(),
                        value: value.clone(),
                        text: None,
                        origin: self.origin(name.span()),
                        within,
                    };
                    settings.push((name.span().start, setting));
                }
            }
            prefix.pop();
        }
        Ok(())
    }

    /// The list of tables `cluster.seeds`: its keys are checked here, where their lines are known.
    fn check_seeds(&self, path: &[String], spans: &DeValue<'_>) -> Result<(), ConfigError> {
        let DeValue::Array(elements) = spans else { return Ok(()) };
        for element in elements {
            let DeValue::Table(fields) = element.get_ref() else {
                continue;
            };
            if let Some(name) = fields.keys().find(|name| !SEED_KEYS.contains(&name.get_ref().as_ref())) {
                let prefix = path.join(".");
                return Err(ConfigError::UnknownKey {
                    origin: self.origin(name.span()),
                    key: format!("{prefix}.{}", name.get_ref()),
                    hint: hint(name.get_ref(), &prefix, SEED_KEYS),
                });
            }
        }
        Ok(())
    }

    fn syntax_error(&self, error: &toml::de::Error) -> ConfigError {
        let problem = error.message().trim().replace('\n', ", ");
        ConfigError::Syntax {
            origin: self.origin(error.span().unwrap_or(0..0)),
            problem,
        }
    }

    pub(super) fn origin(&self, span: Range<usize>) -> Origin {
        let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
        Origin::File {
            path: self.path.to_owned(),
            line,
        }
    }
}

/// `LONTRA_MQTT__LISTEN`, `lontra__mqtt__listen`: who wrote that meant a key, and would never learn that it was not read.
fn refuse_near_misses<'a>(names: impl Iterator<Item = &'a String>) -> Result<(), ConfigError> {
    let is_near = |name: &&String| {
        let upper = name.to_ascii_uppercase();
        upper.starts_with("LONTRA_") && upper.contains("__") && !name.starts_with(PREFIX)
    };
    let Some(name) = names.filter(is_near).min() else {
        return Ok(());
    };
    let upper = name.to_ascii_uppercase();
    let rest = upper["LONTRA_".len()..].trim_start_matches('_');
    Err(ConfigError::UnknownKey {
        origin: Origin::Variable(name.clone()),
        key: rest.to_ascii_lowercase().replace("__", "."),
        hint: format!(": did you mean the variable `{PREFIX}{rest}`?"),
    })
}

/// In the order of their names, so that the same environment always gives the same first mistake.
fn from_environment(env: impl Iterator<Item = (String, String)>) -> Vec<Setting> {
    let mut settings: Vec<Setting> = env
        .filter_map(|(name, text)| {
            let path = name
                .strip_prefix(PREFIX)?
                .split("__")
                .map(str::to_ascii_lowercase)
                .collect();
            let value = match format!("value = {text}").parse::<Table>() {
                Ok(mut table) if table.len() == 1 => {
                    table.remove("value").unwrap_or_else(|| Value::String(text.clone()))
                }
                _ => Value::String(text.clone()),
            };
            Some(Setting {
                path,
                value,
                text: Some(text),
                origin: Origin::Variable(name),
                within: Vec::new(),
            })
        })
        .collect();
    settings.sort_by(|a, b| a.path.cmp(&b.path));
    settings
}

/// All sections and keys: those of the defaults, which have every key.
fn schema() -> Table {
    Table::try_from(Config::default()).expect("every field is a TOML value")
}

fn is_section(path: &[String]) -> bool {
    let schema = schema();
    let mut level = &schema;
    for name in path {
        match level.get(name) {
            Some(Value::Table(below)) => level = below,
            _ => return false,
        }
    }
    true
}

/// A key that stands in the wrong section, or in none (`listen`), or whose section was joined to it (`mqtt_listen`).
fn elsewhere(name: &str, is_key: bool, schema: &Table) -> Option<String> {
    fn find(prefix: &str, level: &Table, is_meant: &impl Fn(&str, &str) -> bool) -> Option<String> {
        level.iter().find_map(|(key, value)| {
            let path = join(prefix, key);
            match value {
                Value::Table(below) => find(&path, below, is_meant),
                _ => is_meant(key, &path).then_some(path),
            }
        })
    }
    let is_meant = |key: &str, path: &str| key == name || path.replace('.', "_") == name;
    let found = is_key.then(|| find("", schema, &is_meant)).flatten()?;
    Some(format!(": did you mean `{found}`?"))
}

/// ``: did you mean `mqtt.listen`?`` or, if nothing is near, the list of what there is.
pub(super) fn hint(name: &str, prefix: &str, candidates: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let candidates: Vec<String> = candidates.into_iter().map(|name| name.as_ref().to_owned()).collect();
    let nearest = candidates
        .iter()
        .map(|candidate| (distance(name, candidate), candidate))
        .min();
    match nearest {
        Some((distance, candidate)) if distance <= 1 + name.len() / 3 => {
            format!(": did you mean `{}`?", join(prefix, candidate))
        }
        _ => format!(": known here are {}", known(prefix, candidates)),
    }
}

fn known(prefix: &str, names: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let names: Vec<String> = names
        .into_iter()
        .map(|name| format!("`{}`", join(prefix, name.as_ref())))
        .collect();
    names.join(", ")
}

fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() {
        name.to_owned()
    } else {
        format!("{prefix}.{name}")
    }
}

/// Levenshtein's: insertions, deletions and substitutions from one name to the other.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in to.iter().enumerate() {
            let substituted = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[to.len()]
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Default => f.write_str("configuration"),
        }
    }
}

const PREFIX: &str = "LONTRA__";

const SEED_KEYS: [&str; 2] = ["id", "address"];

/// Fails to compile when `Seed` gets a field that `SEED_KEYS` lacks.
const _: fn(Seed) = |Seed { id: _, address: _ }| {};
