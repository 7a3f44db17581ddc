//! Which id a request runs under, and which one its answer shows.
//!
//! A `request_id` in the body is the client's word: one that is taken is a conflict. The header X-Request-Id is for tracing, often a
//! gateway's: it is shown again as it came, and the request runs under it where it can.

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};

use super::children;
use crate::ids::RequestId;

/// Carries an id in both directions.
pub(in crate::http) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A longer one is not shown again.
const MAX_SHOWN_BYTES: usize = 512;

/// The id that a request runs under.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::http) struct RunningId {
    pub(in crate::http) id: RequestId,
    /// Another will do, if this one runs already.
    pub(in crate::http) is_hint: bool,
}

impl RunningId {
    /// The body's id, else the header's where it is one and has room for so many prompts, else a fresh one.
    pub(in crate::http) fn choose(
        in_body: Option<RequestId>,
        headers: &HeaderMap,
        num_prompts: usize,
    ) -> Self {
        if let Some(id) = in_body {
            return Self { id, is_hint: false };
        }
        let in_header = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
        let in_header = in_header.and_then(|id| RequestId::parse(id).ok());
        match in_header.filter(|id| children::ids(id, num_prompts).is_ok()) {
            Some(id) => Self { id, is_hint: true },
            None => Self::fresh(),
        }
    }

    /// One that no other request has.
    pub(in crate::http) fn fresh() -> Self {
        Self { id: RequestId::generate(), is_hint: false }
    }
}

/// Shows the client its own header, else the id that the request ran under, else, for one that never ran, a fresh one.
pub(in crate::http) fn show(asked: &HeaderMap, ran: Option<RequestId>, answer: &mut HeaderMap) {
    let own = asked.get(REQUEST_ID).filter(|value| value.len() <= MAX_SHOWN_BYTES);
    let value = own
        .cloned()
        .or_else(|| HeaderValue::from_str(ran.unwrap_or_else(RequestId::generate).as_str()).ok());
    if let Some(value) = value {
        answer.insert(REQUEST_ID, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(id: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let value = HeaderValue::from_bytes(id.as_bytes()).expect("a value");
        headers.insert(REQUEST_ID, value);
        headers
    }

    fn id(id: &str) -> RequestId {
        RequestId::parse(id).expect("valid")
    }

    #[test]
    fn the_bodys_id_is_meant_and_the_headers_is_a_hint() {
        let own = RunningId::choose(Some(id("b")), &with("h"), 1);
        assert_eq!(own, RunningId { id: id("b"), is_hint: false });
        let traced = RunningId::choose(None, &with("h"), 1);
        assert_eq!(traced, RunningId { id: id("h"), is_hint: true });
        let long = "x".repeat(63);
        assert_eq!(RunningId::choose(None, &with(&long), 1).id, id(&long));
        for (header, prompts) in [
            ("uuid#12", 1),
            ("a.b", 1),
            ("Root=1-5", 1),
            (&"x".repeat(80), 1),
            ("ä", 1),
            (&long, 2),
        ] {
            let fresh = RunningId::choose(None, &with(header), prompts);
            assert!(!fresh.is_hint && fresh.id.as_str().len() == 32, "{header}");
        }
    }

    #[test]
    fn a_client_sees_its_own_header_else_the_id() {
        let shown = |asked: &HeaderMap, ran: Option<&str>| {
            let mut answer = HeaderMap::new();
            show(asked, ran.map(id), &mut answer);
            String::from_utf8_lossy(answer.get(REQUEST_ID).expect("one").as_bytes()).into_owned()
        };
        assert_eq!(shown(&with("Root=1-5;a b"), Some("r")), "Root=1-5;a b");
        assert_eq!(shown(&HeaderMap::new(), Some("r")), "r");
        assert_eq!(shown(&with(&"x".repeat(513)), Some("r")), "r");
        assert_eq!(shown(&HeaderMap::new(), None).len(), 32);
    }
}
