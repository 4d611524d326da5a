//! `WWW-Authenticate` of a registry: what is read stands in it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| codius_image::fuzzing::challenge(text));
