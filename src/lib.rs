//! inferno-node: a node of an LLM inference cluster.
//!
//! The modules in the order of a request's way; `ARCHITECTURE.md` tells the same in prose, `actors.md` lists the actors.
//!
//! ```text
//! bus | http  →  admission  →  scheduler  →  batcher[d]  →  executor[d]  →  batcher[d]  →  reply  →  bus | http
//! ```

#![deny(unsafe_code)]

// The way of a request.
pub mod bus;
pub mod http;

pub mod admission;
pub mod scheduler;

pub mod batcher;
pub mod executor;
pub mod reply;

// Beside the way.
pub mod health;
pub mod models;

// The whole.
pub mod cli;
pub mod config;
pub mod engine;
pub mod generate;
pub mod node;

// What every stage uses.
pub mod bridge;
pub mod clock;
pub mod error;
pub mod request;
pub mod telemetry;
pub mod tokenizer;

pub use engine::Engine;
