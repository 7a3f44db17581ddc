//! The demo model in one GGUF file, its layers' matrices in blocks of a type, written from the types' definitions
//! (`src/checkpoint/gguf/kinds.rs` has their layout): as in `packings.rs`, codes are the nearest, and nothing is searched.

use std::path::Path;

use half::{bf16, f16};
use serde_json::Value;

use crate::harness::json;
use crate::packings::{Tensor, demo, demo_tensors, nearest, paired, range};

/// Where data of a tensor begins.
const ALIGNMENT: usize = 32;

/// Types of metadata.
const UINT32: u32 = 4;
const FLOAT32: u32 = 6;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Types of tensors without blocks.
const F32: u32 = 0;
const BF16: u32 = 30;

/// Metadata by its keys in `config.json`.
const SIZES: [(&str, &str); 6] = [
    ("llama.context_length", "max_position_embeddings"),
    ("llama.embedding_length", "hidden_size"),
    ("llama.feed_forward_length", "intermediate_size"),
    ("llama.block_count", "num_hidden_layers"),
    ("llama.attention.head_count", "num_attention_heads"),
    ("llama.attention.head_count_kv", "num_key_value_heads"),
];
const NUMBERS: [(&str, &str); 2] = [
    ("llama.attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("llama.rope.freq_base", "rope_theta"),
];

/// Parts of tensors' names here and there.
const NAMES: [(&str, &str); 12] = [
    ("model.layers.", "blk."),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
];

/// How the matrices of the layers stand in the file.
#[derive(Debug, Clone, Copy)]
#[allow(non_camel_case_types)]
pub enum BlockType {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4_K,
    Q5_K,
    Q6_K,
}

/// A file while it is written.
#[derive(Default)]
struct GgufFile {
    num_entries: u64,
    metadata: Vec<u8>,
    num_tensors: u64,
    /// Names, sizes, types and places.
    tensors: Vec<u8>,
    data: Vec<u8>,
}

/// Its length before its bytes.
fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl GgufFile {
    fn entry(&mut self, key: &str, kind: u32, value: &[u8]) {
        self.num_entries += 1;
        self.metadata.extend([&text(key), &kind.to_le_bytes()[..], value].concat());
    }

    fn add_texts<'a>(&mut self, key: &str, texts: impl ExactSizeIterator<Item = &'a str>) {
        let mut value = STRING.to_le_bytes().to_vec();
        value.extend((texts.len() as u64).to_le_bytes());
        value.extend(texts.flat_map(text));
        self.entry(key, ARRAY, &value);
    }

    /// The tokens and merges of `tokenizer.json`.
    fn add_tokenizer(&mut self) {
        let tokenizer = json(&demo().join("tokenizer.json"));
        let ids = tokenizer["model"]["vocab"].as_object().expect("tokens and ids");
        let mut tokens: Vec<(u64, &str)> =
            ids.iter().map(|(token, id)| (id.as_u64().expect("an id"), token.as_str())).collect();
        tokens.sort_unstable();
        let line = |pair: &Value| {
            let part = |at: usize| pair[at].as_str().expect("a token");
            format!("{} {}", part(0), part(1))
        };
        let merges = tokenizer["model"]["merges"].as_array().expect("pairs");
        let merges: Vec<String> = merges.iter().map(line).collect();
        self.entry("tokenizer.ggml.model", STRING, &text("gpt2"));
        self.entry("tokenizer.ggml.pre", STRING, &text("qwen2"));
        self.add_texts("tokenizer.ggml.tokens", tokens.iter().map(|(_, token)| *token));
        self.add_texts("tokenizer.ggml.merges", merges.iter().map(String::as_str));
    }

    fn add_tensor(&mut self, name: &str, shape: &[usize], kind: u32, data: &[u8]) {
        self.num_tensors += 1;
        let sizes = shape.iter().rev().flat_map(|size| (*size as u64).to_le_bytes());
        self.tensors.extend([text(name), (shape.len() as u32).to_le_bytes().to_vec()].concat());
        self.tensors.extend(sizes);
        self.tensors.extend(kind.to_le_bytes());
        self.tensors.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(data);
        self.data.resize(self.data.len().next_multiple_of(ALIGNMENT), 0);
    }

    fn bytes(self) -> Vec<u8> {
        let counts = [self.num_tensors, self.num_entries].map(u64::to_le_bytes).concat();
        let version = 3_u32.to_le_bytes();
        let mut bytes = [b"GGUF", &version[..], &counts, &self.metadata, &self.tensors].concat();
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes.extend(self.data);
        bytes
    }
}

/// Rows of q and k in the file: those of a head that turn together, one of each half, are neighbours.
fn in_pairs(matrix: &Tensor, head_dim: usize) -> Vec<f32> {
    let half = head_dim / 2;
    let source = |row: usize| {
        let in_head = row % head_dim;
        row - in_head + in_head % 2 * half + in_head / 2
    };
    let columns = matrix.shape[1];
    let rows = 0..matrix.shape[0];
    rows.flat_map(|row| &matrix.values[source(row) * columns..][..columns]).copied().collect()
}

