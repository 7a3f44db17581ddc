//! A checkpoint on disk: `config.json`, safetensors, tokenizer.

/// Where weights come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LoadFormat {
    /// The checkpoint's safetensors.
    #[default]
    Safetensors,
    /// Random weights of the right scale from `config.json` alone, for benchmarks.
    Dummy,
}

/// Why a checkpoint cannot be had: names file, tensor and reason.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CheckpointError(pub String);

/// A checkpoint whose files are mapped and checked.
pub struct Checkpoint;
