//! What the batcher does around its policy after every event: sends what waits, forms steps, tells what changed. Pure: its neighbours
//! are a trait, so the simulator drives the same loop as the actor.

use super::gathering::{FormStep, Gathering};
use super::lane::LaneSpec;
use super::policy::{Batching, Defect, Occupancy, Refused};
use super::seated::{Departure, Output};
use super::settle::MAX_FAILED_STEPS;
use super::step_gap::device_time;
use super::unsent::{Gone, Neighbours, Unsent};
use super::{Credit, DeviceFailed};
use crate::bridge::ffi::{StepBatch, StepOutput};
use crate::clock::Timestamp;
use crate::error::{Error, Kind};
use crate::executor::CostModel;
use crate::ids::{DeviceId, ModelId};
use crate::sequence::Sequence;

/// What a turn of the loop came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Models that are gone: their last sequence has left, and the scheduler knows that no credit is left.
    pub removed: Vec<ModelId>,
    /// Something found no room: another turn is due in a moment.
    pub waits: bool,
    /// Another turn is due then: newcomers wait for more of them until it.
    pub gathers_until: Option<Timestamp>,
}

/// See the module.
#[derive(Debug)]
pub struct StepLoop<S> {
    device: DeviceId,
    generation: u64,
    policy: Batching<S>,
    output: Output<S>,
    unsent: Unsent<S>,
    gathering: Gathering,
    /// The newest credit of each model, sent or unsent.
    credits: Vec<Credit>,
    /// Models that are to go.
    closing: Vec<ModelId>,
    /// The executor is there.
    attached: bool,
    /// Everything was given back; what still comes is given back too.
    failed: bool,
}

impl<S: Clone> StepLoop<S> {
    /// For one build of a device's actors, with no model and no executor.
    pub fn new(device: DeviceId, generation: u64) -> Self {
        Self {
            device,
            generation,
            policy: Batching::new(),
            output: Output::default(),
            unsent: Unsent::default(),
            gathering: Gathering::default(),
            credits: Vec::new(),
            closing: Vec::new(),
            attached: false,
            failed: false,
        }
    }

    /// The executor is there: steps may be formed.
    pub fn attach(&mut self) {
        self.attached = true;
    }

    /// Whether everything was given back.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// How much is here.
    pub fn load(&self) -> Occupancy {
        self.policy.load()
    }

    /// Sequences that are held.
    pub fn num_held(&self) -> u32 {
        self.policy.num_held()
    }

    /// What a model's steps cost, by those that are done; none before that is known.
    pub fn costs(&self, model: ModelId) -> Option<CostModel> {
        self.policy.costs(model)
    }

    /// Seats of all models.
    pub fn num_seats(&self) -> usize {
        self.policy.num_seats()
    }

    /// Steps that the executor has.
    pub fn num_sent(&self) -> usize {
        self.policy.num_in_flight() - usize::from(self.unsent.holds_step())
    }

    /// Holds every count against what it counts; for tests, after every event.
    ///
    /// # Errors
    /// Says which is wrong.
    pub fn audit(&self) -> Result<(), String> {
        self.policy.audit()
    }

    /// A model's weights are on the device.
    pub fn add_model(&mut self, spec: LaneSpec) {
        if !self.failed {
            self.policy.add_model(spec);
        }
    }

    /// A model is to go: it gets no more credit. [`Turn::removed`] names it when it is gone.
    pub fn close_model(&mut self, model: ModelId) {
        self.policy.close_model(model);
        self.renew_credits();
        self.closing.push(model);
    }

    /// Takes a sequence.
    pub fn assign(
        &mut self,
        sequence: Sequence,
        stream: S,
        to: &mut impl Neighbours<S>,
        now: Timestamp,
    ) {
        match self.policy.assign(sequence, stream) {
            Ok(()) => {}
            Err(Refused::UnknownModel(sequence, stream)) => {
                self.unsent.returned(vec![(sequence, stream)]);
            }
            Err(Refused::TooLong { stream, needed, total, .. }) => {
                let text = format!(
                    "the request needs {needed} KV blocks, and {} has {total}",
                    self.device
                );
                to.fail(&stream, Error::new(Kind::ContextLength, text), now);
            }
        }
    }

    /// Ends sequences that nobody wants any more at once, not with the next step.
    pub fn sweep(&mut self, to: &mut impl Neighbours<S>, now: Timestamp) {
        self.policy.sweep(&mut self.output);
        self.announce(to, now);
    }

    /// Takes the answer of a step that ended at `at`; returns how many tokens it computed.
    ///
    /// # Errors
    /// [`Defect`] if it is not the answer of the step that was sent first; it counts as failed then.
    pub fn settle(
        &mut self,
        step: u64,
        (output, batch): (&StepOutput, Box<StepBatch>),
        to: &mut impl Neighbours<S>,
        at: Timestamp,
    ) -> Result<u32, Defect> {
        let settled = self.policy.settle(step, output, batch, &mut self.output);
        match &settled {
            Ok(_) => {
                self.gathering.step_ended(at, device_time(output.device_us));
                self.announce(to, at);
            }
            Err(defect) => {
                self.fail(Failure { step: Some(step), ..Failure::of(&defect.to_string()) }, to, at);
            }
        }
        settled
    }

