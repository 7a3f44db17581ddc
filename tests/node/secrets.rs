//! Secrets are planted in every way that there is to give one, right or wrong; then everything that the program says is searched.

use std::path::Path;

use serde_json::json;

use super::harness::{NodeProcess, program};

/// Part of every planted secret.
const HUSH: &str = "HUSH700770077007";

fn silent(bytes: &[u8], what: &str) {
    let text = String::from_utf8_lossy(bytes);
    assert!(!text.contains(HUSH) && !text.contains("700770077007"), "{what} says {text}");
}

/// Runs the program to its end, and searches what it said.
fn run(words: &[&str], environment: &[(&str, &str)]) {
    let mut command = program();
    command.args(words).envs(environment.iter().copied());
    let output = command.output().expect("it runs");
    let what = format!("{words:?} with {environment:?}");
    silent(&output.stdout, &what);
    silent(&output.stderr, &what);
}

#[test]
fn no_fault_of_a_configuration_shows_a_secret() {
    let keys = [
        ("http.api_keys", "INFERNO_HTTP_API_KEYS"),
        ("bus.password", "INFERNO_BUS_PASSWORD"),
        ("bus.token", "INFERNO_BUS_TOKEN"),
        ("bus.url", "INFERNO_BUS_URL"),
    ];
    // Beside each a fault that ends the command, so that `serve` serves nothing.
    let fault = ["--set", "http.workers=0"];
    for (key, variable) in keys {
        for value in [
            "HUSH",
            "[\"HUSH\"",
            "\"HUSH",
            "[1, \"HUSH\"]",
            "nats://me:HUSH@host:1",
            "700770077007",
            "{HUSH=1}",
        ] {
            // A URL's secret is its login.
            if key == "bus.url" && !value.contains('@') {
                continue;
            }
            let value = value.replace("HUSH", HUSH);
            let (set, near) = (format!("{key}={value}"), format!("{key} {value}"));
            for command in [&["config", "check"][..], &["serve"]] {
                let model = [command, &["models/demo"], &fault].concat();
                run(&model, &[(variable, &value)]);
                run(&model, &[(&format!("{variable}S"), &value)]);
                run(&[&model[..], &["--set", &set]].concat(), &[]);
                run(&[&model[..], &["--set", &near]].concat(), &[]);
            }
            let dir = tempfile::tempdir().expect("a temporary directory");
            let file = dir.path().join("node.toml");
            let (section, name) = key.split_once('.').expect("a section");
            for line in [
                format!("{name} = {value}"),
                format!("{name} = \"{value}\""),
                format!("{name} = [\"{HUSH}"),
            ] {
                std::fs::write(&file, format!("[{section}]\n{line}\n")).expect("writes");
                run(&["config", "check", "--config", path(&file)], &[]);
                run(&["serve", "--config", path(&file)], &[]);
            }
        }
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("our paths are UTF-8")
}

#[test]
fn a_command_that_cannot_log_in_does_not_say_with_what_it_tried() {
    for words in [["--password", HUSH, "--user", "me"], ["--token", HUSH, "--timeout", "1"]] {
        let to = ["generate", "--model", "demo", "--url", "nats://127.0.0.1:1", "Hi"];
        run(&[&to[..], &words].concat(), &[]);
    }
    let url = format!("nats://me:{HUSH}@127.0.0.1:1");
    run(&["generate", "--model", "demo", "--url", &url, "Hi"], &[]);
    run(&["generate", "--model", "demo", "--url", &format!("nats://me:{HUSH}@:x y"), "Hi"], &[]);
    run(
        &["generate", "--user", "me", "Hi"],
        &[("INFERNO_BUS_PASSWORD", HUSH), ("INFERNO_BUS_TOKEN", HUSH)],
    );
}

#[tokio::test]
async fn a_node_at_its_most_talkative_says_none_of_its_secrets() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("keys");
    std::fs::write(&file, format!("of-the-file-{HUSH}\n")).expect("writes");
    let sections = format!(
        "[node]\nlog = \"trace\"\n[bus]\nmode = \"managed\"\nuser = \"me\"\npassword = \"{HUSH}\"\n"
    );
    let mut config = format!("{sections}[[models]]\nmodel_path = \"models/demo\"\n");
    config.push_str(&format!("[executor]\ndevices = [\"sim:0\"]\n[http]\napi_keys = \"{HUSH}\"\n"));
    let node_file = dir.path().join("node.toml");
    std::fs::write(&node_file, config).expect("writes");
    let mut command = program();
    command.args([
        "serve",
        "--config",
        path(&node_file),
        "--port",
        "0",
        "--api-key-file",
        path(&file),
    ]);
    let mut node = NodeProcess::run_in(tempfile::tempdir().expect("a directory"), command);
    node.wait_ready();
    let body = json!({"model": "demo", "prompt": "Hi", "max_tokens": 2});
    let keys = [HUSH.to_owned(), format!("of-the-file-{HUSH}"), format!("wrong-{HUSH}")];
    let mut statuses = Vec::new();
    for key in &keys {
        for path in ["/v1/completions", "/v1/no-such-path"] {
            let request = reqwest::Client::new().post(format!("{}{path}", node.http()));
            let answer = request.bearer_auth(key).json(&body).send().await.expect("answers");
            statuses.push(answer.status().as_u16());
            silent(format!("{:?}", answer.headers()).as_bytes(), "a header");
            silent(&answer.bytes().await.expect("a body"), "an answer");
        }
    }
    assert_eq!(statuses, [200, 404, 200, 404, 401, 401]);
    for path in ["/v1/health", "/metrics", "/health/ready"] {
        let answer = reqwest::get(format!("{}{path}", node.http())).await.expect("answers");
        silent(&answer.bytes().await.expect("a body"), path);
    }
    let wrong =
        async_nats::ConnectOptions::with_user_and_password("me".into(), format!("wrong-{HUSH}"));
    assert!(wrong.connect(node.nats()).await.is_err());
    let right = async_nats::ConnectOptions::with_user_and_password("me".into(), HUSH.into());
    assert!(right.connect(node.nats()).await.is_ok());
    silent(node.ready_line().as_bytes(), "the ready line");
    node.signal("-TERM");
    assert!(node.wait().success());
    let log = node.log();
    assert!(log.contains("\"TRACE\""), "it says what it can: {log}");
    silent(log.as_bytes(), "the log");
}
