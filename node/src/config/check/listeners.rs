//! The bounds of `[[listeners]]`, and the rules between their keys.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::{Checked, keep_alive_max, port, range, refuse, size, time};
use crate::auth::identity::Method;
use crate::config::Config;
use crate::config::limits::rates;
use crate::config::listener::{
    ClientCertificates, DEFAULT_NAMES, ListenAddress, Listener, ListenerKind, ListenerTls, SOCKET_PATH_MAX,
};
use crate::config::units::{ByteSize, FileMode};

pub(super) fn check(config: &Config) -> Checked {
    let listeners = &config.listeners;
    if listeners.len() > LISTENERS_MAX {
        return refuse(
            "listeners",
            format!("{} listeners are more than {LISTENERS_MAX}", listeners.len()),
        );
    }
    let mut names = DEFAULT_NAMES.map(str::to_owned).to_vec();
    let mut places: BTreeMap<String, String> = [
        (config.mqtt.listen, "mqtt.listen"),
        (config.websocket.listen, "websocket.listen"),
        (config.http.listen, "http.listen"),
    ]
    .map(|(address, key)| (address.to_string(), key.to_owned()))
    .into();
    for (at, listener) in listeners.iter().enumerate() {
        let of = |key: &str| format!("listeners[{at}].{key}");
        name(&of("name"), &listener.name)?;
        if names.contains(&listener.name) {
            return refuse(of("name"), format!("`{}` is another listener's name", listener.name));
        }
        names.push(listener.name.clone());
        place(&of("listen"), listener)?;
        authentication(config, listener, &of)?;
        if let Some(other) = places.insert(listener.listen.to_string(), of("listen")) {
            let listen = &listener.listen;
            return refuse(
                of("listen"),
                format!("{listen} is also {other}: each listener needs its own"),
            );
        }
        limits(config, listener, &of)?;
        meaningless(listener, &of)?;
        if listener.proxy_protocol && listener.trusted_proxies.is_empty() {
            let hint = "is empty: with proxy_protocol name the networks of the proxies, since anybody else could say \
                        any address";
            return refuse(of("trusted_proxies"), hint.to_owned());
        }
        if listener.kind.is_tls() {
            tls(&listener.tls, &|key| of(&format!("tls.{key}")))?;
        }
    }
    Ok(())
}

/// Logs and reloads carry it.
fn name(key: &str, name: &str) -> Checked {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 32 || !name.chars().all(good) {
        let problem = format!("`{name}` is not a listener's name: write 1 to 32 of a-z, 0-9 and -");
        return refuse(key.to_owned(), problem);
    }
    Ok(())
}

fn place(key: &str, listener: &Listener) -> Checked {
    let kind = listener.kind;
    match (&listener.listen, kind) {
        (ListenAddress::Path(path), ListenerKind::Unix) => {
            let bytes = path.as_os_str().len();
            if bytes > SOCKET_PATH_MAX {
                let problem = format!(
                    "{} has {bytes} bytes; a socket's path has at most {SOCKET_PATH_MAX}",
                    path.display()
                );
                return refuse(key.to_owned(), problem);
            }
            Ok(())
        }
        (ListenAddress::Path(path), _) => {
            let problem = format!("{} is a path: kind {kind} needs address:port", path.display());
            refuse(key.to_owned(), problem)
        }
        (ListenAddress::Ip(address), ListenerKind::Unix) => refuse(
            key.to_owned(),
            format!("{address} is no path: kind unix needs one, like \"/run/lontra/mqtt.sock\""),
        ),
        (ListenAddress::Ip(address), _) => port(key.to_owned(), *address),
    }
}

/// A listener that others reach says who may connect, or that everybody may.
pub(super) fn reach(key: &str, config: &Config, listener: &Listener) -> Checked {
    let auth = config.listener_auth(listener);
    if listener.is_local() || listener.requires_certificates() || auth.anonymous || !auth.methods.is_empty() {
        return Ok(());
    }
    let problem = format!(
        "{} is not a loopback address, and nothing says who may connect: name auth.password_file or another method of [auth], or set \
         tls.client_certificates = \"required\" on a listener of kind mqtts or wss, or let everybody in with anonymous = \
         \"always\"",
        listener.listen
    );
    refuse(key.to_owned(), problem)
}

fn authentication(config: &Config, listener: &Listener, of: &impl Fn(&str) -> String) -> Checked {
    let has_certificates = listener.kind.is_tls() && listener.tls.client_certificates != ClientCertificates::Off;
    let mut seen = Vec::new();
    for method in listener.authentication.iter().flatten() {
        if *method == Method::Certificate && !has_certificates {
            let problem = "names certificate, but clients show none here: set tls.client_certificates on a listener of kind \
                           mqtts or wss";
            return refuse(of("authentication"), problem.to_owned());
        }
        // The cluster's users are there without a file.
        let has_something = config.auth.has(*method) || *method == Method::Cluster;
        let problem = match (has_something, seen.contains(&method)) {
            (true, false) => None,
            (true, true) => Some(format!("names {} twice", method.name())),
            (false, _) => Some(format!(
                "names {}, but [auth] has nothing to check against: {} is missing",
                method.name(),
                method.key()
            )),
        };
        if let Some(problem) = problem {
            return refuse(of("authentication"), problem);
        }
        seen.push(method);
    }
    reach(&of("listen"), config, listener)
}

