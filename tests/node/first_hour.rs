//! What a newcomer sees: the lines before "ready", the commands in them, the log, and commands that find the node.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::{Value, json};

use super::harness::{ModelCopy, NodeProcess, json_lines, program};
use super::nats::NatsServer;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Both ends of a terminal.
fn terminal() -> (File, File) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&master).expect("ours");
    unlockpt(&master).expect("ours");
    let name = ptsname(&master, Vec::new()).expect("a name");
    let path = Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()));
    let other = File::options().read(true).write(true).open(path).expect("opens");
    (File::from(master), other)
}

/// A node whose standard error is a terminal; what it showed there, line by line, to the one that begins so.
fn shown_to(
    last: &str,
    runtime_dir: &Path,
    model: &str,
    more: &[&str],
) -> (NodeProcess, Vec<String>) {
    let (mut screen, terminal) = terminal();
    let mut command = program();
    command.args(["serve", model, "--device", "sim:0", "--port", "0"]).args(more);
    command.env("XDG_RUNTIME_DIR", runtime_dir).env_remove("NO_COLOR");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut node = NodeProcess::run_with(dir, command, terminal);
    node.wait_ready();
    let mut shown = Vec::new();
    let mut buffer = [0; 4096];
    while !text(&shown).contains(last) {
        let length = screen.read(&mut buffer).expect("it shows something");
        shown.extend_from_slice(&buffer[..length]);
    }
    // The node would be hung up on.
    std::mem::forget(screen);
    let lines = text(&shown).lines().map(str::to_owned).collect();
    (node, lines)
}

/// The same of the demo model, to the line before it was ready.
fn on_a_terminal(runtime_dir: &Path, more: &[&str]) -> (NodeProcess, Vec<String>) {
    shown_to("  config  ", runtime_dir, "models/demo", more)
}

/// The line after the one that begins so.
fn after<'a>(lines: &'a [String], start: &str) -> &'a str {
    let at = lines.iter().position(|line| line.starts_with(start));
    lines[at.unwrap_or_else(|| panic!("{start} in {lines:#?}")) + 1].trim()
}

#[tokio::test]
async fn a_terminal_shows_ten_lines_at_most_with_commands_that_work() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (node, lines) = on_a_terminal(dir.path(), &[]);
    assert!(lines.len() <= 10, "{lines:#?}");
    assert!(lines.iter().any(|line| line.contains("demo, context")), "{lines:#?}");
    assert!(lines.iter().any(|line| line == "  device  sim:0"), "{lines:#?}");
    let curl = after(&lines, "  http    ").strip_prefix("curl ").expect("a curl");
    let url = curl.split(' ').next().expect("an address");
    let body = curl.split("-d '").nth(1).and_then(|rest| rest.split('\'').next()).expect("a body");
    let request = reqwest::Client::new().post(url).header("content-type", "application/json");
    let answer = request.body(body.to_owned()).send().await.expect("answers");
    assert_eq!(answer.status().as_u16(), 200, "{curl}");
    assert_eq!(url, format!("{}/v1/completions", node.http()));
    let mut generate = Command::new("sh");
    generate.args(["-c", after(&lines, "  nats    ")]).env("XDG_RUNTIME_DIR", dir.path());
    let output = generate.current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("it runs");
    assert!(output.status.success() && !output.stdout.is_empty(), "{output:?}");
}

#[test]
fn on_a_terminal_the_warnings_of_a_start_come_after_what_people_need() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let copy = ModelCopy::named("bare", dir.path())
        .edit("tokenizer_config.json", |config| {
            config.as_object_mut().expect("an object").remove("chat_template");
        })
        .edit("generation_config.json", |config| config["suppress_tokens"] = json!([1]));
    let weights = "model.safetensors";
    std::fs::copy(format!("models/demo/{weights}"), copy.folder.join(weights)).expect("copied");
    let model = copy.folder.to_str().expect("UTF-8");
    let (_node, lines) = shown_to("max_seq_len", dir.path(), model, &["--bus-mode", "off"]);
    let at = |part: &str| lines.iter().position(|line| line.contains(part));
    let (config, template, rules) = (at("  config  "), at("no chat template"), at("not honoured"));
    assert!(config.is_some_and(|at| at < 10), "{lines:#?}");
    assert!(config < template && config < rules, "{lines:#?}");
}

