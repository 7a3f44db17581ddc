//! Who may connect: passwords, tokens, credentials files, certificates; and the `generate` command as a user runs it.

use std::io::Write;
use std::net::TcpStream;
use std::path::PathBuf;

use clap::Parser;
use inferno_node::bus::Tls;
use inferno_node::generate::{GenerateArgs, GenerateError, run};
use nkeys::KeyPair;

use super::*;

#[tokio::test]
async fn user_and_password_or_a_token_open_the_door() {
    let server = NatsServer::with("authorization { user: \"me\", password: \"hush\" }\n");
    let with = |password: &str| Config {
        user: Some("me".to_owned()),
        password: Some(Secret::new(password)),
        ..config(&server)
    };
    let node = Node::start(with("hush"), "node-a").await;
    let wrong = Node::start(with("wrong"), "node-b").await;
    let client = async_nats::ConnectOptions::with_user_and_password("me".into(), "hush".into())
        .connect(server.url())
        .await
        .expect("connects");
    wait_ready(&client).await;
    assert_eq!(nodes(&client).await, ["node-a"], "the other one goes on trying");
    node.stop().await;
    wrong.stop().await;
    let server = NatsServer::with("authorization { token: \"t0\" }\n");
    let token = Config { token: Some(Secret::new("t0")), ..config(&server) };
    let node = Node::start(token, "node-c").await;
    let client = async_nats::ConnectOptions::with_token("t0".into())
        .connect(server.url())
        .await
        .expect("connects");
    wait_ready(&client).await;
    node.stop().await;
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls").join(name)
}

#[tokio::test]
async fn certificates_are_checked_on_both_sides() {
    let server = NatsServer::with(&format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}\n",
        fixture("server.pem"),
        fixture("server.key"),
        fixture("ca.pem")
    ));
    let tls = Tls {
        required: true,
        ca: Some(fixture("ca.pem")),
        cert: Some(fixture("client.pem")),
        key: Some(fixture("client.key")),
    };
    let node = Node::start(Config { tls: tls.clone(), ..config(&server) }, "node-a").await;
    let without = Tls { cert: None, key: None, ..tls };
    let stranger = Node::start(Config { tls: without, ..config(&server) }, "node-b").await;
    let client = async_nats::ConnectOptions::new()
        .add_root_certificates(fixture("ca.pem"))
        .add_client_certificate(fixture("client.pem"), fixture("client.key"))
        .connect(server.url())
        .await
        .expect("connects");
    wait_ready(&client).await;
    assert_eq!(nodes(&client).await, ["node-a"]);
    node.stop().await;
    stranger.stop().await;
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        let bits = bits << (8 * (3 - chunk.len()));
        for i in 0..=chunk.len() {
            text.push(LETTERS[(bits >> (18 - 6 * i) & 63) as usize] as char);
        }
    }
    text
}

/// A NATS JWT: `subject` gets what `nats` says, signed by `issuer`.
fn jwt(issuer: &KeyPair, subject: &KeyPair, nats: &Value) -> String {
    let head = json!({"typ": "JWT", "alg": "ed25519-nkey"}).to_string();
    let claims = json!({
        "jti": "test", "iat": 1_700_000_000, "iss": issuer.public_key(),
        "sub": subject.public_key(), "name": "test", "nats": nats,
    });
    let text = format!("{}.{}", base64(head.as_bytes()), base64(claims.to_string().as_bytes()));
    let signature = issuer.sign(text.as_bytes()).expect("signs");
    format!("{text}.{}", base64(&signature))
}

