//! Models: one actor, on its own arbiter; what is loaded, where, and when it was last used.
//!
//! Accepts [`Load`], [`Unload`], [`List`] (from node, library and HTTP). Reads checkpoints ([`Checkpoint`]: `config.json`, safetensors,
//! tokenizer), places them on devices through the executors, then tells batchers and admission. Evicts the least recently used idle
//! model when memory is short.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use actix::Message;

use crate::error::Result;
use crate::executor::{DeviceId, ModelId};
use crate::tokenizer::{ChatTemplate, Tokenizer};

mod checkpoint;
mod mmap;

pub use checkpoint::{Checkpoint, CheckpointError, LoadFormat};

/// One `[[models]]` entry: what to load under which alias.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// The alias clients use: `[a-z0-9-]+`.
    pub name: String,
    /// A directory, or a hub id that is in the local Hugging Face cache.
    pub model_path: PathBuf,
    /// Weights from the checkpoint, or random ones of its shape.
    #[serde(default)]
    pub load_format: LoadFormat,
    /// Longest prompt and completion together; absent: the checkpoint's `max_position_embeddings`.
    #[serde(default, alias = "max_model_len")]
    pub max_seq_len: Option<u32>,
}

/// What admission needs of a loaded model.
pub struct ServedModel {
    /// The alias.
    pub name: String,
    /// The name inside.
    pub id: ModelId,
    /// Text to ids and back.
    pub tokenizer: Arc<Tokenizer>,
    /// For `messages`; absent if the checkpoint has none.
    pub chat_template: Option<ChatTemplate>,
    /// Longest prompt and completion together.
    pub max_seq_len: u32,
    /// Ids below this exist.
    pub vocab_size: u32,
    /// Tokens that end a completion.
    pub end_token_ids: Vec<u32>,
    /// The checkpoint's `generation_config.json`.
    pub defaults: GenerationDefaults,
    /// When it was loaded, in Unix seconds.
    pub created: u64,
    /// Requests running or waiting; a permit counts it up and down.
    pub in_use: AtomicU64,
    /// The last admission, in microseconds of [`Timestamp`](crate::clock::Timestamp).
    pub last_used: AtomicU64,
}

/// Sampling defaults of a checkpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct GenerationDefaults {
    /// 0 to 2.
    pub temperature: Option<f32>,
    /// Above 0 to 1.
    pub top_p: Option<f32>,
    /// 0 is off.
    pub top_k: Option<u32>,
    /// 0 to 1.
    pub min_p: Option<f32>,
}

/// Loads a model on every device of the node; answers when it takes requests.
#[derive(Message)]
#[rtype(result = "Result<ModelInfo>")]
pub struct Load(pub ModelSpec);

/// Takes no more requests for the model, lets those in finish, gives its memory back; then answers.
#[derive(Message)]
#[rtype(result = "Result<()>")]
pub struct Unload {
    /// The alias.
    pub name: String,
}

/// What is loaded.
#[derive(Message)]
#[rtype(result = "Vec<ModelInfo>")]
pub struct List;

/// A loaded model, for lists and health.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct ModelInfo {
    /// The alias.
    pub name: String,
    /// When it was loaded, in Unix seconds.
    pub created: u64,
    /// Longest prompt and completion together.
    pub max_seq_len: u32,
    /// Where it is.
    pub devices: Vec<DeviceId>,
    /// Bytes of weights on each device.
    pub weight_bytes: u64,
    /// Bytes of KV blocks on each device.
    pub kv_bytes: u64,
}
