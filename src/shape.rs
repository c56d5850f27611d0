//! All size arithmetic: output sizes of convolution and pooling, and receptive fields. Pure.
//!
//! One alphabet everywhere: a convolution reads `N, H, W, C` (images, height, width, channels),
//! has `K` filters of `R` rows and `S` columns, and writes `N, P, Q, K`.

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

/// The receptive field of a layer's units along one axis, in pixels of the network's input.
///
/// Unit `i` sees the pixels `start + i * jump .. start + i * jump + size`, before clipping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    /// Number of pixels a unit sees.
    pub size: usize,
    /// Distance of two neighbouring units' fields.
    pub jump: usize,
    /// First pixel that unit 0 sees; negative inside the padding.
    pub start: i64,
}

impl Field {
    /// The field of a pixel: itself.
    pub const PIXEL: Field = Field { size: 1, jump: 1, start: 0 };

    /// The field of units that see a window of units with this field.
    pub fn through(self, kernel: usize, stride: usize, pad: usize) -> Field {
        Field {
            size: self.size + (kernel - 1) * self.jump,
            jump: self.jump * stride,
            start: self.start - (pad * self.jump) as i64,
        }
    }

    /// First and one-past-last pixel of unit `i`, before clipping.
    pub fn of(self, i: usize) -> (i64, i64) {
        let first = self.start + (i * self.jump) as i64;
        (first, first + self.size as i64)
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
