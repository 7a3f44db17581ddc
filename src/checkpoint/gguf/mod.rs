//! A checkpoint in one GGUF file: tensors, what `config.json` would say, the tokenizer and the chat template.
//!
//! The file becomes what a folder is: [`config`] makes the `config.json` that the family's file reads, [`names`] finds the tensors,
//! [`kinds`] and [`rows`] turn blocks of codes into the engine's, and [`tokenizer`] makes the tokenizer.

use std::collections::BTreeMap;
use std::path::Path;

use super::config::ModelConfig;
use super::families::{Decoder, ExpectedTensor, Transform};
use super::fault::{CheckpointError, CheckpointFault};
use super::found::{FoundTensor, Stored};
use super::json_file::JsonFile;
use super::mmap::MappedFile;
use super::quantized::StoredTensor;
use super::tensors::TensorEntry;
use super::{Checkpoint, GenerationConfig, LoadFormat, hold_as_stored, missing_or_io};
use crate::bridge::spec::{TensorPart, WeightFormat, WeightKind};

mod config;
mod cursor;
mod header;
mod kinds;
mod metadata;
mod names;
mod rows;
mod tensors;
mod tokenizer;
mod vocabulary;

pub(super) use rows::BlockMatrix;
pub use tokenizer::gguf_tokenizer;

use header::{GgufHeader, GgufTensor};
use kinds::TensorKind;
use metadata::GgufMetadata;
use names::{StoredExpert, stored_name};
use tensors::GgufTensors;

impl Checkpoint {
    /// Maps the file, reads what it says and picks the model's tensors out of it.
    ///
    /// # Errors
    /// Names file, key or tensor, and reason.
    pub(super) fn open_gguf(path: &Path, load_format: LoadFormat) -> Result<Self, CheckpointError> {
        if load_format == LoadFormat::Dummy {
            let reason = "load_format: dummy weights need a folder with a config.json";
            return Err(CheckpointError::new(CheckpointFault::Unsupported, path, reason));
        }
        let file = MappedFile::open(path).map_err(|error| missing_or_io(path, &error))?;
        let (mut config, mut tensors) = read_model(path, file.bytes())?;
        hold_as_stored(&mut config.decoder.spec, &mut tensors);
        Ok(Self {
            directory: path.to_owned(),
            spec: config.spec(),
            config,
            generation: GenerationConfig::default(),
            load_format,
            files: vec![file],
            tensors,
            kv_scales: Vec::new(),
        })
    }
}

/// What to say of a folder that lacks a file of ours: that it has a GGUF file, if it has one.
pub(super) fn hint(directory: &Path) -> String {
    let names = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    match names.find(|name| name.ends_with(".gguf")) {
        Some(name) => format!("; the path of {name} itself is a model_path, too"),
        None => String::new(),
    }
}

/// The configuration, and the tensors in the order of the forward pass.
fn read_model(
    path: &Path,
    bytes: &[u8],
) -> Result<(ModelConfig, Vec<FoundTensor>), CheckpointError> {
    let header = GgufHeader::read(path, bytes)?;
    let metadata = GgufMetadata::new(path, header.metadata);
    let tensors = GgufTensors::new(path, bytes, header.tensors);
    let config = config::config(&metadata, &tensors)?;
    let config = ModelConfig::of(&JsonFile::of(path, config)?, None)?;
    let expected = config.decoder.usual_tensors();
    let mut found = Vec::with_capacity(expected.len());
    for expected in expected {
        found.push(find(&tensors, &config, expected)?);
    }
    tensors.refuse_rest()?;
    share_formats(&mut found);
    Ok((config, found))
}

