//! A double of one of Inferno's load balancers: keeps what it is told, and answers as the test wants.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// How it answers.
#[derive(Debug, Clone, Default)]
pub enum Behaviour {
    /// As Inferno does: 200 to an id that is new, 500 to one that it has.
    #[default]
    Inferno,
    /// Like it, but knows the short form alone.
    ShortFormOnly,
    /// This, always.
    Answer(u16, &'static str),
    /// The head and half of the body that it tells of.
    HalfABody,
    /// Nothing, and leaves the connection open.
    Nothing,
    /// Nothing, and closes.
    Hangup,
}

/// One registration that came.
#[derive(Debug, Clone)]
pub struct Registration {
    pub authorization: Option<String>,
    pub host: String,
    pub body: Value,
}

impl Registration {
    /// What both forms say.
    pub fn node(&self) -> &Value {
        if self.body["node"].is_object() { &self.body["node"] } else { &self.body }
    }
}

#[derive(Default)]
struct Known {
    behaviour: Behaviour,
    nodes: BTreeMap<String, Value>,
    came: Vec<Registration>,
}

/// See the module. Ends with its owner.
pub struct LoadBalancer {
    address: SocketAddr,
    known: Arc<Mutex<Known>>,
    accepting: JoinHandle<()>,
}

impl Drop for LoadBalancer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl LoadBalancer {
    /// On a free port.
    pub async fn start(behaviour: Behaviour) -> Self {
        Self::start_at("127.0.0.1:0".parse().expect("an address"), behaviour).await
    }

    pub async fn start_at(address: SocketAddr, behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let known = Arc::new(Mutex::new(Known { behaviour, ..Known::default() }));
        let shared = known.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, shared.clone()));
            }
        });
        Self { address, known, accepting }
    }

    pub fn address(&self) -> String {
        self.address.to_string()
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn behave(&self, behaviour: Behaviour) {
        self.known().behaviour = behaviour;
    }

    /// As after a restart, or a node whose port failed.
    pub fn forget(&self) {
        self.known().nodes.clear();
    }

    /// All that came.
    pub fn came(&self) -> Vec<Registration> {
        self.known().came.clone()
    }

    /// Waits until it has the node; gives what it has of it.
    pub async fn wait_for(&self, id: &str) -> Value {
        self.until(&format!("it has {id}"), |known| known.nodes.get(id).cloned()).await
    }

    /// Waits until that many registrations have come.
    pub async fn wait_until_asked(&self, times: usize) {
        let is_asked = |known: &Known| (known.came.len() >= times).then_some(());
        self.until(&format!("{times} registrations"), is_asked).await;
    }

    async fn until<T>(&self, what: &str, is_so: impl Fn(&Known) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = is_so(&self.known());
            if let Some(found) = found {
                return found;
            }
            assert!(Instant::now() < deadline, "not in time: {what}; came: {:?}", self.came());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("no panic while it is held")
    }
}

/// One connection with one request.
async fn serve(mut stream: TcpStream, known: Arc<Mutex<Known>>) {
    let Some(registration) = read(&mut stream).await else { return };
    let behaviour = known.lock().expect("no panic").behaviour.clone();
    known.lock().expect("no panic").came.push(registration.clone());
    let (status, body) = match behaviour {
        Behaviour::Inferno => take(&known, &registration),
        Behaviour::ShortFormOnly if registration.body["id"].is_string() => {
            take(&known, &registration)
        }
        Behaviour::ShortFormOnly => {
            (400, json!({"error": "Invalid registration data format"}).to_string())
        }
        Behaviour::Answer(status, body) => (status, body.to_owned()),
        Behaviour::HalfABody => {
            let half = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"status\":\"registered\"";
            let _ = stream.write_all(half.as_bytes()).await;
            return;
        }
        Behaviour::Nothing => {
            tokio::time::sleep(PATIENCE).await;
            return;
        }
        Behaviour::Hangup => return,
    };
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    // The node may have given up.
    let _ = stream.write_all(answer.as_bytes()).await;
}

fn take(known: &Mutex<Known>, registration: &Registration) -> (u16, String) {
    let mut known = known.lock().expect("no panic");
    let node = registration.node().clone();
    let id = node["id"].as_str().expect("an id").to_owned();
    let is_update = registration.body["action"] == "update";
    if known.nodes.contains_key(&id) && !is_update {
        let text = format!("Registration failed: Backend already exists: {id}");
        return (500, json!({"error": text}).to_string());
    }
    known.nodes.insert(id.clone(), node.clone());
    if registration.body["id"].is_string() {
        return (200, json!({"status": "registered"}).to_string());
    }
    let status = if is_update { "updated" } else { "registered" };
    let own = json!({"id": "proxy-1", "address": "10.0.0.9:8080", "metrics_port": 6100,
                     "node_type": "proxy", "is_load_balancer": true, "last_updated": 7});
    (200, json!({"status": status, "message": "x", "peers": [own, node]}).to_string())
}

async fn read(stream: &mut TcpStream) -> Option<Registration> {
    let mut bytes = Vec::new();
    loop {
        let mut piece = [0; 4_096];
        let len = stream.read(&mut piece).await.ok().filter(|len| *len > 0)?;
        bytes.extend_from_slice(&piece[..len]);
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        assert!(head.starts_with("POST /registration HTTP/1.1\r\n"), "{head}");
        let header = |name: &str| {
            let lines = head.lines().filter_map(|line| line.split_once(": "));
            let mut found = lines.filter(|(of, _)| of.eq_ignore_ascii_case(name));
            found.next().map(|(_, value)| value.to_owned())
        };
        let length: usize = header("content-length")?.parse().ok()?;
        if body.len() >= length {
            return Some(Registration {
                authorization: header("authorization"),
                host: header("host").unwrap_or_default(),
                body: serde_json::from_str(body).expect("JSON"),
            });
        }
    }
}
