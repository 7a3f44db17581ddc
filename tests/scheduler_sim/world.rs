//! A node in small: the two policies, fake devices, and queues with delays between them, driven by chance from one seed.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use inferno_node::batcher::{Credit, LaneSpec, PlannedStep, StepLoop};
use inferno_node::clock::Timestamp;
use inferno_node::ids::{DeviceId, ModelId};
use inferno_node::reply::Delivery;
use inferno_node::scheduler::{Assignment, Config, Leaving, Refusal, Scheduling};
use inferno_node::sequence::Sequence;

use super::chance::Chance;
use super::device::FakeDevice;
use super::request::{End, Request};
use super::supervisor_side::Supervisor;

/// Index of a request: what travels with a sequence here.
pub type Who = usize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    Arrive,
    Cancel(Who),
    Sweep,
    /// The front of a queue arrives.
    ToBatcher(usize),
    ToScheduler(usize),
    ToReply(usize),
    /// The front step of a device ends.
    StepEnd(usize, u64),
    /// The supervisor hears of the end of a build.
    DeviceFailed(usize, u64),
    /// What a rebuild does is done.
    RebuildGoesOn,
    /// The batcher sends again what found no room.
    Retry(usize),
    Gathered(usize),
    BatcherPanics(usize),
    CloseModel(usize, ModelId),
}

pub enum ToScheduler {
    Credit(Credit),
    Returned(Vec<(Sequence, Who)>),
}

pub enum ToBatcher {
    Assign(Sequence, Who),
    Depart,
}

/// What is drawn for a run, and fixed in it.
#[derive(Debug, Clone)]
pub struct Plan {
    pub devices: usize,
    pub models: u32,
    pub requests: usize,
    pub specs: Vec<Vec<LaneSpec>>,
    pub step_fails_percent: u64,
    pub build_fails_percent: u64,
    pub mailbox_full_percent: u64,
    pub cancels_percent: u64,
    pub poison: Option<usize>,
    pub panics: bool,
    pub closes: bool,
    /// The first device is lost when it is to be built again.
    pub loses: bool,
}

pub struct Device {
    pub id: DeviceId,
    pub generation: u64,
    /// Its actors have ended: what is sent to them comes back.
    pub has_ended: bool,
    /// None before the first build, and in its own turn.
    pub batcher: Option<StepLoop<Who>>,
    pub retry_planned: bool,
    pub fake: FakeDevice,
    pub steps: VecDeque<PlannedStep>,
    pub closed: Vec<ModelId>,
    /// Its batcher panicked: what was in the mailbox is gone.
    pub mailbox_lost: bool,
    /// Its batcher is to say when all has left that it had to send.
    pub departs: bool,
    to_batcher: VecDeque<(u64, ToBatcher)>,
    to_scheduler: VecDeque<ToScheduler>,
    pub to_reply: VecDeque<Vec<Delivery<Who>>>,
    /// When the last message of each queue arrives: they keep their order.
    arrives: [u64; 3],
}

pub struct World {
    pub plan: Plan,
    pub chance: Chance,
    pub now: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    num_events: u64,
    pub scheduling: Scheduling<Who>,
    pub devices: Vec<Device>,
    pub requests: Vec<Request>,
    leads: Vec<Vec<u32>>,
    pub preemptions: u32,
    pub cached_tokens: u64,
    pub failures: u32,
    pub gathers: u32,
    pub supervisor: Supervisor,
}

/// One level in 20 ms: a run lasts about a second of its own time.
pub const AGEING_US: u64 = 20_000;
pub const PATIENCE_US: u64 = 2_000;
pub const MAX_STEP_US: u64 = 1_500;
pub const MAX_DELAY_US: u64 = 300;

impl Device {
    pub fn takes_messages(&self) -> bool {
        !self.has_ended && !self.mailbox_lost
    }

    pub fn has_failed(&self) -> bool {
        self.batcher.as_ref().is_some_and(StepLoop::has_failed)
    }
}

