//! What the models actor does over time: load, unload, make room, and load again after a rebuild. Every flow is a future on the
//! actor's own arbiter; one at a time changes what is on the devices.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::Mutex;

use crate::bridge::DeviceErrorCode;
use crate::clock::Timestamp;
use crate::error::{Error, Kind, Result};
use crate::ids::DeviceId;
use crate::models::{ModelDown, ModelUp};

use super::actor::ModelsStart;
use super::choice::{Room, best};
use super::devices::{DeviceHandle, DeviceHandles};
use super::eviction::victims;
use super::open::{self, Opened};
use super::placing::{PlaceError, short_of_memory};
use super::registry::{ModelEntry, Registry, Up, info};
use super::{Load, ModelSpec, ServedModel, Spread};
use crate::checkpoint::Checkpoint;
use crate::digest::digest_of;
use crate::door::ModelInfo;
use crate::memory::{self, ModelNeed};

/// How often an unload looks whether the last request has ended. Only while one drains, so it costs an idle node nothing.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// The actor's state, shared by its flows. Single-threaded: no borrow is held over an await.
pub(super) struct Flows {
    pub start: ModelsStart,
    pub devices: DeviceHandles,
    pub registry: Rc<Registry>,
    /// Held by the flow that changes what is on the devices.
    turn: Mutex<()>,
}

impl Flows {
    pub(super) fn new(mut start: ModelsStart) -> Self {
        let devices = DeviceHandles::new(std::mem::take(&mut start.devices));
        Self { start, devices, registry: Rc::new(Registry::default()), turn: Mutex::new(()) }
    }

    /// See [`Load`].
    pub(super) async fn load(self: Rc<Self>, load: Load) -> Result<ModelInfo> {
        let spec = &load.spec;
        spec.check().map_err(|faults| Error::new(Kind::Invalid, faults.join("; ")))?;
        // Given back at the end of this function, unless the model is up.
        let _reservation = self.registry.reserve(&spec.name)?;
        let _turn = self.turn.lock().await;
        self.start.progress.set_pending(1, Timestamp::now());
        let result = self.load_in_turn(&load).await;
        self.start.progress.set_pending(0, Timestamp::now());
        if let Err(error) = &result {
            tracing::error!(model = %spec.name, "not loaded: {error}");
        }
        result
    }

