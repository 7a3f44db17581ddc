mod actor;
mod config;
mod score;
mod step_time;
