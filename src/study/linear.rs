//! Linear classifiers on rows of features: what the paper puts on top of frozen layers.
//!
//! Both minimise, over one vector of weights `w_c` and one bias a class,
//!
//! ```text
//! 1/2 sum_c |w_c|^2 + C sum_i loss(scores of row i, class of row i),    score_c(x) = w_c . x
//! ```
//!
//! - softmax: `loss = -ln p(class)`, multinomial logistic regression;
//! - SVM: `loss = sum_c max(0, 1 - t_c score_c)^2` with `t_c` = 1 for the row's class and -1 for the
//!   others: one linear SVM a class against the rest, with the squared hinge, as in liblinear.
//!
//! An image may have several rows, its crops: `C` counts images, so that each row has its share of it.
//!
//! Rows are multiplied by one factor for the whole layer, so that their mean squared norm over the
//! training rows is 1; the bias is the weight of one more feature, always 1, and regularised like the
//! others. `C` is the best of [`STRENGTHS`] on a held-out fifth of the *training* images of each class,
//! by mean accuracy per class, ties go to the middle value; then all of them are trained on.
//!
//! Both objectives are strictly convex and smooth, so one method finds the only optimum of either:
//! L-BFGS, started from zero. It needs no feature, only the products of rows: each `w_c` is a sum of
//! rows, `w_c = sum_i a_ic x_i`, so that all of it is done on the coefficients `a` and the matrix of
//! products (Gram) `K`, with `<u, v> = sum u . K v` as inner product. `K` is made once and shared by
//! all values of `C` and both losses, and an iteration costs rows^2 x classes multiply-adds, whether a
//! row has 512 features or 290,400. It takes rows^2 x 4 bytes, and so a limit of [`ROWS`] rows.
//!
//! linfa 0.8.1 was measured first, on one core. linfa-svm took 6 s for one class of ten of 2,000 rows
//! of 4,096 features, 119 s for one of 9,000 rows, and 68 s for one of 2,000 rows of 43,264: times ten
//! classes, six values of `C` and three seeds that is hours a layer. linfa-logistic took 1 s, 9 s and
//! 7 s for 50 iterations; it would do, but it goes through all features again in every iteration, and
//! beside the method that the SVM needs anyway the softmax is ten lines.

use std::collections::VecDeque;

use ndarray::{ArrayView2, s};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rayon::prelude::*;

use super::activations::Rows;
use super::numbers::argmax;
use crate::data::order::shuffle;
use crate::{Error, Result, human_bytes};

/// The values of `C` that are tried.
pub const STRENGTHS: [f64; 6] = [0.001, 0.01, 0.1, 1.0, 10.0, 100.0];
/// Training rows there may be: the matrix of their products then takes 1 GiB.
pub const ROWS: usize = 16_384;

/// Share of the gradient at zero below which the gradient's norm is taken for zero.
const TOLERANCE: f64 = 1e-4;
/// Iterations after which it is given up.
const ITERATIONS: usize = 1000;
/// Steps that L-BFGS remembers.
const MEMORY: usize = 10;
/// Rows of a tile of the matrix of products, and of a part of any product with it.
const TILE: usize = 64;
/// Columns of the weights that are made at a time.
const COLUMNS: usize = 1024;

/// What a classifier minimises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Squared hinge, one class against the rest.
    Svm,
    /// Cross-entropy.
    Softmax,
}

/// Scores that are linear in a row's features.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// `[classes, width]`, for rows as they are: the layer's factor is in it.
    pub weights: Vec<f32>,
    /// One a class.
    pub bias: Vec<f32>,
    /// Number of classes.
    pub classes: usize,
}

impl Linear {
    /// The score of each class.
    ///
    /// # Panics
    /// If the row has another width.
    pub fn scores(&self, row: &[f32]) -> Vec<f32> {
        assert_eq!(row.len() * self.classes, self.weights.len(), "a row of the layer");
        let weights = self.weights.chunks_exact(row.len());
        weights.zip(&self.bias).map(|(w, bias)| dot(w, row) + bias).collect()
    }

    /// The class of the highest score for each of these rows; ties go to the first.
    pub fn predict(&self, rows: &Rows, picked: &[usize]) -> Vec<u32> {
        picked.par_iter().map(|&i| argmax(&self.scores(rows.row(i))) as u32).collect()
    }
}

