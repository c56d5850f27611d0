//! Convolution in its three directions, by the method that suits its sizes:
//!
//! - `dense`: fully connected layers, whose weights are read once for all samples;
//! - `winograd`: 3x3 filters, and 5x5 ones with a stride of 2, with a third of the multiplications;
//! - `direct`: everything else, and everything with `--exact`, as products over patches;
//! - `sparse`: in the place of any of these, data gradients of few images that are zero for the most part:
//!   the deconvnet's.
//!
//! Most of them pack operands for the tiles of `gemm.rs`. Work is cut by sizes (and by the zeros of an image), and sums
//! over pixels are made in a fixed number of parts, added in order: results do not depend on threads.

mod dense;
mod direct;
mod pack;
mod sparse;
mod winograd;

use std::ops::Range;
use std::sync::Mutex;

use crate::gemm::{self, DEPTH, Prepared, Products};
use crate::isa::Isa;
use crate::memory::Storage;
use crate::pointwise::{bias_relu, narrow, relu};
use crate::values::{Element, Values, ValuesMut, by_element};
use direct::OutputGradient;
use zfnet_core::shape::{ConvDims, PoolDims};

/// How convolutions are computed.
#[derive(Clone, Copy)]
pub struct Arithmetic {
    /// The instructions.
    pub isa: Isa,
    /// How products are made: in pairs only of operands that are stored as bf16.
    pub products: Products,
    /// Whether Winograd's method may be used.
    pub winograd: bool,
}

impl Arithmetic {
    /// For filter gradients: by Winograd's method, in f32, if pairs are the alternative. It takes fewer
    /// products than pairs save time.
    fn of_filters(self, sizes: &Sizes) -> Self {
        let widened = Arithmetic { products: Products::F32, ..self };
        match (self.products, method(sizes, widened)) {
            (Products::Bf16Pairs, Method::Winograd) => widened,
            _ => self,
        }
    }

    /// Rows and columns of a tile.
    fn block(self) -> (usize, usize) {
        gemm::block(self.isa, self.products)
    }

    /// For a task of many tiles.
    fn prepare(self) -> Prepared {
        Prepared::new(self.isa, self.products)
    }

    /// Values of a block of the depth that fits a packed row, and of such a block's columns.
    fn depth_step(self) -> usize {
        match self.products {
            Products::F32 => DEPTH,
            Products::Bf16Pairs => 2 * DEPTH,
            // A block's rows are half of a first cache of 48 KB; the columns come from the second.
            Products::Bf16Tiles => DEPTH,
        }
    }

    /// The largest depth of rows that are packed by [`pack::pack_transposed`].
    fn most_transposed(self) -> usize {
        match self.products {
            Products::Bf16Tiles => self.products.values(DEPTH),
            _ => usize::MAX,
        }
    }

