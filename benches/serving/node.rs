//! The node under load: the real binary, on free loopback ports, with a nats-server of its own.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::load::ALIAS;

/// Until it is ready, and until it has ended.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Node {
    child: Option<Child>,
    dir: tempfile::TempDir,
    http: String,
    nats: String,
    nats_pid: u32,
    ready_after: Duration,
}

impl Node {
    /// One whose `sim` device costs nothing.
    pub fn start() -> Self {
        let costs = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/sim/zero.toml");
        Self::start_with(&format!(
            "[executor]\ndevices = [\"sim:0\"]\nsim_cost_model = {costs:?}\n\
             [batcher]\nmax_batch_size = 256\nmax_step_tokens = 4096\n"
        ))
    }

    /// With the demo model and these sections.
    pub fn start_with(sections: &str) -> Self {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
        Self::start_model(&format!("model_path = {demo:?}\n"), sections)
    }

    /// The same on a nats-server that there is.
    pub fn start_on(url: &str, sections: &str) -> Self {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
        let bus = format!("mode = \"external\"\nurl = \"{url}\"\n");
        Self::start_at(&bus, &format!("model_path = {demo:?}\n"), sections)
    }

    /// Starts it with a model of these keys and these sections, and waits until it takes requests.
    pub fn start_model(model: &str, sections: &str) -> Self {
        let mut node = Self::start_at("mode = \"managed\"\n", model, sections);
        node.nats_pid = nats_server_of(node.pid()).expect("the managed nats-server");
        node
    }

    /// The program, of whose settings the environment has none. Another build can be held against this one.
    pub fn command() -> Command {
        let program = std::env::var_os("BENCH_NODE")
            .unwrap_or_else(|| env!("CARGO_BIN_EXE_inferno-node").into());
        let mut command = Command::new(program);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("INFERNO_")) {
            command.env_remove(name);
        }
        command
    }

    fn start_at(bus: &str, model: &str, sections: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = format!(
            "[node]\nlog = \"warn\"\n\
             [[models]]\nname = \"{ALIAS}\"\n{model}\
             [bus]\n{bus}\
             [http]\nbind = \"127.0.0.1:0\"\n{sections}",
        );
        let file = dir.path().join("node.toml");
        std::fs::write(&file, config).expect("writes");
        let open = |name: &str| std::fs::File::create(dir.path().join(name)).expect("a file");
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let mut command = Self::command();
        let begin = Instant::now();
        let child = command
            .args(["serve", "--config"])
            .arg(&file)
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(open("ready"))
            .stderr(open("log"))
            .spawn()
            .expect("the node's binary starts");
        let (http, nats) = (String::new(), String::new());
        let ready_after = Duration::ZERO;
        let mut node = Self { child: Some(child), dir, http, nats, nats_pid: 0, ready_after };
        node.wait_ready();
        node.ready_after = begin.elapsed();
        node
    }

    fn wait_ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ready = self.read("ready");
            if ready.ends_with('\n') {
                let named = |name: &str| {
                    let value = ready.split_whitespace().find_map(|word| word.strip_prefix(name));
                    value.expect("the ready line names both doors").to_owned()
                };
                (self.http, self.nats) = (named("http="), named("nats="));
                return;
            }
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            let alive = ended.is_none() && Instant::now() < deadline;
            assert!(alive, "the node does not start:\n{}", self.read("log"));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    pub fn http(&self) -> &str {
        &self.http
    }

    pub fn nats(&self) -> &str {
        &self.nats
    }

    /// All gaps between two steps while sequences ran, from the node's metrics: how many, those of up to 50 µs, and their seconds.
    pub fn step_gaps(&self) -> [f64; 3] {
        let mut stream = TcpStream::connect(self.http.trim_start_matches("http://"))
            .expect("the node's HTTP door");
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("asks");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("answers");
        ["_count{", "_bucket{", "_sum{"].map(|part| {
            let is_it = |line: &&str| {
                line.starts_with(&format!("inferno_step_gap_seconds{part}"))
                    && (part != "_bucket{" || line.contains("le=\"0.00005\""))
            };
            let value = |line: &str| line.rsplit(' ').next()?.parse::<f64>().ok();
            text.lines().filter(is_it).filter_map(value).sum()
        })
    }

    /// From the start of the process to its ready line.
    pub fn ready_after(&self) -> Duration {
        self.ready_after
    }

    /// Bytes that its process holds in memory, those of mapped files among them, and the most that it ever held.
    pub fn memory(&self) -> [u64; 2] {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("Linux, and it lives");
        ["VmRSS:", "VmHWM:"].map(|name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
            1024 * kib.expect("a number of kB")
        })
    }

    /// Processor seconds so far of node, nats-server and this process.
    pub fn cpu_seconds(&self) -> [f64; 3] {
        [self.pid(), self.nats_pid, std::process::id()].map(cpu_seconds)
    }

    /// SIGTERM; it has to end well.
    pub fn stop(mut self) {
        let status = self.terminate();
        assert!(status, "the node ended badly:\n{}", self.read("log"));
    }

    /// Sends its process a signal, such as `-KILL`.
    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// The same to its nats-server.
    pub fn signal_nats(&self, name: &str) {
        signal(self.nats_pid, name);
    }

    fn terminate(&mut self) -> bool {
        let Some(mut child) = self.child.take() else { return true };
        // Gently, so that its nats-server ends with it.
        let asked = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
        let deadline = Instant::now() + PATIENCE;
        while asked.is_ok() && Instant::now() < deadline {
            if let Ok(Some(status)) = child.try_wait() {
                return status.success();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = child.kill();
        let _ = child.wait();
        false
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.terminate();
        if std::thread::panicking() {
            eprintln!("the node's log:\n{}", self.read("log"));
        }
    }
}

fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill").args([name, &pid.to_string()]).status();
    assert!(sent.is_ok_and(|status| status.success()), "kill {name}");
}

/// What stands behind the program's name, which may hold anything, in `/proc/<pid>/stat`: fields 3 and on.
fn stat(path: &Path) -> Option<Vec<String>> {
    let stat = std::fs::read_to_string(path.join("stat")).ok()?;
    Some(stat.rsplit(") ").next()?.split_whitespace().map(str::to_owned).collect())
}

fn cpu_seconds(pid: u32) -> f64 {
    // Linux counts in hundredths of a second for user space, whatever the kernel's own tick is.
    const TICKS: f64 = 100.0;
    let stat = stat(&Path::new("/proc").join(pid.to_string())).expect("Linux, and it lives");
    stat[11..13].iter().map(|ticks| ticks.parse::<f64>().expect("a number")).sum::<f64>() / TICKS
}

/// The nats-server under the node, with whatever stands between them.
fn nats_server_of(node: u32) -> Option<u32> {
    let processes = std::fs::read_dir("/proc").expect("Linux").flatten().map(|entry| entry.path());
    let servers = processes.filter(|path| {
        std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "nats-server")
    });
    let pids = servers.filter_map(|path| path.file_name()?.to_str()?.parse().ok());
    let parent = |pid: u32| stat(&Path::new("/proc").join(pid.to_string()))?.get(1)?.parse().ok();
    pids.into_iter().find(|pid| {
        std::iter::successors(Some(*pid), |pid| parent(*pid)).any(|ancestor| ancestor == node)
    })
}
