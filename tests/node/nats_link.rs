//! Goal: a node that NATS refuses, or whose NATS is away, says so once, in health and in its log, and recovers by itself. Method:
//! a node process over a real nats-server whose users, certificates and presence change.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::harness::{NodeProcess, external, request};
use super::nats::NatsServer;

const USER: &str = "user = \"node\"\npassword = \"right\"\n";

/// `[bus]` with these further lines.
fn bus(server: &NatsServer, more: &str) -> String {
    external(&server.url(), "node-a").replace("[node]", &format!("{more}[node]"))
}

/// A server's user of the node, who may not subscribe to these subjects, beside one who may do everything.
fn users(password: &str, denied: &str) -> String {
    format!(
        "authorization {{ users = [ {{ user: client, password: c }}, {{ user: node, password: \
         {password}, permissions: {{ subscribe: {{ deny: [{denied}] }} }} }} ] }}\n"
    )
}

fn bus_check(health: &Value) -> &Value {
    let checks = health["checks"].as_array().expect("an array");
    checks.iter().find(|check| check["name"] == "bus").expect("there is one")
}

/// Waits until the node is not ready, with this reason.
async fn wait_refused(node: &NodeProcess, why: &str) {
    let is_why = |health: &Value| {
        bus_check(health)["message"].as_str().is_some_and(|message| message.contains(why))
    };
    let health = node.wait_health(why, is_why).await;
    assert_eq!(
        (&health["status"], &bus_check(&health)["value"]),
        (&json!("degraded"), &json!(0.0))
    );
    assert_eq!(node.get("/health/ready").await.0, 503);
    assert_eq!(node.get("/health/live").await.0, 200);
}

async fn wait_well(node: &NodeProcess) {
    let health = node.wait_health("well", |health| bus_check(health)["status"] == "healthy").await;
    assert_eq!(bus_check(&health)["value"], 1.0);
    assert_eq!(node.get("/health/ready").await.0, 200);
}

/// How many lines of the log have these words; the configuration is printed beside it.
fn lines(node: &NodeProcess, words: &str) -> usize {
    let log = node.log();
    // The first line says what was configured.
    let said = log.lines().filter(|line| !line.contains("\"starting\""));
    said.filter(|line| line.starts_with('{') && line.contains(words)).count()
}

/// Long enough for several tries to connect, the last of them a second apart.
async fn several_tries() {
    tokio::time::sleep(Duration::from_millis(3_500)).await;
}

#[tokio::test]
async fn a_refused_login_makes_the_node_not_ready_until_it_is_accepted() {
    for (wrong, right, settings) in [
        (users("changed", ""), users("right", ""), USER),
        (
            "authorization { token: changed }\n".to_owned(),
            "authorization { token: right }\n".to_owned(),
            "token = \"right\"\n",
        ),
    ] {
        let mut server = NatsServer::with(&wrong);
        let node = NodeProcess::start_sim(0, &bus(&server, settings));
        wait_refused(&node, "refuses the login").await;
        several_tries().await;
        assert_eq!(lines(&node, "refuses the login"), 1, "{}", node.log());
        server.reload(&right);
        wait_well(&node).await;
        server.reload(&wrong);
        wait_refused(&node, "refuses the login").await;
        assert_eq!(lines(&node, "connected to NATS"), 1);
        assert!(!node.log().contains("right"), "no secret");
    }
}

#[tokio::test]
async fn a_denied_subscription_makes_the_node_not_ready_until_it_is_granted() {
    let denied = users("right", "\"inferno.v1.generate.>\"");
    let granted = users("right", "");
    let mut server = NatsServer::with(&denied);
    let node = NodeProcess::start_sim(0, &bus(&server, USER));
    let why = "denies the subscription of inferno.v1.generate.demo";
    wait_refused(&node, why).await;
    // It is asked for again every five seconds.
    let asked_again = Instant::now() + Duration::from_secs(7);
    tokio::time::sleep_until(asked_again.into()).await;
    assert_eq!(lines(&node, why), 1, "{}", node.log());
    server.reload(&granted);
    wait_well(&node).await;
    let nats =
        async_nats::ConnectOptions::with_user_and_password("client".to_owned(), "c".to_owned())
            .connect(server.url())
            .await
            .expect("connects");
    let body = json!({"prompt": "Hi", "params": {"stream": false, "max_tokens": 2}}).to_string();
    let ask = || nats.request("inferno.v1.generate.demo", body.clone().into());
    let answer: Value =
        serde_json::from_slice(&ask().await.expect("answers").payload).expect("JSON");
    assert_eq!(answer["usage"]["completion_tokens"], 2);
    // Taken away while the connection stands.
    server.reload(&denied);
    wait_refused(&node, why).await;
    assert_eq!(lines(&node, why), 2, "denied, granted, denied: {}", node.log());
    assert_eq!(lines(&node, "grants the subscription"), 1);
    assert!(ask().await.is_err(), "nobody serves it");
}

