//! Files mapped into memory: with `bridge.rs` the only place with `unsafe`.

use std::io;
use std::path::Path;

use crate::files;

/// At least as large as any system's.
const PAGE: usize = 64 << 10;

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

    /// Gives back the memory of whole pages of a range of the file; who reads them again finds them in the page cache.
    #[allow(unsafe_code)]
    pub(super) fn release(&self, range: std::ops::Range<usize>) {
        let Some(map) = &self.map else { return };
        let whole = range.start.next_multiple_of(PAGE)..range.end.min(map.len()) / PAGE * PAGE;
        if whole.is_empty() {
            return;
        }
        // SAFETY: pages of a file that are mapped read-only have no contents of their own to lose.
        let _ = unsafe {
            map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, whole.start, whole.len())
        };
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
        let long: Vec<u8> = (0..3 * PAGE + 5).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &long).expect("writes");
        let mapped = MappedFile::open(&path).expect("maps");
        for range in [0..0, 3..PAGE, 1..3 * PAGE, PAGE..usize::MAX] {
            assert_eq!(mapped.bytes(), long);
            mapped.release(range);
        }
        assert_eq!(mapped.bytes(), long, "what was given back is read again");
        std::fs::write(&path, b"").expect("writes");
        assert_eq!(MappedFile::open(&path).expect("an empty file is a file").bytes(), b"");
        assert!(MappedFile::open(dir.path()).is_err());
        assert!(MappedFile::open(&dir.path().join("absent")).is_err());
    }
}
