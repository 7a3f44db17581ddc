//! A nats-server of the node's own: a child on loopback that ends with the node.
//!
//! A small shell stands between: it waits at a pipe whose other end only the node holds. When the node ends in whatever way, kill -9
//! included, the pipe closes, the shell ends the server and removes its temporary directory. What is not covered: a kill -9 of
//! that shell itself.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::bus::config::Config;
use crate::lifeline::Lifeline;

/// How long the child may take to answer.
const READY_DEADLINE: Duration = Duration::from_secs(15);
/// How long it may take to end.
const END_DEADLINE: Duration = Duration::from_secs(10);
/// Pause before a child that died is started again.
const RESTART_PAUSE: Duration = Duration::from_millis(500);

/// Runs `$2…` until it ends or standard input closes; in the second case `$1` is removed. The server is looked for in Debian's
/// `/usr/sbin` too, which is not in everybody's `PATH`.
const WATCH: &str = r#"
remove=$1; shift
PATH="$PATH:/usr/sbin:/usr/local/sbin"
exec 3<&0
"$@" 3<&- </dev/null & server=$!
{ read -r _ <&3; kill -TERM "$server" 2>/dev/null; exit 0; } & watch=$!
exec 3<&- </dev/null
wait "$server"; code=$?
kill "$watch" 2>/dev/null
wait "$watch" && rm -rf -- "$remove"
exit "$code"
"#;

/// Why there is no nats-server.
#[derive(Debug, thiserror::Error)]
pub enum ManagedError {
    /// A directory or file could not be written, or the shell not started.
    #[error("bus.managed: {0}")]
    Io(#[from] io::Error),
    /// It ended at once.
    #[error("bus.managed.binary: expected a nats-server that runs, got {binary:?}: {output}")]
    Ended {
        /// The program.
        binary: PathBuf,
        /// Its last words.
        output: String,
    },
    /// It runs but does not answer.
    #[error("bus.managed: expected an answer within {0:?}, got none")]
    Silent(Duration),
}

/// See the module. Dropped, it ends the server too, without waiting for that.
pub struct ManagedServer {
    url: String,
    stop: Option<oneshot::Sender<()>>,
    watcher: JoinHandle<()>,
}

/// What a child is started with.
struct Plan {
    binary: PathBuf,
    /// Configuration and ports file; a fresh directory, removed at the end.
    dir: PathBuf,
    store_dir: PathBuf,
    listen_port: u16,
    authorization: String,
}

impl ManagedServer {
    /// Starts a server and waits until it answers. The task that starts it again holds a lifeline beside `alive`.
    ///
    /// # Errors
    /// See [`ManagedError`].
    pub async fn start(config: &Config, alive: &Lifeline) -> Result<Self, ManagedError> {
        let mut plan = Plan::new(config)?;
        let (child, port) = plan.launch().await.inspect_err(|_| plan.remove())?;
        // Clients know this port: a child that replaces this one takes it again.
        plan.listen_port = port;
        let url = format!("nats://127.0.0.1:{port}");
        tracing::debug!(url, store_dir = %plan.store_dir.display(), "own nats-server");
        let (stop, stopping) = oneshot::channel();
        let alive = alive.beside("watcher of the own nats-server");
        let watcher = tokio::spawn(async move {
            watch(plan, child, stopping, &alive).await;
            alive.dismiss();
        });
        Ok(Self { url, stop: Some(stop), watcher })
    }

    /// The URL that it listens on.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Ends the server and waits for that.
    pub async fn stop(mut self) {
        // Dropping the sender is the signal.
        self.stop = None;
        if let Err(error) = (&mut self.watcher).await {
            tracing::error!(%error, "the task of the own nats-server failed");
        }
    }
}

impl Plan {
    fn new(config: &Config) -> io::Result<Self> {
        let dir = std::env::temp_dir().join(format!("inferno-nats-{}", uuid::Uuid::now_v7()));
        make_private_dir(&dir)?;
        let store_dir = match &config.managed.store_dir {
            Some(dir) => dir.clone(),
            None => dir.join("jetstream"),
        };
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let authorization = match (&config.user, &config.password, &config.token) {
            (Some(user), Some(password), _) => {
                let (user, password) = (quoted(user), quoted(password.expose()));
                format!("authorization {{ user: {user}, password: {password} }}\n")
            }
            (_, _, Some(token)) => {
                format!("authorization {{ token: {} }}\n", quoted(token.expose()))
            }
            _ => String::new(),
        };
        Ok(Self {
            binary: config.managed.binary.clone(),
            dir,
            store_dir,
            listen_port: config.managed.port,
            authorization,
        })
    }

