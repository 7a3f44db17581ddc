//! What nodes do: pull, claim, generate, store, die, come back, hand back.

use inferno_node::error::Error;
use inferno_node::log::{
    Claim, Decision, History, Holding, LogCommand, Record, StoreAnswer, StoredRecord, Suspects,
    decide,
};
use inferno_node::request::{FinishReason, SoFar};

use crate::known::{id, read, said, token};
use crate::server::Delivery;
use crate::world::{
    ACK_WAIT, Bug, Happening, Held, Life, Node, PATIENCE, PROGRESS, SEATS, World, new_strays,
};

impl World {
    pub(super) fn lives(&self, (node, life): Life) -> bool {
        self.nodes[node].is_up && self.nodes[node].life == life
    }

    pub(super) fn pull(&mut self, node: usize) {
        let again = self.chance.between(20, 300);
        self.after(again, Happening::Pull(node));
        if !self.is_here(node) {
            return;
        }
        for _ in 0..self.room(node).min(4) {
            let Some(delivery) = self.queue.pull(self.now, ACK_WAIT) else { return };
            let life = (node, self.nodes[node].life);
            self.send(Some(node), Happening::Delivered(life, delivery));
        }
    }

    /// How many further requests a node may take. What is on its way to it may be one too many.
    pub(super) fn room(&self, node: usize) -> usize {
        SEATS.saturating_sub(self.nodes[node].held.len())
    }

    pub(super) fn delivered(&mut self, life: Life, delivery: Delivery) {
        let request = delivery.request;
        if !self.lives(life) || self.nodes[life.0].held.contains_key(&request) {
            return;
        }
        let records = self.log.records(request).to_vec();
        self.send(Some(life.0), Happening::HistoryRead(life, delivery, records));
    }

    pub(super) fn history_read(
        &mut self,
        life: Life,
        delivery: Delivery,
        records: Vec<StoredRecord>,
    ) -> Result<(), String> {
        let request = delivery.request;
        if !self.lives(life) || self.nodes[life.0].held.contains_key(&request) {
            return Ok(());
        }
        let history = read(records)?;
        match decide(&delivery.job, &history) {
            Decision::Ended | Decision::Repeated => {
                self.send(Some(life.0), Happening::Acknowledged(delivery.number));
            }
            Decision::Other => return Err("the same body is told to be another".to_owned()),
            Decision::Expired => return Err("nothing grows old here".to_owned()),
            Decision::Poison => {
                let error = Error::internal("tried too often");
                let record = history.closing(&id(request), Some(error));
                if self.store(request, history.last(), record).is_some() {
                    self.dead.push(request);
                }
            }
            Decision::Claim => return self.claim_or_wait(life, delivery, history),
        }
        Ok(())
    }

    /// Of those that may have killed a node, few at a time.
    fn claim_or_wait(
        &mut self,
        life: Life,
        delivery: Delivery,
        history: History,
    ) -> Result<(), String> {
        let watched = self.plan.bug != Some(Bug::SuspectsTogether);
        if let Some(suspicion) = history.suspicion().filter(|_| watched) {
            let suspects = &mut self.nodes[life.0].suspects;
            if !suspects.may_claim(suspicion) {
                suspects.wait(suspicion, (delivery, history));
                return Ok(());
            }
            suspects.claimed(delivery.request as u64, suspicion);
        }
        self.claim(life, delivery, &history)
    }

    fn look_at_suspects(&mut self, life: Life, request: usize) -> Result<(), String> {
        let node = &mut self.nodes[life.0];
        if node.held.get(&request).is_some_and(|held| !held.holding.is_fruitful()) {
            return Ok(());
        }
        node.suspects.cleared(request as u64);
        while let Some((next, history)) = self.nodes[life.0].suspects.take_next() {
            self.claim_or_wait(life, next, history)?;
        }
        Ok(())
    }

