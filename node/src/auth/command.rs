//! `lontra user`: users and their passwords, in a file or, with `--node`, in the cluster.
//!
//! ```text
//!   lontra user hash             the hash of a password
//!   lontra user add FILE NAME    a user comes, or gets another password         lontra user add --node URL NAME
//!   lontra user remove FILE NAME                                                lontra user remove --node URL NAME
//!   lontra user list FILE                                                       lontra user list --node URL
//! ```
//!
//! There is a FILE or a node, never both and no default for either: which of them is meant is always written down.
//!
//! Passwords come from standard input, never as arguments, which everybody on the machine can see. A file is replaced as a
//! whole, or not at all; other lines stay as they are, Mosquitto's hashes too.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, BufRead, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::password::PasswordRecord;
use super::password_file::{NAME_MAX, PasswordFile, PasswordFileError, is_user_name};
use super::secret::Secret;
use crate::operator::{self, KeyFile, OperatorError};

#[derive(Subcommand)]
pub enum Command {
    /// Print the hash of the password on standard input: Argon2id, or what SCRAM needs.
    Hash(Kind),
    /// Add a user, or give one another password: the one on standard input.
    #[command(allow_missing_positional = true)]
    Add(Add),
    /// Remove a user.
    #[command(allow_missing_positional = true)]
    Remove(Named),
    /// Print the names and groups of all users.
    List {
        /// The file; without it --node.
        #[arg(required_unless_present = "node", conflicts_with = "node")]
        file: Option<PathBuf>,
        #[command(flatten)]
        cluster: InCluster,
    },
}

/// Where the users are, if not in a file.
#[derive(Args)]
pub struct InCluster {
    /// The users that the cluster keeps, by the HTTP address (http.listen) of any node that runs, instead of a file.
    #[arg(long, visible_alias = "api", value_name = "URL")]
    node: Option<String>,

    #[command(flatten)]
    key: KeyFile,
}

#[derive(Args, Clone, Copy, Default)]
pub struct Kind {
    /// Keep what SCRAM-SHA-256 needs (MQTT 5): the password then never comes to the broker. It is good for a password in
    /// CONNECT too.
    #[arg(long)]
    scram: bool,
}

#[derive(Args)]
pub struct Add {
    #[command(flatten)]
    named: Named,

    #[command(flatten)]
    kind: Kind,

    /// Groups for access rules, separated by commas; without it, those that the user has.
    #[arg(long, value_delimiter = ',', value_name = "GROUP")]
    groups: Option<Vec<String>>,
}

#[derive(Args)]
pub struct Named {
    /// The file, which `add` makes; without it --node.
    #[arg(required_unless_present = "node", conflicts_with = "node")]
    file: Option<PathBuf>,
    /// The user.
    name: String,
    #[command(flatten)]
    cluster: InCluster,
}

/// Why nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("cannot read a password from standard input: {0}")]
    Input(#[source] io::Error),
    #[error("standard input holds no password: write one line")]
    NoPassword,
    #[error("cannot read {path}: {source}", path = path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{path} is not a file of users: {source}", path = path.display())]
    NoFile { path: PathBuf, source: PasswordFileError },
    #[error("cannot write {path}: {source}; nothing has changed", path = path.display())]
    Unwritable { path: PathBuf, source: io::Error },
    #[error(
        "`{0}` is no user name: it has 1 to {NAME_MAX} bytes, no colon, no control characters, and no # at its beginning"
    )]
    BadName(String),
    #[error("`{0}` is no group: it is not empty, and has no colon, comma or blank")]
    BadGroup(String),
    #[error("{path} has no user `{name}`", path = path.display())]
    NoUser { path: PathBuf, name: String },
    #[error("--scram is for files: SCRAM-SHA-256 knows no users of the cluster")]
    ScramOfCluster,
    #[error("neither a FILE nor --node says where the users are")]
    Nowhere,
    #[error(transparent)]
    Operator(#[from] OperatorError),
}

