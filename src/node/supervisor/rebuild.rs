//! What the supervisor does about a device that failed: builds its actors again, or gives it up where it needs a new process.

use tokio::sync::oneshot;
use tokio::time::sleep;

use super::way_back::{After, NotBuilt, WayBack};
use super::{Inner, Kept};
use crate::admission::DevicesUp;
use crate::batcher::DeviceFailed;
use crate::bridge::DeviceErrorCode;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::models::DeviceRebuilt;
use crate::node::Phase;
use crate::node::device::{DeviceActors, DeviceParts};
use crate::scheduler::DeviceDown;

impl Inner {
    /// A device that needs a new process: what it ran goes to other devices, if there are any, and the node is to end.
    pub(super) async fn lose(&self, failed: DeviceFailed) {
        let DeviceFailed { device, generation, reason, .. } = failed;
        let text = format!("{device} needs a new process: {reason}");
        self.vitals.device_lost(&device, &reason);
        // Now, not with the next second: the node may have ended by then.
        if let Some(bus) = self.bus() {
            (bus.health_publisher())(self.vitals.message(Timestamp::now()).to_json().into());
        }
        if let Some(kept) = self.kept.get() {
            let down = DeviceDown { device, generation, lost: true };
            // The scheduler ends only with the node.
            let _ = kept.links.scheduler.send(down).await;
        }
        self.phase.send_replace(Phase::Failed(Error::internal(text)));
    }

    /// Builds the device's actors again, until that works, and loads every model onto them.
    pub(super) async fn rebuild(&self, failed: DeviceFailed) {
        let Some(kept) = self.kept.get() else { return };
        let _turn = kept.turn.lock().await;
        let id = failed.device;
        let present = kept.actors.borrow().get(&id).map(|actors| actors.generation);
        let Some(mut way) = WayBack::of(failed.generation, present) else { return };
        let old = kept.actors.borrow_mut().remove(&id);
        let (Some(old), Some(parts)) = (old, kept.parts.get(&id)) else { return };
        let down = DeviceDown { device: id.clone(), generation: failed.generation, lost: false };
        // The scheduler ends only with the node. Admission is told when a first try has failed: what comes meanwhile can wait.
        let _ = kept.links.scheduler.send(down).await;
        old.finish_replies().await;
        // Its memory is given back before the next build takes any.
        old.end_aside().await;

        while let Some(generation) = way.next_build(self.is_ending.get()) {
            let built = self.build_again(kept, parts, generation).await;
            match way.after(built) {
                After::Up => {
                    self.vitals.device_rebuilt(&id);
                    kept.links.metrics.device(id.as_str()).rebuilds.increment(1);
                    tracing::info!(device = %id, generation, "device rebuilt");
                    break;
                }
                After::Lost { reason } => {
                    self.lose(DeviceFailed { device: id, generation, reason, sticky: true }).await;
                    return;
                }
                After::Again { reason, pause } => {
                    tracing::error!(device = %id, reason, "not rebuilt, trying again");
                    self.vitals.device_down(&id, &reason);
                    self.tell_devices_up(kept).await;
                    sleep(pause).await;
                }
            }
        }
        self.tell_devices_up(kept).await;
    }

    async fn tell_devices_up(&self, kept: &Kept) {
        let up = kept.actors.borrow().len();
        // Admission ends only with the node.
        let _ = self.admission.send(DevicesUp(up)).await;
    }

    async fn build_again(
        &self,
        kept: &Kept,
        parts: &DeviceParts,
        generation: u64,
    ) -> Result<(), NotBuilt> {
        let built = DeviceActors::start(parts, &kept.links, generation).await;
        let actors = built.map_err(|error| NotBuilt {
            sticky: error.code == DeviceErrorCode::Sticky,
            reason: error.to_string(),
        })?;
        let taken_up = take_up(kept, parts, &actors).await;
        let actors = actors.or_end(taken_up).await?;
        kept.actors.borrow_mut().insert(parts.id.clone(), actors);
        Ok(())
    }
}

/// Makes a new build known, and waits until every model is on it.
async fn take_up(kept: &Kept, parts: &DeviceParts, actors: &DeviceActors) -> Result<(), NotBuilt> {
    let device = actors.handle(&parts.id).ok_or_else(|| NotBuilt::of("it ended at once"))?;
    // The scheduler ends only with the node.
    let _ = kept.links.scheduler.send(actors.device_up(&parts.id)).await;
    let (done, loaded) = oneshot::channel();
    let asked = kept.models.send(DeviceRebuilt { device, done }).await;
    asked.map_err(NotBuilt::of)?;
    loaded.await.map_err(NotBuilt::of)?.map_err(NotBuilt::of)
}
