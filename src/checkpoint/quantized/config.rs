//! `quantization_config` of a `config.json`.

use crate::bridge::spec::{WeightFormat, WeightKind};

use super::super::families::{ExpectedTensor, Transform};
use super::super::fault::{CheckpointError, CheckpointFault};
use super::super::json_file::JsonFile;
use super::Packing;

/// Where it may stand.
const KEYS: [&str; 2] = ["quantization_config", "compression_config"];

/// The largest group that is read: beyond a whole row it is one.
const MAX_GROUP: u32 = 1 << 20;

/// Who made the codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Fp8,
    CompressedTensors,
    Gptq { one_less: bool },
    Awq,
    Mxfp4,
}

/// Lengths that a file says of the parts of its matrices.
#[derive(Debug, Clone, Default, PartialEq)]
struct StatedBlocks {
    of_rows: Vec<usize>,
    of_columns: Vec<usize>,
}

/// What a file says of its codes.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) struct QuantizationConfig {
    method: Method,
    /// Of GPTQ and AWQ; `None`: whole rows.
    group: Option<usize>,
    symmetric: bool,
    /// Of a matrix that the file says nothing else of.
    format: Option<WeightFormat>,
    /// Lengths of rows and of columns that share a scale, for those matrices where parts do; empty where the file does not say.
    stated: StatedBlocks,
    /// Modules that are not quantized, by name or a part of it.
    ignored: Vec<String>,
    /// What KV is scaled for, where that is not fp8.
    other_kv: Option<String>,
}

impl QuantizationConfig {
    /// Reads it, if it is there.
    pub fn read(file: &JsonFile) -> Result<Option<Self>, CheckpointError> {
        for key in KEYS {
            if let Some(config) = file.object(key)? {
                return Self::of(&config).map(Some);
            }
        }
        Ok(None)
    }

    fn of(config: &JsonFile) -> Result<Self, CheckpointError> {
        let method = match config.text("quant_method")? {
            Some("fp8") => Method::Fp8,
            Some("compressed-tensors") => Method::CompressedTensors,
            Some("gptq") => Method::Gptq { one_less: keeps_one_less(config)? },
            Some("awq") => Method::Awq,
            Some("mxfp4") => Method::Mxfp4,
            other => {
                let got = other.map_or_else(|| "nothing".to_owned(), |name| format!("\"{name}\""));
                let reason =
                    format!("expected fp8, compressed-tensors, gptq, awq or mxfp4, got {got}");
                return Err(config.fault(CheckpointFault::Unsupported, "quant_method", reason));
            }
        };
        refuse_what_changes_weights(config)?;
        let group = match config.number("group_size")? {
            Some(-1.0) | None => None,
            Some(_) => config.size("group_size", MAX_GROUP)?.map(|group| group as usize),
        };
        let symmetric = match method {
            Method::Awq => !config.boolean("zero_point")?.unwrap_or(true),
            _ => config.boolean("sym")?.unwrap_or(true),
        };
        if method == Method::Awq
            && let Some(version) = config.text("version")?.filter(|name| *name != "gemm")
        {
            let reason = format!("expected \"gemm\", got \"{version}\"");
            return Err(config.fault(CheckpointFault::Unsupported, "version", reason));
        }
        let format = format(config, method, group, symmetric)?;
        let (ignored, other_kv, stated) =
            (ignored(config), other_kv(config), stated_blocks(config)?);
        Ok(Self { method, group, symmetric, format, stated, ignored, other_kv })
    }

    /// Of the file's scheme for KV what cannot be had in fp8; `None` where there is no scheme, or one of fp8.
    pub fn other_kv(&self) -> Option<&str> {
        self.other_kv.as_deref()
    }

    pub fn group(&self) -> Option<usize> {
        self.group
    }

    /// Whether blocks of so many rows and columns of a matrix of this size are what the file says, if it says anything.
    pub fn allows(&self, block: (usize, usize), size: (usize, usize)) -> bool {
        let fits = |length: usize, whole: usize, said: &[usize]| {
            length == 1 || length == whole || said.is_empty() || said.contains(&length)
        };
        fits(block.0, size.0, &self.stated.of_rows)
            && fits(block.1, size.1, &self.stated.of_columns)
    }

    pub fn is_symmetric(&self) -> bool {
        self.symmetric
    }

    /// Of `qweight`.
    pub(super) fn packing(&self) -> Option<Packing> {
        match self.method {
            Method::Gptq { one_less } => Some(Packing::Gptq { one_less }),
            Method::Awq => Some(Packing::Awq),
            _ => None,
        }
    }

    /// What a matrix would be by this alone, where there are no tensors to see it by.
    pub fn format_of(&self, expected: &ExpectedTensor) -> Option<WeightFormat> {
        let module = match expected.transform {
            Transform::Experts { .. } if self.method == Method::Mxfp4 => expected.name.as_str(),
            _ if self.method == Method::Mxfp4 => return None,
            _ => expected.module()?,
        };
        let is_ignored = self.ignored.iter().any(|name| match name.strip_prefix("re:") {
            Some(_) => false,
            None => module == name || module.split('.').any(|part| part == name),
        });
        self.format.filter(|_| !is_ignored && !module.ends_with("lm_head"))
    }
}

