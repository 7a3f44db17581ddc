//! Digests, as they are written where people and other nodes see them: in lower-case hex.

use sha2::{Digest as _, Sha256};

/// The first half of a SHA-256 (FIPS 180-4), in 32 digits: enough to tell any two bodies apart.
pub fn digest_of(body: &[u8]) -> String {
    hex(&Sha256::digest(body)[..16])
}

/// Two digits a byte.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_half_of_what_the_standard_says() {
        assert_eq!(digest_of(b"abc"), "ba7816bf8f01cfea414140de5dae2223");
        assert_eq!(hex(&[0, 10, 255]), "000aff");
    }
}
