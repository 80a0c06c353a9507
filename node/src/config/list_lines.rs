//! Mistakes in `[[listeners]]` and `[[topics.*]]`, each with its own line: which keys there are, and what serde says of each
//! value alone.
//!
//! A list is one setting, which serde would refuse as a whole, on the line of its first key.

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::listener::{self, Listener};
use super::load::{ConfigError, Origin, SourceText, hint};
use super::topics::{self, AutoSubscription, Policy, Rewrite};

/// A list of tables.
struct List {
    /// An element with every key, each of a good value.
    every_key: Table,
    required: &'static [&'static str],
    /// What each element has.
    needs: &'static str,
    /// Whether a table is an element.
    read: fn(Table) -> Result<(), toml::de::Error>,
}

impl List {
    fn of(path: &[String]) -> Option<List> {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        Some(match path[..] {
            ["listeners"] => List {
                every_key: table(&listener::with_every_key()),
                required: &["name", "kind", "listen"],
                needs: "each listener has a name, a kind and an address",
                read: read::<Listener>,
            },
            ["topics", "rewrite"] => List {
                every_key: table(&topics::a_rewrite()),
                required: &["on", "from", "to"],
                needs: "each rule says on what it is, what it matches and what comes in its place",
                read: read::<Rewrite>,
            },
            ["topics", "subscribe"] => List {
                every_key: table(&topics::a_subscription()),
                required: &["filter"],
                needs: "each subscription has a filter",
                read: read::<AutoSubscription>,
            },
            ["topics", "policy"] => List {
                every_key: table(&topics::a_policy()),
                required: &["filter"],
                needs: "each policy has a filter",
                read: read::<Policy>,
            },
            _ => return None,
        })
    }
}

fn table<T: Serialize>(element: &T) -> Table {
    Table::try_from(element).expect("every field is a TOML value")
}

fn read<T: DeserializeOwned>(element: Table) -> Result<(), toml::de::Error> {
    T::deserialize(Value::Table(element)).map(|_: T| ())
}

/// Looks at every element of the list at `path`; where each of its keys comes from. Of what is no such list nothing.
///
/// # Errors
/// The first mistake of an element.
pub(super) fn look(
    source: &SourceText<'_>,
    path: &[String],
    elements: &DeValue<'_>,
    values: &Value,
) -> Result<Vec<(String, Origin)>, ConfigError> {
    let mut origins = Vec::new();
    let (Some(list), DeValue::Array(elements), Value::Array(values)) = (List::of(path), elements, values) else {
        return Ok(origins);
    };
    let path = path.join(".");
    for (at, (element, value)) in elements.iter().zip(values).enumerate() {
        let (DeValue::Table(fields), Value::Table(values)) = (element.get_ref(), value) else {
            continue;
        };
        let name = format!("{path}[{at}]");
        let place = fields
            .keys()
            .map(|key| key.span().start)
            .min()
            .unwrap_or(element.span().start);
        let origin = source.origin(place..place);
        if let Some(missing) = list.required.iter().find(|key| !values.contains_key(**key)) {
            let key = format!("{name}.{missing}");
            let problem = format!("it is missing: {}", list.needs);
            return Err(ConfigError::Value { origin, key, problem });
        }
        origins.push((name.clone(), origin));
        let level = Level {
            source,
            name: &name,
            read: list.read,
            known: &list.every_key,
            within: &|changed| changed,
        };
        level.look(fields, values, &mut origins)?;
    }
    Ok(origins)
}

/// An element, or `tls` of one.
struct Level<'a> {
    source: &'a SourceText<'a>,
    /// `listeners[0]`.
    name: &'a str,
    read: fn(Table) -> Result<(), toml::de::Error>,
    known: &'a Table,
    /// The element with this level changed.
    within: &'a dyn Fn(Table) -> Table,
}

impl Level<'_> {
    fn look(
        &self,
        fields: &DeTable<'_>,
        values: &Table,
        origins: &mut Vec<(String, Origin)>,
    ) -> Result<(), ConfigError> {
        for (key, spans) in fields {
            let (name, origin) = (key.get_ref().as_ref(), self.source.origin(key.span()));
            let path = format!("{}.{name}", self.name);
            origins.push((path.clone(), origin.clone()));
            let (Some(known), Some(value)) = (self.known.get(name), values.get(name)) else {
                let hint = hint(name, self.name, self.known.keys());
                return Err(ConfigError::UnknownKey {
                    origin,
                    key: path,
                    hint,
                });
            };
            match (spans.get_ref(), value, known) {
                (DeValue::Table(fields), Value::Table(values), Value::Table(below)) => {
                    let within = |changed: Table| self.changed(name, Value::Table(changed));
                    let below = Level {
                        source: self.source,
                        name: &path,
                        read: self.read,
                        known: below,
                        within: &within,
                    };
                    below.look(fields, values, origins)?;
                }
                _ => {
                    let alone = self.changed(name, value.clone());
                    (self.read)(alone).map_err(|error| ConfigError::Value {
                        origin,
                        key: path,
                        problem: error.message().trim().to_owned(),
                    })?;
                }
            }
        }
        Ok(())
    }

    /// An element that is good but for this value.
    fn changed(&self, name: &str, value: Value) -> Table {
        let mut level = self.known.clone();
        level.insert(name.to_owned(), value);
        (self.within)(level)
    }
}