#[tokio::test]
async fn a_credentials_file_opens_the_door() {
    let (operator, account, user) =
        (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_user());
    let operator_jwt = jwt(&operator, &operator, &json!({"type": "operator", "version": 2}));
    let unlimited = json!({
        "subs": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1, "data": -1,
        "payload": -1, "wildcards": true
    });
    let account_claims = json!({"type": "account", "version": 2, "limits": unlimited});
    let account_jwt = jwt(&operator, &account, &account_claims);
    let user_claims = json!({
        "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {}
    });
    let user_jwt = jwt(&account, &user, &user_claims);
    let server = NatsServer::with(&format!(
        "operator: {operator_jwt}\nresolver: MEMORY\nresolver_preload {{ {}: {account_jwt} }}\n",
        account.public_key()
    ));
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    let seed = user.seed().expect("a seed");
    write!(
        file,
        "-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
    .expect("writes");
    let credentials = Config { credentials_file: Some(file.path().into()), ..config(&server) };
    let node = Node::start(credentials, "node-a").await;
    let stranger = Node::start(config(&server), "node-b").await;
    let client = async_nats::ConnectOptions::with_credentials_file(file.path())
        .await
        .expect("reads")
        .connect(server.url())
        .await
        .expect("connects");
    wait_ready(&client).await;
    assert_eq!(nodes(&client).await, ["node-a"]);
    node.stop().await;
    stranger.stop().await;
}

#[tokio::test]
async fn headers_that_are_none_cost_a_reconnect_and_no_more() {
    let server = NatsServer::start();
    let quick = Config { reconnect_hold_ms: 200, ..config(&server) };
    let node = Node::start(quick, "node-a").await;
    let client = connect(&server).await;
    wait_ready(&client).await;
    let mut events = client.subscribe("inferno.v1.tokens.on").await.expect("subscribes");
    let body = json!({"request_id": "on", "prompt": "pace 3", "params": {"max_tokens": 300}});
    client.request(GENERATE, body.to_string().into()).await.expect("accepted");
    next(&mut events).await;
    // The server passes any bytes on as headers; the client library gives its connection up over them.
    let address = server.url().replace("nats://", "");
    let mut socket = TcpStream::connect(address).expect("connects");
    socket.write_all(b"CONNECT {\"verbose\":false,\"headers\":true}\r\n").expect("writes");
    let headers = "NATS/1.0\r\nno header\r\n\r\n";
    let message =
        format!("HPUB {GENERATE} {} {}\r\n{headers}{{}}\r\n", headers.len(), headers.len() + 2);
    socket.write_all(message.as_bytes()).expect("writes");
    let mut expected = None;
    loop {
        let event = parsed(&next(&mut events).await);
        let seq = event["seq"].as_u64().expect("a number");
        let tokens = event["token_ids"].as_array().expect("an array").len() as u64;
        let expects = expected.unwrap_or(seq);
        assert!(seq <= expects, "nothing is lost");
        expected = Some(expects.max(seq + tokens));
        if event.get("finish_reason").is_some() {
            break;
        }
    }
    assert_eq!(expected, Some(300));
    node.stop().await;
}

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: GenerateArgs,
}

#[tokio::test]
async fn the_generate_command_streams_or_says_why_not() {
    let (server, node, client) = setup().await;
    let url = server.url();
    let generate = |model: &str, prompt: &str, more: &[&str]| {
        let line = [&["generate", "--url", &url, "--model", model, prompt], more].concat();
        let args = Command::try_parse_from(line).expect("parses").args;
        async move { run(args).await }
    };
    generate("demo", "Hi", &["--max-tokens", "3"]).await.expect("streams");
    let error = generate("demo", "refuse", &["--quiet"]).await.expect_err("is refused");
    assert!(matches!(error, GenerateError::Client(ClientError::Refused(_))), "{error}");
    let error = generate("demo", "fail", &[]).await.expect_err("fails");
    assert!(matches!(error, GenerateError::Failed(_)), "{error}");
    let error = generate("nobody", "Hi", &[]).await.expect_err("fails");
    assert!(error.to_string().contains("nobody listens on inferno.v1.generate.nobody"), "{error}");
    let error = generate("demo", "Hi", &["--request-id", "a b"]).await.expect_err("fails");
    assert!(matches!(error, GenerateError::Client(ClientError::Refused(_))), "{error}");
    let slow = generate("demo", "pace 50", &["--request-id", "g1", "--max-tokens", "1000"]);
    let asker = Asker::over(client.clone(), "inferno.v1");
    let id = inferno_node::ids::RequestId::parse("g1").expect("an id");
    let cancel = eventually("it can be cancelled", || async { asker.cancel(&id).await.ok() });
    let (slow, answer) = tokio::join!(slow, cancel);
    assert!(answer.cancelled);
    assert!(matches!(slow, Err(GenerateError::Cancelled(tokens)) if tokens == answer.tokens));
    node.stop().await;
}
