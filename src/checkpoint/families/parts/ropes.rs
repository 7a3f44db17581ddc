//! Rotary embeddings as `config.json` describes them, in the keys before transformers 5 and in its own, and the frequencies that come
//! of it. The formulas are those of transformers' `modeling_rope_utils.py`.

use std::f64::consts::PI;

use super::bounds::MAX_POSITIONS;
use crate::bridge::spec::RopeSpec;
use crate::checkpoint::fault::{CheckpointError, CheckpointFault};
use crate::checkpoint::json_file::JsonFile;

/// How frequencies are scaled for long contexts.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not.
    None,
    /// Every frequency divided by the factor.
    Linear {
        /// At least 1.
        factor: f32,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, a ramp between.
    Llama3 {
        /// By which low frequencies are divided.
        factor: f32,
        /// Turns within the original context below which a frequency is low.
        low: f32,
        /// And above which it is high.
        high: f32,
        /// The original context.
        original: u32,
    },
    /// Peng et al., "YaRN", 2023.
    Yarn {
        /// By which low frequencies are divided.
        factor: f32,
        /// The original context.
        original: u32,
        /// Turns above which a frequency is kept.
        beta_fast: f32,
        /// Turns below which it is divided.
        beta_slow: f32,
        /// Whether the borders between are whole dimensions.
        truncate: bool,
        /// Of cosine and sine.
        attention_factor: f32,
    },
    /// Ding et al., "LongRoPE", 2024: a divisor for each frequency.
    LongRope {
        /// Where sequences stay within the original context.
        short: Vec<f32>,
        /// Where they may be longer.
        long: Vec<f32>,
        /// The original context.
        original: u32,
        /// Of cosine and sine.
        attention_factor: f32,
    },
    /// NTK-aware: theta grows with what a sequence has beyond the context. Our sequences never have: as [`RopeScaling::None`].
    Dynamic {
        /// Has no effect within the context.
        factor: f32,
    },
}

/// A rope before the longest sequence is known.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// The base of the frequencies.
    pub theta: f32,
    /// How many elements of a head turn.
    pub rotary_dim: u32,
    /// Whether neighbours turn together, not halves.
    pub interleaved: bool,
    /// For long contexts.
    pub scaling: RopeScaling,
    /// Ministral 3's growth of q with its position: the factor, and the positions that it counts in.
    pub query_scale: Option<(f32, u32)>,
}

