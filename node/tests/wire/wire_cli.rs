//! `lontra pub` and `lontra sub` as their users run them: against three nodes, against mosquitto's clients, and against
//! servers that refuse, break off or talk nonsense.

use crate::support::cluster::{Cluster, LONTRA, shared};
use crate::support::codec::Version;
use crate::support::{SOON, eventually, mosquitto};
use std::process::{ExitStatus, Stdio};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::timeout;

// ---- with mosquitto's clients, on other nodes ----

#[tokio::test]
async fn every_qos_and_version_reaches_mosquitto_sub() {
    let cluster = shared();
    for (index, version) in ["mqttv31", "mqttv311", "mqttv5"].into_iter().enumerate() {
        for qos in 0..=2 {
            let topic = format!("to-mosquitto/{version}/{qos}");
            let mut sub = mosquitto::Sub::start(cluster.mqtt(0), Version::V5, &topic, qos).await;
            let qos_text = qos.to_string();
            let options = ["-V", version, "-t", &topic, "-q", &qos_text, "-m", "a message"];
            publish(cluster, (index + 1) % 3, &options).await;
            assert_eq!(sub.message().await, format!("{qos} {topic} a message"), "{version}");
        }
    }
}

#[tokio::test]
async fn every_qos_and_version_comes_from_mosquitto_pub() {
    let cluster = shared();
    for (index, version) in ["mqttv31", "mqttv311", "mqttv5"].into_iter().enumerate() {
        for qos in 0..=2 {
            let topic = format!("from-mosquitto/{version}/{qos}");
            let qos_text = qos.to_string();
            let format = "%q %t %p";
            let options = ["-V", version, "-t", &topic, "-q", &qos_text, "-F", format, "-C", "1"];
            let sub = Sub::start(cluster, index, &options).await;
            mosquitto::publish(cluster.mqtt((index + 1) % 3), Version::V5, &topic, "a message", qos).await;
            assert_eq!(
                sub.ended_well().await,
                format!("{qos} {topic} a message\n"),
                "{version}"
            );
        }
    }
}

#[tokio::test]
async fn properties_are_printed_as_mosquitto_sub_prints_them() {
    let cluster = shared();
    let topic = "properties/a";
    let options = ["-t", topic, "-q", "1", "-C", "1", "-F", "%J"];
    let ours = Sub::start(cluster, 1, &options).await;
    let (host, port) = host_and_port(cluster, 1);
    // stdbuf: through a pipe, C would keep the lines.
    let mut theirs = Command::new("stdbuf")
        .args(["-oL", "mosquitto_sub", "-d", "-h", host, "-p", port, "-V", "mqttv5"])
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("mosquitto_sub (package mosquitto-clients) and stdbuf");
    let mut lines = BufReader::new(theirs.stdout.take().expect("piped")).lines();
    line(&mut lines, "Subscribed").await;

    let payload = r#"{"degrees": 21.50, "of": "a \"lamp\""}"#;
    let mut command = vec!["-t", topic, "-q", "1", "-m", payload];
    for property in PROPERTIES {
        command.extend(["-D", "publish"]);
        command.extend(property.split(' '));
    }
    publish(cluster, 2, &command).await;
    let theirs = json(&line(&mut lines, "{").await);
    let ours = json(&ours.ended_well().await);
    assert_eq!(ours, theirs);
    assert_eq!(ours["properties"]["content-type"], "text/plain");
    assert_eq!(ours["properties"]["user-properties"]["colour"], "red");
    assert_eq!(ours["payload"]["degrees"], 21.5);
}

const PROPERTIES: [&str; 5] = [
    "content-type text/plain",
    "response-topic answers/a",
    "correlation-data abc",
    "payload-format-indicator 1",
    "user-property colour red",
];

/// Without what differs from one process to another.
fn json(text: &str) -> serde_json::Value {
    let mut json: serde_json::Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    let members = json.as_object_mut().expect("an object");
    assert!(
        members.remove("tst").is_some() && members.remove("mid").is_some(),
        "{text}"
    );
    json
}

// ---- what is published ----