    /// Starts a child; gives it and its port when it answers.
    async fn launch(&self) -> Result<(Guarded, u16), ManagedError> {
        let ports = self.dir.join("ports");
        // Ports of a child before this one would be read as this one's.
        let _ = std::fs::remove_dir_all(&ports);
        std::fs::create_dir_all(&ports)?;
        let config_file = self.dir.join("nats.conf");
        std::fs::write(&config_file, self.server_config(&ports))?;
        let mut child = Guarded::spawn(&self.binary, &config_file, &self.dir)?;
        let deadline = Instant::now() + READY_DEADLINE;
        loop {
            if let Some(port) = read_port(&ports)
                && tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
            {
                return Ok((child, port));
            }
            if child.has_ended().await {
                let output = child.last_words().await;
                return Err(ManagedError::Ended { binary: self.binary.clone(), output });
            }
            if Instant::now() >= deadline {
                child.end().await;
                return Err(ManagedError::Silent(READY_DEADLINE));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn server_config(&self, ports: &Path) -> String {
        let quoted = |path: &Path| serde_json::Value::from(path.to_string_lossy()).to_string();
        let port = match self.listen_port {
            0 => -1,
            port => i32::from(port),
        };
        format!(
            "host: 127.0.0.1\nport: {port}\nports_file_dir: {}\njetstream {{ store_dir: {} }}\n{}",
            quoted(ports),
            quoted(&self.store_dir),
            self.authorization
        )
    }
}

fn make_private_dir(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    // The configuration in it may hold a password.
    std::fs::DirBuilder::new().mode(0o700).create(dir)
}

#[derive(Deserialize)]
struct Ports {
    nats: Vec<String>,
}

/// The port from the file that nats-server writes when it listens.
fn read_port(dir: &Path) -> Option<u16> {
    let file = std::fs::read_dir(dir).ok()?.flatten().next()?;
    let ports: Ports = serde_json::from_slice(&std::fs::read(file.path()).ok()?).ok()?;
    ports.nats.first()?.rsplit(':').next()?.parse().ok()
}

/// Restarts a child that dies, until told to stop.
async fn watch(
    plan: Plan,
    mut child: Guarded,
    mut stopping: oneshot::Receiver<()>,
    alive: &Lifeline,
) {
    loop {
        tokio::select! {
            _ = &mut stopping => break,
            ended = child.wait() => {
                alive.look();
                let output = child.last_words().await;
                tracing::error!(%ended, output, "own nats-server ended; starting it again");
            }
        }
        child = loop {
            tokio::select! {
                _ = &mut stopping => return plan.remove(),
                () = tokio::time::sleep(RESTART_PAUSE) => {}
            }
            match plan.launch().await {
                Ok((child, _)) => break child,
                Err(error) => tracing::error!(%error, "own nats-server does not start"),
            }
        };
        tracing::info!("own nats-server is back");
    }
    child.end().await;
    plan.remove();
}

impl Plan {
    fn remove(&self) {
        // The shell has done it, unless it could not even start.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A child behind its shell.
struct Guarded {
    shell: Child,
    output: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Guarded {
    fn spawn(binary: &Path, config: &Path, remove: &Path) -> io::Result<Self> {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", WATCH, "inferno-nats"])
            .arg(remove)
            .arg(binary)
            .arg("-c")
            .arg(config)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C at a terminal is for the node, which still has something to say to its clients.
            .process_group(0);
        let mut shell = command.spawn()?;
        let output = Arc::new(Mutex::new(Vec::new()));
        let reader = shell.stderr.take().map(|err| tokio::spawn(keep(err, output.clone())));
        Ok(Self { shell, output, reader })
    }

    async fn has_ended(&mut self) -> bool {
        !matches!(self.shell.try_wait(), Ok(None))
    }

    async fn wait(&mut self) -> String {
        // Waiting must not close the pipe, which would end the child: `Child::wait` does.
        let pipe = self.shell.stdin.take();
        let ended = self.shell.wait().await;
        drop(pipe);
        match ended {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        }
    }

    /// The last lines of a child that has ended.
    async fn last_words(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            // A grandchild could keep the pipe open; the words are not worth more than this.
            let _ = tokio::time::timeout(Duration::from_secs(1), reader).await;
        }
        self.output.lock().unwrap_or_else(PoisonError::into_inner).join(" | ")
    }

    /// Closes the pipe and waits for the end.
    async fn end(&mut self) {
        drop(self.shell.stdin.take());
        if tokio::time::timeout(END_DEADLINE, self.shell.wait()).await.is_err() {
            tracing::error!("own nats-server does not end");
        }
    }
}

/// Keeps the last lines of what the child says, and logs them.
async fn keep(err: ChildStderr, output: Arc<Mutex<Vec<String>>>) {
    let mut lines = BufReader::new(err).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        tracing::debug!(target: "nats_server", "{line}");
        let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
        if output.len() == 5 {
            output.remove(0);
        }
        output.push(line);
    }
}
