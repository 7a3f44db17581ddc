//! The control plane alone: the real binary with a `sim` device of zero cost and a nats-server of its own, and a client that is
//! as cheap as it can be without looking away, all on this machine. Prompts of 64 tokens, 64 tokens out.
//!
//! Closed loop (so many at once) for the rates, one at a time for the time that the node adds, open loop (10,000 requests at half
//! the measured rate, timed from when each was due) for failures, and an idle node's processor time, with a `sim` device and with the
//! demo model on `cpu:0`. Then durable requests (`durable.rs`, `durable_faults.rs`), then whole nodes on GPUs (`gpu.rs`), where there
//! are any. `cargo bench --bench serving`; everything is bounded in count and time, listens on loopback only, and ends with this process.
//!
//! From the environment: BENCH_NODE, another build of the binary; BENCH_DEVICES, the devices of the second part instead of `cuda:0`
//! (comma-separated), and BENCH_SIM_COSTS, the cost model of `sim` devices among them; BENCH_MODELS, the folder of its shapes;
//! BENCH_ONLY, the one row to measure (`llama-2-7b int4`), or `durable`, `cpu` (`cpu.rs`) or `start` (`start.rs`), and nothing else;
//! BENCH_READ_TBPS, what `ceilings_bench` says of reads, for the floor; BENCH_VLLM_RS, vLLM's load generator (`scripts/vllm-rs`), for a
//! row of HTTP by a client that is not ours.

mod cpu;
mod durable;
mod durable_faults;
mod gpu;
mod http;
mod load;
mod nats;
mod node;
mod peers;
#[path = "../support/shapes.rs"]
mod shapes;
#[path = "../support/spec.rs"]
mod spec;
mod start;
#[path = "../support/step.rs"]
mod step;
mod vllm;

use std::time::Duration;

use load::{Closed, Door, Lengths, Open, Outcome, Prompts};
use node::Node;

/// Of every request.
const LENGTHS: Lengths = Lengths { prompt: 64, completion: 64 };
/// Requests at once, as many as the node has seats.
const AT_ONCE: usize = 256;
/// Rounds of each closed loop; the median counts.
const ROUNDS: usize = 5;
const REQUESTS_OF_A_ROUND: usize = 6_000;
const REQUESTS_ALONE: usize = 300;
const REQUESTS_OPEN: usize = 10_000;
const IDLE: Duration = Duration::from_secs(5);
/// A node listens for others for 3 s before it knows that it is alone, and until then it asks them whose each request's id is.
const ALONE_AFTER: Duration = Duration::from_secs(4);

/// What others reach, and what must not be passed.
const MIN_REQUESTS_S: f64 = 1_700.0;
const MIN_TOKENS_S: f64 = 110_000.0;
const MAX_FAILED: f64 = 0.001;
const MAX_IDLE: f64 = 0.01;

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("left out: not run by `cargo bench`");
        return;
    }
    match std::env::var("BENCH_ONLY").as_deref() {
        Ok("cpu") => cpu::measure(),
        Ok("start") => start::measure(),
        Ok("durable") => measure_durable(),
        Ok(row) => gpu::run(Some(row)),
        Err(_) => {
            control_plane();
            measure_durable();
            gpu::run(None);
        }
    }
}

fn measure_durable() {
    durable::measure();
    durable_faults::measure();
}

fn control_plane() {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!("serving: client, nats-server and node (sim device of zero cost) on {cores} cores");
    println!("closed loop: {AT_ONCE} at once, medians of {ROUNDS} rounds of {REQUESTS_OF_A_ROUND}");
    println!("times in milliseconds; CPU: processor seconds for 1,000,000 tokens");
    let node = Node::start();
    std::thread::sleep(ALONE_AFTER);
    let mut rates = Vec::new();
    println!("{}", Measured::HEAD);
    for (door, prompts) in [
        (Door::Nats, Prompts::TokenIds),
        (Door::Nats, Prompts::Text),
        (Door::Http, Prompts::TokenIds),
        (Door::Http, Prompts::Text),
    ] {
        let measured = measure(&node, door, prompts);
        println!("{measured}");
        rates.push((door, prompts, measured));
    }
    let by_vllm = vllm::measure(&node);
    println!("\nopen loop: {REQUESTS_OPEN} requests at half of the rate above");
    let mut failures = Vec::new();
    for (door, prompts, measured) in &rates {
        if *prompts == Prompts::TokenIds {
            failures.push((*door, open(&node, *door, measured.requests_s / 2.0)));
        }
    }
    let idle = [("sim:0", idle(&node, "sim:0")), ("cpu:0", idle_on_the_cpu())];
    results(&rates, &failures, &idle);
    if let Some(measured) = by_vllm {
        results_by_vllm(&measured, &rates);
    }
    node.stop();
    let failed = failures.iter().map(|(_, share)| *share).fold(0.0, f64::max);
    assert!(failed < MAX_FAILED, "{:.3} % of the requests failed", failed * 100.0);
    for (device, share) in idle {
        let percent = share * 100.0;
        assert!(share < MAX_IDLE, "an idle node on {device} takes {percent:.2} % of a core");
    }
}