#[tokio::test]
async fn lines_of_standard_input_arrive_in_order() {
    let cluster = shared();
    for qos in ["0", "1", "2"] {
        let topic = format!("lines/{qos}");
        let count = LINES.to_string();
        let sub = Sub::start(cluster, 1, &["-t", &topic, "-q", qos, "-C", &count]).await;
        let lines: String = (0..LINES).map(|n| format!("line {n}\n")).collect();
        let options = ["-t", &topic, "-l", "-q", qos];
        run_with_input("pub", cluster, 2, &options, lines.as_bytes())
            .await
            .well();
        assert_eq!(sub.ended_well().await, lines, "QoS {qos}");
    }
}

#[tokio::test]
async fn files_standard_input_and_repeats_are_published() {
    let cluster = shared();
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("payload");
    std::fs::write(&file, b"from a\nfile").expect("written");
    let file = file.to_str().expect("text");
    let options = ["-t", "sources/#", "-q", "1", "-v", "-C", "5"];
    let sub = Sub::start(cluster, 0, &options).await;
    publish(cluster, 1, &["-t", "sources/f", "-q", "1", "-f", file]).await;
    let options = ["-t", "sources/s", "-q", "1", "-s"];
    run_with_input("pub", cluster, 2, &options, b"from\nstdin").await.well();
    let options = ["-q", "1", "-m", "-5", "--repeat", "2", "--repeat-delay", "0.01"];
    publish(cluster, 1, &[&["-t", "sources/m"][..], &options].concat()).await;
    publish(cluster, 1, &["-t", "sources/n", "-q", "2", "-n"]).await;
    let expected = "sources/f from a\nfile\nsources/s from\nstdin\nsources/m -5\nsources/m -5\nsources/n (null)\n";
    assert_eq!(sub.ended_well().await, expected);
}

#[tokio::test]
async fn retained_messages_are_set_read_and_removed() {
    let cluster = shared();
    for name in ["retained/a", "retained/b", "retained/c"] {
        publish(cluster, 0, &["-t", name, "-q", "1", "-r", "-m", name]).await;
    }
    let read = ["-t", "retained/#", "-q", "1"];
    let done = run("sub", cluster, 1, &[&read[..], &["-C", "3", "-F", "%r %p"]].concat()).await;
    assert_eq!(sorted(&done.well()), ["1 retained/a", "1 retained/b", "1 retained/c"]);

    publish(cluster, 2, &["-t", "retained/a", "-q", "1", "-r", "-n"]).await;
    let options = ["--remove-retained", "-T", "retained/c", "-C", "1"];
    let done = run("sub", cluster, 0, &[&read[..], &options].concat()).await;
    assert_eq!(done.well(), "retained/b\n");
    let done = run("sub", cluster, 1, &[&read[..], &["-C", "1"]].concat()).await;
    assert_eq!(done.well(), "retained/c\n");

    // -R hides it, --retained-only ends at the first that is not.
    let fresh = Sub::start(cluster, 2, &[&read[..], &["-R", "-C", "1"]].concat()).await;
    let only = Sub::start(cluster, 2, &[&read[..], &["--retained-only"]].concat()).await;
    eventually("the retained message is read", SOON, || async {
        only.printed().contains("retained/c\n").then_some(())
    })
    .await;
    publish(cluster, 0, &["-t", "retained/d", "-q", "1", "-m", "live"]).await;
    assert_eq!(fresh.ended_well().await, "live\n");
    assert_eq!(only.ended_well().await, "retained/c\n");
}

// ---- sessions ----

#[tokio::test]
async fn a_kept_session_gives_what_was_not_printed_to_the_next_run() {
    let cluster = shared();
    for qos in ["1", "2"] {
        let (topic, id) = (format!("kept/{qos}"), format!("kept-{qos}"));
        let session = ["-t", &topic, "-q", qos, "-c", "-i", &id];
        run("sub", cluster, 0, &[&session[..], &["-E"]].concat()).await.well();
        let lines: String = (0..9).map(|n| format!("{n}\n")).collect();
        run_with_input("pub", cluster, 1, &["-t", &topic, "-q", "2", "-l"], lines.as_bytes())
            .await
            .well();
        let mut got = String::new();
        for node in 0..3 {
            got += &run("sub", cluster, node, &[&session[..], &["-C", "3"]].concat())
                .await
                .well();
        }
        assert_eq!(got, lines, "QoS {qos}: each once, in order");
    }
}