/// The mean over the classes that occur of the share of their rows that is predicted right.
pub fn mean_class_accuracy(truth: &[u32], predicted: &[u32], classes: usize) -> f64 {
    let (mut right, mut all) = (vec![0usize; classes], vec![0usize; classes]);
    for (&truth, &predicted) in truth.iter().zip(predicted) {
        all[truth as usize] += 1;
        right[truth as usize] += usize::from(truth == predicted);
    }
    let shares = right.iter().zip(&all).filter(|(_, all)| **all > 0);
    let shares: Vec<f64> = shares.map(|(right, all)| *right as f64 / *all as f64).collect();
    shares.iter().sum::<f64>() / shares.len() as f64
}

/// Splits the images of each class, whose classes are given, into those to fit and a fifth that is held out,
/// drawn by `seed`: their positions, class by class. Of a class with one image none is held out.
///
/// # Panics
/// If a class is none of `0 .. classes`.
pub fn held_out(of_images: &[u32], classes: usize, seed: u64) -> [Vec<usize>; 2] {
    let mut of_class = vec![Vec::new(); classes];
    for (position, class) in of_images.iter().enumerate() {
        of_class[*class as usize].push(position);
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let [mut fitted, mut held] = [Vec::new(), Vec::new()];
    for mut of_class in of_class {
        shuffle(&mut random, &mut of_class);
        let out = if of_class.len() < 2 { 0 } else { of_class.len().div_ceil(5) };
        held.extend(of_class.drain(..out));
        fitted.extend(of_class);
    }
    [fitted, held]
}

/// The best of `values` by what `judge` says of each, NaN and a tie being no better; ties go to those nearest to
/// the middle, where an extreme value would be no choice of anybody's.
///
/// # Errors
/// Those of `judge`.
///
/// # Panics
/// If there are no values.
pub fn best_of<T: Copy>(values: &[T], mut judge: impl FnMut(T) -> Result<f64>) -> Result<T> {
    let middle = values.len() / 2;
    let mut from_the_middle: Vec<usize> = (0..values.len()).collect();
    from_the_middle.sort_by_key(|place| place.abs_diff(middle));
    let mut best = (f64::NEG_INFINITY, values[middle]);
    for place in from_the_middle {
        let found = judge(values[place])?;
        if found > best.0 {
            best = (found, values[place]);
        }
    }
    Ok(best.1)
}

/// A trained classifier, and how it came about.
#[derive(Clone, Debug, PartialEq)]
pub struct Fit {
    /// The classifier.
    pub linear: Linear,
    /// Its `C`.
    pub strength: f64,
    /// Whether the optimum was reached.
    pub converged: bool,
    /// Iterations that it took.
    pub iterations: usize,
}

/// Training rows, ready for any loss and any `C`.
pub struct Problem<'a> {
    rows: &'a Rows,
    classes: usize,
    /// Positions in `rows`, those that are held out last.
    order: Vec<usize>,
    /// How many are not held out.
    fitted: usize,
    /// What rows are multiplied by.
    scale: f64,
    /// What `C` is multiplied by for a row: the images' share of the number of rows.
    share: f64,
    /// `[order, order]`: products of scaled rows, plus 1 for the bias.
    gram: Vec<f32>,
}

impl<'a> Problem<'a> {
    /// Takes the rows `picked`, those of an image one after another, and draws by `seed` which fifth of the images
    /// is held out ([`held_out`]).
    ///
    /// # Errors
    /// If there are none or more than [`ROWS`], a class is none of `0 .. classes`, or a feature is not
    /// finite.
    pub fn new(rows: &'a Rows, picked: &[usize], classes: usize, seed: u64) -> Result<Self> {
        if picked.is_empty() || picked.len() > ROWS {
            return Err(Error::Data(format!(
                "expected from 1 to {ROWS} rows to train a linear classifier on, found {} (their \
                 products would take {}): take fewer images a class",
                picked.len(),
                human_bytes(picked.len().saturating_mul(picked.len()).saturating_mul(4))
            )));
        }
        let mut images: Vec<Vec<usize>> = Vec::new();
        let mut squares = 0.0;
        for &i in picked {
            let class = rows.classes[i] as usize;
            if class >= classes {
                return Err(Error::Data(format!(
                    "expected {classes} classes, found class {class}"
                )));
            }
            match images.last_mut() {
                Some(image) if rows.images[image[0]] == rows.images[i] => image.push(i),
                _ => images.push(vec![i]),
            }
            squares += rows.row(i).iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        }
        if !squares.is_finite() {
            return Err(Error::Data(
                "the network's outputs are not numbers: the checkpoint has diverged".into(),
            ));
        }
        let of_images: Vec<u32> = images.iter().map(|image| rows.classes[image[0]]).collect();
        let [mut order, held] = held_out(&of_images, classes, seed).map(|places| {
            places.into_iter().flat_map(|place| images[place].clone()).collect::<Vec<_>>()
        });
        let fitted = order.len();
        order.extend(held);
        let share = images.len() as f64 / picked.len() as f64;
        let scale = if squares > 0.0 { (picked.len() as f64 / squares).sqrt() } else { 1.0 };
        let gram = gram(rows, &order, scale);
        Ok(Problem { rows, classes, order, fitted, scale, share, gram })
    }

