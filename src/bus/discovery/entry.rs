//! What a node says of itself in the bucket, from what it knows of itself; pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::digest::digest_of;
use crate::door::ModelInfo;
use crate::health::{HealthMessage, Status};
use crate::ids::DeviceId;
use crate::registrar::{Capabilities, NodeTraits};

/// The value of a node's key. JSON; members may be added.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeEntry {
    /// The node's id, which is the key.
    pub id: String,
    /// Of this process: the next one under the same id has another.
    pub life: String,
    /// The name of its machine.
    pub host: String,
    /// Where HTTP is, such as `http://10.0.0.5:8000`; on loopback, for its own machine alone. Empty without HTTP.
    pub addresses: Vec<String>,
    /// Of the program.
    pub version: String,
    /// When this was written, by the node's clock: RFC 3339, UTC, milliseconds. For people: readers go by their own clocks.
    pub timestamp: String,
    /// As in its health message.
    pub health: Status,
    /// Of the digests of its models: nodes on which it is equal stand in for each other.
    #[serde(default)]
    pub digest: String,
    /// Whether it takes requests.
    pub ready: bool,
    /// What it serves, or will in a moment.
    pub models: Vec<NodeModel>,
    /// What it computes on.
    pub devices: Vec<NodeDevice>,
    /// What it can do, in the words that Inferno's load balancers are told.
    pub capabilities: Vec<String>,
    /// Sequences on devices.
    pub running: u64,
    /// Sequences in the queue.
    pub waiting: u64,
    /// KV blocks that are free, of all devices.
    pub free_blocks: u64,
}

impl NodeEntry {
    /// As it is stored.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain fields serialise")
    }

    /// Where the node is, for a person.
    pub fn place(&self) -> String {
        match self.addresses.as_slice() {
            [] => format!("on {}", self.host),
            addresses => format!("on {} at {}", self.host, addresses.join(", ")),
        }
    }
}

/// A model of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeModel {
    /// The alias that clients use.
    pub name: String,
    /// How far it is.
    pub state: ModelState,
    /// Its kind, as the checkpoint names it; absent until it is loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_type: Option<String>,
    /// Longest prompt and completion together; absent until it is loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_seq_len: Option<u32>,
    /// Of all that its tokens depend on: a durable request goes on as if nothing had happened between nodes on which it is equal.
    /// Absent until it is loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Where it is.
    #[serde(default)]
    pub devices: Vec<String>,
}

/// How far a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelState {
    /// It takes no requests yet.
    Loading,
    /// It takes requests, if the node does.
    Ready,
}

/// A device of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDevice {
    /// Such as `cuda:0`.
    pub id: String,
    /// Takes work.
    pub up: bool,
    /// The name of the card, of a GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card: Option<String>,
    /// KV blocks that are free; none of a device that is not up.
    pub free_blocks: u32,
    /// All of them.
    pub total_blocks: u32,
}

/// What stays of a node as long as it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// Where HTTP listens.
    pub http: Option<SocketAddr>,
    /// What it can do.
    pub traits: NodeTraits,
    /// Words of the configuration beside that.
    pub capabilities: Vec<String>,
    /// The models that it starts with.
    pub models: Vec<String>,
}

/// Makes a node's entries.
#[derive(Debug)]
pub(super) struct EntryMaker {
    facts: NodeFacts,
    life: String,
    host: String,
    /// Every model that the node starts with has been there.
    has_started: bool,
}

impl EntryMaker {
    /// Of a process that calls itself `life`, on the machine `host`.
    pub fn new(facts: NodeFacts, life: String, host: String) -> Self {
        Self { facts, life, host, has_started: false }
    }

