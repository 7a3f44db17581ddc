//! A node process for one test.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use inferno_node::bus::client::{Client, ClientError, Generation};
use inferno_node::request::Event;
use serde_json::{Value, json};

/// Until a debug build with a loaded machine is up, or has ended.
const PATIENCE: Duration = Duration::from_secs(60);

/// The demo model on the CPU.
pub const CPU: &str = "[executor]\nthreads = 1\n";

/// The node's program, with none of the caller's configuration.
pub fn program() -> Command {
    let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new(env!("CARGO_BIN_EXE_inferno-node"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("INFERNO_")) {
        command.env_remove(name);
    }
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env("PATH", path);
    // Or a killed node's file lies in the user's own.
    command.env("XDG_RUNTIME_DIR", env!("CARGO_TARGET_TMPDIR"));
    command
}

/// A running node.
pub struct NodeProcess {
    child: Option<Child>,
    dir: tempfile::TempDir,
    ready: String,
}

impl NodeProcess {
    /// A node of the demo model with these further sections, ready for requests. HTTP is on a free port.
    pub fn start(sections: &str) -> Self {
        let mut node = Self::spawn(sections);
        node.wait_ready();
        node
    }

    /// The same with a `sim` device whose every step takes `step_us`.
    pub fn start_sim(step_us: u64, sections: &str) -> Self {
        let mut node = Self::spawn_sim(step_us, sections);
        node.wait_ready();
        node
    }

    /// Started, not waited for.
    pub fn spawn_sim(step_us: u64, sections: &str) -> Self {
        Self::spawn_sim_that(&format!("step_us = {step_us}\nnum_blocks = 4096\n"), sections)
    }

    /// The same with other costs than those of steps, too.
    pub fn spawn_sim_that(costs_are: &str, sections: &str) -> Self {
        Self::spawn_sim_with_variables(costs_are, &[], sections)
    }

    /// The same with these variables in its environment.
    pub fn spawn_sim_with_variables(
        costs_are: &str,
        variables: &[(&str, &str)],
        sections: &str,
    ) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let costs = dir.path().join("costs.toml");
        std::fs::write(&costs, costs_are).expect("writes");
        let executor =
            format!("[executor]\ndevices = [\"sim:0\"]\nsim_cost_model = {:?}\n", costs.display());
        let mut command = Self::serving(&dir, &format!("{executor}{sections}"));
        command.envs(variables.iter().copied());
        Self::run_in(dir, command)
    }

    /// A node of the demo model with these variables in its environment; started, not waited for.
    pub fn spawn_with_variables(variables: &[(&str, &str)], sections: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut command = Self::serving(&dir, sections);
        command.envs(variables.iter().copied());
        Self::run_in(dir, command)
    }

    fn spawn(sections: &str) -> Self {
        Self::spawn_in(tempfile::tempdir().expect("a temporary directory"), sections)
    }

    /// A node of which the part of this name panics with its next work. Only a debug build can.
    #[cfg(debug_assertions)]
    pub fn start_that_panics(name: &str, sections: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut command = Self::serving(&dir, sections);
        command.env("PANIC_FOR_TEST", name);
        let mut node = Self::run_in(dir, command);
        node.wait_ready();
        node
    }

    fn spawn_in(dir: tempfile::TempDir, sections: &str) -> Self {
        let command = Self::serving(&dir, sections);
        Self::run_in(dir, command)
    }

    fn serving(dir: &tempfile::TempDir, sections: &str) -> Command {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let model = root.join("models/demo");
        let mut config = format!(
            "[http]\nbind = \"127.0.0.1:0\"\n[[models]]\nname = \"demo\"\nmodel_path = {model:?}\n"
        );
        config.push_str(sections);
        let file = dir.path().join("node.toml");
        std::fs::write(&file, config).expect("writes");
        let mut command = program();
        command.args(["serve", "--config"]).arg(&file);
        command
    }

    /// Starts a command that serves, not waited for; what it says goes into `dir`.
    pub fn run_in(dir: tempfile::TempDir, command: Command) -> Self {
        let log = std::fs::File::create(dir.path().join("log")).expect("a file");
        Self::run_with(dir, command, log)
    }

    /// The same with another place for what it says on standard error.
    pub fn run_with(dir: tempfile::TempDir, mut command: Command, log: std::fs::File) -> Self {
        let child = command
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(dir.path().join("ready")).expect("a file"))
            .stderr(log)
            .spawn()
            .expect("the node's binary starts");
        Self { child: Some(child), dir, ready: String::new() }
    }

    /// Waits for the line that says where the node is.
    pub fn wait_ready(&mut self) {
        let file = self.dir.path().join("ready");
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.ready = std::fs::read_to_string(&file).unwrap_or_default();
            if self.ready.ends_with('\n') {
                return;
            }
            if let Some(status) = self.child.as_mut().and_then(|c| c.try_wait().ok().flatten()) {
                panic!("the node ended with {status}:\n{}", self.log());
            }
            assert!(Instant::now() < deadline, "not ready:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn announced(&self, name: &str) -> String {
        let prefix = format!("{name}=");
        let value = self.ready.split_whitespace().find_map(|word| word.strip_prefix(&prefix));
        value.unwrap_or_else(|| panic!("no {name} in {:?}", self.ready)).to_owned()
    }

    /// What it said on standard output.
    pub fn ready_line(&self) -> &str {
        self.ready.trim_end()
    }

    /// Its id.
    pub fn id(&self) -> String {
        self.announced("node")
    }

    /// Its HTTP base, such as `http://127.0.0.1:4000`.
    pub fn http(&self) -> String {
        self.announced("http")
    }

    /// Its NATS.
    pub fn nats(&self) -> String {
        self.announced("nats")
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// The lines of its log with this message.
    pub fn said(&self, message: &str) -> Vec<Value> {
        let lines = json_lines(&self.log());
        lines.into_iter().filter(|line| line["fields"]["message"] == message).collect()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// SIGTERM, SIGKILL.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.pid().to_string()]).status();
        assert!(status.is_ok_and(|status| status.success()), "kill {name}");
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        let child = self.child.as_mut();
        child.is_none_or(|child| child.try_wait().expect("its own child").is_some())
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        let child = self.child.as_mut().expect("not waited for before");
        loop {
            if let Some(status) = child.try_wait().expect("its own child") {
                self.child = None;
                return status;
            }
            assert!(Instant::now() < deadline, "the node does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A POST of a JSON body.
    pub async fn post(&self, path: &str, body: &Value) -> reqwest::Response {
        let request = reqwest::Client::new().post(format!("{}{path}", self.http())).json(body);
        request.timeout(PATIENCE).send().await.expect("the node answers")
    }

    /// A GET of JSON.
    pub async fn get(&self, path: &str) -> (u16, Value) {
        let request = reqwest::Client::new().get(format!("{}{path}", self.http()));
        let reply = request.timeout(PATIENCE).send().await.expect("answers");
        let status = reply.status().as_u16();
        (status, reply.json().await.unwrap_or(Value::Null))
    }

    /// The value of the first series of `/metrics` with all of these words; 0 if there is none yet.
    pub async fn metric(&self, words: &[&str]) -> f64 {
        let page = reqwest::get(format!("{}/metrics", self.http())).await.expect("answers");
        let page = page.text().await.expect("text");
        let has_all =
            |line: &&str| !line.starts_with('#') && words.iter().all(|word| line.contains(word));
        let value = page.lines().find(has_all).and_then(|line| line.rsplit(' ').next());
        value.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// Waits until the health message says so.
    pub async fn wait_health(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (_, health) = self.get("/v1/health").await;
            if is_so(&health) {
                return health;
            }
            assert!(Instant::now() < deadline, "not {what}: {health}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Gently first, so that its nats-server ends with it.
            let _ = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
            let deadline = Instant::now() + Duration::from_secs(5);
            while child.try_wait().ok().flatten().is_none() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "the node's log:\n{}", self.log());
        }
    }
}

/// A log, each line of which is JSON.
pub fn json_lines(log: &str) -> Vec<Value> {
    let line =
        |line: &str| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
    log.lines().map(line).collect()
}

/// `[bus]` of a node on a server that the test started.
pub fn external(url: &str, id: &str) -> String {
    format!("[bus]\nmode = \"external\"\nurl = \"{url}\"\n[node]\nid = \"{id}\"\n")
}

/// A NATS client of the project's own.
pub async fn client(url: &str) -> Client {
    Client::over(async_nats::connect(url).await.expect("NATS is there"), "inferno.v1")
}

/// A request of `max_tokens` that ends by length.
pub fn request(max_tokens: u32, seed: u64) -> Value {
    json!({
        "prompt": "Once upon a time",
        "params": {"max_tokens": max_tokens, "ignore_eos": true, "seed": seed},
    })
}

/// A whole stream: ids, text, last event.
pub async fn collect(
    generation: &mut Generation,
) -> Result<(Vec<u32>, String, Event), ClientError> {
    let (mut token_ids, mut text, mut last) = (Vec::new(), String::new(), None);
    while let Some(event) = generation.next().await? {
        token_ids.extend(&event.token_ids);
        text.push_str(&event.text);
        last = Some(event);
    }
    Ok((token_ids, text, last.expect("a stream has a last event")))
}

/// The processes whose parent is `pid`.
pub fn children_of(pid: u32) -> Vec<PathBuf> {
    let parent = |path: &Path| -> Option<u32> {
        let stat = std::fs::read_to_string(path.join("stat")).ok()?;
        stat.rsplit(") ").next()?.split_whitespace().nth(1)?.parse().ok()
    };
    let processes = std::fs::read_dir("/proc").expect("Linux").flatten().map(|entry| entry.path());
    processes.filter(|path| parent(path) == Some(pid)).collect()
}

/// A copy of the demo model without weights, and its section of the configuration.
pub struct ModelCopy {
    pub folder: PathBuf,
    pub section: String,
}

impl ModelCopy {
    pub fn named(name: &str, within: &Path) -> Self {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
        let folder = within.join(name);
        std::fs::create_dir(&folder).expect("a folder");
        for file in
            ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
        {
            std::fs::copy(demo.join(file), folder.join(file)).expect("copies");
        }
        let section = format!(
            "[[models]]\nname = \"{name}\"\nload_format = \"dummy\"\nmodel_path = {folder:?}\n"
        );
        Self { folder, section }
    }

    pub fn edit(self, file: &str, edit: impl FnOnce(&mut Value)) -> Self {
        let path = self.folder.join(file);
        let mut value =
            serde_json::from_slice(&std::fs::read(&path).expect("reads")).expect("JSON");
        edit(&mut value);
        std::fs::write(&path, value.to_string()).expect("writes");
        self
    }
}
