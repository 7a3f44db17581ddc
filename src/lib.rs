//! inferno-node: a node of an LLM inference cluster.
//!
//! ```text
//! bus | http  →  admission  →  scheduler  →  batcher[d]  →  executor[d]  →  batcher[d]  →  reply  →  bus | http
//! ```
//!
//! The list below is the order of the house: a module imports only what stands below it (`tests/tidy` holds that).
//! `ARCHITECTURE.md` tells a request's way in prose, `actors.md` lists the actors.

#![deny(unsafe_code)]

// The whole.
pub mod commands;
pub mod engine;
pub mod node;
pub mod config;

// The doors.
pub mod http;
pub mod bus;

// The way of a request, and the models that it is for.
pub mod admission;
pub mod models;
pub mod scheduler;
pub mod batcher;
pub mod executor;
pub mod reply;

// Beside the way: what the node says of itself.
pub mod registrar;
pub mod health;

// Durable streams: what is stored of a request, and who may go on with it.
pub mod log;

// The ground floor: what several stages share, first what travels between them.
pub mod sequence;
pub mod door;
pub mod reader;
pub mod checkpoint;
pub mod tokenizer;
pub mod jinja;
pub mod telemetry;
pub mod request;
pub mod gpu;
pub mod memory;
pub mod progress;
pub mod lifeline;
pub mod bridge;
pub mod files;
pub mod ids;
pub mod digest;
pub mod clock;
pub mod secret;
pub mod settings;
pub mod error;

pub use engine::Engine;
