//! What happens when NATS, a node or a client is not there for a while.

use super::*;

fn quick(server: &NatsServer) -> Config {
    Config { reconnect_hold_ms: 1_500, ..config(server) }
}

#[tokio::test]
async fn nats_restarted_in_mid_stream_costs_no_token() {
    let mut server = NatsServer::start();
    let node = Node::start(quick(&server), "node-a").await;
    let client = connect(&server).await;
    wait_ready(&client).await;
    let mut streams = Vec::new();
    for i in 0..8 {
        let subject = format!("inferno.v1.tokens.o{i}");
        streams.push(client.subscribe(subject).await.expect("subscribes"));
        let body = json!({
            "request_id": format!("o{i}"), "prompt": "pace 4", "params": {"max_tokens": 600}
        });
        client.request(GENERATE, body.to_string().into()).await.expect("accepted");
    }
    for stream in &mut streams {
        for _ in 0..20 {
            next(stream).await;
        }
    }
    server.kill();
    // Generation goes on while NATS is away.
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.start_again();
    for stream in &mut streams {
        let mut ids: Vec<u32> = Vec::new();
        let mut follower = None;
        let last = loop {
            let event = parsed(&next(stream).await);
            let seq = event["seq"].as_u64().expect("a number") as u32;
            let tokens = event["token_ids"].as_array().expect("an array");
            let follower = follower.get_or_insert_with(|| {
                // It has read 20 tokens, at most one of them in each event.
                let mut follower = Follower::default();
                follower.judge(0, seq as usize);
                follower
            });
            match follower.judge(seq, tokens.len()) {
                Verdict::Fresh => {}
                Verdict::Repeated => continue,
                Verdict::Gap { expected } => panic!("expected {expected}, got {event}"),
            }
            ids.extend(tokens.iter().map(|id| id.as_u64().expect("an id") as u32));
            if event.get("finish_reason").is_some() {
                break event;
            }
        };
        assert_eq!(last["finish_reason"], "length");
        let first = ids[0];
        assert_eq!(ids, (first..600).collect::<Vec<_>>());
    }
    // Requests are taken again at once.
    let asker = Asker::over(client, "inferno.v1");
    let mut generation = asker.generate("demo", json!({"prompt": "Hi"})).await.expect("accepted");
    while generation.next().await.expect("streams").is_some() {}
    node.stop().await;
}

#[tokio::test]
async fn a_listener_that_does_not_come_back_ends_its_request_after_the_hold() {
    let mut server = NatsServer::start();
    let node = Node::start(quick(&server), "node-a").await;
    let client = connect(&server).await;
    wait_ready(&client).await;
    let mut events = client.subscribe("inferno.v1.tokens.lost").await.expect("subscribes");
    let body = json!({
        "request_id": "lost", "prompt": "pace 10", "params": {"max_tokens": 100_000}
    });
    client.request(GENERATE, body.to_string().into()).await.expect("accepted");
    next(&mut events).await;
    drop(events);
    drop(client);
    server.kill();
    server.start_again();
    let back = Instant::now();
    let ended = eventually("it ends", || async { node.seen.end_of("lost") }).await;
    assert_eq!(ended.reason, FinishReason::Cancelled);
    assert!(back.elapsed() > Duration::from_millis(1_000), "not before the hold is over");
    node.stop().await;
}

#[tokio::test]
async fn a_node_that_starts_before_nats_waits_for_it() {
    let mut server = NatsServer::later();
    let node = Node::start(config(&server), "node-a").await;
    // Requests come and go over HTTP meanwhile.
    for i in 0..100 {
        let id = inferno_node::ids::RequestId::parse(&format!("h{i}")).expect("an id");
        node.seen.observer().started(&id);
        if i > 0 {
            node.seen.observer().ended(&id);
        }
    }
    server.start_again();
    let client = connect(&server).await;
    wait_ready(&client).await;
    let asker = Asker::over(client.clone(), "inferno.v1");
    let mut generation = asker.generate("demo", json!({"prompt": "Hi"})).await.expect("accepted");
    while generation.next().await.expect("streams").is_some() {}
    let answer = client.request("inferno.v1.cancel.h0", "".into()).await.expect("is open");
    assert_eq!(parsed(&answer)["error"]["kind"], "not_found");
    assert!(client.request("inferno.v1.cancel.h1", "".into()).await.is_err());
    node.stop().await;
}

