//! Decode at batch 1 of a random bf16 Llama-3.2-1B shape (1.24 B parameters) beside its ceiling: every step reads every
//! weight once, so tokens/s times bytes cannot pass the memory's read bandwidth, measured between the steps.
//!
//! `cargo bench --bench decode_bandwidth`; needs 4 GB of memory.

#[path = "support/spec.rs"]
mod spec;
#[path = "support/step.rs"]
mod step;

use std::time::Instant;

use inferno_node::bridge::ISAS;
use inferno_node::bridge::ffi::{self, Isa, ModelLimits};
use spec::llama_1b;
use step::{Runner, median, num_threads, read_bandwidth};

const CONTEXT: u32 = 128;
/// Steps between two looks at the memory, and such rounds.
const STEPS: usize = 3;
const ROUNDS: usize = 12;

fn limits() -> ModelLimits {
    ModelLimits {
        block_size: 16,
        kv_bytes: 64 << 20,
        max_batch_size: 1,
        max_step_tokens: CONTEXT,
        max_seq_len: 1_024,
        end_token_ids: Vec::new(),
    }
}

/// What one round saw, in bytes a second.
struct Round {
    ceiling: f64,
    weights: f64,
}

impl Round {
    /// The mean of the looks before and after is the ceiling.
    fn run(runner: &mut Runner, position: &mut u32, num_threads: u32) -> Self {
        let before = read_bandwidth(num_threads);
        let steps = (0..STEPS).map(|_| {
            let start = Instant::now();
            runner.step(&[(*position, &[step::FED], 0)]);
            *position += 1;
            start.elapsed().as_secs_f64()
        });
        let seconds = median(steps);
        let weights = runner.plan.weight_bytes as f64 / seconds;
        Self { ceiling: f64::midpoint(before, read_bandwidth(num_threads)), weights }
    }
}

fn measure(isa: Isa, num_threads: u32) {
    let start = Instant::now();
    let mut runner = Runner::new(&llama_1b::spec(), &limits(), isa, num_threads);
    let load = start.elapsed();
    let prompt: Vec<u32> = (0..CONTEXT).map(|i| (i * 7_919) % llama_1b::VOCABULARY).collect();
    let start = Instant::now();
    runner.step(&[(0, &prompt, 0)]);
    let prefill = start.elapsed();
    let mut position = CONTEXT;
    let rounds = (0..ROUNDS).map(|_| Round::run(&mut runner, &mut position, num_threads));
    let rounds: Vec<Round> = rounds.collect();
    let bytes = runner.plan.weight_bytes as f64;
    let of = |read: fn(&Round) -> f64| median(rounds.iter().map(read));
    let (weights, ceiling) = (of(|round| round.weights), of(|round| round.ceiling));
    let share = 100.0 * of(|round| round.weights / round.ceiling);
    println!(
        "| {:<10} | {num_threads:>7} | {:>7.1} | {:>13.1} | {:>12.2} | {:>12.1} | {:>8.1} | {share:>7.1} % |",
        format!("{:?}", runner.isa()),
        load.as_secs_f64(),
        f64::from(CONTEXT) / prefill.as_secs_f64(),
        weights / bytes,
        weights / 1e9,
        ceiling / 1e9,
    );
    // For the table of `scripts/bench`.
    println!("result\tread_bandwidth\t{:.1}\tGB/s\tthe ceiling itself", ceiling / 1e9);
    println!(
        "result\tdecode_bandwidth/{:?}\t{:.2}\ttokens/s\t{:.2} at {:.1} GB/s ({share:.0} %; goal: 95 %)",
        runner.isa(),
        weights / bytes,
        ceiling / bytes,
        ceiling / 1e9,
    );
}

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("left out: not run by `cargo bench`");
        return;
    }
    let num_threads = num_threads();
    println!(
        "decode, batch 1, Llama-3.2-1B shape, random bf16 weights, context {CONTEXT}, medians of {ROUNDS} rounds of {STEPS} steps"
    );
    println!(
        "| isa        | threads | load, s | prefill tok/s | decode tok/s | weights GB/s | ceiling  | reached   |"
    );
    println!(
        "| ---------- | ------- | ------- | ------------- | ------------ | ------------ | -------- | --------- |"
    );
    for isa in ISAS.into_iter().rev() {
        if isa != Isa::Portable && ffi::isa_available(isa) {
            measure(isa, num_threads);
        }
    }
    if !ffi::isa_available(Isa::Avx2) {
        measure(Isa::Portable, num_threads);
    }
}
