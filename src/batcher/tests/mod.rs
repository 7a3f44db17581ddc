mod actor;
mod config;
mod score;
