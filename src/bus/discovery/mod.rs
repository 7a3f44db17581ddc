//! Discovery: which nodes there are on one NATS, in its key-value bucket `inferno_nodes`.
//!
//! ```text
//! Vitals → publisher ── each second ──▶ inferno_nodes/<node_id> ──▶ NodeReader → NodeTable (live, stale, gone)
//! ```
//!
//! * `entry` what a node says of itself · `claim` whether it may say it under its id · `table` what a reader knows of the nodes;
//!   these are pure
//! * `bucket` the calls of JetStream, each with a time limit · `publisher` the task that keeps the node's entry · `reader` the
//!   other side
//!
//! NATS 2.9 has no time limit for one key and says nothing when a message expires, so a reader tells a dead node by its silence.
//! Without JetStream nothing of this works, and all else does.

use std::time::Duration;

mod bucket;
mod claim;
mod entry;
mod publisher;
mod reader;
mod table;

pub use bucket::BucketFault;
pub use entry::{ModelState, NodeDevice, NodeEntry, NodeFacts, NodeModel};
pub(super) use publisher::{Discovery, DiscoveryStart};
pub use reader::NodeReader;
pub use table::{NodeState, NodeTable, SeenNode};

/// The bucket.
pub const BUCKET: &str = "inferno_nodes";

/// How often a node writes its entry.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// A node that said nothing for so long is stale: two heartbeats were lost, and the third is late.
pub const STALE_AFTER: Duration = Duration::from_secs(3);

/// A node that said nothing for so long is gone.
pub const GONE_AFTER: Duration = Duration::from_secs(10);
