//! The ids under which the prompts of one request run.

use crate::error::{Error, Result};
use crate::ids::{MAX_REQUEST_ID_LEN, RequestId};

/// The id itself for one prompt; for several, one with a number for each.
///
/// # Errors
/// `invalid` where the id leaves no room for a number.
pub(in crate::http) fn ids(id: &RequestId, count: usize) -> Result<Vec<RequestId>> {
    if count == 1 {
        return Ok(vec![id.clone()]);
    }
    let ids = (0..count).map(|i| RequestId::parse(&format!("{id}-{i}")));
    ids.collect::<Result<_>>().map_err(|_| {
        let room = MAX_REQUEST_ID_LEN - format!("-{}", count - 1).len();
        let expected =
            format!("with {count} prompts a request_id may have at most {room} characters");
        Error::invalid("request_id", expected)
    })
}

/// The same for durable requests, of which the first has the id itself: so a key, of which the id is made, is known whether one
/// prompt was sent with it or several.
///
/// # Errors
/// As [`ids`].
pub(in crate::http) fn durable_ids(id: &RequestId, count: usize) -> Result<Vec<RequestId>> {
    let mut ids = ids(id, count)?;
    if let Some(first) = ids.first_mut() {
        *first = id.clone();
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn several_prompts_are_numbered() {
        let id = RequestId::parse("r").expect("valid");
        assert_eq!(ids(&id, 1).as_deref(), Ok(&[id.clone()][..]));
        let numbered = ids(&id, 2).expect("room for numbers");
        assert_eq!(numbered.iter().map(RequestId::as_str).collect::<Vec<_>>(), ["r-0", "r-1"]);
        let durable = durable_ids(&id, 2).expect("room for numbers");
        assert_eq!(durable.iter().map(RequestId::as_str).collect::<Vec<_>>(), ["r", "r-1"]);
    }

    #[test]
    fn an_id_without_room_for_numbers_is_refused() {
        let id = RequestId::parse(&"x".repeat(63)).expect("valid");
        let error = ids(&id, 2).expect_err("65 characters");
        assert_eq!((error.kind, error.param.as_deref()), (Kind::Invalid, Some("request_id")));
        assert!(error.message.contains("at most 62"));
    }
}
