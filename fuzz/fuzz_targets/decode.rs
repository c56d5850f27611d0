//! An image file, to its prepared square. What must hold is in `crates/data/tests/common/hostile.rs`.
#![no_main]

#[path = "../../crates/data/tests/common/hostile.rs"]
mod hostile;

libfuzzer_sys::fuzz_target!(
    // Instead of the hook that aborts: a decoder's panic that `decode` catches is no finding. One
    // that nobody catches still ends the run.
    init: std::panic::set_hook(Box::new(|panic| eprintln!("{panic}"))),
    |bytes: &[u8]| hostile::decode(bytes)
);
