//! Goal: the engine computes what `transformers` computes, and a sequence has the same bits however it is run.
//! Method: the checkpoints of `tests/fixtures` through the border, on every instruction set that the machine has; logits
//! and greedy tokens against the stored ones, then one prompt alone against the same prompt in batches, chunks, over
//! shared blocks, after recompute and on other numbers of threads, bit by bit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cxx::UniquePtr;
use inferno_node::bridge::ffi::{
    self, Context, DeviceOptions, Dtype, Isa, ModelLimits, ModelShape, RopeScaling, SamplingRow,
    StepBatch, StepOutput,
};
use safetensors::SafeTensors;
use serde_json::Value;

const BLOCK_SIZE: u32 = 16;
const MAX_STEP_TOKENS: u32 = 256;
const CHECKPOINTS: [&str; 6] = [
    "llama2-tiny",
    "llama2-tiny-sharded",
    "llama3-tiny",
    "llama32-tiny",
    "llama32-tiny-bf16",
    "llama32-tiny-f32",
];

/// Largest difference of a logit (their spread is about 4): measured, with room for other orders of sums. The golden
/// values are in float32 throughout; ours round K and V to the checkpoint's type, and with AVX-512 BF16 the inputs of
/// products too. `transformers` itself loses up to 0.2 (bf16) and 0.03 (f16) when run in these types.
fn max_logit_error(dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F16 => 0.03,
        Dtype::BF16 => 0.2,
        _ => 1e-4,
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn json(path: &Path) -> Value {
    let text = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn integer(value: &Value) -> u32 {
    value.as_u64().and_then(|v| u32::try_from(v).ok()).expect("fixtures have integers here")
}

fn float(value: &Value) -> f32 {
    value.as_f64().expect("fixtures have numbers here") as f32
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("fixtures have lists here").iter().map(integer).collect()
}

/// A shape from config.json, classic keys or new ones.
fn shape(name: &str) -> ModelShape {
    let config = json(&fixture(name).join("config.json"));
    let new_style = &config["rope_parameters"];
    let rope = if new_style.is_object() { new_style } else { &config["rope_scaling"] };
    let theta =
        if new_style.is_object() { &new_style["rope_theta"] } else { &config["rope_theta"] };
    let dtype = config["torch_dtype"].as_str().or(config["dtype"].as_str());
    let scaled = rope["rope_type"].as_str() == Some("llama3");
    let hidden_size = integer(&config["hidden_size"]);
    let num_heads = integer(&config["num_attention_heads"]);
    ModelShape {
        vocab_size: integer(&config["vocab_size"]),
        hidden_size,
        intermediate_size: integer(&config["intermediate_size"]),
        num_layers: integer(&config["num_hidden_layers"]),
        num_heads,
        num_kv_heads: integer(&config["num_key_value_heads"]),
        head_dim: config["head_dim"].as_u64().map_or(hidden_size / num_heads, |d| d as u32),
        rms_norm_eps: float(&config["rms_norm_eps"]),
        rope_theta: float(theta),
        rope_scaling: if scaled { RopeScaling::Llama3 } else { RopeScaling::None },
        rope_factor: if scaled { float(&rope["factor"]) } else { 1.0 },
        rope_low_freq_factor: if scaled { float(&rope["low_freq_factor"]) } else { 1.0 },
        rope_high_freq_factor: if scaled { float(&rope["high_freq_factor"]) } else { 4.0 },
        rope_original_max_positions: if scaled {
            integer(&rope["original_max_position_embeddings"])
        } else {
            0
        },
        tie_word_embeddings: config["tie_word_embeddings"] == Value::Bool(true),
        attention_bias: config["attention_bias"] == Value::Bool(true),
        mlp_bias: config["mlp_bias"] == Value::Bool(true),
        dtype: match dtype {
            Some("float16") => Dtype::F16,
            Some("bfloat16") => Dtype::BF16,
            _ => Dtype::F32,
        },
    }
}

fn limits() -> ModelLimits {
    ModelLimits {
        block_size: BLOCK_SIZE,
        kv_bytes: 8 << 20,
        max_batch_size: 8,
        max_step_tokens: MAX_STEP_TOKENS,
        max_seq_len: 512,
        end_token_ids: vec![1],
    }
}

/// Every weight of a checkpoint, in one file or several.
fn for_each_tensor(name: &str, mut f: impl FnMut(&str, Dtype, &[u64], &[u8])) {
    let mut files: Vec<PathBuf> = std::fs::read_dir(fixture(name))
        .expect("the fixture is there")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            file.starts_with("model") && file.ends_with(".safetensors")
        })
        .collect();
    files.sort();
    for file in files {
        let bytes = std::fs::read(&file).expect("readable");
        let tensors = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        for (name, tensor) in tensors.iter() {
            let dtype = match tensor.dtype() {
                safetensors::Dtype::F16 => Dtype::F16,
                safetensors::Dtype::BF16 => Dtype::BF16,
                _ => Dtype::F32,
            };
            let shape: Vec<u64> = tensor.shape().iter().map(|&d| d as u64).collect();
            f(name, dtype, &shape, tensor.data());
        }
    }
}