    /// The classifier with the best `C` on the rows that are held out.
    pub fn best(&self, loss: Loss) -> Fit {
        let held: Vec<u32> =
            self.order[self.fitted..].iter().map(|&i| self.rows.classes[i]).collect();
        let strength = self.choose(loss, |coefficients| {
            let scores = self.times(self.fitted..self.order.len(), self.fitted, coefficients);
            let predicted: Vec<u32> =
                scores.chunks_exact(self.classes).map(|row| argmax(row) as u32).collect();
            mean_class_accuracy(&held, &predicted, self.classes)
        });
        self.fit(loss, strength)
    }

    /// The best `C` on other rows of the images that are held out, as on their centre crops. `others` are ascending
    /// by image.
    pub fn best_on(&self, loss: Loss, others: &Rows) -> f64 {
        let mut images: Vec<u32> =
            self.order[self.fitted..].iter().map(|&i| self.rows.images[i]).collect();
        images.dedup();
        let held = others.positions(&images);
        let truth: Vec<u32> = held.iter().map(|&i| others.classes[i]).collect();
        self.choose(loss, |coefficients| {
            let predicted = self.linear(coefficients).predict(others, &held);
            mean_class_accuracy(&truth, &predicted, self.classes)
        })
    }

    /// The value of `C` whose coefficients, of the rows that are not held out, have the best `accuracy`; the middle
    /// one if none are held out.
    fn choose(&self, loss: Loss, accuracy: impl Fn(&[f64]) -> f64) -> f64 {
        if self.fitted == self.order.len() {
            return STRENGTHS[STRENGTHS.len() / 2];
        }
        let judge = |strength| Ok(accuracy(&self.solve(loss, strength, self.fitted).coefficients));
        best_of(&STRENGTHS, judge).expect("nothing that fails")
    }

    /// The classifier with a given `C`, on all rows.
    pub fn fit(&self, loss: Loss, strength: f64) -> Fit {
        let Solution { coefficients, converged, iterations } =
            self.solve(loss, strength, self.order.len());
        Fit { linear: self.linear(&coefficients), strength, converged, iterations }
    }

    /// The weights that coefficients stand for.
    fn linear(&self, coefficients: &[f64]) -> Linear {
        let (classes, width) = (self.classes, self.rows.width);
        let mut bias = vec![0.0; classes];
        for of_row in coefficients.chunks_exact(classes) {
            bias.iter_mut().zip(of_row).for_each(|(bias, a)| *bias += a);
        }
        // Each part holds some columns of all classes.
        let parts: Vec<Vec<f32>> = (0..width.div_ceil(COLUMNS))
            .into_par_iter()
            .map(|part| {
                let columns = part * COLUMNS..width.min((part + 1) * COLUMNS);
                let mut weights = vec![0.0f64; classes * columns.len()];
                for (&i, of_row) in self.order.iter().zip(coefficients.chunks_exact(classes)) {
                    let row = &self.rows.row(i)[columns.clone()];
                    for (weights, a) in weights.chunks_exact_mut(row.len()).zip(of_row) {
                        let a = a * self.scale * self.scale;
                        weights.iter_mut().zip(row).for_each(|(w, x)| *w += a * f64::from(*x));
                    }
                }
                weights.into_iter().map(|w| w as f32).collect()
            })
            .collect();
        let mut weights = Vec::with_capacity(classes * width);
        for class in 0..classes {
            for part in &parts {
                let columns = part.len() / classes;
                weights.extend(&part[class * columns..(class + 1) * columns]);
            }
        }
        Linear { weights, bias: bias.into_iter().map(|b| b as f32).collect(), classes }
    }

