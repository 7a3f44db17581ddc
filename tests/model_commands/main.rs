//! Goal: `models random` and `models inspect` do what docs/models.md says, and refuse what they cannot do. Method: the built binary, with
//! the checkpoints of this repository; a random one is only begun here (whole ones are written by unit tests, with a small body).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use inferno_node::config::Config;
use inferno_node::engine::Engine;
use inferno_node::gpu;
use inferno_node::memory::{ByteSize, KvDtype, PoolSize};
use inferno_node::models::ModelSpec;
use serde_json::Value;

/// Until a debug build on a loaded machine has begun to write, or has ended.
const PATIENCE: Duration = Duration::from_secs(60);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_inferno-node"));
    command.args(words).current_dir(root()).stdin(Stdio::null());
    command
}

fn run(words: &[&str]) -> Output {
    command(words).output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn refused(words: &[&str], parts: &[&str]) {
    let output = run(words);
    let error = text(&output.stderr);
    assert!(!output.status.success(), "{words:?}");
    for part in parts {
        assert!(error.contains(part), "{part} in {error}");
    }
}

fn inspect_json(path: &str) -> Value {
    let output = run(&["models", "inspect", "--json", path]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

/// The processor's part; a machine may have GPUs too.
fn cpu(report: &Value) -> &Value {
    let devices = report["devices"].as_array().expect("a list");
    devices.iter().find(|device| device["device"] == "cpu:0").expect("every machine has one")
}

/// A copy of a fixture that may be broken.
fn copy(fixture: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a temporary directory");
    for entry in fs::read_dir(root().join("tests/fixtures").join(fixture)).expect("reads") {
        let entry = entry.expect("reads");
        fs::copy(entry.path(), copy.path().join(entry.file_name())).expect("copies");
    }
    copy
}

fn path(directory: &Path) -> &str {
    directory.to_str().expect("our paths are UTF-8")
}

#[test]
fn the_page_of_models_shows_both_commands() {
    let page = fs::read_to_string(root().join("docs/models.md")).expect("reads");
    for line in [
        "inferno-node models random --like llama-3.2-1b",
        "inferno-node models inspect models/demo",
        "--layers",
        "--json",
    ] {
        assert!(page.contains(line), "docs/models.md lacks {line}");
    }
    let help = text(&run(&["models", "random", "--help"]).stdout);
    for like in ["llama-3.1-8b", "llama-3.2-1b", "llama-2-7b"] {
        assert!(help.contains(like) && page.contains(like), "{like} in {help}");
    }
}

#[test]
fn a_gguf_file_is_described() {
    let output = run(&["models", "inspect", "tests/fixtures/gguf/llama/model.gguf"]);
    let report = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    for part in ["llama/model.gguf", "llama: 2 layers", "288 ids", "end tokens     1, 5"] {
        assert!(report.contains(part), "{part} in {report}");
    }
}

#[test]
fn checkpoints_in_every_packing_are_described_with_their_formats() {
    let fixtures = ["formats", "gguf"].map(|kind| root().join("tests/fixtures").join(kind));
    let mut seen = 0;
    for entry in fixtures.iter().flat_map(|folder| fs::read_dir(folder).expect("reads")) {
        let mut path = entry.expect("reads").path();
        if path.join("model.gguf").exists() {
            path.push("model.gguf");
        } else if !path.join("config.json").exists() {
            continue;
        }
        let report = inspect_json(path.to_str().expect("UTF-8"));
        let formats = report["formats"].as_array().expect("a list");
        let names = formats.iter().filter_map(|format| format[0].as_str());
        let is_quantized =
            |name: &str| ["fp8", "int8", "int4", "mxfp4"].iter().any(|kind| name.starts_with(kind));
        assert!(names.into_iter().any(is_quantized), "{path:?}: {formats:?}");
        seen += 1;
    }
    assert!(seen >= 20, "{seen}");
}

#[test]
fn the_demo_model_is_described() {
    let output = run(&["models", "inspect", "models/demo"]);
    let report = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    for part in [
        "llama: ",
        "embedding",
        "attention",
        "MLP",
        "norms",
        "lm_head",
        "bytes per token",
        "cpu:0: ",
    ] {
        assert!(report.contains(part), "{part} in {report}");
    }
    let why = gpu::why_none().map_or_else(String::new, |reason| format!("no GPU: {reason}\n"));
    assert_eq!(text(&output.stderr), why);
    let json = inspect_json("models/demo");
    assert_eq!(json["has_chat_template"], true);
    assert!(json["tokenizer_ids"].as_u64() > Some(0));
    assert_eq!(cpu(&json)["fits"], true);
}

#[test]
fn the_prompt_of_messages_is_shown_with_its_tokens() {
    use std::io::Write as _;
    let mut child = command(&["models", "prompt", "models/demo"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let questions = "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}\n{\"text\": \"Hi\"}\n\n{\"x\": 1}\n{";
    child.stdin.take().expect("piped").write_all(questions.as_bytes()).expect("takes it");
    let output = child.wait_with_output().expect("it ends");
    let answers = text(&output.stdout);
    let answers: Vec<Value> =
        answers.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(answers.len(), 4);
    assert!(answers[0]["prompt"].as_str().is_some_and(|prompt| prompt.contains("Hi")));
    assert!(answers[0]["token_ids"].as_array().is_some_and(|ids| ids.len() > 3));
    assert!(answers[1]["token_ids"].as_array().is_some_and(|ids| !ids.is_empty()));
    assert!(answers[2]["error"].as_str().is_some_and(|error| error.starts_with("x: ")));
    assert!(answers[3]["error"].is_string());
}

#[test]
fn what_stands_in_place_of_a_file_is_said() {
    let broken = copy("llama3-tiny");
    let file = |name: &str| broken.path().join(name);
    let inspect = |parts: &[&str]| refused(&["models", "inspect", path(broken.path())], parts);
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    fs::write(file("model.safetensors"), pointer).expect("writes");
    inspect(&["model.safetensors: a pointer of git LFS"]);
    fs::remove_file(file("model.safetensors")).expect("removes");
    std::os::unix::fs::symlink("../blobs/gone", file("model.safetensors")).expect("links");
    inspect(&["model.safetensors: a link to ../blobs/gone, where nothing is"]);
    fs::remove_file(file("config.json")).expect("removes");
    let fifo = Command::new("mkfifo").arg(file("config.json")).status().expect("mkfifo runs");
    assert!(fifo.success());
    inspect(&["config.json: not a regular file"]);
}

#[tokio::test]
async fn the_numbers_are_what_loading_takes() {
    let fixture = root().join("tests/fixtures/llama32-tiny-bf16");
    for (kv_dtype, word) in [(KvDtype::Auto, "auto"), (KvDtype::Fp8, "fp8")] {
        let output = run(&["models", "inspect", "--json", "--kv-dtype", word, path(&fixture)]);
        let json: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        let mut config = Config::library("demo", root().join("models/demo"));
        config.executor.devices = vec!["cpu:0".to_owned()];
        config.executor.threads = 1;
        config.executor.memory_pool_size = Some(PoolSize::Bytes(ByteSize(1 << 30)));
        config.executor.kv_cache_size = Some(ByteSize(4 << 20));
        config.executor.kv_dtype = kv_dtype;
        let engine = Engine::new(config).await.expect("the engine starts");
        let loaded = engine.load_model(ModelSpec::new("tiny", &fixture)).await.expect("it loads");
        engine.shutdown().await.expect("it ends");
        assert_eq!(cpu(&json)["weight_bytes"], loaded.weight_bytes);
        assert_eq!(json["max_seq_len"], loaded.max_seq_len);
        let per_token = json["kv_bytes_per_token"].as_u64().expect("a number");
        assert_eq!(loaded.kv_bytes, (4 << 20) / (16 * per_token) * 16 * per_token);
    }
}

#[test]
fn broken_checkpoints_give_the_errors_of_loading() {
    let broken = copy("llama3-tiny");
    let weights = broken.path().join("model.safetensors");
    let bytes = fs::read(&weights).expect("reads");
    fs::write(&weights, &bytes[..bytes.len() - 10]).expect("writes");
    refused(&["models", "inspect", path(broken.path())], &["model.safetensors: ", "data"]);
    fs::write(&weights, &bytes).expect("writes");
    let config_path = broken.path().join("config.json");
    let config = fs::read_to_string(&config_path).expect("reads");
    let wider = config.replace("\"intermediate_size\": 136", "\"intermediate_size\": 144");
    assert_ne!(wider, config);
    fs::write(&config_path, wider).expect("writes");
    let parts = ["model.safetensors: model.layers.0.mlp.gate_proj.weight: shape [136, 128]"];
    refused(&["models", "inspect", path(broken.path())], &parts);
    fs::remove_file(&config_path).expect("removes");
    refused(&["models", "inspect", path(broken.path())], &["config.json: the file does not exist"]);
    refused(&["models", "inspect", "no-such-org/no-such-model"], &["nothing is downloaded"]);
}

#[test]
fn what_cannot_be_written_is_refused_and_nothing_is_touched() {
    let there = copy("llama3-tiny");
    let random = ["models", "random", "--like", "llama-3.2-1b"];
    let with = |more: &[&str], parts: &[&str]| refused(&[&random[..], more].concat(), parts);
    let before = fs::read(there.path().join("config.json")).expect("reads");
    with(&[path(there.path())], &["not empty", "--force"]);
    with(
        &["--force", "--layers", "17", path(there.path())],
        &["--layers: expected 1 to 16, got 17"],
    );
    let file = there.path().join("config.json");
    with(&[path(&file)], &["config.json: "]);
    assert_eq!(fs::read(file).expect("reads"), before);
    refused(&["models", "random", "--like", "gpt-5", "x"], &["llama-3.1-8b", "llama-2-7b"]);
}

/// A run of the 1B that has begun to write its weights.
fn begun(directory: &Path) -> std::process::Child {
    let words = ["models", "random", "--like", "llama-3.2-1b", path(directory)];
    let mut child = command(&words).stderr(Stdio::null()).spawn().expect("the binary runs");
    let since = Instant::now();
    let partial = directory.join(".inferno-partial/model.safetensors");
    while !partial.exists() {
        let ended = child.try_wait().expect("it is our child");
        assert!(ended.is_none() && since.elapsed() < PATIENCE, "{ended:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

fn big_place() -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
    let directory = root.path().join("new");
    (root, directory)
}

#[test]
fn an_interrupted_run_leaves_nothing() {
    let (_root, directory) = big_place();
    let mut child = begun(&directory);
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(kill.expect("kill runs").success());
    assert!(!child.wait().expect("it is our child").success());
    assert!(!directory.exists());
}

#[test]
fn a_killed_run_leaves_nothing_that_looks_whole() {
    let (_root, directory) = big_place();
    let mut child = begun(&directory);
    child.kill().expect("it is our child");
    child.wait().expect("it is our child");
    let names: Vec<_> = fs::read_dir(&directory)
        .expect("reads")
        .map(|entry| entry.expect("reads").file_name())
        .collect();
    assert_eq!(names, [".inferno-partial"]);
    refused(&["models", "inspect", path(&directory)], &["config.json: the file does not exist"]);
}
