//! What a client may not send: each is refused by name and leaves the door as it was.

use std::io::Write as _;

use inferno_node::error::{Error, Kind};
use inferno_node::http::{Config, UnknownParameters};
use inferno_node::request::{Caller, Prompt};
use inferno_node::secret::Secret;
use reqwest::header::HeaderValue;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::rig::{PATIENCE, Rig, chat, completion, config, fault};

const CHAT: &str = "/v1/chat/completions";

#[actix_web::test]
async fn malformed_bodies_of_every_kind_are_400_and_nothing_reaches_admission() {
    let mut rig = Rig::new();
    let deep = format!("{{\"model\":{}1{}}}", "[".repeat(5_000), "]".repeat(5_000));
    let bodies: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"hello".to_vec(),
        b"null".to_vec(),
        b"[]".to_vec(),
        b"{\"model\":\"demo\"".to_vec(),
        b"{\"model\":\"demo\",}".to_vec(),
        b"{\"model\":\"\xff\"}".to_vec(),
        b"{\"model\":\"demo\",\"temperature\":NaN}".to_vec(),
        b"{\"model\":\"demo\",\"temperature\":Infinity}".to_vec(),
        b"{\"model\":\"demo\",\"temperature\":1e999}".to_vec(),
        b"{\"model\":\"a\",\"model\":\"b\"}".to_vec(),
        deep.into_bytes(),
        vec![0; 100],
        chat(json!({})).to_string().replace('}', "}}").into_bytes(),
    ];
    for body in bodies {
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        let request = rig.client.post(rig.url(CHAT)).header("content-type", "application/json");
        let (status, kind, ..) = fault(request.body(body).send().await.unwrap()).await;
        assert_eq!((status, kind.as_str()), (400, "invalid_request_error"), "{shown}");
    }
    assert!(rig.admits.try_recv().is_err());
    let answer = rig.post(CHAT, chat(json!({})));
    rig.next().await.play(&["still here"]);
    assert_eq!(answer.await.unwrap().status(), 200);
}

#[actix_web::test]
async fn faults_are_named_over_the_wire() {
    let rig = Rig::new();
    let cases = [
        (CHAT, chat(json!({"whatever": 1})), "invalid", "whatever"),
        (CHAT, chat(json!({"temperature": "hot"})), "invalid", "temperature"),
        (CHAT, chat(json!({"n": "2"})), "invalid", "n"),
        (CHAT, chat(json!({"n": 0})), "invalid", "n"),
        (CHAT, chat(json!({"n": 129})), "invalid", "n"),
        ("/v1/completions", completion(json!({"n": u32::MAX})), "invalid", "n"),
        (CHAT, chat(json!({"tools": [{}]})), "unsupported", "tools"),
        (CHAT, chat(json!({"stream_options": {}})), "invalid", "stream_options"),
        ("/v1/completions", completion(json!({"suffix": "x"})), "unsupported", "suffix"),
        ("/v1/completions", completion(json!({"prompt": [1, "x"]})), "invalid", "prompt[1]"),
    ];
    for (path, body, code, param) in cases {
        let seen = fault(rig.post(path, body).await.unwrap()).await;
        assert_eq!((seen.0, seen.2.as_str(), seen.3.as_deref()), (400, code, Some(param)));
    }
}

#[actix_web::test]
async fn bodies_beyond_the_limit_are_413() {
    let mut rig = Rig::with(&Config { max_body_bytes: 2_000, ..config() });
    let long = chat(json!({"user": "x".repeat(3_000)}));
    assert_eq!(fault(rig.post(CHAT, long.clone()).await.unwrap()).await.0, 413);
    // The same without a declared length.
    let pieces = long.to_string().into_bytes();
    let pieces: Vec<_> = pieces.chunks(500).map(|c| Ok::<_, std::io::Error>(c.to_vec())).collect();
    let body = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
    let request = rig.client.post(rig.url(CHAT)).header("content-type", "application/json");
    assert_eq!(fault(request.body(body).send().await.unwrap()).await.0, 413);
    let answer = rig.post(CHAT, chat(json!({"user": "x".repeat(1_000)})));
    rig.next().await.play(&["fits"]);
    assert_eq!(answer.await.unwrap().status(), 200);
}

#[actix_web::test]
async fn only_plain_json_is_read() {
    let mut rig = Rig::new();
    let body = chat(json!({})).to_string();
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/msgpack", "json"] {
        let request = rig.client.post(rig.url(CHAT)).header("content-type", kind);
        let answer = request.body(body.clone()).send().await.unwrap();
        assert_eq!(fault(answer).await.0, 400, "{kind}");
    }
    let request = rig.client.post(rig.url(CHAT)).header("content-encoding", "gzip");
    let answer = request.body(body.clone()).send().await.unwrap();
    assert_eq!(fault(answer).await.2, "unsupported");
    for kind in [None, Some("application/json; charset=utf-8"), Some("Application/JSON")] {
        let mut request = rig.client.post(rig.url(CHAT)).body(body.clone());
        // Names no coding.
        request = request.header("content-encoding", "");
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        let answer = tokio::spawn(request.send());
        rig.next().await.play(&["x"]);
        assert_eq!(answer.await.unwrap().unwrap().status(), 200, "{kind:?}");
    }
}

