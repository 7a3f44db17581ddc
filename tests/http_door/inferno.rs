//! Requests in the shape of Inferno's load balancers.

use inferno_node::error::{Error, Kind};
use inferno_node::request::{DefaultLength, Prompt};
use serde_json::{Value, json};

use crate::rig::Rig;

fn asked(more: Value) -> Value {
    let mut body = json!({"request_id": 7, "prompt": "once", "max_tokens": 9, "temperature": 0.5,
                          "top_p": 0.25, "seed": 3});
    for (key, value) in more.as_object().expect("an object") {
        body[key] = value.clone();
    }
    body
}

#[actix_web::test]
async fn a_number_without_a_model_is_a_request_for_the_first_model() {
    let mut rig = Rig::new();
    for path in ["/v1/completions", "/inference"] {
        let answer = rig.post(path, asked(json!({})));
        let played = rig.next().await;
        let request = &played.request;
        assert_eq!((&*request.model, request.stream), ("demo", false));
        assert_eq!(request.prompt, Prompt::Text("once".to_owned()));
        assert_eq!(request.default_length, DefaultLength::Completions);
        let params = &request.params;
        assert_eq!((params.max_tokens, params.seed), (Some(9), Some(3)));
        assert_eq!((params.temperature, params.top_p), (Some(0.5), Some(0.25)));
        // Two load balancers may count alike.
        assert_ne!(request.id.as_str(), "7");
        played.play(&["Hel", "lo"]);
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), 200);
        let body: Value = answer.json().await.unwrap();
        assert_eq!((&body["request_id"], &body["generated_text"]), (&json!(7), &json!("Hello")));
        assert_eq!((&body["generated_tokens"], &body["is_finished"]), (&json!(2), &json!(true)));
        assert_eq!(body["error"], Value::Null);
    }
}

#[actix_web::test]
async fn a_refusal_and_a_failure_come_in_its_shape_with_their_status() {
    let mut rig = Rig::new();
    let answer = rig.post("/inference", asked(json!({})));
    let full = Error::new(Kind::QueueFull, "full").with_retry_after_ms(2_000);
    rig.next().await.refuse(&full);
    let answer = answer.await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["retry-after"]),
        (429, &"2".parse().unwrap())
    );
    let body: Value = answer.json().await.unwrap();
    assert_eq!((&body["request_id"], &body["error"]), (&json!(7), &json!("full")));
    assert_eq!((&body["generated_text"], &body["is_finished"]), (&json!(""), &json!(true)));

    let answer = rig.post("/inference", asked(json!({})));
    let mut played = rig.next().await;
    played.accept();
    played.fail(Some(Error::internal("broke")));
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 500);
    assert_eq!(answer.json::<Value>().await.unwrap()["error"], "broke");
}

#[actix_web::test]
async fn what_cannot_be_read_is_refused_in_its_shape_by_name() {
    let rig = Rig::new();
    for (more, name) in [
        (json!({"prompt": 7}), "prompt"),
        (json!({"prompt": ["a", "b"]}), "prompt"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"stream": true}), "stream"),
        (json!({"top_k": 4}), "top_k"),
        (json!({"colour": "red"}), "colour"),
        (json!({"request_id": -7}), "request_id"),
    ] {
        let answer = rig.post("/inference", asked(more.clone())).await.unwrap();
        assert_eq!(answer.status(), 400, "{more}");
        let body: Value = answer.json().await.unwrap();
        let text = body["error"].as_str().unwrap_or_else(|| panic!("{more}: {body}"));
        assert!(text.starts_with(&format!("{name}: ")), "{more}: {text}");
        assert!(body["request_id"].is_u64(), "{body}");
    }
    // With a model it is OpenAI's, where an id is a text.
    let answer = rig.post("/inference", asked(json!({"model": "demo"}))).await.unwrap();
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["error"]["param"], "request_id");
}
