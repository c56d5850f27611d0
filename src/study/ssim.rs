//! Structural similarity of two pictures (Wang, Bovik, Sheikh and Simoncelli 2004).
//!
//! Around each place, with means, variances and the covariance weighted by a Gaussian window,
//!
//! ```text
//! SSIM = (2 mean_a mean_b + C1) (2 cov + C2) / ((mean_a^2 + mean_b^2 + C1) (var_a + var_b + C2))
//! C1 = (0.01 L)^2, C2 = (0.03 L)^2
//! ```
//!
//! for values that range over L, and of two pictures the mean over all places where the window lies wholly
//! inside, and over channels. The window is 11 x 11 with a standard deviation of 1.5 pixels, its weights sum
//! to 1, as in the article. Along an axis with fewer than 11 pixels it is as long as the picture, so that there is
//! one place.

/// Length of the window along each axis, in pixels.
const WINDOW: usize = 11;
/// Standard deviation of its Gaussian, in pixels.
const SIGMA: f64 = 1.5;
/// The two constants, as shares of the values' range.
const K: [f64; 2] = [0.01, 0.03];

/// The structural similarity of two pictures `[rows, columns, channels]` whose values range over `range`: 1
/// for equal ones; 0 if they are empty or hold what is no number.
///
/// # Panics
/// If one of them is not of this size.
pub(crate) fn ssim(a: &[f32], b: &[f32], [rows, columns, channels]: [usize; 3], range: f64) -> f64 {
    assert_eq!([a.len(), b.len()], [rows * columns * channels; 2], "two pictures of this size");
    if rows * columns == 0 {
        return 0.0;
    }
    let [c1, c2] = K.map(|k| (k * range).powi(2));
    let windows = [rows, columns].map(window);
    let mut sum = 0.0;
    let mut places = 0;
    for channel in 0..channels {
        let plane = |values: &[f32]| -> Vec<f64> {
            values[channel..].iter().step_by(channels).map(|v| f64::from(*v)).collect()
        };
        let (a, b) = (plane(a), plane(b));
        let weighted = |a: &[f64], b: &[f64]| {
            let product: Vec<f64> = a.iter().zip(b).map(|(a, b)| a * b).collect();
            filtered(&product, columns, &windows)
        };
        let means = [&a, &b].map(|values| filtered(values, columns, &windows));
        let squares = [weighted(&a, &a), weighted(&b, &b), weighted(&a, &b)];
        places += means[0].len();
        for (place, (a, b)) in means[0].iter().zip(&means[1]).enumerate() {
            let [var_a, var_b, cov] =
                [(0, a * a), (1, b * b), (2, a * b)].map(|(i, mean)| squares[i][place] - mean);
            let luminance = (2.0 * (a * b) + c1) / (a * a + b * b + c1);
            sum += luminance * ((2.0 * cov + c2) / (var_a + var_b + c2));
        }
    }
    if sum.is_finite() { sum / places as f64 } else { 0.0 }
}

/// The weights of the window along an axis of so many pixels.
fn window(pixels: usize) -> Vec<f64> {
    let length = pixels.min(WINDOW);
    let from_centre = |i: usize| i as f64 - (length as f64 - 1.0) / 2.0;
    let weight = |i: usize| (-0.5 * (from_centre(i) / SIGMA).powi(2)).exp();
    let sum: f64 = (0..length).map(weight).sum();
    (0..length).map(|i| weight(i) / sum).collect()
}

