//! Nodes on one NATS, that are killed and started again.

use std::time::Duration;

use inferno_node::bus::client::Client;

use super::harness::{CPU, NodeProcess, external};
use super::jobs::wait_for_streams;
use super::link::Link;
use super::nats::NatsServer;

/// Places for as many requests on a node that two of three hold all of the largest test.
pub const ROOMY: &str = "[batcher]\nmax_batch_size = 512\nmax_step_tokens = 4096\n";

/// Nodes on a server with JetStream.
pub struct Fleet {
    pub nats: NatsServer,
    pub nodes: Vec<NodeProcess>,
    /// Of `sim` devices; the CPU's engine is as quick as it is.
    step_us: Option<u64>,
    sections: String,
    started: u32,
}

impl Fleet {
    /// So many nodes, each of whose steps takes so long, and further sections of their configuration.
    pub async fn start(count: u32, step_us: u64, sections: &str) -> Self {
        Self::empty(step_us, sections).with(count).await
    }

    /// Nodes with the CPU's engine.
    pub async fn start_engines(count: u32, sections: &str) -> Self {
        Self { step_us: None, ..Self::empty(0, sections) }.with(count).await
    }

    async fn with(mut self, count: u32) -> Self {
        for _ in 0..count {
            self.add();
        }
        self.wait_ready().await;
        self
    }

    /// The same, each at the end of a wire of its own.
    pub async fn start_on_links(count: u32, step_us: u64) -> (Self, Vec<Link>) {
        let (mut fleet, mut links) = (Self::empty(step_us, ROOMY), Vec::new());
        for _ in 0..count {
            let link = Link::to(&fleet.nats.url()).await;
            fleet.spawn(&link.url(), &[]);
            links.push(link);
        }
        fleet.wait_ready().await;
        (fleet, links)
    }

    /// A server, and no node yet.
    pub fn empty(step_us: u64, sections: &str) -> Self {
        Self::on(NatsServer::with_jetstream(""), step_us, sections)
    }

    /// The same on a server that there is.
    pub fn on(nats: NatsServer, step_us: u64, sections: &str) -> Self {
        let sections = sections.to_owned();
        Self { nats, nodes: Vec::new(), step_us: Some(step_us), sections, started: 0 }
    }

    /// One more, started and not waited for.
    pub fn add(&mut self) {
        self.spawn(&self.nats.url(), &[]);
    }

    /// One more with these variables in its environment.
    pub fn add_with(&mut self, variables: &[(&str, &str)]) {
        self.spawn(&self.nats.url(), variables);
    }

    fn spawn(&mut self, url: &str, variables: &[(&str, &str)]) {
        self.started += 1;
        let bus = external(url, &format!("node-{}", self.started));
        let sections = format!("{}{bus}", self.sections);
        self.nodes.push(match self.step_us {
            Some(step_us) => {
                NodeProcess::spawn_sim_with_variables(&costs(step_us), variables, &sections)
            }
            None => NodeProcess::spawn_with_variables(variables, &format!("{CPU}{sections}")),
        });
    }

    /// Waits until all of them take durable requests.
    pub async fn wait_ready(&mut self) {
        let mut nodes = std::mem::take(&mut self.nodes);
        // On a thread of its own: the wires of this test carry what the nodes say meanwhile.
        let ready = tokio::task::spawn_blocking(|| {
            nodes.iter_mut().for_each(NodeProcess::wait_ready);
            nodes
        });
        self.nodes = ready.await.expect("they get ready");
        wait_for_streams(&self.connection().await).await;
    }

    /// Ends a node, and has another start in its place: `-KILL`, or `-TERM`, which it takes as a drain.
    pub fn replace(&mut self, at: usize, signal: &str) {
        let mut node = self.nodes.remove(at);
        node.signal(signal);
        self.add();
        node.wait();
    }

    /// What a client's program has.
    pub async fn client(&self) -> Client {
        Client::over(self.connection().await, "inferno.v1")
    }

    /// A connection that comes back however long NATS is away.
    pub async fn connection(&self) -> async_nats::Client {
        connection(&self.nats.url()).await
    }
}

/// Of a `sim` device that has blocks for all seats.
pub fn costs(step_us: u64) -> String {
    format!("step_us = {step_us}\nnum_blocks = 65536\n")
}

/// A connection that hears of many streams.
async fn connection(url: &str) -> async_nats::Client {
    let options = async_nats::ConnectOptions::new()
        .retry_on_initial_connect()
        .subscription_capacity(1 << 16)
        .reconnect_delay_callback(|_| Duration::from_millis(100));
    options.connect(url).await.expect("tried for ever")
}
