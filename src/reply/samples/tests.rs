//! Goal: however the events of samples fall, the request's sink sees each choice whole, one end, and one bill.

use super::super::testing::{Collected, Counts, Word};
use super::*;
use crate::ids::RequestId;
use crate::request::TokenLogprob;

struct Rig {
    samples: Vec<Sample>,
    told: Collected,
    counts: Arc<Counts>,
    handle: Arc<Handle>,
}

fn rig(count: u64, best: Option<Best>) -> Rig {
    let (told, counts) = (Collected::default(), Arc::new(Counts::default()));
    let handle = Handle::new(RequestId::parse("r").expect("an id"), SequenceId(1));
    let mut samples = Sample::of(SamplesStart {
        sink: Box::new(told.clone()),
        permit: counts.permit(),
        handle: Arc::clone(&handle),
        sequence_ids: (2..2 + count).map(SequenceId).collect(),
        told_ends: Vec::new(),
        best,
    });
    for sample in &mut samples {
        let own = Arc::clone(&sample.handle);
        sample.sink.accepted(&own);
    }
    Rig { samples, told, counts, handle }
}

fn event(tokens: u32, finish_reason: Option<FinishReason>) -> Event {
    let usage = Usage {
        prompt_tokens: 10,
        completion_tokens: tokens,
        total_tokens: 10 + tokens,
        cached_tokens: 8,
    };
    let receipt = Receipt { device: "cpu:0".to_owned(), prefill_tokens: 2, ..Receipt::default() };
    Event {
        token_ids: vec![7; tokens as usize],
        text: "x".to_owned(),
        finish_reason,
        usage: finish_reason.map(|_| usage),
        receipt: finish_reason.map(|_| Box::new(receipt)),
        ..Event::new(RequestId::parse("r").expect("an id"))
    }
}

/// (index, reason, last) of each event.
fn seen(told: &Collected) -> Vec<(u32, Option<FinishReason>, bool)> {
    told.events().iter().map(|event| (event.index, event.finish_reason, event.is_last())).collect()
}

const STOP: Option<FinishReason> = Some(FinishReason::Stop);
const LENGTH: Option<FinishReason> = Some(FinishReason::Length);
const CANCELLED: Option<FinishReason> = Some(FinishReason::Cancelled);
const FAILED: Option<FinishReason> = Some(FinishReason::Failed);

#[test]
fn choices_end_each_for_itself_and_the_bill_comes_once() {
    let Rig { mut samples, told, counts, handle } = rig(2, None);
    assert!(matches!(&told.words()[..], [Word::Accepted(id)] if id.as_str() == "r"));
    assert_eq!(samples[1].sink.event(event(1, None)), Ok(()));
    assert_eq!(samples[0].sink.event(event(3, LENGTH)), Ok(()));
    samples[0].permit.scheduled();
    assert_eq!(counts.scheduled(), 0, "one still waits");
    samples[1].permit.scheduled();
    samples[1].permit.computed(5);
    let mut ended = handle.wait();
    assert_eq!(samples[1].sink.event(event(2, STOP)), Ok(()));
    assert!(ended.try_recv().is_err() && counts.held() == 1);
    drop(samples);
    assert_eq!(seen(&told), [(1, None, false), (0, LENGTH, false), (1, STOP, true)]);
    let last = told.last().expect("an end");
    let usage = last.usage.expect("a bill");
    assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.total_tokens), (10, 5, 15));
    assert_eq!(last.receipt.expect("a bill").prefill_tokens, 4);
    assert_eq!([counts.scheduled(), counts.computed(), counts.held()], [1, 5, 0]);
    let ended = ended.try_recv().expect("it has ended");
    assert_eq!((ended.reason, ended.completion_tokens), (FinishReason::Length, 5));
}