impl World {
    pub fn new(plan: Plan, seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let config = Config {
            ageing_s: AGEING_US as f64 / 1e6,
            patience_ms: PATIENCE_US / 1000,
            unavailable_after_s: 30,
            prefix_index_blocks: 64,
        };
        let devices = (0..plan.devices).map(|at| Device {
            id: DeviceId::new(&format!("sim:{at}")),
            generation: 0,
            has_ended: false,
            batcher: None,
            retry_planned: false,
            fake: FakeDevice::default(),
            steps: VecDeque::new(),
            closed: Vec::new(),
            mailbox_lost: false,
            departs: false,
            to_batcher: VecDeque::new(),
            to_scheduler: VecDeque::new(),
            to_reply: VecDeque::new(),
            arrives: [0; 3],
        });
        let lead = |chance: &mut Chance| (0..40).map(|_| chance.between(0, 3) as u32).collect();
        let leads = (0..3).map(|_| lead(&mut chance)).collect();
        let mut world = Self {
            devices: devices.collect(),
            scheduling: Scheduling::new(config),
            events: BinaryHeap::new(),
            num_events: 0,
            now: 0,
            requests: Vec::new(),
            leads,
            preemptions: 0,
            cached_tokens: 0,
            failures: 0,
            gathers: 0,
            supervisor: Supervisor::default(),
            chance,
            plan,
        };
        for device in 0..world.devices.len() {
            world.first_build(device);
        }
        world.after(0, 0, Event::Arrive);
        world.after(0, 0, Event::Sweep);
        if world.plan.panics {
            world.after(1_000, 60_000, Event::BatcherPanics(0));
        }
        if world.plan.closes {
            world.after(1_000, 60_000, Event::CloseModel(0, ModelId(0)));
        }
        world
    }

    /// Runs until nothing is left to happen.
    pub fn run(&mut self) -> Result<(), String> {
        while let Some(Reverse((at, _, event))) = self.events.pop() {
            self.now = at;
            self.handle(event).map_err(|text| format!("at {at} us, {event:?}: {text}"))?;
            self.audit().map_err(|text| format!("after {event:?} at {at} us: {text}"))?;
            if self.num_events > 400_000 {
                return Err("no end in sight".into());
            }
        }
        self.at_rest()
    }

