//! A file of PyTorch. What must hold is in `crates/formats/tests/common/torch.rs`.
#![no_main]

#[path = "../../crates/formats/tests/common/torch.rs"]
mod torch;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| torch::pytorch(bytes));
