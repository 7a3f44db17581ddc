//! What the models actor does over time: load, unload, make room, and load again after a rebuild. Every flow is a future on the
//! actor's own arbiter; one at a time changes what is on the devices.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use tokio::sync::{Mutex, oneshot};

use crate::admission::{ModelDown, ModelUp};
use crate::batcher::{AddModel, RemoveModel};
use crate::bridge::{DeviceError, DeviceErrorCode};
use crate::clock::Timestamp;
use crate::error::{Error, Kind, Result};
use crate::executor::{DeviceId, LoadModel, LoadProgress, UnloadModel};

use super::actor::Start;
use super::checkpoint::Checkpoint;
use super::devices::{DeviceHandle, Devices, Gone, ask};
use super::eviction::victims;
use super::memory::{self, ModelNeed};
use super::open::{self, Opened};
use super::progress::Display;
use super::registry::{Entry, Placement, Registry, Up, info};
use super::{ModelInfo, ModelSpec, ServedModel};

/// How often an unload looks whether the last request has ended. Only while one drains, so it costs an idle node nothing.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// When a load that found no memory may try again: by then a busy model may be idle.
const RETRY_AFTER_MS: u64 = 5_000;

/// The actor's state, shared by its flows. Single-threaded: no borrow is held over an await.
pub(super) struct Flows {
    pub start: Start,
    pub devices: Devices,
    pub registry: Rc<Registry>,
    /// Held by the flow that changes what is on the devices.
    turn: Mutex<()>,
}

enum PlaceError {
    Device(DeviceId, DeviceError),
    Gone(DeviceId),
}

impl PlaceError {
    fn of_model(self, name: &str) -> Error {
        match self {
            PlaceError::Device(id, error) if error.code == DeviceErrorCode::OutOfMemory => {
                short_of_memory(format!("model {name} on {id}: {error}"))
            }
            PlaceError::Device(id, error) => {
                Error::internal(format!("model {name} on {id}: {error}"))
            }
            PlaceError::Gone(id) => {
                let text = format!("{id} is down, model {name} cannot be put there");
                Error::new(Kind::Unavailable, text).with_retry_after_ms(RETRY_AFTER_MS)
            }
        }
    }
}

fn short_of_memory(text: String) -> Error {
    Error::new(Kind::Unavailable, text).with_retry_after_ms(RETRY_AFTER_MS)
}

impl Flows {
    pub(super) fn new(mut start: Start) -> Self {
        let devices = Devices::new(std::mem::take(&mut start.devices));
        Self { start, devices, registry: Rc::new(Registry::default()), turn: Mutex::new(()) }
    }

    /// See [`Load`](super::Load).
    pub(super) async fn load(self: Rc<Self>, spec: ModelSpec) -> Result<ModelInfo> {
        spec.check().map_err(|faults| Error::new(Kind::Invalid, faults.join("; ")))?;
        // Given back at the end of this function, unless the model is up.
        let _reservation = self.registry.reserve(&spec.name)?;
        let _turn = self.turn.lock().await;
        self.start.progress.set_pending(1, Timestamp::now());
        let result = self.load_in_turn(&spec).await;
        self.start.progress.set_pending(0, Timestamp::now());
        if let Err(error) = &result {
            tracing::error!(model = %spec.name, "not loaded: {error}");
        }
        result
    }

