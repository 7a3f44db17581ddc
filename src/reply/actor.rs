//! The reply actor: hands each delivery to its stream. One stream's panic is that stream's failure and nobody else's.

use std::panic::{AssertUnwindSafe, catch_unwind};

use actix::{Actor, ArbiterHandle, Context, Handler};

use super::{Deliver, Delivery, lock};
use crate::clock::Timestamp;
use crate::error::Error;
use crate::lifeline::Lifeline;
use crate::progress::Progress;

/// The batcher keeps two steps in flight and sends one message per step; what waits here beyond that is a reply stage that
/// is slower than the device for a while (a burst of long texts). A batcher that finds it full keeps the tokens and tries again.
pub const MAILBOX_CAPACITY: usize = 64;

/// The actor; see the module above.
pub struct Reply {
    progress: Progress,
    alive: Lifeline,
}

impl Reply {
    /// Starts it on an arbiter of its own; it holds `alive` for as long as it lives.
    pub fn start(
        arbiter: &ArbiterHandle,
        progress: Progress,
        alive: Lifeline,
    ) -> actix::Addr<Self> {
        Self::start_in_arbiter(arbiter, move |_| Self { progress, alive })
    }
}

impl Actor for Reply {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(MAILBOX_CAPACITY);
    }
}

impl Handler<Deliver> for Reply {
    type Result = ();

    fn handle(&mut self, message: Deliver, _: &mut Self::Context) {
        self.alive.look();
        // Pending while it works: a sink that blocks against its contract shows as a stall.
        self.progress.set_pending(message.deliveries.len() as u64, Timestamp::now());
        for delivery in message.deliveries {
            deliver(delivery, message.at);
        }
        let now = Timestamp::now();
        self.progress.stamp(now);
        self.progress.set_pending(0, now);
    }
}

fn deliver(delivery: Delivery, at: Timestamp) {
    let mut stream = lock(&delivery.stream);
    let pushed = catch_unwind(AssertUnwindSafe(|| match delivery.fault {
        Some(fault) => stream.fault(delivery.attempt, fault, at),
        None => {
            stream.tell_prompt(delivery.attempt, delivery.prompt_scores);
            stream.push(delivery.attempt, delivery.token.as_slice(), delivery.finish, at);
        }
    }));
    if pushed.is_err() {
        tracing::error!(request_id = %stream.request_id(), "the request's reply panicked");
        // A sink that panics again in its last event loses it; the stream has let go of everything by then.
        let _ = catch_unwind(AssertUnwindSafe(|| {
            stream.fail(Error::internal("the reply stage panicked on this request"), at);
        }));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use actix::Arbiter;

    use super::super::testing::{Collected, Fixture};
    use super::*;
    use crate::request::{Event, FinishReason, Handle, Sink, SinkClosed, Token};
    use crate::tokenizer::testing;

    struct Panics;

    impl Sink for Panics {
        fn accepted(&mut self, _: &Arc<Handle>) {}
        fn refused(&mut self, _: &Error) {}
        fn lend(&mut self, _: &mut Event) -> Result<(), SinkClosed> {
            panic!("a defect in a sink")
        }
    }

    fn delivery(stream: &super::super::SharedStream, finish: Option<FinishReason>) -> Delivery {
        let token_ids = testing::bytes().encode("h", false).expect("plain text");
        let token = token_ids.first().map(|id| Token::from(*id));
        Delivery {
            stream: Arc::clone(stream),
            attempt: 1,
            prompt_scores: Vec::new(),
            token,
            finish,
            fault: None,
        }
    }

    #[test]
    fn one_streams_panic_ends_that_stream_and_no_other() {
        let collected = Collected::default();
        let bad = Fixture::default().start_with(Box::new(Panics));
        let good = Fixture::default().start(&collected);
        let bad_end = bad.handle.wait();
        let good_end = good.handle.wait();
        let deliveries =
            vec![delivery(&bad.stream, None), delivery(&good.stream, Some(FinishReason::Length))];
        actix::System::new().block_on(async move {
            let arbiter = Arbiter::new();
            let alive = crate::lifeline::Lifeline::unwatched();
            let reply = Reply::start(&arbiter.handle(), Progress::new(), alive);
            let deliver = |deliveries| Deliver { deliveries, at: Timestamp::from_micros(5) };
            reply.send(deliver(deliveries)).await.expect("the actor lives");
            // It still takes messages.
            reply.send(deliver(Vec::new())).await.expect("the actor lives");
            assert_eq!(bad_end.await.map(|e| e.reason), Ok(FinishReason::Failed));
            assert_eq!(good_end.await.map(|e| e.reason), Ok(FinishReason::Length));
            arbiter.stop();
        });
        assert_eq!(collected.text(), "h");
        assert_eq!((bad.permits(), good.permits()), (0, 0));
    }

    /// Panics when it has read its first event.
    struct ReadsAndPanics(Collected);

    impl Sink for ReadsAndPanics {
        fn accepted(&mut self, _: &Arc<Handle>) {}
        fn refused(&mut self, _: &Error) {}
        fn lend(&mut self, event: &mut Event) -> Result<(), SinkClosed> {
            let told = self.0.event(event.clone());
            assert!(event.is_last(), "a defect in a sink");
            told
        }
    }

    #[test]
    fn what_a_sink_read_before_it_panicked_is_not_told_again() {
        let collected = Collected::default();
        let fixture = Fixture::default().start_with(Box::new(ReadsAndPanics(collected.clone())));
        deliver(delivery(&fixture.stream, None), Timestamp::from_micros(9));
        assert_eq!((collected.text(), collected.token_ids().len()), ("h".to_owned(), 1));
        assert_eq!(collected.last().and_then(|e| e.finish_reason), Some(FinishReason::Failed));
    }

    #[test]
    fn a_poisoned_stream_goes_on() {
        let collected = Collected::default();
        let fixture = Fixture::default().start(&collected);
        let poisoner = Arc::clone(&fixture.stream);
        let died = std::thread::spawn(move || {
            let _guard = poisoner.lock();
            panic!("somebody else's defect")
        });
        assert!(died.join().is_err() && fixture.stream.is_poisoned());
        deliver(delivery(&fixture.stream, Some(FinishReason::Stop)), Timestamp::from_micros(9));
        assert_eq!(collected.last().and_then(|e| e.finish_reason), Some(FinishReason::Stop));
    }
}
