use super::*;
use std::path::Path;

/// The file's content and the variables, loaded.
fn load(file: &str, env: &[(&str, &str)]) -> Result<Config, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lontra.toml");
    std::fs::write(&path, file).unwrap();
    let env = env.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    let loaded = Config::load(Some(&path), env);
    loaded.map_err(|error| error.to_string().replace(&format!("{}/", dir.path().display()), ""))
}

/// The error of a file, of which each of `parts` must be part.
fn check_refused(file: &str, env: &[(&str, &str)], parts: &[&str]) {
    let error = load(file, env).expect_err("must be refused");
    for part in parts {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
    assert!(!error.contains('\n'), "one paragraph: {error}");
}

const TLS: &str = "tls = { ca = 'ca.pem', certificate = 'node.pem', key = 'node.key' }";

fn seeds(list: &str) -> String {
    format!("[cluster]\n{TLS}\nseeds = [{list}]\n")
}

#[test]
fn nothing_given_is_the_defaults() {
    assert_eq!(Config::load(None, std::iter::empty()).unwrap(), Config::default());
    assert_eq!(
        load("", &[("PATH", "/bin"), ("LONTRA_STOP_ON_STDIN_EOF", "1")]).unwrap(),
        Config::default()
    );
    assert_eq!(load("[node]\n[cluster.tls]\n", &[]).unwrap(), Config::default());
}

#[test]
fn a_file_changes_what_it_names() {
    let file = "
        node.id = 2
        cluster.shards = 4
        cluster.election = '600ms'
        cluster.seeds = [
            { id = 1, address = 'a:1' },
            { id = 2, address = '[::1]:2' },
        ]
        [cluster.tls]
        ca = 'ca.pem'
        certificate = 'c.pem'
        key = 'k.pem'
        [mqtt]
        packet_size_max = '64KiB'
        session_expiry_max = '7d'
        [storage]
        free_space_min = '5%'
        [log]
        format = 'json'";
    let config = load(file, &[]).unwrap();
    assert_eq!(config.node.id, 2);
    assert_eq!(config.cluster.shards, 4);
    assert_eq!(config.cluster.election, Duration::from_millis(600));
    assert_eq!(
        config.cluster.seeds[1],
        Seed {
            id: 2,
            address: "[::1]:2".to_owned()
        }
    );
    assert_eq!(config.cluster.tls().unwrap().key, Path::new("k.pem"));
    assert_eq!((config.cluster.node_count(), config.cluster.replicas()), (2, 2));
    assert_eq!(config.mqtt.packet_size_max, ByteSize::kib(64));
    assert_eq!(config.mqtt.session_expiry_max.seconds(), 604_800);
    assert_eq!(config.storage.free_space_min, Percent(5));
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.mqtt.receive_maximum, Config::default().mqtt.receive_maximum);
}

#[test]
fn variables_win_over_the_file_and_need_no_quotes() {
    let env = [
        ("LONTRA__NODE__DATA_DIR", "/var/lib/lontra"),
        ("LONTRA__MQTT__CONNECT_TIMEOUT", "5s"),
        ("LONTRA__CLUSTER__SHARDS", "8"),
        ("LONTRA__CLUSTER__NAME", "123"),
        ("LONTRA__CLUSTER__TLS__CA", "ca.pem"),
        ("LONTRA__CLUSTER__TLS__CERTIFICATE", "'c.pem'"),
        ("LONTRA__CLUSTER__TLS__KEY", "k.pem"),
        (
            "LONTRA__CLUSTER__SEEDS",
            "[{ id = 1, address = 'a:1' }, { id = 2, address = 'b:1' }]",
        ),
    ];
    let config = load("[cluster]\nshards = 4", &env).unwrap();
    assert_eq!(config.node.data_dir, Path::new("/var/lib/lontra"));
    assert_eq!(config.mqtt.connect_timeout, Duration::from_secs(5));
    assert_eq!((config.cluster.shards, config.cluster.name.as_str()), (8, "123"));
    assert_eq!(config.cluster.tls.certificate, Path::new("c.pem"));
    assert_eq!(config.cluster.seeds.len(), 2);
}

