//! The node and Inferno's load balancers: registration with each of them, whatever it answers, and the port where they ask.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::harness::{CPU, NodeProcess};
use super::load_balancer::{Behaviour, LoadBalancer};

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(30);

const ID: &str = "backend-n1";

/// A node without a bus that registers with these; `more` are further keys of `[registrar]`.
fn sections(load_balancers: &[String], more: &str) -> String {
    format!(
        "[bus]\nmode = \"off\"\n[node]\nid = \"n1\"\n\
         [registrar]\nload_balancers = {load_balancers:?}\nmetrics_bind = \"127.0.0.1:0\"\n{more}\n"
    )
}

/// The value of a counter or gauge for one load balancer.
async fn metric(node: &NodeProcess, name: &str, of: &LoadBalancer) -> f64 {
    node.metric(&[name, &format!("load_balancer=\"{}\"", of.address())]).await
}

/// Where the metrics port is, by what the load balancer was told.
fn metrics_port(node: &Value) -> String {
    format!("http://127.0.0.1:{}", node["metrics_port"].as_u64().expect("a port"))
}

async fn get(url: &str) -> (u16, String) {
    let answer = reqwest::get(url).await.expect("the port answers");
    (answer.status().as_u16(), answer.text().await.expect("text"))
}

#[tokio::test]
async fn a_node_registers_with_load_balancers_that_start_in_any_order() {
    let before = LoadBalancer::start(Behaviour::Inferno).await;
    // A loopback address of this process alone, so that nobody takes its port before it comes up.
    let [.., high, low] = std::process::id().to_be_bytes();
    let ip = std::net::Ipv4Addr::new(127, 66, high, low.clamp(1, 254));
    let places = [before.address(), ip.to_string()];
    let node = NodeProcess::start_sim(0, &sections(&places, ""));
    let told = before.wait_for(ID).await;
    assert_eq!(told["address"], node.http().trim_start_matches("http://"));
    assert_eq!((&told["node_type"], &told["is_load_balancer"]), (&json!("backend"), &json!(false)));
    assert!(told["last_updated"].as_u64() > Some(1_600_000_000), "{told}");
    let later = LoadBalancer::start_at((ip, 6_100).into(), Behaviour::Inferno).await;
    assert_eq!(later.wait_for(ID).await["id"], ID);
    for load_balancer in [&before, &later] {
        let host = load_balancer.came()[0].host.clone();
        assert_eq!(host, load_balancer.address());
    }
}