#[actix_web::test]
async fn a_body_that_never_ends_is_given_up() {
    let rig = Rig::with(&Config { read_timeout_s: 1, ..config() });
    let mut stream = TcpStream::connect(rig.running.address()).await.unwrap();
    let mut head = Vec::new();
    write!(head, "POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{{\"mod").unwrap();
    stream.write_all(&head).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains("did not arrive"));
}

#[actix_web::test]
async fn unknown_paths_and_wrong_methods_are_told_so() {
    let rig = Rig::new();
    for path in ["/", "/v1", "/v1/models/", "/v1/embeddings", "/v1/chat/completions/x"] {
        let (status, _, code, _) = fault(rig.get(path).await).await;
        assert_eq!((status, code.as_str()), (404, "not_found"), "{path}");
    }
    let wrong = [
        ("GET", CHAT, "POST, OPTIONS"),
        ("HEAD", CHAT, "POST, OPTIONS"),
        ("PUT", "/v1/completions", "POST, OPTIONS"),
        ("POST", "/v1/models", "GET, HEAD, OPTIONS"),
        ("DELETE", "/v1/models/demo", "GET, HEAD, OPTIONS"),
        ("POST", "/metrics", "GET, HEAD, OPTIONS"),
        ("GET", "/v1/requests/r1", "DELETE, OPTIONS"),
        ("TRACE", "/v1/models", "GET, HEAD, OPTIONS"),
    ];
    for (method, path, allowed) in wrong {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let answer = rig.client.request(method.clone(), rig.url(path)).send().await.unwrap();
        assert_eq!(answer.headers()["allow"], allowed, "{path}");
        if method == reqwest::Method::HEAD {
            assert_eq!(answer.status(), 405);
            continue;
        }
        let (status, _, code, _) = fault(answer).await;
        assert_eq!((status, code.as_str()), (405, "method_not_allowed"), "{path}");
    }
}

#[actix_web::test]
async fn with_keys_only_health_and_metrics_are_open() {
    let keys = vec![Secret::new("one"), Secret::new("two")];
    let mut rig = Rig::with(&Config { api_keys: keys, ..config() });
    for path in ["/v1/health", "/health", "/health/live", "/health/ready", "/metrics"] {
        assert_ne!(rig.get(path).await.status(), 401, "{path}");
    }
    for path in ["/v1/models", "/v1/models/demo", "/v1/other"] {
        let answer = rig.get(path).await;
        assert_eq!(answer.headers()["www-authenticate"], "Bearer");
        let seen = fault(answer).await;
        assert_eq!((seen.0, seen.2.as_str()), (401, "invalid_api_key"), "{path}");
    }
    assert_eq!(fault(rig.post(CHAT, chat(json!({}))).await.unwrap()).await.0, 401);
    let delete = rig.client.delete(rig.url("/v1/requests/r1")).send().await.unwrap();
    assert_eq!(fault(delete).await.0, 401);
    let wrong = rig.client.get(rig.url("/v1/models")).bearer_auth("onex").send().await.unwrap();
    assert_eq!(fault(wrong).await.0, 401);
    assert!(rig.admits.try_recv().is_err() && rig.cancels.try_recv().is_err());
    let mut tenants = Vec::new();
    for key in ["one", "two", "one"] {
        let request = rig.client.post(rig.url(CHAT)).bearer_auth(key).json(&chat(json!({})));
        let answer = tokio::spawn(request.send());
        let played = rig.next().await;
        tenants.push(played.request.caller.tenant.clone().expect("a key says whose request it is"));
        played.play(&["x"]);
        assert_eq!(answer.await.unwrap().unwrap().status(), 200);
    }
    assert!(tenants[0] == tenants[2] && tenants[0] != tenants[1], "{tenants:?}");
}

#[actix_web::test]
async fn without_keys_nobody_is_a_tenant() {
    let mut rig = Rig::new();
    let request = rig.client.post(rig.url(CHAT)).json(&chat(json!({})));
    let answer = tokio::spawn(request.send());
    let played = rig.next().await;
    assert_eq!(played.request.caller, Caller::default());
    played.play(&["x"]);
    assert_eq!(answer.await.unwrap().unwrap().status(), 200);
}

