//! What the scheduler costs per sequence: taken in, chosen among many, sent. No actor, no clock; the policy alone.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use inferno_node::batcher::Credit;
use inferno_node::bridge::ffi::SamplerSpec;
use inferno_node::clock::Timestamp;
use inferno_node::ids::{DeviceId, ModelId, RequestId, SequenceId};
use inferno_node::request::Handle;
use inferno_node::scheduler::{Config, Scheduling};
use inferno_node::sequence::Sequence;

const PROMPT: u32 = 64;

fn sequence(id: u64) -> Sequence {
    Sequence {
        id: SequenceId(id),
        model: ModelId(0),
        salt: 0,
        token_ids: (0..PROMPT).map(|at| (id % 7) as u32 * 1000 + at).collect(),
        num_prompt_tokens: PROMPT,
        max_tokens: 64,
        min_tokens: 0,
        ignore_eos: false,
        sampler: SamplerSpec::greedy().into(),
        prompt_logprobs: None,
        prompt_scored: false,
        priority: (id % 256) as u8,
        accepted_at: Timestamp::from_micros(id),
        attempt: 1,
        failed_steps: 0,
        failed_at: 0,
        handle: Handle::new(RequestId::generate(), SequenceId(id)),
    }
}

fn credit(device: &DeviceId, assigned: u64) -> Credit {
    Credit {
        device: device.clone(),
        generation: 1,
        model: ModelId(0),
        assigned,
        seats: 256,
        free_blocks: 10_000,
        total_blocks: 10_000,
        block_size: 16,
        reserve_tokens: 64,
        open: true,
    }
}

/// One sequence leaves, the device says so, and the sequence comes back to wait: the queue keeps its length.
pub fn assign(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scheduler/assign");
    group.throughput(Throughput::Elements(1));
    for (devices, waiting) in [(1, 256), (1, 10_000), (4, 256), (4, 10_000)] {
        let ids: Vec<_> = (0..devices).map(|at| DeviceId::new(&format!("sim:{at}"))).collect();
        let mut policy = Scheduling::new(Config::default());
        let mut assigned = vec![0; ids.len()];
        for id in &ids {
            policy.device_up(id, 1);
            policy.credit(credit(id, 0));
        }
        for id in 0..waiting {
            policy.enqueue(sequence(id), ());
        }
        let name = BenchmarkId::new(format!("{devices} devices"), format!("{waiting} waiting"));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let now = Timestamp::from_micros(1_000_000);
                let sent = policy.next(black_box(now)).expect("there is credit");
                let at = ids.iter().position(|id| *id == sent.device).expect("one of them");
                assigned[at] += 1;
                policy.credit(credit(&sent.device, assigned[at]));
                policy.enqueue(sent.sequence, ());
            });
        });
    }
    group.finish();
}

/// A full look at a long queue, as on the timer.
pub fn sweep(criterion: &mut Criterion) {
    let mut policy = Scheduling::new(Config::default());
    for id in 0..10_000 {
        policy.enqueue(sequence(id), ());
    }
    criterion.bench_function("scheduler/sweep/10000 waiting", |bencher| {
        bencher.iter(|| policy.sweep(black_box(Timestamp::from_micros(1))));
    });
}
