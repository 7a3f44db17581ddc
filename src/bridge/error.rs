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

impl DeviceErrorCode {
    const ALL: [Self; 4] = [Self::OutOfMemory, Self::InvalidBatch, Self::Sticky, Self::Other];

    /// As the engine writes it: `code_name` in `cpp/engine/base/error.cc`.
    fn as_str(self) -> &'static str {
        match self {
            DeviceErrorCode::OutOfMemory => "out_of_memory",
            DeviceErrorCode::InvalidBatch => "invalid_batch",
            DeviceErrorCode::Sticky => "sticky",
            DeviceErrorCode::Other => "other",
        }
    }
}

impl std::fmt::Display for DeviceErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl DeviceError {
    /// Reads `code: message`. What has no known code is `other`: the standard library's exceptions, which the engine passes on.
    pub fn parse(text: &str) -> Self {
        let known = text.split_once(": ").and_then(|(name, message)| {
            let code = DeviceErrorCode::ALL.into_iter().find(|code| code.as_str() == name)?;
            Some((code, message))
        });
        let (code, message) = known.unwrap_or((DeviceErrorCode::Other, text));
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
        for code in DeviceErrorCode::ALL {
            let error = DeviceError { code, message: "a: b".to_owned() };
            assert_eq!(DeviceError::parse(&error.to_string()), error);
        }
        for text in ["vector::reserve", "std::bad: thing", "invalid_batches: x", "other"] {
            let error = DeviceError { code: DeviceErrorCode::Other, message: text.to_owned() };
            assert_eq!(DeviceError::parse(text), error);
        }
    }
}
