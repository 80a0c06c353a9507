//! `lontra config show`: what a node would run with, and where each value that is not the default comes from.
//!
//! The result is a configuration file that means the same: origins are comments. No key holds a secret: those of
//! `cluster.tls` are paths, and what the files hold is not read here.

use std::fmt::Write;

use toml::Table;

use super::load::origin_of;
use super::{Config, Loaded, Machine, Origin};

/// The document.
pub fn show(loaded: &Loaded, machine: &Machine) -> String {
    let resolved = loaded.config.resolved(machine);
    let plain = resolved.effective_toml();
    let mut shown = String::from("# What has no comment is the default.\n");
    let (mut section, mut listeners) = (String::new(), 0..);
    for line in plain.lines() {
        if line == "[[listeners]]" {
            section = format!("listeners[{}]", listeners.next().unwrap_or_default());
        } else if let Some(name) = line.strip_prefix('[') {
            let name = name.trim_matches(['[', ']']);
            // Of the listener that came last.
            let of_listener = name
                .strip_prefix("listeners.")
                .map(|name| format!("listeners[{}].{name}", listeners.start - 1));
            section = of_listener.unwrap_or_else(|| name.to_owned());
        }
        let comment = key(line).and_then(|key| comment(&section, key, loaded, &resolved, machine));
        match comment {
            Some(comment) => writeln!(shown, "{line} # {comment}"),
            None => writeln!(shown, "{line}"),
        }
        .expect("a string takes everything");
    }
    // A value of several lines, which may look like keys: rather no comments than another meaning.
    if shown.parse::<Table>() == plain.parse::<Table>() {
        shown
    } else {
        plain
    }
}

fn key(line: &str) -> Option<&str> {
    let (key, _) = line.split_once(" = ")?;
    line.parse::<Table>().is_ok().then_some(key)
}

fn comment(section: &str, key: &str, loaded: &Loaded, resolved: &Config, machine: &Machine) -> Option<String> {
    let path = match section {
        "" => key.to_owned(),
        section => format!("{section}.{key}"),
    };
    let given = &loaded.config;
    let of_memory = || format!("derived from {} MiB of memory", machine.memory >> 20);
    let derived = match path.as_str() {
        "node.workers" if given.node.workers != resolved.node.workers => {
            Some(format!("derived from {} cores", machine.cores))
        }
        "storage.cache_bytes" if given.storage.cache_bytes != resolved.storage.cache_bytes => Some(of_memory()),
        "limits.unfinished_bytes_max" if given.limits.unfinished_bytes_max != resolved.limits.unfinished_bytes_max => {
            Some(of_memory())
        }
        "storage.write_buffer_bytes" if given.storage.write_buffer_bytes != resolved.storage.write_buffer_bytes => {
            Some(of_memory())
        }
        _ => None,
    };
    // Elements of a list of tables have the list's origin.
    let origin = || origin_of(&loaded.origins, &path);
    derived.or_else(|| origin().filter(|origin| **origin != Origin::Default).map(one_line))
}

/// A path may hold whatever the file system takes.
fn one_line(origin: &Origin) -> String {
    origin.to_string().escape_debug().to_string()
}
