//! The batcher's side of the world: what its loop meets in the place of mailboxes and streams, and the device below it.

use std::time::Duration;

use inferno_node::batcher::{
    Credit, DeviceFailed, Failure, LaneSpec, Neighbours, PlannedStep, Sent, Started, StepLoop,
};
use inferno_node::clock::Timestamp;
use inferno_node::error::{Error, Kind};
use inferno_node::ids::ModelId;
use inferno_node::reply::Delivery;
use inferno_node::sequence::Sequence;

use super::chance::Chance;
use super::device::{END_TOKEN, FakeDevice};
use super::request::End;
use super::world::{Event, MAX_STEP_US, ToScheduler, Who, World};

/// The neighbours of the batcher of device `at`.
pub struct Neighbourhood<'a> {
    world: &'a mut World,
    at: usize,
}

impl Neighbourhood<'_> {
    /// Whether the mailbox that comes next is full, as chance has it.
    fn is_full(&mut self) -> bool {
        self.world.chance.percent(self.world.plan.mailbox_full_percent)
    }

    fn say(&mut self, word: ToScheduler) {
        self.world.say(self.at, word);
    }
}

impl Neighbours<Who> for Neighbourhood<'_> {
    fn step(&mut self, step: PlannedStep) -> Sent<PlannedStep> {
        if self.is_full() {
            return Sent::Full(step);
        }
        let device = &mut self.world.devices[self.at];
        device.steps.push_back(step);
        if device.steps.len() == 1 {
            let end = Event::StepEnd(self.at, device.generation);
            self.world.after(50, MAX_STEP_US, end);
        }
        Sent::Taken
    }

    fn deliver(
        &mut self,
        step: (Vec<Delivery<Who>>, Timestamp),
    ) -> Sent<(Vec<Delivery<Who>>, Timestamp)> {
        if self.is_full() {
            return Sent::Full(step);
        }
        let (deliveries, _) = step;
        for one in &deliveries {
            self.world.requests[one.stream].finishes += u32::from(one.finish.is_some());
        }
        self.world.devices[self.at].to_reply.push_back(deliveries);
        self.world.in_order(self.at, 2, Event::ToReply(self.at));
        Sent::Taken
    }

    fn credit(&mut self, credit: Credit) -> Sent<Credit> {
        if self.is_full() {
            return Sent::Full(credit);
        }
        self.say(ToScheduler::Credit(credit));
        Sent::Taken
    }

    fn returned(&mut self, sequences: Vec<(Sequence, Who)>) -> Sent<Vec<(Sequence, Who)>> {
        if self.is_full() {
            return Sent::Full(sequences);
        }
        self.say(ToScheduler::Returned(sequences));
        Sent::Taken
    }

    fn failed(&mut self, failed: DeviceFailed) -> Sent<DeviceFailed> {
        if self.is_full() {
            return Sent::Full(failed);
        }
        self.world.after(0, 300, Event::DeviceFailed(self.at, failed.generation));
        Sent::Taken
    }

    fn started(&mut self, started: Started<Who>, _: Timestamp) {
        self.world.cached_tokens += u64::from(started.cached_tokens);
        self.world.requests[started.stream].on_device = true;
    }

    fn preempted(&mut self, count: u32) {
        self.world.preemptions += count;
    }

    fn cancel(&mut self, who: &Who, at: Timestamp) {
        self.world.requests[*who].end(End::Cancelled, at.as_micros());
    }

    fn fail(&mut self, who: &Who, error: Error, at: Timestamp) {
        assert_ne!(error.kind, Kind::ContextLength, "assigned beyond all memory");
        let request = &mut self.world.requests[*who];
        request.finishes += 1;
        request.end(End::Failed, at.as_micros());
    }

    fn restart(&mut self, who: &Who, attempt: u32) -> Option<u32> {
        let request = &mut self.world.requests[*who];
        request.attempt = attempt;
        request.on_device = false;
        request.end.is_none().then_some(request.taken.len() as u32)
    }
}

