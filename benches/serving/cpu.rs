//! The whole node on a CPU, through NATS: a random Llama of 1.24 B parameters in bf16, beside the bare engine on the same cores by
//! turns. By hand: `BENCH_ONLY=cpu`; needs 6 GB of memory.

use std::time::Instant;

use inferno_node::bridge::ffi::Isa;

use super::load::{self, Closed, Door, Lengths, Prompts};
use super::node::Node;
use super::shapes::Shape;
use super::spec::llama_1b;
use super::step::{FED, Runner, STEP_TOKENS, limits, num_threads};
use super::{line, median};

const SHAPE: &str = "llama-3.2-1b";
const LENGTHS: Lengths = Lengths { prompt: 32, completion: 64 };
const BATCHES: [u32; 3] = [1, 8, 32];
/// Measurements of each side, by turns; the medians count.
const ROUNDS: usize = 3;

pub fn measure() {
    let num_threads = num_threads();
    let model = tempfile::tempdir().expect("a temporary directory");
    Shape::read(SHAPE).write(model.path());
    let node = Node::start_model(
        &format!("model_path = {:?}\nload_format = \"dummy\"\nmax_seq_len = 256\n", model.path()),
        "[executor]\ndevices = [\"cpu:0\"]\n[batcher]\nmax_batch_size = 32\n",
    );
    let spec = llama_1b::spec();
    let mut engine = Runner::new(&spec, &limits(&spec, 32, 256), Isa::Auto, num_threads);
    println!("\n{SHAPE} in bf16 on cpu:0, {num_threads} threads, {:?}: tokens/s", engine.isa());
    println!("| at once | node, through NATS | bare engine | ratio | client and NATS of all CPU |");
    println!("| --- | --- | --- | --- | --- |");
    for batch in BATCHES {
        let (mut ours, mut bare, mut shares) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let (rate, share) = by_the_node(&node, batch);
            ours.push(rate);
            shares.push(share);
            bare.push(by_the_engine(&mut engine, batch));
        }
        let (ours, bare, share) = (median(ours), median(bare), median(shares));
        let (ratio, percent) = (ours / bare, share * 100.0);
        println!("| {batch} | {ours:.1} | {bare:.1} | {ratio:.2} | {percent:.1} % |");
        let target = format!("0.9 of {bare:.1} by the bare engine");
        line(&format!("serving/cpu/{batch} at once"), format!("{ours:.1}"), "tokens/s", target);
    }
    node.stop();
}

/// Tokens a second, and the share of the processors' time that was not the node's.
fn by_the_node(node: &Node, batch: u32) -> (f64, f64) {
    let total = batch as usize;
    let (door, prompts) = (Door::Nats, Prompts::TokenIds);
    let load = Closed { door, prompts, lengths: LENGTHS, total, at_once: total };
    let before = node.cpu_seconds();
    let outcome = load::closed(node, &load);
    let after = node.cpu_seconds();
    assert_eq!(outcome.failed, 0, "{:?}", outcome.fault);
    let [node, nats, client] = std::array::from_fn(|at| after[at] - before[at]);
    let rate = outcome.tokens as f64 / outcome.wall.as_secs_f64();
    (rate, (nats + client) / (node + nats + client))
}

/// Tokens a second of the same work as bare steps.
fn by_the_engine(engine: &mut Runner, batch: u32) -> f64 {
    let prompt: Vec<u32> = (300..).take(LENGTHS.prompt).collect();
    let start = Instant::now();
    let prompts: Vec<_> = (0..batch).map(|seat| (0, prompt.as_slice(), seat)).collect();
    prompts.chunks(STEP_TOKENS as usize / LENGTHS.prompt).for_each(|chunk| engine.step(chunk));
    for position in (LENGTHS.prompt as u32..).take(LENGTHS.completion as usize - 1) {
        let queries: Vec<_> = (0..batch).map(|seat| (position, &[FED][..], seat)).collect();
        engine.step(&queries);
    }
    f64::from(batch * LENGTHS.completion) / start.elapsed().as_secs_f64()
}
