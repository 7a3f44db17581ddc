//! A checkpoint on disk: a folder of `config.json`, safetensors and `generation_config.json`, whose tokenizer's files are read by
//! `tokenizer.rs`; or one GGUF file.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use crate::bridge::spec::{DecoderSpec, Dtype, WeightFormat};

mod config;
pub mod families;
mod fault;
mod generation;
mod gguf;
mod hub;
mod json_file;
mod mmap;
mod quantized;
pub mod random;
mod tensors;
#[cfg(test)]
pub(crate) mod testing;

pub use config::ModelConfig;
pub use families::ExpectedTensor;
pub use fault::{CheckpointError, CheckpointFault};
pub use generation::GenerationConfig;
pub use gguf::gguf_tokenizer;
pub use hub::HubCache;
pub use quantized::Quantization;

use families::LoadedPart;
use families::{Decoder, Family, Root};
use gguf::BlockMatrix;
use json_file::JsonFile;
use mmap::MappedFile;
use quantized::{Coded, Place, QuantizationConfig};
use tensors::{TensorEntry, read_header};

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Where weights come from.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum LoadFormat {
    /// The checkpoint's safetensors.
    #[default]
    #[serde(alias = "auto")]
    Safetensors,
    /// Random weights of the right scale from `config.json` alone, for benchmarks.
    Dummy,
}

/// One tensor, still in its file.
#[derive(Clone, Copy)]
pub struct TensorView<'a> {
    /// Its name, its shape, and what it fills.
    pub expected: &'a ExpectedTensor,
    /// Elements, little-endian, or codes.
    pub data: &'a [u8],
    stored: &'a Stored,
    checkpoint: &'a Checkpoint,
}

impl<'a> TensorView<'a> {
    /// What it becomes, part by part.
    pub fn parts(self) -> Box<dyn Iterator<Item = Result<LoadedPart<'a>, CheckpointError>> + 'a> {
        let Self { expected, data, stored, checkpoint } = self;
        match stored {
            Stored::Elements { dtype, .. } => Box::new(expected.parts(*dtype, data).map(Ok)),
            Stored::Blocks(matrix) => Box::new(matrix.part(expected, data).into_iter().map(Ok)),
            Stored::Codes(coded) => {
                let parts = expected.pieces.iter().enumerate();
                Box::new(parts.map(move |(index, piece)| {
                    let rows = coded.rows(&checkpoint.files, index).map_err(|reason| {
                        let fault = CheckpointFault::Malformed;
                        let error = CheckpointError::new(fault, &checkpoint.directory, reason);
                        error.at(&*expected.name)
                    })?;
                    let quantized::Rows { format, data, scales, offsets } = rows;
                    let shape = coded.shape().to_vec();
                    Ok(LoadedPart { slot: piece.slot, format, shape, data, scales, offsets })
                }))
            }
        }
    }
}

/// A checkpoint whose files are mapped and checked: every tensor that the model needs is there, in the right shape.
pub struct Checkpoint {
    /// Or the GGUF file.
    directory: PathBuf,
    config: ModelConfig,
    /// For the longest sequence that the model was made for.
    spec: DecoderSpec,
    generation: GenerationConfig,
    load_format: LoadFormat,
    files: Vec<MappedFile>,
    /// In the order of the forward pass; empty for `dummy`.
    tensors: Vec<FoundTensor>,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoint")
            .field("directory", &self.directory)
            .field("load_format", &self.load_format)
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}

impl Checkpoint {
    /// Reads a folder's `config.json`, and unless `load_format` is `dummy` maps its safetensors and checks all of them; or does the same
    /// with a GGUF file. Blocks on the disk.
    ///
    /// # Errors
    /// Names file, key or tensor, and reason.
    pub fn open(path: &Path, load_format: LoadFormat) -> Result<Self, CheckpointError> {
        if path.is_file() {
            return Self::open_gguf(path, load_format);
        }
        let directory = path;
        let config_path = directory.join(CONFIG);
        let mut config = ModelConfig::read(&config_path, None)?;
        let vocab_size = config.decoder.spec.vocab_size;
        let generation = GenerationConfig::read(&directory.join(GENERATION_CONFIG), vocab_size)?;
        let (files, tensors) = match load_format {
            LoadFormat::Dummy => (Vec::new(), Vec::new()),
            LoadFormat::Safetensors => map_tensors(directory, &mut config)?,
        };
        if config.dtype.is_none()
            && let Some(dtype) = tensors.first().and_then(FoundTensor::dtype)
        {
            let tied_embeddings = config.decoder.spec.tied_embeddings;
            config = ModelConfig::read(&config_path, Some(dtype))?;
            config.decoder.spec.tied_embeddings = tied_embeddings;
        }
        let formats = match load_format {
            LoadFormat::Safetensors => {
                quantized::common_formats(tensors.iter().map(|t| (&t.expected, t.format())))
            }
            LoadFormat::Dummy => config.planned_formats(),
        };
        quantized::assign(&mut config.decoder.spec, &formats);
        let (directory, spec) = (directory.to_owned(), config.spec());
        Ok(Self { directory, config, spec, generation, load_format, files, tensors })
    }