#[tokio::test]
async fn a_draining_node_loses_no_request() {
    let (server, node, client) = setup().await;
    let other = Node::start(config(&server), "node-b").await;
    eventually("both serve", || async { (nodes(&client).await.len() == 2).then_some(()) }).await;
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.expect("subscribes");
    let flood = tokio::spawn({
        let client = client.clone();
        async move {
            for i in 0..3_000 {
                let body = json!({"request_id": format!("d{i}"), "prompt": "refuse"}).to_string();
                let sent = client.publish_with_reply(GENERATE, inbox.clone(), body.into()).await;
                sent.expect("publishes");
                if i % 20 == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
    });
    let mut answered = 0;
    while answered < 500 {
        next(&mut answers).await;
        answered += 1;
    }
    node.bus.drain().await;
    let taken = node.admitted().await;
    while answered < 3_000 {
        next(&mut answers).await;
        answered += 1;
    }
    flood.await.expect("no panic");
    nothing_more(&mut answers).await;
    assert_eq!(node.admitted().await, taken, "none came after the drain");
    assert_eq!(taken + other.admitted().await, 3_000);
    node.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn a_model_that_is_served_no_more_has_no_responder() {
    let (_server, node, client) = setup().await;
    node.bus.serve_model("second", "").await;
    let asker = Asker::over(client, "inferno.v1");
    assert!(asker.generate("second", json!({"prompt": "Hi"})).await.is_ok(), "served at once");
    node.bus.unserve_model("second").await;
    let error = asker.generate("second", json!({"prompt": "Hi"})).await.err().expect("refused");
    assert!(matches!(error, ClientError::NoResponders(_)), "{error}");
    assert!(asker.generate("demo", json!({"prompt": "Hi"})).await.is_ok());
    node.stop().await;
}

#[tokio::test]
async fn a_node_can_drain_and_stop_while_nats_is_away() {
    let (mut server, node, _client) = setup().await;
    server.kill();
    let started = Instant::now();
    node.bus.drain().await;
    node.stop().await;
    assert!(started.elapsed() < Duration::from_secs(10), "nothing to wait for");
}

#[tokio::test]
async fn requests_run_on_while_the_node_drains_and_stop_writes_the_end() {
    let (_server, node, client) = setup().await;
    let mut events = client.subscribe("inferno.v1.tokens.run").await.expect("subscribes");
    let body = json!({"request_id": "run", "prompt": "pace 2", "params": {"max_tokens": 100}});
    client.request(GENERATE, body.to_string().into()).await.expect("accepted");
    node.bus.drain().await;
    eventually("it ends", || async { node.seen.end_of("run") }).await;
    node.stop().await;
    let (ids, text, _) = whole(&mut events).await;
    expect_tokens(100, &ids, &text);
}

#[tokio::test]
async fn without_a_bus_everything_is_a_quiet_no() {
    let node = Node::start(Config { mode: Mode::Off, ..Config::default() }, "node a").await;
    let id = inferno_node::ids::RequestId::parse("x").expect("an id");
    node.seen.observer().started(&id);
    node.seen.observer().ended(&id);
    node.bus.publish_health("{}");
    node.bus.drain().await;
    assert!(node.bus.url().is_none());
    node.stop().await;
}

fn managed() -> Config {
    Config { mode: Mode::Managed, ..Config::default() }
}

/// The ids of nats-server processes whose command line names this port's configuration directory.
fn servers_on(port: u16) -> Vec<u32> {
    let listening = |pid: u32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|c| c.trim() == "nats-server")
            && std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
                let file = line.split('\0').find(|word| word.ends_with("nats.conf"));
                let ports = file.and_then(|file| {
                    let dir = std::path::Path::new(file).parent()?.join("ports");
                    let entry = std::fs::read_dir(dir).ok()?.flatten().next()?;
                    std::fs::read_to_string(entry.path()).ok()
                });
                ports.is_some_and(|ports| ports.contains(&format!(":{port}\"")))
            })
    };
    let entries = std::fs::read_dir("/proc").expect("Linux").flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| listening(*pid))
        .collect()
}

