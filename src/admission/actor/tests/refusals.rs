//! What is let in, and what is refused.

use super::*;

#[test]
fn a_request_goes_all_the_way_and_gives_everything_back() {
    with_bench(|bench| async move {
        let sink = Collected::default();
        let params = Params {
            max_tokens: Some(9),
            min_tokens: Some(2),
            temperature: Some(0.5),
            top_k: Some(4),
            seed: Some(11),
            ignore_eos: Some(true),
            ..Params::default()
        };
        let asked = Request { params, priority: 200, ..request("a", ids(5), sink.clone()) };
        bench.admit(asked).await;
        let enqueue = bench.next_enqueued().await;
        let sequence = &enqueue.sequence;
        assert_eq!((sequence.num_prompt_tokens, sequence.token_ids.len()), (5, 5));
        assert_eq!((sequence.max_tokens, sequence.min_tokens), (9, 2));
        assert_eq!((sequence.attempt, sequence.failed_steps, sequence.priority), (1, 0, 200));
        assert_eq!((sequence.model, sequence.ignore_eos), (ModelId(5), true));
        let sampler = SamplerSpec {
            temperature: 0.5,
            top_k: 4,
            seed: 11,
            end_from: 7,
            ..SamplerSpec::neutral()
        };
        assert_eq!(*sequence.sampler, sampler);
        assert!(matches!(sink.words().as_slice(), [Word::Accepted(id)] if id.as_str() == "a"));
        assert_eq!((bench.ledger.num_requests(), bench.ledger.waiting_tokens()), (1, 14));
        assert_eq!(bench.model.in_use.load(Ordering::Relaxed), 1);
        let scheduled = |s: &mut Stream| s.scheduled(&DeviceId::new("cpu:0"), 0, Timestamp::now());
        scheduled(&mut enqueue.stream.lock().expect("no test panics in it"));
        assert_eq!(bench.ledger.waiting_tokens(), 0);
        assert_eq!(bench.observed.words(), ["started a"]);
        finish(&enqueue, FinishReason::Length);
        bench.assert_empty();
        assert_eq!(bench.ledger.computed_tokens(), 7);
        assert_eq!(bench.observed.words(), ["started a", "ended a"]);
        let receipt = sink.last().and_then(|e| e.receipt).expect("in the last event");
        assert_eq!(receipt.node_id, "node-1");
    });
}

#[test]
fn text_and_messages_are_tokenized_and_defaults_filled_in() {
    with_bench(|bench| async move {
        let sink = Collected::default();
        bench.admit(request("t", Prompt::Text("hi".into()), sink.clone())).await;
        let text = bench.next_enqueued().await;
        assert_eq!((text.sequence.num_prompt_tokens, text.sequence.max_tokens), (3, 61));
        let chat = vec![ChatMessage::new("user", "hi")];
        bench.admit(request("c", Prompt::Messages(chat), sink.clone())).await;
        let chat = bench.next_enqueued().await;
        assert_eq!((chat.sequence.num_prompt_tokens, chat.sequence.max_tokens), (19, 45));
        assert_ne!(text.sequence.sampler.seed, chat.sequence.sampler.seed);
        assert_ne!(text.sequence.id, chat.sequence.id);
        let short = Request {
            default_length: crate::request::DefaultLength::Completions,
            ..request("s", ids(1), sink)
        };
        bench.admit(short).await;
        assert_eq!(bench.next_enqueued().await.sequence.max_tokens, 16);
    });
}