/// What to print.
///
/// # Errors
/// Nothing has changed.
pub fn run(command: &Command) -> Result<String, CommandError> {
    let password = || password_from(&mut io::stdin().lock());
    match command {
        Command::Hash(kind) => Ok(hash(&password()?, *kind)),
        Command::Add(add) => {
            let (password, Named { name, cluster, .. }) = (password()?, &add.named);
            match &cluster.node {
                Some(_) if add.kind.scram => Err(CommandError::ScramOfCluster),
                Some(node) => Ok(operator::put_user(
                    node,
                    &cluster.key,
                    name,
                    add.groups.as_deref(),
                    &password,
                )?),
                None => put(add.named.file()?, name, add.groups.as_deref(), &password, add.kind),
            }
        }
        Command::Remove(named) => match &named.cluster.node {
            Some(node) => Ok(operator::remove_user(node, &named.cluster.key, &named.name)?),
            None => remove(named.file()?, &named.name),
        },
        Command::List { file, cluster } => match (&cluster.node, file) {
            (Some(node), _) => Ok(operator::list_users(node, &cluster.key)?),
            (None, Some(file)) => list(file),
            (None, None) => Err(CommandError::Nowhere),
        },
    }
}

impl Named {
    fn file(&self) -> Result<&Path, CommandError> {
        self.file.as_deref().ok_or(CommandError::Nowhere)
    }
}

fn hash(password: &Secret, kind: Kind) -> String {
    let record = match kind.scram {
        false => PasswordRecord::make(password),
        true => PasswordRecord::make_scram(password),
    };
    record.text().expect("what is made here has a text").to_owned()
}

fn password_from(input: &mut impl BufRead) -> Result<Secret, CommandError> {
    let mut line = Vec::new();
    input.read_until(b'\n', &mut line).map_err(CommandError::Input)?;
    let end = line.iter().rposition(|byte| !b"\r\n".contains(byte));
    let end = end.ok_or(CommandError::NoPassword)?;
    Ok(Secret::new(&line[..=end]))
}

fn put(
    file: &Path,
    name: &str,
    groups: Option<&[String]>,
    password: &Secret,
    kind: Kind,
) -> Result<String, CommandError> {
    if !is_user_name(name) {
        return Err(CommandError::BadName(name.to_owned()));
    }
    let text = match read(file) {
        Err(CommandError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => String::new(),
        read => read?,
    };
    let users = parse(file, &text)?;
    let known = users.user(name);
    let groups = match (groups, known) {
        (Some(groups), _) => groups.iter().map(|group| group.as_str().into()).collect(),
        (None, Some(user)) => user.groups.clone(),
        (None, None) => Vec::new(),
    };
    let is_bad = |group: &str| group.is_empty() || group.contains([':', ',', ' ', '\t', '\r', '\n']);
    if let Some(bad) = groups.iter().find(|group| is_bad(group)) {
        return Err(CommandError::BadGroup(bad.to_string()));
    }
    let mut line = format!("{name}:{}", hash(password, kind));
    if !groups.is_empty() {
        line = format!("{line}:{}", groups.join(","));
    }
    let mut lines: Vec<&str> = text.lines().collect();
    match lines.iter_mut().find(|line| is_of(line, name)) {
        Some(old) => *old = &line,
        None => lines.push(&line),
    }
    replace(file, &lines)?;
    let done = if known.is_some() { "changed" } else { "added" };
    Ok(format!("{done} `{name}` in {}; {RELOAD}", file.display()))
}

fn remove(file: &Path, name: &str) -> Result<String, CommandError> {
    let text = read(file)?;
    if parse(file, &text)?.user(name).is_none() {
        return Err(CommandError::NoUser {
            path: file.to_owned(),
            name: name.to_owned(),
        });
    }
    let lines: Vec<&str> = text.lines().filter(|line| !is_of(line, name)).collect();
    replace(file, &lines)?;
    Ok(format!("removed `{name}` from {}; {RELOAD}", file.display()))
}

fn list(file: &Path) -> Result<String, CommandError> {
    let users = parse(file, &read(file)?)?;
    let lines = users.names().map(|(name, user)| match user.groups.is_empty() {
        true => name.to_owned(),
        false => format!("{name} ({})", user.groups.join(", ")),
    });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

fn is_of(line: &str, name: &str) -> bool {
    line.strip_prefix(name).is_some_and(|rest| rest.starts_with(':'))
}

fn read(path: &Path) -> Result<String, CommandError> {
    fs::read_to_string(path).map_err(|source| CommandError::Unreadable {
        path: path.to_owned(),
        source,
    })
}

fn parse(path: &Path, text: &str) -> Result<PasswordFile, CommandError> {
    PasswordFile::parse(text).map_err(|source| CommandError::NoFile {
        path: path.to_owned(),
        source,
    })
}

/// Beside it, then in its place: a node that reads meanwhile sees the old file or the new one. A new file is its owner's
/// alone; another keeps its mode.
fn replace(path: &Path, lines: &[&str]) -> Result<(), CommandError> {
    let unwritable = |source| CommandError::Unwritable {
        path: path.to_owned(),
        source,
    };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = path.with_file_name(name);
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        if let Ok(metadata) = fs::metadata(path) {
            file.set_permissions(Permissions::from_mode(metadata.permissions().mode()))?;
        }
        for line in lines {
            writeln!(file, "{line}")?;
        }
        file.sync_all()?;
        fs::rename(&beside, path)
    })();
    written.map_err(|source| {
        let _ = fs::remove_file(&beside);
        unwritable(source)
    })
}

