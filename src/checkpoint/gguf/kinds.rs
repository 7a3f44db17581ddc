//! The types that a tensor of a GGUF file may have, and what their blocks stand for.
//!
//! | type | block | weight |
//! | --- | --- | --- |
//! | Q8_0 | 32 columns: f16 `d`, 32 codes of 8 bits | `d * code` |
//! | Q4_0 | 32 columns: f16 `d`, 32 codes of 4 bits | `d * (code - 8)` |
//! | Q4_1 | 32 columns: f16 `d` and `m`, 32 codes of 4 bits | `d * code + m` |
//! | Q5_0 | Q4_0 with the fifth bits of the codes, a word of 32, before the others | `d * (code - 16)` |
//! | Q5_1 | Q4_1 with them | `d * code + m` |
//! | Q4_K | 256 columns: f16 `d` and `dmin`, 8 pairs of `s` and `m` of 6 bits, codes of 4 bits | `d * s * code - dmin * m` |
//! | Q5_K | the same with the fifth bits of the codes before the others | the same |
//! | Q6_K | 256 columns: the lower 4 bits of the codes, their upper 2, 16 `s` of 8 bits, f16 `d` | `d * s * (code - 32)` |

use std::fmt;

use half::f16;

use crate::bridge::spec::{Dtype, WeightFormat, WeightKind};

/// Columns of the K types' blocks.
const SUPER_BLOCK: usize = 256;

/// How a tensor is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorKind {
    Elements(Dtype),
    Blocks(BlockKind),
}

/// How columns of a row become a block of codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(non_camel_case_types)]
pub enum BlockKind {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4_K,
    Q5_K,
    Q6_K,
}

/// Each weight is a scale times its level, less an offset; the scale and the offset are those of its group.
#[derive(Debug, Default, PartialEq)]
pub struct Levels {
    pub levels: Vec<i8>,
    pub scales: Vec<f32>,
    /// Empty where the type has none.
    pub offsets: Vec<f32>,
}

impl TensorKind {
    /// By the number that the file has.
    ///
    /// # Errors
    /// What was expected, for a type that is not read.
    pub fn of(number: u32) -> Result<Self, String> {
        Ok(match number {
            0 => Self::Elements(Dtype::F32),
            1 => Self::Elements(Dtype::F16),
            30 => Self::Elements(Dtype::BF16),
            2 => Self::Blocks(BlockKind::Q4_0),
            3 => Self::Blocks(BlockKind::Q4_1),
            6 => Self::Blocks(BlockKind::Q5_0),
            7 => Self::Blocks(BlockKind::Q5_1),
            8 => Self::Blocks(BlockKind::Q8_0),
            12 => Self::Blocks(BlockKind::Q4_K),
            13 => Self::Blocks(BlockKind::Q5_K),
            14 => Self::Blocks(BlockKind::Q6_K),
            _ => {
                let name = name_of(number).map_or_else(|| number.to_string(), str::to_owned);
                return Err(format!(
                    "type {name}; expected F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K or Q6_K"
                ));
            }
        })
    }

    /// Columns and bytes of what cannot be parted.
    pub fn block(self) -> (u64, u64) {
        match self {
            Self::Elements(dtype) => (1, dtype.bytes()),
            Self::Blocks(kind) => {
                let (columns, bytes) = kind.size();
                (columns as u64, bytes as u64)
            }
        }
    }
}

impl fmt::Display for TensorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elements(dtype) => write!(f, "{dtype:?}"),
            Self::Blocks(kind) => write!(f, "{kind:?}"),
        }
    }
}

/// Names of types that others read.
fn name_of(number: u32) -> Option<&'static str> {
    Some(match number {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16..=23 | 29 => "IQ (importance-weighted)",
        24..=27 => "of integers",
        28 => "F64",
        34 | 35 => "TQ (ternary)",
        39 => "MXFP4",
        _ => return None,
    })
}

impl BlockKind {
    /// Columns and bytes of a block.
    pub fn size(self) -> (usize, usize) {
        match self {
            Self::Q4_0 => (32, 2 + 16),
            Self::Q4_1 => (32, 4 + 16),
            Self::Q5_0 => (32, 2 + 4 + 16),
            Self::Q5_1 => (32, 4 + 4 + 16),
            Self::Q8_0 => (32, 2 + 32),
            Self::Q4_K => (SUPER_BLOCK, 4 + 12 + 128),
            Self::Q5_K => (SUPER_BLOCK, 4 + 12 + 32 + 128),
            Self::Q6_K => (SUPER_BLOCK, 128 + 64 + 16 + 2),
        }
    }

    /// The smallest of the engine's that holds it without loss.
    pub fn format(self) -> WeightFormat {
        let (kind, group, offsets) = match self {
            Self::Q4_0 => (WeightKind::Int4, 32, false),
            Self::Q4_1 | Self::Q4_K => (WeightKind::Int4, 32, true),
            Self::Q5_0 | Self::Q8_0 => (WeightKind::Int8, 32, false),
            Self::Q5_1 | Self::Q5_K => (WeightKind::Int8, 32, true),
            Self::Q6_K => (WeightKind::Int8, 16, false),
        };
        WeightFormat { kind, group, offsets }
    }