impl World {
    /// Something happens to the batcher of a device, and its loop takes a turn.
    pub fn batcher<T>(
        &mut self,
        at: usize,
        happens: impl FnOnce(&mut StepLoop<Who>, &mut Neighbourhood<'_>) -> T,
    ) -> T {
        let mut steps = self.devices[at].batcher.take().expect("nothing happens inside of a turn");
        let now = self.stamp();
        let mut to = Neighbourhood { world: self, at };
        let result = happens(&mut steps, &mut to);
        let turn = steps.turn(&mut to, now);
        let device = &mut self.devices[at];
        assert!(turn.removed.iter().all(|model| device.closed.contains(model)));
        device.batcher = Some(steps);
        if !turn.waits && std::mem::take(&mut device.departs) {
            self.departed(at);
        }
        if let Some(until) = turn.gathers_until {
            self.gathers += 1;
            let us = until.since(now).as_micros() as u64;
            self.after(us, us + 100, Event::Gathered(at));
        }
        let device = &mut self.devices[at];
        if turn.waits && !std::mem::replace(&mut device.retry_planned, true) {
            self.after(1_000, 1_500, Event::Retry(at));
        }
        result
    }

    /// Newcomers waited for others long enough.
    pub fn gathered(&mut self, at: usize) {
        if self.devices[at].batcher.is_some() {
            self.batcher(at, |_, _| ());
        }
    }

    pub fn retry(&mut self, at: usize) {
        self.devices[at].retry_planned = false;
        self.batcher(at, |_, _| ());
    }

    pub fn step_end(&mut self, at: usize) -> Result<(), String> {
        let device = &mut self.devices[at];
        let Some(step) = device.steps.pop_front() else { return Ok(()) };
        device.fake.bind(&step)?;
        let members = device.fake.members(&step)?;
        let members: Vec<_> = members.into_iter().map(|seed| seed as usize).collect();
        let poisoned = members.iter().zip(&step.batch.context_lens).any(|(who, context_len)| {
            self.requests[*who].poison_at.is_some_and(|at| *context_len >= at)
        });
        if poisoned || self.chance.percent(self.plan.step_fails_percent) {
            for who in members {
                self.requests[who].failed_steps += 1;
            }
            self.fail(at, Failure { step: Some(step.step), ..Failure::of("drawn") });
            return Ok(());
        }
        let output = device.fake.run(&step)?;
        if !device.steps.is_empty() {
            let end = Event::StepEnd(at, device.generation);
            self.after(50, MAX_STEP_US, end);
        }
        let now = self.stamp();
        let settled =
            self.batcher(at, |steps, to| steps.settle(step.step, (&output, step.batch), to, now));
        settled.map(|_| ()).map_err(|defect| defect.to_string())
    }

    /// A step of the device failed, or its batcher panicked.
    pub fn fail(&mut self, at: usize, failure: Failure<'_>) {
        let device = &mut self.devices[at];
        if device.has_failed() {
            return;
        }
        device.mailbox_lost = false;
        device.steps.clear();
        self.failures += 1;
        let now = self.stamp();
        self.batcher(at, |steps, to| steps.fail(failure, to, now));
    }

    pub fn batcher_panics(&mut self, at: usize) {
        self.fail(at, Failure::of("a panic"));
        self.devices[at].mailbox_lost = true;
    }

    /// The batcher gives back what it has.
    pub fn depart(&mut self, at: usize) {
        self.devices[at].departs = true;
        self.fail(at, Failure::of("its actors end"));
        self.batcher(at, |_, _| ());
    }

    /// The reply stage has yet to tell what the batcher sent it before.
    pub fn departed(&mut self, at: usize) {
        self.devices[at].to_reply.push_back(Vec::new());
        self.in_order(at, 2, Event::ToReply(at));
    }

    /// What a batcher that panicked has to send is sent when there is room.
    pub fn end_actors(&mut self, at: usize) {
        while self.devices[at].retry_planned {
            self.retry(at);
        }
        self.devices[at].has_ended = true;
    }

    pub fn start_actors(&mut self, at: usize, generation: u64) {
        let device = &mut self.devices[at];
        (device.generation, device.has_ended, device.mailbox_lost) = (generation, false, false);
        device.fake = FakeDevice::default();
        let mut steps = StepLoop::new(device.id.clone(), generation);
        steps.attach();
        device.batcher = Some(steps);
    }

    /// Loads so many models of those that the device is to have.
    pub fn load_models(&mut self, at: usize, count: usize) {
        for spec in self.plan.specs[at].clone().into_iter().take(count) {
            if !self.devices[at].closed.contains(&spec.model) {
                self.devices[at].fake.add_model(spec.clone());
                self.batcher(at, |steps, _| steps.add_model(spec));
            }
        }
    }

    pub fn close_model(&mut self, at: usize, model: ModelId) {
        self.devices[at].closed.push(model);
        self.batcher(at, |steps, _| steps.close_model(model));
    }
}

/// A lane for a model, large or small as chance has it, never too small for the longest request.
pub fn draw_spec(model: ModelId, chance: &mut Chance) -> LaneSpec {
    let block_size = chance.pick(&[1, 2, 4, 8, 16]);
    let longest: u32 = 84;
    let tight = chance.percent(60);
    let tokens = longest + chance.between(0, if tight { 40 } else { 1000 }) as u32;
    let max_batch_size = chance.between(1, 10) as u32;
    let target_us = chance.percent(50).then(|| chance.between(1, 1_500));
    LaneSpec {
        model,
        num_blocks: tokens.div_ceil(block_size),
        block_size,
        max_batch_size,
        max_step_tokens: max_batch_size + chance.between(0, 40) as u32,
        step_time_target: target_us.map(Duration::from_micros),
        max_seq_len: 84,
        window: chance.percent(30).then(|| chance.between(2, 30) as u32),
        end_token_ids: vec![END_TOKEN],
        enable_prefix_cache: chance.percent(80),
        reserve_tokens: chance.pick(&[0, 4, 64]),
    }
}
