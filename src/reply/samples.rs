//! Several samples of one request: each has a sequence and a stream of its own, and they share the request's sink, permit and end.
//!
//! The sink sees the choices' events as they come, each choice's finish, and one last event with the bill of all samples. A sample
//! that fails fails the request, and a cancel is told once, when the last sample has gone. Where the choices are the best of more
//! samples, they are kept until all have ended.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Permit;
use crate::error::Error;
use crate::ids::SequenceId;
use crate::request::{Ended, Event, FinishReason, Handle, Receipt, Sink, SinkClosed, Usage};

/// What a request's samples are made with.
pub struct SamplesStart {
    /// Where the answer goes.
    pub sink: Box<dyn Sink>,
    /// The request's right to be in the node.
    pub permit: Box<dyn Permit>,
    /// The request's.
    pub handle: Arc<Handle>,
    /// One for each sample.
    pub sequence_ids: Vec<SequenceId>,
    /// Samples whose end the client was told before this start.
    pub told_ends: Vec<u32>,
    /// The choices are the best of the samples; none: they are all of them.
    pub best: Option<Best>,
}

/// Which samples are the answer.
pub struct Best {
    /// So many, those with the best mean log probability, best first.
    pub num_choices: usize,
    /// The client wants log probabilities, too.
    pub tell_logprobs: bool,
}

/// What the stream of one sample is made with.
pub struct Sample {
    /// Its own; the request's handle cancels it.
    pub handle: Arc<Handle>,
    /// Its way to the request's sink.
    pub sink: Box<dyn Sink>,
    /// Its part of the request's permit.
    pub permit: Box<dyn Permit>,
}

impl Sample {
    /// All samples of a request, in their order.
    pub fn of(start: SamplesStart) -> Vec<Self> {
        let count = start.sequence_ids.len();
        let handle = Arc::clone(&start.handle);
        let samples = Samples {
            sink: Some(start.sink),
            permit: Some(start.permit),
            handle: start.handle,
            accepted: false,
            told_ends: start.told_ends,
            waiting: count,
            running: count,
            bill: SampleBill::default(),
            reason: None,
            best: start.best.map(|best| (best, Vec::with_capacity(count))),
        };
        let samples = Arc::new(Mutex::new(samples));
        let sample = |(index, id): (usize, SequenceId)| Self {
            handle: handle.sample(id),
            sink: Box::new(Way { samples: Arc::clone(&samples), index: index as u32 }),
            permit: Box::new(Share { samples: Arc::clone(&samples), waits: true }),
        };
        start.sequence_ids.into_iter().enumerate().map(sample).collect()
    }
}

/// See the module.
struct Samples {
    /// None once the last word is said.
    sink: Option<Box<dyn Sink>>,
    /// None once it has gone back.
    permit: Option<Box<dyn Permit>>,
    handle: Arc<Handle>,
    /// The client knows that the request is in.
    accepted: bool,
    /// Samples whose end the client knows from before.
    told_ends: Vec<u32>,
    /// Samples that wait for a device: the request waits while one of them does.
    waiting: usize,
    /// Samples that have not ended.
    running: usize,
    bill: SampleBill,
    /// How the request ends, as far as is known: a cancel and a failure are stronger than the finish of a choice.
    reason: Option<FinishReason>,
    /// Ends of samples, where the best are to be chosen.
    best: Option<(Best, Vec<Event>)>,
}

/// What the samples that have ended cost.
#[derive(Default)]
struct SampleBill {
    usage: Option<Usage>,
    receipt: Option<Box<Receipt>>,
}

impl SampleBill {
    /// The prompt counts once.
    fn add(&mut self, usage: Usage, receipt: Option<Box<Receipt>>) {
        let sum = self.usage.get_or_insert(Usage { completion_tokens: 0, ..usage });
        sum.completion_tokens = sum.completion_tokens.saturating_add(usage.completion_tokens);
        sum.total_tokens = sum.prompt_tokens.saturating_add(sum.completion_tokens);
        sum.cached_tokens = sum.cached_tokens.min(usage.cached_tokens);
        Receipt::join(&mut self.receipt, receipt);
    }
}

impl Samples {
    fn event(&mut self, mut event: Event) -> Result<(), SinkClosed> {
        let Some(reason) = event.finish_reason.take() else { return self.tell(event) };
        self.running = self.running.saturating_sub(1);
        self.bill.add(event.usage.take().unwrap_or_default(), event.receipt.take());
        if reason == FinishReason::Failed {
            self.reason = Some(reason);
            // The others are of no use to anybody.
            self.handle.cancel();
            return self.tell_last(Event { finish_reason: Some(reason), ..event });
        }
        let cancelled = reason == FinishReason::Cancelled;
        if cancelled && self.reason != Some(FinishReason::Failed) {
            self.reason = Some(reason);
        }
        let ends = *self.reason.get_or_insert(reason);
        match (&mut self.best, self.running) {
            (_, 0) if ends == FinishReason::Cancelled => {
                self.tell_last(Event { finish_reason: Some(ends), ..event })
            }
            (_, 1..) if self.told_ends.contains(&event.index) => Ok(()),
            (None, 0) => self.tell_last(Event { finish_reason: Some(reason), ..event }),
            (None, _) if cancelled => self.tell(event),
            (None, _) => self.tell(Event { finish_reason: Some(reason), ..event }),
            (Some((_, ended)), left) => {
                ended.push(Event { finish_reason: Some(reason), ..event });
                if left == 0 { self.tell_best() } else { self.check_open() }
            }
        }
    }