    /// Cuts a depth into blocks of about one size that fit a packed row.
    fn depth_blocks(self, depth: usize) -> impl Iterator<Item = Range<usize>> {
        let count = depth.div_ceil(self.depth_step());
        // Whole words, and whole steps of the matrix unit.
        let multiple = self.products.values(1);
        let step = depth.div_ceil(count).next_multiple_of(multiple);
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
            let filters = arithmetic.of_filters(sizes);
            // Fewer images may not be worth Winograd's method.
            let fewer = &Sizes::new(&dims.with_n(winograd::most_without(sizes)));
            let pixels = match method(sizes, arithmetic) {
                Method::Dense => {
                    return dense::scratch_size(sizes, arithmetic)
                        .or(sparse::scratch_size(sizes, arithmetic));
                }
                Method::Direct => direct::scratch_size(sizes, arithmetic),
                Method::Winograd => winograd::scratch_size(sizes, arithmetic)
                    .or(direct::scratch_size(fewer, arithmetic)),
            };
            let filters = match method(sizes, filters) {
                Method::Winograd => winograd::scratch_size(sizes, filters)
                    .or(direct::filter_scratch_size(fewer, arithmetic)),
                _ => direct::filter_scratch_size(sizes, filters),
            };
            pixels.or(filters).or(sparse::scratch_size(sizes, arithmetic))
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
    threads: Vec<Mutex<Storage<f32>>>,
    shared: Storage<f32>,
}

impl Scratch {
    /// Of storage for each thread of the pool, and for all of them.
    pub fn new(threads: Vec<Storage<f32>>, shared: Storage<f32>) -> Self {
        Scratch { threads: threads.into_iter().map(Mutex::new).collect(), shared }
    }
}

/// Runs `work` with the calling thread's buffer. Each thread of the pool has its own, so it is always free.
fn with_scratch<T>(threads: &[Mutex<Storage<f32>>], work: impl FnOnce(&mut [f32]) -> T) -> T {
    let thread = rayon::current_thread_index().unwrap_or(0);
    work(&mut threads[thread].lock().expect("a thread panicked while it held its buffer"))
}

#[derive(Clone, Copy)]
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

/// `y = conv(x, w)`, then the epilogue. `y` may be f32 where operands are bf16.
pub fn forward(
    arithmetic: Arithmetic,
    y: ValuesMut<'_>,
    x: Values<'_>,
    weight: Values<'_>,
    epilogue: &Epilogue<'_>,
    dims: &ConvDims,
    scratch: &mut Scratch,
) {
    let sizes = &Sizes::new(dims);
    match y {
        ValuesMut::F32(y) => by_element!(; x, weight => {
            forward_of(arithmetic, y, x, weight, epilogue, sizes, scratch);
        }),
        ValuesMut::Bf16(y) => by_element!(; x, weight => {
            forward_of(arithmetic, y, x, weight, epilogue, sizes, scratch);
        }),
    }
}

fn forward_of<Y: Element, X: Element>(
    arithmetic: Arithmetic,
    y: &mut [Y],
    x: &[X],
    weight: &[X],
    epilogue: &Epilogue<'_>,
    sizes: &Sizes,
    scratch: &mut Scratch,
) {
    let run = match method(sizes, arithmetic) {
        Method::Dense => dense::forward,
        Method::Winograd => winograd::forward,
        Method::Direct => direct::forward,
    };
    run(arithmetic, y, x, weight, epilogue, sizes, scratch);
}

/// `dx = conv^T(dy, w)`.
pub fn backward_data(
    arithmetic: Arithmetic,
    dx: ValuesMut<'_>,
    dy: Values<'_>,
    weight: Values<'_>,
    dims: &ConvDims,
    scratch: &mut Scratch,
) {
    by_element!(dx; dy, weight => {
        data_of(arithmetic, dx, dy, weight, &Sizes::new(dims), scratch);
    });
}

fn data_of<T: Element>(
    arithmetic: Arithmetic,
    dx: &mut [T],
    dy: &[T],
    weight: &[T],
    sizes: &Sizes,
    scratch: &mut Scratch,
) {
    let method = method(sizes, arithmetic);
    let [input, output] = [sizes.h * sizes.w * sizes.c, sizes.p * sizes.q * sizes.k];
    // Each image by itself: its sums do not depend on its neighbours' zeros.
    let sparse = |image: usize| {
        let dy = &dy[image * output..][..output];
        sparse::suits(sizes, arithmetic, dy, &method)
    };
    let mut first = 0;
    while first < sizes.n {
        let is_sparse = sparse(first);
        let end = (first + 1..sizes.n).find(|image| sparse(*image) != is_sparse);
        let images = first..end.unwrap_or(sizes.n);
        let run = match method {
            _ if is_sparse => sparse::backward_data,
            Method::Dense => dense::backward_data,
            Method::Winograd => winograd::backward_data,
            Method::Direct => direct::backward_data,
        };
        let n = images.len();
        let sizes = &Sizes { n, pixels: n * sizes.p * sizes.q, ..*sizes };
        let dx = &mut dx[images.start * input..images.end * input];
        let dy = &dy[images.start * output..images.end * output];
        run(arithmetic, dx, dy, weight, sizes, scratch);
        first = images.end;
    }
}

/// `dw = sum over output pixels of dy * patch`, `db = sum of dy`; added to what is there with
/// `accumulate`.
pub fn backward_filter(
    arithmetic: Arithmetic,
    dw: &mut [f32],
    db: &mut [f32],
    dy: Values<'_>,
    x: Values<'_>,
    accumulate: bool,
    dims: &ConvDims,
    scratch: &mut Scratch,
) {
    let sizes = &Sizes::new(dims);
    let arithmetic = arithmetic.of_filters(sizes);
    by_element!(; dy, x => {
        let run = match method(sizes, arithmetic) {
            Method::Dense => dense::backward_filter,
            Method::Winograd => winograd::backward_filter,
            Method::Direct => {
                let dy = OutputGradient::Values(dy);
                return direct::backward_filter(arithmetic, dw, db, dy, x, accumulate, sizes, scratch);
            }
        };
        run(arithmetic, dw, db, dy, x, accumulate, sizes, scratch);
    });
}

/// Whether a convolution and the max pooling of its output can be one operation.
pub fn pools(arithmetic: Arithmetic, dims: &ConvDims, pool: &PoolDims) -> bool {
    let sizes = &Sizes::new(dims);
    // Filter gradients have a method of their own.
    [arithmetic, arithmetic.of_filters(sizes)]
        .iter()
        .all(|arithmetic| matches!(method(sizes, *arithmetic), Method::Direct))
        && direct::pools(sizes, arithmetic, pool)
}

/// `y = maxpool(epilogue(conv(x, w)))`, with its switches.
pub fn forward_pooled(
    arithmetic: Arithmetic,
    y: (ValuesMut<'_>, &mut [u8]),
    x: Values<'_>,
    weight: Values<'_>,
    epilogue: &Epilogue<'_>,
    (dims, pool): (&ConvDims, &PoolDims),
    scratch: &mut Scratch,
) {
    let (sizes, (y, switches)) = (&Sizes::new(dims), y);
    by_element!(y; x, weight => {
        let (y, sizes) = ((y, switches), (sizes, pool));
        direct::forward_pooled(arithmetic, y, x, weight, epilogue, sizes, scratch);
    });
}

/// As [`backward_filter`], where `dy` is the gradient of the pooled output.
pub fn backward_filter_pooled(
    arithmetic: Arithmetic,
    dw: &mut [f32],
    db: &mut [f32],
    (dy, switches): (Values<'_>, &[u8]),
    x: Values<'_>,
    accumulate: bool,
    (dims, pool): (&ConvDims, &PoolDims),
    scratch: &mut Scratch,
) {
    let sizes = &Sizes::new(dims);
    by_element!(; dy, x => {
        let dy = OutputGradient::Pooled(dy, switches, pool);
        direct::backward_filter(arithmetic, dw, db, dy, x, accumulate, sizes, scratch);
    });
}

/// What happens to sums before they are stored.
#[derive(Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// Added to rows of all filters.
    pub bias: Option<&'a [f32]>,
    /// Below zero becomes zero.
    pub relu: bool,
}

impl Epilogue<'_> {
    /// Of rows of all filters.
    fn run(&self, isa: Isa, sums: &mut [f32]) {
        match self.bias {
            Some(bias) => bias_relu(isa, sums, bias, self.relu),
            None if self.relu => relu(isa, sums),
            None => {}
        }
    }

    /// The same of sums that are where [`Element::sums`] has put them, which are then stored.
    fn finish<Y: Element>(&self, isa: Isa, y: &mut [Y], buffer: &mut [f32]) {
        self.run(isa, Y::sums(y, buffer));
        keep(isa, y, buffer);
    }
}

/// Rounds sums from where [`Element::sums`] has put them to where they are stored.
fn keep<Y: Element>(isa: Isa, y: &mut [Y], buffer: &[f32]) {
    if size_of::<Y>() < size_of::<f32>() {
        narrow(isa, y, &buffer[..y.len()]);
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
    /// Rows above the input and columns left of it; below zero, those of the input that come before the
    /// first window.
    pad: [isize; 2],
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

/// Pixels of an input that see the same taps of the filters.
struct Parity {
    /// The convolution that makes their gradient of the output's.
    sizes: Sizes,
    /// The first row and column.
    offset: [usize; 2],
    /// Where the taps lie in a filter, in the order of a patch.
    taps: Vec<usize>,
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
            pad: dims.pad.map(|v| v as isize),
            groups,
            channels,
            filters,
            pixels: n * p * q,
            patch: r * s * channels,
            dense: dims.is_fully_connected(),
        }
    }

    /// The input's pixels of one parity: rows and columns that are `offset` beyond a multiple of the
    /// stride. `None` if there are none.
    fn parity(&self, offset: [usize; 2]) -> Option<Parity> {
        let Sizes { n, h, w, c, k, r, s, p, q, stride, groups, channels, filters, .. } = *self;
        // Along each axis: pixels, the taps that these see (the last one first), and how many rows of
        // zeros that takes before the output.
        let axis = |axis: usize, size: usize, taps: usize| {
            let padded = offset[axis] + self.pad[axis] as usize;
            let (first, skipped) = (padded % stride[axis], padded / stride[axis]);
            let taps: Vec<usize> = (first..taps).step_by(stride[axis]).rev().collect();
            let pad = taps.len() as isize - 1 - skipped as isize;
            (size.saturating_sub(offset[axis]).div_ceil(stride[axis]), taps, pad)
        };
        let (rows, taps_y, pad_y) = axis(0, h, r);
        let (columns, taps_x, pad_x) = axis(1, w, s);
        let places = |y: &usize| taps_x.iter().map(move |x| (y * s + x) * channels).collect();
        let taps: Vec<Vec<usize>> = taps_y.iter().map(places).collect();
        let sizes = Sizes {
            n,
            h: p,
            w: q,
            c: k,
            k: c,
            r: taps_y.len(),
            s: taps_x.len(),
            p: rows,
            q: columns,
            stride: [1, 1],
            pad: [pad_y, pad_x],
            groups,
            channels: filters,
            filters: channels,
            pixels: n * rows * columns,
            patch: taps_y.len() * taps_x.len() * filters,
            dense: false,
        };
        (sizes.pixels > 0).then(|| Parity { sizes, offset, taps: taps.concat() })
    }

    /// All of them.
    fn parities(&self) -> impl Iterator<Item = Parity> {
        let [y, x] = self.stride;
        (0..y * x).filter_map(move |parity| self.parity([parity / x, parity % x]))
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
        let start = |at: usize, axis: usize| (at * self.stride[axis]) as isize - self.pad[axis];
        let (top, left) = (start(y, 0), start(x, 1));
        let within = top >= 0
            && left >= 0
            && top + self.r as isize <= self.h as isize
            && left + self.s as isize <= self.w as isize;
        within.then(|| ((image * self.h + top as usize) * self.w + left as usize) * self.c)
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
        let left = (x * self.stride[1]) as isize - self.pad[1];
        let first = (-left).clamp(0, self.s as isize) as usize;
        let last = (self.w as isize - left).clamp(first as isize, self.s as isize) as usize;
        let line = self.s * channels;
        for r in depth.start / line..depth.end.div_ceil(line) {
            let row = (y * self.stride[0] + r) as isize - self.pad[0];
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
