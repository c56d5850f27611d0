//! The paper's Figure 6: the first layer's filters of one network or of several side by side, and what
//! is wrong with them: a filter that dominates, dead features, missing middle frequencies, aliasing.
//!
//! The spectrum of a filter w (rows r, columns s, channels c), at frequencies in cycles a pixel:
//!
//! ```text
//! P(fy, fx) = sum over c of | sum over r, s of w(r, s, c) exp(-2 pi i (fy r + fx s)) |^2
//! ```
//!
//! on a grid of 32 x 32 frequencies from -1/2 on; its mean over the grid is the sum of w^2. Shares are of
//! that energy: *low* below 0.1 cycles a pixel (distance from zero in both directions), *middle* from there
//! to 0.25, *high* above; *folded* is what lies beyond the layer's own Nyquist frequency, 1/(2 stride), in
//! either direction, and so comes out of the layer at a frequency that it does not have.
//!
//! The grid measure looks for what the paper saw in layer 2: patterns with the period of layer 1's stride
//! t. Over projections of layer 2's strongest units, each with its mean taken off, it is the mean energy of
//! a frequency within 1/side of a multiple of 1/t, in either direction, over that of one within 3/side but
//! not within 1/side: 1 where nothing stands out, whatever the spectrum's slope.

use std::f64::consts::TAU;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use serde::Serialize;

use super::learnt::{LayerChange, changes};
use super::peaks::{
    BATCH, Chosen, Maps, Projected, Searched, must_be_images, project, search, spatial_layers,
};
use super::pixels::{field_box, to_rgb};
use super::{Facts, Session, Study};
use crate::backend::Backend;
use crate::data::images::Images;
use crate::model::{Conv, Kind, Model, Projector, Rule};
use crate::{Error, Result};

/// See [`super::STUDIES`].
pub const STUDY: Study = Study {
    name: "filters",
    shows: "first-layer filters, dead features, aliasing",
    paper: "Figure 6",
    of_one_run: true,
};

/// Frequencies in each direction.
pub(crate) const GRID: usize = 32;
/// Where the bands end, in cycles a pixel.
pub(crate) const BANDS: [f64; 2] = [0.1, 0.25];
/// A filter with a norm below this share of the median is dead: the second of two definitions.
const DEAD: f64 = 0.01;

/// A network whose filters are looked at.
pub struct Trained<'a, B: Backend> {
    /// The network.
    pub model: &'a Model<B>,
    /// Where its weights come from, for the page.
    pub checkpoint: String,
    /// Images for it, and their folder; without any nothing is known of dead maps and of a grid in layer 2.
    pub images: Option<(Arc<Images>, &'a Path)>,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Filters {
    /// What it was made with.
    pub facts: Facts,
    /// In the order that they were given in.
    pub networks: Vec<FirstLayer>,
}

/// What is known of the filters of a network's first layer, and of what they do to others.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FirstLayer {
    /// The network's name.
    pub network: String,
    /// Where its weights come from.
    pub checkpoint: String,
    /// The first layer's name.
    pub layer: String,
    /// Rows and columns of its filters.
    pub kernel: [usize; 2],
    /// Its stride.
    pub stride: usize,
    /// The limit of the filters' RMS in training; 0 for none.
    pub rms_limit: f32,
    /// RMS of each filter.
    pub rms: Vec<f64>,
    /// Filters with a norm below 1 % of the median.
    pub dead_by_norm: Vec<usize>,
    /// Shares of low, middle, high frequencies, and of what is folded, of each filter.
    pub shares: Vec<[f64; 4]>,
    /// What a pass over images has shown.
    pub seen: Option<Seen>,
    /// What became of the initial weights of this layer and of all others.
    pub layers: Vec<LayerChange>,
    /// `[filters, rows, columns, 3]`, RGB; of one channel all three alike.
    #[serde(skip)]
    pub values: Vec<f32>,
}