#[tokio::test]
async fn with_keys_the_shown_command_says_where_they_go() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let keys = dir.path().join("keys");
    std::fs::write(&keys, "hush-hush\n").expect("writes");
    let keys = keys.to_str().expect("UTF-8");
    let (node, lines) = on_a_terminal(dir.path(), &["--bus-mode", "off", "--api-key-file", keys]);
    let curl = after(&lines, "  http    ");
    assert!(curl.contains("-H 'Authorization: Bearer KEY'"), "{curl}");
    assert!(!lines.iter().any(|line| line.contains("hush")), "{lines:#?}");
    assert_eq!(node.get("/v1/models").await.0, 401);
    let url = format!("{}/v1/models", node.http());
    let request = reqwest::Client::new().get(url).bearer_auth("hush-hush");
    assert_eq!(request.send().await.expect("answers").status().as_u16(), 200);
}

#[tokio::test]
async fn every_request_has_one_json_line_and_its_words_have_none() {
    let node = NodeProcess::start_sim(0, "[bus]\nmode = \"off\"\n");
    let ask = async |body: Value| node.post("/v1/completions", &body).await.status().as_u16();
    let good =
        json!({"model": "demo", "prompt": "Hushed words", "max_tokens": 3, "request_id": "good"});
    assert_eq!(ask(good).await, 200);
    let two = json!({"model": "demo", "prompt": "Hushed words", "n": 2, "request_id": "two", "max_tokens": 2});
    assert_eq!(ask(two).await, 200);
    let hot =
        json!({"model": "demo", "prompt": "Hushed words", "temperature": 9, "request_id": "hot"});
    assert_eq!(ask(hot).await, 400);
    let unknown = json!({"model": "demo", "prompt": "Hushed words", "promt": "Hushed words"});
    assert_eq!(ask(unknown).await, 400);
    assert_eq!(ask(json!({"model": "other", "prompt": "Hushed words"})).await, 404);
    let ended = node.said("ended");
    let ids: Vec<&Value> = ended.iter().map(|line| &line["fields"]["request_id"]).collect();
    assert_eq!(ids, ["good", "two"]);
    let fields = &ended[0]["fields"];
    assert_eq!(
        (&fields["door"], &fields["model"], &fields["reason"]),
        (&json!("http"), &json!("demo"), &json!("length"))
    );
    assert_eq!(
        (&fields["completion_tokens"], &ended[1]["fields"]["completion_tokens"]),
        (&json!(3), &json!(4))
    );
    for name in ["prompt_tokens", "queue_ms", "ttft_ms", "total_ms"] {
        assert!(fields[name].is_number(), "{name} in {fields}");
    }
    let refused = node.said("refused");
    let why = |line: &Value| (line["fields"]["kind"].clone(), line["fields"]["param"].clone());
    let why: Vec<(Value, Value)> = refused.iter().map(why).collect();
    let expected = [("invalid", "temperature"), ("invalid", "promt"), ("not_found", "model")];
    assert_eq!(why, expected.map(|(kind, param)| (json!(kind), json!(param))));
    assert_eq!(refused[0]["fields"]["request_id"], "hot");
    assert!(!node.log().contains("Hushed"), "{}", node.log());
}

#[tokio::test]
async fn refusals_and_garbage_do_not_fill_the_log_without_bound() {
    let node = NodeProcess::start_sim(0, "[bus]\nmode = \"off\"\n");
    let address = node.http().replace("http://", "");
    for _ in 0..200 {
        let mut socket = TcpStream::connect(&address).expect("connects");
        socket.write_all(b"\x16\x03\x01 garbage\r\n\r\n").expect("writes");
        let mut answer = Vec::new();
        // A reset is an answer, too.
        let _ = socket.read_to_end(&mut answer);
    }
    assert!(json_lines(&node.log()).len() < 20, "{}", node.log());
    let client = reqwest::Client::new();
    for _ in 0..500 {
        let request = client.post(format!("{}/v1/completions", node.http())).json(&json!({}));
        assert_eq!(request.send().await.expect("answers").status().as_u16(), 400);
    }
    let left_out = || {
        let lines = node.said("refused and left out of this log");
        lines.iter().map(|line| line["fields"]["count"].as_u64().expect("a number")).sum::<u64>()
    };
    let all = |_: &Value| node.said("refused").len() as u64 + left_out() == 500;
    node.wait_health("all refusals counted", all).await;
    assert!(left_out() > 0, "{}", node.log());
}

