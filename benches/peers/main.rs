//! Our engine and llama.cpp by turns on this machine's CPU: a random Llama of 1.24 B parameters (the shape of Llama 3.2 1B), decode at
//! several batch sizes and prefill, in 16, 8 and 4 bits. One table: ours, theirs, ratio, and the share of what the machine can do by
//! measures of the same run: of its memory's read bandwidth at batch 1, else of the rate at which its cores multiply.
//!
//! `cargo bench --bench peers`; needs 8 GB of memory. `benches/peers/llama-cpp` builds the other side; where it cannot be had, the table
//! has ours alone, of what needs no file. In bf16, q8_0 and q4_0 both run the same file; in int8 and int4 ours is in the formats that
//! `quantization` makes, with larger groups. From the environment: BENCH_ISA (`avx2`, `avx_vnni`, `avx512_bf16`), another instruction set
//! than the best, for both sides; BENCH_FORMATS, some of `bf16,int8,int4,q8_0,q4_0`.

#[path = "../support/spec.rs"]
mod spec;
#[path = "../support/step.rs"]
mod step;

mod llama_cpp;

use std::time::Instant;

use inferno_node::bridge::ffi::{self, Factors, Isa};
use inferno_node::bridge::spec::{DecoderSpec, WeightFormat, WeightKind};
use inferno_node::executor::load_tensor;
use llama_cpp::LlamaCpp;
use spec::llama_1b::{self, HIDDEN, INTERMEDIATE, LAYERS, VOCABULARY};
use step::{FED, Runner, STEP_TOKENS, limits, median, num_threads, read_bandwidth};

const BATCHES: [u32; 3] = [1, 8, 32];
const PREFILLS: [u32; 2] = [256, 2_048];
/// Tokens of each sequence before it decodes, and how many it then decodes.
const PROMPT: u32 = 32;
const DECODED: u32 = 16;
/// Each side measures everything this often, by turns; the medians count.
const ROUNDS: usize = 3;

/// What is compared: our format and llama.cpp's file of this type.
struct Format {
    name: &'static str,
    theirs: &'static str,
    /// What the products are of.
    factors: Factors,
    ours: Ours,
}

/// What our engine runs.
enum Ours {
    /// The same file.
    File,
    /// Random weights in these formats, as `quantization` makes them at load.
    Made {
        layers: WeightFormat,
        /// Of the embedding, which is the head as well.
        head: WeightFormat,
    },
}

const fn format(kind: WeightKind, group: u32) -> WeightFormat {
    WeightFormat { kind, group, offsets: false }
}

/// Q4_0 files have the head in Q6_K.
const FORMATS: [Format; 5] = [
    Format { name: "bf16", theirs: "bf16", factors: Factors::Bf16, ours: Ours::File },
    Format {
        name: "int8",
        theirs: "q8_0",
        factors: Factors::Bytes,
        ours: Ours::Made { layers: format(WeightKind::Int8, 0), head: format(WeightKind::Int8, 0) },
    },
    Format {
        name: "int4",
        theirs: "q4_0",
        factors: Factors::Bytes,
        ours: Ours::Made {
            layers: format(WeightKind::Int4, 128),
            head: format(WeightKind::Int8, 0),
        },
    },
    Format { name: "q8_0", theirs: "q8_0", factors: Factors::Bytes, ours: Ours::File },
    Format { name: "q4_0", theirs: "q4_0", factors: Factors::Bytes, ours: Ours::File },
];

/// Tokens per second, in the order of [`BATCHES`] and then [`PREFILLS`].
type Figures = [f64; BATCHES.len() + PREFILLS.len()];

impl Format {
    /// None where llama.cpp, whose file it is, is not there.
    fn runner(&self, isa: Isa, num_threads: u32, llama_cpp: Option<&LlamaCpp>) -> Option<Runner> {
        let most = *BATCHES.last().expect("batches");
        let longest = PREFILLS.into_iter().fold(PROMPT + DECODED, u32::max);
        match self.ours {
            Ours::Made { layers, head } => {
                let spec = made(layers, head);
                Some(Runner::new(&spec, &limits(&spec, most, longest), isa, num_threads))
            }
            Ours::File => {
                let checkpoint = llama_cpp?.open(self.theirs);
                let spec = checkpoint.decoder().spec_for(longest);
                let limits = limits(&spec, most, longest);
                Some(Runner::filled(&spec, &limits, (isa, num_threads), |mut context, model| {
                    for tensor in checkpoint.tensors() {
                        load_tensor(context.as_mut(), model, tensor).expect("a good tensor");
                    }
                }))
            }
        }
    }
}

fn made(layers: WeightFormat, head: WeightFormat) -> DecoderSpec {
    let mut spec = llama_1b::spec();
    spec.for_each_format(|format| *format = layers);
    spec.embedding = head;
    spec.head.format = head;
    spec
}

fn tokens(count: u32, seat: u32) -> Vec<u32> {
    (0..count).map(|at| (at * 7_919 + seat * 131) % VOCABULARY).collect()
}

/// Runs a prompt, in pieces as long as llama.cpp's by default.
fn prefill(runner: &mut Runner, length: u32, seat: u32) {
    let prompt = tokens(length, seat);
    for (piece, ids) in (0..).step_by(STEP_TOKENS as usize).zip(prompt.chunks(STEP_TOKENS as usize))
    {
        runner.step(&[(piece, ids, seat)]);
    }
}

fn decode_rate(runner: &mut Runner, batch: u32) -> f64 {
    (0..batch).for_each(|seat| prefill(runner, PROMPT, seat));
    let start = Instant::now();
    for position in (PROMPT..).take(DECODED as usize) {
        let queries: Vec<_> = (0..batch).map(|seat| (position, &[FED][..], seat)).collect();
        runner.step(&queries);
    }
    f64::from(batch * DECODED) / start.elapsed().as_secs_f64()
}

