//! Requests with several prompts: the id that the client knows, and the ids under which its prompts run.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Kind, Result};
use crate::request::RequestId;

/// The requests with several prompts that run now. Cloned freely, one list.
#[derive(Clone, Default)]
pub(super) struct Parents(Arc<Mutex<HashMap<RequestId, Vec<RequestId>>>>);

impl Parents {
    /// Notes `id` with a child for each of `count` prompts, for as long as the answer lives.
    ///
    /// # Errors
    /// `conflict` while a request of that id is noted; `invalid` where the id leaves no room for a child's number.
    pub(super) fn note(&self, id: &RequestId, count: usize) -> Result<Parent> {
        let children = (0..count).map(|i| RequestId::parse(&format!("{id}-{i}")));
        let children: Vec<_> = children.collect::<Result<_>>().map_err(|_| {
            let room = crate::request::MAX_REQUEST_ID_LEN - format!("-{}", count - 1).len();
            Error::invalid(
                "request_id",
                format!("expected at most {room} characters with {count} prompts"),
            )
        })?;
        let mut running = self.lock();
        if running.contains_key(id) {
            let message = format!("a request with the id {id} is running");
            return Err(Error::new(Kind::Conflict, message).with_param("request_id"));
        }
        running.insert(id.clone(), children.clone());
        Ok(Parent { all: self.clone(), id: id.clone(), children })
    }

    /// The ids of its prompts, if a request with several runs under `id`.
    pub(super) fn children(&self, id: &RequestId) -> Option<Vec<RequestId>> {
        self.lock().get(id).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RequestId, Vec<RequestId>>> {
        // Only whole entries are written under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One noted request; dropping it forgets it.
pub(super) struct Parent {
    all: Parents,
    id: RequestId,
    /// A child for each prompt, in order.
    pub(super) children: Vec<RequestId>,
}

impl Drop for Parent {
    fn drop(&mut self) {
        self.all.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_known_while_the_answer_lives() {
        let parents = Parents::default();
        let id = RequestId::parse("r").expect("valid");
        let parent = parents.note(&id, 2).expect("free");
        assert_eq!(parent.children.iter().map(|c| c.as_str()).collect::<Vec<_>>(), ["r-0", "r-1"]);
        assert_eq!(parents.children(&id).as_ref(), Some(&parent.children));
        assert_eq!(parents.note(&id, 2).map(drop).map_err(|e| e.kind), Err(Kind::Conflict));
        drop(parent);
        assert_eq!(parents.children(&id), None);
        assert!(parents.note(&id, 2).is_ok());
    }

    #[test]
    fn an_id_without_room_for_numbers_is_refused() {
        let id = RequestId::parse(&"x".repeat(63)).expect("valid");
        let error = Parents::default().note(&id, 2).map(drop).expect_err("65 characters");
        assert_eq!((error.kind, error.param.as_deref()), (Kind::Invalid, Some("request_id")));
        assert!(error.message.contains("at most 62"));
    }
}