impl BlockType {
    /// The demo model in a file.
    pub fn write(self, path: &Path) {
        let config = json(&demo().join("config.json"));
        let size = |name: &str| config[name].as_u64().expect("a size");
        let mut file = GgufFile::default();
        file.entry("general.architecture", STRING, &text("llama"));
        for (key, name) in SIZES {
            file.entry(key, UINT32, &(size(name) as u32).to_le_bytes());
        }
        for (key, name) in NUMBERS {
            let number = config[name].as_f64().expect("a number") as f32;
            file.entry(key, FLOAT32, &number.to_le_bytes());
        }
        file.add_tokenizer();
        let head_dim = (size("hidden_size") / size("num_attention_heads")) as usize;
        for tensor in &mut demo_tensors() {
            let rename = |name: String, (theirs, ours): &(&str, &str)| name.replace(theirs, ours);
            let name = NAMES.iter().fold(tensor.name.clone(), rename);
            if name.contains("attn_q.") || name.contains("attn_k.") {
                tensor.values = in_pairs(tensor, head_dim);
            }
            let (kind, data) = self.encode(tensor);
            file.add_tensor(&name, &tensor.shape, kind, &data);
        }
        std::fs::write(path, file.bytes()).expect("writes");
    }

    /// A tensor's type in the file and its bytes. What stays as it is has the type that it has in files: norms F32, matrices BF16.
    fn encode(self, tensor: &Tensor) -> (u32, Vec<u8>) {
        let values = &tensor.values;
        match (tensor.module(), &tensor.shape[..]) {
            (Some(_), [_, columns]) => {
                let kind = self.fitting(*columns);
                let blocks = values.chunks(kind.columns());
                (kind.number(), blocks.flat_map(|block| kind.block(block)).collect())
            }
            (None, [_]) => (F32, values.iter().flat_map(|value| value.to_le_bytes()).collect()),
            _ => {
                let bytes = values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes());
                (BF16, bytes.collect())
            }
        }
    }

    /// Of a matrix of so many columns: what llama.cpp falls back to where these are no whole blocks, as 704 are not of 256.
    fn fitting(self, columns: usize) -> Self {
        match self {
            Self::Q4_K if !columns.is_multiple_of(256) => Self::Q5_0,
            Self::Q5_K if !columns.is_multiple_of(256) => Self::Q5_1,
            Self::Q6_K if !columns.is_multiple_of(256) => Self::Q8_0,
            _ => self,
        }
    }

    fn number(self) -> u32 {
        match self {
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q4_K => 12,
            Self::Q5_K => 13,
            Self::Q6_K => 14,
        }
    }

    /// Of a block.
    fn columns(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
        }
    }

    fn block(self, weights: &[f32]) -> Vec<u8> {
        match self {
            Self::Q4_0 => around_zero(weights, 4),
            Self::Q4_1 => above_minimum(weights, 4),
            Self::Q5_0 => around_zero(weights, 5),
            Self::Q5_1 => above_minimum(weights, 5),
            Self::Q8_0 => q8_0(weights),
            Self::Q4_K => {
                let (head, codes) = with_minima(weights, 4);
                [head, paired(&codes, 32)].concat()
            }
            Self::Q5_K => {
                let (head, codes) = with_minima(weights, 5);
                [head, upper_bits(&codes, 1), paired(&lower_bits(&codes), 32)].concat()
            }
            Self::Q6_K => q6_k(weights),
        }
    }
}

/// As it stands in a block, and that number.
fn half(value: f32) -> ([u8; 2], f32) {
    let rounded = f16::from_f32(value);
    (rounded.to_le_bytes(), rounded.to_f32())
}

/// The weight that is furthest from zero, with its sign.
fn furthest(weights: &[f32]) -> f32 {
    let (low, high) = range(weights);
    if -low > high { low } else { high }
}

fn q8_0(weights: &[f32]) -> Vec<u8> {
    let (bytes, d) = half(furthest(weights).abs() / 127.0);
    let codes = weights.iter().map(|weight| nearest(*weight, d, (-127.0, 127.0)) as i8 as u8);
    bytes.into_iter().chain(codes).collect()
}

/// Q4_0 and Q5_0. The furthest weight becomes code 0, which is half of all codes below zero.
fn around_zero(weights: &[f32], bits: usize) -> Vec<u8> {
    let middle = (1 << (bits - 1)) as f32;
    let (bytes, d) = half(furthest(weights) / -middle);
    let code = |weight: &f32| (nearest(*weight, d, (-middle, middle - 1.0)) + middle) as u8;
    let codes: Vec<u8> = weights.iter().map(code).collect();
    [&bytes[..], &codes_of_32(&codes, bits)].concat()
}

