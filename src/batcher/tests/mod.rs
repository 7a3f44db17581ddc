mod actor;
mod config;
mod gathering;
mod rig;
mod score;
mod step_time;
