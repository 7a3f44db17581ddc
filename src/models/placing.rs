//! A model onto devices and off them again, whatever happens to the devices meanwhile.

use std::rc::Rc;
use std::sync::Arc;

use futures_util::future::join_all;
use tokio::sync::oneshot;

use crate::batcher::{AddModel, DeviceFailed, RemoveModel};
use crate::bridge::{DeviceError, DeviceErrorCode};
use crate::error::{Error, Kind};
use crate::executor::{LoadModel, LoadProgress, UnloadModel};
use crate::ids::DeviceId;

use super::ModelSpec;
use super::devices::{DeviceGone, DeviceHandle, ask};
use super::flows::Flows;
use super::progress::Display;
use super::registry::{ModelEntry, Placement};

/// When a load that found no memory may try again: by then a busy model may be idle.
const RETRY_AFTER_MS: u64 = 5_000;

/// Why a model is not on a device.
pub(super) enum PlaceError {
    Device(DeviceId, DeviceError),
    DeviceGone(DeviceId),
}

impl PlaceError {
    /// For whoever asked for the load.
    pub(super) fn of_model(self, name: &str) -> Error {
        match self {
            PlaceError::Device(id, error) if error.code == DeviceErrorCode::OutOfMemory => {
                short_of_memory(format!("model {name:?} on {id}: {error}"))
            }
            PlaceError::Device(id, error) => {
                Error::internal(format!("model {name:?} on {id}: {error}"))
            }
            PlaceError::DeviceGone(id) => {
                let text = format!("{id} is down; the model {name:?} cannot be loaded there");
                Error::new(Kind::Unavailable, text).with_retry_after_ms(RETRY_AFTER_MS)
            }
        }
    }
}

pub(super) fn short_of_memory(text: String) -> Error {
    Error::new(Kind::Unavailable, text).with_retry_after_ms(RETRY_AFTER_MS)
}

impl Flows {
    /// Loads the weights on all devices that it has a budget for at once, then tells the batchers.
    pub(super) async fn place_on_devices(
        &self,
        spec: &ModelSpec,
        entry: &Rc<ModelEntry>,
    ) -> std::result::Result<(), PlaceError> {
        let ids: Vec<_> = entry.budgets.keys().cloned().collect();
        let display = Display::new(&entry.name, ids.len(), self.start.progress.clone());
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
        entry: &ModelEntry,
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
        entry: &ModelEntry,
        id: &DeviceId,
        progress: Option<LoadProgress>,
    ) -> std::result::Result<(), PlaceError> {
        let gone = || PlaceError::DeviceGone(id.clone());
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
                Ok(Err(error)) => {
                    if error.code == DeviceErrorCode::Sticky {
                        self.report_lost(&handle, &error).await;
                    }
                    return Err(PlaceError::Device(id.clone(), error));
                }
                Err(DeviceGone) => {
                    self.devices.newer_than(id, generation).await.map_err(|DeviceGone| gone())?;
                }
            }
        }
    }

    async fn report_lost(&self, handle: &DeviceHandle, error: &DeviceError) {
        let failed = DeviceFailed {
            device: handle.id.clone(),
            generation: handle.generation,
            reason: error.to_string(),
            sticky: true,
        };
        // It ends only with the node.
        let _ = self.start.failed.send(failed).await;
    }

    /// The weights are on the device and its batcher knows.
    pub(super) async fn ensure_added(
        &self,
        entry: &ModelEntry,
        id: &DeviceId,
    ) -> std::result::Result<(), PlaceError> {
        let gone = || PlaceError::DeviceGone(id.clone());
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
                name: entry.name.as_str().into(),
                budget,
                loaded: placement.loaded,
                window: entry.checkpoint.spec().widest_window(),
                end_token_ids: entry.checkpoint.end_token_ids().to_vec(),
            };
            match handle.add.send(message).await {
                Ok(()) => {
                    if let Some(placement) = entry.placements.borrow_mut().get_mut(id) {
                        placement.added = true;
                    }
                }
                Err(_) => {
                    self.devices
                        .newer_than(id, handle.generation)
                        .await
                        .map_err(|DeviceGone| gone())?;
                }
            }
        }
    }

    /// Takes the model out of batchers, then off the devices. A device that is gone has given the memory back itself.
    pub(super) async fn remove_everywhere(&self, entry: &ModelEntry) {
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
            let unload = UnloadModel { model: entry.id, done };
            if let Ok(Err(error)) = ask(&handle.unload, unload, answer).await {
                tracing::error!(model = %entry.name, device = %id, "not unloaded: {error}");
            }
        });
        join_all(removals).await;
    }
}