#[actix_web::test]
async fn request_ids_come_from_body_or_header_and_go_back() {
    let mut rig = Rig::new();
    let send = |rig: &Rig, header: Option<&str>, more: Value| {
        let mut request = rig.client.post(rig.url(CHAT)).json(&chat(more));
        if let Some(header) = header {
            request = request.header("X-Request-Id", header);
        }
        tokio::spawn(async move { request.send().await.unwrap() })
    };
    for (header, body) in [(Some("h-1"), json!({})), (Some("h-1"), json!({"request_id": "h-1"}))] {
        let answer = send(&rig, header, body);
        let played = rig.next().await;
        assert_eq!(played.request.id.as_str(), "h-1");
        played.play(&["x"]);
        assert_eq!(answer.await.unwrap().headers()["x-request-id"], "h-1");
    }
    // The header is for tracing: it goes back as it came, and what is no id there is no reason to refuse.
    for (header, body) in [
        ("h-1", json!({"request_id": "other"})),
        ("Root=1-5759e988-bd862e3f; Self=a.b", json!({})),
        (&"x".repeat(80), json!({})),
    ] {
        let asked = body["request_id"].as_str().map(str::to_owned);
        let answer = send(&rig, Some(header), body);
        let played = rig.next().await;
        let ran = played.request.id.to_string();
        assert!(asked.map_or(ran.len() == 32, |asked| asked == ran), "{ran}");
        played.play(&["x"]);
        let answer = answer.await.unwrap();
        assert_eq!(answer.headers()["x-request-id"], header);
        assert_eq!(answer.json::<Value>().await.unwrap()["id"], format!("chatcmpl-{ran}"));
    }
    let answer = send(&rig, Some("h-1"), json!({"request_id": "not an id"})).await.unwrap();
    assert_eq!(fault(answer).await.3.as_deref(), Some("request_id"));
    // A refused request gets its id back as well.
    let answer = send(&rig, Some("h-2"), json!({"whatever": 1})).await.unwrap();
    assert_eq!(answer.headers()["x-request-id"], "h-2");
    assert_eq!(answer.status(), 400);
}

#[actix_web::test]
async fn a_header_that_names_a_running_request_costs_a_fresh_id_and_a_body_that_does_is_refused() {
    let mut rig = Rig::new();
    let conflict = || Error::new(Kind::Conflict, "runs").with_param("request_id");
    for (path, body, prompts) in [
        (CHAT, chat(json!({"stream": true})), 1),
        ("/v1/completions", completion(json!({"prompt": ["a", "b"]})), 2),
    ] {
        let request = rig.client.post(rig.url(path)).header("x-request-id", "h").json(&body);
        let answer = tokio::spawn(request.send());
        for _ in 0..prompts {
            let taken = rig.next().await;
            assert!(taken.request.id.as_str().starts_with('h'));
            taken.refuse(&conflict());
        }
        let mut again = Vec::new();
        for _ in 0..prompts {
            again.push(rig.next().await);
        }
        assert!(again[0].request.id.as_str().len() >= 32);
        again.into_iter().for_each(|played| played.play(&["x"]));
        let answer = answer.await.unwrap().unwrap();
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["x-request-id"]),
            (200, &HeaderValue::from_static("h"))
        );
    }
    let answer = rig.post(CHAT, chat(json!({"request_id": "h"})));
    rig.next().await.refuse(&conflict());
    assert_eq!(fault(answer.await.unwrap()).await.0, 409);
}

#[actix_web::test]
async fn unknown_members_are_taken_and_named_where_the_configuration_says_so() {
    let ignores = Config { unknown_parameters: UnknownParameters::Ignore, ..config() };
    let mut rig = Rig::with(&ignores);
    let members =
        json!({"top_q": 1, "stream": true, "stream_options": {"x": 1}, "a,b\u{e4}": null});
    let answer = rig.post(CHAT, chat(members));
    rig.next().await.play(&["x"]);
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200);
    let mut named: Vec<&str> =
        answer.headers()["x-inferno-ignored"].to_str().unwrap().split(", ").collect();
    named.sort_unstable();
    assert_eq!(named, ["a%2Cb%C3%A4", "stream_options.x", "top_q"]);
    let answer = rig.post(CHAT, chat(json!({})));
    rig.next().await.play(&["x"]);
    assert!(!answer.await.unwrap().headers().contains_key("x-inferno-ignored"));
    // What is known is judged as ever.
    for body in [json!({"tools": [{}]}), json!({"top_p": "x"})] {
        assert_eq!(fault(rig.post(CHAT, chat(body)).await.unwrap()).await.0, 400);
    }
}

#[actix_web::test]
async fn what_a_template_may_read_reaches_admission() {
    let mut rig = Rig::new();
    let body = json!({
        "messages": [{"role": "user", "name": "ann", "content": "hi"}],
        "chat_template_kwargs": {"enable_thinking": false}, "add_generation_prompt": true,
    });
    let answer = rig.post(CHAT, chat(body));
    let played = rig.next().await;
    let Prompt::Messages(messages) = &played.request.prompt else { panic!("a chat") };
    assert_eq!(serde_json::to_value(messages).unwrap()[0]["name"], "ann");
    let variables = &played.request.params.chat_template_kwargs;
    assert_eq!(variables[0].0, "enable_thinking");
    played.play(&["x"]);
    assert_eq!(answer.await.unwrap().status(), 200);
}