/// Q4_1 and Q5_1. The least weight becomes code 0, the largest the last one.
fn above_minimum(weights: &[f32], bits: usize) -> Vec<u8> {
    let (low, high) = range(weights);
    let top = last_code(bits);
    let ((d_bytes, d), (m_bytes, m)) = (half((high - low) / top), half(low));
    let codes = weights.iter().map(|weight| nearest(weight - m, d, (0.0, top)) as u8);
    let codes: Vec<u8> = codes.collect();
    [&d_bytes[..], &m_bytes, &codes_of_32(&codes, bits)].concat()
}

fn last_code(bits: usize) -> f32 {
    ((1 << bits) - 1) as f32
}

/// Of 5 bits the fifth ones in a word, the first column's the lowest, before the lower four.
fn codes_of_32(codes: &[u8], bits: usize) -> Vec<u8> {
    let fifth = codes.iter().rev().fold(0_u32, |word, code| word << 1 | u32::from(code >> 4));
    let word = if bits == 5 { fifth.to_le_bytes().to_vec() } else { Vec::new() };
    [word, paired(&lower_bits(codes), 16)].concat()
}

/// Codes above their four lower bits: 32 columns beside each other, the next 32 in the next `bits` of the same bytes.
fn upper_bits(codes: &[u8], bits: usize) -> Vec<u8> {
    let byte = |run: &[u8], at: usize| {
        let parts = run.chunks(32).zip((0..8).step_by(bits));
        parts.fold(0, |byte, (part, shift)| byte | part[at] >> 4 << shift)
    };
    codes.chunks(256 / bits).flat_map(|run| (0..32).map(move |at| byte(run, at))).collect()
}

fn lower_bits(codes: &[u8]) -> Vec<u8> {
    codes.iter().map(|code| code & 15).collect()
}

/// Of Q4_K and Q5_K what stands before the codes, and the codes. A group's minimum is taken off, so that they begin at 0.
fn with_minima(weights: &[f32], bits: usize) -> (Vec<u8>, Vec<u8>) {
    let top = last_code(bits);
    let of_group = |part: &[f32]| {
        let (low, high) = range(part);
        ((high - low) / top, -low)
    };
    let (scales, minima): (Vec<f32>, Vec<f32>) = weights.chunks(32).map(of_group).unzip();
    let (d_bytes, d) = half(furthest(&scales) / 63.0);
    let (dmin_bytes, dmin) = half(furthest(&minima) / 63.0);
    let in_steps = |values: &[f32], step: f32| -> Vec<u8> {
        values.iter().map(|value| nearest(*value, step, (0.0, 63.0)) as u8).collect()
    };
    let (scales, minima) = (in_steps(&scales, d), in_steps(&minima, dmin));
    let mut codes = Vec::new();
    for (part, (s, m)) in weights.chunks(32).zip(scales.iter().zip(&minima)) {
        let (scale, minimum) = (d * f32::from(*s), dmin * f32::from(*m));
        codes.extend(part.iter().map(|w| nearest(w + minimum, scale, (0.0, top)) as u8));
    }
    let head = [&d_bytes[..], &dmin_bytes, &six_bits(&scales, &minima)].concat();
    (head, codes)
}

/// Eight scales and eight minima of 6 bits in 12 bytes: the first four of each, with the upper two bits of the others above them, then
/// the others' lower four.
fn six_bits(scales: &[u8], minima: &[u8]) -> Vec<u8> {
    let first = |of: &[u8]| [0, 1, 2, 3].map(|at| of[at] | of[at + 4] >> 4 << 6);
    let rest = [4, 5, 6, 7].map(|at| scales[at] & 15 | (minima[at] & 15) << 4);
    [first(scales), first(minima), rest].concat()
}

/// Each 16 columns have a scale with a sign, by which the furthest weight is code 0, 32 below zero.
fn q6_k(weights: &[f32]) -> Vec<u8> {
    let scales: Vec<f32> = weights.chunks(16).map(|part| furthest(part) / -32.0).collect();
    let (bytes, d) = half(furthest(&scales).abs() / 127.0);
    let scales = scales.iter().map(|scale| nearest(*scale, d, (-127.0, 127.0)));
    let scales: Vec<f32> = scales.collect();
    let parts = weights.chunks(16).zip(&scales);
    let codes: Vec<u8> = parts
        .flat_map(|(part, s)| part.iter().map(move |weight| nearest(*weight, d * s, (-32.0, 31.0))))
        .map(|code| (code + 32.0) as u8)
        .collect();
    let scales = scales.iter().map(|scale| *scale as i8 as u8).collect();
    [paired(&lower_bits(&codes), 64), upper_bits(&codes, 2), scales, bytes.to_vec()].concat()
}