#[tokio::test]
async fn a_subject_beside_the_door_that_is_denied_degrades_and_requests_go_on() {
    let subjects = ["$SRV.>", "inferno.v1.cancel.>", "inferno.v1.node.*.health"];
    let each = subjects.map(|subject| async move {
        let mut server = NatsServer::with(&users("right", &format!("\"{subject}\"")));
        let node = NodeProcess::start_sim(0, &bus(&server, USER));
        let impaired = |health: &Value| bus_check(health)["status"] == "degraded";
        let health = node.wait_health("degraded", impaired).await;
        let named = subject.trim_end_matches('>');
        let message = bus_check(&health)["message"].as_str();
        assert!(message.is_some_and(|text| text.contains(named)), "{health}");
        assert_eq!(node.get("/health/ready").await.0, 200);
        server.reload(&users("right", ""));
        wait_well(&node).await;
    });
    futures_util::future::join_all(each).await;
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_is_named_as_such() {
    let file = |name: &str| format!("\"{}/tests/fixtures/tls/{name}\"", env!("CARGO_MANIFEST_DIR"));
    let server = NatsServer::on_localhost(&format!(
        "tls {{ cert_file: {}, key_file: {}, ca_file: {}, verify: true }}\n",
        file("server.pem"),
        file("server.key"),
        file("ca.pem")
    ));
    for (tls, why) in [
        // The system's authorities do not know the server's.
        (String::new(), "the certificate of NATS"),
        (format!("ca = {}\n", file("ca.pem")), "does not trust the node's certificate"),
    ] {
        let tls = format!("[bus.tls]\nrequired = true\n{tls}");
        let node = NodeProcess::start_sim(0, &bus(&server, &tls));
        wait_refused(&node, why).await;
        several_tries().await;
        assert_eq!(lines(&node, why), 1, "{}", node.log());
        assert!(!node.log().contains("IO error"), "{}", node.log());
    }
}

#[tokio::test]
async fn nats_that_is_away_is_said_once_with_its_address_and_once_when_it_is_back() {
    let mut server = NatsServer::later();
    let node = NodeProcess::start_sim(0, &bus(&server, ""));
    let address = server.url().replace("nats://", "");
    let is_away = |health: &Value| bus_check(health)["status"] == "degraded";
    let health = node.wait_health("degraded", is_away).await;
    assert!(bus_check(&health)["message"].as_str().is_some_and(|text| text.contains(&address)));
    assert_eq!(node.get("/health/ready").await.0, 200, "HTTP does not notice");
    several_tries().await;
    assert_eq!((lines(&node, &address), lines(&node, "no NATS at")), (1, 1), "{}", node.log());
    server.start_again();
    wait_well(&node).await;
    assert_eq!((lines(&node, &address), lines(&node, "connected to NATS at")), (2, 1));
    server.kill();
    node.wait_health("degraded", is_away).await;
    several_tries().await;
    assert_eq!((lines(&node, &address), lines(&node, "lost NATS at")), (3, 1), "{}", node.log());
    server.start_again();
    wait_well(&node).await;
    assert_eq!((lines(&node, &address), lines(&node, "is back")), (4, 1), "{}", node.log());
    let answer = node.post("/v1/completions", &completion()).await;
    assert_eq!(answer.status().as_u16(), 200);
}

fn completion() -> Value {
    let mut body = request(2, 0)["params"].take();
    body["model"] = json!("demo");
    body["prompt"] = json!("Hi");
    body
}
