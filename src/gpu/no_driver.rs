//! A build without CUDA has no driver.

/// Nobody can hold a context.
pub(super) use std::convert::Infallible as Held;

use super::{Card, CardReadings, Memory};

const NONE: &str = "this build has no CUDA";

pub(super) fn cards() -> Result<Vec<Card>, String> {
    Err(NONE.to_owned())
}

pub(super) fn readings(_: &str) -> Result<CardReadings, String> {
    Err(NONE.to_owned())
}

pub(super) fn enter(_: u32) -> Result<Held, String> {
    Err(NONE.to_owned())
}

pub(super) fn memory(context: &Held) -> Result<Memory, String> {
    match *context {}
}