#[tokio::test]
async fn an_unsubscribed_filter_brings_nothing_more() {
    let cluster = shared();
    let session = ["-q", "1", "-c", "-i", "unsubscribed"];
    let both = ["-t", "unsubscribed/a", "-t", "unsubscribed/b", "-E"];
    run("sub", cluster, 0, &[&session[..], &both].concat()).await.well();
    run("sub", cluster, 1, &[&session[..], &["-U", "unsubscribed/a"]].concat())
        .await
        .well();
    publish(cluster, 2, &["-t", "unsubscribed/a", "-q", "1", "-m", "a"]).await;
    publish(cluster, 2, &["-t", "unsubscribed/b", "-q", "1", "-m", "b"]).await;
    let done = run(
        "sub",
        cluster,
        2,
        &[&session[..], &["-t", "unsubscribed/b", "-C", "1"]].concat(),
    )
    .await;
    assert_eq!(done.well(), "b\n");
}

#[tokio::test]
async fn a_killed_subscriber_leaves_its_will_and_a_stopped_one_does_not() {
    let cluster = shared();
    let will = ["--will-topic", "will/of", "--will-payload", "gone", "--will-qos", "1"];
    let watch = ["-t", "will/#", "-q", "1", "-v", "-C", "2"];
    let watcher = Sub::start(cluster, 0, &watch).await;
    let stopped = Sub::start(cluster, 1, &[&["-t", "will-a"][..], &will].concat()).await;
    stopped.signal(rustix::process::Signal::TERM);
    stopped.ended_well().await;
    // After its DISCONNECT: had there been a will, it would come before this.
    publish(cluster, 2, &["-t", "will/fence", "-q", "1", "-m", "here"]).await;
    eventually("the fence is printed", SOON, || async {
        (!watcher.printed().is_empty()).then_some(())
    })
    .await;
    let killed = Sub::start(cluster, 2, &[&["-t", "will-b"][..], &will].concat()).await;
    killed.signal(rustix::process::Signal::KILL);
    assert_eq!(watcher.ended_well().await, "will/fence here\nwill/of gone\n");
}

// ---- how runs end ----

#[tokio::test]
async fn a_run_without_messages_times_out_with_27() {
    let done = run("sub", shared(), 0, &["-t", "silence", "-W", "1"]).await;
    assert_eq!((done.code(), done.out.as_str()), (Some(27), ""));
    assert!(done.err.contains("Timed out"), "{}", done.err);
}

#[tokio::test]
async fn a_reader_that_has_enough_ends_it_without_a_complaint_and_loses_nothing() {
    let cluster = shared();
    let session = ["-t", "enough", "-q", "1", "-c", "-i", "enough"];
    run("sub", cluster, 0, &[&session[..], &["-E"]].concat()).await.well();
    run_with_input("pub", cluster, 1, &["-t", "enough", "-q", "1", "-l"], b"a\nb\n")
        .await
        .well();
    let (host, port) = host_and_port(cluster, 2);
    let mut unread = lontra(&[&["sub", "-h", host, "-p", port], &session[..]].concat());
    unread.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = unread.spawn().expect("lontra starts");
    drop(child.stdout.take());
    let ended = timeout(SOON, child.wait_with_output())
        .await
        .expect("it ends")
        .expect("it ran");
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
    let done = run("sub", cluster, 0, &[&session[..], &["-C", "2"]].concat()).await;
    assert_eq!(done.well(), "a\nb\n");
}

#[tokio::test]
async fn a_refused_connection_says_what_to_do() {
    let free = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = free.local_addr().expect("bound").port().to_string();
    drop(free);
    for command in [["pub", "-m", "x"], ["sub", "-W", "9"]] {
        let done = end(
            lontra(&[&command[..], &["-h", "127.0.0.1", "-p", &port, "-t", "a"]].concat()),
            b"",
        )
        .await;
        assert_eq!(done.code(), Some(1));
        let told = format!("lontra: connection refused by 127.0.0.1:{port}: ");
        assert!(
            done.err.starts_with(&told) && done.err.contains("is a node running?"),
            "{}",
            done.err
        );
        assert_eq!(done.err.lines().count(), 1, "{}", done.err);
    }
}