    /// Changes the formats in which the weights will be held: of the layers, and of the head.
    ///
    /// # Errors
    /// `Unsupported` if they are quantized in the files already.
    pub fn quantize(
        &mut self,
        layers: Option<Quantization>,
        head: Option<Quantization>,
    ) -> Result<(), CheckpointError> {
        let spec = &mut self.config.decoder.spec;
        if let Some(layers) = layers {
            let mut is_quantized = false;
            spec.for_each_format(|format| is_quantized |= format.is_quantized());
            if is_quantized {
                let reason = "quantization: the checkpoint is quantized already";
                let fault = CheckpointFault::Unsupported;
                return Err(CheckpointError::new(fault, &self.directory, reason));
            }
            layers.quantize_layers(spec);
        }
        if let Some(head) = head {
            head.quantize_head(spec);
        }
        self.spec = self.config.spec();
        Ok(())
    }

    /// Where it is: its folder, or its GGUF file.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its family.
    pub fn family(&self) -> &'static Family {
        self.config.family
    }

    /// What its `config.json` says.
    pub fn decoder(&self) -> &Decoder {
        &self.config.decoder
    }

    /// What the engine builds where sequences may be as long as the model was made for.
    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// Longest sequence that the model was made for.
    pub fn max_position_embeddings(&self) -> u32 {
        self.config.decoder.max_position_embeddings
    }

    /// Tokens that end a completion: `generation_config.json`'s, else `config.json`'s.
    pub fn end_token_ids(&self) -> &[u32] {
        self.generation.end_token_ids.as_deref().unwrap_or(&self.config.end_token_ids)
    }

    /// Sampling defaults and what to tell the log.
    pub fn generation(&self) -> &GenerationConfig {
        &self.generation
    }

    /// Where the weights come from.
    pub fn load_format(&self) -> LoadFormat {
        self.load_format
    }

    /// How many tensors there are to copy; 0 for `dummy`.
    pub fn num_tensors(&self) -> usize {
        self.tensors.len()
    }

    /// The tensor at `index` in the order of the forward pass; `None` beyond the last.
    pub fn tensor(&self, index: usize) -> Option<TensorView<'_>> {
        let FoundTensor { expected, stored } = self.tensors.get(index)?;
        let data = stored.place().data(&self.files)?;
        Some(TensorView { expected, data, stored, checkpoint: self })
    }

    /// Every tensor in the order of the forward pass.
    pub fn tensors(&self) -> impl Iterator<Item = TensorView<'_>> {
        (0..self.num_tensors()).filter_map(|index| self.tensor(index))
    }

    /// Bytes to copy; for `dummy`, bytes of the weights that are made.
    pub fn total_bytes(&self) -> u64 {
        match self.load_format {
            LoadFormat::Safetensors => {
                self.tensors.iter().map(|found| found.stored.bytes() as u64).sum()
            }
            LoadFormat::Dummy => tensor_bytes(&self.config.decoder),
        }
    }
}

/// A tensor that the model needs, in its file.
struct FoundTensor {
    expected: ExpectedTensor,
    stored: Stored,
}

enum Stored {
    Elements {
        place: Place,
        dtype: Dtype,
    },
    Codes(Coded),
    /// Of a GGUF file.
    Blocks(BlockMatrix),
}

impl FoundTensor {
    /// Of what is not quantized.
    fn dtype(&self) -> Option<Dtype> {
        match self.stored {
            Stored::Elements { dtype, .. } => Some(dtype),
            Stored::Codes(_) | Stored::Blocks(_) => None,
        }
    }

    /// Of what is quantized.
    fn format(&self) -> Option<WeightFormat> {
        match &self.stored {
            Stored::Elements { .. } => None,
            Stored::Codes(coded) => Some(coded.format()).filter(|format| format.is_quantized()),
            Stored::Blocks(matrix) => Some(matrix.format),
        }
    }
}

impl Stored {
    /// Of elements or codes.
    fn place(&self) -> &Place {
        match self {
            Self::Elements { place, .. } | Self::Blocks(BlockMatrix { place, .. }) => place,
            Self::Codes(coded) => coded.codes(),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Codes(coded) => coded.bytes(),
            _ => self.place().entry.bytes(),
        }
    }
}

