//! Who may connect: passwords, tokens, credentials files, certificates; and the `generate` command as a user runs it.

use std::io::Write;
use std::net::TcpStream;
use std::path::PathBuf;

use clap::Parser;
use inferno_node::bus::Tls;
use inferno_node::commands::generate::{GenerateArgs, GenerateError, run};
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
    let server = NatsServer::on_localhost(&format!(
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
async fn a_message_whose_headers_cannot_be_read_is_refused_and_costs_nobody_else_anything() {
    let (server, node, client) = setup().await;
    let mut events = client.subscribe("inferno.v1.tokens.on").await.expect("subscribes");
    let body = json!({"request_id": "on", "prompt": "pace 3", "params": {"max_tokens": 300}});
    client.request(GENERATE, body.to_string().into()).await.expect("accepted");
    next(&mut events).await;
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.expect("subscribes");
    client.flush().await.expect("is connected");
    // The server passes any bytes on as headers and as a reply subject; the client library would send none of these.
    let address = server.url().replace("nats://", "");
    let mut socket = TcpStream::connect(address).expect("connects");
    socket.write_all(b"CONNECT {\"verbose\":false,\"headers\":true}\r\n").expect("writes");
    let mut publish = |subject: &str, reply: &[u8], headers: &[u8]| {
        let body = b"{\"request_id\": \"bad\", \"prompt\": \"Hi\"}";
        let (of_headers, whole) = (headers.len(), headers.len() + body.len());
        let head = [b"HPUB ", subject.as_bytes(), b" ", reply].concat();
        let lengths = format!(" {of_headers} {whole}\r\n");
        let message = [&head, lengths.as_bytes(), headers, body.as_slice(), b"\r\n"].concat();
        socket.write_all(&message).expect("writes");
    };
    let bad: [&[u8]; 8] = [
        b"NATS/1.0\r\nno header\r\n\r\n",
        b"NATS/1.0\r\na name: x\r\n\r\n",
        b"NATS/1.0\r\nn\xc3\xa4me: x\r\n\r\n",
        b"NATS/1.0\r\nname: \xff\r\n\r\n",
        b"NATS/1.0\r\nname: x\ry\r\n\r\n",
        b"NATS/1.0 abc\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"\r\n\r\n",
    ];
    for headers in bad {
        publish(GENERATE, inbox.as_bytes(), headers);
        let answer = next(&mut answers).await;
        assert_eq!(header(&answer, "Nats-Service-Error-Code"), Some("400"), "{headers:?}");
        assert_eq!(parsed(&answer)["error"]["param"], "headers");
        // The body was not read, so its id is not known.
        assert!(next(&mut answers).await.payload.is_empty());
        publish("inferno.v1.cancel.on", inbox.as_bytes(), headers);
        assert_eq!(parsed(&next(&mut answers).await)["error"]["param"], "headers");
    }
    for reply in [b"_INBOX.\xff".as_slice(), "_INBOX.a\u{3000}b".as_bytes()] {
        publish(GENERATE, reply, bad[0]);
    }
    // A connection that was replaced would have held the stream back, and sent part of it again.
    let mut expected = None;
    loop {
        let event = parsed(&next(&mut events).await);
        let seq = event["seq"].as_u64().expect("a number");
        assert_eq!(seq, expected.unwrap_or(seq), "nothing is lost, and nothing repeated");
        expected = Some(seq + event["token_ids"].as_array().expect("an array").len() as u64);
        if event.get("finish_reason").is_some() {
            break;
        }
    }
    assert_eq!(expected, Some(300));
    let asker = Asker::over(client, "inferno.v1");
    let mut generation = asker.generate("demo", json!({"prompt": "Hi"})).await.expect("accepted");
    while generation.next().await.expect("streams").is_some() {}
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