#[test]
fn config_closed_unknown_keys_are_refused_with_file_line_key_and_the_nearest_name() {
    check_refused(
        "\n[mqtt]\nlisten = '127.0.0.1:1'\nlistne = 1",
        &[],
        &["lontra.toml:4", "`mqtt.listne`", "`mqtt.listen`?"],
    );
    check_refused(
        "[mqqt]\nlisten = '127.0.0.1:1'",
        &[],
        &["lontra.toml:2", "`mqqt.listen`", "did you mean `mqtt`?"],
    );
    check_refused("[mqqt]", &[], &["lontra.toml:1", "`mqqt`", "did you mean `mqtt`?"]);
    check_refused(
        "[cluster.tls]\ncert = ''",
        &[],
        &["lontra.toml:2", "`cluster.tls.cert`"],
    );
    check_refused(
        "[http]\ncolour = 1",
        &[],
        &["`http.colour`", "known here are `http.listen`, `http.metrics`"],
    );
    check_refused(
        "mqtt = 5",
        &[],
        &["lontra.toml:1", "`mqtt`", "section", "`mqtt.listen`"],
    );
    check_refused("[mqtt]\nlisten.port = 5", &[], &["lontra.toml:2", "`mqtt.listen.port`"]);
    check_refused(
        "\n[[cluster.seeds]]\nid = 1\nadress = 'a:1'",
        &[],
        &["lontra.toml:4", "`cluster.seeds.address`?"],
    );
    check_refused(
        "",
        &[("LONTRA__MQTT__LISTNE", "1")],
        &["variable LONTRA__MQTT__LISTNE", "`mqtt.listen`?"],
    );
    check_refused("", &[("LONTRA__MQTT", "1")], &["variable LONTRA__MQTT", "section"]);
    check_refused(
        "",
        &[("LONTRA__MQQT__LISTEN", "1")],
        &["variable LONTRA__MQQT__LISTEN", "did you mean `mqtt`?"],
    );
}

#[test]
fn config_closed_keys_in_the_wrong_place_are_told_where_they_belong() {
    check_refused("[http]\norigins = []", &[], &["lontra.toml:2", "`websocket.origins`?"]);
    check_refused(
        "receive_maximum = 5",
        &[],
        &["lontra.toml:1", "`mqtt.receive_maximum`?"],
    );
    check_refused("shards = 5", &[], &["lontra.toml:1", "`cluster.shards`?"]);
    check_refused(
        "",
        &[("LONTRA__LOG_LEVEL", "info")],
        &["LONTRA__LOG_LEVEL", "`log.level`?"],
    );
    for name in ["LONTRA_MQTT__LISTEN", "lontra__mqtt__listen"] {
        check_refused("", &[(name, "1")], &[name, "`mqtt.listen`", "`LONTRA__MQTT__LISTEN`?"]);
    }
}

#[test]
fn values_of_another_kind_are_refused_with_file_line_and_key() {
    check_refused(
        "[node]\n\nid = 'one'",
        &[],
        &["lontra.toml:3", "`node.id`", "expected u64"],
    );
    check_refused(
        "[mqtt]\nconnect_timeout = 10",
        &[],
        &["lontra.toml:2", "`mqtt.connect_timeout`", "like \"5s\""],
    );
    check_refused(
        "[mqtt]\npacket_size_max = '1MB'",
        &[],
        &["lontra.toml:2", "`mqtt.packet_size_max`", "MiB"],
    );
    check_refused("[mqtt]\nlisten = 'localhost'", &[], &["lontra.toml:2", "`mqtt.listen`"]);
    check_refused(
        "[log]\nformat = 'xml'",
        &[],
        &["lontra.toml:2", "`log.format`", "`text` or `json`"],
    );
    check_refused(
        "",
        &[("LONTRA__MQTT__RECEIVE_MAXIMUM", "many")],
        &["LONTRA__MQTT__RECEIVE_MAXIMUM", "u16"],
    );
    check_refused(
        "[cluster]\nseeds = [{ id = 1 }]",
        &[],
        &["`cluster.seeds`", "missing field `address`"],
    );
}

#[test]
fn what_is_not_toml_is_refused_with_its_line() {
    check_refused("[node]\nid = ", &[], &["lontra.toml:2", "not TOML"]);
    check_refused(
        "[node]\nid = 1\nid = 2",
        &[],
        &["lontra.toml:3", "not TOML", "duplicate key"],
    );
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(Some(Path::new("/nowhere/lontra.toml")), std::iter::empty())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("/nowhere/lontra.toml") && error.contains("No such file"),
        "{error}"
    );
}

