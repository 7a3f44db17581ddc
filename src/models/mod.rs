//! Models: one actor, on its own arbiter; what is loaded, where, and when it was last used.
//!
//! Accepts [`Load`], [`Unload`], [`List`](crate::door::List) (from node, library and HTTP) and [`DeviceRebuilt`] (from the node).
//! Opens checkpoints, places them on devices through the executors (the configured ones on every device, later ones on the best),
//! then tells batchers and, through the node, admission ([`ModelUp`], [`ModelDown`]). Evicts the least recently used idle model when
//! memory is short.
//!
//! The node sizes the devices' pools with [`plan_memory`], and starts the actor with [`start`].

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use actix::Message;

use tokio::sync::oneshot;

use crate::checkpoint::{LoadFormat, Quantization};
use crate::door::ModelInfo;
use crate::error::Result;
use crate::ids::ModelId;
use crate::request::Params;
use crate::tokenizer::{ChatTemplate, Tokenizer};

mod actor;
mod choice;
mod devices;
mod eviction;
mod flows;
pub mod inspect;
mod open;
mod placing;
mod progress;
pub mod prompts;
mod registry;
#[cfg(test)]
mod tests;

pub use actor::{Models, ModelsStart, start};
pub use choice::{Room, best};
pub use devices::DeviceHandle;
pub use eviction::{Candidate, victims};
pub use open::{max_seq_len, plan_memory};

/// One `[[models]]` entry: what to load under which alias.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// The alias that clients use: 1 to 64 of a-z 0-9 -. Absent: the last part of `model_path`.
    pub name: String,
    /// A directory, a GGUF file, or a hub id that is in the local Hugging Face cache. The files stay mapped while the model is loaded:
    /// replace them by renaming, never change them in place.
    pub model_path: PathBuf,
    /// Weights from the checkpoint, or random ones of its shape: for benchmarks, from `config.json` alone.
    #[serde(default)]
    pub load_format: LoadFormat,
    /// Longest prompt and completion together; absent: the checkpoint's `max_position_embeddings`.
    #[serde(default, alias = "max_model_len")]
    #[schemars(range(min = 1), extend("x-aliases" = ["max_model_len"]))]
    pub max_seq_len: Option<u32>,
    /// Holds the layers' matrices of a checkpoint in 16 bits in fewer: `fp8`, `int8` (a scale for each row) or `int4` (for each 128
    /// columns). What a GPU has no kernels for, as experts, stays in 16 bits there.
    #[serde(default)]
    pub quantization: Option<Quantization>,
    /// The same of the head, and of the embedding where it is the same matrix (on a GPU it then stays in 16 bits).
    #[serde(default)]
    pub quantization_head: Option<Quantization>,
}

impl ModelSpec {
    /// A checkpoint under an alias, as its files have it.
    pub fn new(name: impl Into<String>, model_path: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            model_path: model_path.into(),
            load_format: LoadFormat::default(),
            max_seq_len: None,
            quantization: None,
            quantization_head: None,
        }
    }

    /// Checks every key; the checkpoint is looked at when it is loaded.
    ///
    /// # Errors
    /// One line for each key at fault: name, expected, got.
    pub fn check(&self) -> std::result::Result<(), Vec<String>> {
        let mut faults = crate::settings::out_of_range("models", self);
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if self.name.is_empty() || self.name.len() > 64 || !self.name.bytes().all(allowed) {
            let name = &self.name;
            faults.push(format!("models.name: expected 1 to 64 of a-z 0-9 -, got \"{name}\""));
        }
        if self.model_path.as_os_str().is_empty() {
            faults.push(
                "models.model_path: expected a directory, a GGUF file or a hub id".to_owned(),
            );
        }
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }
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
    pub defaults: Params,
    /// The same: how long a completion is whose request does not say.
    pub default_length: Option<u32>,
    /// Of all that its tokens depend on: nodes on which it is equal say the same.
    pub digest: String,
    /// When it was loaded, in Unix seconds.
    pub created: u64,
    /// Requests running or waiting; a permit counts it up and down.
    pub in_use: AtomicU64,
    /// The last admission, in microseconds of [`Timestamp`](crate::clock::Timestamp).
    pub last_used: AtomicU64,
}

/// A model takes requests under its alias.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ModelUp(pub Arc<ServedModel>);

/// A model takes no more requests.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ModelDown {
    /// Its alias.
    pub name: String,
}

/// On which of the node's devices a model is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// On each, as a replica.
    EveryDevice,
    /// On the one with the best free memory and load.
    BestDevice,
}

/// Loads a model; answers when it takes requests.
#[derive(Message)]
#[rtype(result = "Result<ModelInfo>")]
pub struct Load {
    /// What to load.
    pub spec: ModelSpec,
    /// The devices that it goes to.
    pub spread: Spread,
}

/// Takes no more requests for the model, lets those in finish, gives its memory back; then answers.
#[derive(Message)]
#[rtype(result = "Result<()>")]
pub struct Unload {
    /// The alias.
    pub name: String,
}

/// A device's executor and batcher were built again and are empty: every model that was there is to be loaded onto it. Loads that
/// were under way go on there too.
#[derive(Message)]
#[rtype(result = "()")]
pub struct DeviceRebuilt {
    /// The new actors, under the same id and a new generation.
    pub device: DeviceHandle,
    /// Answered when every model is on the device, or with the first that could not be loaded.
    pub done: oneshot::Sender<Result<()>>,
}