/// Of compressed-tensors: weights that are another's after a transform, or whose zeros are not stored.
fn refuse_what_changes_weights(config: &JsonFile) -> Result<(), CheckpointError> {
    let groups = match config.object("transform_config")? {
        Some(transforms) => transforms.object("config_groups")?,
        None => None,
    };
    if groups.is_some_and(|groups| groups.entries().next().is_some()) {
        let reason = "weights are turned by it; expected none".to_owned();
        return Err(config.fault(CheckpointFault::Unsupported, "transform_config", reason));
    }
    let Some(sparsity) = config.object("sparsity_config")? else { return Ok(()) };
    match sparsity.text("format")? {
        None | Some("dense") => Ok(()),
        Some(other) => {
            let reason = format!("expected \"dense\", got \"{other}\"");
            Err(sparsity.fault(CheckpointFault::Unsupported, "format", reason))
        }
    }
}

/// Zero points of GPTQ's first format.
fn keeps_one_less(config: &JsonFile) -> Result<bool, CheckpointError> {
    match config.text("checkpoint_format")? {
        None | Some("gptq") => Ok(true),
        Some("gptq_v2") => Ok(false),
        Some(other) => {
            let reason = format!("expected \"gptq\" or \"gptq_v2\", got \"{other}\"");
            Err(config.fault(CheckpointFault::Unsupported, "checkpoint_format", reason))
        }
    }
}

/// What compressed-tensors says of the weights of each group of targets.
fn weights_of_groups(config: &JsonFile) -> Result<Vec<JsonFile>, CheckpointError> {
    let Some(groups) = config.object("config_groups")? else { return Ok(Vec::new()) };
    let mut weights = Vec::new();
    for (name, _) in groups.entries() {
        if let Some(group) = groups.object(name)? {
            weights.extend(group.object("weights")?);
        }
    }
    Ok(weights)
}

/// Of fp8, and of each group of targets.
fn stated_blocks(config: &JsonFile) -> Result<StatedBlocks, CheckpointError> {
    let mut stated = StatedBlocks::default();
    let mut add = |block: Option<Vec<f64>>| {
        if let Some([rows, columns]) = block.as_deref() {
            stated.of_rows.push(*rows as usize);
            stated.of_columns.push(*columns as usize);
        }
    };
    add(config.numbers("weight_block_size")?);
    let mut groups_of_columns = Vec::new();
    for weights in weights_of_groups(config)? {
        add(weights.numbers("block_structure")?);
        groups_of_columns.extend(weights.size("group_size", MAX_GROUP)?);
    }
    stated.of_columns.extend(groups_of_columns.into_iter().map(|group| group as usize));
    Ok(stated)
}

/// Of a matrix that is quantized.
fn format(
    config: &JsonFile,
    method: Method,
    group: Option<usize>,
    symmetric: bool,
) -> Result<Option<WeightFormat>, CheckpointError> {
    let of = |kind, group: Option<usize>, offsets| WeightFormat {
        kind,
        group: group.unwrap_or(0) as u32,
        offsets,
    };
    Ok(match method {
        Method::Mxfp4 => Some(of(WeightKind::Mxfp4, Some(32), false)),
        Method::Fp8 => {
            let block =
                config.numbers("weight_block_size")?.and_then(|block| block.get(1).copied());
            Some(of(WeightKind::Fp8, block.map(|columns| columns as usize), false))
        }
        Method::Gptq { .. } | Method::Awq => {
            let kind = match config.size("bits", 8)? {
                Some(4) | None => WeightKind::Int4,
                Some(8) if method != Method::Awq => WeightKind::Int8,
                Some(bits) => {
                    let reason = format!("expected 4 or, of gptq, 8 bits, got {bits}");
                    return Err(config.fault(CheckpointFault::Unsupported, "bits", reason));
                }
            };
            Some(of(kind, group, !symmetric))
        }
        Method::CompressedTensors => compressed(config)?,
    })
}

/// Of the first group of targets; more than one are seen by their tensors.
fn compressed(config: &JsonFile) -> Result<Option<WeightFormat>, CheckpointError> {
    let all = weights_of_groups(config)?;
    let Some(weights) = all.first() else { return Ok(None) };
    let bits = weights.size("num_bits", 32)?.unwrap_or(8);
    let kind = match (weights.text("type")?.unwrap_or("int"), bits) {
        ("float", 8) => WeightKind::Fp8,
        ("int", 8) => WeightKind::Int8,
        ("int", 4) => WeightKind::Int4,
        (other, bits) => {
            let reason =
                format!("expected float of 8 bits or int of 8 or 4, got {other} of {bits}");
            return Err(weights.fault(CheckpointFault::Unsupported, "num_bits", reason));
        }
    };
    let columns = match weights.text("strategy")? {
        Some("group") => weights.size("group_size", MAX_GROUP)?,
        Some("block") => {
            let block = weights.numbers("block_structure")?;
            block.and_then(|block| block.get(1).copied()).map(|columns| columns as u32)
        }
        _ => None,
    };
    let offsets = !weights.boolean("symmetric")?.unwrap_or(true);
    Ok(Some(WeightFormat { kind, group: columns.unwrap_or(0), offsets }))
}

/// Older files have a word here, which says nothing of the type.
fn other_kv(config: &JsonFile) -> Option<String> {
    let scheme = config.get("kv_cache_scheme")?.as_object()?;
    let kind = scheme.get("type").and_then(|kind| kind.as_str()).unwrap_or("int");
    let bits = scheme.get("num_bits").and_then(|bits| bits.as_u64()).unwrap_or(8);
    ((kind, bits) != ("float", 8)).then(|| format!("{kind} of {bits}"))
}

fn ignored(config: &JsonFile) -> Vec<String> {
    ["ignore", "modules_to_not_convert", "ignored_layers"]
        .iter()
        .filter_map(|key| config.get(key)?.as_array())
        .flatten()
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect()
}
