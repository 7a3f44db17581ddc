//! The node as a library: the same actors, in this process, without bus or HTTP unless configured.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! use inferno_node::engine::{Engine, InferRequest};
//! use inferno_node::config::Config;
//!
//! let engine = Engine::new(Config::library("demo", "models/demo")).await?;
//! let answer = engine.infer(InferRequest::text("demo", "Once upon a time").max_tokens(8)).await?;
//! assert_eq!(answer.token_ids.len(), answer.usage.completion_tokens as usize);
//! println!("{} ({:?})", answer.generated_text, answer.latency);
//! engine.shutdown().await?;
//! # Ok(()) })
//! # }
//! ```

mod collector;
#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use futures_util::future::join_all;
use tokio::sync::{mpsc, oneshot};

use self::collector::Collector;
use crate::clock::Timestamp;
use crate::config::Config;
use crate::door::{Admit, ModelInfo, not_admitted};
use crate::error::{Error, Kind, Result};
use crate::ids::RequestId;
use crate::models::{Load, ModelSpec, Spread, Unload};
use crate::node::Node;
use crate::request::{
    Caller, DEFAULT_PRIORITY, DefaultLength, Event, FinishReason, Handle, Params, Prompt, Receipt,
    Request, Sink, SinkClosed, SoFar, TokenLogprob, Usage,
};

/// One generation request of a program.
#[derive(Debug, Clone, PartialEq)]
pub struct InferRequest {
    /// An id of the caller's; absent: the node gives one.
    pub request_id: Option<RequestId>,
    /// The model's alias.
    pub model: String,
    /// What is to be continued.
    pub prompt: Prompt,
    /// Absent ones take the checkpoint's or the node's defaults.
    pub params: Params,
    /// 0 to 255, 255 first.
    pub priority: u8,
    /// The completion's beginning, where it goes on from one made before: with the same prompt, parameters and seed it becomes what it
    /// would have become there.
    pub so_far: SoFar,
}

impl InferRequest {
    /// Continues `prompt`.
    pub fn new(model: impl Into<String>, prompt: Prompt) -> Self {
        Self {
            request_id: None,
            model: model.into(),
            prompt,
            params: Params::default(),
            priority: DEFAULT_PRIORITY,
            so_far: SoFar::default(),
        }
    }

    /// Continues a text.
    pub fn text(model: impl Into<String>, prompt: impl Into<String>) -> Self {
        Self::new(model, Prompt::Text(prompt.into()))
    }

    /// At most so many tokens.
    #[must_use]
    pub fn max_tokens(mut self, max_tokens: u32) -> Self {
        self.params.max_tokens = Some(max_tokens);
        self
    }

    /// With these parameters.
    #[must_use]
    pub fn params(mut self, params: Params) -> Self {
        self.params = params;
        self
    }
}

/// A whole completion.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The caller's id or the node's.
    pub request_id: RequestId,
    /// The text, without end token and stop string; behind the prompt's where the request wants its echo.
    pub generated_text: String,
    /// Everything sampled.
    pub token_ids: Vec<u32>,
    /// One for each of `token_ids`, where the request wants them.
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// One for each token of the prompt, where the request wants them.
    pub prompt_logprobs: Option<Vec<TokenLogprob>>,
    /// Stop or length.
    pub finish_reason: FinishReason,
    /// Tokens counted.
    pub usage: Usage,
    /// From the call to the last event.
    pub latency: Duration,
    /// What it cost.
    pub receipt: Receipt,
    /// The choices after the first, where the request wants several (`n`).
    pub others: Vec<Choice>,
}

/// One of several completions of the same prompt.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Choice {
    /// As [`Answer::generated_text`].
    pub generated_text: String,
    /// Everything sampled.
    pub token_ids: Vec<u32>,
    /// One for each of `token_ids`, where the request wants them.
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// One for each token of the prompt, where the request wants them.
    pub prompt_logprobs: Option<Vec<TokenLogprob>>,
    /// Stop or length; none as long as it runs.
    pub finish_reason: Option<FinishReason>,
}

/// A node in this process. Dropping it ends the node at once; [`Engine::shutdown`] drains it first.
pub struct Engine {
    node: Node,
}

