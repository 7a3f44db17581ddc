//! Files mapped into memory: with `bridge.rs` the only place with `unsafe`.

use std::io;
use std::path::Path;

use crate::files;

/// A whole file, mapped read-only. Pages are read when they are touched and belong to the page cache, so a second
/// load of the same checkpoint costs no disk.
pub(super) struct MappedFile {
    /// `None` for an empty file, which cannot be mapped.
    map: Option<memmap2::Mmap>,
}

impl MappedFile {
    /// Maps the file at its length of this moment.
    ///
    /// # Errors
    /// Whatever opening or mapping gives; what is no regular file is refused.
    #[allow(unsafe_code)]
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let absent = || io::Error::new(io::ErrorKind::NotFound, "the file does not exist");
        let file = files::open(path)?.ok_or_else(absent)?;
        let metadata = file.metadata()?;
        if metadata.len() == 0 {
            return Ok(Self { map: None });
        }
        // SAFETY: the mapping is read-only and never handed out mutably. What `Mmap` asks beyond that, that nobody writes to or
        // shortens the file meanwhile, cannot be had from the system: checkpoints are written once and replaced by renaming, which
        // leaves the mapped file alone, and `model_path` says that a loaded model's files must not be changed in place. Every length
        // comes from the mapping, never from a header, so a file that is short from the start cannot be read beyond its end.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        // Tensors are copied front to back; a hint only, so a refusal does not matter.
        let _ = map.advise(memmap2::Advice::Sequential);
        Ok(Self { map: Some(map) })
    }

    /// The file's bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_files_and_refuses_what_is_none() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("f");
        std::fs::write(&path, b"abc").expect("writes");
        assert_eq!(MappedFile::open(&path).expect("maps").bytes(), b"abc");
        std::fs::write(&path, b"").expect("writes");
        assert_eq!(MappedFile::open(&path).expect("an empty file is a file").bytes(), b"");
        assert!(MappedFile::open(dir.path()).is_err());
        assert!(MappedFile::open(&dir.path().join("absent")).is_err());
    }
}