#[test]
fn bounds_are_refused_with_origin_key_value_and_range() {
    for (file, key, problem) in [
        ("node.id = 0", "node.id", "0 must be from 1 to 65535"),
        ("node.workers = 257", "node.workers", "257 must be from 0 to 256"),
        ("node.data_dir = ''", "node.data_dir", "empty"),
        ("cluster.name = 'Big One'", "cluster.name", "a-z"),
        ("cluster.shards = 65", "cluster.shards", "65 must be from 1 to 64"),
        (
            "cluster.replication_factor = 2",
            "cluster.replication_factor",
            "2 is not 1, 3 or 5",
        ),
        ("cluster.listen = '0.0.0.0:0'", "cluster.listen", "port 0"),
        (
            "cluster.heartbeat = '1ms'",
            "cluster.heartbeat",
            "1ms must be from 10ms to 1s",
        ),
        (
            "cluster.election = '499ms'",
            "cluster.election",
            "499ms must be from 500ms to 5s",
        ),
        (
            "cluster.lease = '900ms'",
            "cluster.lease",
            "900ms must be from 1s to 10s",
        ),
        ("cluster.lease = '3s'", "cluster.lease", "= 5300ms"),
        (
            "limits.control_packet_size_max = '1B'",
            "limits.control_packet_size_max",
            "from 1KiB to 256MiB",
        ),
        (
            "mqtt.packet_size_max = '1B'",
            "mqtt.packet_size_max",
            "1B must be from 1KiB to 256MiB",
        ),
        (
            "mqtt.connect_timeout = '0s'",
            "mqtt.connect_timeout",
            "0s must be from 100ms to 5m",
        ),
        (
            "mqtt.keep_alive_max = '20h'",
            "mqtt.keep_alive_max",
            "20h must be from 0s to 65535s",
        ),
        ("mqtt.keep_alive_max = '1500ms'", "mqtt.keep_alive_max", "whole seconds"),
        (
            "mqtt.receive_maximum = 0",
            "mqtt.receive_maximum",
            "0 must be from 1 to 65535",
        ),
        (
            "mqtt.topic_alias_max = 1025",
            "mqtt.topic_alias_max",
            "1025 must be from 0 to 1024",
        ),
        (
            "mqtt.outbox_bytes_max = '1KiB'",
            "mqtt.outbox_bytes_max",
            "1KiB must be from 1MiB to 1GiB",
        ),
        (
            "mqtt.outbox_messages_max = 0",
            "mqtt.outbox_messages_max",
            "0 must be from 1 to 10000000",
        ),
        (
            "mqtt.outbox_wait_max = '11s'",
            "mqtt.outbox_wait_max",
            "11s must be from 0s to 10s",
        ),
        (
            "mqtt.connections_max = 0",
            "mqtt.connections_max",
            "0 must be from 1 to 1000000",
        ),
        (
            "mqtt.topic_levels_max = 0",
            "mqtt.topic_levels_max",
            "0 must be from 1 to 32768",
        ),
        (
            "mqtt.listen = '0.0.0.0:1883'",
            "mqtt.listen",
            "nothing says who may connect",
        ),
        ("websocket.listen = '10.0.0.1:8083'", "websocket.listen", "loopback"),
        (
            "websocket.origins = ['loopback', 'example.org']",
            "websocket.origins",
            "`example.org` is not an origin",
        ),
        ("auth.anonymous = 'sometimes'", "auth.anonymous", "sometimes"),
        ("auth.rules = ['allow all a/#']", "auth.rules", "`all`"),
        ("http.listen = '127.0.0.1:1883'", "http.listen", "is also mqtt.listen"),
        (
            "storage.free_space_min = '0%'",
            "storage.free_space_min",
            "0% must be from 1% to 50%",
        ),
        (
            "storage.checkpoint_interval = '2h'",
            "storage.checkpoint_interval",
            "2h must be from 1s to 1h",
        ),
        ("auth.jwt.leeway = '6m'", "auth.jwt.leeway", "6m must be from 0s to 5m"),
        (
            "auth.jwt.jwks_refresh = '5s'",
            "auth.jwt.jwks_refresh",
            "5s must be from 10s to 1d",
        ),
        ("auth.jwt.jwks_url = 'keys'", "auth.jwt.jwks_url", "`keys` is no URL"),
        ("auth.jwt.user_claim = ''", "auth.jwt.user_claim", "may not be empty"),
        ("auth.http.url = 'ftp://a/'", "auth.http.url", "`ftp://a/` is no URL"),
        (
            "auth.http.timeout = '1ms'",
            "auth.http.timeout",
            "1ms must be from 100ms to 30s",
        ),
        (
            "auth.http.requests_max = 0",
            "auth.http.requests_max",
            "0 must be from 1 to 1000",
        ),
        ("log.level = 'loud=very'", "log.level", "loud=very"),
    ] {
        check_refused(
            &format!("\n{file}"),
            &[],
            &["lontra.toml:2", &format!("`{key}`"), problem],
        );
    }
    check_refused(
        "",
        &[("LONTRA__CLUSTER__SHARDS", "0")],
        &["variable LONTRA__CLUSTER__SHARDS", "from 1 to 64"],
    );
}

