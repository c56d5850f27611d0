//! A network or a mean image of Caffe's. What must hold is in `crates/formats/tests/common/caffe.rs`.
#![no_main]

#[path = "../../crates/formats/tests/common/caffe.rs"]
mod caffe;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| caffe::caffe(bytes));
