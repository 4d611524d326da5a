//! Sealed STREAM data and server tokens: only what we made opens, and it opens to what we sealed.
#![no_main]

use codius_fuzz::Choices;
use ilp_stream::server::{MAX_TAG, ServerSecret};
use ilp_stream::{Keys, SEAL_OVERHEAD, SealError, StreamPacket};
use libfuzzer_sys::fuzz_target;

fn envelopes(choices: &mut Choices<'_>) {
    let keys = Keys::new(choices.chunk());
    let mut iv = [0; 12];
    for byte in &mut iv {
        *byte = choices.byte();
    }
    let (at, change) = (choices.integer(), choices.byte());
    let plaintext = choices.bytes(usize::MAX);
    assert_eq!(keys.open(plaintext), Err(SealError::NotOurs));
    let Ok(mut envelope) = keys.seal(iv, plaintext) else {
        return;
    };
    assert_eq!(envelope.len(), plaintext.len() + SEAL_OVERHEAD);
    assert_eq!(keys.open(&envelope).as_deref(), Ok(plaintext));
    assert_eq!(
        keys.fulfillment(&envelope).condition(),
        keys.condition(&envelope)
    );
    let _ = StreamPacket::decode(keys.open(&envelope).unwrap_or_default().into());
    let at = usize::try_from(at).unwrap_or(usize::MAX) % envelope.len();
    if change == 0 {
        envelope.truncate(at);
    } else {
        envelope[at] ^= change;
    }
    assert_eq!(keys.open(&envelope), Err(SealError::NotOurs));
}

fn tokens(choices: &mut Choices<'_>) {
    let server = ServerSecret::new(&[choices.byte(); 32]);
    let (at, change) = (choices.below(64), choices.byte());
    let input = choices.bytes(usize::MAX);
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    assert_eq!(server.open(text), None);
    let tag = &input[..input.len().min(MAX_TAG)];
    let credentials = server.generate(tag).expect("the tag is short enough");
    let opened = server.open(&credentials.token).expect("our own token");
    assert_eq!(opened.tag, tag);
    assert_eq!(opened.shared_secret, credentials.shared_secret);
    let mut changed = credentials.token.into_bytes();
    let at = at % changed.len();
    if change.is_ascii() && changed[at] != change {
        changed[at] = change;
        let changed = std::str::from_utf8(&changed).expect("the token is ASCII");
        assert_eq!(server.open(changed), None);
    }
}

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices::new(input);
    if choices.coin() {
        envelopes(&mut choices);
    } else {
        tokens(&mut choices);
    }
});