#[test]
fn seeds_name_each_node_once_and_this_one_too() {
    let [a, b] = ["{ id = 1, address = 'a:1' }", "{ id = 2, address = 'b:1' }"];
    assert!(load(&seeds(&format!("{a}, {b}")), &[]).is_ok());
    check_refused(
        &seeds(&format!("{a}, {a}")),
        &[],
        &["lontra.toml:3", "id 1 occurs twice"],
    );
    check_refused(
        &seeds(&format!("{a}, {}", a.replace("= 1", "= 2"))),
        &[],
        &["address `a:1` occurs twice"],
    );
    check_refused(&seeds(b), &[], &["node.id = 1 is none of the ids listed (2)"]);
    for address in ["a", "a:0", ":1", "a:b", "::1:80", "[::1]", "http://a:1"] {
        check_refused(&seeds(&a.replace("a:1", address)), &[], &["is not host:port", address]);
    }
}

#[test]
fn several_seeds_need_certificates_one_does_not() {
    let [a, b] = ["{ id = 1, address = 'a:1' }", "{ id = 2, address = 'b:1' }"];
    assert!(load(&format!("[cluster]\nseeds = [{a}]"), &[]).is_ok());
    check_refused(
        &format!("[cluster]\nseeds = [{a}, {b}]"),
        &[],
        &["`cluster.tls.ca`", "lontra cert"],
    );
    check_refused(
        "[cluster.tls]\nca = 'ca.pem'",
        &[],
        &["`cluster.tls.certificate`", "all three"],
    );
}

#[test]
fn effective_toml_reads_back_equal() {
    let file = format!(
        "{}mqtt.keep_alive_max = '90s'\n",
        seeds("{ id = 1, address = 'a:1' }").replace("[cluster]\n", "cluster.")
    )
    .replace("\nseeds", "\ncluster.seeds");
    let config = load(&file, &[]).unwrap();
    assert_eq!(load(&config.effective_toml(), &[]).unwrap(), config);
    assert_eq!(
        load(&Config::default().effective_toml(), &[]).unwrap(),
        Config::default()
    );
}

/// Every `key = value` of the example, commented out or not, by section; a comment of prose begins with `# ` and a
/// letter.
fn example_keys(example: &str) -> toml::Table {
    let assignments: Vec<&str> = example
        .lines()
        .map(|line| {
            line.strip_prefix('#')
                .filter(|rest| !rest.starts_with([' ', '#']))
                .unwrap_or(line)
        })
        .filter(|line| !line.starts_with('#'))
        .collect();
    assignments.join("\n").parse().unwrap()
}

#[test]
fn the_shipped_example_loads_and_has_every_key_with_its_default() {
    let path = in_ops("deploy/lontra.toml");
    assert_eq!(
        Config::load(Some(&path), std::iter::empty()).unwrap(),
        Config::default()
    );
    let shown = example_keys(&std::fs::read_to_string(path).unwrap());
    assert_eq!(shown, toml::Table::try_from(Config::default()).unwrap());
}

