//! Which models there are, in which state; plain bookkeeping.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{Error, Kind, Result};
use crate::executor::LoadedModel;
use crate::ids::{DeviceId, ModelId};
use crate::memory::ModelBudget;

use super::ServedModel;
use super::eviction::Candidate;
use crate::checkpoint::Checkpoint;
use crate::door::ModelInfo;
use crate::memory::ModelNeed;

/// What is on one device.
#[derive(Debug, Clone)]
pub(super) struct Placement {
    /// Of the device's build that has it.
    pub generation: u64,
    pub loaded: LoadedModel,
    /// The batcher knows it too.
    pub added: bool,
}

/// A model whose checkpoint is open; the mapped files stay, so that a rebuilt device has it again at once.
pub(super) struct ModelEntry {
    pub id: ModelId,
    pub name: String,
    pub checkpoint: Arc<Checkpoint>,
    /// The memory that it needs, as the engine counts it.
    pub need: ModelNeed,
    /// The share of memory on each device that it is to be on.
    pub budgets: BTreeMap<DeviceId, ModelBudget>,
    /// Filled while it is loaded.
    pub placements: RefCell<BTreeMap<DeviceId, Placement>>,
    /// The longest sequence for which each of these devices has KV blocks; set before a batcher is told.
    pub max_seq_len: Cell<u32>,
}

/// A model that takes requests.
#[derive(Clone)]
pub(super) struct Up {
    pub entry: Rc<ModelEntry>,
    pub served: Arc<ServedModel>,
}

enum AliasSlot {
    Loading,
    Up(Up),
    /// Takes no requests; those in finish.
    Leaving(Up),
}

/// The aliases.
#[derive(Default)]
pub(super) struct Registry {
    slots: RefCell<BTreeMap<String, AliasSlot>>,
    last_id: Cell<u32>,
}

/// An alias taken for a load; given back on drop unless the model came up.
pub(super) struct Reservation {
    registry: Rc<Registry>,
    name: String,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut slots = self.registry.slots.borrow_mut();
        if matches!(slots.get(&self.name), Some(AliasSlot::Loading)) {
            slots.remove(&self.name);
        }
    }
}

impl Registry {
    /// An id that was never given before.
    pub(super) fn next_id(&self) -> ModelId {
        let id = self.last_id.get() + 1;
        self.last_id.set(id);
        ModelId(id)
    }

    /// Takes the alias.
    ///
    /// # Errors
    /// `conflict` if something has it.
    pub(super) fn reserve(self: &Rc<Self>, name: &str) -> Result<Reservation> {
        let state = match self.slots.borrow().get(name) {
            None => None,
            Some(AliasSlot::Loading) => Some("being loaded"),
            Some(AliasSlot::Up(_)) => Some("loaded"),
            Some(AliasSlot::Leaving(_)) => Some("being unloaded"),
        };
        if let Some(state) = state {
            return Err(Error::new(Kind::Conflict, format!("a model \"{name}\" is {state}"))
                .with_param("name"));
        }
        self.slots.borrow_mut().insert(name.to_owned(), AliasSlot::Loading);
        Ok(Reservation { registry: Rc::clone(self), name: name.to_owned() })
    }

    /// The model takes requests from here on.
    pub(super) fn up(&self, up: Up) {
        self.slots.borrow_mut().insert(up.entry.name.clone(), AliasSlot::Up(up));
    }

    /// Marks it as leaving.
    ///
    /// # Errors
    /// `not_found`, or `conflict` while it is being loaded or unloaded.
    pub(super) fn leave(&self, name: &str) -> Result<Up> {
        let mut slots = self.slots.borrow_mut();
        let error = |kind, text: &str| {
            Err(Error::new(kind, format!("model \"{name}\" {text}")).with_param("name"))
        };
        match slots.get(name) {
            None => error(Kind::NotFound, "is not loaded"),
            Some(AliasSlot::Loading) => error(Kind::Conflict, "is being loaded"),
            Some(AliasSlot::Leaving(_)) => error(Kind::Conflict, "is being unloaded"),
            Some(AliasSlot::Up(up)) => {
                let up = up.clone();
                slots.insert(name.to_owned(), AliasSlot::Leaving(up.clone()));
                Ok(up)
            }
        }
    }

    /// Its memory is free.
    pub(super) fn gone(&self, name: &str) {
        self.slots.borrow_mut().remove(name);
    }

    /// Every model that must be on the device: those that take requests and those whose requests finish.
    pub(super) fn placed_on(&self, device: &DeviceId) -> Vec<Up> {
        let slots = self.slots.borrow();
        let placed = |slot: &AliasSlot| match slot {
            AliasSlot::Up(up) | AliasSlot::Leaving(up) => {
                up.entry.budgets.contains_key(device).then(|| up.clone())
            }
            AliasSlot::Loading => None,
        };
        slots.values().filter_map(placed).collect()
    }

    /// Requests running or waiting for models on the device; those of a model with replicas are spread over them evenly.
    pub(super) fn requests_on(&self, device: &DeviceId) -> u64 {
        let share = |up: Up| {
            let replicas = up.entry.budgets.len() as u64;
            up.served.in_use.load(Ordering::Acquire).div_ceil(replicas.max(1))
        };
        self.placed_on(device).into_iter().map(share).sum()
    }

    /// What takes requests.
    pub(super) fn list(&self) -> Vec<ModelInfo> {
        self.each_up(info)
    }

    /// The models on the device as the eviction policy sees them.
    pub(super) fn candidates_on(&self, device: &DeviceId) -> Vec<Candidate> {
        let candidate = |up: &Up| {
            let placements = up.entry.placements.borrow();
            let kv_bytes = placements.get(device)?.loaded.kv_bytes;
            Some(Candidate {
                name: up.entry.name.clone(),
                in_use: up.served.in_use.load(Ordering::Acquire),
                last_used: up.served.last_used.load(Ordering::Relaxed),
                bytes: up.entry.need.taken_bytes(kv_bytes),
            })
        };
        self.each_up(candidate).into_iter().flatten().collect()
    }

    fn each_up<T>(&self, of: impl Fn(&Up) -> T) -> Vec<T> {
        let slots = self.slots.borrow();
        let up = |slot: &AliasSlot| match slot {
            AliasSlot::Up(up) => Some(of(up)),
            _ => None,
        };
        slots.values().filter_map(up).collect()
    }
}

/// For lists and health.
pub(super) fn info(up: &Up) -> ModelInfo {
    let placements = up.entry.placements.borrow();
    let most = |of: fn(&LoadedModel) -> u64| {
        placements.values().map(|placement| of(&placement.loaded)).max().unwrap_or(0)
    };
    ModelInfo {
        name: up.entry.name.clone(),
        model_type: up.entry.checkpoint.family().model_type,
        created: up.served.created,
        max_seq_len: up.served.max_seq_len,
        devices: placements.keys().cloned().collect(),
        weight_bytes: most(|loaded| loaded.weight_bytes),
        kv_bytes: most(|loaded| loaded.kv_bytes),
        digest: up.served.digest.clone(),
    }
}