#[tokio::test]
async fn a_servers_refusal_is_named_and_is_the_exit_code() {
    for (version, connack, code, told) in [
        ("mqttv5", &[0x20, 3, 0, 0x87, 0][..], 0x87, "0x87 not authorized"),
        ("mqttv311", &[0x20, 2, 0, 5], 5, "0x87 not authorized"),
        ("mqttv31", &[0x20, 2, 0, 4], 4, "0x86 bad user name or password"),
        ("mqttv311", &[], 1, "closed the connection without saying why"),
        ("mqttv5", &[0x20, 2, 0, 0], 1, "the server broke the protocol"),
        (
            "mqttv5",
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            1,
            "does an MQTT broker listen there?",
        ),
        (
            "mqttv5",
            &[0x20, 3, 0, 0, 0, 0xE0, 1, 0x8B],
            1,
            "0x8B server shutting down",
        ),
    ] {
        let port = Scripted::listen(connack, &[]).await;
        let done = end(
            lontra(&["sub", "-h", "127.0.0.1", "-p", &port, "-t", "a", "-V", version]),
            b"",
        )
        .await;
        assert_eq!(done.code(), Some(code), "{version}: {}", done.err);
        assert!(done.err.contains(told), "{version}: {}", done.err);
        assert_eq!(done.err.lines().count(), 1, "{}", done.err);
    }
}

#[tokio::test]
async fn a_message_that_the_server_refuses_is_a_failure() {
    let port = Scripted::listen(&[0x20, 3, 0, 0, 0], &[0x40, 3, 0, 1, 0x97]).await;
    let done = end(
        lontra(&["pub", "-h", "127.0.0.1", "-p", &port, "-t", "a", "-m", "x", "-q", "1"]),
        b"",
    )
    .await;
    assert_eq!(done.code(), Some(1), "{}", done.err);
    assert!(
        done.err.contains("1 of 1 messages were refused: 0x97 quota exceeded"),
        "{}",
        done.err
    );
}

#[tokio::test]
async fn what_cannot_work_is_refused_before_anything_is_sent() {
    for (line, told) in [
        ("pub -t a/# -m x", "wildcard in a topic name"),
        ("pub -t a -m x -V 311 -D publish content-type b", "for MQTT 5 only"),
        ("pub -t a -m x -V 311 -x 5", "for MQTT 5 only"),
        ("pub -t a -m x -D will will-delay-interval 3", "needs --will-topic"),
        (
            "pub -t a -m x -D publish content-kind b",
            "content-kind is not a property",
        ),
        ("pub -t a -m x -f y", "cannot be used with"),
        ("sub -t a -c", "--id"),
        ("sub -t a -F %k", "%k is not known"),
        ("sub -t a/#/b", "# is not alone"),
        ("sub -t a -q 3", "QoS is 0, 1 or 2"),
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let done = end(lontra(&words), b"").await;
        assert_eq!(done.code(), Some(2), "{line}: {}", done.err);
        assert!(done.err.contains(told), "{line}: {}", done.err);
    }
    let done = end(lontra(&["pub", "-t", "a", "-f", "/no/such/file"]), b"").await;
    assert_eq!(done.code(), Some(1));
    assert!(done.err.contains("cannot read /no/such/file"), "{}", done.err);
}

#[tokio::test]
async fn help_shows_examples_and_completions_are_scripts() {
    for (command, example) in [
        ("pub", "lontra pub -t greeting -m hello"),
        ("sub", "lontra sub -t 'sensors/#' -v"),
    ] {
        let done = end(lontra(&[command, "--help"]), b"").await;
        assert!(done.well().contains(example));
    }
    let script = end(lontra(&["completions", "bash"]), b"").await.well();
    let checked = end(Command::new("bash").arg("-n"), script.as_bytes()).await;
    checked.well();
    assert!(script.contains("--retained-only"));
}

// ---- running it ----

/// How a run ended.
struct Done {
    status: ExitStatus,
    out: String,
    err: String,
}

impl Done {
    fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// What it printed, if it ended well.
    fn well(self) -> String {
        assert!(self.status.success(), "{}: {}", self.status, self.err);
        self.out
    }
}

/// `lontra sub` in the background, subscribed.
struct Sub {
    child: Child,
    out: std::path::PathBuf,
    _dir: tempfile::TempDir,
    err: Lines<BufReader<ChildStderr>>,
}

