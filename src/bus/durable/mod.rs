//! Durable requests: pulled from a queue of NATS's JetStream, and all that they say stored in its log before anybody sees it.
//!
//! ```text
//! P.jobs.<model> → puller → hub: examine, claim ─▶ admission … reply ─▶ sink → hub → P.log.<id> → (NATS) → P.tokens.<id>
//! ```
//!
//! What is to be done is [`crate::log`]'s to say; here is only how. `streams` makes what is needed in NATS · `puller` takes
//! jobs when there is room · `sweeper` those that are nobody's · `job` what a job says · `examine` reads its log · `hub` holds
//! what the node has claimed, `held` each of them, `carry_out` how it does what policy says · `store` writes records behind
//! their fence · `reader` reads them · `requests` says and ends what is known of any request · `sink` what stages call.

mod carry_out;
mod context;
mod examine;
mod held;
mod hub;
mod job;
mod puller;
mod reader;
mod requests;
mod sink;
mod store;
mod streams;
mod sweeper;

pub(super) use carry_out::{CLASS, REASON};
pub(super) use hub::{Durable, DurableStart};
pub(super) use job::{WHOLE_HEADER, default_length_in, digest_of_job, headers_of};
pub(super) use reader::{ReadFault, after as read_log, read as read_record};
pub(super) use streams::{DEAD, JOBS, LOG};
