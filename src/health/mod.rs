//! Health: one actor, on its own arbiter; Healthy, Degraded or Critical from forward progress, never from "the process answers".

mod progress;

pub use progress::Progress;
