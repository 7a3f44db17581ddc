//! Which tensors of a checkpoint's files a model takes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::bridge::spec::Dtype;

use super::config::ModelConfig;
use super::families::{Decoder, ExpectedTensor, Root};
use super::fault::{CheckpointError, CheckpointFault};
use super::gguf::BlockMatrix;
use super::mmap::MappedFile;
use super::quantized::{self, Coded, HeldCodes, KvScale, QuantizationConfig, StoredTensor};
use super::shards::{INDEX, find_files};
use super::tensors::{TensorEntry, read_header};
use super::{CONFIG, missing_or_io};

/// A tensor that the model needs, in its file.
pub(super) struct FoundTensor {
    pub expected: ExpectedTensor,
    pub stored: Stored,
}

/// How it is stored.
pub(super) enum Stored {
    Elements {
        tensor: StoredTensor,
        dtype: Dtype,
    },
    Codes(Box<Coded>),
    /// Of a GGUF file.
    Blocks(BlockMatrix),
}

impl FoundTensor {
    /// Of what is not quantized.
    pub fn dtype(&self) -> Option<Dtype> {
        match self.stored {
            Stored::Elements { dtype, .. } => Some(dtype),
            Stored::Codes(_) | Stored::Blocks(_) => None,
        }
    }

    /// Of what is quantized.
    pub fn held(&self) -> Option<HeldCodes<'_>> {
        match &self.stored {
            Stored::Elements { .. } => None,
            Stored::Codes(coded) => coded.held(),
            Stored::Blocks(matrix) => Some(matrix.format.into()),
        }
    }
}

impl Stored {
    /// Of elements or codes.
    pub fn tensor(&self) -> &StoredTensor {
        match self {
            Self::Elements { tensor, .. } | Self::Blocks(BlockMatrix { tensor, .. }) => tensor,
            Self::Codes(coded) => coded.codes(),
        }
    }

    pub fn bytes(&self) -> usize {
        match self {
            Self::Codes(coded) => coded.bytes(),
            _ => self.tensor().entry.bytes(),
        }
    }
}

/// Every tensor of the files by its name, with the file that it is in.
pub(super) type ByName = HashMap<String, (usize, TensorEntry)>;

/// The files, and what of them is taken.
#[derive(Default)]
pub(super) struct Mapped {
    pub files: Vec<MappedFile>,
    /// In the order of the forward pass.
    pub tensors: Vec<FoundTensor>,
    pub kv_scales: Vec<KvScale>,
}

/// Maps every file and picks the model's tensors out of them.
pub(super) fn map_tensors(
    directory: &Path,
    config: &mut ModelConfig,
) -> Result<Mapped, CheckpointError> {
    let sources = find_files(directory)?;
    let mut files = Vec::new();
    let mut found = ByName::new();
    for (path, wanted) in &sources {
        let file = MappedFile::open(path).map_err(|error| missing_or_io(path, &error))?;
        for entry in read_header(path, file.bytes())? {
            // Of a sharded checkpoint a shard may hold more than the index gives it; the index decides.
            let ours = wanted.as_ref().is_none_or(|names| names.contains(&entry.name));
            if ours {
                found.insert(entry.name.clone(), (files.len(), entry));
            }
        }
        if let Some(names) = wanted
            && let Some(name) = names.iter().find(|name| !found.contains_key(*name))
        {
            let reason = format!("{INDEX} says that it is in this file, but it is not");
            let error = CheckpointError::new(CheckpointFault::MissingTensor, path, reason);
            return Err(error.at(name));
        }
        files.push(file);
    }
    let paths: Vec<_> = sources.into_iter().map(|(path, _)| path).collect();
    let root = root_of(&config.decoder, &found);
    untie(&mut config.decoder, root, &files, &mut found);
    let expected = config.decoder.tensors(root);
    let quantization = config.quantization.as_ref();
    let kv_scales = quantized::kv_scales(&found, root, config.decoder.spec.layers.len());
    let mut picked = Picked { directory, paths: &paths, files: &files, found };
    let tensors = picked.take(expected, quantization)?;
    picked.refuse_rest(root, quantization.is_some())?;
    Ok(Mapped { files, tensors, kv_scales })
}

