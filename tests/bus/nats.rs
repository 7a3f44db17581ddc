//! A real nats-server for one test, on a free port, ended by its id when dropped.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running server.
pub struct NatsServer {
    dir: tempfile::TempDir,
    /// What stands before its own command.
    under: Vec<String>,
    extra: String,
    host: Ipv4Addr,
    port: u16,
    child: Option<Child>,
}

impl NatsServer {
    /// A server with defaults.
    pub fn start() -> Self {
        Self::with("")
    }

    /// A server with more lines of configuration.
    pub fn with(extra: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Self::started(dir, Vec::new(), extra.to_owned())
    }

    /// A server with JetStream; its store goes with it.
    pub fn with_jetstream(extra: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = dir.path().join("store");
        let extra = format!("jetstream {{ store_dir: {store:?} }}\n{extra}");
        Self::started(dir, Vec::new(), extra)
    }

    /// A server as a command starts it that takes its own as arguments, with more lines of configuration.
    pub fn under(command: Vec<String>, extra: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Self::started(dir, command, extra.to_owned())
    }

    fn started(dir: tempfile::TempDir, under: Vec<String>, extra: String) -> Self {
        Self::started_at(own_host(), dir, under, extra)
    }

    fn started_at(
        host: Ipv4Addr,
        dir: tempfile::TempDir,
        under: Vec<String>,
        extra: String,
    ) -> Self {
        let mut server = Self { dir, under, extra, host, port: 0, child: None };
        server.start_again();
        server
    }

    /// A server on 127.0.0.1, which certificates are for.
    pub fn on_localhost(extra: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Self::started_at(Ipv4Addr::LOCALHOST, dir, Vec::new(), extra.to_owned())
    }

    /// A port on which nothing listens yet: a server that is started there later.
    pub fn later() -> Self {
        let mut server = Self::start();
        server.kill();
        server
    }

    /// Starts it, on the port of before.
    pub fn start_again(&mut self) {
        let ports = self.dir.path().join("ports");
        let _ = std::fs::remove_dir_all(&ports);
        std::fs::create_dir_all(&ports).expect("a directory");
        let port = if self.port == 0 { -1 } else { i32::from(self.port) };
        let config = format!(
            "host: {}\nport: {port}\nports_file_dir: {:?}\n{}",
            self.host, ports, self.extra
        );
        let file = self.config_file();
        std::fs::write(&file, config).expect("writes");
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let mut words = self.under.iter().map(String::as_str).chain(["nats-server"]);
        let child = Command::new(words.next().expect("its own, at least"))
            .env("PATH", path)
            .args(words)
            .arg("-c")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nats-server is installed");
        self.child = Some(child);
        let deadline = Instant::now() + Duration::from_secs(20);
        self.port = loop {
            if let Some(port) = read_port(&ports)
                && std::net::TcpStream::connect((self.host, port)).is_ok()
            {
                break port;
            }
            assert!(Instant::now() < deadline, "nats-server answers");
            std::thread::sleep(Duration::from_millis(10));
        };
    }

    /// Has it read its configuration again, with these further lines instead of those before; who is connected may stay.
    pub fn reload(&mut self, extra: &str) {
        let file = self.config_file();
        let config = std::fs::read_to_string(&file).expect("reads");
        let base = config.strip_suffix(&self.extra).expect("as it was written");
        std::fs::write(&file, format!("{base}{extra}")).expect("writes");
        self.extra = extra.to_owned();
        self.signal("-HUP");
    }

    /// Stops it where it stands: its connections stay, and it takes and sends nothing until it is killed.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    /// Starts it on the port of before, with these further lines of configuration instead of those before.
    pub fn start_again_with(&mut self, extra: &str) {
        extra.clone_into(&mut self.extra);
        self.start_again();
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().expect("it runs").id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status();
        assert!(sent.is_ok_and(|status| status.success()));
    }

    fn config_file(&self) -> PathBuf {
        self.dir.path().join("nats.conf")
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Ends it as an operator does.
    pub fn stop(&mut self) {
        self.signal("-TERM");
        let deadline = Instant::now() + Duration::from_secs(20);
        let child = self.child.as_mut().expect("it runs");
        while child.try_wait().expect("a child").is_none() {
            assert!(Instant::now() < deadline, "nats-server ends");
            std::thread::sleep(Duration::from_millis(10));
        }
        self.child = None;
    }

    /// Takes away all that it has stored; it does not run.
    pub fn wipe(&self) {
        std::fs::remove_dir_all(self.dir.path().join("store")).expect("it has stored something");
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("nats://{}:{}", self.host, self.port)
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A loopback address of this process alone: nobody else takes the port of a server that is away.
fn own_host() -> Ipv4Addr {
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 77, high, low.clamp(1, 254))
}

fn read_port(dir: &Path) -> Option<u16> {
    let file = std::fs::read_dir(dir).ok()?.flatten().next()?;
    let ports: serde_json::Value =
        serde_json::from_slice(&std::fs::read(file.path()).ok()?).ok()?;
    ports["nats"][0].as_str()?.rsplit(':').next()?.parse().ok()
}
