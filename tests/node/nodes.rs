//! Who is there on one NATS: nodes in the bucket `inferno_nodes`, and the command that lists them.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, Context};
use serde_json::Value;

use super::harness::{NodeProcess, client, collect, external, program, request};
use super::nats::NatsServer;

const BUCKET: &str = "inferno_nodes";

/// The end of waiting for what takes a second or a few.
const PATIENCE: Duration = Duration::from_secs(30);

async fn jetstream_of(nats: &NatsServer) -> Context {
    jetstream::new(async_nats::connect(nats.url()).await.expect("connects"))
}

/// What a KV client finds under a node's id.
async fn entry(jetstream: &Context, id: &str) -> Option<Value> {
    let bucket = jetstream.get_key_value(BUCKET).await.ok()?;
    let value = bucket.get(id).await.ok()??;
    Some(serde_json::from_slice(&value).expect("JSON"))
}

async fn wait_for(jetstream: &Context, id: &str, is_so: impl Fn(Option<&Value>) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let entry = entry(jetstream, id).await;
        if is_so(entry.as_ref()) {
            return;
        }
        assert!(Instant::now() < deadline, "{id}: {entry:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn is_ready(entry: Option<&Value>) -> bool {
    entry.is_some_and(|entry| entry["ready"] == true)
}

/// Runs `nodes`; what it says on standard output and standard error, and whether it was content.
fn nodes(nats: &NatsServer, flags: &[&str]) -> (bool, String, String) {
    let said = program().args(["nodes", "--url", &nats.url()]).args(flags).output();
    let said = said.expect("the node's binary starts");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (said.status.success(), text(said.stdout), text(said.stderr))
}

#[tokio::test]
async fn a_node_is_there_when_it_is_ready_and_gone_when_its_drain_begins() {
    let nats = NatsServer::with_jetstream("");
    let jetstream = jetstream_of(&nats).await;
    let mut node = NodeProcess::start_sim(20_000, &external(&nats.url(), "one"));
    wait_for(&jetstream, "one", is_ready).await;
    let said = entry(&jetstream, "one").await.expect("is there");
    assert_eq!((&said["id"], &said["health"]), (&"one".into(), &"healthy".into()), "{said}");
    assert_eq!(said["addresses"][0], node.http());
    assert_eq!(
        (&said["models"][0]["name"], &said["models"][0]["state"]),
        (&"demo".into(), &"ready".into())
    );
    assert_eq!(
        (&said["devices"][0]["id"], &said["devices"][0]["up"]),
        (&"sim:0".into(), &true.into())
    );
    assert_eq!(said["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(
        (&said["free_blocks"], &said["devices"][0]["total_blocks"]),
        (&4096.into(), &4096.into())
    );
    let words = said["capabilities"].as_array().expect("a list");
    assert!(words.contains(&"supports_streaming".into()), "{said}");

    let bus = client(&nats.url()).await;
    let mut generation = bus.generate("demo", request(400, 1)).await.expect("accepted");
    wait_for(&jetstream, "one", |entry| entry.is_some_and(|entry| entry["running"] == 1)).await;
    node.signal("-TERM");
    wait_for(&jetstream, "one", |entry| entry.is_none()).await;
    // It is gone for who looks for nodes, and finishes what it accepted.
    assert_eq!(collect(&mut generation).await.expect("streams").0.len(), 400);
    assert!(node.wait().success());
    assert_eq!(entry(&jetstream, "one").await, None);
}

/// `nodes --watch --json`, ended with its test.
struct Watching {
    child: Child,
    lines: Receiver<String>,
}

impl Watching {
    fn start(nats: &NatsServer) -> Self {
        let mut command = program();
        command.args(["nodes", "--watch", "--json", "--url", &nats.url()]);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the node's binary starts");
        let said = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let (sender, lines) = channel();
        // Ends with the command.
        std::thread::spawn(move || {
            said.map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, lines }
    }

    /// The next state in which it sees a node that is not `before`.
    fn state_after(&mut self, id: &str, before: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).expect("goes on");
            let line: Value = serde_json::from_str(&line).expect("JSON");
            let state = line["state"].as_str().expect("is there").to_owned();
            if line["id"] == id && state != before {
                return state;
            }
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_node_that_is_killed_is_stale_and_then_gone_and_one_that_drains_is_gone() {
    let nats = NatsServer::with_jetstream("");
    let jetstream = jetstream_of(&nats).await;
    let mut node = NodeProcess::start_sim(0, &external(&nats.url(), "one"));
    let mut other = NodeProcess::start_sim(0, &external(&nats.url(), "two"));
    wait_for(&jetstream, "two", is_ready).await;
    let mut watching = Watching::start(&nats);
    assert_eq!(watching.state_after("two", ""), "live");
    other.signal("-TERM");
    assert_eq!(watching.state_after("two", "live"), "gone");
    node.signal("-KILL");
    node.wait();
    assert_eq!(watching.state_after("one", "live"), "stale");
    assert_eq!(watching.state_after("one", "stale"), "gone");
    other.wait();
}

#[tokio::test]
async fn a_bucket_that_is_lost_is_whole_again() {
    let mut nats = NatsServer::with_jetstream("");
    let jetstream = jetstream_of(&nats).await;
    let _nodes = ["one", "two"].map(|id| NodeProcess::start_sim(0, &external(&nats.url(), id)));
    for id in ["one", "two"] {
        wait_for(&jetstream, id, is_ready).await;
    }
    let mut watching = Watching::start(&nats);
    assert_eq!(watching.state_after("one", ""), "live");
    jetstream.delete_key_value(BUCKET).await.expect("is there");
    for id in ["one", "two"] {
        wait_for(&jetstream, id, is_ready).await;
    }
    // The bucket is in memory: a server that starts again has none.
    nats.kill();
    nats.start_again();
    for id in ["one", "two"] {
        wait_for(&jetstream, id, is_ready).await;
    }
    let (_, text, _) = nodes(&nats, &["--json"]);
    assert_eq!(text.lines().count(), 2, "{text}");
}

#[tokio::test]
async fn a_second_node_with_the_id_of_one_that_lives_does_not_start_and_names_it() {
    let nats = NatsServer::with_jetstream("");
    let jetstream = jetstream_of(&nats).await;
    let node = NodeProcess::start_sim(0, &external(&nats.url(), "one"));
    wait_for(&jetstream, "one", is_ready).await;
    let mut second = NodeProcess::spawn_sim(0, &external(&nats.url(), "one"));
    assert!(!second.wait().success());
    let log = second.log();
    assert!(log.contains("another node with the id") && log.contains(&node.http()), "{log}");
    assert!(!log.contains("has ended"), "{log}");
    let said = entry(&jetstream, "one").await.expect("is there");
    assert_eq!(said["addresses"][0], node.http(), "it is the first one's still");
    assert_eq!(node.get("/health/ready").await.0, 200);
}

#[tokio::test]
async fn a_node_that_was_killed_starts_again_under_its_id() {
    let nats = NatsServer::with_jetstream("");
    let jetstream = jetstream_of(&nats).await;
    let mut node = NodeProcess::start_sim(0, &external(&nats.url(), "one"));
    wait_for(&jetstream, "one", is_ready).await;
    node.signal("-KILL");
    node.wait();
    let node = NodeProcess::start_sim(0, &external(&nats.url(), "one"));
    wait_for(&jetstream, "one", |entry| {
        is_ready(entry) && entry.is_some_and(|entry| entry["addresses"][0] == node.http())
    })
    .await;
}

#[tokio::test]
async fn a_node_whose_id_was_taken_while_it_stood_still_ends_and_names_the_other() {
    let nats = NatsServer::with_jetstream("");
    let jetstream = jetstream_of(&nats).await;
    let mut frozen = NodeProcess::start_sim(0, &external(&nats.url(), "one"));
    wait_for(&jetstream, "one", is_ready).await;
    frozen.signal("-STOP");
    let node = NodeProcess::start_sim(0, &external(&nats.url(), "one"));
    frozen.signal("-CONT");
    assert!(!frozen.wait().success());
    assert!(frozen.log().contains(&format!("at {}", node.http())), "{}", frozen.log());
    assert_eq!(node.get("/health/ready").await.0, 200);
    wait_for(&jetstream, "one", |entry| {
        entry.is_some_and(|entry| entry["addresses"][0] == node.http())
    })
    .await;
}

#[tokio::test]
async fn without_jetstream_discovery_is_off_by_name_and_all_else_works() {
    let nats = NatsServer::start();
    let node = NodeProcess::start_sim(0, &external(&nats.url(), "one"));
    let bus = client(&nats.url()).await;
    let mut generation = bus.generate("demo", request(8, 1)).await.expect("accepted");
    assert_eq!(collect(&mut generation).await.expect("streams").0.len(), 8);
    let said = node.said("discovery is off");
    assert_eq!(said.len(), 1, "{}", node.log());
    assert_eq!(said[0]["fields"]["fault"], "NATS has no JetStream");
    let (is_content, text, why) = nodes(&nats, &[]);
    assert_eq!((is_content, text.as_str()), (false, ""));
    assert!(why.contains("discovery is off: NATS has no JetStream"), "{why}");
}

#[tokio::test]
async fn a_jetstream_that_is_mute_holds_no_node_up() {
    let nats = NatsServer::with_jetstream(
        "authorization { users: [\n\
         { user: n, password: n, permissions: { publish: { deny: [\"$JS.>\", \"$KV.>\"] } } }\n\
         ] }\n",
    );
    let section = format!(
        "[bus]\nmode = \"external\"\nurl = {:?}\nuser = \"n\"\npassword = \"n\"\n[node]\nid = \"one\"\n",
        nats.url()
    );
    let mut node = NodeProcess::start_sim(0, &section);
    let (status, _) = node.get("/health/ready").await;
    assert_eq!(status, 200, "{}", node.log());
    assert_eq!(node.said("discovery is off").len(), 1, "{}", node.log());
    node.signal("-TERM");
    assert!(node.wait().success());
}

#[tokio::test]
async fn the_nodes_are_a_table_for_people_and_lines_for_programs() {
    let nats = NatsServer::with_jetstream("");
    let (is_content, text, _) = nodes(&nats, &[]);
    assert_eq!((is_content, text.as_str()), (true, "no nodes\n"));
    assert_eq!(nodes(&nats, &["--json"]), (true, String::new(), String::new()));
    let jetstream = jetstream_of(&nats).await;
    let two = ["one", "two"].map(|id| NodeProcess::start_sim(0, &external(&nats.url(), id)));
    for id in ["one", "two"] {
        wait_for(&jetstream, id, is_ready).await;
    }
    let (is_content, text, why) = nodes(&nats, &[]);
    assert!(is_content, "{why}");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].starts_with("NODE  STATE  HEALTH"), "{text}");
    for (line, node) in lines[1..].iter().zip(&two) {
        let cells: Vec<&str> = line.split_whitespace().collect();
        let id = node.id();
        assert_eq!(cells[..6], [id.as_str(), "live", "healthy", "demo", "sim:0", "0/0"], "{text}");
        assert_eq!(cells[6..9], ["4096", "of", "4096"], "{text}");
        assert!(cells.contains(&node.http().as_str()), "{text}");
    }
    let (_, text, _) = nodes(&nats, &["--json"]);
    let lines: Vec<Value> = super::harness::json_lines(&text);
    let ids: Vec<_> = lines.iter().map(|line| line["id"].as_str().expect("is there")).collect();
    assert_eq!(ids, ["one", "two"]);
    assert!(lines.iter().all(|line| line["state"] == "live" && line["age_ms"].is_u64()), "{text}");
}

#[tokio::test]
async fn nodes_that_say_the_same_have_one_digest_and_others_have_another() {
    let nats = NatsServer::with_jetstream("");
    let jetstream = jetstream_of(&nats).await;
    let sections = [
        ("plain", ""),
        ("small", "[admission]\nmax_requests = 7\n"),
        ("cool", "[admission]\ntemperature = 0.5\n"),
    ];
    let nodes = sections.map(|(id, admission)| {
        NodeProcess::start_sim(1_000, &format!("{}{admission}", external(&nats.url(), id)))
    });
    let mut digests = Vec::new();
    for node in &nodes {
        wait_for(&jetstream, &node.id(), is_ready).await;
        let said = entry(&jetstream, &node.id()).await.expect("is there");
        let digest = |value: &Value| value.as_str().expect("a digest").to_owned();
        digests.push((digest(&said["digest"]), digest(&said["models"][0]["digest"])));
    }
    assert_eq!(digests[0], digests[1], "how many it takes changes nothing of what it says");
    assert!(digests[0].0 != digests[2].0 && digests[0].1 != digests[2].1, "{digests:?}");
}