/// The guide has a row for each key, in its section: `key` or `section.key`.
#[test]
fn the_guide_has_every_key() {
    fn leaves(prefix: &str, table: &toml::Table, found: &mut Vec<String>) {
        for (key, value) in table {
            let path = if prefix.is_empty() {
                key.clone()
            } else {
                format!("{prefix}.{key}")
            };
            match value {
                toml::Value::Table(below) => leaves(&path, below, found),
                _ => found.push(path),
            }
        }
    }
    let guide = std::fs::read_to_string(in_ops("docs/configuration.md")).unwrap();
    let mut keys = Vec::new();
    leaves("", &toml::Table::try_from(Config::default()).unwrap(), &mut keys);
    for path in keys {
        // The list of listeners has a chapter of its own.
        let (section, key) = path.split_once('.').unwrap_or((&path, &path));
        let chapter = guide
            .split("\n## ")
            .find(|chapter| chapter.starts_with('[') && chapter.contains(&format!("[{section}]")));
        let chapter = chapter.unwrap_or_else(|| panic!("no chapter [{section}]"));
        let shown = [format!("`{key}`"), format!("`{path}`")]
            .iter()
            .any(|name| chapter.contains(name));
        assert!(shown, "{path} is not in the guide");
    }
}

fn in_ops(file: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops").join(file)
}

#[test]
fn the_guide_has_every_key_of_a_listener() {
    let guide = std::fs::read_to_string(in_ops("docs/configuration.md")).unwrap();
    let chapter = guide
        .split("\n## ")
        .find(|chapter| chapter.starts_with("[[listeners]]"))
        .unwrap();
    let every_key = toml::Table::try_from(listener::with_every_key()).unwrap();
    for (key, value) in &every_key {
        match value {
            toml::Value::Table(below) => {
                for key in below.keys() {
                    assert!(
                        chapter.contains(&format!("`tls.{key}`")),
                        "tls.{key} is not in the guide"
                    );
                }
            }
            _ => assert!(chapter.contains(&format!("`{key}`")), "{key} is not in the guide"),
        }
    }
}

const LISTENER: &str = "[[listeners]]\nname = 'a'\nkind = 'mqtt'\nlisten = '127.0.0.1:1'\n";
const OVER_TLS: &str = "[[listeners]]\nname = 'a'\nkind = 'mqtts'\nlisten = '127.0.0.1:1'\n\
                        [listeners.tls]\ncertificate = 'c.pem'\nkey = 'k.pem'\n";

#[test]
fn listeners_load_show_and_read_back() {
    let file = format!(
        "{OVER_TLS}client_certificates = 'required'\nclient_ca = 'ca.pem'\n\
         [[listeners.tls.sni]]\ncertificate = 'd.pem'\nkey = 'e.pem'\n\
         [[listeners]]\nname = 'here'\nkind = 'unix'\nlisten = '/run/x.sock'\nmode = '0600'\n\
         [[listeners]]\nname = 'web'\nkind = 'ws'\nlisten = '[::1]:2'\ntrusted_proxies = ['10.0.0.0/8']\n\
         connect_timeout = '5s'\npacket_size_max = '2KiB'\nmountpoint = 'a/'\npath = '/x'\n\
         keep_alive_max = '9s'\nreceive_maximum = 3\nsession_expiry_max = '1m'\ntopic_alias_max = 0\n"
    );
    let config = load(&file, &[]).unwrap();
    let [over_tls, here, web] = &config.listeners[..] else {
        panic!("{config:?}");
    };
    assert_eq!(over_tls.tls.sni[0].key, Path::new("e.pem"));
    assert!(over_tls.requires_certificates() && !web.requires_certificates());
    assert_eq!(
        (here.mode.0, here.listen.path()),
        (0o600, Some(Path::new("/run/x.sock")))
    );
    assert_eq!(
        (web.connect_timeout, web.packet_size_max),
        (Some(Duration::from_secs(5)), Some(ByteSize::kib(2)))
    );
    assert_eq!(
        (web.keep_alive_max, web.receive_maximum),
        (Some(Duration::from_secs(9)), Some(3))
    );
    assert_eq!(
        (web.session_expiry_max, web.topic_alias_max),
        (Some(SessionExpiry::from_seconds(60)), Some(0))
    );
    assert_eq!(load(&config.effective_toml(), &[]).unwrap(), config);
    let variable = "[{ name = 'v', kind = 'mqtt', listen = '127.0.0.1:9' }]";
    let config = load(&file, &[("LONTRA__LISTENERS", variable)]).unwrap();
    assert_eq!(config.listeners.len(), 1);
}

#[test]
fn listeners_show_where_each_value_comes_from() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lontra.toml");
    std::fs::write(&path, OVER_TLS).unwrap();
    let loaded = Config::load_with_origins(Some(&path), std::iter::empty()).unwrap();
    let shown = show(
        &loaded,
        &Machine {
            cores: 1,
            memory: 1 << 30,
        },
    );
    let line = |key: &str| {
        let line = shown.lines().find(|line| line.starts_with(key));
        line.unwrap_or_else(|| panic!("no {key} in\n{shown}")).to_owned()
    };
    assert!(line("kind = ").ends_with("lontra.toml:3"), "{shown}");
    assert!(line("certificate = \"c.pem\"").ends_with("lontra.toml:6"), "{shown}");
}