/// Figures, and the read bandwidth around the first of them.
fn ours(runner: &mut Runner, num_threads: u32) -> (Figures, f64) {
    let mut figures = Figures::default();
    let (decodes, prefills) = figures.split_at_mut(BATCHES.len());
    let before = read_bandwidth(num_threads);
    decodes[0] = decode_rate(runner, BATCHES[0]);
    let reads = f64::midpoint(before, read_bandwidth(num_threads));
    for (figure, batch) in decodes.iter_mut().zip(BATCHES).skip(1) {
        *figure = decode_rate(runner, batch);
    }
    for (figure, length) in prefills.iter_mut().zip(PREFILLS) {
        let start = Instant::now();
        prefill(runner, length, 0);
        *figure = f64::from(length) / start.elapsed().as_secs_f64();
    }
    (figures, reads)
}

fn medians(rounds: &[Figures]) -> Figures {
    std::array::from_fn(|at| median(rounds.iter().map(|figures| figures[at])))
}

/// What the machine can do, round by round.
#[derive(Default)]
struct Ceilings {
    /// Bytes per second, around the first figure of each.
    reads: Vec<f64>,
    /// Products per second, at their best; 0 where no instruction set has any.
    products: f64,
}

impl Ceilings {
    /// How much of them the figures at a place of [`Figures`] take.
    fn share(&self, at: usize, rounds: &[Figures], weight_bytes: u64) -> String {
        let rates = rounds.iter().map(|figures| figures[at]);
        let (share, ceiling) = match at {
            0 => {
                let shares = rates.zip(&self.reads).map(|(rate, reads)| rate / reads);
                let reads = median(self.reads.iter().copied()) / 1e9;
                (median(shares) * weight_bytes as f64, format!("{reads:.1} GB/s around it"))
            }
            _ if self.products == 0.0 => return "–".to_owned(),
            _ => {
                let needed = median(rates) * f64::from(products_of_token(at < BATCHES.len()));
                (needed / self.products, format!("{:.0} G products/s", self.products / 1e9))
            }
        };
        format!("{:.0} % of {ceiling}", 100.0 * share)
    }
}

/// Of the matrices alone; a prompt needs the head for its last token only.
fn products_of_token(with_head: bool) -> u32 {
    let attention = HIDDEN * (HIDDEN + 2 * HIDDEN / 4) + HIDDEN * HIDDEN;
    let head = if with_head { VOCABULARY * HIDDEN } else { 0 };
    LAYERS * (attention + 3 * HIDDEN * INTERMEDIATE) + head
}

fn compare(format: &Format, llama_cpp: Option<&LlamaCpp>, isa: Isa) {
    let num_threads = num_threads();
    let start = Instant::now();
    let Some(mut runner) = format.runner(isa, num_threads, llama_cpp) else {
        println!("left out: {}, whose file llama.cpp makes", format.name);
        return;
    };
    eprintln!(
        "{}: {:?}, loaded in {:.1} s",
        format.name,
        runner.isa(),
        start.elapsed().as_secs_f64()
    );
    let (mut own, mut others) = (Vec::new(), Vec::new());
    let mut ceilings = Ceilings::default();
    for _ in 0..ROUNDS {
        let products = ffi::measure_product_rate(runner.isa(), format.factors, num_threads);
        ceilings.products = ceilings.products.max(products.unwrap_or(0.0));
        let (figures, reads) = ours(&mut runner, num_threads);
        own.push(figures);
        ceilings.reads.push(reads);
        others.extend(llama_cpp.map(|peer| peer.measure(format.theirs, num_threads)));
    }
    let rounds = own;
    let (own, others) = (medians(&rounds), (!others.is_empty()).then(|| medians(&others)));
    let names = BATCHES.map(|batch| format!("batch {batch}")).into_iter();
    let names = names.chain(PREFILLS.map(|length| format!("prefill {length}")));
    for (at, name) in names.enumerate() {
        let (theirs, ratio) = match &others {
            Some(figures) => {
                (format!("{:.1}", figures[at]), format!("{:.2}", own[at] / figures[at]))
            }
            None => ("–".to_owned(), "–".to_owned()),
        };
        let share = ceilings.share(at, &rounds, runner.plan.weight_bytes);
        println!(
            "| {} / {} | {name} | {:.1} | {theirs} | {ratio} | {share} |",
            format.name, format.theirs, own[at]
        );
        println!(
            "result\tpeers/{}/{name}\t{:.1}\ttokens/s\t{theirs} llama.cpp ({ratio})",
            format.name, own[at]
        );
    }
}

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("left out: not run by `cargo bench`");
        return;
    }
    let asked = std::env::var("BENCH_ISA").ok();
    let isa = match asked.as_deref() {
        Some("avx2") => Isa::Avx2,
        Some("avx_vnni") => Isa::AvxVnni,
        Some("avx512_bf16") => Isa::Avx512Bf16,
        Some(other) => panic!("BENCH_ISA: expected avx2, avx_vnni or avx512_bf16, got {other:?}"),
        None => Isa::Auto,
    };
    let wanted = std::env::var("BENCH_FORMATS").ok();
    let is_wanted = |format: &&Format| {
        wanted.as_ref().is_none_or(|names| names.split(',').any(|name| name == format.name))
    };
    let llama_cpp = LlamaCpp::find(asked.as_deref());
    println!("tokens/s, medians of {ROUNDS}; contexts from {PROMPT} tokens on");
    println!("| formats | | inferno-node | llama.cpp | ratio | of the ceiling |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for format in FORMATS.iter().filter(is_wanted) {
        compare(format, llama_cpp.as_ref(), isa);
    }
}
