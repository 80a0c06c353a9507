//! Configuration files and variables: a mistake is told, and what is accepted is accepted again as `config show` prints it.
//! An input is lines; those that begin with `LONTRA` are variables, the others the file.

use super::corpus;
use super::fuzzing::{Target, fuzz, outcome};
use lontra::config::Config;

#[test]
fn config() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("lontra.toml");
    let load = |text: &str, variables: Vec<(String, String)>| {
        std::fs::write(&file, text).expect("the file");
        Config::load(Some(&file), variables.into_iter())
    };
    let defaults = Config::default().effective_toml();
    let target = Target {
        name: "config",
        corpus: &corpus("config"),
        seeds: vec![
            b"[mqtt]\nkeep_alive_max = \"60s\"\npacket_size_max = \"4KiB\"\n".to_vec(),
            b"[node]\nid = 1\ndata_dir = \"/x\"\n[log]\nlevel = \"debug\"".to_vec(),
            b"LONTRA__MQTT__RECEIVE_MAXIMUM=4\nLONTRA__LOG__LEVEL=warn".to_vec(),
            b"[[listener]]\nkind = \"tcp\"\nbind = \"127.0.0.1:0\"\n".to_vec(),
            defaults.bytes().take(1_500).collect(),
        ],
        words: &[
            b"[mqtt]\n",
            b"[cluster]\n",
            b"[[listener]]\n",
            b"[node]\n",
            b" = ",
            b"\"",
            b"10s",
            b"4KiB",
            b"-1",
            b"true",
            b"[]",
            b"{}",
            b"LONTRA__",
            b"=",
            b"\n",
            b"1e9",
            b"nan",
            b"0x10",
            b"id",
            b"1979-05-27",
        ],
        memory: (2 << 20, 4_096),
    };
    fuzz(target, |input| {
        let text = String::from_utf8_lossy(input);
        let (variables, lines): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with("LONTRA"));
        let variables = variables.iter().filter_map(|line| line.split_once('='));
        let variables = variables
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        match load(&lines.join("\n"), variables) {
            Ok(config) => {
                let shown = config.effective_toml();
                let again =
                    load(&shown, Vec::new()).unwrap_or_else(|error| panic!("{error}, of what is shown:\n{shown}"));
                assert_eq!(again.effective_toml(), shown);
                outcome((true, shown))
            }
            Err(error) => {
                let told = error.to_string();
                assert!(!told.is_empty());
                // Without numbers and names, which are the input's.
                let kind: String = told
                    .split('`')
                    .step_by(2)
                    .flat_map(str::chars)
                    .filter(|c| c.is_alphabetic())
                    .collect();
                outcome((false, kind.chars().take(200).collect::<String>()))
            }
        }
    });
}
