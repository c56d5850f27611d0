//! All size arithmetic: output sizes of convolution and pooling, and receptive fields. Pure.
//!
//! One alphabet everywhere: a convolution reads `N, H, W, C` (images, height, width, channels),
//! has `K` filters of `R` rows and `S` columns, and writes `N, P, Q, K`.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Sizes of a tensor, contiguous in this order: images, rows, columns, channels (NHWC).
///
/// Filters use the same four places for K, R, S, C (KRSC).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Shape {
    /// Images, or filters.
    pub n: usize,
    /// Rows.
    pub h: usize,
    /// Columns.
    pub w: usize,
    /// Channels (maps).
    pub c: usize,
}

impl Shape {
    /// A shape from its four sizes.
    pub const fn new(n: usize, h: usize, w: usize, c: usize) -> Self {
        Shape { n, h, w, c }
    }

    /// A vector of `c` values, as biases are.
    pub const fn vector(c: usize) -> Self {
        Shape { n: 1, h: 1, w: 1, c }
    }

    /// Number of values of one image (or filter): `h * w * c`.
    pub const fn per_image(&self) -> usize {
        self.h * self.w * self.c
    }

    /// Number of values.
    pub const fn len(&self) -> usize {
        self.n * self.per_image()
    }

    /// Whether there is no value at all.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same image size for `n` images.
    pub const fn with_n(self, n: usize) -> Self {
        Shape { n, ..self }
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{}, {}, {}, {}]", self.n, self.h, self.w, self.c)
    }
}

/// What happens to a last window that the input does not fill.
///
/// The paper's sizes (110, 55, 26, 13, 6) need [`Rounding::Ceil`]; PyTorch's default is `Floor`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rounding {
    /// It is left out.
    Floor,
    /// It is kept, and reaches beyond the input.
    #[default]
    Ceil,
}

/// Number of windows along one axis, or `None` if not even one fits.
///
/// With [`Rounding::Ceil`] a last window that would start beyond the input plus its leading pad
/// is dropped (PyTorch's rule), so that every window holds at least one value of the input when
/// the leading pad is smaller than the kernel.
pub fn windows(
    input: usize,
    kernel: usize,
    stride: usize,
    pad_before: usize,
    pad_after: usize,
    rounding: Rounding,
) -> Option<usize> {
    let padded = input + pad_before + pad_after;
    if kernel == 0 || stride == 0 || input == 0 || padded < kernel {
        return None;
    }
    let free = padded - kernel;
    match rounding {
        Rounding::Floor => Some(free / stride + 1),
        Rounding::Ceil => {
            let count = free.div_ceil(stride) + 1;
            Some(if (count - 1) * stride >= input + pad_before { count - 1 } else { count })
        }
    }
}

/// Number of places along one axis that a transposed convolution makes of `input`,
/// `(input - 1) stride - pads + kernel`, or `None` if that is none: so many that [`windows`] of them,
/// rounded down, are `input`.
pub fn transposed(
    input: usize,
    kernel: usize,
    stride: usize,
    pad_before: usize,
    pad_after: usize,
) -> Option<usize> {
    let whole = input.checked_sub(1)?.checked_mul(stride)?.checked_add(kernel)?;
    let output = whole.checked_sub(pad_before.checked_add(pad_after)?)?;
    (kernel > 0 && stride > 0 && output > 0).then_some(output)
}

/// The receptive field of a layer's units along one axis, in pixels of the network's input.
///
/// Unit `i` sees the pixels `start + i * jump .. start + i * jump + size`, as far as there are any, and as
/// layers below it read them: with [`Rounding::Floor`] the last ones of a map may be in no window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    /// Number of pixels a unit sees.
    pub size: usize,
    /// Distance of two neighbouring units' fields.
    pub jump: usize,
    /// First pixel that unit 0 sees; negative inside the padding.
    pub start: i64,
    /// One past the last pixel that any unit sees.
    pub end: i64,
}

impl Field {
    /// The field of a pixel: itself. There is no last one.
    pub const PIXEL: Field = Field { size: 1, jump: 1, start: 0, end: i64::MAX };

    /// The same field of no more than `count` units.
    pub fn limited(self, count: usize) -> Field {
        let (_, end) = self.of(count.saturating_sub(1));
        Field { end: self.end.min(end), ..self }
    }

    /// The field of units that see a window of units with this field.
    pub fn through(self, kernel: usize, stride: usize, pad: usize) -> Field {
        Field {
            size: self.size + (kernel - 1) * self.jump,
            jump: self.jump * stride,
            start: self.start - (pad * self.jump) as i64,
            ..self
        }
    }

    /// The field of units that see all units with this field, of a network's input of so many pixels.
    pub fn whole(self, size: usize) -> Field {
        Field { size, jump: 0, start: 0, ..self }
    }