    pub(super) fn claim(
        &mut self,
        life: Life,
        Delivery { number: message, request, job }: Delivery,
        history: &History,
    ) -> Result<(), String> {
        let claim = Claim {
            node_id: format!("n{}", life.0),
            life: life.1.to_string(),
            job: job.sequence,
            body: job.body,
            exactness: "same".to_owned(),
        };
        let (holding, commands) = Holding::claim(id(request), claim, history, 1 << 20);
        let held = Held {
            holding,
            message,
            number: 0,
            is_open: false,
            next: None,
            run: 0,
            is_paused: false,
        };
        self.nodes[life.0].held.insert(request, held);
        self.after(PROGRESS, Happening::Progress(life, request));
        if self.plan.bug == Some(Bug::NoClaim) {
            let last = history.last();
            return self.tell(life, request, |holding| holding.answered(StoreAnswer::Stored(last)));
        }
        self.carry_out(life, request, commands)
    }

    /// Says something to a holding, if it is still there, and does what it wants.
    pub(super) fn tell(
        &mut self,
        life: Life,
        request: usize,
        word: impl FnOnce(&mut Holding) -> Vec<LogCommand>,
    ) -> Result<(), String> {
        if !self.lives(life) {
            return Ok(());
        }
        let Some(held) = self.nodes[life.0].held.get_mut(&request) else { return Ok(()) };
        let commands = word(&mut held.holding);
        self.carry_out(life, request, commands)
    }

    pub(super) fn carry_out(
        &mut self,
        life: Life,
        request: usize,
        commands: Vec<LogCommand>,
    ) -> Result<(), String> {
        for command in commands {
            let Some(held) = self.nodes[life.0].held.get_mut(&request) else {
                return Err("something is to be done after the end".to_owned());
            };
            let message = held.message;
            match command {
                LogCommand::Store { after, record } => {
                    self.published += 1;
                    (held.number, held.is_open) = (self.published, true);
                    let number = held.number;
                    self.after(
                        PATIENCE,
                        Happening::Answered(life, request, number, StoreAnswer::Silent),
                    );
                    let stored = Happening::StoreArrives(life, request, number, after, record);
                    self.send(Some(life.0), stored);
                }
                LogCommand::ReadLast => {
                    self.send(Some(life.0), Happening::ReadArrives(life, request));
                }
                LogCommand::Start(so_far) => self.start(life, request, &so_far)?,
                LogCommand::Hold(pause) => held.is_paused = pause,
                LogCommand::Stop => held.next = None,
                LogCommand::Ack => self.send(Some(life.0), Happening::Acknowledged(message)),
                LogCommand::GiveBack => self.send(Some(life.0), Happening::GivenBack(message)),
                LogCommand::Forget => drop(self.nodes[life.0].held.remove(&request)),
            }
        }
        self.look_at_suspects(life, request)
    }

    pub(super) fn start(
        &mut self,
        life: Life,
        request: usize,
        so_far: &SoFar,
    ) -> Result<(), String> {
        let begun = so_far.sample(0);
        let ids: Vec<u32> = begun.tokens.iter().map(|token| token.id).collect();
        let known: Vec<u32> = (0..ids.len()).map(|index| token(request, index)).collect();
        if ids != known || begun.text_len.unwrap_or(0) != ids.len() {
            return Err(format!("request {request} goes on from {ids:?}, not {known:?}"));
        }
        let Some(held) = self.nodes[life.0].held.get_mut(&request) else { return Ok(()) };
        (held.next, held.run) = (Some(ids.len()), held.run + 1);
        let (run, message) = (held.run, held.message);
        if self.plan.bug == Some(Bug::EarlyAck) {
            self.send(Some(life.0), Happening::Acknowledged(message));
        }
        let wait = self.chance.between(1, 50);
        self.after(wait, Happening::Generates(life, request, run));
        Ok(())
    }

    pub(super) fn generates(&mut self, life: Life, request: usize, run: u64) -> Result<(), String> {
        if !self.lives(life) {
            return Ok(());
        }
        let wait = self.chance.between(1, 400);
        let length = self.lengths[request];
        let Some(held) = self.nodes[life.0].held.get_mut(&request) else { return Ok(()) };
        let Some(index) = held.next.filter(|_| held.run == run) else { return Ok(()) };
        if self.plan.poison == Some(request) {
            self.poisoned += 1;
            self.crash(life.0);
            return Ok(());
        }
        if !held.is_paused {
            held.next = (index + 1 < length).then_some(index + 1);
            let is_last = held.next.is_none();
            let event = said(request, index, is_last.then_some(FinishReason::Length));
            self.tell(life, request, |holding| holding.generated(event))?;
        }
        self.after(wait, Happening::Generates(life, request, run));
        Ok(())
    }

