//! What a rendering remembers: variables by scope, and all that has an identity. Values refer to it by number, so none can hold
//! itself.

use super::ast::{For, Macro, Name};
use super::value::PyValue;

/// The scope of the whole template.
pub(super) const OUTERMOST: usize = 0;

#[derive(Default)]
pub(super) struct Scopes<'t> {
    scopes: Vec<Scope>,
    pub macros: Vec<Closure<'t>>,
    pub namespaces: Vec<Vec<(Name, PyValue)>>,
    pub loops: Vec<Loop<'t>>,
    pub cyclers: Vec<(Vec<PyValue>, usize)>,
    /// The separator, once it was asked for.
    pub joiners: Vec<(PyValue, bool)>,
    /// Scopes below stay: a macro sees them.
    pinned: usize,
}

#[derive(Default)]
struct Scope {
    variables: Vec<(Name, PyValue)>,
    parent: Option<usize>,
}

/// A macro with the scope it was defined in, whose variables it sees.
#[derive(Clone, Copy)]
pub(super) struct Closure<'t> {
    pub definition: &'t Macro,
    pub scope: usize,
}

/// A loop under way.
pub(super) struct Loop<'t> {
    pub items: Vec<PyValue>,
    pub index: usize,
    /// 0 for a loop that is not called by itself.
    pub depth: usize,
    /// What `changed` was last asked about.
    pub seen: Option<Vec<PyValue>>,
    /// What `loop(…)` runs, and in which scope.
    pub recursive: Option<(&'t For, usize)>,
}

impl<'t> Scopes<'t> {
    pub(super) fn open(&mut self, parent: Option<usize>) -> usize {
        self.scopes.push(Scope { variables: Vec::new(), parent });
        self.scopes.len() - 1
    }

    /// Forgets the scope and what was opened in it, unless a macro may see it.
    pub(super) fn close(&mut self, scope: usize) {
        if scope >= self.pinned {
            self.scopes.truncate(scope);
        }
    }

    pub(super) fn set(&mut self, scope: usize, name: &Name, value: PyValue) {
        let Some(scope) = self.scopes.get_mut(scope) else { return };
        put(&mut scope.variables, name, value);
    }

    pub(super) fn get(&self, scope: usize, name: &str) -> Option<&PyValue> {
        let mut at = self.scopes.get(scope);
        while let Some(scope) = at {
            if let Some(value) = find(&scope.variables, name) {
                return Some(value);
            }
            at = scope.parent.and_then(|parent| self.scopes.get(parent));
        }
        None
    }

    /// A macro of this scope.
    pub(super) fn define(&mut self, definition: &'t Macro, scope: usize) -> usize {
        self.pinned = self.pinned.max(self.scopes.len());
        self.macros.push(Closure { definition, scope });
        self.macros.len() - 1
    }

    /// Forgets a loop that has ended, unless it is not the last.
    pub(super) fn end_loop(&mut self, at: usize) {
        if at + 1 == self.loops.len() && self.pinned == 0 {
            self.loops.pop();
        }
    }

    pub(super) fn member(&self, namespace: usize, name: &str) -> Option<&PyValue> {
        find(self.namespaces.get(namespace)?, name)
    }

    pub(super) fn set_member(&mut self, namespace: usize, name: &Name, value: PyValue) {
        let Some(members) = self.namespaces.get_mut(namespace) else { return };
        put(members, name, value);
    }
}

/// The value of a name.
pub(super) fn find<'v>(named: &'v [(Name, PyValue)], name: &str) -> Option<&'v PyValue> {
    named.iter().find(|(found, _)| &**found == name).map(|(_, value)| value)
}

fn put(named: &mut Vec<(Name, PyValue)>, name: &Name, value: PyValue) {
    match named.iter_mut().find(|(found, _)| found == name) {
        Some((_, old)) => *old = value,
        None => named.push((Name::clone(name), value)),
    }
}