/// The names that this file uses; the usual ones where it uses none of those known.
fn root_of(decoder: &Decoder, found: &ByName) -> &'static Root {
    let roots = decoder.roots();
    roots.iter().find(|root| found.contains_key(&root.embedding())).unwrap_or(&roots[0])
}

/// A head beside tied embeddings: a copy that some exports keep, or one of its own whatever `config.json` says (as transformers has it).
fn untie(decoder: &mut Decoder, root: &Root, files: &[MappedFile], found: &mut ByName) {
    if !decoder.spec.tied_embeddings {
        return;
    }
    let bytes =
        |(file, entry): &(usize, TensorEntry)| files[*file].bytes().get(entry.begin..entry.end);
    let Some(head) = found.get(root.head) else { return };
    if found.get(&root.embedding()).is_some_and(|embedding| bytes(embedding) != bytes(head)) {
        decoder.spec.tied_embeddings = false;
    } else {
        found.remove(root.head);
    }
}

/// What is left of the files' tensors while the model's are taken out.
struct Picked<'a> {
    directory: &'a Path,
    paths: &'a [PathBuf],
    files: &'a [MappedFile],
    found: ByName,
}

impl Picked<'_> {
    /// The model's tensors in order, each held against `config.json`.
    fn take(
        &mut self,
        expected: Vec<ExpectedTensor>,
        quantization: Option<&QuantizationConfig>,
    ) -> Result<Vec<FoundTensor>, CheckpointError> {
        let mut tensors = Vec::with_capacity(expected.len());
        for expected in expected {
            let (found, files) = (&mut self.found, self.files);
            let coded = quantized::take(found, files, &expected, quantization, self.directory)?;
            let stored = match coded {
                Some(coded) => Stored::Codes(Box::new(coded)),
                None => self.elements(&expected, quantization.is_some())?,
            };
            tensors.push(FoundTensor { expected, stored });
        }
        Ok(tensors)
    }

    fn elements(
        &mut self,
        expected: &ExpectedTensor,
        quantized: bool,
    ) -> Result<Stored, CheckpointError> {
        let Some((file, entry)) = self.found.remove(&expected.name) else {
            return Err(CheckpointError::missing(self.directory, &*expected.name));
        };
        let wrong = |fault, reason: String| {
            CheckpointError::new(fault, &self.paths[file], reason).at(&*expected.name)
        };
        let Some(dtype) = entry.dtype else {
            let hint = match entry.dtype_name.as_str() {
                "F8_E4M3" | "I8" | "I32" | "U8" if !quantized => {
                    ", or a quantization_config that says what the codes mean"
                }
                _ => "",
            };
            let reason =
                format!("element type {}; expected F32, F16 or BF16{hint}", entry.dtype_name);
            return Err(wrong(CheckpointFault::Unsupported, reason));
        };
        if entry.shape != expected.shape {
            let reason =
                format!("shape {:?}, but by {CONFIG} it must be {:?}", entry.shape, expected.shape);
            return Err(wrong(CheckpointFault::WrongShape, reason));
        }
        Ok(Stored::Elements { tensor: StoredTensor { file, entry }, dtype })
    }

    /// What is left over must be harmless: known names, and the biases of zeros that some tools write beside codes.
    fn refuse_rest(self, root: &Root, quantized: bool) -> Result<(), CheckpointError> {
        let is_zero = |name: &str, file: usize, entry: &TensorEntry| {
            let data = self.files[file].bytes().get(entry.begin..entry.end);
            name.ends_with(".bias") && data.is_some_and(|data| data.iter().all(|byte| *byte == 0))
        };
        let mut unexpected: Vec<_> = self
            .found
            .iter()
            .filter(|(name, (file, entry))| {
                let is_unused = quantized && quantized::is_of_activations(name);
                !(is_unused || root.may_be_left_out(name) || is_zero(name, *file, entry))
            })
            .map(|(name, (file, _))| (name, *file))
            .collect();
        unexpected.sort();
        match unexpected.first() {
            None => Ok(()),
            Some((name, file)) => {
                let reason = format!(
                    "a model of this {CONFIG} has no such tensor (nor {} more like it)",
                    unexpected.len() - 1
                );
                let fault = CheckpointFault::UnexpectedTensor;
                Err(CheckpointError::new(fault, &self.paths[*file], reason).at(*name))
            }
        }
    }
}
