//! Neighbours for the actors' tests: they note what they get, and can be held back so that their mailboxes fill.

use actix::fut::ready;
use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message, Recipient,
    WrapFuture,
};
use tokio::sync::{mpsc, oneshot};

/// Passes every message on to the test.
pub(crate) struct Probe<M>(mpsc::UnboundedSender<M>);

impl<M: 'static> Actor for Probe<M> {
    type Context = Context<Self>;
}

impl<M: Message<Result = ()> + Unpin + 'static> Handler<M> for Probe<M> {
    type Result = ();

    fn handle(&mut self, message: M, _: &mut Self::Context) {
        // A test that has seen enough does not listen any more.
        let _ = self.0.send(message);
    }
}

/// What a probe got.
pub(crate) struct Got<M: 'static> {
    addr: Addr<Probe<M>>,
    messages: mpsc::UnboundedReceiver<M>,
    end: Option<oneshot::Sender<()>>,
}

impl<M: Message<Result = ()> + Send + Unpin + 'static> Got<M> {
    /// Takes messages at once.
    pub(crate) fn start() -> Self {
        Self::start_held().0
    }

    /// Takes nothing into its hands, and next to nothing into its mailbox, before the sender is used or dropped.
    pub(crate) fn start_held() -> (Self, oneshot::Sender<()>) {
        let (sender, messages) = mpsc::unbounded_channel();
        let (go, held) = oneshot::channel::<()>();
        let (end, ended) = oneshot::channel::<()>();
        let addr = Probe::create(move |ctx: &mut Context<Probe<M>>| {
            ctx.set_mailbox_capacity(1);
            let actor = Probe(sender);
            let wait = async {
                let _ = held.await;
            };
            ctx.wait(wait.into_actor(&actor));
            let stop = ended.into_actor(&actor).then(|_, _, ctx: &mut Context<Probe<M>>| {
                ctx.stop();
                ready(())
            });
            ctx.spawn(stop);
            actor
        });
        (Self { addr, messages, end: Some(end) }, go)
    }

    pub(crate) fn recipient(&self) -> Recipient<M> {
        self.addr.clone().recipient()
    }

    /// The next message.
    pub(crate) async fn next(&mut self) -> M {
        self.messages.recv().await.expect("the probe lives as long as its address")
    }

    /// What is there without waiting.
    pub(crate) fn now(&mut self) -> Option<M> {
        self.messages.try_recv().ok()
    }

    /// Ends the actor; its address is closed when this returns.
    pub(crate) async fn stop(&mut self) {
        drop(self.end.take());
        while self.addr.connected() {
            tokio::task::yield_now().await;
        }
    }
}