#[test]
fn a_request_waits_while_one_of_its_samples_does() {
    let Rig { mut samples, counts, .. } = rig(3, None);
    for sample in &mut samples {
        sample.permit.scheduled();
        sample.permit.scheduled();
    }
    assert_eq!((counts.scheduled(), counts.returned()), (1, 0));
    samples[0].permit.returned();
    samples[0].permit.returned();
    assert_eq!((counts.scheduled(), counts.returned()), (1, 1));
    samples[1].permit.returned();
    samples[0].permit.scheduled();
    assert_eq!(counts.scheduled(), 1, "one still waits");
    samples.remove(1);
    assert_eq!((counts.scheduled(), counts.held()), (2, 1), "it ended, and the others run");
}

#[test]
fn a_failure_ends_the_request_and_stops_the_others() {
    let Rig { mut samples, told, handle, .. } = rig(3, None);
    assert_eq!(samples[0].sink.event(event(2, STOP)), Ok(()));
    let failed = Event { error: Some(Box::new(Error::internal("NaN"))), ..event(1, FAILED) };
    assert_eq!(samples[1].sink.event(failed), Ok(()));
    assert!(samples[2].handle.is_cancelled());
    assert!(samples[2].sink.is_closed());
    assert_eq!(samples[2].sink.event(event(1, CANCELLED)), Err(SinkClosed));
    let mut ended = handle.wait();
    drop(samples);
    assert_eq!(seen(&told), [(0, STOP, false), (1, FAILED, true)]);
    assert_eq!(ended.try_recv().map(|ended| ended.reason), Ok(FinishReason::Failed));
}

#[test]
fn a_cancel_is_told_once_by_the_last_and_keeps_every_token() {
    let Rig { mut samples, told, handle, .. } = rig(3, None);
    handle.cancel();
    for (index, reason) in [(0, CANCELLED), (2, CANCELLED), (1, STOP)] {
        assert_eq!(samples[index].sink.event(event(1, reason)), Ok(()));
    }
    let mut ended = handle.wait();
    drop(samples);
    assert_eq!(seen(&told), [(0, None, false), (2, None, false), (1, CANCELLED, true)]);
    let ended = ended.try_recv().expect("it has ended");
    assert_eq!((ended.reason, ended.completion_tokens), (FinishReason::Cancelled, 3));
}

#[test]
fn the_best_samples_by_mean_log_probability_are_the_choices() {
    let best = Best { num_choices: 2, tell_logprobs: false };
    let Rig { mut samples, told, .. } = rig(3, Some(best));
    for (index, logprobs) in [(0, vec![-1.0, -3.0]), (1, vec![-9.0]), (2, vec![-1.5])] {
        let entry = |logprob| TokenLogprob {
            token_id: 7,
            token: "x".to_owned(),
            bytes: None,
            logprob: Some(logprob),
            text_offset: 0,
            top: Vec::new(),
        };
        let logprobs = Some(logprobs.into_iter().map(entry).collect());
        let text = format!("sample {index}");
        let ended = Event { logprobs, text, ..event(1, STOP) };
        assert_eq!(samples[index].sink.event(ended), Ok(()));
        assert_eq!(told.events().len(), if index == 2 { 2 } else { 0 });
    }
    assert_eq!(seen(&told), [(0, STOP, false), (1, STOP, true)]);
    let events = told.events();
    assert_eq!([&events[0].text, &events[1].text], ["sample 2", "sample 0"]);
    assert!(events.iter().all(|event| event.logprobs.is_none()));
    assert_eq!(events[1].usage.map(|usage| usage.completion_tokens), Some(3), "all are paid for");
}

#[test]
fn a_refusal_is_told_once() {
    let told = Collected::default();
    let handle = Handle::new(RequestId::parse("r").expect("an id"), SequenceId(1));
    let start = SamplesStart {
        sink: Box::new(told.clone()),
        permit: Arc::new(Counts::default()).permit(),
        handle: Arc::clone(&handle),
        sequence_ids: vec![SequenceId(2), SequenceId(3)],
        told_ends: Vec::new(),
        best: None,
    };
    for mut sample in Sample::of(start) {
        sample.sink.refused(&Error::internal("no"));
        assert!(sample.handle.is_cancelled());
    }
    assert_eq!(told.words().len(), 1);
    assert_eq!(handle.wait().try_recv().map(|ended| ended.reason), Ok(FinishReason::Failed));
}
