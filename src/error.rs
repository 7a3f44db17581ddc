//! The errors a client can see: a closed list of kinds, each with its status.
//!
//! Tests and callers match on [`Kind`], never on the text. A message says what was expected and what came.

use std::fmt;

/// What went wrong, as the wire contract names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Malformed or out of range.
    Invalid,
    /// Known, but not supported by this node.
    Unsupported,
    /// Prompt and `max_tokens` do not fit into the model's context.
    ContextLength,
    /// No key, or a wrong one.
    Unauthorized,
    /// Not for this key.
    Forbidden,
    /// No such model or request.
    NotFound,
    /// A request with this id is running.
    Conflict,
    /// The body is beyond its limit.
    TooLarge,
    /// The node holds as much as it may; comes with a time to come back.
    QueueFull,
    /// Ended by a cancel from elsewhere.
    Cancelled,
    /// The step failed twice, or a defect of ours.
    Internal,
    /// The node finishes what it has and takes nothing new.
    Draining,
    /// No device is up.
    Unavailable,
    /// The log of durable requests has no room.
    LogFull,
    /// The log of durable requests is not there, or does not answer.
    LogUnavailable,
    /// What was stored of the request is kept no longer.
    Expired,
}

impl Kind {
    /// Every kind, for tables and tests.
    pub const ALL: [Kind; 16] = [
        Kind::Invalid,
        Kind::Unsupported,
        Kind::ContextLength,
        Kind::Unauthorized,
        Kind::Forbidden,
        Kind::NotFound,
        Kind::Conflict,
        Kind::TooLarge,
        Kind::QueueFull,
        Kind::Cancelled,
        Kind::Internal,
        Kind::Draining,
        Kind::Unavailable,
        Kind::LogFull,
        Kind::LogUnavailable,
        Kind::Expired,
    ];

    /// The HTTP status, also sent as `Nats-Service-Error-Code`.
    pub fn status(self) -> u16 {
        match self {
            Kind::Invalid | Kind::Unsupported | Kind::ContextLength => 400,
            Kind::Unauthorized => 401,
            Kind::Forbidden => 403,
            Kind::NotFound => 404,
            Kind::Conflict => 409,
            Kind::TooLarge => 413,
            Kind::QueueFull => 429,
            Kind::Cancelled => 499,
            Kind::Internal => 500,
            Kind::Expired => 410,
            Kind::Draining | Kind::Unavailable | Kind::LogFull | Kind::LogUnavailable => 503,
        }
    }

    /// The name on the wire and in metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Invalid => "invalid",
            Kind::Unsupported => "unsupported",
            Kind::ContextLength => "context_length",
            Kind::Unauthorized => "unauthorized",
            Kind::Forbidden => "forbidden",
            Kind::NotFound => "not_found",
            Kind::Conflict => "conflict",
            Kind::TooLarge => "too_large",
            Kind::QueueFull => "queue_full",
            Kind::Cancelled => "cancelled",
            Kind::Internal => "internal",
            Kind::Draining => "draining",
            Kind::Unavailable => "unavailable",
            Kind::LogFull => "log_full",
            Kind::LogUnavailable => "log_unavailable",
            Kind::Expired => "expired",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The most of a member's path that an error tells, in bytes: a client may name anything.
const MAX_PARAM_LEN: usize = 200;

/// An error for a client: the `error` object of the bus, and the source of OpenAI's error body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[error("{kind}: {}", self.text())]
#[serde(into = "WireError", from = "WireError")]
pub struct Error {
    /// One of the closed list of kinds.
    pub kind: Kind,
    /// What was expected and what came, without the member's name.
    pub message: String,
    /// The member at fault, where one is: its path in what the client sent, such as `messages[1].content`.
    pub param: Option<String>,
    /// When to come back, in milliseconds; on `queue_full`, `draining` and `unavailable`.
    pub retry_after_ms: Option<u64>,
}

/// An [`Error`] on the wire, where the message is its [`text`](Error::text).
#[derive(serde::Serialize, serde::Deserialize)]
struct WireError {
    kind: Kind,
    message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    param: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
}

impl From<Error> for WireError {
    fn from(error: Error) -> Self {
        let message = error.text();
        let Error { kind, param, retry_after_ms, .. } = error;
        Self { kind, message, param, retry_after_ms }
    }
}

impl From<WireError> for Error {
    fn from(wire: WireError) -> Self {
        let WireError { kind, mut message, param, retry_after_ms } = wire;
        let named = param.as_ref().and_then(|param| message.strip_prefix(&format!("{param}: ")));
        if let Some(rest) = named {
            message = rest.to_owned();
        }
        Self { kind, message, param, retry_after_ms }
    }
}

impl Error {
    /// An error of `kind` with a message.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), param: None, retry_after_ms: None }
    }

    /// `invalid`, naming the member by its path.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message).with_param(param)
    }

    /// `unsupported`, naming the member by its path.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Kind::Unsupported, message).with_param(param)
    }

    /// `internal`: a defect of ours, or a step that failed twice.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// Names the member at fault by its path; the end of a very long one is left out.
    #[must_use]
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        let mut param = param.into();
        param.truncate(param.floor_char_boundary(MAX_PARAM_LEN));
        self.param = Some(param);
        self
    }

    /// What a client reads: the member at fault, what was expected, what came.
    pub fn text(&self) -> String {
        match &self.param {
            Some(param) => format!("{param}: {}", self.message),
            None => self.message.clone(),
        }
    }

    /// Adds the time after which another try makes sense.
    #[must_use]
    pub fn with_retry_after_ms(mut self, ms: u64) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }
}

/// `Result` with the client's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_names_are_what_serde_writes() {
        for kind in Kind::ALL {
            let json = serde_json::to_string(&kind).expect("a unit enum serialises");
            assert_eq!(json, format!("\"{}\"", kind.as_str()));
            assert!((400..=503).contains(&kind.status()));
        }
    }

    #[test]
    fn on_the_wire_the_message_names_the_member_and_what_is_absent_is_left_out() {
        let error = Error::invalid("params.top_p", "expected more than 0, at most 1, got 3");
        let json = serde_json::to_value(&error).expect("serialises");
        assert_eq!(
            json,
            serde_json::json!({
                "kind": "invalid", "message": "params.top_p: expected more than 0, at most 1, got 3", "param": "params.top_p"
            })
        );
        assert_eq!(serde_json::from_value::<Error>(json).expect("reads"), error);
        assert_eq!(
            error.to_string(),
            "invalid: params.top_p: expected more than 0, at most 1, got 3"
        );
        let plain = Error::new(Kind::QueueFull, "full").with_retry_after_ms(20);
        let json = serde_json::to_value(&plain).expect("serialises");
        let expected =
            serde_json::json!({"kind": "queue_full", "message": "full", "retry_after_ms": 20});
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_value::<Error>(json).expect("reads"), plain);
    }

    #[test]
    fn a_name_without_end_is_cut() {
        let error = Error::invalid("ä".repeat(1_000), "unknown parameter");
        assert_eq!(error.text(), format!("{}: unknown parameter", "ä".repeat(MAX_PARAM_LEN / 2)));
    }
}
