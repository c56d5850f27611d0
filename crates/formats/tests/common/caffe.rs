//! What must hold for any bytes at all that pose as a file of Caffe's: an error or a sound answer, never a panic.
//! Shared by `tests/caffe_hostile.rs` and the targets in `fuzz/`.
#![allow(dead_code)] // a fuzz target uses one of these

use zfnet_formats::caffe::{parse_prototxt, read, read_mean};
use zfnet_formats::{Chain, Op};

/// A `.caffemodel`, and a mean image.
pub fn caffe(bytes: &[u8]) {
    if let Ok(chain) = read(bytes, None, None) {
        sound(&chain, bytes.len());
        // Each layer may be where it is cut.
        for layer in chain.layers.iter().take(4) {
            let Ok(cut) = read(bytes, None, Some(&layer.name)) else { continue };
            assert!(cut.layers.len() <= chain.layers.len());
            assert!(cut.layers.iter().zip(&chain.layers).all(|(a, b)| a.name == b.name));
        }
    }
    if let Ok(mean) = read_mean(bytes) {
        assert_eq!(mean.shape.iter().product::<usize>(), mean.values.len());
        assert!(mean.values.len() <= bytes.len());
    }
}

/// A prototxt, by itself and with the weights of a good file.
pub fn prototxt(bytes: &[u8], weights: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let parsed = parse_prototxt(text).is_ok();
    match read(weights, Some(text), None) {
        Ok(chain) => {
            assert!(parsed);
            sound(&chain, weights.len());
        }
        Err(error) => assert!(error.to_string().len() < 4 * bytes.len() + 10_000),
    }
}

/// What every chain promises.
fn sound(chain: &Chain, bytes: usize) {
    assert!(chain.input.channels > 0);
    assert!(chain.input.size.is_none_or(|size| size.iter().all(|&side| side > 0)));
    let mut values = 0;
    let mut channels = chain.input.channels;
    for layer in &chain.layers {
        match &layer.op {
            Op::Conv { weight, bias, stride, groups, .. } => {
                assert_eq!(weight.shape.len(), 4);
                assert_eq!(weight.shape.iter().product::<usize>(), weight.values.len());
                assert_eq!(weight.shape[0], bias.len());
                assert_eq!(weight.shape[1] * groups, channels);
                assert!(weight.shape[0] % groups == 0 && stride.iter().all(|&stride| stride > 0));
                (channels, values) = (bias.len(), values + weight.values.len());
            }
            Op::Fc { weight, bias } => {
                assert_eq!(weight.shape, [bias.len(), weight.values.len() / bias.len()]);
                assert_eq!(weight.shape[1] % channels, 0);
                (channels, values) = (bias.len(), values + weight.values.len());
            }
            Op::MaxPool { kernel, stride, pad, .. } => {
                assert!(stride.iter().all(|&stride| stride > 0));
                assert!(pad[0] < kernel[0] && pad[2] < kernel[1]);
            }
            Op::Lrn { size, .. } => assert!(size % 2 == 1),
            Op::Dropout { rate } => assert!(*rate > 0. && *rate < 1.),
            Op::Relu => {}
        }
    }
    assert!(values <= bytes, "more weights than the file can hold");
    if let Some(preprocessing) = &chain.preprocessing {
        assert_eq!(preprocessing.std.len(), chain.input.channels);
        assert!([0, chain.input.channels].contains(&preprocessing.mean.len()));
    }
}
