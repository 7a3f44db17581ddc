//! From `model_path` to a directory or a GGUF file: a path as it is, or a hub id in the local Hugging Face cache. Nothing is downloaded.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::fault::{CheckpointError, CheckpointFault};

/// Where hub ids are looked up: the cache's roots, first match first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HubCache {
    roots: Vec<PathBuf>,
}

impl HubCache {
    /// These roots.
    pub fn new(roots: Vec<PathBuf>) -> Self {
        Self { roots }
    }

    /// The roots that `huggingface_hub` uses, from the process's environment.
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var_os(name))
    }

    /// The same from given variables: `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HOME`.
    pub fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let path = |name: &str, below: &str| {
            variable(name).filter(|value| !value.is_empty()).map(|value| {
                if below.is_empty() { PathBuf::from(value) } else { Path::new(&value).join(below) }
            })
        };
        let mut roots = Vec::new();
        for root in [
            path("HF_HUB_CACHE", ""),
            path("HF_HOME", "hub"),
            path("XDG_CACHE_HOME", "huggingface/hub"),
            path("HOME", ".cache/huggingface/hub"),
        ]
        .into_iter()
        .flatten()
        {
            if !roots.contains(&root) {
                roots.push(root);
            }
        }
        Self { roots }
    }

    /// The directory of a model, or its GGUF file.
    ///
    /// # Errors
    /// `NotFound`, saying everywhere that was looked.
    pub fn resolve(&self, model_path: &Path) -> Result<PathBuf, CheckpointError> {
        let is_gguf = || model_path.extension().is_some_and(|ending| ending == "gguf");
        if model_path.is_dir() || model_path.is_file() && is_gguf() {
            return Ok(model_path.to_owned());
        }
        let not_found =
            |reason: String| CheckpointError::new(CheckpointFault::NotFound, model_path, reason);
        if model_path.exists() {
            return Err(not_found(
                "expected a directory or a .gguf file, this is another file".to_owned(),
            ));
        }
        let Some(id) = model_path.to_str().filter(|text| is_hub_id(text)) else {
            return Err(not_found("no such directory".to_owned()));
        };
        let folder = format!("models--{}", id.replace('/', "--"));
        let mut looked = Vec::new();
        for root in &self.roots {
            let model = root.join(&folder);
            match snapshot(&model) {
                Ok(directory) => return Ok(directory),
                Err(why) => looked.push(why),
            }
        }
        let looked = if looked.is_empty() {
            "no cache is known: HF_HUB_CACHE, HF_HOME and HOME are not set".to_owned()
        } else {
            looked.join("; ")
        };
        Err(not_found(format!(
            "neither a directory nor in the local Hugging Face cache ({looked}); nothing is downloaded: get it with \
             `hf download {id}`"
        )))
    }
}

/// `models--org--name/refs/main` names the commit, `snapshots/<commit>` holds the files.
fn snapshot(model: &Path) -> Result<PathBuf, String> {
    if !model.is_dir() {
        return Err(format!("{} does not exist", model.display()));
    }
    let reference = model.join("refs/main");
    let commit = std::fs::read_to_string(&reference)
        .map_err(|error| format!("{}: {error}", reference.display()))?;
    let commit = commit.trim();
    if commit.is_empty() || !commit.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(format!("{}: expected a commit", reference.display()));
    }
    let directory = model.join("snapshots").join(commit);
    if directory.is_dir() {
        Ok(directory)
    } else {
        Err(format!("{} does not exist", directory.display()))
    }
}

/// `name` or `org/name`, as the hub allows.
fn is_hub_id(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    };
    text.len() <= 96 && text.split('/').count() <= 2 && text.split('/').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_follow_the_environment_first_match_first() {
        let cache = HubCache::from_variables(|name| match name {
            "HF_HUB_CACHE" => Some("/a".into()),
            "HF_HOME" => Some("/b".into()),
            "XDG_CACHE_HOME" => Some("".into()),
            "HOME" => Some("/h".into()),
            _ => None,
        });
        let expected = ["/a", "/b/hub", "/h/.cache/huggingface/hub"].map(PathBuf::from).to_vec();
        assert_eq!(cache, HubCache::new(expected));
    }

    #[test]
    fn hub_ids_are_told_from_paths() {
        for id in ["org/name", "gpt2", "meta-llama/Llama-3.2-1B"] {
            assert!(is_hub_id(id), "{id}");
        }
        for path in ["/abs", "a/b/c", "../up", "./here", "", "org/", "a b"] {
            assert!(!is_hub_id(path), "{path}");
        }
    }

    #[test]
    fn with_no_cache_the_error_says_so() {
        let error = HubCache::default().resolve(Path::new("org/name")).expect_err("not there");
        assert_eq!(error.fault, CheckpointFault::NotFound);
        assert!(error.reason.contains("HF_HUB_CACHE"), "{error}");
    }
}
