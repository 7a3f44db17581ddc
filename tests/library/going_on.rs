//! A completion that was begun elsewhere.

use futures_util::StreamExt;
use inferno_node::engine::{Answer, InferRequest};
use inferno_node::error::Kind;
use inferno_node::request::{Params, SampleSoFar, SoFar, Token};

use super::{config, request, start};

/// What a completion has after `count` tokens, as another node would have kept it.
fn begun(answer: &Answer, count: usize, attempt: u32) -> SoFar {
    let tokens = answer.token_ids[..count].iter().copied().map(Token::from).collect();
    SoFar::of(SampleSoFar { tokens, ..SampleSoFar::default() }, attempt)
}

#[tokio::test]
async fn a_completion_goes_on_from_any_of_its_tokens_as_if_it_had_never_stopped() {
    let engine = start(config()).await;
    // Penalties count what came before, and a stop string may stand across the border.
    let params = Params {
        max_tokens: Some(40),
        seed: Some(11),
        ignore_eos: Some(true),
        temperature: Some(0.9),
        presence_penalty: Some(0.5),
        repetition_penalty: Some(1.1),
        ..Params::default()
    };
    let asked = InferRequest::text("demo", "Once upon a time").params(params);
    let whole = engine.infer(asked.clone()).await.expect("an answer");
    let middle = &whole.generated_text[whole.generated_text.len() * 2 / 3..];
    let stop: String = middle.chars().take(6).collect();
    let params = Params { stop: vec![stop.clone()], ..asked.params.clone() };
    let with_stop = InferRequest { params, ..asked.clone() };
    for asked in [asked, with_stop] {
        let whole = engine.infer(asked.clone()).await.expect("an answer");
        let mut shown = String::new();
        for count in 0..whole.token_ids.len() {
            let so_far = begun(&whole, count, 3);
            let rest = InferRequest { so_far, ..asked.clone() };
            let one = engine.infer(rest.clone()).await.expect("an answer");
            assert_eq!(one.token_ids, whole.token_ids, "from {count}");
            assert_eq!(one.generated_text, whole.generated_text, "from {count}");
            assert_eq!(one.usage.total_tokens, whole.usage.total_tokens);
            assert_eq!(one.finish_reason, whole.finish_reason);
            assert_eq!(one.receipt.attempt, 3);

            let events: Vec<_> = engine.stream(rest).expect("taken").collect().await;
            let events: Vec<_> =
                events.into_iter().map(|event| event.expect("no failure")).collect();
            let ids: Vec<_> = events.iter().flat_map(|event| event.token_ids.clone()).collect();
            assert_eq!(ids, whole.token_ids[count..], "from {count}");
            assert_eq!((events[0].seq, events[0].attempt), (count as u32, 3));
            let text: String = events.iter().map(|event| event.text.as_str()).collect();
            assert!(
                whole.generated_text.ends_with(&text),
                "{text:?} of {:?}",
                whole.generated_text
            );
            if count == 0 {
                shown.clone_from(&whole.generated_text);
            }
            assert!(text.len() <= shown.len(), "text comes once");
            shown = text;
        }
    }
    assert_eq!(engine.shutdown().await, Ok(0));
}

#[tokio::test]
async fn what_cannot_go_on_is_refused_by_name() {
    let engine = start(config()).await;
    let whole = engine.infer(request(1)).await.expect("an answer");
    let with = |so_far, params| InferRequest { so_far, params, ..request(1) };
    let params = request(1).params;
    let none_left = with(begun(&whole, 24, 2), params.clone());
    let strange =
        SoFar::of(SampleSoFar { tokens: vec![Token::from(1 << 30)], ..SampleSoFar::default() }, 1);
    let twice = SoFar { samples: vec![SampleSoFar::default(); 2], ..SoFar::default() };
    let scored = Params { prompt_logprobs: Some(1), ..params.clone() };
    for (refused, kind, name) in [
        (none_left, Kind::Invalid, "so_far"),
        (with(strange, params.clone()), Kind::Invalid, "so_far"),
        (
            with(SoFar { attempt: 0, ..begun(&whole, 3, 0) }, params),
            Kind::Invalid,
            "so_far.attempt",
        ),
        (with(twice, request(1).params), Kind::Invalid, "so_far.samples"),
        (with(begun(&whole, 3, 2), scored), Kind::Unsupported, "so_far"),
    ] {
        let error = engine.infer(refused).await.expect_err(name);
        assert_eq!((error.kind, error.param.as_deref()), (kind, Some(name)), "{error}");
    }
    assert_eq!(engine.shutdown().await, Ok(0));
}
