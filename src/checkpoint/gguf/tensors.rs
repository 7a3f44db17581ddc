//! The tensors of a GGUF file by their names, and which of them were taken.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::super::fault::{CheckpointError, CheckpointFault};
use super::header::GgufTensor;
use super::kinds::TensorKind;
use crate::bridge::spec::Dtype;

/// All of them.
pub struct GgufTensors<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    tensors: BTreeMap<&'a str, GgufTensor>,
    taken: RefCell<BTreeSet<String>>,
}

impl<'a> GgufTensors<'a> {
    pub fn new(path: &'a Path, bytes: &'a [u8], tensors: BTreeMap<&'a str, GgufTensor>) -> Self {
        Self { path, bytes, tensors, taken: RefCell::default() }
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor, if it is there.
    pub fn get(&self, name: &str) -> Option<&GgufTensor> {
        let tensor = self.tensors.get(name)?;
        self.taken.borrow_mut().insert(name.to_owned());
        Some(tensor)
    }

    /// A tensor that must be there.
    pub fn take(&self, name: &str) -> Result<&GgufTensor, CheckpointError> {
        self.get(name).ok_or_else(|| {
            let reason = "the model needs this tensor and the file does not have it";
            self.fault(CheckpointFault::MissingTensor, name, reason)
        })
    }

    /// A vector of float32.
    pub fn floats(&self, name: &str) -> Result<Option<Vec<f32>>, CheckpointError> {
        let Some(tensor) = self.get(name) else { return Ok(None) };
        if tensor.kind != TensorKind::Elements(Dtype::F32) || tensor.shape.len() != 1 {
            let reason = format!("{} of {:?}, expected a vector of F32", tensor.kind, tensor.shape);
            return Err(self.fault(CheckpointFault::Unsupported, name, reason));
        }
        let bytes = self.bytes.get(tensor.begin..tensor.end).unwrap_or_default();
        Ok(Some(Dtype::F32.floats(bytes).collect()))
    }

    pub fn fault(
        &self,
        fault: CheckpointFault,
        name: &str,
        reason: impl Into<String>,
    ) -> CheckpointError {
        CheckpointError::new(fault, self.path, reason).at(name)
    }

    /// Refuses the first that nobody took: the result would be wrong without it.
    pub fn refuse_rest(&self) -> Result<(), CheckpointError> {
        let taken = self.taken.borrow();
        let mut rest = self.tensors.keys().filter(|name| !taken.contains(**name));
        match rest.next() {
            None => Ok(()),
            Some(name) => {
                let reason = format!(
                    "a model of this metadata has no such tensor (nor {} more like it)",
                    rest.count()
                );
                Err(self.fault(CheckpointFault::UnexpectedTensor, name, reason))
            }
        }
    }
}