    pub(super) fn store_arrives(&mut self, asked: (Life, usize, u64), after: u64, record: Record) {
        let (life, request, number) = asked;
        let answer = match self.store(request, after, record) {
            Some(sequence) => StoreAnswer::Stored(sequence),
            None => StoreAnswer::Stale,
        };
        self.send(Some(life.0), Happening::Answered(life, request, number, answer));
    }

    pub(super) fn store(&mut self, request: usize, after: u64, record: Record) -> Option<u64> {
        let (sequence, previous) = self.log.store(request, after, record.clone())?;
        for reader in 0..self.readers.len() {
            if self.readers[reader].request == request {
                let stored = StoredRecord { sequence, record: record.clone() };
                self.send(None, Happening::Live(reader, stored, previous));
            }
        }
        Some(sequence)
    }

    pub(super) fn answered(
        &mut self,
        life: Life,
        request: usize,
        number: u64,
        answer: StoreAnswer,
    ) -> Result<(), String> {
        let is_there = self.lives(life);
        let held = self.nodes[life.0].held.get_mut(&request).filter(|_| is_there);
        let Some(held) = held.filter(|held| held.number == number && held.is_open) else {
            return Ok(());
        };
        held.is_open = false;
        self.tell(life, request, |holding| holding.answered(answer))
    }

    pub(super) fn progress(&mut self, life: Life, request: usize) {
        let held = self.nodes[life.0].held.get(&request);
        let message = held.map(|held| held.message).filter(|_| self.lives(life));
        let Some(message) = message else { return };
        self.send(Some(life.0), Happening::InProgress(message));
        // Clocks differ.
        let skewed = PROGRESS / 2 + PROGRESS * life.0 as u64 / 2;
        self.after(skewed, Happening::Progress(life, request));
    }

    pub(super) fn tick(&mut self, life: Life) -> Result<(), String> {
        if !self.lives(life) {
            return Ok(());
        }
        self.after(PATIENCE, Happening::Tick(life));
        let held: Vec<usize> = self.nodes[life.0].held.keys().copied().collect();
        held.into_iter().try_for_each(|request| self.tell(life, request, Holding::tick))
    }

    pub(super) fn crash(&mut self, node: usize) {
        self.nodes[node].is_up = false;
        self.nodes[node].held.clear();
        self.nodes[node].suspects = Suspects::default();
        self.nodes[node].strays = new_strays();
        let back = self.chance.between(10, 8_000);
        self.after(back, Happening::Restart(node));
    }

    pub(super) fn restart(&mut self, node: usize) {
        if !self.nodes[node].is_up {
            self.nodes[node].is_up = true;
            self.nodes[node].life += 1;
            let life = (node, self.nodes[node].life);
            self.after(PATIENCE, Happening::Tick(life));
        }
    }

    pub(super) fn drain(&mut self, node: usize) -> Result<(), String> {
        let life = (node, self.nodes[node].life);
        let held: Vec<usize> = self.nodes[node].held.keys().copied().collect();
        held.into_iter().try_for_each(|request| self.tell(life, request, Holding::hand_back))
    }

    /// By who runs it, or where nobody says that he does, by an end in the log.
    pub(super) fn cancel(&mut self, request: usize) -> Result<(), String> {
        let runs = |node: &Node| {
            let held = node.held.get(&request);
            node.is_up && held.is_some_and(|held| held.next.is_some())
        };
        let owner = self.nodes.iter().position(runs).filter(|_| self.chance.percent(80));
        if let Some(node) = owner {
            let life = (node, self.nodes[node].life);
            let Some(held) = self.nodes[node].held.get_mut(&request) else { return Ok(()) };
            let Some(index) = held.next.take() else { return Ok(()) };
            self.cancelled[request] = true;
            let mut event = said(request, index, Some(FinishReason::Cancelled));
            (event.token_ids, event.text) = (Vec::new(), String::new());
            return self.tell(life, request, |holding| holding.generated(event));
        }
        let history = read(self.log.records(request).to_vec())?;
        if history.end().is_none() {
            let record = history.closing(&id(request), None);
            self.cancelled[request] |= self.store(request, history.last(), record).is_some();
        }
        Ok(())
    }
}
