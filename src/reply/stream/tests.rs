use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::super::testing::{Collected, Fixture, Word, at, ids, lock, tokens, with_stop};
use super::*;
use crate::request::{Receipt, Usage};
use crate::tokenizer::IncrementalDecoder;
use crate::tokenizer::testing::{self, END};

#[test]
fn events_have_gapless_seq_and_the_last_one_has_the_bill() {
    let sink = Collected::default();
    let started = Fixture::default().start(&sink);
    let mut stream = lock(&started);
    stream.scheduled(&DeviceId::new("cpu:0"), 2, at(3_000));
    stream.push(1, &tokens("a"), None, at(6_000));
    stream.push(1, &tokens("bc"), None, at(7_000));
    stream.push(1, &[END.into()], Some(FinishReason::Stop), at(9_000));
    let events = sink.events();
    assert_eq!(events.iter().map(|e| e.seq).collect::<Vec<_>>(), [0, 1, 3]);
    assert_eq!(sink.text(), "abc");
    assert_eq!(sink.token_ids(), [ids("abc"), vec![END]].concat());
    assert!(events[..2].iter().all(|e| {
        e.finish_reason.is_none() && e.usage.is_none() && e.receipt.is_none() && e.error.is_none()
    }));
    let last = &events[2];
    assert_eq!(last.finish_reason, Some(FinishReason::Stop));
    let usage = Usage { prompt_tokens: 3, completion_tokens: 4, total_tokens: 7, cached_tokens: 2 };
    assert_eq!(last.usage, Some(usage));
    let receipt = Receipt {
        node_id: "node-1".into(),
        device: "cpu:0".into(),
        attempt: 1,
        queue_ms: 2.0,
        prefill_ms: 3.0,
        decode_ms: 3.0,
        cached_tokens: 2,
        prefill_tokens: 1,
        exact: None,
    };
    assert_eq!(last.receipt.as_deref(), Some(&receipt));
    assert_eq!((started.permits(), started.scheduled(), started.computed()), (0, 1, 7));
    let ended = Ended { reason: FinishReason::Stop, completion_tokens: 4 };
    assert_eq!(started.handle.wait().try_recv(), Ok(ended));
    assert!(started.handle.wants_no_more() && stream.is_ended() && stream.num_tokens() == 4);
}

#[test]
fn a_request_that_does_not_stream_gets_one_event() {
    let sink = Collected::default();
    let started = Fixture { stream: false, ..Fixture::default() }.start(&sink);
    let mut stream = lock(&started);
    for c in ["x", "y", "z"] {
        stream.push(1, &tokens(c), None, at(5_000));
        assert_eq!(sink.events(), []);
    }
    stream.push(1, &[], Some(FinishReason::Length), at(6_000));
    let last = sink.last().expect("ended");
    assert_eq!((last.seq, last.text.as_str(), last.token_ids.len()), (0, "xyz", 3));
    assert_eq!(sink.words().len(), 2);
}

#[test]
fn a_character_over_several_tokens_is_shown_when_it_is_whole() {
    let sink = Collected::default();
    let started = Fixture::default().start(&sink);
    let mut stream = lock(&started);
    for token in tokens("é🙂") {
        stream.push(1, &[token], None, at(5_000));
    }
    let texts: Vec<String> = sink.events().into_iter().map(|e| e.text).collect();
    assert_eq!(texts, ["", "é", "", "", "", "🙂"]);
    // Half a character at the end is not shown.
    stream.push(1, &tokens("🙂")[..2], Some(FinishReason::Length), at(5_000));
    assert_eq!(sink.text(), "é🙂");
}

#[test]
fn a_stop_string_over_token_borders_ends_it_and_is_not_shown() {
    let sink = Collected::default();
    let started = with_stop(&["END", "never"]).start(&sink);
    let mut stream = lock(&started);
    for token in ["o", "k", " ", "E", "N"] {
        stream.push(1, &tokens(token), None, at(5_000));
    }
    assert_eq!(sink.text(), "ok ");
    // The tokens behind the stop string's last one were never asked for.
    stream.push(1, &tokens("D more"), None, at(6_000));
    assert_eq!(sink.text(), "ok ");
    assert_eq!(sink.token_ids(), ids("ok END"));
    let last = sink.last().expect("ended");
    assert_eq!(last.finish_reason, Some(FinishReason::Stop));
    assert_eq!(last.usage.map(|u| u.completion_tokens), Some(6));
    assert!(started.handle.wants_no_more() && !started.handle.is_cancelled());
    stream.push(1, &tokens("late"), Some(FinishReason::Length), at(7_000));
    assert_eq!(sink.events().len(), 6);
}