impl Sub {
    async fn start(cluster: &Cluster, node: usize, options: &[&str]) -> Sub {
        // A file: it can be read while it grows, and is never full.
        let dir = tempfile::tempdir().expect("a directory");
        let out = dir.path().join("out");
        let mut child = at("sub", cluster, node, options)
            .arg("-d")
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&out).expect("a file"))
            .stderr(Stdio::piped())
            .spawn()
            .expect("lontra starts");
        let mut err = BufReader::new(child.stderr.take().expect("piped")).lines();
        line(&mut err, "lontra: subscribed to").await;
        Sub {
            child,
            out,
            _dir: dir,
            err,
        }
    }

    fn printed(&self) -> String {
        std::fs::read_to_string(&self.out).expect("text")
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = self.child.id().expect("it runs") as i32;
        let pid = rustix::process::Pid::from_raw(pid).expect("not 0");
        rustix::process::kill_process(pid, signal).expect("a signal");
    }

    /// Waits for its end; what it printed.
    async fn ended_well(mut self) -> String {
        let ended = async {
            // Its standard error must not fill up.
            let mut told = Vec::new();
            while let Some(line) = self.err.next_line().await.expect("text") {
                told.push(line);
            }
            (self.child.wait().await.expect("a child"), told)
        };
        let (status, told) = timeout(SOON, ended).await.expect("lontra sub ends");
        assert!(status.success(), "{status}: {told:#?}");
        self.printed()
    }
}

async fn publish(cluster: &Cluster, node: usize, options: &[&str]) {
    run("pub", cluster, node, options).await.well();
}

async fn run(command: &str, cluster: &Cluster, node: usize, options: &[&str]) -> Done {
    run_with_input(command, cluster, node, options, b"").await
}

async fn run_with_input(command: &str, cluster: &Cluster, node: usize, options: &[&str], input: &[u8]) -> Done {
    end(&mut at(command, cluster, node, options), input).await
}

async fn end(mut command: impl std::borrow::BorrowMut<Command>, input: &[u8]) -> Done {
    let mut child = command
        .borrow_mut()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("it starts");
    let mut stdin = child.stdin.take().expect("piped");
    let ended = async {
        let feed = async {
            // Who does not want it closes the pipe.
            let _ = stdin.write_all(input).await;
            drop(stdin);
        };
        tokio::join!(feed, child.wait_with_output()).1
    };
    let output = timeout(SOON, ended).await.expect("it ends").expect("it ran");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    Done {
        status: output.status,
        out: text(output.stdout),
        err: text(output.stderr),
    }
}

fn at(command: &str, cluster: &Cluster, node: usize, options: &[&str]) -> Command {
    let (host, port) = host_and_port(cluster, node);
    lontra(&[&[command, "-h", host, "-p", port], options].concat())
}

fn lontra(words: &[&str]) -> Command {
    let mut command = Command::new(LONTRA);
    command.args(words).kill_on_drop(true);
    command
}

fn host_and_port(cluster: &Cluster, node: usize) -> (&str, &str) {
    cluster.mqtt(node).rsplit_once(':').expect("host:port")
}

/// The next line that begins so.
async fn line<R: tokio::io::AsyncBufRead + Unpin>(lines: &mut Lines<R>, prefix: &str) -> String {
    let found = async {
        let mut before = Vec::new();
        while let Some(line) = lines.next_line().await.expect("text") {
            if line.starts_with(prefix) {
                return line;
            }
            before.push(line);
        }
        panic!("no {prefix:?} in {before:#?}");
    };
    timeout(SOON, found)
        .await
        .unwrap_or_else(|_| panic!("no {prefix:?} within {SOON:?}"))
}

fn sorted(lines: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = lines.lines().collect();
    lines.sort_unstable();
    lines
}

/// A server that says what it was told to: first after CONNECT, then after the next packet; then it closes.
struct Scripted;

impl Scripted {
    async fn listen(first: &'static [u8], then: &'static [u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.expect("a client");
            for answer in [first, then] {
                let mut packet = [0; 1024];
                let read = socket.read(&mut packet).await.expect("a packet");
                if read == 0 || answer.is_empty() {
                    break;
                }
                socket.write_all(answer).await.expect("written");
            }
            // What comes after the answer is read, so that the end is an end and not a reset.
            if !first.is_empty() {
                let mut rest = Vec::new();
                socket.shutdown().await.expect("a connection");
                let _ = socket.read_to_end(&mut rest).await;
            }
        });
        port.to_string()
    }
}

/// Several times the Receive Maximum of either side.
const LINES: u32 = 1000;