    /// Rows `of` of the matrix of products, times coefficients `[n, classes]` of its first `n` rows.
    fn times(&self, of: std::ops::Range<usize>, n: usize, coefficients: &[f64]) -> Vec<f64> {
        let narrow: Vec<f32> = coefficients.iter().map(|v| *v as f32).collect();
        let right = matrix(n, self.classes, &narrow);
        let all = matrix(self.order.len(), self.order.len(), &self.gram);
        let mut product = vec![0.0; of.len() * self.classes];
        product.par_chunks_mut(TILE * self.classes).enumerate().for_each(|(tile, product)| {
            let first = of.start + tile * TILE;
            let left = all.slice(s![first..first + product.len() / self.classes, ..n]);
            product.iter_mut().zip(left.dot(&right)).for_each(|(to, v)| *to = f64::from(v));
        });
        product
    }

    /// Minimises over the coefficients of the first `n` rows.
    fn solve(&self, loss: Loss, strength: f64, n: usize) -> Solution {
        let (classes, weight) = (self.classes, strength * self.share);
        let labels: Vec<usize> =
            self.order[..n].iter().map(|&i| self.rows.classes[i] as usize).collect();
        let slopes = |scores: &[f64]| {
            let mut slopes = vec![0.0; scores.len()];
            let rows = slopes.par_chunks_mut(classes).zip(scores.par_chunks(classes));
            rows.zip(&labels).for_each(|((slopes, scores), &label)| {
                loss.slopes(scores, label, slopes);
                slopes.iter_mut().for_each(|slope| *slope *= weight);
            });
            slopes
        };
        let gradient_at = |at: &Point| {
            let mut of = slopes(&at.scores);
            add(&mut of, 1.0, &at.of);
            let scores = self.times(0..n, n, &of);
            Point { of, scores }
        };
        let mut at = Point { of: vec![0.0; n * classes], scores: vec![0.0; n * classes] };
        let mut gradient = gradient_at(&at);
        let small = TOLERANCE * gradient.product(&gradient).max(0.0).sqrt();
        let mut steps: VecDeque<Step> = VecDeque::new();
        for iterations in 0..ITERATIONS {
            if gradient.product(&gradient).max(0.0).sqrt() <= small {
                return Solution { coefficients: at.of, converged: true, iterations };
            }
            let down = direction(&gradient, &steps);
            // The objective's slope along the line from `at`: a convex function's, so it rises.
            let (along, squared) = (at.product(&down), down.product(&down));
            let slope_at = |t: f64| {
                let mut scores = at.scores.clone();
                add(&mut scores, t, &down.scores);
                along + t * squared + sum_of_products(&slopes(&scores), &down.scores)
            };
            let length = line_search(slope_at);
            if length == 0.0 {
                // Rounding has eaten what was left to gain.
                return Solution { coefficients: at.of, converged: false, iterations };
            }
            let moved = down.times(length);
            at.add(1.0, &moved);
            let next = gradient_at(&at);
            let mut change = next.times(1.0);
            change.add(-1.0, &gradient);
            gradient = next;
            if moved.product(&change) > 0.0 {
                steps.push_back(Step { moved, change });
            }
            if steps.len() > MEMORY {
                steps.pop_front();
            }
        }
        Solution { coefficients: at.of, converged: false, iterations: ITERATIONS }
    }
}

struct Solution {
    /// `[rows, classes]`.
    coefficients: Vec<f64>,
    converged: bool,
    iterations: usize,
}

impl Loss {
    /// The derivative of a row's loss by each of its scores.
    fn slopes(self, scores: &[f64], label: usize, slopes: &mut [f64]) {
        match self {
            Loss::Softmax => {
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                slopes.iter_mut().zip(scores).for_each(|(p, score)| *p = (score - max).exp());
                let sum: f64 = slopes.iter().sum();
                slopes.iter_mut().for_each(|p| *p /= sum);
                slopes[label] -= 1.0;
            }
            Loss::Svm => {
                for (class, (slope, score)) in slopes.iter_mut().zip(scores).enumerate() {
                    let sign = if class == label { 1.0 } else { -1.0 };
                    *slope = -2.0 * sign * (1.0 - sign * score).max(0.0);
                }
            }
        }
    }
}

/// Weights of all classes by their coefficients `a`, with the scores `K a` that they give the rows.
struct Point {
    of: Vec<f64>,
    scores: Vec<f64>,
}

impl Point {
    /// The inner product of the weights themselves.
    fn product(&self, other: &Point) -> f64 {
        sum_of_products(&self.of, &other.scores)
    }

    fn add(&mut self, factor: f64, other: &Point) {
        add(&mut self.of, factor, &other.of);
        add(&mut self.scores, factor, &other.scores);
    }

    fn times(&self, factor: f64) -> Point {
        let times = |values: &[f64]| values.iter().map(|v| v * factor).collect();
        Point { of: times(&self.of), scores: times(&self.scores) }
    }
}

