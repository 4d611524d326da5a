//! Nonces of private variables that follow from the uploader's key, so that the same files give the
//! same hash: uploading them again extends the program that runs, and what is owed to it is used.
//!
//! A nonce hides a value that could be guessed. It may be known to the host that gets the value, and to
//! nobody else. What is given up: whoever sees two manifests of one uploader can tell that a variable of
//! one name has the same value in both. `--random-nonce` does not give that up.

use codius_manifest::source::NONCE_BYTES;
use ring::hmac;

use crate::key::Key;

/// Keeps these from anything else that is made of the key.
const LABEL: &[u8] = b"codius private variable nonce 1";

/// HMAC-SHA256 of the key's seed over label, name and value, each with its length before it; the first
/// 16 bytes.
pub(crate) fn derived(key: &Key, name: &str, value: &str) -> String {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key.seed()));
    for part in [LABEL, name.as_bytes(), value.as_bytes()] {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    hex(&context.sign().as_ref()[..NONCE_BYTES])
}

/// As the original does it: another one each time.
pub(crate) fn random() -> String {
    hex(&rand::random::<[u8; NONCE_BYTES]>())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_variable_of_the_same_uploader_has_the_same_nonce() {
        let (mine, other) = (Key::from_seed([7; 32]), Key::from_seed([8; 32]));
        let nonce = derived(&mine, "KEY", "secret");
        // Fixed: another value would change the hash of everything that runs.
        assert_eq!(nonce, "6ee1c8884d171dd936ff02b7df7de967");
        assert_eq!(derived(&mine, "KEY", "secret"), nonce);
        for different in [
            derived(&other, "KEY", "secret"),
            derived(&mine, "KEYs", "ecret"),
            derived(&mine, "KEY", "secret2"),
        ] {
            assert_ne!(different, nonce);
        }
        assert_ne!(random(), random());
        assert_eq!(random().len(), 2 * NONCE_BYTES);
    }
}
