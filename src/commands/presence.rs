//! How a command finds the nodes that serve on this machine: each keeps a file in a folder of its user's, and holds a lock on it.
//!
//! The folder is `$XDG_RUNTIME_DIR/inferno-node`, else `inferno-node-<uid>` where temporary files are; nobody else may write there. The
//! system gives up the lock of a process that ends in whatever way, so a file without one is stale. There is no secret in it.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// A longer file is none of ours.
const MAX_BYTES: u64 = 64 << 10;

/// What a node tells of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalNode {
    /// Its id.
    pub node: String,
    /// Its NATS, joined by commas; none without a bus.
    pub nats: Option<String>,
    /// First part of every subject.
    pub prefix: String,
    /// Where HTTP listens.
    pub http: Option<String>,
    /// The models that it started with.
    pub models: Vec<String>,
}

/// A node's file, which goes when this is dropped.
#[derive(Debug)]
pub struct Announcement {
    path: PathBuf,
    /// Its lock says that the node lives.
    _file: File,
}

impl Drop for Announcement {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Writes this process's file.
///
/// # Errors
/// Why there is none: the folder is not this user's alone, or the disk's reason.
pub fn announce(node: &LocalNode) -> io::Result<Announcement> {
    announce_in(&folder(), node)
}

/// The nodes that serve now, the newest first. Files of those that have ended are removed.
pub fn find() -> Vec<LocalNode> {
    find_in(&folder())
}

fn folder() -> PathBuf {
    let given = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    match given.filter(|folder| folder.is_absolute()) {
        Some(folder) => folder.join("inferno-node"),
        None => std::env::temp_dir().join(format!("inferno-node-{}", own_uid())),
    }
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Somebody else who can write there could send our requests anywhere.
fn is_private(folder: &Path) -> bool {
    let data = std::fs::symlink_metadata(folder);
    data.is_ok_and(|data| data.is_dir() && data.uid() == own_uid() && data.mode() & 0o077 == 0)
}

fn announce_in(folder: &Path, node: &LocalNode) -> io::Result<Announcement> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if !is_private(folder) {
        let text = format!("{}: expected a folder that is this user's alone", folder.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    let name = std::process::id();
    let (path, partial) = (folder.join(format!("{name}.json")), folder.join(format!("{name}.new")));
    let mut options = File::options();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    file.lock()?;
    file.write_all(&serde_json::to_vec(node)?)?;
    std::fs::rename(&partial, &path)?;
    Ok(Announcement { path, _file: file })
}

fn find_in(folder: &Path) -> Vec<LocalNode> {
    if !is_private(folder) {
        return Vec::new();
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let ours = paths.filter(|path| path.extension().is_some_and(|name| name == "json"));
    let mut found: Vec<(SystemTime, LocalNode)> = ours.filter_map(|path| read(&path)).collect();
    found.sort_by_key(|(since, _)| std::cmp::Reverse(*since));
    found.into_iter().map(|(_, node)| node).collect()
}

fn read(path: &Path) -> Option<(SystemTime, LocalNode)> {
    let file = File::open(path).ok()?;
    if !matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)) {
        // Nobody holds it: the node was killed.
        let _ = std::fs::remove_file(path);
        return None;
    }
    let since = file.metadata().and_then(|data| data.modified()).ok()?;
    let mut text = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut text).ok()?;
    Some((since, serde_json::from_slice(&text).ok()?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn node() -> LocalNode {
        LocalNode {
            node: "n1".to_owned(),
            nats: Some("nats://127.0.0.1:4222".to_owned()),
            prefix: "inferno.v1".to_owned(),
            http: None,
            models: vec!["demo".to_owned()],
        }
    }

    #[test]
    fn a_node_is_found_until_it_ends() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let folder = root.path().join("inferno-node");
        assert_eq!(find_in(&folder), []);
        let announcement = announce_in(&folder, &node()).expect("a folder of our own");
        assert_eq!(find_in(&folder), [node()]);
        let mode = std::fs::metadata(&announcement.path).expect("is there").mode() & 0o777;
        assert_eq!(mode, 0o600);
        drop(announcement);
        assert_eq!(find_in(&folder), []);
        assert_eq!(std::fs::read_dir(&folder).expect("is there").count(), 0);
    }

    #[test]
    fn what_a_killed_node_left_is_ignored_and_removed() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let folder = root.path().join("inferno-node");
        let announcement = announce_in(&folder, &node()).expect("a folder of our own");
        let left = folder.join("1.json");
        std::fs::copy(&announcement.path, &left).expect("copies");
        assert_eq!(find_in(&folder).len(), 1);
        assert!(!left.exists() && announcement.path.exists());
    }

    #[test]
    fn a_folder_that_others_can_write_to_is_trusted_by_nobody() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let folder = root.path().join("inferno-node");
        let announcement = announce_in(&folder, &node()).expect("a folder of our own");
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o770)).expect("ours");
        assert_eq!(find_in(&folder), []);
        let error = announce_in(&folder, &node()).expect_err("not alone");
        assert!(error.to_string().contains("this user's alone"), "{error}");
        drop(announcement);
    }
}