/// A tensor of the decoder in the file.
fn find(
    tensors: &GgufTensors<'_>,
    config: &ModelConfig,
    mut expected: ExpectedTensor,
) -> Result<FoundTensor, CheckpointError> {
    let decoder = &config.decoder;
    let Some(stored) = stored_name(&expected, &decoder.spec) else {
        let reason = "GGUF has no name for this tensor";
        return Err(tensors.fault(CheckpointFault::Unsupported, &expected.name, reason));
    };
    let tensor = tensors.take(&stored.name)?;
    let tensor = match stored.expert {
        Some(expert) if tensor.shape[0] == u64::from(expert.count) => one_of(tensor, &expert),
        // A dimension of one is left out.
        Some(expert) if expert.count != 1 => {
            let reason = format!(
                "shape {:?}, but by the metadata it must begin with {} experts",
                tensor.shape, expert.count
            );
            return Err(tensors.fault(CheckpointFault::WrongShape, &stored.name, reason));
        }
        _ => tensor.clone(),
    };
    if tensor.shape != expected.shape {
        let reason = format!(
            "shape {:?}, but by the metadata it must be {:?}",
            tensor.shape, expected.shape
        );
        return Err(tensors.fault(CheckpointFault::WrongShape, &stored.name, reason));
    }
    expected.transform = transform(config.family.model_type, decoder, &expected);
    let GgufTensor { kind, shape, begin, end } = tensor;
    let dtype_name = kind.to_string();
    let dtype = match kind {
        TensorKind::Elements(dtype) => Some(dtype),
        TensorKind::Blocks(_) => None,
    };
    let tensor = StoredTensor {
        file: 0,
        entry: TensorEntry { name: stored.name, dtype, dtype_name, shape, begin, end },
    };
    let stored = match kind {
        TensorKind::Elements(dtype) => Stored::Elements { tensor, dtype },
        TensorKind::Blocks(kind) if expected.shape.len() == 2 => {
            Stored::Blocks(BlockMatrix { tensor, kind, format: kind.format() })
        }
        TensorKind::Blocks(_) => {
            let reason = format!("{kind}, expected F32, F16 or BF16 of a vector");
            return Err(tensors.fault(CheckpointFault::Unsupported, &tensor.entry.name, reason));
        }
    };
    Ok(FoundTensor { expected, stored })
}

/// One expert's part of a tensor that holds those of all.
fn one_of(all: &GgufTensor, expert: &StoredExpert) -> GgufTensor {
    let bytes = (all.end - all.begin) / expert.count as usize;
    let begin = all.begin + bytes * expert.index as usize;
    GgufTensor { kind: all.kind, shape: all.shape[1..].to_vec(), begin, end: begin + bytes }
}

/// What these files keep otherwise than `transformers` does: whole norms, never their difference from one; of Llama and Mixtral q and k in
/// the order in which neighbours turn.
fn transform(model_type: &str, decoder: &Decoder, expected: &ExpectedTensor) -> Transform {
    let Some(slot) = expected.pieces.first().map(|piece| piece.slot) else {
        return Transform::None;
    };
    let attention = &decoder.spec.layers[slot.layer as usize].attention;
    let is_rotated = matches!(slot.part, TensorPart::Qkv | TensorPart::QkvBias)
        && slot.first_row < attention.q_size() + attention.kv_size();
    if ["llama", "mixtral"].contains(&model_type) && is_rotated {
        return Transform::HeadsInPairs { head_dim: attention.head_dim };
    }
    Transform::None
}

/// Tensors that fill a matrix together are held in the smallest format that holds all of them without loss.
fn share_formats(found: &mut [FoundTensor]) {
    let target = |expected: &ExpectedTensor| {
        expected.pieces.first().map(|piece| (piece.slot.part, piece.slot.layer))
    };
    let mut shared: BTreeMap<_, WeightFormat> = BTreeMap::new();
    for tensor in found.iter() {
        if let Stored::Blocks(matrix) = &tensor.stored {
            let format = shared.entry(target(&tensor.expected)).or_insert(matrix.format);
            *format = wider(*format, matrix.format);
        }
    }
    for tensor in found {
        if let Stored::Blocks(matrix) = &mut tensor.stored
            && let Some(format) = shared.get(&target(&tensor.expected))
        {
            matrix.format = *format;
        }
    }
}

/// The smallest format that holds codes of both.
fn wider(one: WeightFormat, other: WeightFormat) -> WeightFormat {
    if one == other {
        return one;
    }
    let is_small = one.kind == WeightKind::Int4 && other.kind == WeightKind::Int4;
    WeightFormat {
        kind: if is_small { WeightKind::Int4 } else { WeightKind::Int8 },
        group: one.group.min(other.group),
        offsets: one.offsets || other.offsets,
    }
}