/// What a pass over images shows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Seen {
    /// How many images.
    pub images: usize,
    /// For each spatial convolution its name, the number of its maps, and those that were never above
    /// zero.
    pub dead: Vec<(String, usize, Vec<usize>)>,
    /// The grid measure of the second convolution's projections, and of how many; none if there is no
    /// second one, or nothing fired.
    pub grid: Option<(f64, usize)>,
}

/// Looks at the filters of some networks, one by one.
///
/// # Errors
/// If a first layer is no convolution of an image, there are no images where some were given, they cannot be
/// read, or a backend operation fails.
pub fn run<B: Backend>(
    session: &mut Session<'_, B>,
    networks: Vec<Trained<'_, B>>,
) -> Result<Filters> {
    let mut found = Vec::new();
    for Trained { model, checkpoint, images } in networks {
        let mut first = FirstLayer::of(session.backend, model, &checkpoint)?;
        if let Some((images, root)) = images {
            first.seen = Some(first.look(session, model, &images, root)?);
        }
        found.push(first);
    }
    Ok(Filters { facts: session.facts.clone(), networks: found })
}

impl FirstLayer {
    /// Reads the first layer of a model.
    fn of<B: Backend>(backend: &B, model: &Model<B>, checkpoint: &str) -> Result<Self> {
        let Model { network, params, preprocess, .. } = model;
        let first = &network.layers[0];
        let (Kind::Conv(Conv { dims, rms_limit }), Some(param)) = (&first.kind, &params.layers[0])
        else {
            return Err(Error::Network(format!(
                "{}: the first layer, {}, is no spatial convolution",
                network.architecture.name, first.name
            )));
        };
        if dims.groups != 1 {
            return Err(Error::Network(format!(
                "{}: its first layer, {}, has {} groups: its filters do not see all colours",
                network.architecture.name, first.name, dims.groups
            )));
        }
        let mut values = vec![0.0; param.weight.shape().len()];
        backend.download(&mut values, &param.weight)?;
        let values = to_rgb(preprocess, values);
        let kernel = [dims.r as usize, dims.s as usize];
        let stride = dims.stride[0].max(dims.stride[1]) as usize;
        let filters = || values.par_chunks_exact(kernel[0] * kernel[1] * 3);
        let rms: Vec<f64> = filters().map(rms).collect();
        let shares = filters().map(|filter| shares(filter, kernel, stride)).collect();
        Ok(FirstLayer {
            network: network.architecture.name.clone(),
            checkpoint: checkpoint.into(),
            layer: first.name.clone(),
            kernel,
            stride,
            rms_limit: *rms_limit,
            dead_by_norm: dead_by_norm(&rms),
            rms,
            shares,
            seen: None,
            layers: changes(backend, network, params)?,
            values,
        })
    }

