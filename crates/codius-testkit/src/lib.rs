//! What the tests share: images, registries, temporary hosts.
