//! A prototxt, beside the weights of a good file. What must hold is in `crates/formats/tests/common/caffe.rs`.
#![no_main]

#[path = "../../crates/formats/tests/common/caffe.rs"]
mod caffe;

const WEIGHTS: &[u8] = include_bytes!("../corpus/caffe/seed-new");

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| caffe::prototxt(bytes, WEIGHTS));
