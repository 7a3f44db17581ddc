//! A checkpoint on disk: a folder of `config.json`, safetensors and `generation_config.json`, whose tokenizer's files are read by
//! `tokenizer.rs`; or one GGUF file.

use std::path::{Path, PathBuf};

use crate::bridge::spec::{DecoderSpec, Dtype};
use crate::memory::KvDtype;

mod config;
pub mod families;
mod fault;
mod fingerprint;
mod found;
mod generation;
mod gguf;
mod hub;
mod json_file;
mod mmap;
mod quantized;
pub mod random;
mod shards;
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

use families::{Decoder, Family, LoadedPart};
use found::{FoundTensor, Mapped, Stored, map_tensors};
use mmap::MappedFile;

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";

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
                let malformed = move |reason| {
                    let fault = CheckpointFault::Malformed;
                    let error = CheckpointError::new(fault, &checkpoint.directory, reason);
                    error.at(&*expected.name)
                };
                let parts = coded.parts(expected, &checkpoint.files);
                Box::new(parts.map(move |part| part.map_err(malformed)))
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
    kv_scales: Vec<quantized::KvScale>,
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
        let Mapped { files, mut tensors, kv_scales } = match load_format {
            LoadFormat::Dummy => Mapped::default(),
            LoadFormat::Safetensors => map_tensors(directory, &mut config)?,
        };
        if config.dtype.is_none()
            && let Some(dtype) = tensors.first().and_then(FoundTensor::dtype)
        {
            let tied_embeddings = config.decoder.spec.tied_embeddings;
            config = ModelConfig::read(&config_path, Some(dtype))?;
            config.decoder.spec.tied_embeddings = tied_embeddings;
        }
        match load_format {
            LoadFormat::Safetensors => hold_as_stored(&mut config.decoder.spec, &mut tensors),
            LoadFormat::Dummy => {
                let formats = config.planned_formats();
                quantized::assign(&mut config.decoder.spec, &formats);
            }
        }
        let (directory, spec) = (directory.to_owned(), config.spec());
        Ok(Self { directory, config, spec, generation, load_format, files, tensors, kv_scales })
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
        let of_head = spec.head.format.is_quantized()
            || spec.tied_embeddings && spec.embedding.is_quantized();
        for (key, is_quantized) in [
            ("quantization", layers.is_some() && spec.has_codes()),
            ("quantization_head", head.is_some() && of_head),
        ] {
            if is_quantized {
                let reason = format!("{key}: the checkpoint is quantized already");
                let fault = CheckpointFault::Unsupported;
                return Err(CheckpointError::new(fault, &self.directory, reason));
            }
        }
        if let Some(layers) = layers {
            layers.quantize_layers(spec);
        }
        if let Some(head) = head {
            head.quantize_head(spec);
        }
        self.spec = self.config.spec();
        Ok(())
    }

    /// Changes the type in which keys and values will be held; fp8 takes the scales that the files have.
    ///
    /// # Errors
    /// Names the scale that is none; `Unsupported` if the files' scales are for another type.
    pub fn hold_kv_as(&mut self, kv: KvDtype) -> Result<(), CheckpointError> {
        if kv == KvDtype::Auto {
            return Ok(());
        }
        let quantization = self.config.quantization.as_ref();
        if let Some(other) = quantization.and_then(|quantization| quantization.other_kv()) {
            let reason = format!("expected float of 8 bits beside kv_dtype = \"fp8\", got {other}");
            let error = CheckpointError::new(CheckpointFault::Unsupported, &self.directory, reason);
            return Err(error.at("quantization_config.kv_cache_scheme"));
        }
        let spec = &mut self.config.decoder.spec;
        spec.kv = Dtype::Fp8;
        quantized::give_kv_scales(&self.kv_scales, &self.files, spec).map_err(
            |(name, reason)| {
                let fault = CheckpointFault::Unsupported;
                CheckpointError::new(fault, &self.directory, reason).at(name)
            },
        )?;
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
        let data = stored.tensor().data(&self.files)?;
        Some(TensorView { expected, data, stored, checkpoint: self })
    }

    /// Gives back the memory of a tensor's pages, which loading it took: a device has its own by then.
    pub fn release(&self, index: usize) {
        let Some(found) = self.tensors.get(index) else { return };
        let tensor = found.stored.tensor();
        if let Some(file) = self.files.get(tensor.file) {
            file.release(tensor.entry.begin..tensor.entry.end);
        }
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

/// Gives every matrix the format of what fills it.
fn hold_as_stored(spec: &mut DecoderSpec, tensors: &mut [FoundTensor]) {
    let held = tensors.iter().map(|tensor| (&tensor.expected, tensor.held()));
    quantized::assign(spec, &quantized::common_formats(held));
    for FoundTensor { expected, stored } in tensors {
        let Stored::Codes(coded) = stored else { continue };
        let mut matrices = expected.pieces.iter().map(|piece| piece.slot);
        if !matrices.all(|slot| spec.ordered_mut(slot.part, slot.layer).is_some_and(|is| *is)) {
            coded.give_up_order();
        }
    }
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
