//! The batcher's policy: lanes of models that take turns, and the steps in flight.

use std::collections::VecDeque;

use super::estimate::most_blocks_needed;
use super::lane::{Lane, Row};
use super::running::{Departure, Output, State, Waiting};
use super::{Credit, Sequence, step_batch};
use crate::bridge::ffi::{StepBatch, StepOutput};
use crate::executor::{DeviceId, ModelId};

/// Steps that the device may hold: one runs, the next stands ready, so it never waits for the host. A third would only make
/// decisions earlier than necessary.
pub const MAX_STEPS_IN_FLIGHT: usize = 2;

/// What a lane is made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneSpec {
    /// Which model.
    pub model: ModelId,
    /// Its KV blocks.
    pub num_blocks: u32,
    /// Positions of one block.
    pub block_size: u32,
    /// Most sequences with a seat.
    pub max_batch_size: u32,
    /// Most tokens of one step.
    pub max_step_tokens: u32,
    /// Most positions of one sequence.
    pub max_seq_len: u32,
    /// Tokens that end a completion.
    pub end_token_ids: Vec<u32>,
    /// See [`Config`](super::Config).
    pub enable_prefix_cache: bool,
    /// See [`Config`](super::Config).
    pub reserve_tokens: u32,
}

/// A step for the device.
#[derive(Debug)]
pub struct PlannedStep {
    /// Its number, growing.
    pub step: u64,
    /// Whose weights and blocks.
    pub model: ModelId,
    /// The flat arrays.
    pub batch: StepBatch,
}

/// An answer of the device that fits no step: nothing it says can be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Defect(pub String);

/// Why a sequence was not taken.
#[derive(Debug)]
pub enum Refused<S> {
    /// The model is not, or no longer, here.
    UnknownModel(Sequence, S),
    /// At its full length it needs more KV blocks than the model has.
    TooLong {
        /// What was to run.
        sequence: Sequence,
        /// Where its tokens go.
        stream: S,
        /// Blocks needed.
        needed: u32,
        /// Blocks there are.
        total: u32,
    },
}

/// How much is here, over all lanes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Sequences with a seat.
    pub running: u32,
    /// Sequences without one.
    pub waiting: u32,
    /// KV blocks held by sequences.
    pub used_blocks: u32,
    /// All KV blocks.
    pub total_blocks: u32,
}

#[derive(Debug)]
struct InFlight {
    step: u64,
    model: ModelId,
    rows: Vec<Row>,
}

/// The policy of one device. Pure: what happens comes in by calls, what is to be told goes out through [`Output`].
#[derive(Debug)]
pub struct Batching<S> {
    lanes: Vec<Lane<S>>,
    in_flight: VecDeque<InFlight>,
    next_step: u64,
    /// The lane that is asked first.
    turn: usize,
    spare_batches: Vec<StepBatch>,
    spare_rows: Vec<Vec<Row>>,
}

impl<S: Clone> Default for Batching<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Clone> Batching<S> {
    /// A device without models.
    pub fn new() -> Self {
        Self {
            lanes: Vec::new(),
            in_flight: VecDeque::with_capacity(MAX_STEPS_IN_FLIGHT),
            next_step: 1,
            turn: 0,
            spare_batches: Vec::with_capacity(MAX_STEPS_IN_FLIGHT),
            spare_rows: Vec::with_capacity(MAX_STEPS_IN_FLIGHT),
        }
    }

    /// Opens a lane for a model whose weights are on the device.
    pub fn add_model(&mut self, spec: LaneSpec) {
        self.lanes.push(Lane::new(spec));
    }

    /// Gives no more credit for a model.
    pub fn close_model(&mut self, model: ModelId) {
        if let Some(lane) = self.lane_mut(model) {
            lane.open = false;
        }
    }

    /// Forgets a model, if none of its sequences is here (and so no step of it in flight); false if one is.
    pub fn remove_model(&mut self, model: ModelId) -> bool {
        if self.lane(model).is_some_and(|lane| !lane.is_empty()) {
            return false;
        }
        self.lanes.retain(|lane| lane.model() != model);
        self.turn = 0;
        true
    }

    /// Takes a sequence; it gets a seat with one of the next steps.
    ///
    /// # Errors
    /// Gives it back with the reason.
    pub fn assign(&mut self, sequence: Sequence, stream: S) -> Result<(), Refused<S>> {
        let Some(lane) = self.lanes.iter_mut().find(|lane| lane.model() == sequence.model) else {
            return Err(Refused::UnknownModel(sequence, stream));
        };
        lane.assigned += 1;
        let needed = most_blocks_needed(&sequence, lane.spec.block_size);
        let total = lane.spec.num_blocks;
        if needed > total || sequence.is_empty() {
            return Err(Refused::TooLong { sequence, stream, needed, total });
        }
        lane.enqueue(Waiting { sequence, stream, preemptions: 0, started: false });
        Ok(())
    }

