//! The models actor: a thin shell around its flows.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use actix::{Actor, Addr, Context, Handler, Recipient, ResponseFuture};
use actix_rt::ArbiterHandle;

use crate::batcher::DeviceFailed;
use crate::error::Result;
use crate::health::Vitals;
use crate::lifeline::Lifeline;
use crate::models::{ModelDown, ModelUp};
use crate::progress::Progress;

use super::devices::DeviceHandle;
use super::flows::Flows;
use super::{DeviceRebuilt, Load, Unload};
use crate::checkpoint::HubCache;
use crate::door::{List, ModelInfo};
use crate::memory::StepLimits;

/// Rare, small messages from people and the node; a handler only starts a flow, so the mailbox never holds more than a burst.
const MAILBOX_CAPACITY: usize = 16;

/// What the actor is started with.
pub struct ModelsStart {
    /// Where hub ids are looked up.
    pub hub: HubCache,
    /// What a step may hold.
    pub limits: StepLimits,
    /// `executor.kv_cache_size`: KV cache of each model on each device.
    pub kv_bytes: Option<u64>,
    /// KV cache of the configured models, by alias, from [`plan_memory`](super::plan_memory).
    pub planned_kv_bytes: BTreeMap<String, u64>,
    /// Every device of the node, in its first build.
    pub devices: Vec<DeviceHandle>,
    /// The supervisor, which tells admission and the bus.
    pub model_up: Recipient<ModelUp>,
    /// The supervisor, likewise.
    pub model_down: Recipient<ModelDown>,
    /// The node: a load met an error after which a device is lost to this process.
    pub failed: Recipient<DeviceFailed>,
    /// What the node's tokens depend on beside the model.
    pub exactness: String,
    /// Told what is loaded.
    pub vitals: Arc<Vitals>,
    /// Busy while something loads.
    pub progress: Progress,
}

/// Starts the actor on `arbiter`; it holds `alive` for as long as it lives.
pub fn start(arbiter: &ArbiterHandle, start: ModelsStart, alive: Lifeline) -> Addr<Models> {
    Models::start_in_arbiter(arbiter, move |ctx| {
        ctx.set_mailbox_capacity(MAILBOX_CAPACITY);
        Models { flows: Rc::new(Flows::new(start)), alive }
    })
}

/// The actor; see the module.
pub struct Models {
    flows: Rc<Flows>,
    alive: Lifeline,
}

impl Actor for Models {
    type Context = Context<Self>;
}

impl Handler<Load> for Models {
    type Result = ResponseFuture<Result<ModelInfo>>;

    fn handle(&mut self, load: Load, _: &mut Self::Context) -> Self::Result {
        self.alive.look();
        Box::pin(Rc::clone(&self.flows).load(load))
    }
}

impl Handler<Unload> for Models {
    type Result = ResponseFuture<Result<()>>;

    fn handle(&mut self, message: Unload, _: &mut Self::Context) -> Self::Result {
        Box::pin(Rc::clone(&self.flows).unload(message.name))
    }
}

impl Handler<List> for Models {
    type Result = actix::MessageResult<List>;

    fn handle(&mut self, _: List, _: &mut Self::Context) -> Self::Result {
        actix::MessageResult(self.flows.registry.list())
    }
}

impl Handler<DeviceRebuilt> for Models {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, message: DeviceRebuilt, _: &mut Self::Context) -> Self::Result {
        let DeviceRebuilt { device, done } = message;
        let id = device.id.clone();
        // At once, not in turn: a load that waits for this device goes on with it.
        self.flows.devices.replace(device);
        let flow = Rc::clone(&self.flows).load_again(id);
        Box::pin(async move {
            // The node may be ending.
            let _ = done.send(flow.await);
        })
    }
}
