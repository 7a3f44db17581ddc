//! Decode at batch 1 of a random bf16 Llama-3.2-1B shape (1.24 B parameters) beside its ceiling: every step reads every
//! weight once, so tokens/s times bytes cannot pass the memory's read bandwidth, measured in the same run.
//!
//! `cargo bench --bench decode_bandwidth`; needs 4 GB of memory.

#[path = "support/spec.rs"]
mod spec;
#[path = "support/step.rs"]
mod step;

use std::time::Instant;

use inferno_node::bridge::ffi::{self, Isa, ModelLimits};
use spec::llama_1b;
use step::{Runner, num_threads};

const CONTEXT: u32 = 128;
const STEPS: usize = 24;

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

fn read_bandwidth(num_threads: u32) -> f64 {
    ffi::measure_read_bandwidth(1 << 30, num_threads, 5).expect("1 GiB of memory")
}

fn measure(isa: Isa, num_threads: u32) {
    // Before and after, the better one counts: the ceiling is what the machine can do, not what it did just then.
    let before = read_bandwidth(num_threads);
    let start = Instant::now();
    let mut runner = Runner::new(&llama_1b::spec(), &limits(), isa, num_threads);
    let load = start.elapsed();
    let prompt: Vec<u32> = (0..CONTEXT).map(|i| (i * 7_919) % llama_1b::VOCABULARY).collect();
    let start = Instant::now();
    runner.step(&[(0, &prompt, 0)]);
    let prefill = start.elapsed();
    let mut seconds: Vec<f64> = (CONTEXT..)
        .take(STEPS)
        .map(|position| {
            let start = Instant::now();
            runner.step(&[(position, &[step::FED], 0)]);
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    let bytes = runner.plan.weight_bytes as f64;
    let ceiling = read_bandwidth(num_threads).max(before);
    let median = seconds[STEPS / 2];
    println!(
        "| {:<10} | {num_threads:>7} | {:>7.1} | {:>13.1} | {:>12.2} | {:>12.2} | {:>12.1} | {:>8.1} | {:>7.1} % |",
        format!("{:?}", runner.isa()),
        load.as_secs_f64(),
        f64::from(CONTEXT) / prefill.as_secs_f64(),
        1.0 / median,
        1.0 / seconds[0],
        bytes / median / 1e9,
        ceiling / 1e9,
        100.0 * bytes / median / ceiling,
    );
    // For the table of `scripts/bench`.
    println!("result\tread_bandwidth\t{:.1}\tGB/s\tthe ceiling itself", ceiling / 1e9);
    println!(
        "result\tdecode_bandwidth/{:?}\t{:.2}\ttokens/s\t{:.2} at {:.1} GB/s ({:.0} %; goal: 50 %)",
        runner.isa(),
        1.0 / median,
        ceiling / bytes,
        ceiling / 1e9,
        100.0 * bytes / median / ceiling,
    );
}

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("left out: not run by `cargo bench`");
        return;
    }
    let num_threads = num_threads();
    println!(
        "decode, batch 1, Llama-3.2-1B shape, random bf16 weights, context {CONTEXT}, median of {STEPS}"
    );
    println!(
        "| isa        | threads | load, s | prefill tok/s | decode tok/s | best tok/s   | weights GB/s | ceiling  | reached   |"
    );
    println!(
        "| ---------- | ------- | ------- | ------------- | ------------ | ------------ | ------------ | -------- | --------- |"
    );
    for isa in [Isa::Amx, Isa::Avx512Bf16, Isa::Avx2] {
        if ffi::isa_available(isa) {
            measure(isa, num_threads);
        }
    }
    if !ffi::isa_available(Isa::Avx2) {
        measure(Isa::Portable, num_threads);
    }
}
