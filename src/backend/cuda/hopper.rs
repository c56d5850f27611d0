//! Convolutions in bf16 by Hopper's own instructions (`kernels/conv_hopper.cu`): which they fit, how they are cut, and
//! the tensor maps by which TMA copies their operands.

use std::ffi::c_void;
use std::ptr;

use cudarc::driver::sys::{
    self, CUtensorMap, CUtensorMapDataType, CUtensorMapFloatOOBfill, CUtensorMapInterleave,
    CUtensorMapL2promotion, CUtensorMapSwizzle,
};

use super::device::{Argument, Divisor, failed};
use super::plan::{Direction, Plan, Product, partial, splits};
use crate::Result;
use crate::shape::ConvDims;

// As in kernels/conv_hopper.cu.
const LONG: u32 = 256;
const WIDE: u32 = 128;
const MEDIUM: u32 = 96;
const DEPTH: u32 = 64;
const STAGES: u32 = 4;
const MOST_CLASSES: usize = 4;
const CONSUMERS: u32 = 2;
/// What stands before the stages and behind them: they begin at a multiple of 1024, and mbarriers follow.
const BESIDE_STAGES: u32 = 1024 + 2 * 8 * STAGES;

/// Multiprocessors of the GPUs that this is written for, each with one block. A constant, because a sum must not depend on
/// the machine.
const BLOCKS: u64 = 132;
/// Partial sums that are written and read again in the time of a step of a block: 0.9 microseconds at 75 % of what a
/// large product reaches, and 3 TB/s. An estimate.
const FLOATS_A_STEP: u64 = 350 * 1024;

/// Channels of a box: 64, or 32 where that leaves less of the last one empty.
fn chunk(channels: u32) -> u32 {
    if channels.next_multiple_of(32) < channels.next_multiple_of(64) { 32 } else { 64 }
}

/// Columns of a data gradient's tile.
fn columns(channels: u32) -> u32 {
    if channels.next_multiple_of(MEDIUM) < channels.next_multiple_of(WIDE) { MEDIUM } else { WIDE }
}

/// How to compute `direction` of `dims`, if these kernels can. Its grid has a block for each item.
pub fn plan(direction: Direction, dims: &ConvDims) -> Option<Plan> {
    let whole = dims.groups == 1 && dims.c.is_multiple_of(8) && dims.k.is_multiple_of(8);
    let windows = direction != Direction::BackwardData;
    if !whole || windows && !window_walks(dims).iter().all(Walk::fits) {
        return None;
    }
    let (chunk, pixels) = (chunk(dims.c), dims.n * dims.p * dims.q);
    let boxes = Boxes::new(dims.r, dims.s, dims.c, chunk).count;
    let by_chunk = |of_64, of_32| if chunk == 64 { of_64 } else { of_32 };
    // Tiles down and across, steps of the depth, and values of a step.
    let (kernel, down, across, steps, sides) = match direction {
        Direction::Forward => {
            let kernel = by_chunk("conv_forward_hopper_64", "conv_forward_hopper_32");
            let steps = (boxes * chunk).div_ceil(DEPTH);
            (kernel, pixels.div_ceil(LONG), dims.k.div_ceil(WIDE), steps, LONG + WIDE)
        }
        Direction::BackwardData => {
            let columns = columns(dims.c);
            let kernel = if columns == WIDE {
                "conv_backward_data_hopper"
            } else {
                "conv_backward_data_hopper_medium"
            };
            let classes = class_sizes(dims)?;
            let down = classes.iter().map(|class| class.pixels.count.div_ceil(LONG)).sum();
            // Steps of the longest. The shortest has a quarter of them at least (the taps of two classes differ by one an
            // axis), so that no split of it is empty.
            let steps = classes[0].boxes.count;
            (kernel, down, dims.c.div_ceil(columns), steps, LONG + columns)
        }
        Direction::BackwardFilter => {
            let kernel =
                by_chunk("conv_backward_filter_hopper_64", "conv_backward_filter_hopper_32");
            let across = (boxes * chunk).div_ceil(LONG);
            (kernel, dims.k.div_ceil(WIDE), across, pixels.div_ceil(DEPTH), WIDE + LONG)
        }
    };
    let outputs = Product::new(direction, dims).outputs;
    let tiles = u64::from(down) * u64::from(across);
    let splits = splits(tiles, u64::from(steps), outputs, BLOCKS, FLOATS_A_STEP);
    let items = u32::try_from(tiles * splits).ok()?;
    Some(Plan {
        kernel,
        grid: [items, 1, 1],
        block: 128 * (1 + CONSUMERS),
        shared: BESIDE_STAGES + STAGES * sides * DEPTH * 2,
        most_stages: 0,
        splits: splits as u32,
        partial: partial(splits, outputs),
        cut: Some(Cut {
            tiles: Divisor::new(tiles as u32),
            across: Divisor::new(across),
            splits: splits as u32,
        }),
    })
}