    /// All samples have ended: the best of them are the choices.
    fn tell_best(&mut self) -> Result<(), SinkClosed> {
        let Some((best, mut ended)) = self.best.take() else { return Ok(()) };
        let mean = |event: &Event| {
            let known = event.logprobs.iter().flatten().filter_map(|entry| entry.logprob);
            let (sum, count) =
                known.fold((0.0, 0_u32), |(sum, count), x| (sum + f64::from(x), count + 1));
            sum / f64::from(count.max(1))
        };
        // Stable: of equal ones the first sample is first.
        ended.sort_by(|a, b| mean(b).total_cmp(&mean(a)).then(a.index.cmp(&b.index)));
        ended.truncate(best.num_choices);
        let last = ended.len().saturating_sub(1);
        for (index, event) in ended.into_iter().enumerate() {
            let logprobs = event.logprobs.filter(|_| best.tell_logprobs);
            let event = Event { index: index as u32, logprobs, ..event };
            if index == last { self.tell_last(event)? } else { self.tell(event)? }
        }
        Ok(())
    }

    fn tell(&mut self, event: Event) -> Result<(), SinkClosed> {
        self.sink.as_mut().ok_or(SinkClosed)?.event(event)
    }

    fn tell_last(&mut self, mut event: Event) -> Result<(), SinkClosed> {
        if self.best.as_ref().is_some_and(|(best, _)| !best.tell_logprobs) {
            event.logprobs = None;
        }
        let usage = Some(self.bill.usage.unwrap_or_default());
        let event = Event { usage, receipt: self.bill.receipt.take(), ..event };
        self.sink.take().ok_or(SinkClosed)?.event(event)
    }

    fn check_open(&self) -> Result<(), SinkClosed> {
        match self.is_closed() {
            true => Err(SinkClosed),
            false => Ok(()),
        }
    }

    fn is_closed(&self) -> bool {
        self.sink.as_ref().is_none_or(|sink| sink.is_closed())
    }
}

impl Drop for Samples {
    fn drop(&mut self) {
        // The permit goes back before those who wait for the end are told.
        self.permit = None;
        let completion_tokens = self.bill.usage.map_or(0, |usage| usage.completion_tokens);
        let reason = self.reason.unwrap_or(FinishReason::Failed);
        self.handle.end(Ended { reason, completion_tokens });
    }
}

/// One sample's way to the request's sink.
struct Way {
    samples: Arc<Mutex<Samples>>,
    index: u32,
}

impl Sink for Way {
    /// All of a request's samples are, or none: the first word is the request's.
    fn accepted(&mut self, _: &Arc<Handle>) {
        let mut samples = lock(&self.samples);
        let Samples { sink, handle, accepted, .. } = &mut *samples;
        let is_first = !std::mem::replace(accepted, true);
        if let Some(sink) = sink.as_mut().filter(|_| is_first) {
            sink.accepted(handle);
        }
    }

    fn refused(&mut self, error: &Error) {
        let mut samples = lock(&self.samples);
        samples.handle.cancel();
        if let Some(mut sink) = samples.sink.take() {
            sink.refused(error);
        }
    }

    fn lend(&mut self, event: &mut Event) -> Result<(), SinkClosed> {
        lock(&self.samples).event(Event { index: self.index, ..event.take() })
    }

    fn is_closed(&self) -> bool {
        lock(&self.samples).is_closed()
    }
}

/// One sample's part of the request's permit.
struct Share {
    samples: Arc<Mutex<Samples>>,
    waits: bool,
}

impl Permit for Share {
    fn scheduled(&mut self) {
        if !std::mem::take(&mut self.waits) {
            return;
        }
        let mut samples = lock(&self.samples);
        samples.waiting -= 1;
        if samples.waiting == 0
            && let Some(permit) = &mut samples.permit
        {
            permit.scheduled();
        }
    }

    fn returned(&mut self) {
        if std::mem::replace(&mut self.waits, true) {
            return;
        }
        let mut samples = lock(&self.samples);
        samples.waiting += 1;
        if let Some(permit) = &mut samples.permit {
            permit.returned();
        }
    }

    fn computed(&mut self, tokens: u32) {
        if let Some(permit) = &mut lock(&self.samples).permit {
            permit.computed(tokens);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // A sample that ends waits no more; the others may still run.
        self.scheduled();
    }
}

fn lock(samples: &Mutex<Samples>) -> MutexGuard<'_, Samples> {
    // A sink that panicked leaves whole counts; the others' ends are still to be told.
    samples.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
