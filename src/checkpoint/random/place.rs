//! The directory that a checkpoint is written into: refused if something is there, taken by one run at a time, and either whole at
//! the end or without the new files.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::RandomError;

/// Holds the files until all are written. On the same file system, so that renaming is all that is left to do.
const PARTIAL: &str = ".inferno-partial";
/// Room for the small files and the file system's own.
const SPARE_BYTES: u64 = 64 << 20;

/// A directory being written; what is not published goes when this is dropped.
pub(super) struct Place {
    directory: PathBuf,
    partial: PathBuf,
    /// The directory was not there before.
    is_new: bool,
    is_published: bool,
    /// Locked while this lives.
    _lock: File,
}

impl Place {
    /// Makes the directory if need be and takes it.
    pub(super) fn open(directory: &Path, force: bool) -> Result<Self, RandomError> {
        let io = |error| RandomError::io(directory)(error);
        let is_new = !directory.exists();
        fs::create_dir_all(directory).map_err(io)?;
        let lock = File::open(directory).map_err(io)?;
        // Where a file system has no locks, runs must keep apart by themselves.
        if let Err(TryLockError::WouldBlock) = lock.try_lock() {
            return Err(RandomError::InUse(directory.to_owned()));
        }
        let partial = directory.join(PARTIAL);
        // From here on a failure takes away what was made.
        let place = Self {
            directory: directory.to_owned(),
            partial: partial.clone(),
            is_new,
            is_published: false,
            _lock: lock,
        };
        for entry in fs::read_dir(directory).map_err(io)? {
            if entry.map_err(io)?.file_name() != PARTIAL && !force {
                return Err(RandomError::NotEmpty(directory.to_owned()));
            }
        }
        // Of a run that was killed.
        if partial.exists() {
            fs::remove_dir_all(&partial).map_err(RandomError::io(&partial))?;
        }
        fs::create_dir(&partial).map_err(RandomError::io(&partial))?;
        Ok(place)
    }

    /// Where files are written to.
    pub(super) fn partial(&self) -> &Path {
        &self.partial
    }

    /// Whether so much more can be written.
    pub(super) fn check_space(&self, bytes: u64) -> Result<(), RandomError> {
        let stat = rustix::fs::statvfs(&self.partial)
            .map_err(|error| RandomError::io(&self.directory)(error.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let need = bytes.saturating_add(SPARE_BYTES);
        if free >= need {
            return Ok(());
        }
        Err(RandomError::NoSpace { directory: self.directory.clone(), need, free })
    }

    /// Writes one of the small files; gives its path for now.
    pub(super) fn write_json(&self, name: &str, value: &Value) -> Result<PathBuf, RandomError> {
        let path = self.partial.join(name);
        let mut text = serde_json::to_vec_pretty(value)
            .map_err(|error| RandomError::io(&path)(io::Error::other(error)))?;
        text.push(b'\n');
        fs::write(&path, text).map_err(RandomError::io(&path))?;
        Ok(path)
    }

    /// Puts the files into their place in the order of `names`; the last one makes the checkpoint whole. What a former
    /// checkpoint had goes before, in the opposite sense: its `config.json` first.
    pub(super) fn publish(mut self, names: &[String]) -> Result<(), RandomError> {
        for path in self.former_files()? {
            fs::remove_file(&path).map_err(RandomError::io(&path))?;
        }
        for name in names {
            let path = self.directory.join(name);
            fs::rename(self.partial.join(name), &path).map_err(RandomError::io(&path))?;
        }
        self.is_published = true;
        Ok(())
    }

    /// Files of a checkpoint that is there already, `config.json` first.
    fn former_files(&self) -> Result<Vec<PathBuf>, RandomError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(RandomError::io(&self.directory))? {
            let entry = entry.map_err(RandomError::io(&self.directory))?;
            if entry.file_name().to_str().is_some_and(is_of_a_checkpoint) {
                found.push(entry.path());
            }
        }
        found.sort_by_key(|path| !path.ends_with("config.json"));
        Ok(found)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Nothing more can be done about what cannot be removed; the next run tries again.
        let _ = fs::remove_dir_all(&self.partial);
        if self.is_new && !self.is_published {
            let _ = fs::remove_dir(&self.directory);
        }
    }
}

/// What would be read beside the new files, or instead of them.
fn is_of_a_checkpoint(name: &str) -> bool {
    const NAMES: [&str; 9] = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "model.safetensors.index.json",
    ];
    NAMES.contains(&name) || name.ends_with(".safetensors")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).expect("reads").flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_not_published_leaves_nothing() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let directory = root.path().join("new");
        let place = Place::open(&directory, false).expect("opens");
        place.write_json("config.json", &json!({})).expect("writes");
        assert_eq!(names(&directory), [PARTIAL]);
        drop(place);
        assert!(!directory.exists());
        // One that was there stays.
        drop(Place::open(root.path(), false).expect("opens"));
        assert!(names(root.path()).is_empty());
    }

    #[test]
    fn a_killed_run_is_taken_over_and_a_running_one_is_not() {
        let root = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(root.path().join(PARTIAL)).expect("makes");
        fs::write(root.path().join(PARTIAL).join("model.safetensors"), b"half").expect("writes");
        let place = Place::open(root.path(), false).expect("opens");
        assert!(names(place.partial()).is_empty());
        let second = Place::open(root.path(), true);
        assert!(matches!(second, Err(RandomError::InUse(_))));
        assert!(place.partial().exists(), "the refused run touches nothing");
    }

    #[test]
    fn a_directory_with_files_is_only_taken_by_force_and_keeps_what_is_not_ours() {
        let root = tempfile::tempdir().expect("a temporary directory");
        for name in ["config.json", "model.safetensors", "chat_template.jinja", "notes.txt"] {
            fs::write(root.path().join(name), b"old").expect("writes");
        }
        let refused = Place::open(root.path(), false);
        assert!(matches!(refused, Err(RandomError::NotEmpty(_))));
        let place = Place::open(root.path(), true).expect("opens");
        place.write_json("config.json", &json!({"a": 1})).expect("writes");
        assert_eq!(fs::read(root.path().join("config.json")).expect("reads"), b"old");
        place.publish(&["config.json".to_owned()]).expect("publishes");
        assert_eq!(names(root.path()), ["config.json", "notes.txt"]);
    }

    #[test]
    fn what_the_disk_does_not_hold_is_refused() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let place = Place::open(root.path(), false).expect("opens");
        assert!(place.check_space(1).is_ok());
        let refused = place.check_space(u64::MAX / 2);
        assert!(matches!(refused, Err(RandomError::NoSpace { free, .. }) if free > 0));
    }

    #[test]
    fn a_file_is_no_directory() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let file = root.path().join("file");
        fs::write(&file, b"").expect("writes");
        assert!(matches!(Place::open(&file, true), Err(RandomError::Io { .. })));
        assert!(file.exists());
    }
}
