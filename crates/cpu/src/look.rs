//! What looking at a network asks for: each map's strongest value and its sum; and single units, from
//! which a backward pass starts.

use rayon::prelude::*;

use crate::isa::Isa;
use crate::pointwise::add_rows;
use crate::values::{Element, Values, ValuesMut, by_element};
use zfnet_core::operation::{Peak, SeedUnit};
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
