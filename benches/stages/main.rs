//! The critical path of each stage beside the device, without the others: what a request costs in admission and scheduler, a
//! step in the batcher, a token in reply and on the bus.

#![allow(missing_docs)] // of what the macros of criterion make

mod admission;
mod batcher;
mod bus;
mod reply;
mod scheduler;

use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use inferno_node::bridge::ffi::SamplerSpec;
use inferno_node::clock::Timestamp;
use inferno_node::error::Error;
use inferno_node::ids::{ModelId, RequestId, SequenceId};
use inferno_node::request::{Event, Handle, Sink, SinkClosed};
use inferno_node::sequence::Sequence;
use inferno_node::tokenizer::Tokenizer;

/// Tokens of every prompt and of every completion.
const LEN: u32 = 64;
const MODEL: ModelId = ModelId(1);

/// A prompt like no other, with so many tokens to come.
fn sequence(id: u64, max_tokens: u32) -> Sequence {
    let token = |at| (id as u32).wrapping_mul(2_654_435_761).wrapping_add(at) % 3_072;
    Sequence {
        id: SequenceId(id),
        model: MODEL,
        salt: 0,
        token_ids: (0..LEN).map(token).collect(),
        num_prompt_tokens: LEN,
        max_tokens,
        min_tokens: 0,
        ignore_eos: true,
        sampler: SamplerSpec::greedy().into(),
        prompt_logprobs: None,
        prompt_scored: false,
        priority: 128,
        accepted_at: Timestamp::from_micros(id),
        attempt: 1,
        failed_steps: 0,
        failed_at: 0,
        handle: Handle::new(RequestId::generate(), SequenceId(id)),
    }
}

fn tokenizer() -> Arc<Tokenizer> {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo");
    Arc::new(Tokenizer::from_dir(model.as_ref()).expect("the demo model's tokenizer"))
}

/// A door that takes everything and does nothing.
struct Nowhere;

impl Sink for Nowhere {
    fn accepted(&mut self, _: &Arc<Handle>) {}

    fn refused(&mut self, error: &Error) {
        panic!("{error}");
    }

    fn lend(&mut self, event: &mut Event) -> Result<(), SinkClosed> {
        std::hint::black_box(event);
        Ok(())
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = admission::bench, scheduler::assign, scheduler::sweep, batcher::decode, batcher::prompt,
        reply::bench, bus::encoding, bus::decoding, bus::merging
}
criterion_main!(benches);
