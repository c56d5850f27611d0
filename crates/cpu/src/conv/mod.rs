//! Convolution in its three directions, by the method that suits its sizes:
//!
//! - `dense`: fully connected layers, whose weights are read once for all samples;
//! - `winograd`: 3x3 filters, and 5x5 ones with a stride of 2, with a third of the multiplications;
//! - `direct`: everything else, and everything with `--exact`, as products over patches.
//!
//! On the way back from few images to their inputs `sparse` replaces them, if enough of what goes back is
//! zero: so are the deconvnet's maps.
//!
//! All of them pack operands for the tiles of `gemm.rs`. Work is cut by sizes alone, and sums
//! over pixels are made in a fixed number of parts, added in order: results do not depend on threads.

mod dense;
mod direct;
mod pack;
mod sparse;
mod winograd;

use std::ops::Range;
use std::sync::Mutex;

use crate::gemm::{DEPTH, Words};
use crate::isa::Isa;
use crate::memory::Storage;
use crate::pointwise::{bias_relu, relu, round};
use direct::OutputGradient;
use zfnet_core::shape::{ConvDims, PoolDims};

/// How products are made.
#[derive(Clone, Copy)]
pub struct Arithmetic {
    /// The instructions.
    pub isa: Isa,
    /// What is multiplied.
    pub words: Words,
    /// Whether Winograd's method may be used.
    pub winograd: bool,
}

impl Arithmetic {
    /// For filter gradients by Winograd's method: of operands that are bf16 already it makes, in f32,
    /// what their products are, faster than pairs of pixels can be packed.
    fn of_filters(self) -> Self {
        Arithmetic { words: Words::F32, ..self }
    }

    /// Values of a block of the depth that fits a packed row.
    fn depth_step(self) -> usize {
        match self.words {
            Words::F32 => DEPTH,
            Words::Bf16Pairs => 2 * DEPTH,
        }
    }

    /// Cuts a depth into blocks of about one size that fit a packed row.
    fn depth_blocks(self, depth: usize) -> impl Iterator<Item = Range<usize>> {
        let count = depth.div_ceil(self.depth_step());
        let step = depth.div_ceil(count).next_multiple_of(2);
        (0..depth).step_by(step).map(move |start| start..(start + step).min(depth))
    }
}

/// Words that convolutions need beside their tensors, for packed operands and partial sums.
#[derive(Clone, Copy, Default)]
pub struct ScratchSize {
    /// On each thread.
    pub thread: usize,
    /// By all of them.
    pub shared: usize,
}

impl ScratchSize {
    /// For each of these convolutions, in every direction.
    pub fn of(arithmetic: Arithmetic, convolutions: &[ConvDims]) -> Self {
        let needs = convolutions.iter().map(|dims| {
            let sizes = &Sizes::new(dims);
            let sizes_of_both = [arithmetic, arithmetic.of_filters()].map(|arithmetic| {
                let sparse = || sparse::scratch_size(sizes, arithmetic);
                match method(sizes, arithmetic) {
                    Method::Dense => dense::scratch_size(sizes, arithmetic).or(sparse()),
                    Method::Direct => direct::scratch_size(sizes, arithmetic).or(sparse()),
                    Method::Winograd => {
                        // Fewer images may not be worth it.
                        let fewer = &Sizes::new(&dims.with_n(winograd::most_without(sizes)));
                        winograd::scratch_size(sizes, arithmetic)
                            .or(direct::scratch_size(fewer, arithmetic))
                            .or(sparse())
                    }
                }
            });
            sizes_of_both[0].or(sizes_of_both[1])
        });
        needs.fold(ScratchSize::default(), ScratchSize::or)
    }

    fn or(self, other: ScratchSize) -> ScratchSize {
        let thread = self.thread.max(other.thread);
        ScratchSize { thread, shared: self.shared.max(other.shared) }
    }
}

/// Storage of a [`ScratchSize`].
pub struct Scratch {
    threads: Vec<Mutex<Storage>>,
    shared: Storage,
}

impl Scratch {
    /// Of storage for each thread of the pool, and for all of them.
    pub fn new(threads: Vec<Storage>, shared: Storage) -> Self {
        Scratch { threads: threads.into_iter().map(Mutex::new).collect(), shared }
    }
}

/// Runs `work` with the calling thread's buffer. Each thread of the pool has its own, so it is always free.
fn with_scratch<T>(threads: &[Mutex<Storage>], work: impl FnOnce(&mut [f32]) -> T) -> T {
    let thread = rayon::current_thread_index().unwrap_or(0);
    work(&mut threads[thread].lock().expect("a thread panicked while it held its buffer"))
}

enum Method {
    Dense,
    Winograd,
    Direct,
}