#[test]
fn held_back_text_is_shown_when_no_stop_string_came() {
    for (finish, tail) in [
        (FinishReason::Length, vec![]),
        (FinishReason::Stop, vec![END.into()]),
        (FinishReason::Cancelled, vec![]),
    ] {
        let sink = Collected::default();
        let started = with_stop(&["END"]).start(&sink);
        let mut stream = lock(&started);
        stream.push(1, &tokens("ok EN"), None, at(5_000));
        assert_eq!(sink.text(), "ok ");
        stream.push(1, &tail, Some(finish), at(6_000));
        assert_eq!(sink.text(), "ok EN");
    }
}

#[test]
fn min_tokens_delays_stop_strings() {
    let sink = Collected::default();
    let started = Fixture { min_tokens: 3, ..with_stop(&["a"]) }.start(&sink);
    let mut stream = lock(&started);
    for _ in 0..3 {
        stream.push(1, &tokens("a"), None, at(5_000));
    }
    assert!(!stream.is_ended());
    stream.push(1, &tokens("a"), None, at(5_000));
    assert!(stream.is_ended());
    assert_eq!(sink.text(), "aaa");
}

#[test]
fn an_end_token_that_is_text_is_not_shown() {
    let sink = Collected::default();
    let started = Fixture::default().start(&sink);
    lock(&started).push(1, &tokens("ok!"), Some(FinishReason::Stop), at(5_000));
    assert_eq!((sink.text(), sink.token_ids()), ("ok".to_owned(), ids("ok!")));
}

#[test]
fn a_sink_that_closes_cancels() {
    for stream in [true, false] {
        let sink = Collected::default();
        let started = Fixture { stream, ..Fixture::default() }.start(&sink);
        lock(&started).push(1, &tokens("a"), None, at(5_000));
        sink.close();
        lock(&started).push(1, &tokens("b"), None, at(6_000));
        assert!(started.handle.is_cancelled());
        let last = sink.last().expect("ended");
        assert_eq!(last.finish_reason, Some(FinishReason::Cancelled));
        assert_eq!(sink.token_ids(), ids("ab"));
        assert_eq!(last.seq, if stream { 2 } else { 0 });
        assert_eq!(started.permits(), 0);
    }
}

#[test]
fn a_cancel_seen_with_new_tokens_counts_them_and_ends() {
    let sink = Collected::default();
    let started = Fixture::default().start(&sink);
    lock(&started).push(1, &tokens("a"), None, at(5_000));
    started.handle.cancel();
    lock(&started).push(1, &tokens("b"), None, at(6_000));
    let last = sink.last().expect("ended");
    assert_eq!(last.finish_reason, Some(FinishReason::Cancelled));
    assert_eq!(last.usage.map(|u| u.completion_tokens), Some(2));
    assert_eq!(last.error, None);
}

#[test]
fn a_new_start_ignores_what_comes_late_from_the_old_one() {
    let sink = Collected::default();
    let started = Fixture::default().start(&sink);
    let mut stream = lock(&started);
    stream.scheduled(&DeviceId::new("cpu:0"), 0, at(2_000));
    stream.push(1, &tokens("ab"), None, at(5_000));
    assert_eq!(stream.restart(2), Some(2));
    assert_eq!(started.counts().returned(), 1);
    stream.push(1, &tokens("X"), Some(FinishReason::Length), at(6_000));
    stream.scheduled(&DeviceId::new("cpu:1"), 3, at(7_000));
    stream.push(2, &tokens("c"), Some(FinishReason::Length), at(8_000));
    assert_eq!(sink.text(), "abc");
    let last = sink.last().expect("ended");
    assert_eq!((last.attempt, last.seq), (2, 2));
    let receipt = last.receipt.expect("in the last event");
    assert_eq!((receipt.attempt, receipt.device.as_str(), receipt.queue_ms), (2, "cpu:1", 1.0));
    assert_eq!(receipt.cached_tokens, 0);
    assert_eq!(started.scheduled(), 2, "it waited again");
    assert_eq!((stream.restart(3), started.counts().returned()), (None, 1), "it has ended");
}