    /// The entry of a moment. `blocks` are free and all of each device; `own_ip` is the node's as NATS sees it, if it says so.
    pub fn entry(
        &mut self,
        message: HealthMessage,
        is_ready: bool,
        blocks: &BTreeMap<DeviceId, (u32, u32)>,
        own_ip: Option<IpAddr>,
    ) -> NodeEntry {
        let capabilities = Capabilities::of(self.facts.traits, &message.models);
        let models = self.models(&message.models);
        let devices = message.devices.iter().map(|device| {
            let (free, total) = blocks.get(&device.id).copied().unwrap_or_default();
            let card = device.gpu.as_ref().and_then(|gpu| gpu.card.as_ref());
            NodeDevice {
                id: device.id.as_str().to_owned(),
                up: device.up,
                card: card.map(|card| card.name.clone()),
                free_blocks: if device.up { free } else { 0 },
                total_blocks: total,
            }
        });
        let devices: Vec<NodeDevice> = devices.collect();
        NodeEntry {
            id: message.node_id,
            life: self.life.clone(),
            host: self.host.clone(),
            addresses: self
                .facts
                .http
                .map(|http| address(http, own_ip, &self.host))
                .into_iter()
                .collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            timestamp: message.timestamp,
            health: message.status,
            digest: digest(&models),
            ready: is_ready,
            models,
            free_blocks: devices.iter().map(|device| u64::from(device.free_blocks)).sum(),
            devices,
            capabilities: capabilities.words(&self.facts.capabilities),
            running: message.running,
            waiting: message.waiting,
        }
    }

    /// Those that are loaded, and at the start of the node those that are not yet.
    fn models(&mut self, loaded: &[ModelInfo]) -> Vec<NodeModel> {
        let ready = loaded.iter().map(|model| NodeModel {
            name: model.name.clone(),
            state: ModelState::Ready,
            model_type: Some(model.model_type.to_owned()),
            max_seq_len: Some(model.max_seq_len),
            digest: Some(model.digest.clone()),
            devices: model.devices.iter().map(|device| device.as_str().to_owned()).collect(),
        });
        let mut models: Vec<NodeModel> = ready.collect();
        if self.has_started {
            return models;
        }
        let is_loaded = |name: &&String| loaded.iter().any(|model| model.name == **name);
        let missing: Vec<_> = self.facts.models.iter().filter(|name| !is_loaded(name)).collect();
        self.has_started = missing.is_empty();
        models.extend(missing.into_iter().map(|name| NodeModel {
            name: name.clone(),
            state: ModelState::Loading,
            model_type: None,
            max_seq_len: None,
            digest: None,
            devices: Vec::new(),
        }));
        models
    }
}

fn digest(models: &[NodeModel]) -> String {
    let word = |model: &NodeModel| {
        format!("{} {}\n", model.name, model.digest.as_deref().unwrap_or_default())
    };
    let mut words: Vec<String> = models.iter().map(word).collect();
    words.sort();
    digest_of(words.concat().as_bytes())
}