/// One sequence's part of a step.
#[derive(Clone)]
struct Query {
    token_ids: Vec<u32>,
    first_position: u32,
    blocks: Vec<u32>,
    seat: u32,
    sample: bool,
    feed_sampled: bool,
    sampling: SamplingRow,
}

fn query(token_ids: &[u32], first_position: u32, blocks: &[u32]) -> Query {
    Query {
        token_ids: token_ids.to_vec(),
        first_position,
        blocks: blocks.to_vec(),
        seat: 0,
        sample: true,
        feed_sampled: false,
        sampling: greedy(),
    }
}

fn greedy() -> SamplingRow {
    SamplingRow {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: 0,
        position: 0,
        suppress_end: false,
    }
}

fn batch(model: u32, queries: &[Query]) -> StepBatch {
    let stride = queries.iter().map(|q| q.blocks.len()).max().unwrap_or(0);
    let mut batch = StepBatch {
        model,
        cu_query_lens: vec![0],
        block_table_stride: stride as u32,
        want_logits: true,
        ..StepBatch::default()
    };
    for query in queries {
        for (position, &id) in (query.first_position..).zip(&query.token_ids) {
            let block = query.blocks[(position / BLOCK_SIZE) as usize];
            batch.token_ids.push(id);
            batch.positions.push(position);
            batch.slot_mapping.push(block * BLOCK_SIZE + position % BLOCK_SIZE);
        }
        batch.cu_query_lens.push(batch.token_ids.len() as u32);
        batch.context_lens.push(query.first_position + query.token_ids.len() as u32);
        batch.block_tables.extend(&query.blocks);
        batch.block_tables.resize(batch.block_tables.len() + stride - query.blocks.len(), 0);
        batch.seats.push(query.seat);
        batch.feed_sampled.push(query.feed_sampled);
        batch.sample.push(query.sample);
        batch.sampling.push(query.sampling);
    }
    batch
}

struct Engine {
    context: UniquePtr<Context>,
    model: u32,
    shape: ModelShape,
    output: StepOutput,
}

impl Engine {
    fn new(name: &str, isa: Isa, num_threads: u32) -> Self {
        let shape = shape(name);
        let limits = limits();
        let need = ffi::required_bytes(num_threads, &shape, &limits).expect("a good shape");
        let pool_bytes = need.weight_bytes + need.workspace_bytes + limits.kv_bytes;
        let options = DeviceOptions { num_threads, isa, pool_bytes };
        let mut context = ffi::new_cpu_context(&options).expect("a device");
        let plan = context.pin_mut().add_model(&shape, &limits).expect("memory for the model");
        assert_eq!(plan.weight_bytes, need.weight_bytes);
        assert_eq!(plan.workspace_bytes, need.workspace_bytes);
        for_each_tensor(name, |tensor, dtype, dimensions, data| {
            let set = context.pin_mut().set_tensor(plan.model, tensor, dtype, dimensions, data);
            set.unwrap_or_else(|e| panic!("{tensor}: {e}"));
        });
        context.pin_mut().finish_model(plan.model).expect("all tensors");
        Self { context, model: plan.model, shape, output: StepOutput::default() }
    }

    /// Logits of the rows that sample; the sampled ids are left in `output`.
    fn run(&mut self, queries: &[Query]) -> Vec<f32> {
        let batch = batch(self.model, queries);
        self.context.pin_mut().run_step(&batch, &mut self.output).expect("a good batch");
        self.output.logits.clone()
    }

    fn vocab_size(&self) -> usize {
        self.shape.vocab_size as usize
    }
}

