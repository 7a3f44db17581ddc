//! The layout of the Hugging Face cache.

use std::path::{Path, PathBuf};

use inferno_node::checkpoint::{Checkpoint, CheckpointFault, HubCache, LoadFormat};

use crate::builder::tiny_config;

/// `models--org--tiny` in a cache, with `refs/main` as given; the snapshot's files are links into `blobs`, as the hub's tools do it.
fn hub_cache(reference: &str) -> (tempfile::TempDir, PathBuf) {
    let cache = tempfile::tempdir().expect("a temporary directory");
    let model = cache.path().join("models--org--tiny");
    let snapshot = model.join("snapshots/abc123");
    std::fs::create_dir_all(&snapshot).expect("makes");
    std::fs::create_dir_all(model.join("refs")).expect("makes");
    std::fs::create_dir_all(model.join("blobs")).expect("makes");
    std::fs::write(model.join("refs/main"), reference).expect("writes");
    std::fs::write(model.join("blobs/0f"), tiny_config().to_string()).expect("writes");
    std::os::unix::fs::symlink("../../blobs/0f", snapshot.join("config.json")).expect("links");
    (cache, snapshot)
}

#[test]
fn hub_ids_are_found_in_the_cache() {
    let (cache, snapshot) = hub_cache("abc123\n");
    let hub = HubCache::new(vec![PathBuf::from("/nonexistent"), cache.path().to_owned()]);
    assert_eq!(hub.resolve(Path::new("org/tiny")).expect("it is there"), snapshot);
    assert!(Checkpoint::open(&snapshot, LoadFormat::Dummy).is_ok());
    assert_eq!(hub.resolve(&snapshot).expect("a directory is taken as it is"), snapshot);
}

#[test]
fn what_is_not_there_is_refused_saying_where_was_looked() {
    let (cache, snapshot) = hub_cache("abc123");
    let hub = HubCache::new(vec![cache.path().to_owned()]);
    let refused = |hub: &HubCache, path: &Path, part: &str| {
        let error = hub.resolve(path).expect_err("not there");
        assert_eq!(error.fault, CheckpointFault::NotFound);
        assert!(error.to_string().contains(part), "{part} in {error}");
    };
    let other = format!("{}", cache.path().join("models--org--other").display());
    refused(&hub, Path::new("org/other"), &other);
    refused(&hub, Path::new("./no/such/dir"), "no such directory");
    refused(&hub, &snapshot.join("config.json"), "this is another file");
    for reference in ["../../etc", "", "ffff"] {
        let (cache, _) = hub_cache(reference);
        let hub = HubCache::new(vec![cache.path().to_owned()]);
        refused(&hub, Path::new("org/tiny"), "models--org--tiny");
    }
    std::fs::remove_file(cache.path().join("models--org--tiny/refs/main")).expect("removes");
    refused(&hub, Path::new("org/tiny"), "refs/main");
}
