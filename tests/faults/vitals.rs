//! What a process holds: memory, threads, descriptors.

/// A number of `/proc/<pid>/status`, such as `VmRSS` in kB; 0 of a process that has ended.
fn status(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Memory that is resident.
pub fn rss_bytes(pid: u32) -> u64 {
    status(pid, "VmRSS") << 10
}

/// Threads.
pub fn threads(pid: u32) -> u64 {
    status(pid, "Threads")
}

/// Open descriptors.
pub fn descriptors(pid: u32) -> u64 {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |entries| entries.count() as u64)
}
