//! Goal: the HTTP door keeps its contract towards clients and towards admission, whatever either does.
//! Method: the real server on a free port, a real client, and behind it an admission that hands each request to the
//! test, which plays the node.

#![allow(clippy::unwrap_used)]

#[path = "http_door/answers.rs"]
mod answers;
#[path = "http_door/crowd.rs"]
mod crowd;
#[path = "http_door/inferno.rs"]
mod inferno;
#[path = "http_door/leaving.rs"]
mod leaving;
#[path = "http_door/protocol.rs"]
mod protocol;
#[path = "http_door/rig.rs"]
mod rig;
#[path = "http_door/service.rs"]
mod service;
#[path = "http_door/strictness.rs"]
mod strictness;
#[path = "http_door/wire.rs"]
mod wire;
