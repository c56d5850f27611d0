//! What looking at a network asks for: each map's strongest value and its sum; and single units, from
//! which a backward pass starts.

use rayon::prelude::*;

use crate::isa::{Isa, vectorized};
use crate::pointwise::add_rows;
use crate::values::{Element, Values, ValuesMut, by_element};
use zfnet_core::operation::{MapMoments, Peak, SeedUnit};
use zfnet_core::shape::Shape;

/// The strongest value of every map in every image: the first of several equal values; NaN wins over any.
pub fn channel_max(peaks: &mut [Peak], x: Values<'_>, shape: Shape) {
    by_element!(; x => {
        let images = peaks.par_chunks_mut(shape.c).zip(x.par_chunks(shape.per_image()));
        images.for_each(|(peaks, x)| {
            for (position, x) in (0u32..).zip(x.chunks_exact(shape.c)) {
                for (peak, x) in peaks.iter_mut().zip(x) {
                    let value = Element::to_f32(*x);
                    let larger = value > peak.value || value.is_nan();
                    if position == 0 || larger && !peak.value.is_nan() {
                        *peak = Peak { value, position };
                    }
                }
            }
        });
    });
}

/// The sum of every map in every image.
pub fn channel_sum(isa: Isa, sums: &mut [f32], x: Values<'_>, shape: Shape) {
    by_element!(; x => {
        let images = sums.par_chunks_mut(shape.c).zip(x.par_chunks(shape.per_image()));
        images.for_each(|(sums, x)| {
            sums.fill(0.0);
            add_rows(isa, sums, x);
        });
    });
}

/// Parts of a tensor whose moments are summed side by side.
const PARTS: usize = 16;
/// Rows that are summed in f32, before their sum is added in f64.
const ROWS: usize = 128;

/// Memory in which [`map_moments`] sums.
pub struct MomentSums(Vec<PartSums>);

/// The sums of one part, for each map.
struct PartSums {
    sum: Vec<f64>,
    squares: Vec<f64>,
    largest: Vec<f32>,
    /// Sum and sum of squares of some rows.
    of_rows: [Vec<f32>; 2],
}

impl MomentSums {
    /// For tensors of up to `maps` maps.
    pub fn new(maps: usize) -> Self {
        let part = |_| PartSums {
            sum: vec![0.0; maps],
            squares: vec![0.0; maps],
            largest: vec![0.0; maps],
            of_rows: [vec![0.0; maps], vec![0.0; maps]],
        };
        MomentSums((0..PARTS).map(part).collect())
    }
}

/// The moments of every map, over all places and images.
pub fn map_moments(
    isa: Isa,
    moments: &mut [MapMoments],
    x: Values<'_>,
    shape: Shape,
    sums: &mut MomentSums,
) {
    let maps = shape.c;
    assert_eq!(moments.len(), maps);
    let rows = (shape.len() / maps).div_ceil(PARTS).max(1);
    by_element!(; x => {
        sums.0.par_iter_mut().enumerate().for_each(|(part, sums)| {
            let from = (part * rows * maps).min(x.len());
            let to = ((part + 1) * rows * maps).min(x.len());
            sums.sum(isa, maps, &x[from..to]);
        });
    });
    for (map, moments) in moments.iter_mut().enumerate() {
        let [mut sum, mut squares] = [0.0; 2];
        let mut largest = f32::NEG_INFINITY;
        for part in &sums.0 {
            sum += part.sum[map];
            squares += part.squares[map];
            largest = largest.max(part.largest[map]);
        }
        *moments = MapMoments { sum: sum as f32, squares: squares as f32, largest };
    }
}

impl PartSums {
    fn sum<T: Element>(&mut self, isa: Isa, maps: usize, x: &[T]) {
        let [sum, squares] = [&mut self.sum[..maps], &mut self.squares[..maps]];
        let largest = &mut self.largest[..maps];
        sum.fill(0.0);
        squares.fill(0.0);
        largest.fill(f32::NEG_INFINITY);
        for x in x.chunks(ROWS * maps) {
            let [of_rows, squares_of_rows] = self.of_rows.each_mut().map(|of| &mut of[..maps]);
            of_rows.fill(0.0);
            squares_of_rows.fill(0.0);
            add_moments(isa, of_rows, squares_of_rows, largest, x);
            let sums = sum.iter_mut().zip(of_rows).chain(squares.iter_mut().zip(squares_of_rows));
            sums.for_each(|(sum, of_rows)| *sum += f64::from(*of_rows));
        }
    }
}

vectorized! {
    /// Adds the moments of rows to those that are there.
    fn add_moments<T>(sum: &mut [f32], squares: &mut [f32], largest: &mut [f32], rows: &[T]) {
        for row in rows.chunks_exact(sum.len()) {
            let sums = sum.iter_mut().zip(squares.iter_mut()).zip(largest.iter_mut());
            for (((sum, square), largest), value) in sums.zip(row) {
                let value = value.to_f32();
                *sum += value;
                *square += value * value;
                *largest = if value > *largest { value } else { *largest };
            }
        }
    }
}

/// All zeros but one value a sample.
pub fn scatter_units(dy: ValuesMut<'_>, units: &[SeedUnit], shape: Shape) {
    by_element!(dy; => scatter(dy, units, shape));
}

fn scatter<T: Element>(dy: &mut [T], units: &[SeedUnit], shape: Shape) {
    let Shape { h, w, c, .. } = shape;
    dy.fill(T::zeroed());
    for (dy, unit) in dy.chunks_exact_mut(h * w * c).zip(units) {
        let [map, y, x] = [unit.map, unit.y, unit.x].map(|v| v as usize);
        assert!(map < c && y < h && x < w, "unit {unit:?} outside [{h}, {w}, {c}]");
        dy[(y * w + x) * c + map] = T::from_f32(unit.value);
    }
}