fn port_of(url: &str) -> u16 {
    url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port")
}

#[tokio::test]
async fn a_managed_server_starts_restarts_and_ends_with_the_node() {
    let node = Node::start(managed(), "node-a").await;
    let url = node.bus.url().expect("there is one").to_owned();
    let client = async_nats::connect(&url).await.expect("connects");
    wait_ready(&client).await;
    assert!(client.server_info().jetstream);
    let pids = servers_on(port_of(&url));
    assert_eq!(pids.len(), 1);
    let killed = std::process::Command::new("kill").args(["-9", &pids[0].to_string()]).status();
    assert!(killed.is_ok_and(|status| status.success()));
    eventually("another child on the same port", || async {
        let now = servers_on(port_of(&url));
        (now.len() == 1 && now != pids).then_some(())
    })
    .await;
    wait_ready(&client).await;
    drop(client);
    node.stop().await;
    assert!(servers_on(port_of(&url)).is_empty());
    assert!(std::net::TcpStream::connect(("127.0.0.1", port_of(&url))).is_err());
}

#[tokio::test]
async fn a_managed_server_takes_the_users_password() {
    let config = Config {
        user: Some("me".into()),
        password: Some(Secret::new("quote \" and \\ slash")),
        ..managed()
    };
    let node = Node::start(config, "node-a").await;
    let url = node.bus.url().expect("there is one").to_owned();
    assert!(async_nats::connect(&url).await.is_err());
    let client = async_nats::ConnectOptions::with_user_and_password(
        "me".into(),
        "quote \" and \\ slash".into(),
    )
    .connect(&url)
    .await
    .expect("connects");
    wait_ready(&client).await;
    node.stop().await;
}

#[tokio::test]
async fn a_managed_server_that_cannot_start_says_why() {
    let start = |binary: &str| {
        let managed_section = Managed { binary: binary.into(), ..Managed::default() };
        let config = Config { managed: managed_section, ..managed() };
        async move { ManagedServer::start(&config, &Lifeline::unwatched()).await }
    };
    let error = start("no-such-nats-server").await.err().expect("fails").to_string();
    assert!(error.contains("no-such-nats-server") && error.contains("not found"), "{error}");
    let error = start("/bin/false").await.err().expect("fails").to_string();
    assert!(error.contains("bus.managed.binary"), "{error}");
}

/// Not a test by itself: the process that the next one kills.
#[tokio::test]
#[ignore = "run by a_killed_node_leaves_no_server_behind"]
async fn a_node_to_be_killed() {
    let node = Node::start(managed(), "node-a").await;
    println!("url={}", node.bus.url().expect("there is one"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    node.stop().await;
}

#[tokio::test]
async fn a_killed_node_leaves_no_server_behind() {
    use std::io::{BufRead, BufReader};
    let mut child = std::process::Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "outage::a_node_to_be_killed", "--ignored", "--nocapture"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("starts");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let url = lines
        .map_while(Result::ok)
        .find_map(|line| line.split_once("url=").map(|(_, url)| url.to_owned()));
    let port = port_of(&url.expect("the node starts"));
    assert_eq!(servers_on(port).len(), 1);
    // SIGKILL: the node can do nothing about it.
    child.kill().expect("kills");
    child.wait().expect("ends");
    eventually("the server is gone", || async {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_err().then_some(())
    })
    .await;
    assert!(servers_on(port).is_empty());
}
