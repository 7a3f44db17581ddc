//! The devices as the models actor sees them, over their rebuilds.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use actix::{Message, Recipient};
use tokio::sync::{Notify, oneshot};

use crate::batcher::{AddModel, RemoveModel};
use crate::executor::{LoadModel, MemoryReading, UnloadModel};
use crate::ids::DeviceId;

/// How long a load waits for a device that is being rebuilt; a rebuild takes about two seconds.
const REBUILD_WAIT: Duration = Duration::from_secs(30);

/// One build of a device's actors.
#[derive(Clone)]
pub struct DeviceHandle {
    /// The device's name, as in the configuration.
    pub id: DeviceId,
    /// Which build of its actors; grows.
    pub generation: u64,
    /// The executor.
    pub load: Recipient<LoadModel>,
    /// The executor.
    pub unload: Recipient<UnloadModel>,
    /// The batcher.
    pub add: Recipient<AddModel>,
    /// The batcher.
    pub remove: Recipient<RemoveModel>,
    /// The executor's memory pool.
    pub memory: MemoryReading,
}

/// The actor asked is not there any more: its device is being rebuilt, or the node ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DeviceGone;

/// Sends a message and waits for the answer in it. Waits for a place in the mailbox too, so nothing is refused; the asked actors
/// never wait for this one, so nothing can stand still.
pub(super) async fn ask<M, T>(
    recipient: &Recipient<M>,
    message: M,
    answer: oneshot::Receiver<T>,
) -> Result<T, DeviceGone>
where
    M: Message<Result = ()> + Send + 'static,
{
    recipient.send(message).await.map_err(|_| DeviceGone)?;
    answer.await.map_err(|_| DeviceGone)
}

/// The newest build of every device.
pub(super) struct DeviceHandles {
    handles: RefCell<BTreeMap<DeviceId, DeviceHandle>>,
    changed: Notify,
}

impl DeviceHandles {
    pub(super) fn new(handles: Vec<DeviceHandle>) -> Self {
        let handles = handles.into_iter().map(|handle| (handle.id.clone(), handle)).collect();
        Self { handles: RefCell::new(handles), changed: Notify::new() }
    }

    pub(super) fn get(&self, id: &DeviceId) -> Option<DeviceHandle> {
        self.handles.borrow().get(id).cloned()
    }

    pub(super) fn all(&self) -> Vec<DeviceHandle> {
        self.handles.borrow().values().cloned().collect()
    }

    /// A newer build takes the place of the older one.
    pub(super) fn replace(&self, handle: DeviceHandle) {
        let mut handles = self.handles.borrow_mut();
        let newer = handles.get(&handle.id).is_none_or(|old| old.generation < handle.generation);
        if newer {
            handles.insert(handle.id.clone(), handle);
            self.changed.notify_waiters();
        }
    }

    /// Resolves when a build newer than `generation` is there; an error if none comes.
    pub(super) async fn newer_than(
        &self,
        id: &DeviceId,
        generation: u64,
    ) -> Result<(), DeviceGone> {
        let wait = async {
            loop {
                // Made before the look, so that a change between the two is not missed.
                let changed = self.changed.notified();
                if self.get(id).is_some_and(|handle| handle.generation > generation) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(REBUILD_WAIT, wait).await.map_err(|_| DeviceGone)
    }
}