#[test]
fn every_refusal_names_its_kind_and_gives_everything_back() {
    with_bench(|bench| async move {
        let text = |text: &str| Prompt::Text(text.into());
        let wizard = vec![ChatMessage::new("wizard", "hi")];
        let top_p = Params { top_p: Some(2.0), ..Params::default() };
        let long = Params { max_tokens: Some(60), ..Params::default() };
        let sink = Collected::default;
        let ask = |prompt, sink: &Collected| request("r", prompt, sink.clone());
        let to = |model: &str, sink: &Collected| Request {
            model: model.into(),
            ..request("r", ids(1), sink.clone())
        };
        let with = |params, sink: &Collected| Request {
            params,
            ..request("r", text("12345"), sink.clone())
        };
        type Make<'a> = Box<dyn Fn(&Collected) -> Request + 'a>;
        let cases: Vec<(Kind, &str, Make<'_>)> = vec![
            (Kind::NotFound, "model", Box::new(|s| to("other", s))),
            (Kind::Unavailable, "", Box::new(|s| to("later", s))),
            (Kind::Invalid, "top_p", Box::new(|s| with(top_p.clone(), s))),
            (Kind::ContextLength, "max_tokens", Box::new(|s| with(long.clone(), s))),
            (Kind::Invalid, "prompt", Box::new(|s| ask(text(""), s))),
            (Kind::TooLarge, "prompt", Box::new(|s| ask(text(&"x".repeat(2_000_000)), s))),
            (Kind::ContextLength, "prompt", Box::new(|s| ask(text(&"x".repeat(64)), s))),
            (Kind::Invalid, "messages", Box::new(|s| ask(Prompt::Messages(wizard.clone()), s))),
            (Kind::Invalid, "prompt_token_ids", Box::new(|s| ask(Prompt::TokenIds(vec![300]), s))),
            (Kind::ContextLength, "prompt_token_ids", Box::new(|s| ask(ids(64), s))),
        ];
        for (kind, param, make) in cases {
            let sink = sink();
            bench.admit(make(&sink)).await;
            until(|| sink.refusal().is_some()).await;
            let error = sink.refusal().expect("refused");
            assert_eq!(
                (error.kind, error.param.as_deref().unwrap_or("")),
                (kind, param),
                "{error}"
            );
            let wants_retry = matches!(kind, Kind::Unavailable);
            assert_eq!(error.retry_after_ms.is_some(), wants_retry, "{error}");
            assert_eq!(sink.words().len(), 1);
            until(|| bench.ledger.num_requests() == 0).await;
            bench.assert_empty();
        }
        assert_eq!(bench.observed.words(), [""; 0]);
        assert!(bench.enqueued().is_empty());
    });
}

#[test]
fn refuses_when_it_holds_as_many_as_it_may() {
    let config = Config { max_requests: 2, retry_after_ms: 1_234, ..Config::default() };
    on_bench(config, FakeScheduler::default(), |bench| async move {
        let (first, sink) = (Collected::default(), Collected::default());
        bench.admit(request("a", ids(1), first.clone())).await;
        bench.admit(request("b", ids(1), first.clone())).await;
        bench.admit(request("c", ids(1), sink.clone())).await;
        let error = sink.refusal().expect("refused");
        assert_eq!(error.kind, Kind::QueueFull);
        // Nothing is done yet: the first of the two places is taken to be free 1,234 ms after it was taken, by caution a quarter more.
        assert!(error.retry_after_ms.is_some_and(|ms| (1_000..=1_543).contains(&ms)), "{error:?}");
        let next = Collected::default();
        bench.admit(request("d", ids(1), next.clone())).await;
        let later = next.refusal().and_then(|next| next.retry_after_ms);
        assert!(later > error.retry_after_ms, "those refused before it are counted: {later:?}");
        until(|| bench.scheduler.enqueued.lock().is_ok_and(|e| e.len() == 2)).await;
        let held = bench.enqueued();
        finish(&held[0], FinishReason::Stop);
        bench.admit(request("c", ids(1), Collected::default())).await;
        assert_eq!(bench.ledger.num_requests(), 2);
    });
}

#[test]
fn refuses_when_too_many_tokens_wait() {
    let config = Config { max_waiting_tokens: 50, ..Config::default() };
    on_bench(config, FakeScheduler::default(), |bench| async move {
        let ask = |id: &str, sink: &Collected| Request {
            params: Params { max_tokens: Some(30), ..Params::default() },
            ..request(id, ids(10), sink.clone())
        };
        let (first, second) = (Collected::default(), Collected::default());
        bench.admit(ask("a", &first)).await;
        bench.admit(ask("b", &second)).await;
        assert_eq!(second.refusal().map(|e| e.kind), Some(Kind::QueueFull));
        assert!(second.refusal().is_some_and(|e| e.retry_after_ms.is_some()));
        let enqueue = bench.next_enqueued().await;
        let device = DeviceId::new("cpu:0");
        let scheduled = |s: &mut Stream| s.scheduled(&device, 0, Timestamp::now());
        scheduled(&mut enqueue.stream.lock().expect("no test panics in it"));
        let third = Collected::default();
        bench.admit(ask("b", &third)).await;
        assert_eq!(third.refusal(), None);
    });
}

