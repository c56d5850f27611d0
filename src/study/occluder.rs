//! Covering a part of an image, as an occluder does.

use serde::Serialize;

use super::pixels::clipped;
use crate::model::Preprocess;

/// What covers a part of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Fill {
    /// The mean that preprocessing takes off: zero for the network, what the paper calls grey.
    Mean,
    /// Mid-grey, 128 in each channel.
    Grey,
    /// The image, blurred.
    Blur,
}

/// What can be laid over one image.
pub struct Cover {
    /// `[rows, columns, 3]`, RGB: the whole canvas, filled.
    filled: Vec<u8>,
    /// Rows and columns of the canvas.
    size: [usize; 2],
    /// Row and column of the centre crop on the canvas.
    corner: [i64; 2],
}

impl Cover {
    /// For a preprocessed image (`[rows, columns, 3]`).
    pub fn new(preprocess: &Preprocess, square: &[u8], fill: Fill) -> Self {
        let size = preprocess.resize.size();
        let filled = match fill {
            Fill::Mean => mean_square(preprocess), // zero for the network, but for rounding to a byte
            Fill::Grey => vec![crate::picture::GREY; square.len()],
            // A tenth of the side blurs away what any unit below the top layers looks for.
            Fill::Blur => blurred(square, size, size[0].min(size[1]) as f64 / 10.0),
        };
        Cover { filled, size, corner: preprocess.centre().map(i64::from) }
    }

    /// Covers a box `[x0, y0, x1, y1]`, in pixels of the centre crop, on a canvas; what lies outside that is
    /// left alone.
    pub fn lay(&self, square: &mut [u8], [x0, y0, x1, y1]: [i64; 4]) {
        let [top, left] = self.corner;
        let area = [x0 + left, y0 + top, x1 + left, y1 + top];
        let ([x0, y0, x1, y1], columns) = (clipped(self.size, area), self.size[1]);
        for y in y0..y1 {
            let row = (y * columns + x0) * 3..(y * columns + x1.max(x0)) * 3;
            square[row.clone()].copy_from_slice(&self.filled[row]);
        }
    }
}

/// The mean of a preprocessing as pixels, RGB.
pub fn mean_square(preprocess: &Preprocess) -> Vec<u8> {
    let Preprocess { resize, scale, order, mean, .. } = preprocess;
    let (places, channels) = (resize.rows * resize.columns, preprocess.channels());
    let byte = |i: usize, rgb: u32| {
        let channel = match channels {
            1 => 0, // grey
            _ => order.iter().position(|c| *c == rgb).expect("an order of all three"),
        };
        let first = if preprocess.mean_is_image() { i * channels } else { 0 };
        (mean[first + channel] / scale).round() as u8 // saturates
    };
    (0..places).flat_map(|i| [0, 1, 2].map(|rgb| byte(i, rgb))).collect()
}

/// Three box filters one after another, nearly a Gaussian of about `deviation` pixels; at an edge the mean
/// is over what there is.
fn blurred(square: &[u8], [rows, columns]: [usize; 2], deviation: f64) -> Vec<u8> {
    // A box of 2 r + 1 has the variance r (r + 1) / 3; three of them have three times that.
    let radius = ((deviation * deviation + 0.25).sqrt() - 0.5).round().max(1.0) as usize;
    let mut values: Vec<f64> = square.iter().map(|v| f64::from(*v)).collect();
    for _ in 0..3 {
        let row = columns * 3;
        for (step, length, across, lines) in [(3, columns, row, rows), (row, rows, 3, columns)] {
            for line in 0..lines {
                for channel in 0..3 {
                    let at = |i: usize| line * across + channel + i * step;
                    let sums: Vec<f64> = std::iter::once(0.0)
                        .chain((0..length).scan(0.0, |sum, i| {
                            *sum += values[at(i)];
                            Some(*sum)
                        }))
                        .collect();
                    for i in 0..length {
                        let (from, to) = (i.saturating_sub(radius), (i + radius + 1).min(length));
                        values[at(i)] = (sums[to] - sums[from]) / (to - from) as f64;
                    }
                }
            }
        }
    }
    values.iter().map(|v| v.round() as u8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(side: usize) -> Vec<u8> {
        (0..side * side * 3).map(|i| (i / 3 % side * 7) as u8).collect()
    }

    #[test]
    fn a_box_is_covered_and_nothing_else() {
        let preprocess = Preprocess::paper([6; 2], 10, 1.0, vec![10.0, 20.4, 300.0]);
        let before = ramp(10);
        let mut square = before.clone();
        let cover = Cover::new(&preprocess, &before, Fill::Mean);
        cover.lay(&mut square, [1, 0, 3, 2]);
        for (i, (new, old)) in square.chunks(3).zip(before.chunks(3)).enumerate() {
            // The crop's corner is at (2, 2).
            let (y, x) = (i / 10, i % 10);
            let covered = (2..4).contains(&y) && (3..5).contains(&x);
            assert_eq!(new, if covered { &[10, 20, 255] } else { old }, "{y} {x}");
        }
        cover.lay(&mut square, [-50, -50, 50, 50]);
        assert!(square.chunks(3).all(|pixel| pixel == [10, 20, 255]));
        let mut untouched = before.clone();
        for nothing in [[3, 3, 3, 5], [4, 4, 2, 6], [90, 0, 99, 5], [-9, -9, -3, -3]] {
            cover.lay(&mut untouched, nothing);
        }
        assert_eq!(untouched, before);
    }

    #[test]
    fn the_mean_is_in_rgb_whatever_the_network_sees() {
        let caffe = Preprocess::named("caffe", [2; 2], 2).unwrap();
        assert_eq!(mean_square(&caffe)[..3], [123, 117, 104]);
        let torchvision = Preprocess::named("torchvision", [2; 2], 2).unwrap();
        assert_eq!(mean_square(&torchvision)[..3], [124, 116, 104]);
        let image: Vec<f32> = (0..12).map(|v| v as f32 * 10.0).collect();
        let own = Preprocess::paper([2; 2], 2, 1.0, image);
        assert_eq!(mean_square(&own), [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110]);
    }

    #[test]
    fn a_blur_keeps_what_is_flat_and_takes_away_stripes() {
        let flat = vec![77; 20 * 20 * 3];
        assert_eq!(blurred(&flat, [20; 2], 2.0), flat);
        let stripes: Vec<u8> = (0..20 * 20 * 3).map(|i| (i / 3 % 2 * 200) as u8).collect();
        for (i, v) in blurred(&stripes, [20; 2], 2.0).iter().enumerate() {
            // At an edge the mean is over fewer stripes.
            let inside = (6..14).contains(&(i / 3 % 20));
            assert!(v.abs_diff(100) <= if inside { 8 } else { 40 }, "{i}: {v}");
        }
        // An impulse becomes three boxes of five convolved, in each direction: 19/125 in the middle.
        let mut impulse = vec![0; 41 * 41 * 3];
        impulse[(20 * 41 + 20) * 3] = 255;
        let spread = blurred(&impulse, [41; 2], 6f64.sqrt());
        let middle = spread[(20 * 41 + 20) * 3];
        assert_eq!(f64::from(middle), (255.0 * (19.0 / 125.0f64).powi(2)).round());
        assert!(spread.chunks(3).all(|pixel| pixel[1] == 0 && pixel[2] == 0));
    }
}
