//! What must hold for any bytes at all that pose as an ONNX file: an error or a sound answer, never a panic. Shared by
//! `tests/onnx_hostile.rs` and the target in `fuzz/`.

use zfnet_formats::onnx::{Options, Pixels, metadata, read_within, write};
use zfnet_formats::{Chain, Op};

/// Bytes that nodes may make beside those in the file.
pub const MADE: usize = 1 << 20;

/// A network, also cut at some of its layers, and what is said beside it.
pub fn onnx(bytes: &[u8]) {
    let _ = metadata(bytes);
    let chain = match read_within(bytes, None, None, MADE) {
        Ok(chain) => chain,
        Err(error) => {
            let text = error.to_string();
            assert!(text.len() < 10_000, "{} bytes of message", text.len());
            return;
        }
    };
    sound(&chain);
    for layer in chain.layers.iter().take(4) {
        // Another node may have the name of this one's output, or the other way round.
        let Ok(cut) = read_within(bytes, None, Some(&layer.name), MADE) else { continue };
        sound(&cut);
    }
    written(&chain, Pixels::Prepared);
    if chain.preprocessing.is_some() {
        written(&chain, Pixels::Bytes);
    }
}

/// What every chain promises.
fn sound(chain: &Chain) {
    assert!(chain.input.channels > 0);
    assert!(chain.input.size.is_none_or(|size| size.iter().all(|&side| side > 0)));
    let mut channels = chain.input.channels;
    // Behind a fully connected layer images are of one place.
    let mut connected = false;
    for layer in &chain.layers {
        match &layer.op {
            Op::Conv { weight, bias, stride, groups, .. } => {
                assert_eq!(weight.shape.len(), 4);
                assert_eq!(weight.shape.iter().product::<usize>(), weight.values.len());
                assert_eq!((weight.shape[0], weight.shape[1] * groups), (bias.len(), channels));
                assert!(!bias.is_empty() && weight.shape[0] % groups == 0);
                assert!(stride.iter().all(|&stride| stride > 0));
                (channels, connected) = (bias.len(), false);
            }
            Op::Fc { weight, bias } => {
                assert_eq!(weight.shape.iter().product::<usize>(), weight.values.len());
                assert_eq!((weight.shape.len(), weight.shape[0]), (2, bias.len()));
                assert!(!bias.is_empty() && weight.shape[1] > 0);
                assert!(!connected || weight.shape[1] == channels);
                (channels, connected) = (bias.len(), true);
            }
            Op::MaxPool { kernel, stride, pad, .. } => {
                assert!(stride.iter().all(|&stride| stride > 0));
                assert!((0..4).all(|side| pad[side] < kernel[side / 2]));
                connected = false;
            }
            Op::Lrn { size, .. } => assert_eq!(size % 2, 1),
            Op::Dropout { rate } => assert!(*rate > 0. && *rate < 1.),
            Op::Relu => {}
        }
    }
    if let Some(pixels) = &chain.preprocessing {
        let places = pixels.mean_size.map_or(1, |[rows, columns]| rows * columns);
        assert_eq!(pixels.mean.len(), chain.input.channels * places);
        assert_eq!(pixels.std.len(), chain.input.channels);
    }
}

/// What is written of it is read back. A last window beyond the input cannot be written if its size is open, nor can
/// a mean image.
fn written(chain: &Chain, pixels: Pixels) {
    let mut bytes = Vec::new();
    if let Err(error) = write(chain, &Options { pixels, ..Options::default() }, &mut bytes) {
        assert!(chain.input.size.is_none(), "{error}");
        return;
    }
    let again = read_within(&bytes, None, None, MADE);
    if chain.layers.is_empty() {
        return;
    }
    let again = again.unwrap_or_else(|error| panic!("written, and refused: {error}"));
    assert_eq!(again.layers.len(), chain.layers.len());
    assert_eq!(again.input, chain.input);
}
