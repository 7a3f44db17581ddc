//! The batcher's side of the world: what its actor does around the policy, and the device below it.

use inferno_node::batcher::{Batching, Credit, Departure, LaneSpec};
use inferno_node::ids::ModelId;

use super::chance::Chance;
use super::device::{END_TOKEN, FakeDevice};
use super::request::End;
use super::world::{Event, MAX_STEP_US, ToScheduler, World};

impl World {
    /// What the batcher's actor does after every message.
    pub fn pump(&mut self, at: usize) {
        while let Some(batching) = &mut self.devices[at].batching {
            let planned = batching.next_step(&mut self.output);
            self.announce(at);
            let Some(step) = planned else { break };
            let device = &mut self.devices[at];
            device.steps.push_back(step);
            if device.steps.len() == 1 {
                let generation = device.generation;
                self.after(50, MAX_STEP_US, Event::StepEnd(at, generation));
            }
        }
        self.finish_closing(at);
        let device = &mut self.devices[at];
        let Some(batching) = &device.batching else { return };
        let credits: Vec<_> = batching.credits(&device.id, device.generation).collect();
        for credit in credits {
            let sent = self.devices[at].credits.insert(credit.model, credit.clone());
            if sent.as_ref() != Some(&credit) {
                self.say(at, ToScheduler::Credit(credit));
            }
        }
    }

    pub fn announce(&mut self, at: usize) {
        for started in self.output.started.drain(..) {
            self.cached_tokens += u64::from(started.cached_tokens);
        }
        self.preemptions += std::mem::take(&mut self.output.preemptions);
        let produced = std::mem::take(&mut self.output.produced);
        for one in &produced {
            self.requests[one.stream].finishes += u32::from(one.finish.is_some());
        }
        if !produced.is_empty() {
            self.devices[at].to_reply.push_back(produced);
            self.in_order(at, 2, Event::ToReply(at));
        }
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
            self.fail(at, Some(step.step));
            return Ok(());
        }
        let output = device.fake.run(&step)?;
        if let Some(batching) = &mut device.batching {
            let settled = batching.settle(step.step, &output, step.batch, &mut self.output);
            settled.map_err(|defect| defect.to_string())?;
        }
        if !device.steps.is_empty() {
            let generation = device.generation;
            self.after(50, MAX_STEP_US, Event::StepEnd(at, generation));
        }
        self.announce(at);
        self.pump(at);
        Ok(())
    }

    /// What the batcher's actor does when a step fails, and in its `Drop`.
    pub fn fail(&mut self, at: usize, step: Option<u64>) {
        let Some(mut batching) = self.devices[at].batching.take() else { return };
        self.failures += 1;
        self.devices[at].mailbox_lost = false;
        let mut returned = Vec::new();
        for Departure { mut sequence, stream: who, restarted } in batching.depart(step) {
            let request = &mut self.requests[who];
            if request.handle.wants_no_more() {
                if request.handle.is_cancelled() {
                    request.end(End::Cancelled, self.now);
                }
                continue;
            }
            if sequence.failed_steps >= 2 {
                request.finishes += 1;
                request.end(End::Failed, self.now);
                continue;
            }
            if restarted {
                request.attempt = sequence.attempt;
                sequence.token_ids.truncate(request.sequence.token_ids.len() + request.taken.len());
                sequence.prompt_scored &= !request.taken.is_empty();
            }
            returned.push((sequence, who));
        }
        let device = &mut self.devices[at];
        device.steps.clear();
        let credits = std::mem::take(&mut device.credits);
        let generation = device.generation;
        for (_, credit) in credits {
            self.say(at, ToScheduler::Credit(Credit { open: false, ..credit }));
        }
        self.say(at, ToScheduler::Returned(returned));
        self.say(at, ToScheduler::Down(generation));
        self.after(500, 10_000, Event::Rebuilt(at));
    }

    pub fn rebuilt(&mut self, at: usize) {
        let device = &mut self.devices[at];
        device.generation += 1;
        device.fake = FakeDevice::default();
        let mut batching = Batching::new();
        for spec in &self.plan.specs[at] {
            if !device.closed.contains(&spec.model) {
                batching.add_model(spec.clone());
                device.fake.add_model(spec.clone());
            }
        }
        device.batching = Some(batching);
        let generation = device.generation;
        // The first credit may come before the node's word and after it.
        if self.chance.percent(50) {
            self.pump(at);
            self.say(at, ToScheduler::Up(generation));
        } else {
            self.say(at, ToScheduler::Up(generation));
            self.pump(at);
        }
    }

    pub fn close_model(&mut self, at: usize, model: ModelId) {
        self.devices[at].closed.push(model);
        if let Some(batching) = &mut self.devices[at].batching {
            batching.close_model(model);
        }
        self.pump(at);
    }

    fn finish_closing(&mut self, at: usize) {
        let device = &mut self.devices[at];
        for model in &device.closed {
            let told = device.credits.get(model).is_some_and(|credit| !credit.open);
            if let Some(batching) = device.batching.as_mut().filter(|_| told)
                && batching.remove_model(*model)
            {
                device.credits.remove(model);
            }
        }
    }
}

/// A lane for a model, large or small as chance has it, never too small for the longest request.
pub fn draw_spec(model: ModelId, chance: &mut Chance) -> LaneSpec {
    let block_size = chance.pick(&[1, 2, 4, 8, 16]);
    let longest: u32 = 84;
    let tight = chance.percent(60);
    let tokens = longest + chance.between(0, if tight { 40 } else { 1000 }) as u32;
    let max_batch_size = chance.between(1, 10) as u32;
    LaneSpec {
        model,
        num_blocks: tokens.div_ceil(block_size),
        block_size,
        max_batch_size,
        max_step_tokens: max_batch_size + chance.between(0, 40) as u32,
        max_seq_len: 84,
        window: chance.percent(30).then(|| chance.between(2, 30) as u32),
        end_token_ids: vec![END_TOKEN],
        enable_prefix_cache: chance.percent(80),
        reserve_tokens: chance.pick(&[0, 4, 64]),
    }
}