// ---- what kernels are told of sizes: each as in kernels/conv_hopper.cu ----

/// How a product is cut.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    tiles: Divisor,
    across: Divisor,
    splits: u32,
}

/// Pixels of images, by their number.
#[repr(C)]
#[derive(Clone, Copy)]
struct Pixels {
    count: u32,
    per_image: Divisor,
    across: Divisor,
}

impl Pixels {
    fn new(n: u32, down: u32, right: u32) -> Self {
        let across = Divisor::new(right);
        Pixels { count: n * down * right, per_image: Divisor::new(down * right), across }
    }
}

/// Boxes of channels at taps.
#[repr(C)]
#[derive(Clone, Copy)]
struct Boxes {
    count: u32,
    chunks: Divisor,
    across: Divisor,
}

impl Boxes {
    fn new(down: u32, right: u32, channels: u32, chunk: u32) -> Self {
        let chunks = channels.div_ceil(chunk);
        let across = Divisor::new(right);
        Boxes { count: down * right * chunks, chunks: Divisor::new(chunks), across }
    }
}

/// Of a forward pass, or a filter gradient.
#[repr(C)]
pub struct Sizes {
    cut: Cut,
    pixels: Pixels,
    boxes: Boxes,
}

impl Sizes {
    /// Of a convolution with that cut.
    pub fn new(dims: &ConvDims, cut: Cut) -> Self {
        let pixels = Pixels::new(dims.n, dims.p, dims.q);
        Sizes { cut, pixels, boxes: Boxes::new(dims.r, dims.s, dims.c, chunk(dims.c)) }
    }
}

/// An axis of a class, as `ParityAxis` of `kernels/conv.cuh` has it.
#[repr(C)]
#[derive(Clone, Copy)]
struct ClassAxis {
    parity: u32,
    first: u32,
    taps: u32,
    base: u32,
}

/// Of a data gradient: the pixels of the same remainder by the stride, and the taps that they meet.
struct ClassSizes {
    down: ClassAxis,
    right: ClassAxis,
    pixels: Pixels,
    /// Of K.
    boxes: Boxes,
    /// To the right, then down.
    walks: [Walk; 2],
}

/// By the first tap of each axis: so those of most taps come first. `None` where there are too many, or one has no pixels, no
/// taps or no tensor map.
fn class_sizes(dims: &ConvDims) -> Option<Vec<ClassSizes>> {
    // An axis, its pixels, and where those of dy are that the first of them meets.
    let axis = |i: usize, first: u32, input: u32, filter: u32, output: u32| {
        let (stride, pad) = (dims.stride[i], dims.pad[i]);
        let parity = (first + (stride - 1) * pad) % stride;
        let (taps, base) = (filter.saturating_sub(first).div_ceil(stride), (parity + pad) / stride);
        let pixels = input.saturating_sub(parity).div_ceil(stride);
        let lower = i64::from(base) - (i64::from(taps) - 1);
        let whole = pixels > 0 && taps > 0;
        let walk = whole.then(|| Walk::new(lower, pixels, 1, output, taps)).filter(Walk::fits)?;
        Some((ClassAxis { parity, first, taps, base }, pixels, walk))
    };
    let [stride_down, stride_right] = dims.stride;
    let count = stride_down * stride_right;
    let class = |number: u32| {
        let first = [number / stride_right, number % stride_right];
        let (down, rows, walk_down) = axis(0, first[0], dims.h, dims.r, dims.p)?;
        let (right, columns, walk_right) = axis(1, first[1], dims.w, dims.s, dims.q)?;
        let pixels = Pixels::new(dims.n, rows, columns);
        let boxes = Boxes::new(down.taps, right.taps, dims.k, DEPTH);
        Some(ClassSizes { down, right, pixels, boxes, walks: [walk_right, walk_down] })
    };
    if count as usize > MOST_CLASSES { None } else { (0..count).map(class).collect() }
}

