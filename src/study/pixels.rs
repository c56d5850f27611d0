//! Between pixels of the file, of the network's crop, and pictures: what a unit sees, and what it shows.

use crate::model::{Layer, Preprocess};
use crate::picture::Image;

/// The receptive field of a unit as `[x0, y0, x1, y1]` in pixels of the network's input, as large for every
/// unit of a layer: it may reach beyond the input.
pub(crate) fn field_box(layer: &Layer, y: usize, x: usize) -> [i64; 4] {
    let [(y0, y1), (x0, x1)] = [layer.field[0].of(y), layer.field[1].of(x)];
    [x0, y0, x1, y1]
}

/// What of its receptive field a unit sees, as `[x0, y0, x1, y1]` in pixels of the network's input.
pub(crate) fn seen_box(layer: &Layer, y: usize, x: usize) -> [i64; 4] {
    let [(y0, y1), (x0, x1)] = [layer.field[0].seen(y), layer.field[1].seen(x)];
    [x0, y0, x1, y1]
}

/// A box in pixels of the network's centre crop, clipped to it, in pixels of the file of
/// `width x height` that the crop was taken from.
pub(crate) fn original_box(
    preprocess: &Preprocess,
    width: usize,
    height: usize,
    field: [i64; 4],
) -> [f64; 4] {
    let inside = field.map(|v| v.clamp(0, preprocess.size as i64) as f64);
    let [top, left] = preprocess.centre().map(f64::from);
    let [x0, y0, x1, y1] = inside;
    let square = [x0 + left, y0 + top, x1 + left, y1 + top];
    crate::data::decode::source_box(width, height, preprocess.resize, square)
}

/// The centre crop that the network sees of a preprocessed image.
pub(crate) fn centre_crop(preprocess: &Preprocess, square: &[u8]) -> Image {
    let [top, left] = preprocess.centre().map(i64::from);
    let (side, size) = (preprocess.resize, preprocess.size as i64);
    Image::new(side, side, square.to_vec()).crop([left, top, left + size, top + size])
}

/// Turns pixels in the network's order of channels into RGB.
pub(crate) fn to_rgb(preprocess: &Preprocess, pixels: &mut [f32]) {
    if preprocess.order == [2, 1, 0] {
        pixels.chunks_exact_mut(3).for_each(|pixel| pixel.swap(0, 2));
    }
}

/// A projection, as large as the network's input, as a picture.
pub(crate) fn projection_image(preprocess: &Preprocess, projection: &[f32]) -> Image {
    let mut rgb = projection.to_vec();
    to_rgb(preprocess, &mut rgb);
    Image::projection(preprocess.size, preprocess.size, &rgb)
}
