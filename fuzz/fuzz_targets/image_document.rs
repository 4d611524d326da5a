//! Image manifests, indexes and configs: what is taken keeps to the limits.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| codius_image::fuzzing::documents(input));
