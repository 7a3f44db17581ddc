//! What the binary says of a configuration, and what its flags do.

use std::net::TcpListener;
use std::process::Output;

use toml::{Table, Value};

use super::harness::{NodeProcess, program};
use super::nats::NatsServer;

/// `config check` of a file with these variables and flags.
fn check(file: &str, environment: &[(&str, &str)], flags: &[&str]) -> Output {
    let path = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(path.path(), file).expect("writes");
    let mut command = program();
    command.args(["config", "check", "--config"]).arg(path.path()).args(flags);
    command.envs(environment.iter().copied()).output().expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

const FILE: &str = "[node]\nid = \"of-the-file\"\n[http]\nworkers = 2\nbind = \"127.0.0.1:1\"\n\
    [[models]]\nname = \"demo\"\nmodel_path = \"models/demo\"\n";

#[test]
fn config_check_prints_the_effective_configuration_and_hides_secrets() {
    let environment = [
        ("INFERNO_NODE_ID", "of-the-environment"),
        ("INFERNO_HTTP_BIND", "127.0.0.1:2"),
        ("INFERNO_HTTP_API_KEYS", "[\"hush\"]"),
        ("INFERNO_API_KEY", "a client's"),
    ];
    let flags = ["--port", "3", "--set", "scheduler.ageing_s=3", "--bus-mode=off"];
    let output = check(FILE, &environment, &flags);
    let shown = text(&output.stdout);
    assert!(output.status.success() && !shown.contains("hush"), "{output:?}");
    let effective: Table = shown.parse().expect("TOML");
    let value = |section: &str, key: &str| effective[section][key].clone();
    assert_eq!(value("http", "workers"), Value::Integer(2), "of the file");
    assert_eq!(value("node", "id"), Value::from("of-the-environment"));
    assert_eq!(value("http", "bind"), Value::from("127.0.0.1:3"), "the port of the flag");
    assert_eq!(value("scheduler", "ageing_s"), Value::Float(3.0));
    assert_eq!(value("bus", "mode"), Value::from("off"));
    assert_eq!(value("node", "drain_timeout_s"), Value::Integer(30), "the default");
    assert_eq!(effective["models"][0]["name"], Value::from("demo"));
}

#[test]
fn config_check_names_every_key_at_fault_and_fails() {
    let file = format!("{FILE}[batcher]\nblock_sizes = 16\n[executor]\nthreads = \"all\"\n");
    let unknown = check(&file, &[("INFERNO_BUS_URI", "nats://here")], &["--set", "what.is=1"]);
    let said = text(&unknown.stderr);
    assert!(
        said.contains("INFERNO_BUS_URI: no such variable; the nearest is INFERNO_BUS_URL"),
        "{said}"
    );
    assert!(said.contains("--set what.is: no such key"), "{said}");
    let output = check(&file, &[], &[]);
    let said = text(&output.stderr);
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    for key in ["batcher.block_sizes", "executor.threads"] {
        assert!(said.contains(&format!("{key}: ")), "{key} in {said}");
    }
    let output = check(FILE, &[], &["--set", "http.workers=0", "--set", "node.id=a b"]);
    let said = text(&output.stderr);
    assert!(said.contains("http.workers: expected 1 to 256, got 0"), "{said}");
    assert!(said.contains("node.id: ") && !output.status.success(), "{said}");
}

#[test]
fn a_configuration_can_be_named_by_the_environment_or_be_flags_alone() {
    let command = |args: &[&str], environment: &[(&str, &str)]| {
        let mut command = program();
        command.args(["config", "check"]).args(args).envs(environment.iter().copied());
        text(&command.output().expect("it runs").stdout)
    };
    let shown = command(&[], &[("INFERNO_CONFIG", "config/demo.toml")]);
    assert!(shown.contains("mode = \"managed\""), "{shown}");
    let flags = ["models/My_Model.1/", "--device", "sim:0,sim:1"];
    let effective: Table = command(&flags, &[]).parse().expect("TOML");
    assert_eq!(effective["models"][0]["name"], Value::from("my-model-1"));
    let devices = ["sim:0", "sim:1"].map(Value::from).to_vec();
    assert_eq!(effective["executor"]["devices"], Value::Array(devices));
}

#[tokio::test]
async fn serve_takes_its_flags() {
    let nats = NatsServer::start();
    let mut command = program();
    command.args(["serve", "models/demo", "--name", "tiny", "--max-seq-len", "99"]);
    command.args([
        "--device",
        "sim:0",
        "--node-id",
        "flagged",
        "--host",
        "localhost",
        "--port",
        "0",
    ]);
    command.args(["--bus-mode", "external", "--bus-url", &nats.url()]);
    command.args(["--set", "batcher.max_batch_size=4", "--set", "node.drain_timeout_s=2"]);
    // A client's key that happens to be exported.
    command.env("INFERNO_API_KEY", "a client's");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut node = NodeProcess::run_in(dir, command);
    node.wait_ready();
    assert_eq!((node.id(), node.nats()), ("flagged".to_owned(), nats.url()));
    let (status, models) = node.get("/v1/models").await;
    assert_eq!((status, &models["data"][0]["id"]), (200, &"tiny".into()));
    assert_eq!(models["data"][0]["max_seq_len"], 99);
    let (_, health) = node.get("/v1/health").await;
    assert_eq!(
        (&health["node_id"], &health["devices"][0]["id"]),
        (&"flagged".into(), &"sim:0".into())
    );
    let log = node.log();
    assert!(log.contains("max_batch_size = 4") && log.contains("drain_timeout_s = 2"), "{log}");
    node.signal("-TERM");
    assert!(node.wait().success(), "{}", node.log());
}

#[tokio::test]
async fn with_no_word_of_a_bus_there_is_one_where_a_nats_server_is_installed() {
    let node = NodeProcess::start_sim(0, "");
    assert!(async_nats::connect(node.nats()).await.is_ok(), "its own");
    let without = NodeProcess::start_sim(0, "[bus.managed]\nbinary = \"no-such-nats-server\"\n");
    assert_eq!(without.get("/health/ready").await.0, 200);
    let log = without.log();
    assert_eq!(log.matches("no nats-server is installed; HTTP alone").count(), 1, "{log}");
}

#[test]
fn serve_binds_nothing_with_a_configuration_at_fault() {
    // Who tried to bind this port would speak of it.
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    let mut command = program();
    command.args(["serve", "models/demo", "--set", &format!("http.bind={address}")]);
    command.args(["--set", "bus.tls.ca=\"/does/not/exist.pem\"", "--set", "health.memory_limit=2"]);
    let output = command.output().expect("it runs");
    let said = text(&output.stderr);
    assert!(!output.status.success() && output.stdout.is_empty(), "{said}");
    for key in ["bus.tls.ca: ", "health.memory_limit: "] {
        assert!(said.contains(key), "{key} in {said}");
    }
    assert!(!said.contains(&address), "{said}");
}

#[test]
fn a_bus_that_cannot_start_is_named_and_nothing_else_is_said_to_have_ended() {
    let managed = ["bus.mode=managed", "bus.managed.binary=/bin/false"];
    let external = ["bus.mode=external", "bus.credentials_file=/dev/null"];
    for (settings, cause) in [(managed, "bus.managed.binary"), (external, "bus: ")] {
        let mut command = program();
        command.args(["serve", "models/demo", "--device", "sim:0", "--port", "0"]);
        command.args(settings.iter().flat_map(|setting| ["--set", setting]));
        let output = command.output().expect("it runs");
        let said = text(&output.stderr);
        assert!(!output.status.success() && output.stdout.is_empty(), "{said}");
        assert!(said.contains(cause) && !said.contains("has ended"), "{said}");
    }
}

#[test]
fn the_page_of_the_configuration_is_printed_by_the_program() {
    let output = program().args(["config", "docs"]).output().expect("it runs");
    assert_eq!(text(&output.stdout), inferno_node::config::page());
}

#[test]
fn a_model_beside_the_files_own_is_refused() {
    let output = check(FILE, &[], &["models/demo"]);
    let said = text(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("MODEL: the file has [[models]] of its own (demo)"), "{said}");
}

#[test]
fn a_node_that_nobody_could_ask_does_not_start() {
    let mut command = program();
    command.args(["serve", "models/demo", "--bus-mode", "off", "--set", "http.enabled=false"]);
    let output = command.output().expect("it runs");
    let said = text(&output.stderr);
    assert!(!output.status.success() && output.stdout.is_empty(), "{said}");
    assert!(said.contains("nobody could ask this node anything"), "{said}");
}