    /// Forms a step, if there is something to do and room for one in flight. The lanes with work take turns.
    pub fn next_step(&mut self, out: &mut Output<S>) -> Option<PlannedStep> {
        if self.in_flight.len() >= MAX_STEPS_IN_FLIGHT {
            return None;
        }
        let mut rows = self.spare_rows.pop().unwrap_or_default();
        rows.clear();
        for offset in 0..self.lanes.len() {
            let index = (self.turn + offset) % self.lanes.len();
            let lane = &mut self.lanes[index];
            lane.plan(&mut rows, out);
            if rows.is_empty() {
                continue;
            }
            self.turn = index + 1;
            let mut batch = self.spare_batches.pop().unwrap_or_default();
            step_batch::fill(&mut batch, lane, &rows);
            let (step, model) = (self.next_step, lane.model());
            self.next_step += 1;
            self.in_flight.push_back(InFlight { step, model, rows });
            return Some(PlannedStep { step, model, batch });
        }
        self.spare_rows.push(rows);
        None
    }

    /// Takes a step's answer in; returns how many tokens it computed.
    ///
    /// # Errors
    /// [`Defect`] if it is not the answer of the step that was sent first; treat it as a failed step.
    pub fn settle(
        &mut self,
        step: u64,
        output: &StepOutput,
        batch: StepBatch,
        out: &mut Output<S>,
    ) -> Result<u32, Defect> {
        let sent = self.in_flight.front().map(|sent| (sent.step, sent.rows.len()));
        if sent != Some((step, output.token_ids.len())) {
            let got = output.token_ids.len();
            return Err(Defect(format!(
                "expected the answer of (step, rows) {sent:?}, got step {step} with {got}"
            )));
        }
        let Some(sent) = self.in_flight.pop_front() else { return Ok(0) };
        let computed = sent.rows.iter().map(|row| row.query_len).sum();
        if let Some(lane) = self.lane_mut(sent.model) {
            lane.settle(&sent.rows, &output.token_ids, out);
        }
        self.spare_rows.push(sent.rows);
        self.spare_batches.push(batch);
        Ok(computed)
    }

    /// Gives up all sequences and lanes. `failed` is the step that did so, if one did: its members have
    /// one failed step more.
    pub fn depart(&mut self, failed: Option<u64>) -> Vec<Departure<S>> {
        let failed = self.in_flight.iter().find(|sent| Some(sent.step) == failed);
        let mut gone = Vec::new();
        for lane in &mut self.lanes {
            let rows = failed.filter(|sent| sent.model == lane.model());
            gone.append(&mut lane.depart(rows.map_or(&[], |sent| &sent.rows)));
        }
        self.lanes.clear();
        self.in_flight.clear();
        gone
    }

    /// What the scheduler may send, one for each lane.
    pub fn credits<'a>(
        &'a self,
        device: &'a DeviceId,
        generation: u64,
    ) -> impl Iterator<Item = Credit> + 'a {
        self.lanes.iter().map(move |lane| lane.credit(device, generation))
    }

    /// How much is here.
    pub fn load(&self) -> Load {
        self.lanes.iter().fold(Load::default(), |sum, lane| Load {
            running: sum.running + lane.order.len() as u32 + lane.leaving,
            waiting: sum.waiting + lane.waiting.len() as u32,
            used_blocks: sum.used_blocks + lane.kv.num_blocks() - lane.kv.num_available(),
            total_blocks: sum.total_blocks + lane.kv.num_blocks(),
        })
    }

    /// Steps in flight.
    pub fn num_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Seats of all lanes: as many sequences can be assigned at once.
    pub fn num_seats(&self) -> usize {
        self.lanes.iter().map(|lane| lane.seats.len()).sum()
    }

    /// Holds every count against what it counts; for tests, after every event.
    ///
    /// # Errors
    /// Says which is wrong.
    pub fn audit(&self) -> Result<(), String> {
        if self.in_flight.len() > MAX_STEPS_IN_FLIGHT {
            return Err(format!("{} steps in flight", self.in_flight.len()));
        }
        self.lanes.iter().try_for_each(|lane| self.audit_lane(lane))
    }

    fn audit_lane(&self, lane: &Lane<S>) -> Result<(), String> {
        let seated = || lane.seats.iter().flatten();
        lane.kv.audit(seated().map(|run| run.table.as_slice()))?;
        let running = seated().filter(|run| run.state == State::Running).count();
        if running != lane.order.len() || running + lane.leaving as usize != seated().count() {
            return Err(format!("{running} running, {} leaving, wrong order", lane.leaving));
        }
        let sent = self.in_flight.iter().filter(|sent| sent.model == lane.model());
        let mut steps = vec![0; lane.seats.len()];
        for row in sent.flat_map(|sent| &sent.rows) {
            steps[row.seat as usize] += 1;
            let held = lane.seats[row.seat as usize].as_ref().map_or(0, |run| run.table.len());
            if (held as u32 * lane.spec.block_size) < row.start + row.query_len {
                return Err(format!(
                    "seat {}: a step in flight writes blocks given back",
                    row.seat
                ));
            }
        }
        for (seat, steps) in lane.seats.iter().zip(steps) {
            if seat.as_ref().map_or(0, |run| run.in_flight) != steps {
                return Err(format!("a sequence counts other than {steps} steps in flight"));
            }
        }
        Ok(())
    }

    fn lane(&self, model: ModelId) -> Option<&Lane<S>> {
        self.lanes.iter().find(|lane| lane.model() == model)
    }

    fn lane_mut(&mut self, model: ModelId) -> Option<&mut Lane<S>> {
        self.lanes.iter_mut().find(|lane| lane.model() == model)
    }
}
