//! `config.json`: which family, what it computes, in which type, and which tokens end a completion.

use std::collections::BTreeMap;
use std::path::Path;

use crate::bridge::spec::{DecoderSpec, Dtype, TensorPart};

use super::families::{self, Decoder, Family};
use super::fault::{CheckpointError, CheckpointFault};
use super::gguf;
use super::json_file::JsonFile;
use super::quantized::{self, HeldCodes, QuantizationConfig};

/// What `config.json` says.
pub struct ModelConfig {
    /// The family that the checkpoint is of.
    pub family: &'static Family,
    /// What the engine builds, and which tensors it needs.
    pub decoder: Decoder,
    /// The weights' element type, where the file names it; else float32 was taken.
    pub dtype: Option<Dtype>,
    /// How matrices are quantized, where they are.
    pub(super) quantization: Option<QuantizationConfig>,
    /// `eos_token_id`, one or several.
    pub end_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// Reads and checks `config.json`. `stored`: the tensors' element type, for a file that does not name it.
    ///
    /// # Errors
    /// Names the key and says what was expected and what came.
    pub fn read(path: &Path, stored: Option<Dtype>) -> Result<Self, CheckpointError> {
        let absent = || {
            let hint = path.parent().map(gguf::hint).unwrap_or_default();
            let reason = format!("the file does not exist{hint}");
            CheckpointError::new(CheckpointFault::NotFound, path, reason)
        };
        Self::of(&JsonFile::read_if_there(path)?.ok_or_else(absent)?, stored)
    }

    /// The same of a value that stands in no file, for tests and benchmarks.
    ///
    /// # Errors
    /// As [`ModelConfig::read`].
    pub fn parse(config: serde_json::Value) -> Result<Self, CheckpointError> {
        Self::of(&JsonFile::of(Path::new("config.json"), config)?, None)
    }

    /// The same of an object that is at hand.
    pub(super) fn of(file: &JsonFile, stored: Option<Dtype>) -> Result<Self, CheckpointError> {
        // Of multimodal files either level may say it; whether this is one, the family decides.
        let text = file.peek_object("text_config")?;
        let mut dtype = read_dtype(file)?;
        if let (None, Some(text)) = (dtype, &text) {
            dtype = read_dtype(text)?;
        }
        let mut quantization = QuantizationConfig::read(file)?;
        if let (None, Some(text)) = (&quantization, &text) {
            quantization = QuantizationConfig::read(text)?;
        }
        let (family, decoder) = families::read(file, dtype.or(stored).unwrap_or(Dtype::F32))?;
        let vocab_size = decoder.spec.vocab_size;
        let mut ends = file.token_ids("eos_token_id", vocab_size)?;
        if let (None, Some(text)) = (&ends, &text) {
            ends = text.token_ids("eos_token_id", vocab_size)?;
        }
        let end_token_ids = ends.unwrap_or_default();
        Ok(Self { family, decoder, dtype, quantization, end_token_ids })
    }

    /// Whether matrices may be of codes; which are, their tensors say.
    pub fn is_quantized(&self) -> bool {
        self.quantization.is_some()
    }

    /// Formats by `quantization_config` alone, for weights that are made and not read.
    pub(super) fn planned_formats(
        &self,
    ) -> BTreeMap<(TensorPart, u32), Option<HeldCodes<'static>>> {
        let tensors = self.decoder.usual_tensors();
        quantized::common_formats(tensors.iter().map(|tensor| {
            let format = self.quantization.as_ref().and_then(|config| config.format_of(tensor));
            (tensor, format.map(HeldCodes::from))
        }))
    }

    /// What the engine builds where sequences may be as long as the model was made for.
    pub fn spec(&self) -> DecoderSpec {
        self.decoder.spec_for(self.decoder.max_position_embeddings)
    }
}

fn read_dtype(file: &JsonFile) -> Result<Option<Dtype>, CheckpointError> {
    for key in ["torch_dtype", "dtype"] {
        if let Some(name) = file.text(key)? {
            return match name.strip_prefix("torch.").unwrap_or(name) {
                "float32" => Ok(Some(Dtype::F32)),
                "float16" => Ok(Some(Dtype::F16)),
                "bfloat16" => Ok(Some(Dtype::BF16)),
                "auto" => Ok(None),
                other => Err(file.fault(
                    CheckpointFault::Unsupported,
                    key,
                    format!("expected float32, float16 or bfloat16, got \"{other}\""),
                )),
            };
        }
    }
    Ok(None)
}