    /// Passes over images of the folder `root`: which maps never fire, and whether layer 2's projections have
    /// a grid in them.
    fn look<B: Backend>(
        &self,
        session: &mut Session<'_, B>,
        model: &Model<B>,
        images: &Arc<Images>,
        root: &Path,
    ) -> Result<Seen> {
        let Model { network, params, preprocess, .. } = model;
        let (backend, workers) = (session.backend, session.workers);
        let mut progress = |what: &str, done, total| {
            let what = format!("filters of {}: {what}", self.checkpoint);
            session.progress(&what, done, total, "");
        };
        let chosen: Vec<Chosen> = spatial_layers(network, false)?
            .into_iter()
            .map(|layer| Maps::First(usize::MAX).of(network, layer))
            .collect();
        let mut projector = Projector::new(backend, network, params, preprocess, BATCH, BATCH)?;
        let mut searched = Searched::nothing(&chosen);
        search(&mut projector, model, images, &chosen, 1, workers, &mut searched, |searched| {
            progress("search", searched.done, images.len());
            Ok(())
        })?;
        must_be_images(images, root)?;
        let dead = chosen.iter().zip(&searched.best).map(|(chosen, best)| {
            let dead = (0..best.len()).filter(|map| best[*map].is_empty()).collect();
            (network.layers[chosen.layer].name.clone(), best.len(), dead)
        });
        let good = images.len() - images.bad().len();
        let mut seen = Seen { images: good, dead: dead.collect(), grid: None };
        if let (Some(second), Some(best)) = (chosen.get(1), searched.best.get(1)) {
            let layer = &network.layers[second.layer];
            let total: usize = best.iter().map(Vec::len).sum();
            let mut sums = [0.0; 2];
            let (mut pictures, mut done) = (0, 0);
            let rule = Rule::DECONVNET;
            project(model, &mut projector, images, rule, second.layer, best, |projected| {
                let Projected { found, projection, .. } = projected;
                let field = field_box(layer, found.unit.y as usize, found.unit.x as usize);
                let side = layer.field[0].size.max(layer.field[1].size);
                let [x0, y0, ..] = field;
                let area = [x0, y0, x0 + side as i64, y0 + side as i64];
                let cut = cut(&to_rgb(preprocess, projection.to_vec()), preprocess.size, area);
                // Each picture counts alike, however strong it is.
                let [near, beside] = grid(&cut, side, self.stride);
                sums = [sums[0] + near, sums[1] + beside];
                pictures += usize::from(near > 0.0);
                done += 1;
                progress("layer 2", done, total);
                Ok(())
            })?;
            if sums[1] > 0.0 {
                seen.grid = Some((sums[0] / sums[1], pictures));
            }
        }
        Ok(seen)
    }

    /// Mean of a share over the filters that are not dead.
    pub fn mean(&self, share: usize) -> f64 {
        mean_of_living(&self.shares, &self.dead_by_norm, share)
    }

    /// How many filters have more of their energy in a band than in either of the others.
    pub fn mostly(&self, band: usize) -> usize {
        let most =
            |shares: &&[f64; 4]| (0..3).all(|other| other == band || shares[band] > shares[other]);
        self.shares.iter().filter(most).count()
    }
}

/// sqrt(mean of w^2).
fn rms(filter: &[f32]) -> f64 {
    let sum: f64 = filter.iter().map(|w| f64::from(*w).powi(2)).sum();
    (sum / filter.len() as f64).sqrt()
}

/// The middle value; the mean of the two in the middle of an even number.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n => (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0,
    }
}

/// The first of the largest values, and it.
pub fn largest(values: &[f64]) -> (usize, f64) {
    let larger =
        |best: (usize, f64), (i, v): (usize, &f64)| if *v > best.1 { (i, *v) } else { best };
    values.iter().enumerate().fold((0, f64::NEG_INFINITY), larger)
}

/// Filters with an RMS below 1 % of the median.
fn dead_by_norm(rms: &[f64]) -> Vec<usize> {
    let limit = DEAD * median(rms);
    (0..rms.len()).filter(|filter| rms[*filter] < limit || rms[*filter] == 0.0).collect()
}

/// The frequencies of a grid of `n`, in cycles a pixel, from -1/2 on.
fn frequencies(n: usize) -> impl Iterator<Item = f64> + Clone {
    (0..n).map(move |k| k as f64 / n as f64 - 0.5)
}

