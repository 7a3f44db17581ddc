//! Files of a folder that anybody may have made: regular ones, and what is wrong with others said in words.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

/// What a pointer of git LFS begins with.
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Longer than any pointer.
const MAX_POINTER_LEN: u64 = 1024;

/// Opens a regular file; none if nothing is there.
///
/// # Errors
/// In words: a link that leads nowhere, what is no regular file (a FIFO is not waited for), a pointer of git LFS in place of the file, or
/// what the system says.
pub fn open(path: &Path) -> io::Result<Option<File>> {
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits();
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(nonblocking.cast_signed());
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match std::fs::read_link(path) {
                Ok(target) => Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    format!(
                        "a link to {}, where nothing is: download the file again, or copy the folder with what its links lead to",
                        target.display()
                    ),
                )),
                Err(_) => Ok(None),
            };
        }
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    if metadata.len() <= MAX_POINTER_LEN && is_pointer(&file)? {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a pointer of git LFS, not the file itself: fetch it with `git lfs pull`",
        ));
    }
    Ok(Some(file))
}

fn is_pointer(file: &File) -> io::Result<bool> {
    let mut begin = [0; POINTER.len()];
    match file.read_exact_at(&mut begin, 0) {
        Ok(()) => Ok(begin == POINTER),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads a regular file; none if nothing is there.
///
/// # Errors
/// As [`open`], or that it has more than `max` bytes.
pub fn read(path: &Path, max: u64) -> io::Result<Option<Vec<u8>>> {
    let Some(file) = open(path)? else { return Ok(None) };
    let len = file.metadata()?.len();
    if len > max {
        let text = format!("{len} bytes, expected at most {max}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
    // It may have grown since.
    file.take(max).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_regular_file_is_said_and_not_waited_for() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let at = |name: &str| dir.path().join(name);
        assert!(matches!(read(&at("absent"), 10), Ok(None)));
        std::fs::write(at("file"), "abc").expect("writes");
        assert_eq!(read(&at("file"), 10).expect("reads").as_deref(), Some(&b"abc"[..]));
        let refused = |path: &Path| read(path, 2).expect_err("refused").to_string();
        assert_eq!(refused(&at("file")), "3 bytes, expected at most 2");
        let fifo = std::process::Command::new("mkfifo").arg(at("fifo")).status();
        assert!(fifo.expect("mkfifo runs").success());
        for irregular in [at("fifo"), dir.path().to_owned(), "/dev/null".into()] {
            assert_eq!(refused(&irregular), "not a regular file", "{irregular:?}");
        }
        std::os::unix::fs::symlink("nowhere", at("link")).expect("links");
        let error = read(&at("link"), 2).expect_err("leads nowhere");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("nowhere"), "{error}");
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
        std::fs::write(at("pointer"), pointer).expect("writes");
        assert!(refused(&at("pointer")).contains("git lfs pull"));
    }
}
