//! URLs of peers: what is taken is an origin in one form, and is taken again as the same; a name that
//! strangers may give is no private address.
#![no_main]

use codius_peers::{MAX_PEER_URL_BYTES, PeerUrl, Reach};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for reach in [Reach::Public, Reach::Any] {
        let Ok(peer) = PeerUrl::parse(text, reach) else {
            continue;
        };
        assert_eq!(PeerUrl::parse(peer.as_str(), reach).as_ref(), Ok(&peer));
        assert!(peer.as_str().len() <= MAX_PEER_URL_BYTES);
        let (scheme, rest) = peer.as_str().split_once("://").expect("a URL");
        assert!(rest.starts_with(peer.name()) && !peer.name().is_empty());
        assert!(!rest.contains(['/', '?', '#', '@', '\\']));
        if reach == Reach::Public {
            assert_eq!(scheme, "https");
            // Whoever is public is known in private networks, too.
            assert_eq!(PeerUrl::parse(text, Reach::Any).as_ref(), Ok(&peer));
            if let Ok(address) = peer.name().trim_matches(['[', ']']).parse() {
                assert!(codius_address::is_public(address));
            }
        }
    }
});