fn limits(config: &Config, listener: &Listener, of: &impl Fn(&str) -> String) -> Checked {
    range(of("connections_max"), listener.connections_max, 0, 1_000_000)?;
    range(of("connection_rate"), listener.connection_rate, 0, 1_000_000)?;
    rates(
        of("message_rate"),
        listener.message_rate,
        of("byte_rate"),
        listener.byte_rate,
    )?;
    if let Some(bytes) = listener.packet_size_max {
        size(of("packet_size_max"), bytes, ByteSize::kib(1), ByteSize::mib(256))?;
        if bytes > config.mqtt.outbox_bytes_max {
            let problem = format!(
                "{bytes} is more than mqtt.outbox_bytes_max = {}",
                config.mqtt.outbox_bytes_max
            );
            return refuse(of("packet_size_max"), problem);
        }
    }
    if let Some(longest) = listener.keep_alive_max {
        keep_alive_max(of("keep_alive_max"), longest)?;
    }
    if let Some(maximum) = listener.receive_maximum {
        range(of("receive_maximum"), maximum, 1, 65535)?;
    }
    if let Some(aliases) = listener.topic_alias_max {
        range(of("topic_alias_max"), aliases, 0, 1024)?;
    }
    if let Some(timeout) = listener.connect_timeout {
        time(
            of("connect_timeout"),
            timeout,
            Duration::from_millis(100),
            Duration::from_secs(300),
        )?;
    }
    let mountpoint = &listener.mountpoint;
    if !mountpoint.is_empty() {
        let is_good =
            mountpoint.ends_with('/') && !mountpoint.starts_with('$') && !mountpoint.contains(['+', '#', '\0']);
        if !is_good || mountpoint.len() > MOUNTPOINT_MAX {
            let problem = format!(
                "`{mountpoint}` cannot stand before a topic: it ends with /, does not begin with $, has none of + and #, \
                 and at most {MOUNTPOINT_MAX} bytes"
            );
            return refuse(of("mountpoint"), problem);
        }
    }
    let is_path = |c: char| c.is_ascii_graphic() && !"?#%".contains(c);
    if !listener.path.starts_with('/') || !listener.path.chars().all(is_path) {
        let problem = format!("`{}` is no path of a URL: write one like \"/mqtt\"", listener.path);
        return refuse(of("path"), problem);
    }
    Ok(())
}

/// What has no meaning for the kind would be believed to hold.
fn meaningless(listener: &Listener, of: &impl Fn(&str) -> String) -> Checked {
    let kind = listener.kind;
    let fresh = Listener::new(&listener.name, kind, listener.listen.clone());
    let set = [
        ("tls", !kind.is_tls() && listener.tls != fresh.tls),
        ("path", !kind.is_websocket() && listener.path != fresh.path),
        (
            "mode",
            kind != ListenerKind::Unix && listener.mode != FileMode::default(),
        ),
        ("proxy_protocol", kind == ListenerKind::Unix && listener.proxy_protocol),
        (
            "trusted_proxies",
            !(listener.trusted_proxies.is_empty() || listener.proxy_protocol || kind.is_websocket()),
        ),
    ];
    match set.into_iter().find(|(_, is_set)| *is_set) {
        Some(("trusted_proxies", _)) => {
            let hint = "has no effect: it is for proxy_protocol = true, and for kinds ws and wss";
            refuse(of("trusted_proxies"), hint.to_owned())
        }
        Some((key, _)) => refuse(of(key), format!("has no meaning for kind {kind}")),
        None => Ok(()),
    }
}

fn tls(tls: &ListenerTls, of: &impl Fn(&str) -> String) -> Checked {
    let named = |key: &str, path: &PathBuf, why: &str| match path.as_os_str().is_empty() {
        true => refuse(of(key), format!("is missing: {why}")),
        false => Ok(()),
    };
    named(
        "certificate",
        &tls.certificate,
        "name the PEM file of the server's certificate",
    )?;
    named("key", &tls.key, "name the PEM file of the certificate's private key")?;
    for one in &tls.sni {
        named("sni", &one.certificate, "an entry has an empty certificate")?;
        named("sni", &one.key, "an entry has an empty key")?;
    }
    match tls.client_certificates {
        ClientCertificates::Off => {
            for (key, path) in [("client_ca", &tls.client_ca), ("client_crl", &tls.client_crl)] {
                if !path.as_os_str().is_empty() {
                    let hint = "has no effect while client_certificates is off: write \"optional\" or \"required\"";
                    return refuse(of(key), hint.to_owned());
                }
            }
        }
        ClientCertificates::Optional | ClientCertificates::Required => {
            named(
                "client_ca",
                &tls.client_ca,
                "name the PEM file of the authority that signs client certificates",
            )?;
        }
    }
    let (shortest, longest) = (Duration::from_millis(100), Duration::from_secs(60));
    time(of("handshake_timeout"), tls.handshake_timeout, shortest, longest)?;
    range(of("handshakes_max"), tls.handshakes_max, 1, 100_000)
}

/// As many as nobody needs; each has a socket per worker.
const LISTENERS_MAX: usize = 64;
const MOUNTPOINT_MAX: usize = 256;