impl Engine {
    /// Starts the node and waits until every configured model takes requests.
    ///
    /// # Errors
    /// `invalid` for a configuration at fault (every key named), else why a device or model could not start.
    pub async fn new(config: Config) -> Result<Self> {
        let (sender, receiver) = oneshot::channel();
        // Starting binds sockets and spawns threads, which must not hold up the caller's runtime.
        std::thread::spawn(move || {
            // A caller that left drops the node, which ends it.
            let _ = sender.send(Node::start(config));
        });
        let node = receiver.await.map_err(|_| Error::internal("the node's start panicked"))??;
        node.wait_ready().await?;
        Ok(Self { node })
    }

    /// Whether requests are taken: a model and a device are up, and nothing drains.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
    /// # use inferno_node::{config::Config, engine::{Engine, InferRequest}};
    /// # let engine = Engine::new(Config::library("demo", "models/demo")).await?;
    /// assert!(engine.is_ready());
    /// engine.unload_model("demo").await?;
    /// assert!(!engine.is_ready());
    /// # engine.shutdown().await?;
    /// # Ok(()) })
    /// # }
    /// ```
    pub fn is_ready(&self) -> bool {
        self.node.vitals().is_ready()
    }

    /// One whole completion.
    ///
    /// # Errors
    /// A refusal, or the failure that the last event reports.
    pub async fn infer(&self, request: InferRequest) -> Result<Answer> {
        let started = Timestamp::now();
        let (mut events, request_id) = self.submit(request, false)?;
        let mut answer = Collector::default();
        while let Some(item) = events.recv().await {
            if answer.take(item?)? {
                return answer.finish(request_id, Timestamp::now().since(started));
            }
        }
        Err(Error::internal("the stream ended without a last event"))
    }

    /// The events of one completion as they come; the last has a `finish_reason`. Dropping the stream cancels the request.
    ///
    /// # Errors
    /// `queue_full` if the node is too busy, `unavailable` if it is stopping; a refusal by admission is the stream's first item.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
    /// # use inferno_node::{config::Config, engine::{Engine, InferRequest}};
    /// # let engine = Engine::new(Config::library("demo", "models/demo")).await?;
    /// use futures_util::StreamExt;
    ///
    /// let mut events = engine.stream(InferRequest::text("demo", "Once upon a time").max_tokens(8))?;
    /// let mut text = String::new();
    /// while let Some(event) = events.next().await {
    ///     let event = event?;
    ///     text.push_str(&event.text);
    ///     if let Some(reason) = event.finish_reason {
    ///         println!("{text} ({reason:?})");
    ///     }
    /// }
    /// assert!(!text.is_empty());
    /// # engine.shutdown().await?;
    /// # Ok(()) })
    /// # }
    /// ```
    pub fn stream(&self, request: InferRequest) -> Result<TokenStream> {
        let (events, _) = self.submit(request, true)?;
        Ok(TokenStream { events })
    }

    /// Several completions at once, in the order of the requests.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
    /// # use inferno_node::{config::Config, engine::{Engine, InferRequest}};
    /// # let engine = Engine::new(Config::library("demo", "models/demo")).await?;
    /// let prompts = ["Once upon a time", "The fox"];
    /// let requests = prompts.map(|prompt| InferRequest::text("demo", prompt).max_tokens(8));
    /// let answers = engine.batch_infer(requests.to_vec()).await;
    /// assert_eq!(answers.len(), 2);
    /// for answer in answers {
    ///     println!("{}", answer?.generated_text);
    /// }
    /// # engine.shutdown().await?;
    /// # Ok(()) })
    /// # }
    /// ```
    pub async fn batch_infer(&self, requests: Vec<InferRequest>) -> Vec<Result<Answer>> {
        join_all(requests.into_iter().map(|request| self.infer(request))).await
    }

    /// Loads a model on the device with the best free memory and load. Where memory is short, the idle model that was used least
    /// recently makes room; `executor.memory_pool_size` is by default just what the configured models need.
    ///
    /// # Errors
    /// `conflict` if the alias is taken, else what is wrong with the checkpoint or the memory.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
    /// # use inferno_node::{config::Config, engine::{Engine, InferRequest}};
    /// # let engine = Engine::new(Config::library("demo", "models/demo")).await?;
    /// use inferno_node::models::ModelSpec;
    ///
    /// let second = ModelSpec::new("second", "models/demo");
    /// let spec = ModelSpec { max_seq_len: Some(256), ..second };
    /// // The memory was sized for one model: the idle one makes room.
    /// let info = engine.load_model(spec).await?;
    /// assert_eq!((info.name.as_str(), info.max_seq_len), ("second", 256));
    /// engine.infer(InferRequest::text("second", "Once upon a time").max_tokens(8)).await?;
    /// # engine.shutdown().await?;
    /// # Ok(()) })
    /// # }
    /// ```
    pub async fn load_model(&self, spec: ModelSpec) -> Result<ModelInfo> {
        self.node.models().send(Load { spec, spread: Spread::BestDevice }).await.map_err(gone)?
    }