    async fn load_in_turn(&self, load: &Load) -> Result<ModelInfo> {
        let spec = &load.spec;
        let began = Instant::now();
        let opened = {
            let (spec, hub) = (spec.clone(), self.start.hub.clone());
            let limits = self.start.limits;
            tokio::task::spawn_blocking(move || open::open(&spec, &hub, &limits)).await
        };
        let opened = opened
            .map_err(|error| Error::internal(format!("opening {}: {error}", spec.name)))?
            .map_err(|text| {
                Error::invalid("model_path", format!("model {:?}: {text}", spec.name))
            })?;
        let Opened { checkpoint, tokenizer, chat_template, max_seq_len } = opened;
        let checkpoint = Arc::new(checkpoint);
        let entry = self.place(load, &checkpoint, max_seq_len).await?;
        let served = Arc::new(ServedModel {
            name: spec.name.clone(),
            id: entry.id,
            tokenizer: Arc::new(tokenizer),
            chat_template,
            max_seq_len: entry.max_seq_len.get(),
            vocab_size: checkpoint.spec().vocab_size,
            end_token_ids: checkpoint.end_token_ids().to_vec(),
            defaults: checkpoint.generation().defaults.clone(),
            default_length: checkpoint.generation().default_length,
            digest: self.digest(&checkpoint, entry.max_seq_len.get()),
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

    /// Of all that a model's tokens depend on; how long a completion may be is the context's to say.
    fn digest(&self, checkpoint: &Checkpoint, max_seq_len: u32) -> String {
        let all = format!("{} {} {max_seq_len}", self.start.exactness, checkpoint.fingerprint());
        digest_of(all.as_bytes())
    }

    /// Finds room and puts the model on its devices and into their batchers.
    async fn place(
        &self,
        load: &Load,
        checkpoint: &Arc<Checkpoint>,
        max_seq_len: u32,
    ) -> Result<Rc<ModelEntry>> {
        let name = &load.spec.name;
        let need = self.need(&load.spec, checkpoint, max_seq_len)?;
        loop {
            let kv_bytes = self.make_room(name, &need, load.spread).await?;
            let budget = |kv| memory::budget(&self.start.limits, kv, max_seq_len);
            let entry = Rc::new(ModelEntry {
                id: self.registry.next_id(),
                name: name.clone(),
                checkpoint: Arc::clone(checkpoint),
                need: need.clone(),
                budgets: kv_bytes.into_iter().map(|(id, kv)| (id, budget(kv))).collect(),
                placements: RefCell::default(),
                max_seq_len: Cell::new(max_seq_len),
            });
            let error = match self.place_on_devices(&load.spec, &entry).await {
                Ok(()) => return Ok(entry),
                Err(error) => error,
            };
            self.remove_everywhere(&entry).await;
            // The estimates were short (a pool in pieces, say): the next idle model there goes, if there is one.
            let more = match &error {
                PlaceError::Device(id, e) if e.code == DeviceErrorCode::OutOfMemory => {
                    victims(&self.registry.candidates_on(id), 1)
                }
                _ => None,
            };
            match more {
                Some(names) => self.evict(names).await,
                None => return Err(error.of_model(name)),
            }
        }
    }

    fn need(
        &self,
        spec: &ModelSpec,
        checkpoint: &Checkpoint,
        max_seq_len: u32,
    ) -> Result<ModelNeed> {
        let need = ModelNeed::of(checkpoint.spec(), &self.start.limits, max_seq_len);
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

    /// Evicts idle models until the need fits on each device that the model is to be on; the answer is the KV bytes there.
    async fn make_room(
        &self,
        name: &str,
        need: &ModelNeed,
        spread: Spread,
    ) -> Result<BTreeMap<DeviceId, u64>> {
        loop {
            let handles = self.devices.all();
            let wanted = match spread {
                Spread::EveryDevice => handles,
                Spread::BestDevice => {
                    let rooms: Vec<_> = handles.iter().map(|handle| self.room(handle)).collect();
                    let best = best(&rooms, need, self.start.limits.max_batch_size);
                    handles.into_iter().filter(|handle| Some(&handle.id) == best.as_ref()).collect()
                }
            };
            let mut fits = BTreeMap::new();
            let mut leaving = BTreeSet::new();
            for handle in wanted {
                match memory::kv_that_fits(need, handle.memory.free_bytes()) {
                    Some(kv_bytes) => {
                        fits.insert(handle.id, kv_bytes);
                    }
                    None => leaving.extend(self.victims_for(name, need, &handle)?),
                }
            }
            if leaving.is_empty() {
                return Ok(fits);
            }
            self.evict(leaving).await;
        }
    }

    fn room(&self, handle: &DeviceHandle) -> Room {
        let idle = self.registry.candidates_on(&handle.id).into_iter().filter(|c| c.in_use == 0);
        Room {
            device: handle.id.clone(),
            reserved_bytes: handle.memory.reserved_bytes(),
            free_bytes: handle.memory.free_bytes(),
            idle_bytes: idle.map(|candidate| candidate.bytes).sum(),
            requests: self.registry.requests_on(&handle.id),
        }
    }

    /// The idle models of a device whose memory the need would fit into.
    fn victims_for(
        &self,
        name: &str,
        need: &ModelNeed,
        handle: &DeviceHandle,
    ) -> Result<Vec<String>> {
        let (id, least) = (&handle.id, need.least_bytes());
        let pool = handle.memory.reserved_bytes();
        if least > pool {
            let (least, pool) = (memory::rounded(least), memory::rounded(pool));
            let text = format!(
                "model {name:?} needs {least} of {id}, executor.memory_pool_size there is {pool}; raise it or lower \
                 models.max_seq_len"
            );
            return Err(Error::unsupported("model_path", text));
        }
        let missing = least - handle.memory.free_bytes().min(least);
        victims(&self.registry.candidates_on(id), missing).ok_or_else(|| {
            short_of_memory(format!(
                "model {name:?} needs {} more than is free on {id}, and no idle models would give it",
                memory::rounded(missing)
            ))
        })
    }

    /// Unloads models that are idle.
    async fn evict(&self, names: impl IntoIterator<Item = String>) {
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
        for Up { entry, .. } in self.registry.placed_on(&id) {
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
