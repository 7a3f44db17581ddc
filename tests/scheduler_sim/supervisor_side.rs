//! The supervisor's side of the world: failed devices are built again, one after the other, as the node's own [`WayBack`] has it.

use std::collections::VecDeque;

use inferno_node::node::{NotBuilt, RebuildAction, WayBack};

use super::world::{Event, MAX_DELAY_US, ToBatcher, World};

/// So many builds of a run fail at most: a device that never comes back leaves requests that wait for ever.
const MAX_FAILED_BUILDS: u32 = 6;

#[derive(Default)]
pub struct Supervisor {
    /// Builds that were kept, by device.
    present: Vec<Option<u64>>,
    /// Words of failures that wait for their turn.
    failed: VecDeque<(usize, u64)>,
    rebuild: Option<Rebuild>,
    pub failed_builds: u32,
    /// All that rebuilds took.
    pub rebuilds_us: u64,
}

struct Rebuild {
    at: usize,
    way: WayBack,
    /// Of what is being done.
    outcome: Result<(), NotBuilt>,
    began_us: u64,
}

impl World {
    pub fn first_build(&mut self, at: usize) {
        self.start_actors(at, 1);
        let device = self.devices[at].id.clone();
        self.scheduling.device_up(&device, 1);
        self.load_models(at, usize::MAX);
        self.supervisor.present.push(Some(1));
    }

    pub fn device_failed(&mut self, at: usize, generation: u64) {
        self.supervisor.failed.push_back((at, generation));
        if self.supervisor.rebuild.is_none() {
            self.next_rebuild();
        }
    }

    fn next_rebuild(&mut self) {
        while let Some((at, generation)) = self.supervisor.failed.pop_front() {
            let present = &mut self.supervisor.present[at];
            if let Some(way) = WayBack::of(generation, *present) {
                *present = None;
                let rebuild = Rebuild { at, way, outcome: Ok(()), began_us: self.now };
                self.supervisor.rebuild = Some(rebuild);
                return self.rebuild_goes_on();
            }
        }
    }

    pub fn rebuild_goes_on(&mut self) {
        let Some(mut rebuild) = self.supervisor.rebuild.take() else { return };
        let outcome = std::mem::replace(&mut rebuild.outcome, Ok(()));
        let Some(action) = rebuild.way.next(outcome, false) else {
            self.supervisor.rebuilds_us += self.now - rebuild.began_us;
            return self.next_rebuild();
        };
        let (at, generation) = (rebuild.at, rebuild.way.generation());
        rebuild.outcome = self.outcome_of(at, &action);
        let failed = rebuild.outcome.is_err();
        self.supervisor.rebuild = Some(rebuild);
        self.carry_out(at, generation, action, failed);
    }

    /// How it will go, as chance has it.
    fn outcome_of(&mut self, at: usize, action: &RebuildAction) -> Result<(), NotBuilt> {
        if !matches!(action, RebuildAction::Start | RebuildAction::Load) {
            return Ok(());
        }
        let sticky = self.plan.loses && at == 0;
        let drawn = self.supervisor.failed_builds < MAX_FAILED_BUILDS
            && self.chance.percent(self.plan.build_fails_percent);
        if !sticky && !drawn {
            return Ok(());
        }
        self.supervisor.failed_builds += 1;
        Err(NotBuilt { sticky, ..NotBuilt::of("drawn") })
    }

    fn carry_out(&mut self, at: usize, generation: u64, action: RebuildAction, fails: bool) {
        let device = self.devices[at].id.clone();
        let (mut least, mut most) = (0, MAX_DELAY_US);
        match action {
            RebuildAction::TellDown => self.scheduling.device_down(&device, generation),
            // Goes on when the reply stage has told everything.
            RebuildAction::Depart => {
                return self.send_to_batcher(at, generation, ToBatcher::Depart);
            }
            RebuildAction::End => self.end_actors(at),
            RebuildAction::Start => {
                (least, most) = (500, 5_000);
                if !fails {
                    self.start_actors(at, generation);
                }
            }
            RebuildAction::TellUp => self.scheduling.device_up(&device, generation),
            RebuildAction::Load => {
                (least, most) = (500, 5_000);
                // One that fails has some of its models, and may run sequences of them by then.
                self.load_models(at, if fails { 1 } else { usize::MAX });
            }
            RebuildAction::Keep => self.supervisor.present[at] = Some(generation),
            RebuildAction::Pause { pause, .. } => {
                (least, most) = (pause.as_micros() as u64, pause.as_micros() as u64);
            }
            RebuildAction::Lose { .. } => {
                self.scheduling.device_down(&device, generation);
                self.scheduling.device_lost(&device);
            }
        }
        self.after(least, most, Event::RebuildGoesOn);
    }
}