    /// The field of units that a transposed convolution spreads units with this field over. Unit `i`
    /// sees those from `ceil((i + pad - kernel + 1) / stride)` to `floor((i + pad) / stride)`, here more
    /// or fewer of them and there; this is the smallest field in even steps that holds them all.
    /// `None` if the steps would be no whole pixels.
    pub fn through_transposed(self, kernel: usize, stride: usize, pad: usize) -> Option<Field> {
        let jump = self.jump.is_multiple_of(stride).then_some(self.jump / stride)?;
        Some(Field {
            size: self.size + (kernel - 1) * jump,
            jump,
            start: self.start - ((kernel - 1) as i64 - pad as i64) * jump as i64,
            ..self
        })
    }

    /// First and one-past-last pixel of unit `i`, before clipping.
    pub fn of(self, i: usize) -> (i64, i64) {
        let first = self.start + (i * self.jump) as i64;
        (first, first + self.size as i64)
    }

    /// First and one-past-last pixel that unit `i` sees: what of [`Field::of`] lies in the input and is read.
    pub fn seen(self, i: usize) -> (i64, i64) {
        let (first, end) = self.of(i);
        (first.max(0), end.min(self.end))
    }
}

/// Sizes of a convolution. `#[repr(C)]`: kernels take the same struct.
///
/// Trailing padding needs no number of its own: whatever lies beyond the input is read as zero,
/// and `p`, `q` say how many windows there are.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvDims {
    /// Images.
    pub n: u32,
    /// Rows of the input.
    pub h: u32,
    /// Columns of the input.
    pub w: u32,
    /// Channels of the input.
    pub c: u32,
    /// Filters: channels of the output.
    pub k: u32,
    /// Rows of a filter.
    pub r: u32,
    /// Columns of a filter.
    pub s: u32,
    /// Rows of the output.
    pub p: u32,
    /// Columns of the output.
    pub q: u32,
    /// Step between windows, downwards and to the right.
    pub stride: [u32; 2],
    /// Rows and columns of zeros before the input.
    pub pad: [u32; 2],
    /// Groups: filter `k` sees the `c / groups` channels of group `k / (k_total / groups)`.
    pub groups: u32,
}

impl ConvDims {
    /// Shape of the input, NHWC.
    pub fn input(&self) -> Shape {
        Shape::new(self.n as usize, self.h as usize, self.w as usize, self.c as usize)
    }

    /// Shape of the output, NPQK.
    pub fn output(&self) -> Shape {
        Shape::new(self.n as usize, self.p as usize, self.q as usize, self.k as usize)
    }

    /// Shape of the filters, KRS(C / groups).
    pub fn filter(&self) -> Shape {
        let c = self.c / self.groups;
        Shape::new(self.k as usize, self.r as usize, self.s as usize, c as usize)
    }

    /// Multiplications and additions of one pass over `n` images, counted as one each pair.
    pub fn multiply_adds(&self) -> u64 {
        self.output().len() as u64 * self.filter().per_image() as u64
    }

    /// Whether every filter covers its whole input, so that this is a product of matrices.
    pub fn is_fully_connected(&self) -> bool {
        let whole = [self.r, self.s] == [self.h, self.w] && [self.p, self.q] == [1, 1];
        whole && self.pad == [0, 0] && self.groups == 1
    }

    /// The same convolution of `n` images.
    pub fn with_n(self, n: usize) -> Self {
        ConvDims { n: n as u32, ..self }
    }

    /// The same convolution where there is no more of its output than windows of `p` by `q`: its
    /// input is all that these see, without padding.
    pub fn windowed(self, [p, q]: [u32; 2]) -> Self {
        let [h, w] = extent([p, q], [self.r, self.s], self.stride);
        ConvDims { h, w, p, q, pad: [0, 0], ..self }
    }
}

/// Sizes of a max pooling. `#[repr(C)]`: kernels take the same struct.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolDims {
    /// Images.
    pub n: u32,
    /// Rows of the input.
    pub h: u32,
    /// Columns of the input.
    pub w: u32,
    /// Channels.
    pub c: u32,
    /// Rows of the output.
    pub p: u32,
    /// Columns of the output.
    pub q: u32,
    /// Rows and columns of a window; a switch is one byte, so at most 255 values.
    pub window: [u32; 2],
    /// Step between windows, downwards and to the right.
    pub stride: [u32; 2],
    /// Rows and columns before the input that a window may cover; they hold no value.
    pub pad: [u32; 2],
    /// 1 if switches keep the place of every winner; 0 if only of those above zero, which is enough
    /// beside a relu.
    pub any_sign: u32,
}

impl PoolDims {
    /// Shape of the input, NHWC.
    pub fn input(&self) -> Shape {
        Shape::new(self.n as usize, self.h as usize, self.w as usize, self.c as usize)
    }

