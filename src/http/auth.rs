//! API keys: who may come in, and as whom.

use std::hint::black_box;

use crate::digest::digest_of;
use crate::error::{Error, Kind, Result};
use crate::request::{Caller, Tenant};
use crate::secret::Secret;

/// Holds the value of an `Authorization` header against the keys; with no keys everyone comes in, as nobody in particular.
///
/// # Errors
/// `unauthorized` without a header, with another scheme, or with a wrong key.
pub(super) fn check(keys: &[Secret], authorization: Option<&[u8]>) -> Result<Caller> {
    if keys.is_empty() {
        return Ok(Caller::default());
    }
    let refuse = |message: &str| Err(Error::new(Kind::Unauthorized, message));
    let Some(authorization) = authorization else {
        return refuse("expected the header \"Authorization: Bearer KEY\", got none");
    };
    let Some((scheme, given)) = authorization.split_first_chunk::<7>() else {
        return refuse("expected \"Bearer KEY\" in Authorization");
    };
    if !scheme.eq_ignore_ascii_case(b"bearer ") {
        return refuse("expected \"Bearer KEY\" in Authorization");
    }
    // No early exit: the time tells neither which key it was nor how much of it was right.
    let known = keys.iter().fold(false, |known, key| known | same(key.expose().as_bytes(), given));
    if !known {
        return refuse("the API key is not one of this node's");
    }
    Ok(Caller { tenant: Some(tenant(given)), ..Caller::default() })
}

/// The same for a key on every node; a digest, because it is logged, and half of one is enough to tell keys apart.
fn tenant(key: &[u8]) -> Tenant {
    Tenant::new(digest_of(key))
}

/// Compares in a time that depends on the length of `given` alone.
fn same(key: &[u8], given: &[u8]) -> bool {
    let mut difference = key.len() ^ given.len();
    for (i, byte) in given.iter().enumerate() {
        let expected = key.get(i % key.len().max(1)).copied().unwrap_or_default();
        difference |= usize::from(black_box(expected ^ byte));
    }
    black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_the_keys_opens_and_nothing_else_does() {
        let keys = [Secret::new("first-key"), Secret::new("second")];
        for good in ["Bearer first-key", "Bearer second", "bearer second"] {
            assert!(check(&keys, Some(good.as_bytes())).is_ok(), "{good}");
        }
        let bad = [
            "",
            "Bearer",
            "Bearer ",
            "Bearer firs",
            "Bearer first-keyx",
            "Bearer secone",
            "Basic second",
            "second",
            "Bearer  second",
            "Bearer secondsecond",
        ];
        for bad in bad {
            let error = check(&keys, Some(bad.as_bytes())).expect_err(bad);
            assert_eq!(error.kind, Kind::Unauthorized);
        }
        assert!(check(&keys, None).is_err());
        assert_eq!(check(&[], None), Ok(Caller::default()));
    }

    #[test]
    fn a_key_is_a_tenant_on_every_node_and_its_name_does_not_show_it() {
        let tenant = |keys: &[&str], given: &str| {
            let keys: Vec<_> = keys.iter().map(|key| Secret::new(*key)).collect();
            let caller = check(&keys, Some(format!("Bearer {given}").as_bytes())).expect("a key");
            caller.tenant.expect("a key has one").to_string()
        };
        let first = tenant(&["first-key", "second"], "first-key");
        assert_eq!(first, tenant(&["first-key"], "first-key"));
        assert_ne!(first, tenant(&["first-key", "second"], "second"));
        assert!(first.len() == 32 && !first.contains("first"), "{first}");
    }
}