/// Where others reach HTTP. A door on all addresses is reached at the one by which the node talks to NATS, else by the name of the
/// machine.
fn address(http: SocketAddr, own_ip: Option<IpAddr>, host: &str) -> String {
    let port = http.port();
    match (http.ip().is_unspecified(), own_ip) {
        (false, _) => format!("http://{http}"),
        (true, Some(ip)) => format!("http://{}", SocketAddr::new(ip, port)),
        (true, None) => format!("http://{host}:{port}"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::health::DeviceVitals;

    /// An entry of a node that has just started.
    pub fn entry(id: &str, life: &str) -> NodeEntry {
        let mut maker = EntryMaker::new(facts(None), life.to_owned(), "box".to_owned());
        maker.entry(message(id, Vec::new()), false, &BTreeMap::new(), None)
    }

    fn facts(http: Option<&str>) -> NodeFacts {
        NodeFacts {
            http: http.map(|http| http.parse().expect("an address")),
            traits: NodeTraits { max_batch_size: 8, gpu_count: 0, attention_backend: "flash" },
            capabilities: vec!["rack_7".to_owned()],
            models: vec!["a".to_owned(), "b".to_owned()],
        }
    }

    fn message(id: &str, models: Vec<ModelInfo>) -> HealthMessage {
        let device = |name: &str, up| DeviceVitals {
            id: DeviceId::new(name),
            up,
            lost: false,
            fault: None,
            rebuilds: 0,
            gpu: None,
        };
        HealthMessage {
            node_id: id.to_owned(),
            status: Status::Healthy,
            timestamp: "2026-11-30T00:00:00.000Z".to_owned(),
            checks: Vec::new(),
            models,
            devices: vec![device("cuda:0", true), device("cuda:1", false)],
            running: 2,
            waiting: 3,
            draining: false,
        }
    }

    fn model(name: &str) -> ModelInfo {
        ModelInfo {
            name: name.to_owned(),
            model_type: "llama",
            created: 0,
            max_seq_len: 8,
            devices: vec![DeviceId::new("cuda:0")],
            weight_bytes: 1,
            kv_bytes: 1,
            digest: String::new(),
        }
    }

    fn maker(http: Option<&str>) -> EntryMaker {
        EntryMaker::new(facts(http), "life".to_owned(), "box".to_owned())
    }

    #[test]
    fn an_entry_says_what_a_router_wants_to_know_and_comes_back_as_it_went() {
        let blocks = [("cuda:0", (7, 10)), ("cuda:1", (9, 10))];
        let blocks = blocks.map(|(id, both)| (DeviceId::new(id), both)).into();
        let mut maker = maker(Some("127.0.0.1:80"));
        let entry = maker.entry(message("n", vec![model("a")]), true, &blocks, None);
        assert_eq!((entry.running, entry.waiting, entry.ready), (2, 3, true));
        let free: Vec<u32> = entry.devices.iter().map(|device| device.free_blocks).collect();
        assert_eq!((free, entry.free_blocks), (vec![7, 0], 7), "a device that is down has no room");
        assert!(entry.capabilities.contains(&"model_type_llama".to_owned()), "{entry:?}");
        assert!(entry.capabilities.contains(&"rack_7".to_owned()), "{entry:?}");
        assert_eq!(entry.place(), "on box at http://127.0.0.1:80");
        let read: NodeEntry = serde_json::from_slice(&entry.to_json()).expect("an entry");
        assert_eq!(read, entry);
        let mut more: serde_json::Value = serde_json::from_slice(&entry.to_json()).expect("JSON");
        more["of_a_later_version"] = 1.into();
        assert_eq!(serde_json::from_value::<NodeEntry>(more).expect("an entry"), entry);
    }

    #[test]
    fn a_model_loads_until_the_node_has_started_and_is_there_or_not_after_that() {
        let mut maker = maker(None);
        let mut states = |models: &[&str]| -> Vec<(String, ModelState)> {
            let models = models.iter().map(|name| model(name)).collect();
            let entry = maker.entry(message("n", models), true, &BTreeMap::new(), None);
            entry.models.into_iter().map(|model| (model.name, model.state)).collect()
        };
        let of = |name: &str, state| (name.to_owned(), state);
        assert_eq!(states(&["b"]), [of("b", ModelState::Ready), of("a", ModelState::Loading)]);
        assert_eq!(states(&["b", "a"]), [of("b", ModelState::Ready), of("a", ModelState::Ready)]);
        assert_eq!(states(&["a"]), [of("a", ModelState::Ready)]);
    }

    #[test]
    fn a_door_on_all_addresses_is_reached_at_the_nodes_own() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let at =
            |http: &str, own| maker(Some(http)).facts.http.map(|http| address(http, own, "box"));
        let said = |text: &str| Some(text.to_owned());
        assert_eq!(at("127.0.0.1:80", Some(ip("10.0.0.5"))), said("http://127.0.0.1:80"));
        assert_eq!(at("0.0.0.0:80", Some(ip("10.0.0.5"))), said("http://10.0.0.5:80"));
        assert_eq!(at("[::]:80", Some(ip("fd00::5"))), said("http://[fd00::5]:80"));
        assert_eq!(at("0.0.0.0:80", None), said("http://box:80"));
        assert_eq!(entry("n", "l").place(), "on box");
    }
}