/// P of a picture `[rows, columns, 3]` on a grid of n x n, `[fy, fx]`.
pub(crate) fn spectrum(picture: &[f32], [rows, columns]: [usize; 2], n: usize) -> Vec<f64> {
    let waves = |length: usize| -> Vec<[f64; 2]> {
        let angles = frequencies(n).flat_map(|f| (0..length).map(move |i| -TAU * f * i as f64));
        angles.map(|angle| [angle.cos(), angle.sin()]).collect()
    };
    let (down, across) = (waves(rows), waves(columns));
    let mut power = vec![0.0; n * n];
    for channel in 0..3 {
        // Along the rows first: [row, fx], then down the columns.
        let mut half = vec![[0.0; 2]; rows * n];
        for row in 0..rows {
            for fx in 0..n {
                let mut sum = [0.0; 2];
                for (s, [re, im]) in across[fx * columns..(fx + 1) * columns].iter().enumerate() {
                    let value = f64::from(picture[(row * columns + s) * 3 + channel]);
                    sum[0] += value * re;
                    sum[1] += value * im;
                }
                half[row * n + fx] = sum;
            }
        }
        for fy in 0..n {
            for fx in 0..n {
                let mut sum = [0.0; 2];
                for (row, [re, im]) in down[fy * rows..(fy + 1) * rows].iter().enumerate() {
                    let [a, b] = half[row * n + fx];
                    sum[0] += a * re - b * im;
                    sum[1] += a * im + b * re;
                }
                power[fy * n + fx] += sum[0] * sum[0] + sum[1] * sum[1];
            }
        }
    }
    power
}

/// The share of a filter's energy above the middle frequencies, mean over those that are not dead by their norm.
pub(super) fn roughness(filters: &[f32], [rows, columns]: [usize; 2]) -> f64 {
    let filters = || filters.par_chunks_exact(rows * columns * 3);
    let shares: Vec<[f64; 4]> =
        filters().map(|filter| shares(filter, [rows, columns], 1)).collect();
    mean_of_living(&shares, &dead_by_norm(&filters().map(rms).collect::<Vec<_>>()), 2)
}

/// Mean of a share over the filters that are not dead.
fn mean_of_living(shares: &[[f64; 4]], dead: &[usize], share: usize) -> f64 {
    let living = (0..shares.len()).filter(|filter| !dead.contains(filter));
    let (sum, count) =
        living.fold((0.0, 0), |(sum, n), filter| (sum + shares[filter][share], n + 1));
    sum / f64::from(count.max(1))
}

/// The share of white noise's energy above the middle frequencies: that of a filter that has learnt nothing.
pub fn white_noise_high() -> f64 {
    shares(&[1.0, 0.0, 0.0], [1, 1], 1)[2] // a pulse has all frequencies alike
}

/// Shares of low, middle and high frequencies, and of what a stride folds; all 0 for nothing.
fn shares(filter: &[f32], kernel: [usize; 2], stride: usize) -> [f64; 4] {
    let power = spectrum(filter, kernel, GRID);
    let nyquist = 0.5 / stride as f64;
    let (mut sums, mut total) = ([0.0; 4], 0.0);
    let places = frequencies(GRID).flat_map(|fy| frequencies(GRID).map(move |fx| [fy, fx]));
    for (power, [fy, fx]) in power.iter().zip(places) {
        let distance = fy.hypot(fx);
        sums[BANDS.iter().filter(|edge| distance >= **edge).count()] += power;
        if fy.abs() > nyquist || fx.abs() > nyquist {
            sums[3] += power;
        }
        total += power;
    }
    if total > 0.0 { sums.map(|sum| sum / total) } else { [0.0; 4] }
}

/// Where a frequency lies, seen from the multiples of 1/stride.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// Within 1/side of one.
    Near,
    /// Within 3/side of one.
    Beside,
    /// Elsewhere, or within 1/side of zero in both directions.
    Away,
}

/// The places of a grid of n x n frequencies, `[fy, fx]`.
fn places(n: usize, side: usize, stride: usize) -> Vec<Place> {
    let reach = 1.0 / side as f64;
    let within = |f: f64, reach: f64| {
        (1..stride).any(|m| (f.abs() - m as f64 / stride as f64).abs() <= reach)
    };
    let pairs = frequencies(n).flat_map(|fy| frequencies(n).map(move |fx| (fy, fx)));
    let place = |(fy, fx): (f64, f64)| match () {
        () if fy.abs() <= reach && fx.abs() <= reach => Place::Away,
        () if within(fy, reach) || within(fx, reach) => Place::Near,
        () if within(fy, 3.0 * reach) || within(fx, 3.0 * reach) => Place::Beside,
        () => Place::Away,
    };
    pairs.map(place).collect()
}

