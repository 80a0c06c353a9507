//! Mistakes in `[[listeners]]`, each with its own line: which keys there are, and what serde says of each value alone.
//!
//! The list is one setting, which serde would refuse as a whole, on the line of its first key.

use serde::Deserialize;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::listener::{self, Listener};
use super::load::{ConfigError, Origin, SourceText, hint};

/// Looks at every element; where each of its keys comes from.
///
/// # Errors
/// The first mistake of an element.
pub(super) fn look(
    source: &SourceText<'_>,
    elements: &DeValue<'_>,
    values: &Value,
) -> Result<Vec<(String, Origin)>, ConfigError> {
    let mut origins = Vec::new();
    let (DeValue::Array(elements), Value::Array(values)) = (elements, values) else {
        return Ok(origins);
    };
    let every_key = Table::try_from(listener::with_every_key()).expect("every field is a TOML value");
    for (at, (element, value)) in elements.iter().zip(values).enumerate() {
        let (DeValue::Table(fields), Value::Table(values)) = (element.get_ref(), value) else {
            continue;
        };
        let name = format!("listeners[{at}]");
        let place = fields
            .keys()
            .map(|key| key.span().start)
            .min()
            .unwrap_or(element.span().start);
        let origin = source.origin(place..place);
        if let Some(missing) = REQUIRED.into_iter().find(|key| !values.contains_key(*key)) {
            let key = format!("{name}.{missing}");
            let problem = "it is missing: each listener has a name, a kind and an address".to_owned();
            return Err(ConfigError::Value { origin, key, problem });
        }
        origins.push((name.clone(), origin));
        let level = Level {
            source,
            name: &name,
            known: &every_key,
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
                        known: below,
                        within: &within,
                    };
                    below.look(fields, values, origins)?;
                }
                _ => {
                    let alone = self.changed(name, value.clone());
                    Listener::deserialize(Value::Table(alone)).map_err(|error| ConfigError::Value {
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

const REQUIRED: [&str; 3] = ["name", "kind", "listen"];
