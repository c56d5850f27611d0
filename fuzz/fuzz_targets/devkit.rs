//! The classes in ImageNet's development kit. What must hold is in `crates/data/tests/common/hostile.rs`.
#![no_main]

#[path = "../../crates/data/tests/common/hostile.rs"]
mod hostile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostile::devkit(bytes));