/// A class, and where its tiles of rows begin.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Class {
    dy: TensorMap,
    down: ClassAxis,
    right: ClassAxis,
    pixels: Pixels,
    boxes: Boxes,
    first_tile: u32,
}

/// The classes of a data gradient; those behind the last are without meaning.
#[repr(C)]
pub struct Classes {
    of: [Class; MOST_CLASSES],
    count: u32,
}

// SAFETY: `repr(C)`, the same fields as `Cut` in `kernels/conv_hopper.cu`.
unsafe impl Argument for Cut {}
// SAFETY: `repr(C)`, the same fields as `Sizes` there.
unsafe impl Argument for Sizes {}
// SAFETY: `repr(C)`, the same fields as `Classes` there.
unsafe impl Argument for Classes {}
// SAFETY: the same 128 bytes as `TensorMap` in `kernels/hopper.cuh`.
unsafe impl Argument for TensorMap {}

// ---- where TMA goes ----

/// The places along an axis at which a filter's windows begin (its first tap, or for a data gradient its last one), as
/// a tensor map of im2col has them: from `lower` to the tensor's last place and `upper` further, every `step`th.
#[derive(Clone, Copy, Debug)]
struct Walk {
    lower: i64,
    upper: i64,
    step: u32,
    /// Taps behind the first.
    offsets: u32,
}

impl Walk {
    /// Of `count` places.
    fn new(lower: i64, count: u32, step: u32, size: u32, taps: u32) -> Self {
        let last = lower + i64::from(step) * (i64::from(count) - 1);
        Walk { lower, upper: last - (i64::from(size) - 1), step, offsets: taps - 1 }
    }

    /// Whether a tensor map can describe it.
    fn fits(&self) -> bool {
        let corner = -128..=127;
        corner.contains(&self.lower)
            && corner.contains(&self.upper)
            && self.step <= 8
            && self.offsets <= 255
    }
}

/// Of a convolution's windows over x: to the right, then down.
fn window_walks(dims: &ConvDims) -> [Walk; 2] {
    let of = |i: usize, count, size, taps| {
        Walk::new(-i64::from(dims.pad[i]), count, dims.stride[i], size, taps)
    };
    [of(1, dims.q, dims.w, dims.s), of(0, dims.p, dims.h, dims.r)]
}

/// A tensor map: an argument of a kernel. [`CUtensorMap`] is aligned more than the kernel's parameter needs to be.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct TensorMap([u64; 16]);