#[test]
fn mistakes_in_rules_for_topics_are_told_with_their_own_line() {
    let rewrite = "[[topics.rewrite]]\non = 'all'\nfrom = '(a)'\nto = '$1'\n";
    let policy = "[[topics.policy]]\nfilter = 'a'\n";
    for (file, line, words) in [
        (
            format!("{rewrite}form = 'b'"),
            5,
            &["`topics.rewrite[0].form`", "did you mean `topics.rewrite[0].from`?"][..],
        ),
        (
            format!("{rewrite}[[topics.rewrite]]\non = 'never'\nfrom = 'a'\nto = 'b'"),
            6,
            &["`topics.rewrite[1].on`", "never"],
        ),
        (
            format!("{rewrite}[[topics.rewrite]]\non = 'all'\nfrom = '('\nto = 'b'"),
            7,
            &["`topics.rewrite[1].from`", "unclosed group"],
        ),
        (
            format!("{rewrite}[[topics.rewrite]]\non = 'all'\nfrom = 'a'\nto = '$1'"),
            8,
            &["`topics.rewrite[1].to`", "no group `1`"],
        ),
        (
            format!("{rewrite}[[topics.rewrite]]\non = 'all'\nto = 'b'"),
            6,
            &["`topics.rewrite[1].from`", "missing"],
        ),
        (
            format!("{policy}{policy}qos_max = 3"),
            5,
            &["`topics.policy[1].qos_max`", "not 0, 1 or 2"],
        ),
        (format!("{policy}qos_max = 'one'"), 3, &["`topics.policy[0].qos_max`"]),
        (
            format!("{policy}retain = 'deny'"),
            3,
            &["`topics.policy[0].retain`", "deny"],
        ),
        (
            "[topics]\nsubscribe = [\n  { filter = 'a' },\n  { filter = 'b', qso = 1 },\n]".to_owned(),
            4,
            &["`topics.subscribe[1].qso`", "did you mean"],
        ),
        (
            "[[topics.subscribe]]\nqos = 1".to_owned(),
            2,
            &["`topics.subscribe[0].filter`", "missing"],
        ),
    ] {
        check_refused(&file, &[], &[&[&*format!("lontra.toml:{line}:")], words].concat());
    }
    load(&format!("{rewrite}{policy}"), &[]).unwrap();
}