#[test]
fn an_id_that_runs_is_a_conflict_until_its_end() {
    with_bench(|bench| async move {
        let (first, second, third) =
            (Collected::default(), Collected::default(), Collected::default());
        bench.admit(request("a", ids(1), first)).await;
        bench.admit(request("a", ids(1), second.clone())).await;
        assert_eq!(second.refusal().map(|e| e.kind), Some(Kind::Conflict));
        finish(&bench.next_enqueued().await, FinishReason::Stop);
        bench.admit(request("a", ids(1), third.clone())).await;
        assert_eq!(third.refusal(), None);
    });
}

#[test]
fn drain_and_lost_devices_refuse_with_a_time() {
    with_bench(|bench| async move {
        let kind_now = async || {
            let sink = Collected::default();
            bench.admit(request("a", ids(1), sink.clone())).await;
            bench.enqueued();
            sink.refusal().map(|e| (e.kind, e.retry_after_ms))
        };
        bench.tell(DevicesUp(0)).await;
        assert_eq!(kind_now().await, Some((Kind::Unavailable, Some(1_000))));
        bench.tell(DevicesUp(1)).await;
        assert_eq!(kind_now().await, None);
        until(|| {
            bench.enqueued();
            bench.ledger.num_requests() == 0
        })
        .await;
        bench.tell(Drain).await;
        assert_eq!(kind_now().await, Some((Kind::Draining, Some(1_618))), "not at once with that");
        bench.assert_empty();
    });
}

#[test]
fn models_come_and_go() {
    with_bench(|bench| async move {
        let kind_of = async |name: &str| {
            let sink = Collected::default();
            let asked = Request { model: name.into(), ..request("a", ids(1), sink.clone()) };
            bench.admit(asked).await;
            sink.refusal().map(|e| e.kind)
        };
        assert_eq!(kind_of("later").await, Some(Kind::Unavailable));
        bench.tell(ModelDown { name: "later".into() }).await;
        assert_eq!(kind_of("later").await, Some(Kind::NotFound));
        bench.tell(ModelUp(model("later"))).await;
        assert_eq!(kind_of("later").await, None);
        bench.tell(ModelDown { name: "m".into() }).await;
        assert_eq!(kind_of("m").await, Some(Kind::NotFound));
    });
}

#[test]
fn a_scheduler_that_is_full_or_gone_means_refused_not_accepted() {
    let stuck = FakeScheduler { stuck: true, ..FakeScheduler::default() };
    on_bench(Config::default(), stuck, |bench| async move {
        let mut accepted = Vec::new();
        let refused = loop {
            let sink = Collected::default();
            let id = format!("r{}", accepted.len());
            bench.admit(request(&id, ids(1), sink.clone())).await;
            if let Some(error) = sink.refusal() {
                assert_eq!(sink.words().len(), 1);
                break error;
            }
            accepted.push(sink);
            // More than a mailbox holds whose actor has not begun.
            assert!(accepted.len() < 64, "the mailbox has a bound");
        };
        assert_eq!(refused.kind, Kind::QueueFull);
        assert_eq!(bench.ledger.num_requests(), accepted.len());
        // The observers heard of its end, too.
        assert_eq!(bench.observed.words().len(), accepted.len() + 2);

        // The scheduler goes, and with it what waited in its mailbox: each gets its last event.
        bench.arbiters[0].stop();
        until(|| bench.ledger.num_requests() == 0).await;
        let failed = |s: &Collected| s.last().and_then(|e| e.finish_reason);
        assert!(accepted.iter().all(|s| failed(s) == Some(FinishReason::Failed)));
        // Its address closes a moment after what waited was dropped; until then it is full, or takes what is dropped at once.
        let late = async || {
            let sink = Collected::default();
            bench.admit(request("late", ids(1), sink.clone())).await;
            until(|| bench.ledger.num_requests() == 0).await;
            sink.refusal().map(|e| e.kind)
        };
        while late().await != Some(Kind::Unavailable) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        bench.assert_empty();
    });
}
