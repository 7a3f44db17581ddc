//! What reply does for a completion of 64 tokens that streams: text, counts, events, the end with its receipt.

use std::sync::{Arc, PoisonError};

use criterion::{BatchSize, Criterion, Throughput};
use inferno_node::clock::Timestamp;
use inferno_node::ids::DeviceId;
use inferno_node::reply::{Permit, SharedStream, Stream, StreamStart};
use inferno_node::request::{FinishReason, SampleSoFar, Token};
use inferno_node::telemetry::{self, Metrics};
use inferno_node::tokenizer::{IncrementalDecoder, Tokenizer};

use super::{LEN, Nowhere, sequence, tokenizer};

struct Free;

impl Permit for Free {
    fn scheduled(&mut self) {}

    fn returned(&mut self) {}

    fn computed(&mut self, _: u32) {}
}

fn stream(tokenizer: &Arc<Tokenizer>, metrics: &Arc<Metrics>, stop: &[&str]) -> SharedStream {
    let sequence = sequence(1, LEN);
    Stream::new(StreamStart {
        handle: sequence.handle.clone(),
        sink: Box::new(Nowhere),
        decoder: IncrementalDecoder::new(tokenizer.clone(), &sequence.token_ids),
        stop: stop.iter().map(|text| (*text).to_owned()).collect(),
        include_stop: false,
        num_logprobs: None,
        prompt: None,
        begun: SampleSoFar::default(),
        attempt: 1,
        min_tokens: 0,
        stream: true,
        num_prompt_tokens: LEN,
        accepted_at: Timestamp::from_micros(0),
        node_id: "node".into(),
        metrics: metrics.clone(),
        permit: Box::new(Free),
    })
}

fn complete(stream: SharedStream) {
    let device = DeviceId::new("sim:0");
    let mut stream = stream.lock().unwrap_or_else(PoisonError::into_inner);
    stream.accept();
    stream.scheduled(&device, 0, Timestamp::from_micros(1));
    for at in 1..=LEN {
        let finish = (at == LEN).then_some(FinishReason::Length);
        stream.push(1, &[Token::from(300 + at * 37)], finish, Timestamp::from_micros(at.into()));
    }
}

pub fn bench(criterion: &mut Criterion) {
    telemetry::recorder().expect("no other recorder in this process");
    let (tokenizer, metrics) = (tokenizer(), Arc::new(Metrics::new("bench")));
    let mut group = criterion.benchmark_group("reply_push");
    group.throughput(Throughput::Elements(LEN.into()));
    for (name, stop) in [("plain", &[][..]), ("stop", &["\n\nUser:", "###"])] {
        group.bench_function(name, |b| {
            let stream = || stream(&tokenizer, &metrics, stop);
            b.iter_batched(stream, complete, BatchSize::SmallInput);
        });
    }
    group.finish();
}
