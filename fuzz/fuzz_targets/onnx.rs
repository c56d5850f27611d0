//! A network in an ONNX file. What must hold is in `crates/formats/tests/common/onnx.rs`.
#![no_main]

#[path = "../../crates/formats/tests/common/onnx.rs"]
mod onnx;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| onnx::onnx(bytes));