impl TensorMap {
    /// Of images of bf16 by im2col: boxes of that many pixels, from place to place of the walks, and of so many channels.
    fn im2col(
        tensor: u64,
        [n, h, w, c]: [u32; 4],
        walks: [Walk; 2],
        [channels, pixels]: [u32; 2],
    ) -> Result<Self> {
        let (sizes, strides) = dense(&[c, w, h, n]);
        let (lower, upper) =
            (walks.map(|walk| walk.lower as i32), walks.map(|walk| walk.upper as i32));
        let steps = [1, walks[0].step, walks[1].step, 1];
        let mut map = CUtensorMap { opaque: [0; 16] };
        // SAFETY: the driver reads arrays of that rank (corners: of two axes less) and writes the map.
        unsafe {
            sys::cuTensorMapEncodeIm2col(
                &mut map,
                CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                4,
                ptr::with_exposed_provenance_mut::<c_void>(tensor as usize),
                sizes.as_ptr(),
                strides.as_ptr(),
                lower.as_ptr(),
                upper.as_ptr(),
                channels,
                pixels,
                steps.as_ptr(),
                CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle(channels),
                CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(failed("describe a tensor's windows"))?;
        Ok(TensorMap(map.opaque))
    }

    /// Of a dense tensor of bf16 in boxes; both begin with the axis that is contiguous.
    fn tiled<const RANK: usize>(tensor: u64, sizes: [u32; RANK], of: [u32; RANK]) -> Result<Self> {
        let (sizes, strides) = dense(&sizes);
        let mut map = CUtensorMap { opaque: [0; 16] };
        // SAFETY: the driver reads arrays of that rank (strides: of an axis less) and writes the map.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                RANK as u32,
                ptr::with_exposed_provenance_mut::<c_void>(tensor as usize),
                sizes.as_ptr(),
                strides.as_ptr(),
                of.as_ptr(),
                [1; RANK].as_ptr(),
                CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle(of[0]),
                CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(failed("describe a tensor"))?;
        Ok(TensorMap(map.opaque))
    }
}

/// Sizes of a dense tensor of bf16, contiguous axis first, and the bytes between neighbours along the others.
fn dense(sizes: &[u32]) -> (Vec<u64>, Vec<u64>) {
    let sizes: Vec<u64> = sizes.iter().copied().map(u64::from).collect();
    let strides = sizes[..sizes.len() - 1].iter().scan(2, |bytes, size| {
        *bytes *= size;
        Some(*bytes)
    });
    let strides = strides.collect();
    (sizes, strides)
}

/// As wide as a box of so many values of bf16: 64 or 32.
fn swizzle(values: u32) -> CUtensorMapSwizzle {
    if values == 64 {
        CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B
    } else {
        CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B
    }
}

/// Of a forward pass: x, then w.
pub fn forward_maps(x: u64, w: u64, dims: &ConvDims) -> Result<[TensorMap; 2]> {
    Ok([
        windows(x, dims, LONG)?,
        TensorMap::tiled(w, [dims.c, dims.r * dims.s, dims.k], [chunk(dims.c), 1, WIDE])?,
    ])
}

/// Of a data gradient: the classes with maps of dy, and the map of w.
pub fn backward_data_maps(dy: u64, w: u64, dims: &ConvDims) -> Result<(Classes, TensorMap)> {
    let mut classes = Vec::new();
    let mut first_tile = 0;
    for class in class_sizes(dims).expect("there is a plan") {
        let ClassSizes { down, right, pixels, boxes, walks } = class;
        let dy = TensorMap::im2col(dy, [dims.n, dims.p, dims.q, dims.k], walks, [DEPTH, LONG])?;
        classes.push(Class { dy, down, right, pixels, boxes, first_tile });
        first_tile += pixels.count.div_ceil(LONG);
    }
    let of = std::array::from_fn(|i| classes[i.min(classes.len() - 1)]);
    let chunk = if columns(dims.c) == WIDE { 64 } else { 32 };
    let w = TensorMap::tiled(w, [dims.c, dims.r * dims.s, dims.k], [chunk, 1, DEPTH])?;
    Ok((Classes { of, count: classes.len() as u32 }, w))
}

/// Of a filter gradient: x, then dy.
pub fn backward_filter_maps(x: u64, dy: u64, dims: &ConvDims) -> Result<[TensorMap; 2]> {
    let pixels = dims.n * dims.p * dims.q;
    Ok([windows(x, dims, DEPTH)?, TensorMap::tiled(dy, [dims.k, pixels], [64, DEPTH])?])
}

/// Of x, in boxes of so many pixels.
fn windows(x: u64, dims: &ConvDims, pixels: u32) -> Result<TensorMap> {
    let image = [dims.n, dims.h, dims.w, dims.c];
    TensorMap::im2col(x, image, window_walks(dims), [chunk(dims.c), pixels])
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIRECTIONS: [Direction; 3] =
        [Direction::Forward, Direction::BackwardData, Direction::BackwardFilter];

    fn square(side: u32, [c, k]: [u32; 2], kernel: u32, stride: u32, pad: u32) -> ConvDims {
        let out = (side + 2 * pad - kernel).div_ceil(stride) + 1;
        let (stride, pad) = ([stride; 2], [pad; 2]);
        let of =
            |n, h, r, p| ConvDims { n, h, w: h, c, k, r, s: r, p, q: p, stride, pad, groups: 1 };
        of(256, side, kernel, out)
    }

    #[test]
    fn zfnets_layers_behind_the_first_take_these_kernels() {
        let layers = [
            square(55, [96, 256], 5, 2, 0),
            square(13, [256, 384], 3, 1, 1),
            square(13, [384, 384], 3, 1, 1),
            square(13, [384, 256], 3, 1, 1),
        ];
        let chosen = layers.map(|dims| {
            DIRECTIONS.map(|direction| {
                let plan = plan(direction, &dims).unwrap();
                (plan.kernel, plan.grid[0], plan.splits)
            })
        });
        // Of a batch of 256: items, of which a GPU takes 132 at a time, and splits.
        let [wide, medium] = ["conv_backward_data_hopper", "conv_backward_data_hopper_medium"];
        let [forward_64, forward_32] = ["conv_forward_hopper_64", "conv_forward_hopper_32"];
        let [filter_64, filter_32] =
            ["conv_backward_filter_hopper_64", "conv_backward_filter_hopper_32"];
        let expected = [
            [(forward_32, 1352, 1), (medium, 3025, 1), (filter_32, 260, 13)],
            [(forward_64, 507, 1), (wide, 338, 1), (filter_64, 108, 4)],
            [(forward_64, 507, 1), (wide, 507, 1), (filter_64, 126, 3)],
            [(forward_64, 338, 1), (wide, 507, 1), (filter_64, 112, 4)],
        ];
        assert_eq!(chosen, expected);
    }

    #[test]
    fn what_no_tensor_map_describes_is_left_to_others() {
        let layer = square(13, [64, 64], 3, 1, 1);
        let fits = |dims: ConvDims| DIRECTIONS.map(|direction| plan(direction, &dims).is_some());
        assert_eq!(fits(layer), [true; 3]);
        assert_eq!(fits(ConvDims { groups: 2, ..layer }), [false; 3]);
        assert_eq!(fits(ConvDims { c: 60, ..layer }), [false; 3]);
        assert_eq!(fits(ConvDims { k: 12, ..layer }), [false; 3]);
        // A corner beyond -128, one beyond 127 on the other side, and a stride of more than eight.
        assert_eq!(fits(square(140, [8, 8], 139, 1, 138)), [false; 3]);
        assert_eq!(fits(square(140, [8, 8], 131, 1, 0)), [false; 3]);
        assert_eq!(fits(square(40, [8, 8], 10, 9, 0)), [false; 3]);
        // A data gradient of more than four classes, and one with a class of no taps.
        assert_eq!(fits(square(21, [8, 8], 3, 3, 0)), [true, false, true]);
        assert_eq!(fits(square(21, [8, 8], 1, 2, 0)), [true, false, true]);
    }

    /// The files that are compiled are the ones meant here.
    #[test]
    fn constants_are_those_of_the_kernels() {
        let kernels = include_str!("../../../kernels/conv_hopper.cu");
        for (name, value) in [
            ("LONG", LONG),
            ("WIDE", WIDE),
            ("MEDIUM", MEDIUM),
            ("DEPTH", DEPTH),
            ("STAGES", STAGES),
            ("MOST_CLASSES", MOST_CLASSES as u32),
            ("CONSUMERS", CONSUMERS),
        ] {
            let says = |before: &str, after: &str| format!("{before}{name} = {value}{after}");
            let known =
                ["constexpr int ", ", "].map(|before| [";", ","].map(|end| says(before, end)));
            assert!(known.as_flattened().iter().any(|line| kernels.contains(line)), "{name}");
        }
    }
}
