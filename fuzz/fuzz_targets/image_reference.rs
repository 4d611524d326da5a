//! Image references and the operator's patterns: the complete form means the same again, and patterns
//! made of a reference cover it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| codius_image::fuzzing::reference(text));