/// Every tensor of the files by its name, with the file that it is in.
type ByName = HashMap<String, (usize, TensorEntry)>;

/// Maps every file and picks the model's tensors out of them.
fn map_tensors(
    directory: &Path,
    config: &mut ModelConfig,
) -> Result<(Vec<MappedFile>, Vec<FoundTensor>), CheckpointError> {
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
    let mut picked = Picked { directory, paths: &paths, files: &files, found };
    let tensors = picked.take(expected, quantization)?;
    picked.refuse_rest(root)?;
    Ok((files, tensors))
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
            let coded = quantized::take(&mut self.found, self.files, &expected, quantization);
            let coded = coded.map_err(|(tensor, fault, reason)| {
                CheckpointError::new(fault, self.directory, reason).at(tensor)
            })?;
            let stored = match coded {
                Some(coded) => Stored::Codes(coded),
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
            let reason = "the model needs this tensor and no file has it";
            let error =
                CheckpointError::new(CheckpointFault::MissingTensor, self.directory, reason);
            return Err(error.at(&*expected.name));
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
        Ok(Stored::Elements { place: Place { file, entry }, dtype })
    }

    /// What is left over must be harmless: known names, and the biases of zeros that some tools write beside codes.
    fn refuse_rest(self, root: &Root) -> Result<(), CheckpointError> {
        let is_zero = |name: &str, file: usize, entry: &TensorEntry| {
            let data = self.files[file].bytes().get(entry.begin..entry.end);
            name.ends_with(".bias") && data.is_some_and(|data| data.iter().all(|byte| *byte == 0))
        };
        let mut unexpected: Vec<_> = self
            .found
            .iter()
            .filter(|(name, (file, entry))| {
                !root.may_be_left_out(name) && !is_zero(name, *file, entry)
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

/// The names that the index gives to one file; `None` without an index: all of them.
type Wanted = Option<BTreeSet<String>>;

/// The safetensors files, each with the tensors that are to be taken from it.
fn find_files(directory: &Path) -> Result<Vec<(PathBuf, Wanted)>, CheckpointError> {
    let single = directory.join(SINGLE);
    // A link that leads nowhere, too: opening it says so.
    if single.symlink_metadata().is_ok() {
        return Ok(vec![(single, None)]);
    }
    let index_path = directory.join(INDEX);
    let Some(index) = JsonFile::read_if_there(&index_path)? else {
        let other = std::fs::read_dir(directory)
            .ok()
            .and_then(|entries| {
                entries.flatten().map(|entry| entry.file_name()).find(|name| {
                    let name = name.to_string_lossy();
                    [".bin", ".pth", ".pt"].iter().any(|end| name.ends_with(end))
                })
            })
            .map(|name| format!("; {} is a format that is not read", name.to_string_lossy()))
            .unwrap_or_else(|| gguf::hint(directory));
        let reason = format!("expected {SINGLE} or {INDEX}{other}");
        return Err(CheckpointError::new(CheckpointFault::NotFound, directory, reason));
    };
    let Some(map) = index.object("weight_map")? else {
        return Err(index.expected("weight_map", "an object of tensor names and files"));
    };
    let mut files: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (tensor, file) in map.entries() {
        // A plain name: an index must not reach outside its directory.
        let name = file.as_str().filter(|name| {
            !name.is_empty()
                && !name.contains(['/', '\\', '\0'])
                && !matches!(*name, "." | "..")
                && name.ends_with(".safetensors")
        });
        let Some(name) = name else {
            return Err(map.expected(tensor, "the name of a .safetensors file beside the index"));
        };
        files.entry(name.to_owned()).or_default().insert(tensor.clone());
    }
    if files.is_empty() {
        return Err(index.expected("weight_map", "at least one tensor"));
    }
    Ok(files.into_iter().map(|(name, names)| (directory.join(name), Some(names))).collect())
}

fn missing_or_io(path: &Path, error: &std::io::Error) -> CheckpointError {
    let fault = match error.kind() {
        std::io::ErrorKind::NotFound => CheckpointFault::NotFound,
        std::io::ErrorKind::InvalidData => CheckpointFault::Malformed,
        _ => CheckpointFault::Io,
    };
    CheckpointError::new(fault, path, error.to_string())
}

/// Bytes of the weights, before any padding of the engine's.
fn tensor_bytes(decoder: &Decoder) -> u64 {
    let elements = decoder
        .usual_tensors()
        .iter()
        .map(|tensor| tensor.shape.iter().product::<u64>())
        .fold(0_u64, u64::saturating_add);
    elements.saturating_mul(decoder.spec.activation.bytes())
}
