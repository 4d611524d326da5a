//! Signed requests (RFC 9421, RFC 9530): what we have signed is verified; what was changed on the way,
//! or made up, is not.
#![no_main]

use codius_fuzz::Choices;
use codius_signature::{Key, Received, Request, sign, verify};
use libfuzzer_sys::fuzz_target;

/// A field with some of its bytes replaced, or one that is made up.
fn changed(choices: &mut Choices<'_>, field: &str) -> String {
    let mut bytes = field.as_bytes().to_vec();
    match choices.below(4) {
        0 => {}
        1 => bytes = choices.chunk().to_vec(),
        2 => {
            let at = usize::from(choices.byte()) % (bytes.len() + 1);
            let rest = bytes.split_off(at);
            bytes.extend_from_slice(choices.chunk());
            bytes.extend_from_slice(&rest);
        }
        _ => {
            let at = usize::from(choices.byte()) % bytes.len().max(1);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = choices.byte();
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices::new(input);
    let key = Key::from_seed([choices.byte(); 32]);
    let path = format!(
        "/{}",
        String::from_utf8_lossy(choices.chunk()).escape_default()
    );
    let body = choices.chunk();
    let request = Request {
        method: ["GET", "POST"][choices.below(2)],
        authority: "host.example",
        path: &path,
        query: [None, Some("follow=true")][choices.below(2)],
        body,
    };
    let created = choices.integer() % 1_000_000_000_000_000;
    let fields = sign(&key, &request, created, &[choices.byte(); 16]);
    let signed = verify(&request, &(&fields).into()).expect("it is signed");
    assert_eq!((signed.key, signed.created), (key.id(), created));

    let digest = fields.content_digest.as_deref().unwrap_or_default();
    let digest = changed(&mut choices, digest);
    let signature_input = changed(&mut choices, &fields.signature_input);
    let signature = changed(&mut choices, &fields.signature);
    let received = Received {
        content_digest: Some(&digest),
        signature_input: Some(&signature_input),
        signature: Some(&signature),
    };
    if let Ok(accepted) = verify(&request, &received) {
        // Spaces, repeated parameters and signatures of others may be there: the canonical form is
        // what counts, and it says the same.
        assert_eq!(accepted, signed);
    }
});
