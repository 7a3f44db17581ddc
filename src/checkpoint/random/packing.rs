//! The tensors that a matrix has in a file: one of bf16, or the codes and scales of a format, as `checkpoint/quantized` reads them.

use clap::ValueEnum;
use half::{bf16, f16};
use serde_json::{Value, json};

use super::DEVIATION;
use crate::checkpoint::families::ExpectedTensor;

/// In which format a random checkpoint's layers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub enum RandomFormat {
    /// e4m3 with a scale for each row (compressed-tensors).
    Fp8,
    /// e4m3 with a scale for each block of 128 × 128 (as DeepSeek and Qwen publish it).
    Fp8Block,
    /// 8 bits with a scale for each row (compressed-tensors).
    Int8,
    /// 4 bits in groups of 128 (compressed-tensors).
    Int4,
    /// 4 bits in groups of 128, symmetric (GPTQ).
    Gptq,
    /// 4 bits in groups of 128 with zero points (AWQ).
    Awq,
}

/// Columns of a group, and rows and columns of a block.
const GROUP: u64 = 128;

/// What a tensor's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TensorBytes {
    /// Normal values in bf16.
    Normal,
    /// Random bytes, of which these bits are kept and those set.
    Codes { keep: u8, set: u8 },
    /// The same bytes again and again.
    Repeated(Vec<u8>),
    /// Each column's group, 32 bits.
    Groups,
}

/// One tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unplaced {
    pub name: String,
    pub dtype: &'static str,
    pub shape: Vec<u64>,
    pub bytes: u64,
    pub content: TensorBytes,
}

impl Unplaced {
    fn new(name: String, dtype: &'static str, shape: &[u64], content: TensorBytes) -> Self {
        let element_bytes = match dtype {
            "F8_E4M3" | "I8" => 1,
            "BF16" | "F16" => 2,
            "I64" => 8,
            _ => 4,
        };
        let bytes = shape.iter().product::<u64>() * element_bytes;
        Self { name, dtype, shape: shape.to_vec(), bytes, content }
    }

    /// A norm, whose weights are 1, or a matrix of bf16.
    pub fn of_elements(tensor: &ExpectedTensor) -> Self {
        let content = match tensor.name.ends_with("norm.weight") {
            true => TensorBytes::Repeated(bf16::ONE.to_le_bytes().to_vec()),
            false => TensorBytes::Normal,
        };
        Self::new(tensor.name.clone(), "BF16", &tensor.shape, content)
    }
}

/// All bits of a code are random.
const ANY: TensorBytes = TensorBytes::Codes { keep: 0xff, set: 0 };

