//! What the supervisor does about a device that failed: builds its actors again, or gives it up where it needs a new process. The
//! order is [`WayBack`]'s.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::way_back::{NotBuilt, RebuildAction, WayBack};
use super::{Inner, Kept};
use crate::admission::DevicesUp;
use crate::batcher::DeviceFailed;
use crate::bridge::DeviceErrorCode;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::ids::DeviceId;
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
        let Some(parts) = kept.parts.get(&id) else { return };
        let actors = kept.actors.borrow_mut().remove(&id);
        let mut rebuild = Rebuild { node: self, kept, id, parts, actors };
        let mut outcome = Ok(());
        while let Some(action) = way.next(outcome, self.is_ending()) {
            outcome = rebuild.carry_out(action, way.generation()).await;
        }
    }

    async fn tell_devices_up(&self, kept: &Kept) {
        let up = kept.actors.borrow().len();
        // Admission ends only with the node.
        let _ = self.admission.send(DevicesUp(up)).await;
    }
}

/// One device on its way back.
struct Rebuild<'a> {
    node: &'a Inner,
    kept: &'a Kept,
    id: DeviceId,
    parts: &'a DeviceParts,
    /// The build that ends, or the next one until it is kept.
    actors: Option<DeviceActors>,
}

impl Rebuild<'_> {
    async fn carry_out(&mut self, action: RebuildAction, generation: u64) -> Result<(), NotBuilt> {
        match (action, &self.actors) {
            (RebuildAction::TellDown, _) => self.tell_down(generation).await,
            (RebuildAction::Depart, Some(actors)) => actors.depart().await,
            (RebuildAction::End, _) => {
                if let Some(actors) = self.actors.take() {
                    actors.end_aside().await;
                }
            }
            (RebuildAction::Start, _) => {
                let built = DeviceActors::start(self.parts, &self.kept.links, generation).await;
                self.actors = Some(built.map_err(|error| NotBuilt {
                    sticky: error.code == DeviceErrorCode::Sticky,
                    reason: error.to_string(),
                })?);
            }
            (RebuildAction::TellUp, Some(actors)) => {
                // The scheduler ends only with the node.
                let _ = self.kept.links.scheduler.send(actors.device_up(&self.id)).await;
            }
            (RebuildAction::Load, Some(actors)) => return self.load(actors).await,
            (RebuildAction::Keep, _) => self.keep(generation).await,
            (RebuildAction::Pause { reason, pause }, _) => self.pause(&reason, pause).await,
            (RebuildAction::Lose { reason }, _) => {
                let device = self.id.clone();
                self.node.lose(DeviceFailed { device, generation, reason, sticky: true }).await;
            }
            // Of a build that is not there, nothing is to be done.
            (RebuildAction::Depart | RebuildAction::TellUp | RebuildAction::Load, None) => {}
        }
        Ok(())
    }

    async fn tell_down(&self, generation: u64) {
        let down = DeviceDown { device: self.id.clone(), generation, lost: false };
        // The scheduler ends only with the node. Admission is told when a first try has failed: what comes meanwhile can wait.
        let _ = self.kept.links.scheduler.send(down).await;
    }

    /// Waits until every model is on the build.
    async fn load(&self, actors: &DeviceActors) -> Result<(), NotBuilt> {
        let device =
            actors.handle(&self.id).ok_or_else(|| NotBuilt::of("the executor has ended"))?;
        let (done, loaded) = oneshot::channel();
        let asked = self.kept.models.send(DeviceRebuilt { device, done }).await;
        asked.map_err(NotBuilt::of)?;
        loaded.await.map_err(NotBuilt::of)?.map_err(NotBuilt::of)
    }

    async fn keep(&mut self, generation: u64) {
        if let Some(actors) = self.actors.take() {
            self.kept.actors.borrow_mut().insert(self.id.clone(), actors);
        }
        self.node.vitals.device_rebuilt(&self.id);
        self.kept.links.metrics.device(self.id.as_str()).rebuilds.increment(1);
        tracing::info!(device = %self.id, generation, "device rebuilt");
        self.node.tell_devices_up(self.kept).await;
    }

    async fn pause(&self, reason: &str, pause: Duration) {
        tracing::error!(device = %self.id, reason, "not rebuilt, trying again");
        self.node.vitals.device_down(&self.id, reason);
        self.node.tell_devices_up(self.kept).await;
        // A node that ends waits for no pause.
        let _ = timeout(pause, self.node.ending.subscribe().wait_for(|ending| *ending)).await;
    }
}