/// The medians of one row of the table; times in milliseconds.
struct Measured {
    name: String,
    requests_s: f64,
    first_p50: f64,
    first_p99: f64,
    whole_p50: f64,
    whole_p99: f64,
    alone_first: f64,
    alone_whole: f64,
    alone_whole_p99: f64,
    tokens_an_event: f64,
    prompt_tokens: f64,
    /// Processor seconds per million tokens: node, nats-server, client.
    cpu: [f64; 3],
}

impl Measured {
    const HEAD: &str = "\
| door, prompt | requests/s | tokens/s | TTFT P50 / P99 | E2E P50 / P99 | alone: TTFT, E2E P50 / P99 \
| tokens/event | prompt tokens | CPU: node + nats-server + client |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |";

    fn tokens_s(&self) -> f64 {
        self.requests_s * f64::from(LENGTHS.completion)
    }
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [node, nats, client] = self.cpu;
        write!(
            f,
            "| {} | {:.0} | {:.0} | {:.1} / {:.1} | {:.1} / {:.1} | {:.2}, {:.2} / {:.2} \
             | {:.2} | {:.1} | {node:.2} + {nats:.2} + {client:.2} |",
            self.name,
            self.requests_s,
            self.tokens_s(),
            self.first_p50,
            self.first_p99,
            self.whole_p50,
            self.whole_p99,
            self.alone_first,
            self.alone_whole,
            self.alone_whole_p99,
            self.tokens_an_event,
            self.prompt_tokens,
        )
    }
}