    /// What whole blocks stand for, in place of what `out` had.
    pub fn decode(self, blocks: &[u8], out: &mut Levels) {
        out.levels.clear();
        out.scales.clear();
        out.offsets.clear();
        for block in blocks.chunks_exact(self.size().1) {
            match self {
                Self::Q4_0 => q4_0(block, out),
                Self::Q4_1 => q4_1(block, out),
                Self::Q5_0 => q5_0(block, out),
                Self::Q5_1 => q5_1(block, out),
                Self::Q8_0 => q8_0(block, out),
                Self::Q4_K => q4_k(block, out),
                Self::Q5_K => q5_k(block, out),
                Self::Q6_K => q6_k(block, out),
            }
        }
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Levels of codes of 4 bits, counted from `middle`: the first half of the columns in the lower bits of the bytes.
fn nibbles(bytes: &[u8], middle: i8, levels: &mut Vec<i8>) {
    // By 16 bytes: every type has a multiple of them, and they are one vector.
    let runs = bytes.as_chunks::<16>().0;
    for run in runs {
        levels.extend_from_slice(&run.map(|pair| (pair & 15) as i8 - middle));
    }
    for run in runs {
        levels.extend_from_slice(&run.map(|pair| (pair >> 4) as i8 - middle));
    }
}

/// Adds the bits of codes above their lower four, which stand elsewhere.
fn add_upper(levels: &mut [i8], bits: impl Iterator<Item = u8>) {
    for (level, bits) in levels.iter_mut().zip(bits) {
        *level += (bits << 4) as i8;
    }
}

fn q4_0(block: &[u8], out: &mut Levels) {
    out.scales.push(half_at(block, 0));
    nibbles(&block[2..], 8, &mut out.levels);
}

fn q4_1(block: &[u8], out: &mut Levels) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    out.scales.push(d);
    // Levels are counted from the middle, 8.
    out.offsets.push(-m - 8.0 * d);
    nibbles(&block[4..], 8, &mut out.levels);
}

fn q5_0(block: &[u8], out: &mut Levels) {
    out.scales.push(half_at(block, 0));
    five_bits(&block[2..], 16, &mut out.levels);
}

fn q5_1(block: &[u8], out: &mut Levels) {
    out.scales.push(half_at(block, 0));
    out.offsets.push(-half_at(block, 2));
    five_bits(&block[4..], 0, &mut out.levels);
}

/// Levels of 32 codes of 5 bits: a word of the fifth bits, the first column's the lowest, then the others.
fn five_bits(bytes: &[u8], middle: i8, levels: &mut Vec<i8>) {
    let fifth = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let first = levels.len();
    nibbles(&bytes[4..], middle, levels);
    add_upper(&mut levels[first..], (0..32).map(|column| (fifth >> column & 1) as u8));
}

fn q8_0(block: &[u8], out: &mut Levels) {
    let (d, codes) = block.split_at(2);
    out.scales.push(half_at(d, 0));
    out.levels.extend(codes.iter().map(|code| *code as i8));
}

/// Scale and minimum of each 32 columns: `d * s` and `dmin * m`. The 12 bytes hold, of the first four groups, `s` and `m` in the lower six
/// bits of bytes 0 to 7; of the others their lower four bits in bytes 8 to 11, and their upper two above those of the first four.
fn scales_and_minima(block: &[u8]) -> impl Iterator<Item = (f32, f32)> + '_ {
    let (d, dmin, packed) = (half_at(block, 0), half_at(block, 2), &block[4..16]);
    (0..8).map(move |group| {
        let (s, m) = if group < 4 {
            (packed[group] & 63, packed[group + 4] & 63)
        } else {
            let low = packed[group + 4];
            (low & 15 | packed[group - 4] >> 6 << 4, low >> 4 | packed[group] >> 6 << 4)
        };
        (d * f32::from(s), dmin * f32::from(m))
    })
}

fn q4_k(block: &[u8], out: &mut Levels) {
    for (scale, minimum) in scales_and_minima(block) {
        out.scales.push(scale);
        // Levels are counted from the middle, 8.
        out.offsets.push(minimum - 8.0 * scale);
    }
    // 64 columns share 32 bytes.
    for codes in block[16..].chunks_exact(32) {
        nibbles(codes, 8, &mut out.levels);
    }
}

fn q5_k(block: &[u8], out: &mut Levels) {
    for (scale, minimum) in scales_and_minima(block) {
        out.scales.push(scale);
        out.offsets.push(minimum);
    }
    let (fifth, codes) = block[16..].split_at(32);
    let first = out.levels.len();
    for codes in codes.chunks_exact(32) {
        nibbles(codes, 0, &mut out.levels);
    }
    // Each byte has a bit of one column of every group.
    for (group, levels) in out.levels[first..].chunks_exact_mut(32).enumerate() {
        add_upper(levels, fifth.iter().map(|bits| bits >> group & 1));
    }
}

