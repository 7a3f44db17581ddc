//! Completions that are known before, and what is held against them.

use inferno_node::error::{Error, Kind};
use inferno_node::ids::RequestId;
use inferno_node::log::{History, StoredRecord};
use inferno_node::request::{Event, FinishReason, Usage};

use crate::chance::mix;

/// Each request's completion is known before.
pub fn token(request: usize, index: usize) -> u32 {
    (mix((request * 1_000 + index) as u64) % 50_000) as u32
}

pub fn letter(request: usize, index: usize) -> char {
    char::from(b'a' + (token(request, index) % 26) as u8)
}

pub fn id(request: usize) -> RequestId {
    RequestId::parse(&format!("r{request}")).expect("an id")
}

pub fn read(records: Vec<StoredRecord>) -> Result<History, String> {
    History::read(records).map_err(|broken| broken.to_string())
}

pub fn said(request: usize, index: usize, finish_reason: Option<FinishReason>) -> Event {
    Event {
        seq: index as u32,
        token_ids: vec![token(request, index)],
        text: letter(request, index).to_string(),
        finish_reason,
        usage: finish_reason.is_some().then(Usage::default),
        error: (finish_reason == Some(FinishReason::Failed))
            .then(|| Box::new(Error::new(Kind::Internal, "failed"))),
        ..Event::new(id(request))
    }
}

pub fn check_known(request: usize, from: usize, tokens: &[u32], text: &str) -> Result<(), String> {
    let known = from..from + tokens.len();
    let same = tokens.iter().zip(known.clone()).all(|(got, index)| *got == token(request, index));
    let letters: String = known.map(|index| letter(request, index)).collect();
    if same && letters == text {
        return Ok(());
    }
    Err(format!("request {request} from {from}: {tokens:?} {text:?}, not {letters:?}"))
}