    async fn load_in_turn(&self, spec: &ModelSpec) -> Result<ModelInfo> {
        let began = Instant::now();
        let opened = {
            let (spec, hub) = (spec.clone(), self.start.hub.clone());
            tokio::task::spawn_blocking(move || open::open(&spec, &hub)).await
        };
        let opened = opened
            .map_err(|error| Error::internal(format!("opening {}: {error}", spec.name)))?
            .map_err(|text| Error::invalid("model_path", text))?;
        let Opened { checkpoint, tokenizer, chat_template, max_seq_len } = opened;
        let checkpoint = Arc::new(checkpoint);
        let entry = self.place(spec, &checkpoint, max_seq_len).await?;
        let served = Arc::new(ServedModel {
            name: spec.name.clone(),
            id: entry.id,
            tokenizer: Arc::new(tokenizer),
            chat_template,
            max_seq_len: entry.max_seq_len.get(),
            vocab_size: checkpoint.shape().vocab_size,
            end_token_ids: checkpoint.end_token_ids().to_vec(),
            defaults: checkpoint.generation().defaults,
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs()),
            in_use: AtomicU64::new(0),
            last_used: AtomicU64::new(Timestamp::now().as_micros()),
        });
        let up = Up { entry, served: Arc::clone(&served) };
        let info = info(&up);
        self.registry.up(up);
        self.start.vitals.set_models(self.registry.list());
        self.start
            .model_up
            .send(ModelUp(served))
            .await
            .map_err(|_| Error::new(Kind::Draining, "the node is ending"))?;
        tracing::info!(
            model = %info.name,
            seconds = began.elapsed().as_secs_f64(),
            weight_bytes = info.weight_bytes,
            kv_bytes = info.kv_bytes,
            max_seq_len = info.max_seq_len,
            "loaded"
        );
        Ok(info)
    }

    /// Finds room and puts the model on every device and into every batcher.
    async fn place(
        &self,
        spec: &ModelSpec,
        checkpoint: &Arc<Checkpoint>,
        max_seq_len: u32,
    ) -> Result<Rc<Entry>> {
        let need = self.need(spec, checkpoint, max_seq_len);
        loop {
            let kv_bytes = self.make_room(&spec.name, &need).await?;
            let budget = |kv| memory::budget(&self.start.limits, kv, max_seq_len);
            let entry = Rc::new(Entry {
                id: self.registry.next_id(),
                name: spec.name.clone(),
                checkpoint: Arc::clone(checkpoint),
                budgets: kv_bytes.into_iter().map(|(id, kv)| (id, budget(kv))).collect(),
                placements: RefCell::default(),
                max_seq_len: Cell::new(max_seq_len),
            });
            match self.place_everywhere(spec, &entry).await {
                Ok(()) => return Ok(entry),
                Err(error) => {
                    self.remove_everywhere(&entry).await;
                    // The estimates were short (a pool in pieces, say): the next idle model goes, if there is one.
                    let short = matches!(&error, PlaceError::Device(_, e)
                        if e.code == DeviceErrorCode::OutOfMemory);
                    if !short || !self.evict(1).await {
                        return Err(error.of_model(&spec.name));
                    }
                }
            }
        }
    }

    fn need(&self, spec: &ModelSpec, checkpoint: &Checkpoint, max_seq_len: u32) -> ModelNeed {
        let need = ModelNeed::of(checkpoint.shape(), &self.start.limits, max_seq_len);
        match (self.start.kv_bytes, self.start.planned_kv_bytes.get(&spec.name)) {
            (Some(configured), _) => need.with_kv_bytes(configured),
            (None, Some(planned)) => need.with_wish(*planned),
            (None, None) => need,
        }
    }

    /// Evicts idle models until the need fits on every device; the answer is the KV bytes on each.
    async fn make_room(&self, name: &str, need: &ModelNeed) -> Result<BTreeMap<DeviceId, u64>> {
        let least = need.least_bytes();
        loop {
            let mut fits = BTreeMap::new();
            let mut missing = 0;
            for DeviceHandle { id, memory, .. } in self.devices.all() {
                match memory::kv_that_fits(need, memory.free_bytes()) {
                    Some(kv_bytes) => {
                        fits.insert(id, kv_bytes);
                    }
                    None if least > memory.reserved_bytes() => {
                        let pool = memory.reserved_bytes();
                        return Err(Error::unsupported(
                            "model_path",
                            format!(
                                "model {name} needs {least} bytes of {id}, whose pool has {pool}; raise \
                                 executor.memory_pool_size or lower max_seq_len"
                            ),
                        ));
                    }
                    None => missing = missing.max(least - memory.free_bytes()),
                }
            }
            if missing == 0 {
                return Ok(fits);
            }
            if !self.evict(missing).await {
                return Err(short_of_memory(format!(
                    "model {name} needs {missing} bytes more than are free, and no idle models would give them"
                )));
            }
        }
    }

    /// Unloads idle models that give `missing_bytes`; false if there are none such.
    async fn evict(&self, missing_bytes: u64) -> bool {
        let Some(names) = victims(&self.registry.candidates(), missing_bytes) else { return false };
        for name in names {
            let Ok(up) = self.registry.leave(&name) else { continue };
            self.tell_down(&name).await;
            // A request may have come in between the look and admission's answer. Then it stays, and the caller looks again.
            if up.served.in_use.load(Ordering::Acquire) > 0 {
                let _ = self.start.model_up.send(ModelUp(Arc::clone(&up.served))).await;
                self.registry.up(up);
                continue;
            }
            tracing::info!(model = %name, "evicted: idle, and its memory is needed");
            self.remove_everywhere(&up.entry).await;
            self.registry.gone(&name);
            self.start.vitals.set_models(self.registry.list());
        }
        true
    }

    /// Loads the weights on all devices at once, then tells the batchers.
    async fn place_everywhere(
        &self,
        spec: &ModelSpec,
        entry: &Rc<Entry>,
    ) -> std::result::Result<(), PlaceError> {
        let ids = self.devices.ids();
        let bytes = entry.checkpoint.total_bytes();
        let display = Display::new(&entry.name, bytes, ids.len(), self.start.progress.clone());
        let loads = ids
            .iter()
            .enumerate()
            .map(|(index, id)| self.ensure_loaded(entry, id, Some(display.of_device(index))));
        let results = join_all(loads).await;
        display.finish();
        results.into_iter().collect::<std::result::Result<(), _>>()?;
        self.settle_length(spec, entry)?;
        for id in &ids {
            self.ensure_added(entry, id).await?;
        }
        Ok(())
    }

    /// If the blocks hold less than one sequence of full length, the model serves shorter ones, unless the configuration insists.
    fn settle_length(
        &self,
        spec: &ModelSpec,
        entry: &Entry,
    ) -> std::result::Result<(), PlaceError> {
        let block_size = self.start.limits.block_size;
        for (id, placement) in entry.placements.borrow().iter() {
            let held = placement.loaded.num_blocks.saturating_mul(block_size);
            if held >= entry.max_seq_len.get() {
                continue;
            }
            let text = format!(
                "the KV cache holds {held} positions, max_seq_len is {}",
                entry.max_seq_len.get()
            );
            if spec.max_seq_len.is_some() {
                let error = DeviceError { code: DeviceErrorCode::OutOfMemory, message: text };
                return Err(PlaceError::Device(id.clone(), error));
            }
            tracing::warn!(model = %entry.name, device = %id, "{text}: lowered to {held}");
            entry.max_seq_len.set(held);
        }
        Ok(())
    }

    /// The weights are on the newest build of the device, whatever happens to it meanwhile.
    async fn ensure_loaded(
        &self,
        entry: &Entry,
        id: &DeviceId,
        progress: Option<LoadProgress>,
    ) -> std::result::Result<(), PlaceError> {
        let gone = || PlaceError::Gone(id.clone());
        loop {
            let handle = self.devices.get(id).ok_or_else(gone)?;
            let limits = entry.budgets.get(id).ok_or_else(gone)?.clone();
            let generation = handle.generation;
            let there = |p: &Placement| p.generation == generation;
            if entry.placements.borrow().get(id).is_some_and(there) {
                return Ok(());
            }
            let (done, answer) = oneshot::channel();
            let message = LoadModel {
                model: entry.id,
                checkpoint: Arc::clone(&entry.checkpoint),
                limits,
                progress: progress.clone(),
                done,
            };
            match ask(&handle.load, message, answer).await {
                Ok(Ok(loaded)) => {
                    let placement = Placement { generation, loaded, added: false };
                    entry.placements.borrow_mut().insert(id.clone(), placement);
                }
                Ok(Err(error)) => return Err(PlaceError::Device(id.clone(), error)),
                Err(Gone) => {
                    self.devices.newer_than(id, generation).await.map_err(|Gone| gone())?;
                }
            }
        }
    }

    /// The weights are on the device and its batcher knows.
    async fn ensure_added(
        &self,
        entry: &Entry,
        id: &DeviceId,
    ) -> std::result::Result<(), PlaceError> {
        let gone = || PlaceError::Gone(id.clone());
        loop {
            self.ensure_loaded(entry, id, None).await?;
            let handle = self.devices.get(id).ok_or_else(gone)?;
            let placement = entry.placements.borrow().get(id).cloned().ok_or_else(gone)?;
            if placement.generation != handle.generation {
                continue;
            }
            if placement.added {
                return Ok(());
            }
            let mut budget = entry.budgets.get(id).ok_or_else(gone)?.clone();
            budget.max_seq_len = entry.max_seq_len.get();
            let message = AddModel {
                model: entry.id,
                budget,
                loaded: placement.loaded,
                end_token_ids: entry.checkpoint.end_token_ids().to_vec(),
            };
            match handle.add.send(message).await {
                Ok(()) => {
                    if let Some(placement) = entry.placements.borrow_mut().get_mut(id) {
                        placement.added = true;
                    }
                }
                Err(_) => {
                    self.devices.newer_than(id, handle.generation).await.map_err(|Gone| gone())?;
                }
            }
        }
    }

    /// See [`Unload`](super::Unload).
    pub(super) async fn unload(self: Rc<Self>, name: String) -> Result<()> {
        let up = self.registry.leave(&name)?;
        self.start.vitals.set_models(self.registry.list());
        self.tell_down(&name).await;
        // Not in turn: while the last requests finish, a device may have to be rebuilt for them.
        while up.served.in_use.load(Ordering::Acquire) > 0 {
            tokio::time::sleep(DRAIN_POLL).await;
        }
        let _turn = self.turn.lock().await;
        self.remove_everywhere(&up.entry).await;
        self.registry.gone(&name);
        tracing::info!(model = %name, "unloaded");
        Ok(())
    }

    /// Returns when admission refuses requests for it. An admission that is gone takes none either.
    async fn tell_down(&self, name: &str) {
        let _ = self.start.model_down.send(ModelDown { name: name.to_owned() }).await;
    }

    /// Takes the model out of batchers, then off the devices. A device that is gone has given the memory back itself.
    async fn remove_everywhere(&self, entry: &Entry) {
        let placements = std::mem::take(&mut *entry.placements.borrow_mut());
        let removals = placements.into_iter().map(|(id, placement)| async move {
            let Some(handle) =
                self.devices.get(&id).filter(|handle| handle.generation == placement.generation)
            else {
                return;
            };
            if placement.added {
                let (done, answer) = oneshot::channel();
                let message = RemoveModel { model: entry.id, done };
                if ask(&handle.remove, message, answer).await.is_err() {
                    return;
                }
            }
            let (done, answer) = oneshot::channel();
            match ask(&handle.unload, UnloadModel { model: entry.id, done }, answer).await {
                Ok(Err(error)) => {
                    tracing::error!(model = %entry.name, device = %id, "not unloaded: {error}");
                }
                Ok(Ok(_)) | Err(Gone) => {}
            }
        });
        join_all(removals).await;
    }

    /// See [`DeviceRebuilt`](super::DeviceRebuilt); the handle was taken over before.
    pub(super) async fn load_again(self: Rc<Self>, id: DeviceId) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.start.progress.set_pending(1, Timestamp::now());
        let mut result = Ok(());
        for entry in self.registry.placed() {
            if let Err(error) = self.ensure_added(&entry, &id).await {
                let error = error.of_model(&entry.name);
                tracing::error!(model = %entry.name, device = %id, "not loaded again: {error}");
                result = result.and(Err(error));
            }
        }
        self.start.progress.set_pending(0, Timestamp::now());
        result
    }
}