#[test]
fn a_stream_dropped_unfinished_fails() {
    let sink = Collected::default();
    let started = Fixture::default().start(&sink);
    let handle = Arc::clone(&started.handle);
    drop(started);
    let last = sink.last().expect("ended");
    assert_eq!(last.finish_reason, Some(FinishReason::Failed));
    assert_eq!(last.error.map(|e| e.kind), Some(Kind::Internal));
    assert_eq!(handle.wait().try_recv().map(|e| e.reason), Ok(FinishReason::Failed));
}

#[test]
fn a_stream_nobody_was_told_of_is_refused() {
    let sink = Collected::default();
    let started = Fixture { accept: false, ..Fixture::default() }.start(&sink);
    let cancelled = Error::new(Kind::Cancelled, "meanwhile");
    lock(&started).refuse(&cancelled);
    lock(&started).refuse(&Error::internal("again"));
    lock(&started).accept();
    assert_eq!(sink.words(), [Word::Refused(cancelled)]);
    assert_eq!(started.permits(), 0);
    let end = started.handle.wait().try_recv().map(|e| e.reason);
    assert_eq!(end, Ok(FinishReason::Cancelled));

    let sink = Collected::default();
    drop(Fixture { accept: false, ..Fixture::default() }.start(&sink));
    assert_eq!(sink.refusal().map(|e| e.kind), Some(Kind::Internal));
    assert_eq!(sink.words().len(), 1);
}

#[test]
fn a_failure_without_a_reason_still_has_an_error() {
    let sink = Collected::default();
    let started = Fixture::default().start(&sink);
    lock(&started).push(1, &[], Some(FinishReason::Failed), at(4_000));
    let last = sink.last().expect("ended");
    assert_eq!(last.error.map(|e| e.kind), Some(Kind::Internal));
    // It never was on a device: all its time was queue time.
    let receipt = last.receipt.expect("in the last event");
    assert_eq!((receipt.queue_ms, receipt.prefill_ms, receipt.decode_ms), (3.0, 0.0, 0.0));
    assert_eq!(receipt.device, "");
}

/// Whatever the owners do and in whatever order: one acceptance, gapless seq, exactly one last event, one permit back.
#[test]
fn any_interleaving_ends_exactly_once() {
    let text = tokens("some text, 你好 🙂 STOP and more of it");
    for seed in 0..2_000u64 {
        let mut rng = StdRng::seed_from_u64(seed);
        let sink = Collected::default();
        let stop = rng.random_bool(0.5).then(|| "STOP".to_owned()).into_iter().collect();
        let streams = rng.random_bool(0.7);
        let started = Fixture { stop, stream: streams, ..Fixture::default() }.start(&sink);
        let (mut attempt, mut fed) = (1, 0);
        for step in 0..rng.random_range(1..40u64) {
            let now = at(2_000 + step * 10);
            let mut stream = lock(&started);
            match rng.random_range(0..40) {
                0 => stream.cancel(now),
                1 => stream.fail(Error::internal("step"), now),
                2 => started.handle.cancel(),
                3 => sink.close(),
                4 => {
                    attempt += 1;
                    fed = stream.restart(attempt).map_or(fed, |taken| taken as usize);
                }
                5 => stream.push(attempt - 1, &text[..1], None, now),
                6 => {
                    let ends = [FinishReason::Stop, FinishReason::Length, FinishReason::Cancelled];
                    stream.push(attempt, &[END.into()], ends.choose(&mut rng).copied(), now);
                }
                7 => stream.scheduled(&DeviceId::new("cpu:0"), rng.random_range(0..9), now),
                _ => {
                    let upto = (fed + rng.random_range(0..4)).min(text.len());
                    stream.push(attempt, &text[fed..upto], None, now);
                    fed = upto;
                }
            }
        }
        let handle = Arc::clone(&started.handle);
        let counts = started.finish();
        check(seed, &sink, streams);
        let ended = handle.wait().try_recv().expect("ended");
        assert_eq!(ended.completion_tokens as usize, sink.token_ids().len(), "seed {seed}");
        assert_eq!(counts, 0, "seed {seed}: permits");
    }
}

