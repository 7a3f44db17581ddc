//! What a call of the engine fails with.

/// What a device call failed with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct DeviceError {
    /// One of the fixed codes.
    pub code: DeviceErrorCode,
    /// Detail for the log.
    pub message: String,
}

/// The fixed codes that engine errors start with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceErrorCode {
    /// The pool or the machine has not enough memory.
    OutOfMemory,
    /// The step's arrays contradict each other or the model.
    InvalidBatch,
    /// The device is unusable until the process restarts.
    Sticky,
    /// Anything else.
    Other,
}

impl std::fmt::Display for DeviceErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DeviceErrorCode::OutOfMemory => "out_of_memory",
            DeviceErrorCode::InvalidBatch => "invalid_batch",
            DeviceErrorCode::Sticky => "sticky",
            DeviceErrorCode::Other => "other",
        })
    }
}

impl DeviceError {
    /// Reads `code: message`; what has no known code is `other`.
    pub fn parse(text: &str) -> Self {
        let (code, message) = text.split_once(": ").unwrap_or(("", text));
        let (code, message) = match code {
            "out_of_memory" => (DeviceErrorCode::OutOfMemory, message),
            "invalid_batch" => (DeviceErrorCode::InvalidBatch, message),
            "sticky" => (DeviceErrorCode::Sticky, message),
            "other" => (DeviceErrorCode::Other, message),
            _ => (DeviceErrorCode::Other, text),
        };
        Self { code, message: message.to_owned() }
    }
}

impl From<cxx::Exception> for DeviceError {
    fn from(exception: cxx::Exception) -> Self {
        Self::parse(exception.what())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_read_from_the_front_of_the_text() {
        let error = DeviceError::parse("out_of_memory: need 12, have 3");
        assert_eq!(error.code, DeviceErrorCode::OutOfMemory);
        assert_eq!(error.message, "need 12, have 3");
        assert_eq!(error.to_string(), "out_of_memory: need 12, have 3");
        assert_eq!(DeviceError::parse("std::bad: thing").code, DeviceErrorCode::Other);
    }
}