fn method(sizes: &Sizes, arithmetic: Arithmetic) -> Method {
    if sizes.dense {
        Method::Dense
    } else if arithmetic.winograd && winograd::suits(sizes, arithmetic) {
        Method::Winograd
    } else {
        Method::Direct
    }
}

/// `y = conv(x, w)`, then the epilogue.
pub fn forward(
    arithmetic: Arithmetic,
    y: &mut [f32],
    x: &[f32],
    weight: &[f32],
    epilogue: &Epilogue<'_>,
    dims: &ConvDims,
    scratch: &mut Scratch,
) {
    let sizes = &Sizes::new(dims);
    let run = match method(sizes, arithmetic) {
        Method::Dense => dense::forward,
        Method::Winograd => winograd::forward,
        Method::Direct => direct::forward,
    };
    run(arithmetic, y, x, weight, epilogue, sizes, scratch);
}

/// `dx = conv^T(dy, w)`, then the epilogue, which has no bias.
pub fn backward_data(
    arithmetic: Arithmetic,
    dx: &mut [f32],
    dy: &[f32],
    weight: &[f32],
    epilogue: &Epilogue<'_>,
    dims: &ConvDims,
    scratch: &mut Scratch,
) {
    let sizes = &Sizes::new(dims);
    let method = method(sizes, arithmetic);
    let run = match method {
        _ if sparse::suits(sizes, dy, &method) => sparse::backward_data,
        Method::Dense => dense::backward_data,
        Method::Winograd => winograd::backward_data,
        Method::Direct => direct::backward_data,
    };
    run(arithmetic, dx, dy, weight, epilogue, sizes, scratch);
}

/// `dw = sum over output pixels of dy * patch`, `db = sum of dy`; added to what is there with
/// `accumulate`.
pub fn backward_filter(
    arithmetic: Arithmetic,
    dw: &mut [f32],
    db: &mut [f32],
    dy: &[f32],
    x: &[f32],
    accumulate: bool,
    dims: &ConvDims,
    scratch: &mut Scratch,
) {
    let sizes = &Sizes::new(dims);
    let arithmetic = match method(sizes, arithmetic.of_filters()) {
        Method::Winograd => arithmetic.of_filters(),
        _ => arithmetic,
    };
    let run = match method(sizes, arithmetic) {
        Method::Dense => dense::backward_filter,
        Method::Winograd => winograd::backward_filter,
        Method::Direct => {
            let dy = OutputGradient::Values(dy);
            return direct::backward_filter(arithmetic, dw, db, dy, x, accumulate, sizes, scratch);
        }
    };
    run(arithmetic, dw, db, dy, x, accumulate, sizes, scratch);
}

/// Whether a convolution and the max pooling of its output can be one operation.
pub fn pools(arithmetic: Arithmetic, dims: &ConvDims, pool: &PoolDims) -> bool {
    let sizes = &Sizes::new(dims);
    matches!(method(sizes, arithmetic), Method::Direct) && direct::pools(sizes, pool)
}

/// `y = maxpool(epilogue(conv(x, w)))`, with its switches.
pub fn forward_pooled(
    arithmetic: Arithmetic,
    y: (&mut [f32], &mut [u8]),
    x: &[f32],
    weight: &[f32],
    epilogue: &Epilogue<'_>,
    (dims, pool): (&ConvDims, &PoolDims),
    scratch: &mut Scratch,
) {
    let sizes = &Sizes::new(dims);
    direct::forward_pooled(arithmetic, y, x, weight, epilogue, (sizes, pool), scratch);
}

/// As [`backward_filter`], where `dy` is the gradient of the pooled output.
pub fn backward_filter_pooled(
    arithmetic: Arithmetic,
    dw: &mut [f32],
    db: &mut [f32],
    (dy, switches): (&[f32], &[u8]),
    x: &[f32],
    accumulate: bool,
    (dims, pool): (&ConvDims, &PoolDims),
    scratch: &mut Scratch,
) {
    let sizes = &Sizes::new(dims);
    let dy = OutputGradient::Pooled(dy, switches, pool);
    direct::backward_filter(arithmetic, dw, db, dy, x, accumulate, sizes, scratch);
}

/// What happens to sums before they are stored.
#[derive(Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// Added to rows of all filters.
    pub bias: Option<&'a [f32]>,
    /// Below zero becomes zero.
    pub relu: bool,
    /// Round to bf16.
    pub round: bool,
}

impl Epilogue<'_> {
    /// Of rows of all filters.
    fn run(&self, isa: Isa, y: &mut [f32]) {
        match self.bias {
            Some(bias) => bias_relu(isa, y, bias, self.relu),
            None if self.relu => relu(isa, y),
            None => {}
        }
        if self.round {
            round(isa, y);
        }
    }
}

