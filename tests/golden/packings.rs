//! The demo model in the files of each packing that is read, written from the formats' own definitions: a scale comes of the largest
//! weight that it is for, a code is the nearest, and nothing is searched. Embedding, head and norms stay in bf16.

use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use crate::harness::json;

/// The demo model's folder; that in TEST_DEMO, where the tests run on a machine without this repository.
pub fn demo() -> PathBuf {
    let folder = std::env::var_os("TEST_DEMO").map(PathBuf::from);
    folder.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo"))
}

/// Columns of a group, and rows and columns of a block of fp8. Of 704 columns the last group has 64.
const GROUP: usize = 128;

/// AWQ's outputs of a word, from its lowest bits on.
const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// How the matrices of the layers stand in a folder of `config.json` and safetensors.
#[derive(Debug, Clone, Copy)]
pub enum Packing {
    /// e4m3 with one scale for a matrix.
    Fp8Tensor,
    /// e4m3 with a scale for each row, compressed-tensors' `float-quantized`.
    Fp8Rows,
    /// e4m3 with a scale for each block of 128 × 128, as DeepSeek and Qwen publish it.
    Fp8Blocks,
    /// 8 bits with a scale for each row, compressed-tensors' `int-quantized`.
    Int8Rows,
    /// 4 bits in symmetric groups of 128, compressed-tensors' `pack-quantized`.
    PackedRows,
    Gptq(Scheme),
    /// 4 bits in groups of 128 with zero points.
    Awq,
}

/// Integers of `bits`; so many columns of a row share a scale and a zero point.
#[derive(Debug, Clone, Copy)]
pub struct Scheme {
    pub bits: usize,
    pub group: usize,
    /// Whether the zero point is the middle, whatever the weights are.
    pub symmetric: bool,
}

/// A weight is its group's `scale * (code - zero)`; codes begin at 0.
struct Integers {
    codes: Vec<u8>,
    /// `[rows, groups]`.
    scales: Vec<f32>,
    zeros: Vec<u8>,
}

/// A tensor of the demo model.
pub struct Tensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// A tensor of a file.
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

pub fn demo_tensors() -> Vec<Tensor> {
    let bytes = std::fs::read(demo().join("model.safetensors")).expect("the demo model");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let tensor = |(name, view): (&str, TensorView<'_>)| {
        let values = view.data().as_chunks().0.iter();
        let values = values.map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect();
        Tensor { name: name.to_owned(), shape: view.shape().to_vec(), values }
    };
    file.iter().map(tensor).collect()
}

impl Tensor {
    /// Of a layer's matrix.
    pub fn module(&self) -> Option<&str> {
        let is_matrix = self.shape.len() == 2 && self.name.contains(".layers.");
        self.name.strip_suffix(".weight").filter(|_| is_matrix)
    }
}

impl Stored {
    fn integers(shape: [usize; 2], words: &[u32]) -> Self {
        let data = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        Self { dtype: Dtype::I32, shape: shape.to_vec(), data }
    }

    /// As `dtype`, which holds them.
    fn floats(dtype: Dtype, shape: &[usize], values: &[f32]) -> Self {
        let bytes = |value: &f32| match dtype {
            Dtype::BF16 => bf16::from_f32(*value).to_le_bytes().to_vec(),
            Dtype::F16 => f16::from_f32(*value).to_le_bytes().to_vec(),
            _ => value.to_le_bytes().to_vec(),
        };
        Self { dtype, shape: shape.to_vec(), data: values.iter().flat_map(bytes).collect() }
    }
}

impl Packing {
    /// The demo model in this packing, in an empty folder.
    pub fn write(self, folder: &Path) {
        let demo = demo();
        for name in ["tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(demo.join(name), folder.join(name)).expect("copies");
        }
        let mut config = json(&demo.join("config.json"));
        config["quantization_config"] = self.config();
        std::fs::write(folder.join("config.json"), config.to_string()).expect("writes");
        let tensors: Vec<_> = demo_tensors().iter().flat_map(|tensor| self.pack(tensor)).collect();
        let views = tensors.iter().map(|(name, Stored { dtype, shape, data })| {
            (name, TensorView::new(*dtype, shape.clone(), data).expect("a whole tensor"))
        });
        let bytes = safetensors::serialize(views, None).expect("serialises");
        std::fs::write(folder.join("model.safetensors"), bytes).expect("writes");
    }

    /// `quantization_config` of `config.json`.
    fn config(self) -> Value {
        let compressed = |format: &str, weights: Value| {
            json!({
                "quant_method": "compressed-tensors", "format": format, "ignore": ["lm_head"],
                "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
            })
        };
        let by_row = |kind: &str| {
            json!({
                "num_bits": 8, "type": kind, "strategy": "channel", "symmetric": true,
            })
        };
        match self {
            Self::Fp8Tensor => json!({"quant_method": "fp8", "activation_scheme": "dynamic"}),
            Self::Fp8Rows => compressed("float-quantized", by_row("float")),
            Self::Fp8Blocks => json!({
                "quant_method": "fp8", "activation_scheme": "dynamic",
                "weight_block_size": [GROUP, GROUP],
            }),
            Self::Int8Rows => compressed("int-quantized", by_row("int")),
            Self::PackedRows => compressed(
                "pack-quantized",
                json!({
                    "num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP,
                    "symmetric": true,
                }),
            ),
            Self::Gptq(Scheme { bits, group, symmetric }) => json!({
                "quant_method": "gptq", "bits": bits, "group_size": group, "sym": symmetric,
                "desc_act": false,
            }),
            Self::Awq => json!({
                "quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": true,
                "version": "gemm",
            }),
        }
    }