#[test]
fn what_ends_a_start_is_a_json_line_too() {
    let mut command = program();
    command.args(["serve", "models/demo", "--set", "http.workers=0", "--set", "node.id=a b"]);
    let output = command.output().expect("it runs");
    assert!(!output.status.success());
    let lines = json_lines(&text(&output.stderr));
    let messages: Vec<&str> =
        lines.iter().filter_map(|line| line["fields"]["message"].as_str()).collect();
    assert_eq!(messages.len(), 2, "{lines:#?}");
    assert!(messages[1].starts_with("http.workers: expected 1 to 256"), "{messages:?}");
    let mut command = program();
    command.args(["serve", "no-such/folder", "--device", "sim:0", "--port", "0", "--bus-mode=off"]);
    let output = command.output().expect("it runs");
    let lines = json_lines(&text(&output.stderr));
    let last =
        lines.last().expect("a line")["fields"]["message"].as_str().expect("text").to_owned();
    assert!(last.starts_with("model \"folder\": "), "{last}");
}

#[tokio::test]
async fn the_ready_line_does_not_show_a_nats_that_is_away_as_if_it_were_there() {
    let server = NatsServer::later();
    let bus = format!("[bus]\nmode = \"external\"\nurl = \"{}\"\n", server.url());
    let node = NodeProcess::start_sim(0, &bus);
    let ready = node.ready_line();
    let expected = format!(" (NATS at {} not reachable yet: Connection refused", server.url());
    assert!(ready.contains(&expected) && !ready.contains("nats="), "{ready}");
}

#[tokio::test]
async fn health_is_the_same_everywhere_from_the_first_moment() {
    let node = NodeProcess::start_sim(0, "[bus]\nmode = \"off\"\n");
    // At once: the health actor has another second until it looks.
    assert_eq!(node.metric(&["inferno_health_status{"]).await, 0.0);
    assert_eq!(node.get("/health/ready").await.0, 200);
    assert_eq!(node.get("/v1/health").await.1["status"], "healthy");
    assert_eq!(node.metric(&["inferno_health_check_status{", "model"]).await, 0.0);
}

/// `generate` with these words, and this on its standard input.
fn generate(runtime_dir: &Path, words: &[&str], input: &str) -> Output {
    let mut command = program();
    command.arg("generate").args(words).env("XDG_RUNTIME_DIR", runtime_dir);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it runs");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("writes");
    child.wait_with_output().expect("it ends")
}

#[tokio::test]
async fn generate_finds_its_node_reads_its_prompt_and_says_which_parameter_is_wrong() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut command = program();
    command.args(["serve", "models/demo", "--device", "sim:0", "--port", "0"]);
    command.args(["--bus-mode", "managed", "--set", "bus.prefix=own.v1"]);
    command.env("XDG_RUNTIME_DIR", dir.path());
    let mut node = NodeProcess::run_in(tempfile::tempdir().expect("a directory"), command);
    node.wait_ready();
    let output = generate(dir.path(), &["--max-tokens", "4"], "Once upon a time\n");
    assert!(output.status.success() && !output.stdout.is_empty(), "{output:?}");
    assert!(text(&output.stderr).contains(&node.id()), "{output:?}");
    let output = generate(dir.path(), &["-m", "demo", "-", "--temperature", "9"], "Hi");
    let why = text(&output.stderr);
    assert!(
        !output.status.success() && why.contains("temperature: expected 0 to 2, got 9"),
        "{why}"
    );
    let output = generate(dir.path(), &["-m", "other", "Hi"], "");
    assert!(text(&output.stderr).contains("nobody listens on own.v1.generate.other"), "{output:?}");
    node.signal("-TERM");
    assert!(node.wait().success(), "{}", node.log());
    let left = std::fs::read_dir(dir.path().join("inferno-node")).expect("is there").count();
    assert_eq!(left, 0, "its file has gone with it");
}

#[test]
fn generate_without_any_node_says_so() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let output = generate(dir.path(), &["Hi"], "");
    assert!(text(&output.stderr).contains("--model: expected a model's alias"), "{output:?}");
    let output = generate(dir.path(), &["-m", "demo", "--url", "nats://127.0.0.1:1", "Hi"], "");
    assert!(text(&output.stderr).contains("cannot connect to NATS"), "{output:?}");
}