#[test]
fn mistakes_in_listeners_are_told_with_their_own_line() {
    for (file, line, words) in [
        (
            format!("{LISTENER}nmae = 'b'"),
            5,
            &["`listeners[0].nmae`", "`listeners[0].name`?"][..],
        ),
        (
            format!("{LISTENER}{OVER_TLS}cert = 'x'"),
            12,
            &["`listeners[1].tls.cert`"],
        ),
        (
            format!("{LISTENER}connections_max = -1"),
            5,
            &["`listeners[0].connections_max`", "u32"],
        ),
        (
            format!("{LISTENER}connect_timeout = 5"),
            5,
            &["`listeners[0].connect_timeout`", "like \"5s\""],
        ),
        (
            LISTENER.replace("'mqtt'", "'tcp'"),
            3,
            &["`listeners[0].kind`", "`mqtt`, `mqtts`"],
        ),
        (
            LISTENER.replace("127.0.0.1:1", "localhost"),
            4,
            &["`listeners[0].listen`", "address:port"],
        ),
        (
            LISTENER.replace("kind = 'mqtt'\n", ""),
            2,
            &["`listeners[0].kind`", "missing"],
        ),
        (
            format!("{LISTENER}trusted_proxies = ['10.0.0.1/8']"),
            5,
            &["10.0.0.0/8"],
        ),
        (
            format!("{OVER_TLS}version_min = '1.1'"),
            8,
            &["`listeners[0].tls.version_min`", "`1.2`"],
        ),
        (
            format!("{OVER_TLS}sni = [{{ certificate = 'x' }}]"),
            8,
            &["`listeners[0].tls.sni`", "`key`"],
        ),
        // Bounds, and rules between keys.
        (
            format!("{LISTENER}authentication = ['certificate']"),
            5,
            &["`listeners[0].authentication`", "clients show none here"],
        ),
        (
            format!("{LISTENER}authentication = ['scram-sha-256']"),
            5,
            &["`listeners[0].authentication`", "auth.password_file is missing"],
        ),
        (
            format!("{LISTENER}authentication = ['jwt']"),
            5,
            &["`listeners[0].authentication`", "auth.jwt"],
        ),
        (LISTENER.replace("'a'", "'A b'"), 2, &["`listeners[0].name`", "a-z"]),
        (LISTENER.replace("'a'", "'ws'"), 2, &["another listener's name"]),
        (
            format!("{LISTENER}{}", LISTENER.replace(":1'", ":2'")),
            6,
            &["`listeners[1].name`", "another"],
        ),
        (
            format!("{LISTENER}{}", LISTENER.replace("'a'", "'b'")),
            8,
            &["is also listeners[0].listen"],
        ),
        (LISTENER.replace(":1'", ":1883'"), 4, &["is also mqtt.listen"]),
        (
            LISTENER.replace("127.0.0.1:1'", "0.0.0.0:1'"),
            4,
            &["loopback", "client_certificates"],
        ),
        (OVER_TLS.replace("127.0.0.1:1'", "[::]:1'"), 4, &["loopback"]),
        (LISTENER.replace("127.0.0.1:1'", "127.0.0.1:0'"), 4, &["port 0"]),
        (LISTENER.replace("127.0.0.1:1", "/x/y"), 4, &["is a path"]),
        (LISTENER.replace("'mqtt'", "'unix'"), 4, &["is no path"]),
        (
            LISTENER.replace("'mqtt'", "'mqtts'"),
            2,
            &["`listeners[0].tls.certificate`", "missing"],
        ),
        (format!("{LISTENER}mountpoint = 'a'"), 5, &["ends with /"]),
        (format!("{LISTENER}mountpoint = '$a/'"), 5, &["mountpoint"]),
        (format!("{LISTENER}mountpoint = 'a/+/'"), 5, &["mountpoint"]),
        (format!("{LISTENER}path = '/x'"), 5, &["no meaning for kind mqtt"]),
        (format!("{LISTENER}mode = '0600'"), 5, &["no meaning for kind mqtt"]),
        (
            format!("{LISTENER}tls.key = 'k'"),
            5,
            &["`listeners[0].tls`", "no meaning for kind mqtt"],
        ),
        (
            format!("{LISTENER}proxy_protocol = true"),
            2,
            &["`listeners[0].trusted_proxies`", "empty"],
        ),
        (format!("{LISTENER}trusted_proxies = ['::1']"), 5, &["has no effect"]),
        (format!("{LISTENER}packet_size_max = '1B'"), 5, &["from 1KiB to 256MiB"]),
        (
            format!("{LISTENER}packet_size_max = '9MiB'"),
            5,
            &["mqtt.outbox_bytes_max"],
        ),
        (format!("{LISTENER}receive_maximum = 0"), 5, &["from 1 to 65535"]),
        (format!("{LISTENER}topic_alias_max = 1025"), 5, &["from 0 to 1024"]),
        (format!("{LISTENER}keep_alive_max = '1500ms'"), 5, &["whole seconds"]),
        (
            format!("{LISTENER}session_expiry_max = '7'"),
            5,
            &["`listeners[0].session_expiry_max`"],
        ),
        (format!("{OVER_TLS}client_ca = 'x'"), 8, &["client_certificates is off"]),
        (
            format!("{OVER_TLS}client_certificates = 'optional'"),
            5,
            &["`listeners[0].tls.client_ca`", "missing"],
        ),
        (format!("{OVER_TLS}handshake_timeout = '2m'"), 8, &["from 100ms to 1m"]),
        (format!("{OVER_TLS}handshakes_max = 0"), 8, &["from 1 to 100000"]),
    ] {
        check_refused(&file, &[], &[&[&*format!("lontra.toml:{line}:")], words].concat());
    }
    check_refused("[listeners]\nname = 'a'", &[], &["lontra.toml:2", "[[listeners]]"]);
    let variable = "[{ name = 'v', kind = 'mqtt', listen = '10.0.0.1:9' }]";
    check_refused(
        "",
        &[("LONTRA__LISTENERS", variable)],
        &["variable LONTRA__LISTENERS", "loopback"],
    );
}