/// Mean energy of a frequency near a multiple of 1/stride and of one beside it, of a picture of `side` x
/// `side`, as shares of all its energy; 0 and 0 for a flat one.
fn grid(picture: &[f32], side: usize, stride: usize) -> [f64; 2] {
    let n = 2 * GRID;
    // A picture's mean would leak from zero into all frequencies.
    let pixels = (picture.len() / 3).max(1) as f64;
    let mean =
        |c: usize| picture.iter().skip(c).step_by(3).map(|v| f64::from(*v)).sum::<f64>() / pixels;
    let means = [0, 1, 2].map(mean);
    let centred = |(i, v): (usize, &f32)| (f64::from(*v) - means[i % 3]) as f32;
    let centred: Vec<f32> = picture.iter().enumerate().map(centred).collect();
    let power = spectrum(&centred, [side, side], n);
    let all: f64 = power.iter().sum();
    if all == 0.0 {
        return [0.0; 2];
    }
    let places = places(n, side, stride);
    [Place::Near, Place::Beside].map(|wanted| {
        let here = power.iter().zip(&places).filter(|(_, place)| **place == wanted);
        let (sum, count) = here.fold((0.0, 0), |(sum, count), (power, _)| (sum + power, count + 1));
        sum / all / f64::from(count.max(1))
    })
}