    /// Shape of the output, NPQC; the switches have it too.
    pub fn output(&self) -> Shape {
        Shape::new(self.n as usize, self.p as usize, self.q as usize, self.c as usize)
    }

    /// The same pooling of `n` images.
    pub fn with_n(self, n: usize) -> Self {
        PoolDims { n: n as u32, ..self }
    }

    /// The same pooling where there is no more of its output than windows of `p` by `q`: its input
    /// is all that these see, without padding.
    pub fn windowed(self, [p, q]: [u32; 2]) -> Self {
        let [h, w] = extent([p, q], self.window, self.stride);
        PoolDims { h, w, p, q, pad: [0, 0], ..self }
    }
}

/// Rows and columns that so many neighbouring kernels see.
fn extent(count: [u32; 2], kernel: [u32; 2], stride: [u32; 2]) -> [u32; 2] {
    [0, 1].map(|axis| (count[axis] - 1) * stride[axis] + kernel[axis])
}

/// Windows of one size in a map, one for each sample of a backward pass: all that can be non-zero there
/// if the pass began at a single unit. `#[repr(C)]`: kernels take the same struct.
///
/// They are never clipped: a window may begin before the map and reach beyond it, where only zeros
/// lie. So all samples have the same sizes, wherever their units stand.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Rows and columns of the map.
    pub map: [u32; 2],
    /// Rows and columns of a window.
    pub size: [u32; 2],
    /// First row and column of the window of a unit at (0, 0).
    pub start: [i32; 2],
    /// Distance of two neighbouring units' windows.
    pub jump: [i32; 2],
}

impl Windows {
    /// The windows in the units' own map: each unit itself.
    pub fn units(map: Shape) -> Self {
        Windows { map: [map.h as u32, map.w as u32], size: [1; 2], start: [0; 2], jump: [1; 2] }
    }

    /// The windows in the map below, where each value of these sees `kernel` values.
    pub fn below(&self, map: [u32; 2], kernel: [u32; 2], stride: [u32; 2], pad: [u32; 2]) -> Self {
        let axes = [0, 1];
        Windows {
            map,
            size: extent(self.size, kernel, stride),
            start: axes.map(|i| self.start[i] * stride[i] as i32 - pad[i] as i32),
            jump: axes.map(|i| self.jump[i] * stride[i] as i32),
        }
    }

    /// Where the map lies, seen from its windows: cutting by it puts windows back into whole maps.
    pub fn inverse(&self) -> Self {
        let Windows { map, size, start, jump } = *self;
        Windows { map: size, size: map, start: start.map(|v| -v), jump: jump.map(|v| -v) }
    }

    /// Whether a window has no fewer places than the whole map.
    pub fn cover(&self) -> bool {
        let area = |[rows, columns]: [u32; 2]| u64::from(rows) * u64::from(columns);
        area(self.size) >= area(self.map)
    }

    /// Shape of `n` windows of `c` channels.
    pub fn shape(&self, n: usize, c: usize) -> Shape {
        Shape::new(n, self.size[0] as usize, self.size[1] as usize, c)
    }

