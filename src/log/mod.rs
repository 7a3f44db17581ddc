//! Durable streams, as pure policy: what is stored of a request, who may go on with it, and what a reader sees.
//!
//! Everything a durable request has said stands in one subject of a stream, its *log*, and nothing is said that is not stored. A
//! node that takes the request up first stores a *claim*: a record without tokens whose `attempt` is one more than the last claim's.
//! Each record names the sequence of the record that it follows, and the server refuses one that does not follow the last: so a node
//! that is thought dead, and is not, can store nothing any more once another has claimed the request.
//!
//! * `record` what one message of the log says · `history` what all of them say
//! * `decision` what a node does with a request that the queue gives it
//! * `holding` what it does from there to the end: one record under way at a time
//! * `suspects` those that may have killed a node, few at a time · `join` a reader's stored and live records as one stream
//! * `positions` how far a reader has come
//! * `strays` jobs that the server gives to nobody any more
//!
//! No clock, no connection, no actor: `tests/log_sim` runs it under a seeded simulator of the server, its losses and its delays.

mod config;
mod decision;
mod history;
mod holding;
mod join;
mod positions;
mod record;
mod strays;
mod suspects;

pub use config::Config;
pub use decision::{Decision, MAX_ATTEMPTS, MAX_FRUITLESS, QueuedJob, decide};
pub use history::{Broken, History};
pub use holding::{Holding, LogCommand, StoreAnswer};
pub use join::{Join, Joined, StoredRecord};
pub use positions::{NoPositions, Positions};
pub use record::{Claim, Record};
pub use strays::{LogProgress, Remedy, Strays};
pub use suspects::{Suspects, Suspicion};
