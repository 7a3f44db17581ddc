//! The names that every stage knows things by: requests, sequences, models, devices.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The longest request id, in characters.
pub const MAX_REQUEST_ID_LEN: usize = 64;

/// What ids begin with that are made of idempotency keys.
const OF_KEY: &str = "idem-";

/// The client's id of a request, or the one the node gave: `[A-Za-z0-9_-]{1,64}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct RequestId(Arc<str>);

impl TryFrom<String> for RequestId {
    type Error = Error;

    fn try_from(id: String) -> Result<Self> {
        Self::parse(&id)
    }
}

impl RequestId {
    /// Takes a client's id.
    ///
    /// # Errors
    /// `invalid` when it is empty, too long or has another character.
    pub fn parse(id: &str) -> Result<Self> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        if id.is_empty() || id.len() > MAX_REQUEST_ID_LEN || !id.bytes().all(allowed) {
            return Err(Error::invalid(
                "request_id",
                format!(
                    "expected 1 to {MAX_REQUEST_ID_LEN} of A-Z a-z 0-9 _ -, got {} bytes",
                    id.len()
                ),
            ));
        }
        Ok(Self(id.into()))
    }

    /// A fresh id: a UUIDv7 (RFC 9562) without dashes, so ids sort by time.
    pub fn generate() -> Self {
        Self(uuid::Uuid::now_v7().simple().to_string().into())
    }

    /// The id that a digest of an idempotency key stands for.
    ///
    /// # Errors
    /// A digest that has no place in an id.
    pub fn of_key(digest: &str) -> Result<Self> {
        Self::parse(&format!("{OF_KEY}{digest}"))
    }

    /// Whether it was made of an idempotency key.
    pub fn is_of_key(&self) -> bool {
        self.0.starts_with(OF_KEY)
    }

    /// How long ago a node made it; none for a client's own.
    pub fn age(&self) -> Option<Duration> {
        let id = uuid::Uuid::try_parse(&self.0).ok().filter(|id| id.get_version_num() == 7)?;
        let (seconds, nanos) = id.get_timestamp()?.to_unix();
        let made_at = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos);
        SystemTime::now().duration_since(made_at).ok()
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Our own id of a sequence, unique in the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// Names a device: `cpu:0`, `cuda:0`, `sim:0`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct DeviceId(Arc<str>);

impl DeviceId {
    /// A device by its name; the configuration has checked it.
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a device's name says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// The engine on this machine's processor.
    Cpu,
    /// The engine on a GPU.
    Cuda,
    /// A cost model.
    Sim,
}

impl DeviceKind {
    /// Reads `cpu:N`, `cuda:N` or `sim:N`.
    ///
    /// # Errors
    /// What was expected and what came.
    pub fn parse(name: &str) -> std::result::Result<(Self, u32), String> {
        let parsed = name.split_once(':').and_then(|(kind, number)| {
            let kind = match kind {
                "cpu" => DeviceKind::Cpu,
                "cuda" => DeviceKind::Cuda,
                "sim" => DeviceKind::Sim,
                _ => return None,
            };
            // Only digits and no leading zero: one device, one name.
            let plain = number.bytes().all(|b| b.is_ascii_digit())
                && (number == "0" || !number.starts_with('0'));
            number.parse().ok().filter(|_| plain).map(|number| (kind, number))
        });
        parsed.ok_or_else(|| format!("expected cpu:N, cuda:N or sim:N, got \"{name}\""))
    }
}

/// A loaded model, unique in the node's life: a model loaded again gets another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelId(pub u32);