    /// What lies in the map of the window of a unit, along one axis (0: rows, 1: columns; `unit` is
    /// the unit's place along it): places of the window, and the map's place of the first of them.
    pub fn inside(&self, axis: usize, unit: u32) -> (Range<usize>, usize) {
        let origin = i64::from(self.start[axis]) + i64::from(self.jump[axis]) * i64::from(unit);
        let size = i64::from(self.size[axis]);
        let first = (-origin).clamp(0, size);
        let end = (i64::from(self.map[axis]) - origin).clamp(first, size);
        (first as usize..end as usize, (origin + first).max(0) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sizes of the paper's figure 3, from 224 pixels down to 6.
    #[test]
    fn paper_sizes() {
        use Rounding::*;
        let sizes: Vec<usize> = [(7, 2, 0), (3, 2, 0), (5, 2, 0), (3, 2, 0), (3, 1, 1), (3, 2, 0)]
            .iter()
            .scan(224, |size, &(kernel, stride, pad)| {
                *size = windows(*size, kernel, stride, pad, pad, Ceil).unwrap();
                Some(*size)
            })
            .collect();
        assert_eq!(sizes, [110, 55, 26, 13, 13, 6]);
        assert_eq!(windows(224, 7, 2, 0, 0, Floor), Some(109));
        assert_eq!(windows(224, 7, 2, 1, 1, Floor), Some(110));
    }

    /// Against counting, window by window.
    #[test]
    fn windows_equal_a_count() {
        for input in 1..12 {
            for kernel in 1..6 {
                for stride in 1..5 {
                    let pads = [(0, 0), (1, 1), (2, 0), (0, 2)];
                    // Planning refuses pads as large as the kernel: whole windows would be pad.
                    for (before, after) in pads.into_iter().filter(|p| p.0.max(p.1) < kernel) {
                        let end = input + before + after;
                        let floor =
                            (0..).step_by(stride).take_while(|start| start + kernel <= end).count();
                        let ceil = (0..)
                            .step_by(stride)
                            .take_while(|&start: &usize| {
                                // It adds to what the windows before it saw, and starts early enough.
                                let new = start == 0 || start - stride + kernel < end;
                                new && start < input + before
                            })
                            .count();
                        let got = |r| windows(input, kernel, stride, before, after, r);
                        let fits = end >= kernel;
                        assert_eq!(got(Rounding::Floor), fits.then_some(floor));
                        assert_eq!(
                            got(Rounding::Ceil),
                            fits.then_some(ceil),
                            "{input} {kernel} {stride} {before} {after}"
                        );
                    }
                }
            }
        }
        assert_eq!(windows(0, 1, 1, 1, 1, Rounding::Ceil), None);
        assert_eq!(windows(5, 0, 1, 0, 0, Rounding::Floor), None);
        assert_eq!(windows(5, 1, 0, 0, 0, Rounding::Floor), None);
    }

    /// A unit's window in the pixels is its receptive field.
    #[test]
    fn windows_grow_like_receptive_fields() {
        let mut field = Field::PIXEL;
        let layers = [(7, 2, 0, 110), (3, 2, 1, 56), (5, 1, 2, 56), (4, 3, 3, 20)];
        layers.iter().for_each(|&(k, s, pad, _)| field = field.through(k, s, pad));
        let mut windows = Windows::units(Shape::new(1, 20, 20, 1));
        let maps = [224, 110, 56, 56];
        for (&(k, s, pad, _), map) in layers.iter().rev().zip(maps.iter().rev()) {
            windows = windows.below([*map; 2], [k as u32; 2], [s as u32; 2], [pad as u32; 2]);
        }
        assert_eq!(windows.size, [field.size as u32; 2]);
        for unit in [0, 1, 10, 19] {
            let (first, end) = field.of(unit);
            let (inside, at) = windows.inside(1, unit as u32);
            assert_eq!(inside.start as i64, (-first).max(0));
            assert_eq!(inside.len() as i64, end.min(224) - first.max(0), "unit {unit}");
            assert_eq!(at as i64, first.max(0));
            // The map's places that a window holds.
            let (held, place) = windows.inverse().inside(1, unit as u32);
            assert_eq!((held.len(), held.start, place), (inside.len(), at, inside.start));
        }
        assert_eq!(windows.inverse().inverse(), windows);
        assert!(!windows.cover() && windows.inverse().cover());
    }

    /// Against a list of what each unit of a transposed convolution sees.
    #[test]
    fn transposed_fields_hold_all_that_is_seen() {
        for (kernel, stride, pad, input) in [(4, 2, 1, 5), (3, 1, 1, 6), (5, 2, 2, 4), (3, 4, 0, 3)]
        {
            let below = Field { size: 7, jump: 4, start: -2, end: i64::MAX };
            let above = below.through_transposed(kernel, stride, pad).unwrap();
            let output = transposed(input, kernel, stride, pad, pad).unwrap();
            assert_eq!(windows(output, kernel, stride, pad, pad, Rounding::Floor), Some(input));
            for unit in 0..output {
                let (first, end) = above.of(unit);
                let reached = |j: &usize| {
                    let place = unit + pad;
                    (j * stride..j * stride + kernel).contains(&place)
                };
                for seen in (0..input).filter(reached).map(|j| below.of(j)) {
                    assert!(first <= seen.0 && seen.1 <= end, "unit {unit}: {seen:?}");
                    // Without a stride there is but one size.
                    let inside = unit >= kernel && unit + kernel < output;
                    let edges = (0..input).filter(reached).map(|j| below.of(j));
                    let (low, high) = (edges.clone().map(|e| e.0).min(), edges.map(|e| e.1).max());
                    let exact = (low, high) == (Some(first), Some(end));
                    assert!(stride > 1 || !inside || exact, "unit {unit}");
                }
            }
        }
        assert_eq!(Field::PIXEL.through_transposed(4, 2, 1), None);
        assert_eq!(transposed(1, 2, 1, 1, 1), None);
        assert_eq!(transposed(5, 4, 2, 1, 1), Some(10));
        assert_eq!(transposed(usize::MAX, 4, 2, 1, 1), None);
    }

    #[test]
    fn three_stacked_3x3_layers_see_3_5_7() {
        let mut field = Field::PIXEL;
        let sizes = [(); 3].map(|()| {
            field = field.through(3, 1, 1);
            field.size
        });
        assert_eq!(sizes, [3, 5, 7]);
        assert_eq!(field.start, -3);
        assert_eq!(field.of(2), (-1, 6));
    }
}