    /// What a file has for a tensor.
    fn pack(self, tensor: &Tensor) -> Vec<(String, Stored)> {
        let Some(module) = tensor.module() else {
            let stored = Stored::floats(Dtype::BF16, &tensor.shape, &tensor.values);
            return vec![(tensor.name.clone(), stored)];
        };
        let (rows, columns) = (tensor.shape[0], tensor.shape[1]);
        let blocks = [rows.div_ceil(GROUP), columns.div_ceil(GROUP)];
        let symmetric = |bits, group| Scheme { bits, group, symmetric: true };
        let parts = match self {
            Self::Fp8Tensor => fp8(tensor, (rows, columns), ("weight_scale", Dtype::F32, vec![])),
            Self::Fp8Rows => {
                fp8(tensor, (1, columns), ("weight_scale", Dtype::BF16, vec![rows, 1]))
            }
            Self::Fp8Blocks => {
                fp8(tensor, (GROUP, GROUP), ("weight_scale_inv", Dtype::F32, blocks.to_vec()))
            }
            Self::Int8Rows => compressed(tensor, symmetric(8, columns)),
            Self::PackedRows => compressed(tensor, symmetric(4, GROUP)),
            Self::Gptq(scheme) => gptq(tensor, scheme),
            Self::Awq => awq(tensor, Scheme { bits: 4, group: GROUP, symmetric: false }),
        };
        parts.into_iter().map(|(name, stored)| (format!("{module}.{name}"), stored)).collect()
    }
}

/// `value` as this type has it.
fn rounded(dtype: Dtype, value: f32) -> f32 {
    match dtype {
        Dtype::BF16 => bf16::from_f32(value).to_f32(),
        Dtype::F16 => f16::from_f32(value).to_f32(),
        _ => value,
    }
}

/// `value` in steps of `scale`, no fewer than `low` and no more than `high`.
pub fn nearest(value: f32, scale: f32, (low, high): (f32, f32)) -> f32 {
    (value / scale).round_ties_even().clamp(low, high)
}

/// The least and the largest, and zero between them.
pub fn range(weights: &[f32]) -> (f32, f32) {
    let bounds = |(low, high): (f32, f32), weight: &f32| (low.min(*weight), high.max(*weight));
    weights.iter().fold((0.0, 0.0), bounds)
}

/// The nearest code of e4m3, of two the even one; beyond 448, that of 448.
fn e4m3(value: f32) -> u8 {
    let size = value.abs().min(448.0);
    // Below the smallest normal number, 2⁻⁶, steps stay as wide as above it.
    let exponent = ((size.to_bits() >> 23) as i32 - 127).max(-6);
    let steps = (size / 2.0_f32.powi(exponent - 3)).round_ties_even() as i32;
    // Each exponent has eight codes; eight steps are its first, and sixteen the next one's first.
    let code = (exponent + 7) * 8 + steps - 8;
    code as u8 | if value.is_sign_negative() { 0x80 } else { 0 }
}

