//! The ops whose cost no step shows by itself (`engine` has products, attention and sampling): one call each, in the shape of a
//! Llama-3.2-1B, of a decode step's one token and of a prefill chunk's 512. They run in `cpp/lab/op_bench`, a program of its own,
//! so that the bridge has no call that only a benchmark needs.

#![allow(missing_docs)] // criterion_group! makes a public function

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// Bytes that an op reads and writes for each token: the least that its time can be of.
const HIDDEN: u64 = 2_048 * 4;
const INTERMEDIATE: u64 = 8_192 * 4;
const KV: u64 = 8 * 64;
const OPS: [(&str, u64); 5] = [
    ("rms_norm", 2 * HIDDEN),
    ("rope", 2 * HIDDEN),
    ("glu", 3 * INTERMEDIATE),
    ("embed", HIDDEN / 2 + HIDDEN),
    ("kv_write", 2 * (KV * 4 + KV * 2)),
];

/// The program that runs the ops.
struct Lab {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Lab {
    /// Builds and starts it.
    fn start() -> Self {
        let build = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("lab");
        let mut configure = Command::new("cmake");
        configure.args(["-S", concat!(env!("CARGO_MANIFEST_DIR"), "/cpp"), "-B"]).arg(&build);
        run(configure.arg("-DCMAKE_BUILD_TYPE=Release"));
        let mut make = Command::new("cmake");
        run(make.arg("--build").arg(&build).args(["--target", "op_bench", "--parallel"]));
        let child = Command::new(build.join("ops/op_bench"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = child.expect("it was just built");
        let questions = child.stdin.take().expect("piped");
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, questions, answers }
    }

    fn time(&mut self, op: &str, tokens: u32, rounds: u64) -> Duration {
        writeln!(self.questions, "{op} {tokens} {rounds}").expect("it listens");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("it answers");
        Duration::from_nanos(line.trim().parse().expect("nanoseconds"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // It has nothing to lose.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(command: &mut Command) {
    let output = command.output().expect("cmake is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn ops(criterion: &mut Criterion) {
    let mut lab = Lab::start();
    for (op, bytes_per_token) in OPS {
        let mut group = criterion.benchmark_group(format!("op_{op}"));
        for tokens in [1_u32, 512] {
            group.throughput(Throughput::Bytes(bytes_per_token * u64::from(tokens)));
            group.bench_function(BenchmarkId::from_parameter(tokens), |b| {
                b.iter_custom(|rounds| lab.time(op, tokens, rounds));
            });
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = ops
}
criterion_main!(benches);