#[tokio::test]
async fn capabilities_say_what_the_node_can() {
    let load_balancer = LoadBalancer::start(Behaviour::Inferno).await;
    let more = "capabilities = [\"rack_7\"]\n[batcher]\nmax_batch_size = 8";
    let _node = NodeProcess::start_sim(0, &sections(&[load_balancer.address()], more));
    let told = load_balancer.wait_for(ID).await;
    let words: Vec<&str> =
        told["capabilities"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    for word in [
        "inference",
        "model_type_llama",
        "max_batch_size_8",
        "gpu_count_0",
        "supports_streaming",
        "attention_backend_flash",
        "rack_7",
    ] {
        assert!(words.contains(&word), "{word} in {words:?}");
    }
    let max = words.iter().find_map(|word| word.strip_prefix("max_seq_len_"));
    assert!(max.is_some_and(|max| max.parse::<u32>().is_ok_and(|max| max > 0)), "{words:?}");
}

#[tokio::test]
async fn a_node_that_was_forgotten_is_registered_again() {
    let load_balancer = LoadBalancer::start(Behaviour::Inferno).await;
    let node =
        NodeProcess::start_sim(0, &sections(&[load_balancer.address()], "interval_ms = 400"));
    for _ in 0..2 {
        load_balancer.wait_for(ID).await;
        let asked = load_balancer.came().len();
        load_balancer.wait_until_asked(asked + 1).await;
        load_balancer.forget();
    }
    load_balancer.wait_for(ID).await;
    let deadline = Instant::now() + PATIENCE;
    while metric(&node, "inferno_load_balancer_registrations_total", &load_balancer).await < 3.0 {
        assert!(Instant::now() < deadline, "{}", node.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(metric(&node, "inferno_load_balancer_failures_total", &load_balancer).await, 0.0);
    assert!(node.log().contains("had forgotten this node"), "{}", node.log());
}

#[tokio::test]
async fn an_id_that_exists_already_is_registered() {
    let exists = Behaviour::Answer(500, r#"{"error":"Registration failed: n1 already exists"}"#);
    let load_balancer = LoadBalancer::start(exists).await;
    let node = NodeProcess::start_sim(0, &sections(&[load_balancer.address()], ""));
    load_balancer.wait_until_asked(2).await;
    assert_eq!(metric(&node, "inferno_load_balancer_registered", &load_balancer).await, 1.0);
    assert_eq!(metric(&node, "inferno_load_balancer_failures_total", &load_balancer).await, 0.0);
    // What it has may be of an earlier process, so it is told what is true now.
    let actions = load_balancer.came().into_iter().map(|came| came.body["action"].clone());
    assert_eq!(actions.take(2).collect::<Vec<_>>(), ["register", "update"]);
}

#[tokio::test]
async fn whatever_a_load_balancer_answers_it_is_asked_again_until_it_registers() {
    let behaviours = [
        Behaviour::Answer(500, r#"{"error":"disk full"}"#),
        Behaviour::Answer(401, r#"{"error":"Authentication required"}"#),
        Behaviour::Answer(413, r#"{"error":"Payload too large"}"#),
        Behaviour::Answer(200, r#"{"status":"received"}"#),
        Behaviour::HalfABody,
        Behaviour::Nothing,
        Behaviour::Hangup,
    ];
    let mut load_balancers = Vec::new();
    for behaviour in behaviours {
        load_balancers.push(LoadBalancer::start(behaviour).await);
    }
    let places: Vec<String> = load_balancers.iter().map(LoadBalancer::address).collect();
    let node = NodeProcess::start_sim(0, &sections(&places, "interval_ms = 1000"));
    for load_balancer in &load_balancers {
        load_balancer.wait_until_asked(3).await;
        assert_eq!(metric(&node, "inferno_load_balancer_registered", load_balancer).await, 0.0);
        let failures = metric(&node, "inferno_load_balancer_failures_total", load_balancer).await;
        assert!(failures >= 2.0, "{failures}");
    }
    // None of them keeps the node from its work.
    let body = json!({"model": "demo", "prompt": "Hello", "max_tokens": 2});
    assert_eq!(node.post("/v1/completions", &body).await.status().as_u16(), 200);
    for load_balancer in &load_balancers {
        load_balancer.behave(Behaviour::Inferno);
        load_balancer.wait_for(ID).await;
    }
    let said = node.said("not registered");
    assert_eq!(said.len(), load_balancers.len(), "a reason is said once: {said:?}");
}

#[tokio::test]
async fn a_load_balancer_that_knows_the_short_form_alone_gets_it() {
    let load_balancer = LoadBalancer::start(Behaviour::ShortFormOnly).await;
    let node = NodeProcess::start_sim(0, &sections(&[load_balancer.address()], ""));
    let told = load_balancer.wait_for(ID).await;
    let port = told["metrics_port"].as_u64().expect("a port");
    let address = node.http().trim_start_matches("http://").to_owned();
    assert_eq!(told, json!({"id": ID, "address": address, "metrics_port": port}));
}

#[tokio::test]
async fn the_secret_is_sent_from_the_file() {
    let load_balancer = LoadBalancer::start(Behaviour::Inferno).await;
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), "hush-7\n").expect("writes");
    let more = format!("secret_file = {:?}", file.path());
    let node = NodeProcess::start_sim(0, &sections(&[load_balancer.address()], &more));
    load_balancer.wait_for(ID).await;
    let sent = load_balancer.came()[0].authorization.clone();
    assert_eq!(sent.as_deref(), Some("Bearer hush-7"));
    assert!(!node.log().contains("hush-7"));
}

#[tokio::test]
async fn the_secret_is_sent_from_the_environment() {
    let load_balancer = LoadBalancer::start(Behaviour::Inferno).await;
    let sections = sections(&[load_balancer.address()], "");
    let variables = [("INFERNO_REGISTRAR_SECRET", "hush-8")];
    let mut node = NodeProcess::spawn_with_variables(&variables, &sections);
    node.wait_ready();
    load_balancer.wait_for(ID).await;
    let sent = load_balancer.came()[0].authorization.clone();
    assert_eq!(sent.as_deref(), Some("Bearer hush-8"));
    assert!(!node.log().contains("hush-8"));
}

#[tokio::test]
async fn names_of_hosts_become_ips() {
    let load_balancer = LoadBalancer::start(Behaviour::Inferno).await;
    let place = format!("localhost:{}", load_balancer.port());
    let more = "address = \"localhost\"\nid = \"backend-by-name\"";
    let node = NodeProcess::start_sim(0, &sections(std::slice::from_ref(&place), more));
    let told = load_balancer.wait_for("backend-by-name").await;
    assert_eq!(told["address"], node.http().trim_start_matches("http://"));
    assert_eq!(load_balancer.came()[0].host, place);
}

#[tokio::test]
async fn the_metrics_port_says_how_the_node_is_and_whom_load_balancers_know() {
    let load_balancer = LoadBalancer::start(Behaviour::Inferno).await;
    let node = NodeProcess::start_sim(0, &sections(&[load_balancer.address()], ""));
    let port = metrics_port(&load_balancer.wait_for(ID).await);
    let body = json!({"model": "demo", "prompt": "Hello", "max_tokens": 4});
    assert_eq!(node.post("/v1/completions", &body).await.status().as_u16(), 200);
    let deadline = Instant::now() + PATIENCE;
    // The answer comes before the batcher's own next look.
    let vitals = loop {
        let (status, vitals) = get(&format!("{port}/metrics")).await;
        let vitals: Value = serde_json::from_str(&vitals).expect("JSON");
        assert_eq!((status, &vitals["ready"]), (200, &json!(true)));
        if vitals["active_requests"] == 0 {
            break vitals;
        }
        assert!(Instant::now() < deadline, "{vitals}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(vitals["error_rate"], 0.0);
    for (name, most) in [("memory_usage", 100.0), ("avg_response_time_ms", 60_000.0)] {
        let value = vitals[name].as_f64().unwrap_or_else(|| panic!("{name} in {vitals}"));
        assert!((0.0..=most).contains(&value), "{name}: {value}");
    }
    let (_, telemetry) = get(&format!("{port}/telemetry")).await;
    assert!(telemetry.contains("inferno_load_balancer_registered{"), "{telemetry}");
    let (status, health) = get(&format!("{port}/health")).await;
    let health: Value = serde_json::from_str(&health).expect("JSON");
    assert_eq!((status, &health["node_id"]), (200, &json!("n1")));
    // They come with the answer that the load balancer has given, or is about to.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (_, peers) = get(&format!("{port}/peers")).await;
        let peers: Value = serde_json::from_str(&peers).expect("JSON");
        let ids: Vec<&str> = peers
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|peer| peer["id"].as_str())
            .collect();
        if ids == [ID, "proxy-1"] {
            break;
        }
        assert!(Instant::now() < deadline, "{ids:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(get(&format!("{port}/v1/completions")).await.0, 404);
    let head = reqwest::Client::new().head(format!("{port}/metrics")).send().await;
    assert_eq!(head.expect("answers").status().as_u16(), 200);
}

#[tokio::test]
async fn a_node_that_drains_is_not_ready_and_closes_the_metrics_port_last() {
    let load_balancer = LoadBalancer::start(Behaviour::Inferno).await;
    let sections = sections(&[load_balancer.address()], "interval_ms = 400");
    let mut node = NodeProcess::start_sim(5_000, &sections);
    let port = metrics_port(&load_balancer.wait_for(ID).await);
    let body = json!({"model": "demo", "prompt": "Hi", "max_tokens": 1_000, "stream": true,
                      "ignore_eos": true});
    let mut running = node.post("/v1/completions", &body).await;
    running.chunk().await.expect("streams").expect("a first chunk");
    node.signal("-TERM");
    node.wait_health("draining", |health| health["draining"] == true).await;
    let (status, vitals) = get(&format!("{port}/metrics")).await;
    let vitals: Value = serde_json::from_str(&vitals).expect("JSON");
    assert_eq!((status, &vitals["ready"]), (200, &json!(false)));
    assert_eq!(vitals["status_message"], "draining");
    load_balancer.forget();
    let asked = load_balancer.came().len();
    let running = tokio::spawn(async move { running.text().await });
    while reqwest::get(format!("{port}/metrics")).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let http = reqwest::get(format!("{}/health/live", node.http())).await;
    assert!(http.is_err(), "HTTP is closed before the metrics port");
    let text = running.await.expect("no panic").expect("it streams to its end");
    assert!(text.contains("[DONE]"), "{text}");
    assert!(node.wait().success(), "{}", node.log());
    // One may have been under way when the drain began.
    assert!(load_balancer.came().len() <= asked + 1, "who drains does not ask for requests");
}

#[tokio::test]
async fn a_bad_key_refuses_to_start_by_its_name() {
    let lb = ["127.0.0.1:1".to_owned()];
    for (more, key) in [
        ("id = \"n1\"", "registrar.id"),
        ("capabilities = [\"gpu-1\"]", "registrar.capabilities"),
        ("interval_ms = 10", "registrar.interval_ms"),
        ("secret_file = \"/does/not/exist\"", "registrar.secret_file"),
        ("address = \"0.0.0.0\"", "registrar.address"),
        ("metrics_bound = \"127.0.0.1:0\"", "registrar.metrics_bound"),
    ] {
        let mut node = NodeProcess::spawn_sim(0, &sections(&lb, more));
        assert!(!node.wait().success(), "{key}");
        assert!(node.log().contains(key), "{key} in {}", node.log());
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let bind = taken.local_addr().expect("it is bound").to_string();
    let text = sections(&lb, "").replace("127.0.0.1:0", &bind);
    let mut node = NodeProcess::spawn_sim(0, &text);
    assert!(!node.wait().success());
    assert!(node.log().contains(&format!("registrar.metrics_bind {bind}")), "{}", node.log());
}

#[tokio::test]
async fn a_load_balancers_own_request_is_answered_in_its_own_shape() {
    let node = NodeProcess::start(&format!("[bus]\nmode = \"off\"\n{CPU}"));
    let mut texts = Vec::new();
    for path in ["/inference", "/v1/completions"] {
        let body = json!({"request_id": u64::MAX, "prompt": "Once upon a time", "max_tokens": 8,
                          "temperature": 0.0, "top_p": 1.0, "seed": null});
        let answer = node.post(path, &body).await;
        assert_eq!(answer.status().as_u16(), 200);
        let answer: Value = answer.json().await.expect("JSON");
        let names: Vec<&String> = answer.as_object().expect("an object").keys().collect();
        let expected = [
            "error",
            "generated_text",
            "generated_tokens",
            "inference_time_ms",
            "is_finished",
            "request_id",
            "time_to_first_token_ms",
        ];
        assert_eq!(names, expected);
        assert_eq!(answer["request_id"], u64::MAX);
        assert_eq!(
            (&answer["generated_tokens"], &answer["is_finished"]),
            (&json!(8), &json!(true))
        );
        assert_eq!(answer["error"], Value::Null);
        let (all, first) = (&answer["inference_time_ms"], &answer["time_to_first_token_ms"]);
        assert!(all.as_f64() >= first.as_f64() && first.as_f64() > Some(0.0), "{answer}");
        texts.push(answer["generated_text"].as_str().expect("a text").to_owned());
    }
    assert!(!texts[0].is_empty() && texts[0] == texts[1], "{texts:?}");
    let openai =
        json!({"model": "demo", "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0});
    let openai: Value = node.post("/v1/completions", &openai).await.json().await.expect("JSON");
    assert_eq!(openai["choices"][0]["text"], texts[0].as_str(), "the same as any other request's");
}