fn check(seed: u64, sink: &Collected, streams: bool) {
    let words = sink.words();
    assert!(matches!(words[0], Word::Accepted(_)), "seed {seed}");
    let events = sink.events();
    assert_eq!(events.len() + 1, words.len(), "seed {seed}: accepted twice or refused");
    if !streams {
        assert_eq!(events.len(), 1, "seed {seed}");
    }
    let mut next = 0;
    for (index, event) in events.iter().enumerate() {
        assert_eq!(event.seq, next, "seed {seed}: a gap");
        next += event.token_ids.len() as u32;
        let is_last = index + 1 == events.len();
        assert_eq!(event.finish_reason.is_some(), is_last, "seed {seed}");
        assert_eq!(event.usage.is_some() && event.receipt.is_some(), is_last, "seed {seed}");
        let failed = event.finish_reason == Some(FinishReason::Failed);
        assert_eq!(event.error.is_some(), failed, "seed {seed}");
    }
    assert_eq!(events.last().and_then(|e| e.usage).map(|u| u.completion_tokens), Some(next));
}

#[test]
fn a_row_that_could_not_be_sampled_fails_with_its_reason() {
    for (fault, kind, says) in [
        (RowFault::NotANumber, Kind::Internal, "token 2 of the completion"),
        (RowFault::PromptNotANumber, Kind::Internal, "for the prompt"),
        (RowFault::NothingLeft, Kind::Invalid, "token 2 of the completion"),
    ] {
        let sink = Collected::default();
        let started = Fixture::default().start(&sink);
        let mut stream = lock(&started);
        stream.push(1, &tokens("ab"), None, at(5_000));
        assert_eq!(stream.restart(2), Some(2));
        stream.fault(1, fault, at(5_500));
        assert!(!stream.is_ended(), "of a start that was given up");
        stream.fault(2, fault, at(6_000));
        let last = sink.last().expect("ended");
        assert_eq!((last.finish_reason, last.seq), (Some(FinishReason::Failed), 2));
        let error = last.error.expect("says why");
        assert_eq!(error.kind, kind);
        assert!(error.message.contains(says), "{error}");
        assert_eq!(started.permits(), 0);
    }
}

/// A prompt "pé" of four tokens (a mark, and bytes), shown with log probabilities.
fn shown(echo: bool) -> PromptShown {
    let tokenizer = testing::bytes();
    PromptShown {
        token_ids: [vec![END], ids("pé")].concat(),
        decoder: IncrementalDecoder::new(tokenizer, &[]),
        echo,
        text: None,
        num_logprobs: Some(0),
    }
}

fn scores(count: usize) -> Vec<Scores> {
    vec![Scores { logprob: -1.0, top: Vec::new() }; count]
}

#[test]
fn the_first_event_has_the_prompt_and_offsets_go_on_behind_its_echo() {
    for streams in [true, false] {
        for echo in [true, false] {
            let sink = Collected::default();
            let prompt = Some(shown(echo));
            let fixture = Fixture { shown: prompt, logprobs: Some(0), ..with_stop(&["pé"]) };
            let started = Fixture { stream: streams, ..fixture }.start(&sink);
            let mut stream = lock(&started);
            stream.tell_prompt(1, scores(3));
            stream.push(1, &tokens("a"), None, at(5_000));
            stream.push(1, &tokens("b"), Some(FinishReason::Length), at(6_000));
            assert_eq!(sink.text(), if echo { "péab" } else { "ab" }, "no stop string is in it");
            let events = sink.events();
            let entries = events[0].prompt_logprobs.as_ref().expect("wanted");
            assert_eq!((entries.len(), entries[0].logprob), (4, None));
            assert!(events[1..].iter().all(|event| event.prompt_logprobs.is_none()));
            let offsets =
                events.iter().flat_map(|event| event.logprobs.clone().unwrap_or_default());
            let offsets: Vec<_> = offsets.map(|entry| entry.text_offset).collect();
            assert_eq!(offsets, if echo { [2, 3] } else { [0, 1] });
        }
    }
}

#[test]
fn a_prompt_is_told_once_and_only_with_what_was_asked_about_it() {
    let sink = Collected::default();
    let started = Fixture { shown: Some(shown(true)), ..Fixture::default() }.start(&sink);
    let mut stream = lock(&started);
    stream.restart(2);
    stream.tell_prompt(1, scores(3));
    stream.tell_prompt(2, Vec::new());
    stream.tell_prompt(2, scores(3));
    stream.tell_prompt(2, scores(3));
    stream.push(2, &[], Some(FinishReason::Length), at(5_000));
    let last = sink.last().expect("ended");
    assert_eq!((last.text.as_str(), last.token_ids.len()), ("pé", 0));
    assert_eq!(last.prompt_logprobs.map(|entries| entries.len()), Some(4));
    assert_eq!(last.usage.map(|usage| usage.completion_tokens), Some(0));
    assert_eq!((sink.events().len(), started.computed()), (1, 3), "its prompt was computed");
}
