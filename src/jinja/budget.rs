//! What a rendering may cost, and how it fails.

use std::cell::Cell;
use std::fmt;

/// The most that one rendering may take.
#[derive(Debug, Clone, Copy)]
pub struct RenderLimits {
    /// Expressions and statements evaluated, and items looked at.
    pub instructions: u64,
    /// Bytes of all values that are built on the way, whether they live on or not.
    pub built_bytes: u64,
    /// Bytes of the text.
    pub output_bytes: usize,
}

/// Why a rendering stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenderFault {
    /// The template said `raise_exception`.
    Raised,
    /// The template did what Python would not do, either.
    Failed,
    /// [`RenderLimits::instructions`].
    Instructions,
    /// [`RenderLimits::built_bytes`].
    BuiltBytes,
    /// [`RenderLimits::output_bytes`].
    OutputBytes,
}

/// A rendering that stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderError {
    /// Why.
    pub fault: RenderFault,
    /// In words: of `raise_exception`, the template's own.
    pub message: String,
    /// Where, counted from 1.
    pub line: Option<u32>,
}

impl RenderError {
    pub(super) fn of(fault: RenderFault, message: impl Into<String>) -> Self {
        Self { fault, message: message.into(), line: None }
    }

    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self::of(RenderFault::Failed, message)
    }

    /// Of a name that has no value, where one is needed.
    pub(super) fn undefined(name: &str) -> Self {
        Self::failed(format!("'{name}' is undefined"))
    }

    pub(super) fn at(mut self, line: u32) -> Self {
        self.line.get_or_insert(line);
        self
    }
}

impl fmt::Display for RenderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line.filter(|_| self.fault == RenderFault::Failed) {
            Some(line) => write!(f, "line {line}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

pub(super) type Evaluated<T> = std::result::Result<T, RenderError>;

/// What is left of the limits.
pub(super) struct Budget {
    limits: RenderLimits,
    instructions: Cell<u64>,
    bytes: Cell<u64>,
}

impl Budget {
    pub(super) fn new(limits: RenderLimits) -> Self {
        let (instructions, bytes) = (Cell::new(limits.instructions), Cell::new(limits.built_bytes));
        Self { limits, instructions, bytes }
    }

    /// Before so much work is done.
    pub(super) fn step(&self, count: u64) -> Evaluated<()> {
        take(&self.instructions, count).ok_or_else(|| {
            let message = format!("more than {} instructions", self.limits.instructions);
            RenderError::of(RenderFault::Instructions, message)
        })
    }

    /// Before so many bytes are built.
    pub(super) fn build(&self, bytes: usize) -> Evaluated<()> {
        take(&self.bytes, bytes as u64).ok_or_else(|| {
            let message = format!("values of more than {} bytes", self.limits.built_bytes);
            RenderError::of(RenderFault::BuiltBytes, message)
        })
    }

    /// Before a list of so many items is made.
    pub(super) fn items(&self, count: usize) -> Evaluated<()> {
        self.step(count as u64)?;
        self.build(count.saturating_mul(size_of::<super::PyValue>()))
    }

    /// Whether a text may have so many bytes.
    pub(super) fn output(&self, bytes: usize) -> Evaluated<()> {
        if bytes <= self.limits.output_bytes {
            return Ok(());
        }
        let message = format!("a text of more than {} bytes", self.limits.output_bytes);
        Err(RenderError::of(RenderFault::OutputBytes, message))
    }
}

fn take(left: &Cell<u64>, count: u64) -> Option<()> {
    left.set(left.get().checked_sub(count)?);
    Some(())
}