fn measure(node: &Node, door: Door, prompts: Prompts) -> Measured {
    let run = |total, at_once| {
        let before = node.cpu_seconds();
        let mut outcome =
            load::closed(node, &Closed { door, prompts, lengths: LENGTHS, total, at_once });
        let after = node.cpu_seconds();
        assert_eq!(outcome.failed, 0, "{:?}", outcome.fault);
        let tokens = f64::from(LENGTHS.completion) * total as f64;
        let cpu: Vec<f64> = after.iter().zip(before).map(|(a, b)| (a - b) / tokens * 1e6).collect();
        outcome.sort();
        (outcome, [cpu[0], cpu[1], cpu[2]])
    };
    run(REQUESTS_OF_A_ROUND / 2, AT_ONCE); // warm
    let (alone, _) = run(REQUESTS_ALONE, 1);
    let rounds: Vec<_> = (0..ROUNDS).map(|_| run(REQUESTS_OF_A_ROUND, AT_ONCE)).collect();
    let of = |value: &dyn Fn(&Outcome, [f64; 3]) -> f64| {
        median(rounds.iter().map(|(outcome, cpu)| value(outcome, *cpu)).collect())
    };
    Measured {
        name: format!("{}, {}", door.name(), prompts.name()),
        requests_s: of(&|o, _| o.rate()),
        first_p50: of(&|o, _| o.first(0.5)),
        first_p99: of(&|o, _| o.first(0.99)),
        whole_p50: of(&|o, _| o.whole(0.5)),
        whole_p99: of(&|o, _| o.whole(0.99)),
        alone_first: alone.first(0.5),
        alone_whole: alone.whole(0.5),
        alone_whole_p99: alone.whole(0.99),
        tokens_an_event: of(&|o, _| o.tokens as f64 / o.events as f64),
        prompt_tokens: of(&|o, _| o.prompt_tokens as f64 / o.done().max(1) as f64),
        cpu: [of(&|_, cpu| cpu[0]), of(&|_, cpu| cpu[1]), of(&|_, cpu| cpu[2])],
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The share of requests that failed.
fn open(node: &Node, door: Door, rate: f64) -> f64 {
    let mut outcome =
        load::open(node, &Open { door, lengths: LENGTHS, total: REQUESTS_OPEN, rate });
    outcome.sort();
    println!(
        "{} at {rate:.0} requests/s: {} failed ({}), TTFT P50 / P99 {:.2} / {:.2} ms, E2E P50 / P99 {:.2} / {:.2} ms",
        door.name(),
        outcome.failed,
        outcome.fault.as_deref().unwrap_or("none"),
        outcome.first(0.5),
        outcome.first(0.99),
        outcome.whole(0.5),
        outcome.whole(0.99),
    );
    outcome.failed as f64 / REQUESTS_OPEN as f64
}

/// The share of one core that the node takes with a model loaded and nothing to do.
fn idle(node: &Node, device: &str) -> f64 {
    // What the load left behind (closed connections, metrics) is not idling.
    std::thread::sleep(Duration::from_secs(1));
    let [node_before, nats_before, _] = node.cpu_seconds();
    std::thread::sleep(IDLE);
    let [node_after, nats_after, _] = node.cpu_seconds();
    let share = |a: f64, b: f64| (a - b) / IDLE.as_secs_f64();
    let (idle, nats) = (share(node_after, node_before), share(nats_after, nats_before));
    let (node, nats) = (idle * 100.0, nats * 100.0);
    println!("\nidle, {device}: node {node:.2} % of a core, nats-server {nats:.2} %");
    idle
}

/// The same of a node whose engine has just worked: its threads must sleep.
fn idle_on_the_cpu() -> f64 {
    let node = Node::start_with("[executor]\ndevices = [\"cpu:0\"]\n");
    let (door, prompts) = (Door::Nats, Prompts::TokenIds);
    let few = Closed { door, prompts, lengths: LENGTHS, total: 16, at_once: 4 };
    let outcome = load::closed(&node, &few);
    assert_eq!(outcome.failed, 0, "{:?}", outcome.fault);
    let share = idle(&node, "cpu:0");
    node.stop();
    share
}

/// A line for the table of `scripts/bench`.
fn line(name: &str, median: String, unit: &str, target: String) {
    println!("result\t{name}\t{median}\t{unit}\t{target}");
}

/// What vLLM's load generator measured, each against what our client did with the same node.
fn results_by_vllm(measured: &vllm::Measured, rates: &[(Door, Prompts, Measured)]) {
    let same = |(door, prompts, _): &&(Door, Prompts, Measured)| {
        (*door, *prompts) == (Door::Http, Prompts::TokenIds)
    };
    let (_, _, ours) = rates.iter().find(same).expect("a row of HTTP with token ids");
    let name = |what: &str| format!("serving/HTTP/ids/{what}, vllm-rs");
    let ours_was = |figure: String| format!("{figure} by our client");
    let rate = format!("{:.0}", measured.requests_s);
    line(&name("requests"), rate, "requests/s", ours_was(format!("{:.0}", ours.requests_s)));
    let tokens = format!("{:.0}", measured.tokens_s);
    line(&name("tokens"), tokens, "tokens/s", ours_was(format!("{:.0}", ours.tokens_s())));
    let first = format!("{:.2}", measured.alone_ttft);
    line(&name("alone_ttft"), first, "ms", ours_was(format!("{:.2}", ours.alone_first)));
}

/// Lines for the table: name, median, unit, target.
fn results(rates: &[(Door, Prompts, Measured)], failures: &[(Door, f64)], idle: &[(&str, f64)]) {
    for (door, prompts, measured) in rates {
        let name = |what: &str| format!("serving/{}/{}/{what}", door.name(), prompts.name());
        let rate = format!("{:.0}", measured.requests_s);
        line(&name("requests"), rate, "requests/s", format!("> {MIN_REQUESTS_S}"));
        let tokens = format!("{:.0}", measured.tokens_s());
        line(&name("tokens"), tokens, "tokens/s", format!("> {MIN_TOKENS_S}"));
        line(&name("alone_ttft"), format!("{:.2}", measured.alone_first), "ms", "0 (floor)".into());
    }
    for (door, share) in failures {
        let name = format!("serving/{}/failed_at_half_rate", door.name());
        let target = format!("< {}", MAX_FAILED * 100.0);
        line(&name, format!("{:.3}", share * 100.0), "%", target);
    }
    for (device, share) in idle {
        let target = format!("< {}", MAX_IDLE * 100.0);
        let name = format!("serving/idle/{device}");
        line(&name, format!("{:.2}", share * 100.0), "% of a core", target);
    }
}