impl RandomFormat {
    /// What this tensor becomes: of a layer's matrix, codes and what belongs to them.
    pub(super) fn tensors(self, tensor: &ExpectedTensor) -> Vec<Unplaced> {
        let module = tensor.module().filter(|module| module.contains(".layers."));
        let (Some(module), [rows, columns]) = (module, &tensor.shape[..]) else {
            return vec![Unplaced::of_elements(tensor)];
        };
        let (rows, columns) = (*rows, *columns);
        let groups = columns.div_ceil(GROUP);
        let new = |name: &str, dtype, shape: &[u64], content| {
            Unplaced::new(format!("{module}.{name}"), dtype, shape, content)
        };
        let scale = TensorBytes::Repeated(bf16::from_f32(self.scale()).to_le_bytes().to_vec());
        let half = TensorBytes::Repeated(f16::from_f32(self.scale()).to_le_bytes().to_vec());
        let words = |word: u32| TensorBytes::Repeated(word.to_le_bytes().to_vec());
        match self {
            Self::Fp8 => vec![
                new("weight", "F8_E4M3", &[rows, columns], E4M3),
                new("weight_scale", "BF16", &[rows, 1], scale),
            ],
            Self::Fp8Block => {
                let scale = TensorBytes::Repeated(self.scale().to_le_bytes().to_vec());
                vec![
                    new("weight", "F8_E4M3", &[rows, columns], E4M3),
                    new("weight_scale_inv", "F32", &[rows.div_ceil(GROUP), groups], scale),
                ]
            }
            Self::Int8 => vec![
                new("weight", "I8", &[rows, columns], ANY),
                new("weight_scale", "BF16", &[rows, 1], scale),
            ],
            Self::Int4 => {
                let shape = TensorBytes::Repeated([rows, columns].map(u64::to_le_bytes).concat());
                vec![
                    new("weight_packed", "I32", &[rows, columns.div_ceil(8)], ANY),
                    new("weight_scale", "BF16", &[rows, groups], scale),
                    new("weight_shape", "I64", &[2], shape),
                ]
            }
            Self::Gptq => vec![
                new("qweight", "I32", &[columns.div_ceil(8), rows], ANY),
                new("qzeros", "I32", &[groups, rows.div_ceil(8)], words(0x7777_7777)),
                new("scales", "F16", &[groups, rows], half),
                new("g_idx", "I32", &[columns], TensorBytes::Groups),
            ],
            Self::Awq => vec![
                new("qweight", "I32", &[columns, rows.div_ceil(8)], ANY),
                new("qzeros", "I32", &[groups, rows.div_ceil(8)], words(0x8888_8888)),
                new("scales", "F16", &[groups, rows], half),
            ],
        }
    }

    /// So that weights have the deviation of those in bf16.
    fn scale(self) -> f32 {
        let deviation_of_codes = match self {
            Self::Fp8 | Self::Fp8Block => 0.37,
            Self::Int8 => 73.9,
            Self::Int4 | Self::Gptq | Self::Awq => 4.64,
        };
        DEVIATION / deviation_of_codes
    }

    /// `quantization_config` of `config.json`.
    pub(super) fn config(self) -> Value {
        let compressed = |format: &str, weights: Value| {
            json!({
                "quant_method": "compressed-tensors", "format": format, "ignore": ["lm_head"],
                "config_groups": {"group_0": {
                    "targets": ["Linear"], "weights": weights, "input_activations": null
                }},
            })
        };
        match self {
            Self::Fp8 => compressed(
                "float-quantized",
                json!({"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": true}),
            ),
            Self::Fp8Block => json!({
                "quant_method": "fp8", "activation_scheme": "dynamic",
                "weight_block_size": [GROUP, GROUP]
            }),
            Self::Int8 => compressed(
                "int-quantized",
                json!({"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": true}),
            ),
            Self::Int4 => compressed(
                "pack-quantized",
                json!({
                    "num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP,
                    "symmetric": true
                }),
            ),
            Self::Gptq => json!({
                "quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": true, "desc_act": false
            }),
            Self::Awq => json!({
                "quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": true,
                "version": "gemm"
            }),
        }
    }
}

/// One power of two, and no code that is no number.
const E4M3: TensorBytes = TensorBytes::Codes { keep: 0x87, set: 0x28 };

impl TensorBytes {
    /// Bytes `begin` and up of a tensor; `words` fills in random ones.
    pub(super) fn make(&self, begin: u64, out: &mut [u8], random: impl FnOnce(&mut [u8])) {
        match self {
            Self::Normal => random(out),
            Self::Codes { keep, set } => {
                random(out);
                out.iter_mut().for_each(|byte| *byte = *byte & keep | set);
            }
            Self::Repeated(bytes) => {
                let first = begin as usize % bytes.len();
                let again = bytes.iter().cycle().skip(first);
                out.iter_mut().zip(again).for_each(|(to, from)| *to = *from);
            }
            Self::Groups => {
                for (word, column) in out.chunks_exact_mut(4).zip(begin / 4..) {
                    word.copy_from_slice(&((column / GROUP) as u32).to_le_bytes());
                }
            }
        }
    }
}
