//! Whole nodes on GPUs, through NATS: random weights of true shapes (`benches/shapes`), token ids in, greedy, each row beside what vLLM
//! reached on such a card and what we want.

use super::load::{self, Closed, Door, Lengths, Outcome, Prompts};
use super::node::Node;
use super::peers::{self, COMPARISONS, Comparison, ROWS};
use super::shapes::Shape;
use inferno_node::gpu;

const ALONE: Lengths = Lengths { prompt: 32, completion: 50 };
/// Requests, one after the other.
const REQUESTS_ALONE: usize = 40;
const BATCHES_OF_8: usize = 10;
const MANY: usize = 1_024;
const MANY_AT_ONCE: usize = 512;

/// Every row of the comparisons, or one; says so where there is no GPU.
pub fn run(only: Option<&str>) {
    let Some(devices) = devices() else {
        println!("\nleft out: whole nodes on GPUs, for this build or machine has none");
        return;
    };
    let chosen = |row: &&Comparison| only.is_none_or(|name| name == row.name());
    let chosen: Vec<&Comparison> = COMPARISONS.iter().filter(chosen).collect();
    assert!(!chosen.is_empty(), "BENCH_ONLY names no row: {only:?}");
    let read_tbps = read_tbps();
    let card =
        gpu::cards().ok().and_then(|cards| cards.first()).map_or("", |card| card.name.as_str());
    println!("\nwhole nodes on {devices} {card}, through NATS; {}", peers::version(card));
    if let Some(tbps) = read_tbps {
        println!("floor: the weights' bytes at {tbps} TB/s");
    }
    println!("| model | | ours | vLLM offline | vLLM as served | target |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for comparison in chosen {
        measure(comparison, card, &devices, read_tbps);
    }
}

/// As a list in TOML; none if there are no GPUs.
fn devices() -> Option<String> {
    let named = std::env::var("BENCH_DEVICES").ok();
    let found = || cfg!(feature = "cuda") && std::path::Path::new("/dev/nvidia0").exists();
    let names = named.or_else(|| found().then(|| "cuda:0".to_owned()))?;
    Some(format!("{:?}", names.split(',').collect::<Vec<_>>()))
}

/// What the card's memory is read at, 10^12 bytes/s, as `ceilings_bench` measures it: cards differ, so nothing is supposed.
fn read_tbps() -> Option<f64> {
    let text = std::env::var("BENCH_READ_TBPS").ok().filter(|text| !text.is_empty())?;
    let tbps = text.parse().ok().filter(|tbps: &f64| tbps.is_finite() && *tbps > 0.0);
    Some(tbps.unwrap_or_else(|| panic!("BENCH_READ_TBPS: expected TB/s, got {text:?}")))
}