/// Codes, and scales of blocks of so many rows and columns under a name, in a type and a shape.
fn fp8(
    matrix: &Tensor,
    block: (usize, usize),
    (name, dtype, shape): (&'static str, Dtype, Vec<usize>),
) -> Vec<(&'static str, Stored)> {
    let (rows, columns) = (matrix.shape[0], matrix.shape[1]);
    let in_row = columns.div_ceil(block.1);
    let block_of = |at: usize| at / columns / block.0 * in_row + at % columns / block.1;
    let mut largest = vec![0.0_f32; rows.div_ceil(block.0) * in_row];
    for (at, weight) in matrix.values.iter().enumerate() {
        largest[block_of(at)] = largest[block_of(at)].max(weight.abs());
    }
    let scales: Vec<f32> = largest.iter().map(|most| rounded(dtype, most / 448.0)).collect();
    let weights = matrix.values.iter().enumerate();
    let data = weights.map(|(at, weight)| e4m3(weight / scales[block_of(at)])).collect();
    let codes = Stored { dtype: Dtype::F8_E4M3, shape: vec![rows, columns], data };
    vec![("weight", codes), (name, Stored::floats(dtype, &shape, &scales))]
}

/// Codes for scales as a file has them, in `dtype`.
fn integers(matrix: &Tensor, scheme: Scheme, dtype: Dtype) -> Integers {
    let top = ((1 << scheme.bits) - 1) as f32;
    let mut out = Integers { codes: Vec::new(), scales: Vec::new(), zeros: Vec::new() };
    for row in matrix.values.chunks(matrix.shape[1]) {
        for part in row.chunks(scheme.group) {
            let (mut low, mut high) = range(part);
            if scheme.symmetric {
                high = high.max(-low);
                low = -high;
            }
            let scale = rounded(dtype, (high - low) / top);
            let zero = match scheme.symmetric {
                true => (top + 1.0) / 2.0,
                false => nearest(-low, scale, (0.0, top)),
            };
            // Counted from the zero point, so that the borders are 0 and `top`.
            let code = |weight: &f32| nearest(*weight, scale, (-zero, top - zero)) + zero;
            out.codes.extend(part.iter().map(|weight| code(weight) as u8));
            out.scales.push(scale);
            out.zeros.push(zero as u8);
        }
    }
    out
}

/// Two codes of four bits in a byte, those of the upper half `distance` behind those of the lower.
pub fn paired(codes: &[u8], distance: usize) -> Vec<u8> {
    let pairs = |part: &[u8]| -> Vec<u8> {
        let (lower, upper) = part.split_at(distance);
        lower.iter().zip(upper).map(|(low, high)| low | high << 4).collect()
    };
    codes.chunks(2 * distance).flat_map(pairs).collect()
}

/// Neighbours in words, the first in the lowest bits; of lines that are whole words.
fn words(codes: &[u8], bits: usize) -> Vec<u32> {
    let bytes = if bits == 8 { codes.to_vec() } else { paired(codes, 1) };
    bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

/// `[rows, columns]` as `[columns, rows]`.
fn transposed<T: Copy>(items: &[T], columns: usize) -> Vec<T> {
    let column = |column| items.iter().skip(column).step_by(columns).copied();
    (0..columns).flat_map(column).collect()
}

/// compressed-tensors: a byte each with its sign, or four bits in words.
fn compressed(matrix: &Tensor, scheme: Scheme) -> Vec<(&'static str, Stored)> {
    let (rows, columns) = (matrix.shape[0], matrix.shape[1]);
    let Integers { codes, scales, .. } = integers(matrix, scheme, Dtype::BF16);
    let shape = [rows, columns.div_ceil(scheme.group)];
    let scales = ("weight_scale", Stored::floats(Dtype::BF16, &shape, &scales));
    if scheme.bits == 8 {
        let data = codes.iter().map(|code| code ^ 0x80).collect();
        let codes = Stored { dtype: Dtype::I8, shape: matrix.shape.clone(), data };
        return vec![("weight", codes), scales];
    }
    let size = matrix.shape.iter().flat_map(|size| (*size as u64).to_le_bytes()).collect();
    vec![
        ("weight_packed", Stored::integers([rows, columns / 8], &words(&codes, scheme.bits))),
        scales,
        ("weight_shape", Stored { dtype: Dtype::I64, shape: vec![2], data: size }),
    ]
}

/// Words of a column's neighbours; zero points one less, taken from the word as a whole.
fn gptq(matrix: &Tensor, scheme: Scheme) -> Vec<(&'static str, Stored)> {
    let (rows, columns) = (matrix.shape[0], matrix.shape[1]);
    let (groups, in_word) = (columns.div_ceil(scheme.group), 32 / scheme.bits);
    let Integers { codes, scales, zeros } = integers(matrix, scheme, Dtype::F16);
    let lines = columns / in_word;
    let codes = transposed(&words(&codes, scheme.bits), lines);
    let ones = words(&[1; 8], scheme.bits)[0];
    let zeros = words(&transposed(&zeros, groups), scheme.bits);
    let zeros: Vec<u32> = zeros.iter().map(|word| word.wrapping_sub(ones)).collect();
    let group_of: Vec<u32> = (0..columns).map(|column| (column / scheme.group) as u32).collect();
    let order = Stored { shape: vec![columns], ..Stored::integers([1, columns], &group_of) };
    let scales = transposed(&scales, groups);
    vec![
        ("qweight", Stored::integers([lines, rows], &codes)),
        ("qzeros", Stored::integers([groups, rows / in_word], &zeros)),
        ("scales", Stored::floats(Dtype::F16, &[groups, rows], &scales)),
        ("g_idx", order),
    ]
}

/// Words of eight outputs in an order of their own.
fn awq(matrix: &Tensor, scheme: Scheme) -> Vec<(&'static str, Stored)> {
    let (rows, columns) = (matrix.shape[0], matrix.shape[1]);
    let groups = columns.div_ceil(scheme.group);
    let Integers { codes, scales, zeros } = integers(matrix, scheme, Dtype::F16);
    let in_words = |codes: &[u8], columns: usize| {
        let by_output = transposed(codes, columns);
        let eights = by_output.as_chunks::<8>().0.iter();
        let ordered: Vec<u8> = eights.flat_map(|eight| AWQ_ORDER.map(|at| eight[at])).collect();
        Stored::integers([columns, rows / 8], &words(&ordered, scheme.bits))
    };
    let scales = transposed(&scales, groups);
    vec![
        ("qweight", in_words(&codes, columns)),
        ("qzeros", in_words(&zeros, groups)),
        ("scales", Stored::floats(Dtype::F16, &[groups, rows], &scales)),
    ]
}
