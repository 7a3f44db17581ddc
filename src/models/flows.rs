//! What the models actor does over time: load, unload, make room, and load again after a rebuild. Every flow is a future on the
//! actor's own arbiter; one at a time changes what is on the devices.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::Mutex;

use crate::admission::{ModelDown, ModelUp};
use crate::bridge::DeviceErrorCode;
use crate::clock::Timestamp;
use crate::error::{Error, Kind, Result};
use crate::executor::DeviceId;

use super::actor::Start;
use super::checkpoint::Checkpoint;
use super::devices::{DeviceHandle, Devices};
use super::eviction::victims;
use super::memory::{self, ModelNeed};
use super::open::{self, Opened};
use super::placing::{PlaceError, short_of_memory};
use super::registry::{Entry, Registry, Up, info};
use super::{ModelInfo, ModelSpec, ServedModel};

/// How often an unload looks whether the last request has ended. Only while one drains, so it costs an idle node nothing.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// The actor's state, shared by its flows. Single-threaded: no borrow is held over an await.
pub(super) struct Flows {
    pub start: Start,
    pub devices: Devices,
    pub registry: Rc<Registry>,
    /// Held by the flow that changes what is on the devices.
    turn: Mutex<()>,
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
        let need = self.need(spec, checkpoint, max_seq_len)?;
        loop {
            let kv_bytes = self.make_room(&spec.name, &need).await?;
            let budget = |kv| memory::budget(&self.start.limits, kv, max_seq_len);
            let entry = Rc::new(Entry {
                id: self.registry.next_id(),
                name: spec.name.clone(),
                checkpoint: Arc::clone(checkpoint),
                need: need.clone(),
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

    fn need(
        &self,
        spec: &ModelSpec,
        checkpoint: &Checkpoint,
        max_seq_len: u32,
    ) -> Result<ModelNeed> {
        let need = ModelNeed::of(checkpoint.shape(), &self.start.limits, max_seq_len);
        let need = need.map_err(|error| {
            let directory = checkpoint.directory().display();
            Error::unsupported("model_path", format!("{directory}: {error}"))
        })?;
        Ok(match (self.start.kv_bytes, self.start.planned_kv_bytes.get(&spec.name)) {
            (Some(configured), _) => need.with_kv_bytes(configured),
            (None, Some(planned)) => need.with_wish(*planned),
            (None, None) => need,
        })
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
