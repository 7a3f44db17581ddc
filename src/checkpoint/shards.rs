//! A checkpoint's safetensors files: one, or shards with an index.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::fault::{CheckpointError, CheckpointFault};
use super::gguf;
use super::json_file::JsonFile;

const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// The names that the index gives to one file; `None` without an index: all of them.
pub(super) type Wanted = Option<BTreeSet<String>>;

/// The safetensors files, each with the tensors that are to be taken from it.
pub(super) fn find_files(directory: &Path) -> Result<Vec<(PathBuf, Wanted)>, CheckpointError> {
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
