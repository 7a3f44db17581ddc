//! Scheduler: one, on its own arbiter; owns the waiting queue.
//!
//! Accepts [`Enqueue`] from admission, [`Credit`] and [`Returned`] from batchers, [`DeviceUp`] and [`DeviceDown`] from the node,
//! [`SweepQueue`] after a cancel. Assigns late: a sequence leaves the queue only when a device has credit for it.
//!
//! `actor.rs` is the shell; [`Scheduling`] is the policy: `queue.rs` says who is next, `devices.rs` who can take it, and
//! `prefix_index.rs` guesses who has its beginning cached.

use actix::{Message, Recipient};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::batcher::Assign;
pub use crate::batcher::{Credit, Returned};
use crate::ids::DeviceId;
use crate::reply::SharedStream;
use crate::sequence::Sequence;
use crate::settings;

mod actor;
#[cfg(test)]
mod actor_tests;
mod devices;
mod policy;
mod prefix_index;
mod queue;

pub use actor::{Scheduler, SchedulerStart};
pub use policy::{Assignment, Leaving, Refusal, Scheduling};

/// A sequence that admission has let in.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Enqueue {
    /// What to run.
    pub sequence: Sequence,
    /// Where its tokens go.
    pub stream: SharedStream,
}

/// A device can be given work, on this address.
#[derive(Message)]
#[rtype(result = "()")]
pub struct DeviceUp {
    /// The device.
    pub device: DeviceId,
    /// Counts the builds of its actors.
    pub generation: u64,
    /// Its batcher.
    pub batcher: Recipient<Assign>,
}

/// A device takes no work until a later build of it is up.
#[derive(Message)]
#[rtype(result = "()")]
pub struct DeviceDown {
    /// The device.
    pub device: DeviceId,
    /// Which build of its actors, so that a late message does not hit the next one.
    pub generation: u64,
    /// Whether it will not be built again.
    pub lost: bool,
}

/// Look for waiting sequences that want no more; a hint, also done on a timer.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SweepQueue;

/// Settings of the scheduler: section `[scheduler]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Seconds of waiting that lift a sequence by one priority level. With 10, what came with the lowest priority
    /// goes before everything after 70 s, within the two minutes that clients usually wait. Less makes priorities matter less under
    /// load; more lets low ones wait longer.
    #[schemars(range(min = 0.001, max = 86_400))]
    pub ageing_s: f64,
    /// Milliseconds for which smaller sequences may pass one that has too few KV blocks on every device; after
    /// that a device takes no others of its model until it fits. Less leaves blocks unused, more lets long prompts wait.
    #[schemars(range(max = 3_600_000))]
    pub patience_ms: u64,
    /// Seconds that sequences wait for a device that serves their model, then fail as `unavailable`. Must be longer
    /// than the rebuilding of a failed device takes.
    #[schemars(range(max = 86_400))]
    pub unavailable_after_s: u64,
    /// Prefix blocks of 16 tokens that are remembered for each device, to send prompts where their beginning is cached; 0 is
    /// off. Each takes about 50 bytes; too few forget what the device still has.
    #[schemars(range(max = 16_777_216))]
    pub prefix_index_blocks: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ageing_s: 10.0,
            patience_ms: 1000,
            unavailable_after_s: 30,
            prefix_index_blocks: 65_536,
        }
    }
}

impl Config {
    /// Whether every value is in range.
    ///
    /// # Errors
    /// One line for each wrong key: its name, what is expected and what was given.
    pub fn check(&self) -> Result<(), Vec<String>> {
        let mut wrong = settings::out_of_range("scheduler", self);
        if self.ageing_s.is_nan() {
            wrong.push("scheduler.ageing_s: expected a number, got NaN".to_owned());
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_every_wrong_key_is_named() {
        assert_eq!(Config::default().check(), Ok(()));
        let config = Config {
            ageing_s: f64::NAN,
            patience_ms: u64::MAX,
            unavailable_after_s: u64::MAX,
            prefix_index_blocks: usize::MAX,
        };
        let wrong = config.check().expect_err("four wrong keys");
        for key in ["ageing_s", "patience_ms", "unavailable_after_s", "prefix_index_blocks"] {
            assert!(
                wrong.iter().any(|line| line.starts_with(&format!("scheduler.{key}: "))),
                "{key}"
            );
        }
    }
}