    fn handle(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Arrive => self.arrive(),
            Event::Cancel(who) => self.cancel(who),
            Event::Sweep => {
                self.scheduling.sweep(self.stamp());
                if !self.all_ended() {
                    self.after(1_000, 3_000, Event::Sweep);
                }
            }
            Event::ToBatcher(device) => self.reach_batcher(device),
            Event::ToScheduler(device) => self.reach_scheduler(device),
            Event::ToReply(device) => self.reach_reply(device),
            Event::StepEnd(device, generation) => {
                if self.devices[device].generation == generation {
                    self.step_end(device)?;
                }
            }
            Event::DeviceFailed(device, generation) => self.device_failed(device, generation),
            Event::RebuildGoesOn => self.rebuild_goes_on(),
            Event::BatcherPanics(device) => self.batcher_panics(device),
            Event::Retry(device) => self.retry(device),
            Event::Gathered(device) => self.gathered(device),
            Event::CloseModel(device, model) => self.close_model(device, model),
        }
        self.dispatch();
        Ok(())
    }

    fn cancel(&mut self, who: Who) {
        self.requests[who].handle.cancel();
        if self.chance.percent(50) {
            let now = self.stamp();
            for at in 0..self.devices.len() {
                self.batcher(at, |steps, to| steps.sweep(to, now));
            }
        }
    }

    fn arrive(&mut self) {
        let id = self.requests.len();
        let model = ModelId(self.chance.between(0, u64::from(self.plan.models) - 1) as u32);
        let lead = self.chance.between(0, self.leads.len() as u64 - 1) as usize;
        let lead = &self.leads[lead];
        let mut request = Request::draw(id as u64, model, lead, self.now, &mut self.chance);
        if self.plan.poison == Some(id) {
            let longest = request.sequence.num_prompt_tokens + request.expected.len() as u32;
            request.poison_at =
                Some(self.chance.between(1, u64::from((longest - 1).max(1))) as u32);
        }
        self.scheduling.enqueue(request.sequence.clone(), id);
        self.requests.push(request);
        if self.chance.percent(self.plan.cancels_percent) {
            self.after(0, 30_000, Event::Cancel(id));
        }
        if self.requests.len() < self.plan.requests {
            let burst = self.chance.percent(60);
            self.after(0, if burst { 100 } else { 8_000 }, Event::Arrive);
        }
    }

    /// What the scheduler's actor does after every message.
    fn dispatch(&mut self) {
        while let Some(assignment) = self.scheduling.next(self.stamp()) {
            let at = self.devices.iter().position(|device| device.id == assignment.device);
            let at = at.expect("the scheduler knows only these");
            let device = &self.devices[at];
            let is_there = device.generation == assignment.generation && device.takes_messages();
            if !is_there {
                self.scheduling.put_back(assignment, Refusal::Gone);
            } else if self.chance.percent(self.plan.mailbox_full_percent) {
                self.scheduling.put_back(assignment, Refusal::Full);
            } else {
                let Assignment { generation, sequence, stream, .. } = assignment;
                self.send_to_batcher(at, generation, ToBatcher::Assign(sequence, stream));
            }
        }
        for leaving in self.scheduling.take_leaving() {
            let (who, end) = match leaving {
                Leaving::Cancelled(who) => (who, End::Cancelled),
                Leaving::Failed(who, _) => (who, End::Failed),
            };
            self.requests[who].finishes += 1;
            self.requests[who].end(end, self.now);
        }
    }

    pub fn send_to_batcher(&mut self, at: usize, generation: u64, message: ToBatcher) {
        self.devices[at].to_batcher.push_back((generation, message));
        self.in_order(at, 0, Event::ToBatcher(at));
    }

    fn reach_batcher(&mut self, at: usize) {
        let device = &mut self.devices[at];
        let Some((generation, message)) = device.to_batcher.pop_front() else { return };
        let is_there = device.generation == generation && device.takes_messages();
        let now = self.stamp();
        match message {
            ToBatcher::Assign(sequence, who) if is_there => {
                self.batcher(at, |steps, to| steps.assign(sequence, who, to, now));
            }
            // The stream was dropped with the mailbox.
            ToBatcher::Assign(_, who) => self.requests[who].end(End::Dropped, self.now),
            ToBatcher::Depart if is_there => self.depart(at),
            ToBatcher::Depart => self.departed(at),
        }
    }

    fn reach_scheduler(&mut self, at: usize) {
        match self.devices[at].to_scheduler.pop_front() {
            Some(ToScheduler::Credit(credit)) => self.scheduling.credit(credit),
            Some(ToScheduler::Returned(sequences)) => {
                for (sequence, who) in sequences {
                    assert!(!self.requests[who].on_device, "it waits, and does not count");
                    self.scheduling.enqueue(sequence, who);
                }
            }
            None => {}
        }
    }

    fn reach_reply(&mut self, at: usize) {
        let Some(deliveries) = self.devices[at].to_reply.pop_front() else { return };
        if deliveries.is_empty() {
            return self.rebuild_goes_on();
        }
        for produced in deliveries {
            let now = self.now;
            let request = &mut self.requests[produced.stream];
            if request.end.is_some() || produced.attempt < request.attempt {
                continue;
            }
            request.told.extend(produced.prompt_scores);
            request.taken.extend(produced.token.map(|token| token.id));
            if request.stop_after.is_some_and(|after| request.taken.len() >= after) {
                request.end(End::Stopped, now);
            } else if let Some(finish) = produced.finish {
                request.end(End::Finished(finish), now);
            }
        }
    }

    fn audit(&self) -> Result<(), String> {
        self.devices.iter().try_for_each(|device| {
            let Some(batcher) = &device.batcher else { return Ok(()) };
            batcher.audit()?;
            let (sent, here) = (batcher.num_sent(), device.steps.len());
            if sent != here {
                return Err(format!("{sent} steps counted, {here} sent"));
            }
            Ok(())
        })
    }

    fn at_rest(&self) -> Result<(), String> {
        for (who, request) in self.requests.iter().enumerate() {
            if request.end == Some(End::Dropped) && !self.plan.panics {
                return Err(format!("request {who} was lost with a mailbox"));
            }
            request.verdict().map_err(|text| {
                format!("request {who} ({:?}): {text}", request.sequence.sampler.seed)
            })?;
        }
        for batcher in self.devices.iter().filter_map(|device| device.batcher.as_ref()) {
            let load = batcher.load();
            if (load.running, load.waiting, load.used_blocks) != (0, 0, 0) {
                return Err(format!("left over: {load:?}"));
            }
        }
        if self.scheduling.is_empty() { Ok(()) } else { Err("left over in the queue".into()) }
    }

    pub fn all_ended(&self) -> bool {
        self.requests.len() == self.plan.requests
            && self.requests.iter().all(|request| request.end.is_some())
    }

    pub fn stamp(&self) -> Timestamp {
        Timestamp::from_micros(self.now)
    }

    pub fn say(&mut self, at: usize, word: ToScheduler) {
        self.devices[at].to_scheduler.push_back(word);
        self.in_order(at, 1, Event::ToScheduler(at));
    }

    /// Plans the arrival of a message behind those sent before it.
    pub fn in_order(&mut self, at: usize, queue: usize, event: Event) {
        let delay = self.chance.between(0, MAX_DELAY_US);
        let arrives = &mut self.devices[at].arrives[queue];
        *arrives = (*arrives).max(self.now + delay);
        let arrives = *arrives;
        self.at(arrives, event);
    }

    pub fn after(&mut self, least: u64, most: u64, event: Event) {
        let delay = self.chance.between(least, most.max(least));
        self.at(self.now + delay, event);
    }

    fn at(&mut self, time: u64, event: Event) {
        self.num_events += 1;
        self.events.push(Reverse((time, self.num_events, event)));
    }
}