/// A step that was made, and how the gradient changed over it.
struct Step {
    moved: Point,
    change: Point,
}

/// L-BFGS: the gradient turned by what past steps say of the curvature (Nocedal and Wright,
/// algorithm 7.4), downwards.
fn direction(gradient: &Point, steps: &VecDeque<Step>) -> Point {
    let mut down = gradient.times(-1.0);
    let mut shares = Vec::with_capacity(steps.len());
    for Step { moved, change } in steps.iter().rev() {
        let share = moved.product(&down) / moved.product(change);
        down.add(-share, change);
        shares.push(share);
    }
    if let Some(Step { moved, change }) = steps.back() {
        down = down.times(moved.product(change) / change.product(change));
    }
    for (Step { moved, change }, share) in steps.iter().zip(shares.into_iter().rev()) {
        let other = change.product(&down) / moved.product(change);
        down.add(share - other, moved);
    }
    down
}

/// A step at which the slope of a convex function has come down to a tenth without changing its
/// sign, so that the function is lower there; 0 if there is none.
fn line_search(slope_at: impl Fn(f64) -> f64) -> f64 {
    let first = slope_at(0.0);
    if first.is_nan() || first >= 0.0 {
        return 0.0;
    }
    let (mut low, mut at_low) = (0.0, first);
    let mut high: Option<(f64, f64)> = None;
    let mut t = 1.0;
    for _ in 0..60 {
        let slope = slope_at(t);
        if slope <= 0.0 {
            (low, at_low) = (t, slope);
            if slope >= 0.1 * first {
                break;
            }
        } else {
            high = Some((t, slope));
        }
        t = match high {
            None => 4.0 * t,
            Some((high, at_high)) => {
                // Where the chord has a twentieth of the first slope, but a tenth from either end.
                let share = (0.05 * first - at_low) / (at_high - at_low);
                low + (high - low) * share.clamp(0.1, 0.9)
            }
        };
    }
    low
}

/// The products of the rows `order`, times `scale^2`, plus 1.
fn gram(rows: &Rows, order: &[usize], scale: f64) -> Vec<f32> {
    let (n, width, squared) = (order.len(), rows.width, (scale * scale) as f32);
    let gather = |tile: usize| -> Vec<f32> {
        let of_tile = &order[tile * TILE..n.min((tile + 1) * TILE)];
        of_tile.iter().flat_map(|&i| rows.row(i)).copied().collect()
    };
    let mut gram = vec![0.0f32; n * n];
    gram.par_chunks_mut(TILE * n).enumerate().for_each(|(tile, gram)| {
        let left = gather(tile);
        for other in 0..=tile {
            let right = gather(other);
            let (left, right) = (matrix_of(width, &left), matrix_of(width, &right));
            let products = left.dot(&right.t());
            for (gram, products) in gram.chunks_exact_mut(n).zip(products.rows()) {
                let gram = &mut gram[other * TILE..];
                gram.iter_mut().zip(products).for_each(|(to, v)| *to = v * squared + 1.0);
            }
        }
    });
    // The tiles above the diagonal are those below it.
    for i in 0..n {
        for j in 0..i {
            gram[j * n + i] = gram[i * n + j];
        }
    }
    gram
}

fn matrix(rows: usize, columns: usize, values: &[f32]) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((rows, columns), values).expect("whole rows")
}

fn matrix_of(width: usize, values: &[f32]) -> ArrayView2<'_, f32> {
    matrix(values.len() / width, width, values)
}

fn add(to: &mut [f64], factor: f64, values: &[f64]) {
    to.iter_mut().zip(values).for_each(|(to, v)| *to += factor * v);
}