const RELOAD: &str = "nodes that run read it at SIGHUP";

#[cfg(test)]
mod tests {
    use super::*;

    fn add(dir: &Path, name: &str, groups: Option<&[&str]>, password: &str) -> Result<String, CommandError> {
        let groups: Option<Vec<String>> = groups.map(|groups| groups.iter().map(|group| (*group).to_owned()).collect());
        put(
            &dir.join("users"),
            name,
            groups.as_deref(),
            &Secret::new(password.as_bytes()),
            Kind::default(),
        )
    }

    #[test]
    fn users_come_change_and_go_and_other_lines_stay() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("users");
        add(dir.path(), "alice", Some(&["ops"]), "one").expect("added");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        let first = fs::read_to_string(&path).expect("text");
        fs::write(&path, format!("# ours\n{first}")).expect("written");
        add(dir.path(), "bob", None, "two").expect("added");
        add(dir.path(), "alice", None, "three").expect("changed");
        let text = fs::read_to_string(&path).expect("text");
        assert!(text.starts_with("# ours\nalice:$argon2id$"), "{text}");
        let users = PasswordFile::parse(&text).expect("good");
        let alice = users.user("alice").expect("there");
        assert!(alice.record.is_of(&Secret::new(*b"three")));
        assert_eq!(alice.groups.join(","), "ops", "groups stay");
        assert_eq!(list(&path).expect("a list"), "alice (ops)\nbob");
        remove(&path, "alice").expect("removed");
        assert_eq!(list(&path).expect("a list"), "bob");
        let told = remove(&path, "alice").expect_err("gone").to_string();
        assert!(told.contains("no user `alice`"), "{told}");
    }

    #[test]
    fn what_would_be_no_line_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["", "a:b", "#a", "a\nb"] {
            assert!(
                matches!(add(dir.path(), name, None, "x"), Err(CommandError::BadName(_))),
                "{name:?}"
            );
        }
        let refused = add(dir.path(), "a", Some(&["b:c"]), "x");
        assert!(matches!(refused, Err(CommandError::BadGroup(_))));
        assert!(!dir.path().join("users").exists());
        fs::write(dir.path().join("users"), "plain:password\n").expect("written");
        let told = add(dir.path(), "a", None, "x")
            .expect_err("no file of users")
            .to_string();
        assert!(told.contains("line 1") && !told.contains("password\n"), "{told}");
    }

    #[test]
    fn a_password_is_one_line() {
        let of = |text: &str| password_from(&mut text.as_bytes()).map(|secret| secret.expose().to_vec());
        assert_eq!(of(" a b \nc").expect("one"), b" a b ");
        assert_eq!(of("x\r\n").expect("one"), b"x");
        assert_eq!(of("x").expect("one"), b"x");
        assert!(matches!(of("\nx"), Err(CommandError::NoPassword)));
        assert!(matches!(of(""), Err(CommandError::NoPassword)));
    }
}
