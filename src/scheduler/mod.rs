//! Scheduler: one, on its own arbiter; owns the waiting queue.
//!
//! Accepts [`Enqueue`] from admission, [`Credit`] and [`Returned`] from batchers, [`DeviceUp`] and [`DeviceDown`] from the node,
//! [`Sweep`] after a cancel. Assigns late: a sequence leaves the queue only when a device has credit for it.

use actix::{Addr, Message};

use crate::batcher::{Batcher, Sequence};
use crate::executor::{DeviceId, ModelId};
use crate::reply::SharedStream;

/// A sequence that admission has let in.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Enqueue {
    /// What to run.
    pub sequence: Sequence,
    /// Where its tokens go.
    pub stream: SharedStream,
}

/// What a device can take of one model, sent whenever it changes; replaces the credit sent before.
#[derive(Message, Debug, Clone)]
#[rtype(result = "()")]
pub struct Credit {
    /// Whose.
    pub device: DeviceId,
    /// Which build of the device's actors.
    pub generation: u64,
    /// For which model.
    pub model: ModelId,
    /// Assignments received so far from the scheduler: those sent since are still to be subtracted.
    pub assigned: u64,
    /// Free seats.
    pub seats: u32,
    /// Free or evictable KV blocks, those promised to running sequences taken off.
    pub free_blocks: u32,
    /// Positions of one block.
    pub block_size: u32,
    /// False while the model is being removed from this device.
    pub open: bool,
}

/// Sequences of a device that failed; they wait again, with what they have generated. Those that failed twice are not here.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Returned {
    /// From where.
    pub device: DeviceId,
    /// With their streams.
    pub sequences: Vec<(Sequence, SharedStream)>,
}

/// A device can be given work, on this address.
#[derive(Message)]
#[rtype(result = "()")]
pub struct DeviceUp {
    /// Which.
    pub device: DeviceId,
    /// Which build of its actors.
    pub generation: u64,
    /// Its batcher.
    pub batcher: Addr<Batcher>,
}

/// A device takes no work until it is up again.
#[derive(Message)]
#[rtype(result = "()")]
pub struct DeviceDown {
    /// Which.
    pub device: DeviceId,
}

/// Look for waiting sequences that want no more; a hint, also done on a timer.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Sweep;