    /// Takes no more requests for the model, lets those in finish, and gives its memory back.
    ///
    /// # Errors
    /// `not_found` for an unknown alias.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
    /// # use inferno_node::{config::Config, engine::{Engine, InferRequest}};
    /// # let engine = Engine::new(Config::library("demo", "models/demo")).await?;
    /// use inferno_node::error::Kind;
    ///
    /// engine.unload_model("demo").await?;
    /// let refused = engine.infer(InferRequest::text("demo", "Once upon a time")).await;
    /// assert_eq!(refused.map_err(|error| error.kind), Err(Kind::NotFound));
    /// assert_eq!(engine.unload_model("demo").await.map_err(|error| error.kind), Err(Kind::NotFound));
    /// # engine.shutdown().await?;
    /// # Ok(()) })
    /// # }
    /// ```
    pub async fn unload_model(&self, name: &str) -> Result<()> {
        self.node.models().send(Unload { name: name.to_owned() }).await.map_err(gone)?
    }

    /// Takes no more requests, lets those in finish within `node.drain_timeout_s`, and ends the node. Returns how many were cut.
    ///
    /// # Errors
    /// `internal` if the node does not end: see [`Node::shutdown`].
    pub async fn shutdown(self) -> Result<usize> {
        self.node.shutdown().await
    }

    fn submit(&self, request: InferRequest, stream: bool) -> Result<(Events, RequestId)> {
        let id = request.request_id.unwrap_or_else(RequestId::generate);
        let (sender, receiver) = mpsc::unbounded_channel();
        let handle = Arc::new(Mutex::new(None));
        let request = Request {
            id: id.clone(),
            caller: Caller::default(),
            model: request.model.into(),
            prompt: request.prompt,
            so_far: request.so_far,
            is_question: false,
            params: request.params,
            stream,
            priority: request.priority,
            default_length: DefaultLength::Context,
            received_at: Timestamp::now(),
            sink: Box::new(ChannelSink { events: sender, handle: handle.clone() }),
        };
        self.node.admission().try_send(Admit(request)).map_err(|refusal| not_admitted(&refusal))?;
        Ok((Events { receiver, handle }, id))
    }
}

fn gone(error: actix::MailboxError) -> Error {
    Error::new(Kind::Unavailable, format!("the models actor did not answer: {error}"))
        .with_retry_after_ms(1_000)
}

/// The events of one completion. See [`Engine::stream`].
pub struct TokenStream {
    events: Events,
}

impl Stream for TokenStream {
    type Item = Result<Event>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.receiver.poll_recv(cx)
    }
}

type SharedHandle = Arc<Mutex<Option<Arc<Handle>>>>;

/// The receiving end; dropping it cancels what still runs.
struct Events {
    receiver: mpsc::UnboundedReceiver<Result<Event>>,
    handle: SharedHandle,
}

impl Events {
    async fn recv(&mut self) -> Option<Result<Event>> {
        self.receiver.recv().await
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // Closed first: a request accepted from here on finds the sink closed at its first event.
        self.receiver.close();
        if let Some(handle) = &*self.handle.lock().unwrap_or_else(PoisonError::into_inner) {
            handle.cancel();
        }
    }
}

/// The library's sink: a channel that the request's own `max_tokens` bounds.
struct ChannelSink {
    events: mpsc::UnboundedSender<Result<Event>>,
    handle: SharedHandle,
}

impl Sink for ChannelSink {
    fn accepted(&mut self, handle: &Arc<Handle>) {
        *self.handle.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle.clone());
        if self.events.is_closed() {
            handle.cancel();
        }
    }

    fn refused(&mut self, error: &Error) {
        // A caller that left needs no refusal.
        let _ = self.events.send(Err(error.clone()));
    }

    fn lend(&mut self, event: &mut Event) -> std::result::Result<(), SinkClosed> {
        self.events.send(Ok(event.take())).map_err(|_| SinkClosed)
    }

    fn is_closed(&self) -> bool {
        self.events.is_closed()
    }
}
