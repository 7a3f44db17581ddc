//! A chat template that does not end, and large bodies: what they may not hold up are other requests and the end of the node.

use std::io::Write as _;
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::harness::NodeProcess;

/// With one conversation only: a template that never ends is found when the model is loaded.
const LOOPS: &str = "{% if messages[0].content == 'Hi' %}\
    {% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}{% endif %}";

/// The section of a model like the demo model, whose template loops; its files are in `dir`.
fn looping_model(dir: &Path) -> String {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    for file in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    {
        std::fs::copy(demo.join(file), dir.join(file)).expect("copies");
    }
    std::fs::write(dir.join("chat_template.jinja"), LOOPS).expect("writes");
    format!("[[models]]\nname = \"loops\"\nload_format = \"dummy\"\nmodel_path = {dir:?}\n")
}

fn chat() -> Value {
    json!({"model": "loops", "messages": [{"role": "user", "content": "Hi"}]})
}

#[tokio::test]
async fn a_looping_template_is_refused_and_holds_up_neither_others_nor_the_end() {
    let dir = tempfile::tempdir().expect("a directory");
    let sections = looping_model(dir.path())
        + "[node]\ndrain_timeout_s = 1\n[admission]\ntokenizer_threads = 1\n";
    let mut node = NodeProcess::start_sim(0, &sections);
    let body = chat();
    let chats = join_all((0..8).map(|_| node.post("/v1/chat/completions", &body)));
    let body = json!({"model": "demo", "prompt": "Hello", "max_tokens": 8});
    let (refused, served) = tokio::join!(chats, node.post("/v1/completions", &body));
    assert_eq!(served.status().as_u16(), 200);
    for refused in refused {
        assert_eq!(refused.status().as_u16(), 400);
        let error: Value = refused.json().await.expect("JSON");
        assert_eq!(error["error"]["param"], "messages", "{error}");
        assert!(
            error["error"]["message"].as_str().is_some_and(|text| text.contains("instructions"))
        );
    }
    // Now it ends with more of them waiting than it can render before its deadline, and with bodies half parsed and half sent.
    let post = |path: &str, body: &Value| {
        reqwest::Client::new().post(format!("{}{path}", node.http())).json(body).send()
    };
    let many: serde_json::Map<_, _> =
        (0..150_000).map(|at| (format!("key-{at}"), json!(1))).collect();
    let many = Value::from(many);
    let asked = (0..10).map(|_| post("/v1/completions", &many));
    let asked = asked.chain((0..500).map(|_| post("/v1/chat/completions", &chat())));
    let asked = tokio::spawn(join_all(asked.collect::<Vec<_>>()));
    let mut half = TcpStream::connect(node.http().trim_start_matches("http://")).expect("connects");
    let head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n{\"prompt\": \"";
    half.write_all(head.as_bytes()).expect("takes it");
    half.write_all(&[b'x'; 100_000]).expect("takes it");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let began = Instant::now();
    node.signal("-TERM");
    tokio::task::spawn_blocking(move || node.wait()).await.expect("it ends");
    // One second of drain, ten for all that is cut; the rest is for a busy machine.
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert_eq!(asked.await.expect("none is silent").len(), 510);
}