fn sum_of_products(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// In eight sums, which a compiler makes a vector of.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let (a, b) = (a.chunks(8), b.chunks(8));
    for (a, b) in a.zip(b) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [Loss; 2] = [Loss::Svm, Loss::Softmax];

    fn rows(width: usize, values: &[f32], classes: &[u32]) -> Rows {
        let images = (0..classes.len() as u32).collect();
        Rows { width, values: values.to_vec(), classes: classes.to_vec(), images }
    }

    fn all(rows: &Rows) -> Vec<usize> {
        (0..rows.len()).collect()
    }

    /// Numbers from -1 to 1, the same everywhere.
    fn noise(count: usize, seed: u64) -> Vec<f32> {
        let mut list: Vec<u32> = (0..count as u32).collect();
        shuffle(&mut ChaCha8Rng::seed_from_u64(seed), &mut list);
        list.iter().map(|v| *v as f32 / count as f32 * 2.0 - 1.0).collect()
    }

    /// Rows around a corner of their own for each of three classes, `apart` from the middle.
    fn corners(each: usize, width: usize, apart: f32, seed: u64) -> Rows {
        let mut values = noise(3 * each * width, seed);
        let classes: Vec<u32> = (0..3 * each as u32).map(|i| i % 3).collect();
        for (row, class) in values.chunks_exact_mut(width).zip(&classes) {
            row[*class as usize] += apart;
        }
        rows(width, &values, &classes)
    }

    /// Seven points of three classes in the plane, not separable.
    fn small() -> Rows {
        let points = [
            [0.0, 1.0],
            [0.5, 2.0],
            [2.0, 0.5],
            [1.5, -0.5],
            [-1.0, -1.0],
            [-0.5, 0.8],
            [0.4, -1.5],
        ];
        rows(2, points.as_flattened(), &[0, 0, 1, 1, 2, 2, 2])
    }

    /// The rows of [`small`] as the objective sees them: scaled, and with the bias' feature.
    fn scaled(rows: &Rows) -> Vec<[f64; 3]> {
        let squares: f64 = rows.values.iter().map(|v| f64::from(*v).powi(2)).sum();
        let scale = (rows.len() as f64 / squares).sqrt();
        let row = |x: &[f32]| [f64::from(x[0]) * scale, f64::from(x[1]) * scale, 1.0];
        rows.values.chunks_exact(2).map(row).collect()
    }

    /// The weights of each class for scaled rows, the bias last.
    fn weights(fit: &Fit, rows: &Rows) -> Vec<[f64; 3]> {
        let squares: f64 = rows.values.iter().map(|v| f64::from(*v).powi(2)).sum();
        let scale = (rows.len() as f64 / squares).sqrt();
        let weights = fit.linear.weights.chunks_exact(2).zip(&fit.linear.bias);
        weights
            .map(|(w, b)| [w[0], w[1], *b].map(f64::from))
            .map(|[x, y, b]| [x / scale, y / scale, b])
            .collect()
    }

    fn product(a: &[f64; 3], b: &[f64; 3]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    #[test]
    fn a_separable_set_is_separated_perfectly() {
        let train = corners(20, 5, 3.0, 1);
        let test = corners(30, 5, 3.0, 2);
        let problem = Problem::new(&train, &all(&train), 3, 7).unwrap();
        for loss in BOTH {
            let fit = problem.best(loss);
            assert!(fit.converged, "{loss:?}");
            assert_eq!(fit.linear.predict(&train, &all(&train)), train.classes, "{loss:?}");
            assert_eq!(fit.linear.predict(&test, &all(&test)), test.classes, "{loss:?}");
        }
    }

    /// Gradient descent in f64, many small steps of it.
    #[test]
    fn softmax_is_that_of_plain_gradient_descent() {
        let rows = small();
        for strength in [0.1, 1.0, 10.0] {
            let x = scaled(&rows);
            let mut w = [[0.0f64; 3]; 3];
            for _ in 0..200_000 {
                let mut gradient = w;
                for (x, &label) in x.iter().zip(&rows.classes) {
                    let powers = w.map(|w| product(&w, x).exp());
                    let sum: f64 = powers.iter().sum();
                    for (class, gradient) in gradient.iter_mut().enumerate() {
                        let target = f64::from(u8::from(class == label as usize));
                        let error = strength * (powers[class] / sum - target);
                        gradient.iter_mut().zip(x).for_each(|(g, x)| *g += error * x);
                    }
                }
                let step = 0.05 / (1.0 + strength);
                let values = w.as_flattened_mut().iter_mut().zip(gradient.as_flattened());
                values.for_each(|(w, g)| *w -= step * g);
            }
            let fit = Problem::new(&rows, &all(&rows), 3, 0).unwrap().fit(Loss::Softmax, strength);
            let found = weights(&fit, &rows);
            for (found, w) in found.as_flattened().iter().zip(w.as_flattened()) {
                assert!((found - w).abs() < 1e-3, "C {strength}: {found} for {w}");
            }
        }
    }

    /// Dual coordinate descent (Hsieh et al. 2008) in f64, another road to the same optimum.
    #[test]
    fn svm_is_that_of_dual_coordinate_descent() {
        let rows = small();
        for strength in [0.1, 1.0, 10.0] {
            let x = scaled(&rows);
            let fit = Problem::new(&rows, &all(&rows), 3, 0).unwrap().fit(Loss::Svm, strength);
            for (class, found) in weights(&fit, &rows).iter().enumerate() {
                let sign = |i: usize| if rows.classes[i] as usize == class { 1.0 } else { -1.0 };
                let (mut w, mut alpha) = ([0.0f64; 3], vec![0.0f64; x.len()]);
                for i in (0..x.len()).cycle().take(200_000) {
                    let softened = 1.0 / (2.0 * strength);
                    let slope = sign(i) * product(&w, &x[i]) - 1.0 + softened * alpha[i];
                    let next = (alpha[i] - slope / (product(&x[i], &x[i]) + softened)).max(0.0);
                    let change = (next - alpha[i]) * sign(i);
                    w.iter_mut().zip(&x[i]).for_each(|(w, x)| *w += change * x);
                    alpha[i] = next;
                }
                for (found, w) in found.iter().zip(w) {
                    assert!((found - w).abs() < 1e-3, "C {strength}: {found} for {w}");
                }
                // The conditions of Karush, Kuhn and Tucker: w is the sum of rows weighted by 2 C
                // times how far each is from its margin.
                let mut sum = [0.0f64; 3];
                for (i, x) in x.iter().enumerate() {
                    let short = (1.0 - sign(i) * product(found, x)).max(0.0);
                    let share = 2.0 * strength * short * sign(i);
                    sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += share * x);
                }
                for (found, sum) in found.iter().zip(sum) {
                    assert!((found - sum).abs() < 2e-3 * (1.0 + strength), "{found} for {sum}");
                }
            }
        }
    }

    #[test]
    fn shuffled_labels_are_at_chance() {
        let mut train = corners(60, 20, 1.5, 3);
        let test = corners(200, 20, 1.5, 4);
        let accuracy = |train: &Rows, loss| {
            let fit = Problem::new(train, &all(train), 3, 1).unwrap().best(loss);
            mean_class_accuracy(&test.classes, &fit.linear.predict(&test, &all(&test)), 3)
        };
        for loss in BOTH {
            assert!(accuracy(&train, loss) > 0.85, "{loss:?}");
        }
        shuffle(&mut ChaCha8Rng::seed_from_u64(5), &mut train.classes);
        for loss in BOTH {
            let found = accuracy(&train, loss);
            // Weights may happen to lie along one class or another: chance is a third.
            assert!((0.13..0.53).contains(&found), "{loss:?}: {found}");
        }
    }

    /// More rows than a tile, more columns than are made at a time.
    #[test]
    fn results_do_not_depend_on_threads_or_on_the_rows_beside() {
        let train = corners(50, 1500, 2.0, 6);
        let picked: Vec<usize> = (0..train.len()).filter(|i| i % 7 != 0).collect();
        let fits = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let problem = Problem::new(&train, &picked, 3, 9).unwrap();
                BOTH.map(|loss| problem.best(loss))
            })
        };
        let one = fits(1);
        assert!(one == fits(3), "bit by bit");
        // The same rows without the others.
        let values: Vec<f32> = picked.iter().flat_map(|&i| train.row(i)).copied().collect();
        let classes: Vec<u32> = picked.iter().map(|&i| train.classes[i]).collect();
        let alone = rows(1500, &values, &classes);
        let problem = Problem::new(&alone, &all(&alone), 3, 9).unwrap();
        assert!(one == BOTH.map(|loss| problem.best(loss)));
    }

    /// Scores from weights are those from products of rows, and scaling the rows changes nothing.
    #[test]
    fn weights_give_the_scores_of_their_coefficients() {
        let train = corners(30, 7, 1.0, 8);
        let problem = Problem::new(&train, &all(&train), 3, 2).unwrap();
        let n = train.len();
        for loss in BOTH {
            let solution = problem.solve(loss, 1.0, n);
            let scores = problem.times(0..n, n, &solution.coefficients);
            let linear = problem.linear(&solution.coefficients);
            for (&i, scores) in problem.order.iter().zip(scores.chunks_exact(3)) {
                for (found, score) in linear.scores(train.row(i)).iter().zip(scores) {
                    assert!((f64::from(*found) - score).abs() < 1e-4, "{found} for {score}");
                }
            }
            let larger: Vec<f32> = train.values.iter().map(|v| v * 1024.0).collect();
            let larger = rows(7, &larger, &train.classes);
            let other = Problem::new(&larger, &all(&larger), 3, 2).unwrap().fit(loss, 1.0).linear;
            assert_eq!(other.bias, linear.bias);
            assert!(other.weights.iter().zip(&linear.weights).all(|(a, b)| a * 1024.0 == *b));
        }
    }

    #[test]
    fn what_cannot_be_trained_on_is_refused_or_has_an_answer() {
        let good = corners(3, 4, 1.0, 1);
        let reason = |rows: &Rows, picked: &[usize]| {
            Problem::new(rows, picked, 3, 0).err().map(|e| e.to_string()).unwrap_or_default()
        };
        assert!(reason(&good, &[]).contains("found 0"));
        assert!(reason(&good, &[0; ROWS + 1]).contains("fewer images a class"));
        let mut bad = good.clone();
        bad.classes[2] = 3;
        assert!(reason(&bad, &all(&bad)).contains("found class 3"));
        bad = good.clone();
        bad.values[5] = f32::NAN;
        assert!(reason(&bad, &all(&bad)).contains("not numbers"));
        // A layer that is dead, and one row a class, of which none is left to judge by.
        let dead = rows(4, &[0.0; 12], &[0, 1, 2]);
        for loss in BOTH {
            let fit = Problem::new(&dead, &all(&dead), 3, 0).unwrap().best(loss);
            assert_eq!(fit.linear.predict(&dead, &all(&dead)), [0; 3]);
            assert_eq!(fit.strength, 1.0);
        }
    }

    /// Every row twice, as two crops of an image: the same objective, hence the same classifier, and an image is
    /// held out with all of its rows.
    #[test]
    fn rows_of_an_image_share_its_weight_and_are_held_out_together() {
        let once = corners(10, 4, 1.0, 1);
        let twice = Rows {
            width: 4,
            values: (0..30).flat_map(|i| once.row(i).repeat(2)).collect(),
            classes: once.classes.iter().flat_map(|class| [*class; 2]).collect(),
            images: once.images.iter().flat_map(|image| [*image; 2]).collect(),
        };
        let [alone, both] =
            [&once, &twice].map(|rows| Problem::new(rows, &all(rows), 3, 4).unwrap());
        assert_eq!((both.fitted, both.order.len()), (2 * alone.fitted, 60));
        for (pair, &i) in both.order.chunks_exact(2).zip(&alone.order) {
            assert_eq!(pair, [2 * i, 2 * i + 1]);
        }
        for loss in BOTH {
            let [alone, both] = [&alone, &both].map(|problem| problem.fit(loss, 1.0).linear);
            for (a, b) in alone.weights.iter().zip(&both.weights) {
                assert!((a - b).abs() < 1e-3, "{loss:?}: {a} for {b}");
            }
            // Judged by the same rows, the same C.
            let problem = Problem::new(&twice, &all(&twice), 3, 4).unwrap();
            assert_eq!(problem.best_on(loss, &once), problem.best(loss).strength);
        }
        assert_eq!(twice.positions(&[0, 7]), [0, 1, 14, 15]);
    }

    #[test]
    fn a_fifth_of_each_class_is_held_out() {
        let classes: Vec<u32> = [0; 11].into_iter().chain([1; 5]).chain([2]).collect();
        let [fitted, held] = held_out(&classes, 3, 5);
        let count = |of: &[usize], class| of.iter().filter(|i| classes[**i] == class).count();
        assert_eq!([0, 1, 2].map(|class| count(&held, class)), [3, 1, 0]);
        assert_eq!([0, 1, 2].map(|class| count(&fitted, class)), [8, 4, 1]);
        let mut both = [fitted, held].concat();
        both.sort_unstable();
        assert!(both.into_iter().eq(0..17));
    }

    #[test]
    fn the_best_value_is_chosen_and_ties_go_to_the_middle() {
        let best = |scores: [f64; 3]| best_of(&[0, 1, 2], |i: usize| Ok(scores[i])).unwrap();
        assert_eq!(best([0.1, 0.2, 0.3]), 2);
        assert_eq!(best([0.3, 0.2, 0.3]), 0);
        assert_eq!(best([0.2, 0.2, 0.2]), 1);
        assert_eq!(best([f64::NAN, f64::NEG_INFINITY, 0.1]), 2);
        assert_eq!(best_of(&[7], |_| Ok(f64::NAN)).unwrap(), 7);
        assert!(best_of(&[7], |_| Err(Error::Data("no".into()))).is_err());
    }

    #[test]
    fn accuracy_is_the_mean_of_the_classes() {
        // Class 0: one of three, class 1: all, class 2: does not occur.
        assert_eq!(mean_class_accuracy(&[0, 0, 0, 1], &[0, 1, 2, 1], 3), (1.0 / 3.0 + 1.0) / 2.0);
    }
}
