//! The manifest of a set of shards. What must hold is in `crates/data/tests/common/hostile.rs`.
#![no_main]

#[path = "../../crates/data/tests/common/hostile.rs"]
mod hostile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostile::manifest(bytes));
