//! Goal: the node as its users meet it: the built binary, real NATS, real HTTP. Method: processes on free loopback ports, the demo
//! model where text matters and a `sim` device where time does; every process ends with its test.

mod cluster;
mod command_line;
#[cfg(debug_assertions)]
mod deaths;
mod drain;
mod durable;
mod durable_choices;
mod durable_faults;
mod durable_http;
mod durable_identity;
mod failure;
mod first_hour;
mod flood;
#[allow(dead_code, reason = "shared with tests/faults, which uses the rest")]
mod harness;
mod health;
#[path = "../bus/jobs.rs"]
#[allow(dead_code, reason = "shared with tests/faults, which uses the rest")]
mod jobs;
mod limits;
mod listeners;
mod load_balancer;
mod log_lines;
#[path = "../bus/nats.rs"]
#[allow(dead_code, reason = "no test binary that has a server needs all of it")]
mod nats;
mod nats_link;
mod nodes;
mod registrar;
mod request_path;
mod secrets;
mod slow_reader;
mod templates;
