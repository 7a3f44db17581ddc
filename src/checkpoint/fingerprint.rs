//! What a model's tokens depend on, as a digest: equal for the same checkpoint in the same formats, wherever it lies.

use sha2::{Digest as _, Sha256};

use super::Checkpoint;
use crate::digest::hex;

/// Of each tensor so many bytes at its beginning and at its end are looked at: of one that was trained on, some of them differ.
const PROBE: usize = 64;

impl Checkpoint {
    /// See the module. Reads a page or two of each tensor.
    pub fn fingerprint(&self) -> String {
        let mut digest = Sha256::new();
        digest.update(format!("{:?}", self.spec()));
        for tensor in self.tensors() {
            digest.update(&tensor.expected.name);
            let data = tensor.data;
            digest.update(&data[..data.len().min(PROBE)]);
            digest.update(&data[data.len().saturating_sub(PROBE)..]);
        }
        hex(&digest.finalize()[..8])
    }
}
