//! vLLM's own load generator, `vllm-rs bench serve`, over HTTP: a figure from a client that is not ours (`scripts/vllm-rs` fetches it).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::load::{ALIAS, Closed, Door, Prompts};
use super::node::Node;
use super::{AT_ONCE, LENGTHS, REQUESTS_ALONE, REQUESTS_OF_A_ROUND, ROUNDS, median};

/// The medians of its rounds, a closed loop like that of our own client.
pub struct Measured {
    pub requests_s: f64,
    pub tokens_s: f64,
    /// Milliseconds, of one request at a time.
    pub alone_ttft: f64,
}

/// Prints a line, or that there is no program (BENCH_VLLM_RS).
pub fn measure(node: &Node) -> Option<Measured> {
    let Some(path) = std::env::var_os("BENCH_VLLM_RS").filter(|path| !path.is_empty()) else {
        println!("left out: HTTP as vllm-rs measures it, for BENCH_VLLM_RS does not name it");
        return None;
    };
    let generator = LoadGenerator(path.into());
    let run = |total, at_once| {
        let (door, prompts) = (Door::Http, Prompts::TokenIds);
        generator.closed(node, &Closed { door, prompts, lengths: LENGTHS, total, at_once })
    };
    run(REQUESTS_OF_A_ROUND / 2, AT_ONCE); // warm
    let alone = run(REQUESTS_ALONE, 1);
    let rounds: Vec<_> = (0..ROUNDS).map(|_| run(REQUESTS_OF_A_ROUND, AT_ONCE)).collect();
    let of = |value: &dyn Fn(&Report) -> f64| median(rounds.iter().map(value).collect());
    let measured = Measured {
        requests_s: of(&|report| report.requests_s),
        tokens_s: of(&|report| report.tokens_s),
        alone_ttft: alone.first[0],
    };
    println!(
        "HTTP, ids, by vllm-rs: {:.0} requests/s, {:.0} tokens/s, TTFT P50 / P99 {:.1} / {:.1}, E2E {:.1} / {:.1}; \
         alone: TTFT {:.2}, E2E {:.2} / {:.2}; {:.1} prompt tokens",
        measured.requests_s,
        measured.tokens_s,
        of(&|report| report.first[0]),
        of(&|report| report.first[1]),
        of(&|report| report.whole[0]),
        of(&|report| report.whole[1]),
        measured.alone_ttft,
        alone.whole[0],
        alone.whole[1],
        alone.prompt_tokens,
    );
    Some(measured)
}

struct LoadGenerator(PathBuf);

/// What it reports of one closed loop; times in milliseconds, P50 and P99.
struct Report {
    requests_s: f64,
    tokens_s: f64,
    prompt_tokens: f64,
    first: [f64; 2],
    whole: [f64; 2],
}

impl LoadGenerator {
    /// Keeps so many streams of token ids under way; every request has to end well and with all of its tokens.
    fn closed(&self, node: &Node, load: &Closed) -> Report {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
        let output = Command::new(&self.0)
            .args(["bench", "serve", "--backend", "openai", "--dataset-name", "random"])
            .args(["--prompt-token-ids", "--ignore-eos", "--disable-tqdm", "--no-steady-state"])
            .args(["--base-url", node.http(), "--model", ALIAS])
            .arg("--tokenizer")
            .arg(demo)
            .args(["--random-input-len", &load.lengths.prompt.to_string()])
            .args(["--random-output-len", &load.lengths.completion.to_string()])
            .args(["--num-prompts", &load.total.to_string()])
            .args(["--max-concurrency", &load.at_once.to_string()])
            // Its prompts are a series by this seed: the prefix cache is not to know them.
            .args(["--temperature", "0", "--seed", &seed().to_string()])
            .args(["--percentile-metrics", "ttft,e2el", "--metric-percentiles", "50,99"])
            .args(["--save-result", "--result-filename", "report.json", "--result-dir"])
            .arg(dir.path())
            .stdin(Stdio::null())
            .output()
            .expect("the load generator starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", self.0.display());
        let text = std::fs::read_to_string(dir.path().join("report.json")).expect("its report");
        Report::read(&serde_json::from_str(&text).expect("JSON"), load)
    }
}

impl Report {
    fn read(report: &Value, load: &Closed) -> Self {
        let number = |name: &str| report[name].as_f64().unwrap_or_else(|| panic!("no {name}"));
        let quantiles = |what: &str| ["p50", "p99"].map(|at| number(&format!("{at}_{what}_ms")));
        let (done, tokens) = (number("completed"), number("total_output_tokens"));
        assert_eq!((done, number("failed")), (load.total as f64, 0.0), "{report}");
        assert_eq!(tokens, done * f64::from(load.lengths.completion), "{report}");
        Self {
            requests_s: number("request_throughput"),
            tokens_s: number("output_throughput"),
            prompt_tokens: number("total_input_tokens") / done,
            first: quantiles("ttft"),
            whole: quantiles("e2el"),
        }
    }
}

fn seed() -> u32 {
    std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.subsec_nanos())
}
