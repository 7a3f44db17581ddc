//! On whose behalf a request comes.

use std::fmt;
use std::sync::Arc;

/// Who asks, as the door's authentication found it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// Whose requests these are; none where a door asks nobody.
    pub tenant: Option<Tenant>,
    /// What it may do.
    pub role: Role,
}

/// A name for everybody who comes with the same credentials: the same on every node, and no way back to them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tenant(Arc<str>);

impl Tenant {
    /// A tenant by name.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a caller may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Ask for completions.
    User,
    /// Everything: load and unload models, too. Every caller has it until keys say otherwise.
    #[default]
    Operator,
}