fn isas() -> Vec<Isa> {
    let all = [Isa::Portable, Isa::Avx2, Isa::Avx512Bf16];
    let (have, lack): (Vec<Isa>, Vec<Isa>) = all.into_iter().partition(|&i| ffi::isa_available(i));
    for isa in lack {
        println!("left out: this machine has no {isa:?}");
    }
    have
}

struct Golden {
    prompts: Vec<Value>,
    logits: BTreeMap<String, Vec<f32>>,
}

fn golden(name: &str) -> Golden {
    let mut golden = json(&fixture(name).join("golden.json"));
    let bytes = std::fs::read(fixture(name).join("golden.safetensors")).expect("readable");
    let logits = SafeTensors::deserialize(&bytes)
        .expect("a safetensors file")
        .iter()
        .map(|(name, tensor)| {
            let values = tensor.data().chunks_exact(4);
            let values = values.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            (name.to_owned(), values)
        })
        .collect();
    let Value::Array(prompts) = golden["prompts"].take() else { panic!("prompts is a list") };
    Golden { prompts, logits }
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

fn blocks(first: u32, num_tokens: usize) -> Vec<u32> {
    (first..first + num_tokens.div_ceil(BLOCK_SIZE as usize) as u32).collect()
}

#[test]
fn logits_of_every_prompt_position_agree_with_transformers() {
    for name in CHECKPOINTS {
        let golden = golden(name);
        for isa in isas() {
            let mut engine = Engine::new(name, isa, 2);
            let mut worst = 0.0_f32;
            for prompt in &golden.prompts {
                let expected =
                    &golden.logits[&format!("{}.logits", prompt["name"].as_str().expect("a name"))];
                let tokens = ids(&prompt["prompt_token_ids"]);
                let table = blocks(3, tokens.len());
                let rows = expected.len() / engine.vocab_size();
                let skipped = tokens.len() - rows;
                if skipped > 0 {
                    let chunk = Query { sample: false, ..query(&tokens[..skipped], 0, &table) };
                    engine.run(&[chunk]);
                }
                for (row, position) in (skipped..tokens.len()).enumerate() {
                    let one = query(&tokens[position..=position], position as u32, &table);
                    let logits = engine.run(&[one]);
                    let expected = &expected[row * logits.len()..(row + 1) * logits.len()];
                    worst = worst.max(largest_difference(&logits, expected));
                }
            }
            println!("{name} {isa:?}: largest difference of a logit {worst:.2e}");
            assert!(worst <= max_logit_error(engine.shape.dtype), "{name} {isa:?}: {worst}");
        }
    }
}

#[test]
fn greedy_tokens_are_those_of_transformers() {
    for name in CHECKPOINTS {
        let golden = golden(name);
        for isa in isas() {
            let mut engine = Engine::new(name, isa, 2);
            // All prompts at once, of different lengths; after the prefill the device feeds itself.
            let mut queries: Vec<Query> = Vec::new();
            for (seat, prompt) in golden.prompts.iter().enumerate() {
                let tokens = ids(&prompt["prompt_token_ids"]);
                let table = blocks(seat as u32 * 16, tokens.len() + 40);
                queries.push(Query { seat: seat as u32, ..query(&tokens, 0, &table) });
            }
            let mut completions = vec![Vec::new(); queries.len()];
            let mut logits = Vec::new();
            for _ in 0..40 {
                logits = engine.run(&queries);
                for (query, (completion, &id)) in
                    queries.iter_mut().zip(completions.iter_mut().zip(&engine.output.token_ids))
                {
                    completion.push(id);
                    query.first_position += query.token_ids.len() as u32;
                    query.token_ids = vec![u32::MAX];
                    query.feed_sampled = true;
                }
            }
            for (row, prompt) in golden.prompts.iter().enumerate() {
                let label = prompt["name"].as_str().expect("a name");
                assert_eq!(
                    completions[row],
                    ids(&prompt["greedy_token_ids"]),
                    "{name} {isa:?} {label}"
                );
                let vocab = engine.vocab_size();
                let expected = &golden.logits[&format!("{label}.last_step_logits")];
                let worst = largest_difference(&logits[row * vocab..(row + 1) * vocab], expected);
                assert!(
                    worst <= max_logit_error(engine.shape.dtype),
                    "{name} {isa:?} {label}: {worst}"
                );
            }
        }
    }
}

#[test]
fn shards_load_the_same_weights_as_one_file() {
    let tokens = [3, 1, 4, 1, 5, 9, 2, 6];
    let one = Engine::new("llama2-tiny", Isa::Portable, 1).run(&[query(&tokens, 0, &[0])]);
    let many = Engine::new("llama2-tiny-sharded", Isa::Portable, 1).run(&[query(&tokens, 0, &[0])]);
    assert_eq!(bits(&one), bits(&many));
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

/// The longest golden prompt of each dtype on each instruction set, with its logits alone.
fn for_each_backend(test: impl Fn(&str, &mut Engine, &[u32], &[u32])) {
    for name in ["llama2-tiny", "llama3-tiny", "llama32-tiny", "llama32-tiny-bf16"] {
        let prompts = golden(name).prompts;
        let tokens = ids(&prompts.last().expect("prompts")["prompt_token_ids"]);
        for isa in isas() {
            let mut engine = Engine::new(name, isa, 2);
            let alone = engine.run(&[query(&tokens, 0, &blocks(0, tokens.len()))]);
            test(&format!("{name} {isa:?}"), &mut engine, &tokens, &bits(&alone));
        }
    }
}

#[test]
fn same_bits_in_any_batch() {
    for_each_backend(|label, engine, tokens, alone| {
        let vocab = engine.vocab_size();
        for place in 0..4_u32 {
            let others = [&tokens[..1], &tokens[..17], &tokens[40..100]];
            let mut queries: Vec<Query> = others.iter().map(|t| query(t, 0, &[])).collect();
            queries.insert(place as usize, query(tokens, 0, &[]));
            for (seat, query) in (0..).zip(&mut queries) {
                query.seat = seat;
                query.blocks = blocks(60 - 12 * seat, 150);
            }
            let logits = engine.run(&queries);
            let row = &logits[place as usize * vocab..(place as usize + 1) * vocab];
            assert_eq!(bits(row), alone, "{label} at place {place}");
        }
    });
}

#[test]
fn same_bits_in_chunks_of_any_size() {
    for_each_backend(|label, engine, tokens, alone| {
        for size in [1, 3, 7, 16, 31, 64, 149] {
            let table: Vec<u32> = (0..10).map(|i| (i * 7 + 5) % 31).collect();
            let mut logits = Vec::new();
            let mut first = 0;
            for chunk in tokens.chunks(size) {
                logits = engine.run(&[query(chunk, first, &table)]);
                first += chunk.len() as u32;
            }
            assert_eq!(bits(&logits), alone, "{label} in chunks of {size}");
        }
    });
}

#[test]
fn same_bits_over_blocks_that_another_sequence_filled() {
    for_each_backend(|label, engine, tokens, alone| {
        let vocab = engine.vocab_size();
        // 96 tokens are six whole blocks; two sequences go on from them at once, beside a stranger.
        let shared = blocks(20, 96);
        engine.run(&[Query { sample: false, ..query(&tokens[..96], 0, &shared) }]);
        let with_tail = |first: u32| [shared.clone(), blocks(first, 54)].concat();
        let queries = [
            Query { seat: 5, ..query(&tokens[96..], 96, &with_tail(1)) },
            Query { seat: 1, ..query(&tokens[..9], 0, &[12]) },
            Query { seat: 2, ..query(&tokens[96..], 96, &with_tail(6)) },
        ];
        let logits = engine.run(&queries);
        assert_eq!(bits(&logits[..vocab]), alone, "{label}");
        assert_eq!(bits(&logits[2 * vocab..]), alone, "{label}");
    });
}

#[test]
fn same_bits_after_preemption_and_recompute() {
    for_each_backend(|label, engine, tokens, _| {
        // Decode beyond the prompt, lose the blocks to another sequence, compute prompt and completion again.
        let table = blocks(0, 200);
        let mut logits = engine.run(&[query(tokens, 0, &table)]);
        let mut all = tokens.to_vec();
        for _ in 0..6 {
            all.push(engine.output.token_ids[0]);
            let position = all.len() - 1;
            logits = engine.run(&[query(&all[position..], position as u32, &table)]);
        }
        engine.run(&[query(&[7; 200], 0, &table)]);
        let elsewhere: Vec<u32> = table.iter().rev().copied().collect();
        let again = engine.run(&[query(&all, 0, &elsewhere)]);
        assert_eq!(bits(&again), bits(&logits), "{label}");
    });
}

#[test]
fn same_bits_on_any_number_of_threads() {
    for_each_backend(|label, engine, tokens, alone| {
        let name = label.split(' ').next().expect("a name");
        for num_threads in [1, 3, 7] {
            let mut other = Engine::new(name, engine.context.isa(), num_threads);
            let logits = other.run(&[query(tokens, 0, &blocks(0, tokens.len()))]);
            assert_eq!(bits(&logits), alone, "{label} on {num_threads} threads");
        }
    });
}

#[test]
fn the_same_seed_draws_the_same_tokens_alone_and_in_a_batch() {
    let mut engine = Engine::new("llama3-tiny", Isa::Auto, 2);
    assert_ne!(engine.context.isa(), Isa::Auto);
    let sampled = |seed: u64| Query {
        sampling: SamplingRow {
            temperature: 0.9,
            top_k: 50,
            top_p: 0.95,
            min_p: 0.01,
            seed,
            ..greedy()
        },
        ..query(&[9, 8, 7, 6], 0, &[])
    };
    let mut completions = BTreeMap::new();
    for seeds in [vec![1], vec![2], vec![3], vec![3, 2, 1], vec![2, 3]] {
        let mut queries: Vec<Query> = seeds.iter().map(|&seed| sampled(seed)).collect();
        for (seat, query) in (0..).zip(&mut queries) {
            (query.seat, query.blocks) = (seat, blocks(seat * 4, 40));
        }
        let mut drawn = vec![Vec::new(); seeds.len()];
        for _ in 0..24 {
            for query in &mut queries {
                query.sampling.position = query.first_position + query.token_ids.len() as u32;
            }
            engine.run(&queries);
            for (row, query) in queries.iter_mut().enumerate() {
                drawn[row].push(engine.output.token_ids[row]);
                query.first_position = query.sampling.position;
                query.token_ids = vec![0];
                query.feed_sampled = true;
            }
        }
        for (seed, drawn) in seeds.into_iter().zip(drawn) {
            assert_eq!(completions.entry(seed).or_insert_with(|| drawn.clone()), &drawn);
        }
    }
    assert_ne!(completions[&1], completions[&2]);
}

#[test]
fn errors_arrive_with_their_code() {
    use inferno_node::bridge::{DeviceError, DeviceErrorCode};
    let code = |e: cxx::Exception| DeviceError::from(e).code;
    let options = DeviceOptions { num_threads: 1, isa: Isa::Portable, pool_bytes: 1 << 20 };
    let mut context = ffi::new_cpu_context(&options).expect("a device");
    let shape = shape("llama32-tiny");
    let added = context.pin_mut().add_model(&shape, &limits());
    assert_eq!(code(added.expect_err("1 MiB is too little")), DeviceErrorCode::OutOfMemory);
    let huge = DeviceOptions { pool_bytes: u64::MAX, ..options };
    assert_eq!(
        code(ffi::new_cpu_context(&huge).err().expect("no machine has that")),
        DeviceErrorCode::OutOfMemory
    );
    let mut engine = Engine::new("llama32-tiny", Isa::Portable, 1);
    let mut bad = batch(engine.model, &[query(&[1, 2], 0, &[0])]);
    bad.positions[1] = 7;
    let ran = engine.context.pin_mut().run_step(&bad, &mut engine.output);
    assert_eq!(code(ran.expect_err("contradicts itself")), DeviceErrorCode::InvalidBatch);
    let set = engine.context.pin_mut().set_tensor(engine.model, "x", Dtype::F32, &[], &[]);
    assert_eq!(code(set.expect_err("finished")), DeviceErrorCode::Other);
    engine.run(&[query(&[1, 2], 0, &[0])]);
    let before = engine.context.memory_stats().expect("stats");
    for _ in 0..5 {
        engine.run(&[query(&[1, 2], 0, &[0])]);
    }
    assert_eq!(engine.context.memory_stats().expect("stats"), before);
    engine.context.pin_mut().remove_model(engine.model).expect("it is there");
    assert_eq!(engine.context.memory_stats().expect("stats").used_bytes, 0);
}

#[test]
fn read_bandwidth_can_be_measured() {
    let bandwidth = ffi::measure_read_bandwidth(8 << 20, 2, 2).expect("memory for it");
    assert!(bandwidth > 1e6, "{bandwidth}");
    assert!(ffi::measure_read_bandwidth(0, 1, 1).is_err());
}
