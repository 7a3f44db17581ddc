//! What can be wrong with a checkpoint.

use std::fmt;
use std::path::{Path, PathBuf};

/// Which kind of thing is wrong; tests match on it, people read the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CheckpointFault {
    /// The directory, or a file that must be there, is not.
    NotFound,
    /// The system could not read it.
    Io,
    /// Not JSON, not safetensors, or a value of the wrong kind.
    Malformed,
    /// The file is shorter than its header says.
    Truncated,
    /// Tensors overlap or leave a gap.
    Layout,
    /// A tensor that the model needs is not there.
    MissingTensor,
    /// A tensor that the model does not know, so its result would be wrong without it.
    UnexpectedTensor,
    /// A tensor's shape is not what `config.json` says.
    WrongShape,
    /// Well-formed, but not a kind that this engine runs.
    Unsupported,
}

/// Why a checkpoint cannot be had: names file, key or tensor, and reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointError {
    /// The kind of fault.
    pub fault: CheckpointFault,
    /// The file or directory at fault.
    pub file: PathBuf,
    /// The key or tensor, where it is about one.
    pub item: Option<String>,
    /// What was expected and what came.
    pub reason: String,
}

impl CheckpointError {
    pub(super) fn new(fault: CheckpointFault, file: &Path, reason: impl Into<String>) -> Self {
        Self { fault, file: file.to_owned(), item: None, reason: reason.into() }
    }

    /// A tensor that the model needs.
    pub(super) fn missing(directory: &Path, tensor: impl Into<String>) -> Self {
        let reason = "the model needs this tensor and no file has it";
        Self::new(CheckpointFault::MissingTensor, directory, reason).at(tensor)
    }

    pub(super) fn at(mut self, item: impl Into<String>) -> Self {
        self.item = Some(item.into());
        self
    }
}

impl fmt::Display for CheckpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.file.display())?;
        if let Some(item) = &self.item {
            write!(f, "{item}: ")?;
        }
        f.write_str(&self.reason)
    }
}

impl std::error::Error for CheckpointError {}