fn q6_k(block: &[u8], out: &mut Levels) {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (scales, d) = rest.split_at(16);
    let d = half_at(d, 0);
    out.scales.extend(scales.iter().map(|s| d * f32::from(*s as i8)));
    // 128 columns share 64 bytes of lower bits and 32 of upper ones.
    for (low, high) in low.chunks_exact(64).zip(high.chunks_exact(32)) {
        let first = out.levels.len();
        nibbles(low, 32, &mut out.levels);
        for (quarter, levels) in out.levels[first..].chunks_exact_mut(32).enumerate() {
            add_upper(levels, high.iter().map(|bits| bits >> (2 * quarter) & 3));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block of arbitrary bytes, but 0.1 and 0.3 for the f16, which stand at `halves`.
    fn block(kind: BlockKind, halves: &[usize]) -> Vec<u8> {
        let mut state = 12_345_u32;
        let mut bytes: Vec<u8> = (0..kind.size().1)
            .map(|_| {
                state = state.wrapping_mul(1_103_515_245).wrapping_add(12_345);
                (state >> 16) as u8
            })
            .collect();
        for (at, value) in halves.iter().zip([0.1, 0.3]) {
            bytes[*at..][..2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
        }
        bytes
    }

    fn weights(kind: BlockKind, block: &[u8]) -> Vec<f32> {
        let mut decoded = Levels::default();
        kind.decode(block, &mut decoded);
        let Levels { levels, scales, offsets } = decoded;
        let group = kind.format().group as usize;
        let offset = |at: usize| offsets.get(at / group).copied().unwrap_or(0.0);
        let weight =
            |(at, level): (usize, &i8)| scales[at / group] * f32::from(*level) - offset(at);
        levels.iter().enumerate().map(weight).collect()
    }

    /// A kind, where a block of it has its halves of floats, some of its weights, and the sum of all.
    type BlockCase = (BlockKind, &'static [usize], &'static [(usize, f32)], f64);

    /// Expected is what `gguf.dequantize` of PyPI's `gguf` makes of the same bytes: some columns, and the sum of all.
    #[test]
    fn a_block_stands_for_what_its_definition_says() {
        #[rustfmt::skip]
        let cases: [BlockCase; 8] = [
            (BlockKind::Q4_0, &[0],
             &[(0, -0.299_926_8), (1, 0.199_951_2), (15, 0.399_902_3), (16, -0.199_951_2), (31, -0.199_951_2)], -0.099_975_59),
            (BlockKind::Q4_1, &[0, 2],
             &[(0, 1.799_683), (1, 1.599_731), (15, 0.300_048_8), (16, 0.400_024_4), (31, 0.400_024_4)], 34.895_39),
            (BlockKind::Q5_0, &[0],
             &[(0, 1.299_683), (1, -0.599_853_5), (15, 0.899_780_3), (16, 0.099_975_59), (31, 0.099_975_59)], 2.999_268),
            (BlockKind::Q5_1, &[0, 2],
             &[(0, 2.899_414), (1, 2.399_536), (15, 1.899_658), (16, 3.199_341), (31, 0.899_902_3)], 63.988_28),
            (BlockKind::Q8_0, &[0],
             &[(0, 10.097_53), (1, -8.597_9), (15, 10.797_36), (16, -0.299_926_8), (31, 11.497_19)], 74.881_71),
            (BlockKind::Q4_K, &[0, 2],
             &[(0, 20.091_92), (1, 29.389_65), (31, 16.992_68), (32, 20.390_5), (63, 6.893_799), (64, 1.294_312),
               (100, -2.902_588), (127, 17.892_33), (128, -9.103_76), (159, -7.704_102), (191, 45.182_5),
               (192, -6.002_563), (223, -6.302_49), (255, 21.893_8)], 2_685.566),
            (BlockKind::Q5_K, &[0, 2],
             &[(0, 57.282_84), (1, 7.694_946), (31, 29.389_65), (32, 29.388_31), (63, 33.887_21), (64, -1.604_98),
               (100, 49.084_72), (127, 67.280_27), (128, 25.887_7), (159, 2.093_506), (191, 54.580_2),
               (192, -2.703_369), (223, -3.003_296), (255, 5.897_705)], 8_199.419),
            (BlockKind::Q6_K, &[208],
             &[(0, -302.326_2), (1, -43.189_45), (31, 248.539_3), (32, 143.964_8), (63, -12.596_92), (64, -243.540_5),
               (100, -252.238_4), (127, 173.557_6), (128, 125.969_2), (159, 152.062_9), (191, 149.363_5),
               (192, 99.975_59), (223, 27.993_16), (255, 27.893_19)], -2_461.099),
        ];
        for (kind, halves, columns, sum) in cases {
            let weights = weights(kind, &block(kind, halves));
            assert_eq!(weights.len(), kind.size().0);
            for (column, expected) in columns {
                let got = weights[*column];
                assert!((got - expected).abs() < 1e-4, "{kind:?} {column}: {got}");
            }
            let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
            assert!((total - sum).abs() < 1e-3, "{kind:?}: {total}");
        }
    }
}