fn measure(comparison: &Comparison, card: &str, devices: &str, read_tbps: Option<f64>) {
    let name = comparison.name();
    let vllm = comparison.vllm(card);
    let shape = Shape::read(comparison.shape);
    let (quantization, bits) = comparison
        .quantization
        .map_or((String::new(), 16.0), |q| (format!("quantization = {:?}\n", q.name), q.bits));
    let model = tempfile::tempdir().expect("a temporary directory");
    shape.write(model.path());
    let costs = std::env::var("BENCH_SIM_COSTS")
        .map_or(String::new(), |path| format!("sim_cost_model = {path:?}\n"));
    let node = Node::start_model(
        &format!(
            "model_path = {:?}\nload_format = \"dummy\"\nmax_seq_len = 2048\n{quantization}",
            model.path()
        ),
        &format!(
            "[executor]\ndevices = {devices}\n{costs}\
             [batcher]\nmax_batch_size = {MANY_AT_ONCE}\nmax_step_tokens = 8192\n"
        ),
    );
    let bytes = shape.bytes_read_by_a_step(bits) * f64::from(ALONE.completion);
    let floor = read_tbps.map_or("–".to_owned(), |tbps| format!("{:.0} ms", bytes / tbps / 1e9));
    let row = |index: usize, ours: String| {
        let [offline, served, target] = [vllm.offline, vllm.served, comparison.target]
            .map(|row| if row[index].is_empty() { "–" } else { row[index] });
        println!("| {name} | {} | {ours} | {offline} | {served} | {target} |", ROWS[index]);
    };
    loaded(&node, Door::Nats, ALONE, 16, 8); // warm
    let alone = loaded(&node, Door::Nats, ALONE, REQUESTS_ALONE, 1);
    let (queue, prefill) = alone.queue_and_prefill(0.5);
    row(
        0,
        format!(
            "{:.2} / {:.2} ms (queue {queue:.2}, prefill {prefill:.2} of the P50)",
            alone.first(0.5),
            alone.first(0.95)
        ),
    );
    let [p50, p95] = [0.5, 0.95].map(|quantile| alone.whole(quantile));
    row(1, format!("{p50:.0} / {p95:.0} ms (floor {floor})"));
    row(2, eight_at_once(&node));
    let by_nats = |lengths, total, at_once| many(&node, Door::Nats, lengths, total, at_once);
    row(3, by_nats(Lengths { prompt: 128, completion: 128 }, 256, 64).0);
    row(4, by_nats(Lengths { prompt: 512, completion: 128 }, MANY, MANY_AT_ONCE).0);
    let long = Lengths { prompt: 128, completion: 256 };
    let (text, nats_rate) = by_nats(long, MANY, MANY_AT_ONCE);
    row(5, text);
    let (text, http_rate) = many(&node, Door::Http, long, MANY, MANY_AT_ONCE);
    row(6, format!("{text}, {:.2} of NATS", http_rate / nats_rate));
    row(7, format!("{:.1} s", node.ready_after().as_secs_f64()));
    node.stop();
}

/// A closed loop of which every request ended well, sorted.
fn loaded(node: &Node, door: Door, lengths: Lengths, total: usize, at_once: usize) -> Outcome {
    let prompts = Prompts::TokenIds;
    let mut outcome = load::closed(node, &Closed { door, prompts, lengths, total, at_once });
    assert_eq!(outcome.failed, 0, "{:?}", outcome.fault);
    assert_eq!(outcome.done(), total);
    outcome.sort();
    outcome
}

fn eight_at_once(node: &Node) -> String {
    let mut walls: Vec<f64> = (0..BATCHES_OF_8)
        .map(|_| loaded(node, Door::Nats, ALONE, 8, 8).wall.as_secs_f64() * 1e3)
        .collect();
    walls.sort_by(f64::total_cmp);
    let before = node.step_gaps();
    let rate = loaded(node, Door::Nats, ALONE, 80, 8).rate();
    let after = node.step_gaps();
    let [count, short, seconds] = std::array::from_fn(|i| after[i] - before[i]);
    format!(
        "{:.0} ms, {rate:.1} req/s, gap between steps {:.1} µs ({:.1} % of {count} up to 50)",
        walls[walls.len() / 2],
        seconds / count * 1e6,
        short / count * 100.0,
    )
}

/// The figures, and the tokens a second among them.
fn many(node: &Node, door: Door, lengths: Lengths, total: usize, at_once: usize) -> (String, f64) {
    let outcome = loaded(node, door, lengths, total, at_once);
    let rate = outcome.tokens as f64 / outcome.wall.as_secs_f64();
    // A client of HTTP sees text, not tokens.
    let between = match door {
        Door::Nats => {
            format!("ITL {:.1} / {:.1} ms, ", outcome.between(0.5), outcome.between(0.99))
        }
        Door::Http => String::new(),
    };
    let [p50, p99] = [0.5, 0.99].map(|quantile| outcome.first(quantile));
    (format!("{rate:.0} tok/s, {between}TTFT {p50:.0} / {p99:.0} ms (P50 / P99)"), rate)
}