/// [`ConvDims`] as `usize`, and what follows from them.
#[derive(Clone, Copy)]
struct Sizes {
    n: usize,
    h: usize,
    w: usize,
    c: usize,
    k: usize,
    r: usize,
    s: usize,
    p: usize,
    q: usize,
    stride: [usize; 2],
    pad: [usize; 2],
    groups: usize,
    /// Channels that a filter sees: `c / groups`.
    channels: usize,
    /// Filters of a group: `k / groups`.
    filters: usize,
    /// Output pixels of all images.
    pixels: usize,
    /// Values of a patch of one group: `r * s * channels`.
    patch: usize,
    /// Whether every filter covers its whole input.
    dense: bool,
}

/// An output pixel: image, row, column.
#[derive(Clone, Copy)]
struct Place(usize, usize, usize);

impl Sizes {
    fn new(dims: &ConvDims) -> Self {
        let [n, h, w, c] = [dims.n, dims.h, dims.w, dims.c].map(|v| v as usize);
        let [k, r, s, p, q] = [dims.k, dims.r, dims.s, dims.p, dims.q].map(|v| v as usize);
        let groups = dims.groups as usize;
        let (channels, filters) = (c / groups, k / groups);
        Sizes {
            n,
            h,
            w,
            c,
            k,
            r,
            s,
            p,
            q,
            stride: dims.stride.map(|v| v as usize),
            pad: dims.pad.map(|v| v as usize),
            groups,
            channels,
            filters,
            pixels: n * p * q,
            patch: r * s * channels,
            dense: dims.is_fully_connected(),
        }
    }

    /// Where output pixel `pixel` of all images lies.
    #[inline(always)]
    fn place(&self, pixel: usize) -> Place {
        Place(pixel / (self.p * self.q), pixel / self.q % self.p, pixel % self.q)
    }

    /// The output pixel after this one.
    #[inline(always)]
    fn next(&self, Place(image, y, x): Place) -> Place {
        if x + 1 < self.q {
            Place(image, y, x + 1)
        } else if y + 1 < self.p {
            Place(image, y + 1, 0)
        } else {
            Place(image + 1, 0, 0)
        }
    }

    /// Where an output pixel's window begins, if all of it is in the image.
    #[inline(always)]
    fn inside(&self, Place(image, y, x): Place) -> Option<usize> {
        let (top, left) = (y * self.stride[0], x * self.stride[1]);
        let within = top >= self.pad[0]
            && left >= self.pad[1]
            && top + self.r <= self.h + self.pad[0]
            && left + self.s <= self.w + self.pad[1];
        let row = || image * self.h + top - self.pad[0];
        within.then(|| (row() * self.w + left - self.pad[1]) * self.c)
    }

    /// Visits each contiguous run of values `depth` of an output pixel's patch.
    #[inline(always)]
    fn runs(
        &self,
        Place(image, y, x): Place,
        group: usize,
        depth: &Range<usize>,
        visitor: &mut impl Visitor,
    ) {
        let channels = self.channels;
        let left = (x * self.stride[1]) as isize - self.pad[1] as isize;
        let first = (-left).clamp(0, self.s as isize) as usize;
        let last = (self.w as isize - left).clamp(first as isize, self.s as isize) as usize;
        let line = self.s * channels;
        for r in depth.start / line..depth.end.div_ceil(line) {
            let row = (y * self.stride[0] + r) as isize - self.pad[0] as isize;
            let start = r * line;
            if row < 0 || row >= self.h as isize || first == last {
                visit(start..start + line, None, depth, visitor);
                continue;
            }
            visit(start..start + first * channels, None, depth, visitor);
            let column = (left + first as isize) as usize;
            let input =
                ((image * self.h + row as usize) * self.w + column) * self.c + group * channels;
            if self.groups == 1 {
                let inside = start + first * channels..start + last * channels;
                visit(inside, Some(input), depth, visitor);
            } else {
                for s in first..last {
                    let from = start + s * channels;
                    let input = input + (s - first) * self.c;
                    visit(from..from + channels, Some(input), depth, visitor);
                }
            }
            visit(start + last * channels..start + line, None, depth, visitor);
        }
    }
}

/// What is done with the runs of a patch. A trait, since closures that are not inlined do not have
/// the instructions of the function around them.
trait Visitor {
    /// A run of `len` values from value `at` of the visited depth on, which lies at `input` from the
    /// start of all images, or outside the image.
    fn run(&mut self, at: usize, len: usize, input: Option<usize>);
}

/// Visits the part of a run that is in `depth`.
#[inline(always)]
fn visit(
    run: Range<usize>,
    input: Option<usize>,
    depth: &Range<usize>,
    visitor: &mut impl Visitor,
) {
    let (start, end) = (run.start.max(depth.start), run.end.min(depth.end));
    if start < end {
        let input = input.map(|input| input + start - run.start);
        visitor.run(start - depth.start, end - start, input);
    }
}