impl Rope {
    /// The kind's name in `config.json`.
    pub fn kind(&self) -> &'static str {
        match self.scaling {
            RopeScaling::None => "default",
            RopeScaling::Linear { .. } => "linear",
            RopeScaling::Llama3 { .. } => "llama3",
            RopeScaling::Yarn { .. } => "yarn",
            RopeScaling::LongRope { .. } => "longrope",
            RopeScaling::Dynamic { .. } => "dynamic",
        }
    }

    /// By how much the context is longer than it was in training; 1 without scaling.
    pub fn factor(&self) -> f32 {
        match self.scaling {
            RopeScaling::None | RopeScaling::LongRope { .. } => 1.0,
            RopeScaling::Linear { factor }
            | RopeScaling::Llama3 { factor, .. }
            | RopeScaling::Yarn { factor, .. }
            | RopeScaling::Dynamic { factor } => factor,
        }
    }

    /// The frequencies where sequences have at most `max_seq_len` positions.
    pub fn table(&self, max_seq_len: u32) -> RopeSpec {
        let bases: Vec<f32> = (0..self.rotary_dim / 2)
            .map(|i| (self.theta).powf((2 * i) as f32 / self.rotary_dim as f32))
            .collect();
        let (query_beta, query_original_positions) = self.query_scale.unwrap_or((0.0, 1));
        RopeSpec {
            inv_freq: self.scaled(&bases, max_seq_len),
            scale: match self.scaling {
                RopeScaling::Yarn { attention_factor, .. }
                | RopeScaling::LongRope { attention_factor, .. } => attention_factor,
                _ => 1.0,
            },
            interleaved: self.interleaved,
            query_beta,
            query_original_positions,
        }
    }

    fn scaled(&self, bases: &[f32], max_seq_len: u32) -> Vec<f32> {
        let plain = bases.iter().map(|base| 1.0 / base);
        match &self.scaling {
            RopeScaling::None | RopeScaling::Dynamic { .. } => plain.collect(),
            RopeScaling::Linear { factor } => plain.map(|f| f / factor).collect(),
            RopeScaling::Llama3 { factor, low, high, original } => plain
                .map(|f| {
                    let turns = *original as f32 * f / (2.0 * PI as f32);
                    if turns < *low {
                        f / factor
                    } else if turns > *high {
                        f
                    } else {
                        let smooth = (turns - low) / (high - low);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                })
                .collect(),
            RopeScaling::Yarn { factor, .. } => {
                let (low, high) = self.yarn_borders();
                plain
                    .enumerate()
                    .map(|(i, f)| {
                        let ramp = ((i as f32 - low) / (high - low)).clamp(0.0, 1.0);
                        f / factor * ramp + f * (1.0 - ramp)
                    })
                    .collect()
            }
            RopeScaling::LongRope { short, long, original, .. } => {
                let divisors = if max_seq_len > *original { long } else { short };
                bases.iter().zip(divisors).map(|(base, divisor)| 1.0 / (divisor * base)).collect()
            }
        }
    }

    /// The dimensions between which YaRN's ramp lies.
    fn yarn_borders(&self) -> (f32, f32) {
        let RopeScaling::Yarn { original, beta_fast, beta_slow, truncate, .. } = self.scaling
        else {
            return (0.0, 1.0);
        };
        let dim = f64::from(self.rotary_dim);
        let of = |turns: f32| {
            dim * (f64::from(original) / (f64::from(turns) * 2.0 * PI)).ln()
                / (2.0 * f64::from(self.theta).ln())
        };
        let (mut low, mut high) = (of(beta_fast), of(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        (low as f32, high as f32)
    }
}

/// What a family says of its ropes beside the file.
#[derive(Debug, Clone, Copy)]
pub struct RopeDefaults {
    pub theta: f32,
    pub head_dim: u32,
    /// Where the family's rotation takes a part of the head: how much of it, if the file does not say.
    pub partial: Option<f32>,
    pub interleaved: bool,
    pub max_position_embeddings: u32,
    /// The original context, where a family keeps it beside its ropes.
    pub original: Option<u32>,
    /// Phi-3: no scaling but `longrope`, whose older names are `su` and `yarn`.
    pub longrope_alone: bool,
    /// Ministral 3: queries grow with their position.
    pub queries_grow: bool,
}

impl RopeDefaults {
    /// Whole heads turned in halves.
    pub fn of_heads(head_dim: u32, max_position_embeddings: u32) -> Self {
        Self {
            theta: 10_000.0,
            head_dim,
            partial: None,
            interleaved: false,
            max_position_embeddings,
            original: None,
            longrope_alone: false,
            queries_grow: false,
        }
    }
}

/// The one rope of a model: `rope_parameters`, or `rope_theta` beside `rope_scaling`.
pub fn read(config: &JsonFile, defaults: RopeDefaults) -> Result<Rope, CheckpointError> {
    let new_style = config.object("rope_parameters")?;
    let classic = config.object("rope_scaling")?.filter(|rope| rope.entries().next().is_some());
    let top_theta = config.positive("rope_theta")?;
    // As transformers' `convert_rope_params_to_dict`.
    read_object(config, classic.as_ref().or(new_style.as_ref()), top_theta, defaults)
}

/// The rope that one object describes; `None`: the plain one.
pub fn read_object(
    config: &JsonFile,
    rope: Option<&JsonFile>,
    top_theta: Option<f32>,
    defaults: RopeDefaults,
) -> Result<Rope, CheckpointError> {
    let rotary_dim = rotary_dim(config, rope, defaults)?;
    let plain = Rope {
        theta: top_theta.unwrap_or(defaults.theta),
        rotary_dim,
        interleaved: defaults.interleaved,
        scaling: RopeScaling::None,
        query_scale: None,
    };
    let Some(rope) = rope else { return Ok(plain) };
    let theta = rope.positive("rope_theta")?.unwrap_or(plain.theta);
    let mut query_scale = None;
    if defaults.queries_grow
        && let Some(beta) = rope.number("llama_4_scaling_beta")?.filter(|beta| *beta > 0.0)
    {
        let key = "original_max_position_embeddings";
        query_scale = Some((beta as f32, rope.required_size(key, MAX_POSITIONS)?));
    }
    let scaling = read_scaling(rope, rotary_dim, defaults)?;
    rope.refuse_unread(&["finetuned", "max_position_embeddings", "type"])?;
    Ok(Rope { theta, scaling, query_scale, ..plain })
}

fn rotary_dim(
    config: &JsonFile,
    rope: Option<&JsonFile>,
    defaults: RopeDefaults,
) -> Result<u32, CheckpointError> {
    let mut part = defaults.partial.unwrap_or(1.0);
    for holder in std::iter::once(config).chain(rope) {
        let key = "partial_rotary_factor";
        let Some(found) = holder.positive(key)? else { continue };
        if found > 1.0 {
            return Err(holder.expected(key, "a number more than 0, at most 1"));
        }
        if found != 1.0 && defaults.partial.is_none() {
            let reason = "expected 1: in this family every element of a head turns";
            return Err(holder.fault(CheckpointFault::Unsupported, key, reason));
        }
        part = found;
    }
    let dim = (defaults.head_dim as f32 * part) as u32;
    if dim == 0 || !dim.is_multiple_of(2) {
        let what = format!("an even part of head_dim {}, not {dim} elements", defaults.head_dim);
        return Err(config.expected("partial_rotary_factor", &what));
    }
    Ok(dim)
}

fn read_scaling(
    rope: &JsonFile,
    rotary_dim: u32,
    defaults: RopeDefaults,
) -> Result<RopeScaling, CheckpointError> {
    // `type` is the older name.
    let key = if rope.get("rope_type").is_some() { "rope_type" } else { "type" };
    let kind = rope.text(key)?.unwrap_or("default");
    let required =
        |key: &str| rope.positive(key)?.ok_or_else(|| rope.expected(key, "a number above 0"));
    let original_key = "original_max_position_embeddings";
    let unsupported = |kinds: &str| {
        let reason = format!("expected {kinds}, got \"{kind}\"");
        Err(rope.fault(CheckpointFault::Unsupported, key, reason))
    };
    match kind {
        "default" => Ok(RopeScaling::None),
        "longrope" => read_long_rope(rope, rotary_dim, defaults),
        "su" | "yarn" if defaults.longrope_alone => read_long_rope(rope, rotary_dim, defaults),
        _ if defaults.longrope_alone => unsupported("default or longrope"),
        "linear" => Ok(RopeScaling::Linear { factor: at_least_one(rope)? }),
        "dynamic" => {
            // Not read by transformers either.
            rope.get(original_key);
            Ok(RopeScaling::Dynamic { factor: at_least_one(rope)? })
        }
        "llama3" => {
            let (factor, low) = (at_least_one(rope)?, required("low_freq_factor")?);
            let high = required("high_freq_factor")?;
            if high <= low {
                return Err(rope.expected("high_freq_factor", "more than low_freq_factor"));
            }
            let original = rope.required_size(original_key, MAX_POSITIONS)?;
            Ok(RopeScaling::Llama3 { factor, low, high, original })
        }
        "yarn" => read_yarn(rope, defaults),
        _ => unsupported("default, linear, dynamic, llama3, yarn or longrope"),
    }
}

fn at_least_one(rope: &JsonFile) -> Result<f32, CheckpointError> {
    let factor = rope.positive("factor")?.filter(|factor| *factor >= 1.0);
    factor.ok_or_else(|| rope.expected("factor", "a number from 1"))
}

fn read_yarn(rope: &JsonFile, defaults: RopeDefaults) -> Result<RopeScaling, CheckpointError> {
    let longest = defaults.max_position_embeddings;
    let original = rope.size("original_max_position_embeddings", MAX_POSITIONS)?.unwrap_or(longest);
    let factor = rope.positive("factor")?.unwrap_or(longest as f32 / original as f32);
    let or = |key: &str, default: f32| -> Result<f32, CheckpointError> {
        match rope.number(key)?.map(|value| value as f32) {
            Some(value) if value < 0.0 => Err(rope.expected(key, "a number from 0")),
            Some(value) if value > 0.0 => Ok(value),
            _ => Ok(default),
        }
    };
    let mscale = |scale: f32, m: f32| if scale <= 1.0 { 1.0 } else { 0.1 * m * scale.ln() + 1.0 };
    let (m, m_all) = (or("mscale", 0.0)?, or("mscale_all_dim", 0.0)?);
    let natural = if m != 0.0 && m_all != 0.0 {
        mscale(factor, m) / mscale(factor, m_all)
    } else {
        mscale(factor, 1.0)
    };
    Ok(RopeScaling::Yarn {
        factor,
        original,
        beta_fast: or("beta_fast", 32.0)?,
        beta_slow: or("beta_slow", 1.0)?,
        truncate: rope.boolean("truncate")?.unwrap_or(true),
        attention_factor: rope.positive("attention_factor")?.unwrap_or(natural),
    })
}

fn read_long_rope(
    rope: &JsonFile,
    rotary_dim: u32,
    defaults: RopeDefaults,
) -> Result<RopeScaling, CheckpointError> {
    let list = |key: &str| -> Result<Vec<f32>, CheckpointError> {
        let count = (rotary_dim / 2) as usize;
        let wrong = || rope.expected(key, &format!("a list of {count} numbers above 0"));
        let values = rope.get(key).and_then(|list| list.as_array()).ok_or_else(wrong)?;
        let numbers: Vec<f32> = values
            .iter()
            .filter_map(|value| value.as_f64())
            .map(|number| number as f32)
            .filter(|number| *number > 0.0 && number.is_finite())
            .collect();
        if numbers.len() == count && values.len() == count { Ok(numbers) } else { Err(wrong()) }
    };
    let own = rope.size("original_max_position_embeddings", MAX_POSITIONS)?;
    let original = defaults.original.or(own).ok_or_else(|| {
        rope.expected("original_max_position_embeddings", "a number of positions")
    })?;
    let natural = defaults.max_position_embeddings as f32 / original as f32;
    let factor = rope.positive("factor")?.unwrap_or(natural);
    let grown =
        if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f32).ln()).sqrt() };
    Ok(RopeScaling::LongRope {
        short: list("short_factor")?,
        long: list("long_factor")?,
        original,
        attention_factor: rope.positive("attention_factor")?.unwrap_or(grown),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(theta: f32, rotary_dim: u32, scaling: RopeScaling) -> Vec<f32> {
        let rope = Rope { theta, rotary_dim, interleaved: false, scaling, query_scale: None };
        rope.table(1 << 20).inv_freq
    }

    fn is_near(got: f32, expected: f32) -> bool {
        (got - expected).abs() <= 1e-5 * expected
    }

    #[test]
    fn plain_and_linear_frequencies_are_powers_of_theta() {
        let plain = rope(10_000.0, 16, RopeScaling::None);
        let linear = rope(10_000.0, 16, RopeScaling::Linear { factor: 4.0 });
        for (i, (plain, linear)) in plain.into_iter().zip(linear).enumerate() {
            let expected = 10_000.0_f32.powf(-(i as f32) / 8.0);
            assert!(is_near(plain, expected) && is_near(linear, expected / 4.0), "{i}");
        }
    }

    #[test]
    fn llama3_keeps_short_waves_divides_long_ones_and_ramps_between() {
        // Llama 3.2 1B.
        let (factor, low, high, original) = (32.0, 1.0, 4.0, 8192);
        let scaling = RopeScaling::Llama3 { factor, low, high, original };
        let frequencies = rope(500_000.0, 64, scaling);
        for (i, expected) in [
            (0, 1.0),
            (1, 0.663_601_2),
            (14, 0.003_211_446), // the last short wave
            (15, 0.001_290_548), // the ramp
            (16, 0.000_429_556_8),
            (17, 9.708_288e-5),
            (18, 1.946_163_8e-5), // the first long wave
            (31, 9.418_307e-8),
        ] {
            assert!(is_near(frequencies[i], expected), "{i}: {}", frequencies[i]);
        }
    }

    #[test]
    fn longrope_takes_the_long_divisors_where_sequences_may_be_long() {
        let scaling = RopeScaling::LongRope {
            short: vec![1.0, 1.0],
            long: vec![2.0, 4.0],
            original: 64,
            attention_factor: 1.2,
        };
        let rope =
            Rope { theta: 100.0, rotary_dim: 4, interleaved: false, scaling, query_scale: None };
        assert_eq!(rope.table(64).inv_freq, [1.0, 0.1]);
        assert_eq!(rope.table(65).inv_freq, [0.5, 0.025]);
        assert_eq!(rope.table(65).scale, 1.2);
    }
}