/// A box of a picture `[rows, columns, 3]`, zero where it reaches beyond.
fn cut(pixels: &[f32], [rows, columns]: [usize; 2], [x0, y0, x1, y1]: [i64; 4]) -> Vec<f32> {
    let inside = |v: i64, size: usize| (0..size as i64).contains(&v);
    let pixel = |y: i64, x: i64| match inside(y, rows) && inside(x, columns) {
        true => {
            let place = (y as usize * columns + x as usize) * 3;
            [pixels[place], pixels[place + 1], pixels[place + 2]]
        }
        false => [0.0; 3],
    };
    (y0..y1).flat_map(|y| (x0..x1).flat_map(move |x| pixel(y, x))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A picture whose three channels are the same.
    fn picture(side: usize, value: impl Fn(usize, usize) -> f64) -> Vec<f32> {
        (0..side * side).flat_map(|i| [value(i / side, i % side) as f32; 3]).collect()
    }

    #[test]
    fn the_spectrum_is_that_of_known_pictures() {
        // One pixel: flat, its square in each channel.
        let one = picture(5, |y, x| if (y, x) == (2, 3) { 2.0 } else { 0.0 });
        for power in spectrum(&one, [5, 5], 8) {
            assert!((power - 12.0).abs() < 1e-9);
        }
        // A constant on the grid's own length: all at zero, (8 * 8)^2 in each channel.
        let flat = spectrum(&picture(8, |_, _| 1.0), [8, 8], 8);
        for (i, power) in flat.iter().enumerate() {
            let expected = if i == 4 * 8 + 4 { 3.0 * 4096.0 } else { 0.0 };
            assert!((power - expected).abs() < 1e-6, "{i} {power}");
        }
        // A cosine of two periods across: half of it on either side.
        let wave = picture(8, |_, x| (TAU * 2.0 * x as f64 / 8.0).cos());
        for (i, power) in spectrum(&wave, [8, 8], 8).iter().enumerate() {
            let expected = if i == 4 * 8 + 2 || i == 4 * 8 + 6 { 3.0 * 1024.0 } else { 0.0 };
            assert!((power - expected).abs() < 1e-3, "{i} {power}");
        }
        // Parseval, on a grid finer than the picture.
        let any: Vec<f32> = (0..7 * 5 * 3).map(|i| ((i * 37 % 11) as f32 - 5.0) / 3.0).collect();
        let energy: f64 = any.iter().map(|v| f64::from(*v).powi(2)).sum();
        let mean = spectrum(&any, [7, 5], GRID).iter().sum::<f64>() / (GRID * GRID) as f64;
        assert!((mean - energy).abs() < 1e-9 * energy, "{mean} {energy}");
    }

    #[test]
    fn bands_are_where_waves_are() {
        let band = |cycles: f64| {
            let wave = picture(16, |_, x| (TAU * cycles * x as f64).cos());
            shares(&wave, [16, 16], 2)
        };
        for (cycles, expected) in [(0.0, 0), (0.0625, 0), (0.1875, 1), (0.375, 2)] {
            let shares = band(cycles);
            assert!(shares[expected] > 0.7, "{cycles}: {shares:?}");
            assert!((shares[..3].iter().sum::<f64>() - 1.0).abs() < 1e-9);
        }
        // A stride of 2 folds what is above a quarter of a cycle a pixel.
        assert!(band(0.375)[3] > 0.9 && band(0.0625)[3] < 0.1);
        assert_eq!(shares(&[0.0; 27], [3, 3], 1), [0.0; 4]);
    }

    #[test]
    fn a_grating_with_the_period_of_the_stride_is_found() {
        let measure = |picture: &[f32], side: usize, stride: usize| {
            let [near, beside] = grid(picture, side, stride);
            near / beside
        };
        let mut state = 1u64;
        let mut noise = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f64 / (1 << 24) as f64 - 0.5
        };
        for stride in [2, 3, 4] {
            let side = 24;
            let mut found = [0.0; 3];
            for _ in 0..40 {
                let white: Vec<f32> = (0..side * side * 3).map(|_| noise() as f32).collect();
                // A random walk along each row: its spectrum falls with the square of the frequency.
                let mut slope = white.clone();
                for i in 3..slope.len() {
                    slope[i] += if i / 3 % side == 0 { 0.0 } else { slope[i - 3] };
                }
                let line = |i: usize| f64::from(u8::from((i / 3 % side).is_multiple_of(stride)));
                let grating: Vec<f32> =
                    white.iter().enumerate().map(|(i, v)| v + line(i) as f32).collect();
                for (sum, picture) in found.iter_mut().zip([&white, &slope, &grating]) {
                    *sum += measure(picture, side, stride) / 40.0;
                }
            }
            let [white, slope, grating] = found;
            assert!((white - 1.0).abs() < 0.1, "{stride}: {white}");
            assert!((0.4..1.6).contains(&slope), "{stride}: {slope}");
            assert!(grating > 3.0, "{stride}: {grating}");
        }
        assert_eq!(grid(&[0.25; 24 * 24 * 3], 24, 2), [0.0; 2]);
    }

    #[test]
    fn dead_filters_are_far_below_the_median() {
        assert_eq!(dead_by_norm(&[1.0, 0.0099, 1.0, 0.011, 0.0, 1.0, 1.0]), [1, 4]);
        assert_eq!(dead_by_norm(&[0.0, 0.0, 0.0]), [0, 1, 2]);
        assert_eq!(dead_by_norm(&[]), [0; 0]);
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0])), (2.0, 2.5));
        assert_eq!(rms(&[3.0, -4.0, 0.0, 0.0]), 2.5);
        assert_eq!(largest(&[1.0, 5.0, 5.0]), (1, 5.0));
    }

    #[test]
    fn a_cut_is_zero_beyond_the_picture() {
        let pixels: Vec<f32> = (1..=12).map(|v| v as f32).collect();
        assert_eq!(cut(&pixels, [2; 2], [1, 0, 3, 1]), [4.0, 5.0, 6.0, 0.0, 0.0, 0.0]);
        assert_eq!(cut(&pixels, [2; 2], [0, 0, 2, 2]), pixels);
    }
}