/// Weighted means of a picture of one channel, wherever the windows (along rows' numbers, along columns')
/// lie inside.
fn filtered(values: &[f64], columns: usize, [down, across]: &[Vec<f64>; 2]) -> Vec<f64> {
    let dot = |weights: &[f64], values: &[f64]| -> f64 {
        weights.iter().zip(values).map(|(w, v)| w * v).sum()
    };
    let left = columns - across.len() + 1;
    let rows: Vec<Vec<f64>> = values
        .chunks_exact(columns)
        .map(|row| row.windows(across.len()).map(|part| dot(across, part)).collect())
        .collect();
    let mean = |part: &[Vec<f64>], x: usize| {
        down.iter().zip(part).map(|(weight, row)| weight * row[x]).sum::<f64>()
    };
    rows.windows(down.len()).flat_map(|part| (0..left).map(|x| mean(part, x))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values between 0 and 1.
    fn random(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            (state >> 8) as f32 / (1 << 24) as f32
        };
        (0..count).map(|_| next()).collect()
    }

    /// By the definition: at each place sums over a window of two dimensions, of deviations from the mean.
    fn naive(a: &[f32], b: &[f32], [rows, columns, channels]: [usize; 3], range: f64) -> f64 {
        let (height, width) = (rows.min(11), columns.min(11));
        let gauss = |i: usize, n: usize| {
            let x = i as f64 - 0.5 * (n - 1) as f64;
            (-x * x / (2.0 * 1.5 * 1.5)).exp()
        };
        let weight = |y: usize, x: usize| gauss(y, height) * gauss(x, width);
        let cells: Vec<(usize, usize)> =
            (0..height).flat_map(|y| (0..width).map(move |x| (y, x))).collect();
        let all: f64 = cells.iter().map(|&(y, x)| weight(y, x)).sum();
        let (c1, c2) = ((0.01 * range).powi(2), (0.03 * range).powi(2));
        let mut found = Vec::new();
        for channel in 0..channels {
            for top in 0..=rows - height {
                for left in 0..=columns - width {
                    let at = |values: &[f32], (y, x): (usize, usize)| {
                        f64::from(values[((top + y) * columns + left + x) * channels + channel])
                    };
                    let mean = |value: &dyn Fn((usize, usize)) -> f64| {
                        cells.iter().map(|&c| weight(c.0, c.1) * value(c)).sum::<f64>() / all
                    };
                    let (ma, mb) = (mean(&|c| at(a, c)), mean(&|c| at(b, c)));
                    let va = mean(&|c| (at(a, c) - ma).powi(2));
                    let vb = mean(&|c| (at(b, c) - mb).powi(2));
                    let cov = mean(&|c| (at(a, c) - ma) * (at(b, c) - mb));
                    found.push(
                        (2.0 * ma * mb + c1) * (2.0 * cov + c2)
                            / ((ma * ma + mb * mb + c1) * (va + vb + c2)),
                    );
                }
            }
        }
        found.iter().sum::<f64>() / found.len() as f64
    }

    #[test]
    fn pictures_of_known_similarity() {
        let a = random(20 * 17 * 3, 1);
        assert_eq!(ssim(&a, &a, [20, 17, 3], 1.0), 1.0);
        // Flat pictures have no contrast to differ in, only levels.
        let flat = |level: f32| vec![level; 15 * 15];
        let expected = (2.0 * 0.25 * 0.75 + 1e-4) / (0.0625 + 0.5625 + 1e-4);
        assert!((ssim(&flat(0.25), &flat(0.75), [15, 15, 1], 1.0) - expected).abs() < 1e-12);
        // Of two pixels, by hand: means 1/2, variances 1/4, covariance -1/4.
        let expected = (-0.5 + 9e-4) / (0.5 + 9e-4);
        assert!((ssim(&[0.0, 1.0], &[1.0, 0.0], [1, 2, 1], 1.0) - expected).abs() < 1e-12);
        // The same in bytes.
        assert!((ssim(&[0.0, 255.0], &[255.0, 0.0], [2, 1, 1], 255.0) - expected).abs() < 1e-12);
        // A single pixel has a level alone.
        assert!((ssim(&[0.0], &[1.0], [1, 1, 1], 1.0) - 1e-4 / (1.0 + 1e-4)).abs() < 1e-12);
        // Two channels, one equal and one exchanged: the mean of both.
        let two = ssim(&[0.0, 0.0, 1.0, 1.0], &[0.0, 1.0, 1.0, 0.0], [1, 2, 2], 1.0);
        assert!((two - (1.0 + expected) / 2.0).abs() < 1e-12);
        assert_eq!(ssim(&[], &[], [0, 5, 3], 1.0), 0.0);
        assert_eq!(ssim(&[f32::NAN; 4], &[1.0; 4], [2, 2, 1], 1.0), 0.0);
    }

    #[test]
    fn a_constant_shift_changes_levels_alone() {
        let a = random(13 * 14, 3);
        let shifted: Vec<f32> = a.iter().map(|v| v + 0.5).collect();
        let found = ssim(&a, &shifted, [13, 14, 1], 1.0);
        // Levels about 1/2 and 1: (2 * 0.5 + C1) / (1.25 + C1); contrast and structure count 1.
        assert!((found - 0.8).abs() < 0.03, "{found}");
        assert!((found - naive(&a, &shifted, [13, 14, 1], 1.0)).abs() < 1e-12);
    }

    #[test]
    fn as_the_definition_says_for_any_size() {
        for size in [[11, 11, 1], [24, 30, 3], [12, 11, 2], [7, 30, 1], [30, 4, 3], [5, 5, 1]] {
            let count = size.iter().product();
            let a = random(count, 7);
            let noise = random(count, 8);
            let b: Vec<f32> = a.iter().zip(&noise).map(|(a, n)| 0.6 * a + 0.4 * n).collect();
            let (found, expected) = (ssim(&a, &b, size, 1.0), naive(&a, &b, size, 1.0));
            assert!((found - expected).abs() < 1e-12, "{size:?}: {found} {expected}");
            assert!(found > 0.2 && found < 0.95, "{size:?}: {found}");
            assert_eq!(found, ssim(&b, &a, size, 1.0), "symmetric");
            // By scikit-image 0.26: structural_similarity(a, b, channel_axis=2, gaussian_weights=True, sigma=1.5,
            // use_sample_covariance=False, data_range=1.0).
            if size == [24, 30, 3] {
                assert!((found - 0.7854513629985448).abs() < 1e-12, "{found}");
            }
        }
    }
}
