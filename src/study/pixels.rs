//! Between pixels of the file, of the network's crop, and pictures: what a unit sees, and what it shows.

use crate::backend::luma;
use crate::data::decode::source_box;
use crate::model::{Canvas, Layer, Preprocess};
use crate::picture::Image;

/// The receptive field of a unit as `[x0, y0, x1, y1]` in pixels of the network's input, as large for every
/// unit of a layer: it may reach beyond the input.
pub fn field_box(layer: &Layer, y: usize, x: usize) -> [i64; 4] {
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
    let [x0, y0, x1, y1] = clipped(preprocess.size, field).map(|v| v as f64);
    let [top, left] = preprocess.centre().map(f64::from);
    let on_canvas = [x0 + left, y0 + top, x1 + left, y1 + top];
    source_box(width, height, preprocess.resize, on_canvas)
}

/// A box clipped to a picture of so many rows and columns.
pub fn clipped([rows, columns]: [usize; 2], [x0, y0, x1, y1]: [i64; 4]) -> [usize; 4] {
    let within = |v: i64, size: usize| v.clamp(0, size as i64) as usize;
    [within(x0, columns), within(y0, rows), within(x1, columns), within(y1, rows)]
}

/// All of a picture of so many rows and columns, as a box.
pub(crate) fn whole([rows, columns]: [usize; 2]) -> [i64; 4] {
    [0, 0, columns as i64, rows as i64]
}

/// The centre crop that the network sees of a preprocessed image: of one channel, in grey.
pub(crate) fn centre_crop(preprocess: &Preprocess, square: &[u8]) -> Image {
    let [top, left] = preprocess.centre().map(i64::from);
    let ([rows, columns], Canvas { rows: height, columns: width, .. }) =
        (preprocess.size.map(|size| size as i64), preprocess.resize);
    let whole = Image::new(width, height, square.to_vec());
    let mut crop = whole.crop([left, top, left + columns, top + rows]);
    if preprocess.channels() == 1 {
        crop.pixels.as_chunks_mut().0.iter_mut().for_each(|pixel| *pixel = [luma(*pixel); 3]);
    }
    crop
}

/// Pixels as the network's channels have them, in RGB: one channel is grey.
pub(crate) fn to_rgb(preprocess: &Preprocess, mut pixels: Vec<f32>) -> Vec<f32> {
    if preprocess.channels() == 1 {
        return pixels.into_iter().flat_map(|value| [value; 3]).collect();
    }
    if preprocess.order == [2, 1, 0] {
        pixels.chunks_exact_mut(3).for_each(|pixel| pixel.swap(0, 2));
    }
    pixels
}

/// A projection, as large as the network's input, as a picture.
pub fn projection_image(preprocess: &Preprocess, projection: &[f32]) -> Image {
    let [rows, columns] = preprocess.size;
    Image::projection(columns, rows, &to_rgb(preprocess, projection.to_vec()))
}

/// The mean that is taken off each value of the centre crop, `[rows, columns, channels]`.
pub(crate) fn centre_mean(preprocess: &Preprocess) -> Vec<f32> {
    let Preprocess { size: [rows, columns], mean, .. } = preprocess;
    let channels = preprocess.channels();
    if !preprocess.mean_is_image() {
        return mean.repeat(rows * columns);
    }
    let [top, left] = preprocess.centre().map(|place| place as usize);
    let row = |y: usize| {
        let first = ((top + y) * preprocess.resize.columns + left) * channels;
        &mean[first..first + columns * channels]
    };
    (0..*rows).flat_map(row).copied().collect()
}

/// The picture whose centre crop the network sees as `input`, to the nearest bytes; of one channel, in grey.
pub(crate) fn input_image(preprocess: &Preprocess, input: &[f32]) -> Image {
    let Preprocess { size: [rows, columns], scale, std, .. } = preprocess;
    let mean = centre_mean(preprocess);
    let pixels = input.iter().zip(&mean).enumerate();
    let pixels = pixels.map(|(i, (value, mean))| (value * std[i % std.len()] + mean) / scale);
    let rgb = to_rgb(preprocess, pixels.collect());
    Image::new(*columns, *rows, rgb.into_iter().map(|value| value.round() as u8).collect())
}