    /// Gives everything back, once: after a failed step the device's memory is not trusted any more.
    pub fn fail(&mut self, failure: Failure<'_>, to: &mut impl Neighbours<S>, now: Timestamp) {
        if self.failed {
            return;
        }
        self.failed = true;
        self.unsent.forget_step();
        for mut credit in self.credits.drain(..) {
            credit.open = false;
            self.unsent.credit(credit);
        }
        let gone = self.policy.depart(failure.step);
        let reason = failure.reason;
        let sequences: Vec<_> =
            gone.into_iter().filter_map(|gone| part_with(gone, reason, to, now)).collect();
        tracing::debug!(device = %self.device, reason, returned = sequences.len(), "the batcher ends");
        if !sequences.is_empty() {
            self.unsent.returned(sequences);
        }
        self.unsent.failed(DeviceFailed {
            device: self.device.clone(),
            generation: self.generation,
            reason: reason.to_owned(),
            sticky: failure.sticky,
        });
    }

    /// After every event: sends what waits, forms steps, tells what changed.
    pub fn turn(&mut self, to: &mut impl Neighbours<S>, now: Timestamp) -> Turn {
        self.flush(to, now);
        let mut gathers_until = None;
        while !self.failed && self.attached && self.unsent.may_form_step() {
            let (newcomers, in_flight) = (self.policy.newcomers(), self.policy.num_in_flight());
            match self.gathering.when(newcomers, in_flight, now) {
                FormStep::Now => {}
                FormStep::AfterStep => break,
                FormStep::Until(until) => {
                    gathers_until = Some(until);
                    break;
                }
            }
            let planned = self.policy.next_step(&mut self.output);
            self.announce(to, now);
            let Some(planned) = planned else { break };
            self.unsent.step(planned);
            self.flush(to, now);
        }
        // What held a step back may leave with the next words; the step is still to be formed then.
        let held_back = !self.unsent.may_form_step();
        self.renew_credits();
        self.flush(to, now);
        let waits = held_back || !self.unsent.is_empty();
        Turn { removed: self.remove_closed(), waits, gathers_until }
    }

    /// The owner ends: what it has still to send.
    pub fn take_unsent(&mut self) -> Unsent<S> {
        std::mem::take(&mut self.unsent)
    }

    fn flush(&mut self, to: &mut impl Neighbours<S>, now: Timestamp) {
        if let Err(Gone(who)) = self.unsent.flush(to) {
            self.fail(Failure::of(&format!("the {who} actor has ended")), to, now);
        }
    }

    /// Tells streams and reply what the policy has put out.
    fn announce(&mut self, to: &mut impl Neighbours<S>, at: Timestamp) {
        for started in self.output.started.drain(..) {
            to.started(started, at);
        }
        to.preempted(std::mem::take(&mut self.output.preemptions));
        if self.output.produced.is_empty() {
            return;
        }
        let room = Vec::with_capacity(self.output.produced.len()); // the next step brings about as many
        self.unsent.deliver(std::mem::replace(&mut self.output.produced, room), at);
    }

    fn renew_credits(&mut self) {
        for credit in self.policy.credits(&self.device, self.generation) {
            match self.credits.iter_mut().find(|sent| sent.model == credit.model) {
                Some(sent) if *sent == credit => continue,
                Some(sent) => sent.clone_from(&credit),
                None => self.credits.push(credit.clone()),
            }
            self.unsent.credit(credit);
        }
    }

    fn remove_closed(&mut self) -> Vec<ModelId> {
        let (unsent, policy) = (&self.unsent, &mut self.policy);
        let gone =
            |model: &mut ModelId| !unsent.holds_credit_of(*model) && policy.remove_model(*model);
        let removed: Vec<_> = self.closing.extract_if(.., gone).collect();
        self.credits.retain(|credit| !removed.contains(&credit.model));
        removed
    }
}

/// Why a device is to be built again.
#[derive(Debug, Clone, Copy)]
pub struct Failure<'a> {
    /// For log, health and clients.
    pub reason: &'a str,
    /// The step that failed: its members have one failed step more.
    pub step: Option<u64>,
    /// The process must restart for this device to work again.
    pub sticky: bool,
}

impl<'a> Failure<'a> {
    /// One that no step is to blame for.
    pub fn of(reason: &'a str) -> Self {
        Self { reason, step: None, sticky: false }
    }
}

/// Ends what can be ended here and prepares the rest for another start; `None` if nothing is to be started again.
fn part_with<S>(
    departure: Departure<S>,
    reason: &str,
    to: &mut impl Neighbours<S>,
    now: Timestamp,
) -> Option<(Sequence, S)> {
    let Departure { mut sequence, stream, restarted } = departure;
    if sequence.handle.wants_no_more() {
        if sequence.handle.is_cancelled() {
            to.cancel(&stream, now);
        }
        return None;
    }
    if sequence.failed_steps >= MAX_FAILED_STEPS {
        to.fail(
            &stream,
            Error::internal(format!("the request's step failed twice: {reason}")),
            now,
        );
        return None;
    }
    if restarted {
        // What the stream has taken is the truth; the tokens of deliveries under way are sampled again.
        let taken = to.restart(&stream, sequence.attempt)? as usize;
        sequence.token_ids.truncate(sequence.num_prompt_tokens as usize + taken);
        // They come with the first token.
        sequence.prompt_scored &= taken > 0;
    }
    Some((sequence, stream))
}
