//! What an actor or a thread holds while it lives, so that its end is seen at once, even where a panic brought it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The lifelines of one owner: who hears of an end, and whether ends are expected.
#[derive(Clone)]
pub struct Lifelines(Arc<Shared>);

struct Shared {
    is_ending: AtomicBool,
    on_end: Box<dyn Fn(&'static str) + Send + Sync>,
    armed: Armed,
}

/// Names of holders that are to panic; in a release build none can.
#[derive(Clone, Default)]
struct Armed {
    #[cfg(any(test, debug_assertions))]
    names: Arc<std::sync::Mutex<Vec<String>>>,
}

#[cfg(any(test, debug_assertions))]
impl Armed {
    fn names(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        // Nothing panics while it is held.
        self.names.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Lifelines {
    /// `on_end` is told the name of each holder that ends before [`Lifelines::release`], on the thread where it ended, perhaps while
    /// that thread unwinds: it must neither block nor panic.
    pub fn new(on_end: impl Fn(&'static str) + Send + Sync + 'static) -> Self {
        Self::armed_with(Armed::default(), on_end)
    }

    /// Those of a part of what these are of: others hear of an end.
    pub fn part(&self, on_end: impl Fn(&'static str) + Send + Sync + 'static) -> Self {
        Self::armed_with(self.0.armed.clone(), on_end)
    }

    fn armed_with(armed: Armed, on_end: impl Fn(&'static str) + Send + Sync + 'static) -> Self {
        let (is_ending, on_end) = (AtomicBool::new(false), Box::new(on_end));
        Self(Arc::new(Shared { is_ending, on_end, armed }))
    }

    /// A lifeline for one holder.
    pub fn hold(&self, name: &'static str) -> Lifeline {
        Lifeline { name, lines: self.clone(), is_over: false }
    }

    /// From here on holders may end.
    pub fn release(&self) {
        self.0.is_ending.store(true, Ordering::SeqCst);
    }

    /// The next holder of that name that looks at its lifeline panics.
    #[cfg(any(test, debug_assertions))]
    pub fn arm(&self, name: &str) {
        self.0.armed.names().push(name.to_owned());
    }
}

/// See the module. Held by who is to live as long as its owner.
pub struct Lifeline {
    name: &'static str,
    lines: Lifelines,
    /// What it held on to has come to its proper end.
    is_over: bool,
}

impl Lifeline {
    /// Of a holder whose end nobody needs to hear of.
    pub fn unwatched() -> Self {
        Lifelines::new(|_| ()).hold("nobody")
    }

    /// One for a helper of this holder.
    pub fn beside(&self, name: &'static str) -> Lifeline {
        self.lines.hold(name)
    }

    /// The holder ends as it should.
    pub fn dismiss(mut self) {
        self.is_over = true;
    }

    /// Where a test injects a panic; nothing in a release build.
    #[inline]
    pub fn look(&self) {
        #[cfg(any(test, debug_assertions))]
        assert!(!self.take_armed(), "{} panics for a test", self.name);
    }

    /// Whether a test has asked this holder to end; it is asked once.
    #[cfg(any(test, debug_assertions))]
    pub fn take_armed(&self) -> bool {
        let mut armed = self.lines.0.armed.names();
        let at = armed.iter().position(|name| name == self.name);
        at.map(|at| armed.remove(at)).is_some()
    }
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        if !self.is_over && !self.lines.0.is_ending.load(Ordering::SeqCst) {
            (self.lines.0.on_end)(self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn noted() -> (Lifelines, Arc<Mutex<Vec<&'static str>>>) {
        let ended = Arc::new(Mutex::new(Vec::new()));
        let note = ended.clone();
        (Lifelines::new(move |name| note.lock().expect("no panic").push(name)), ended)
    }

    #[test]
    fn an_end_is_heard_of_until_ends_are_expected() {
        let (lines, ended) = noted();
        let (first, second) = (lines.hold("first"), lines.hold("second"));
        let helper = first.beside("helper");
        drop(first);
        drop(helper);
        lines.release();
        drop(second);
        assert_eq!(*ended.lock().expect("no panic"), ["first", "helper"]);
    }

    #[tokio::test]
    async fn a_task_may_end_as_it_should_but_not_panic() {
        let (lines, ended) = noted();
        lines.arm("broken");
        for name in ["sound", "broken"] {
            let line = lines.hold(name);
            let task = async move {
                line.look();
                line.dismiss();
            };
            assert_eq!(tokio::spawn(task).await.is_err(), name == "broken");
        }
        assert_eq!(*ended.lock().expect("no panic"), ["broken"]);
    }
}
