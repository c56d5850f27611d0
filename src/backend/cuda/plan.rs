//! Which kernel computes a convolution, on which grid, and into how many parts its depth is split.
//! Pure: a plan depends on sizes alone, never on the GPU, so that results do not either.
//!
//! The products, as `kernels/conv_tensor.cu` and `kernels/conv.cu` see them:
//!
//! | direction | rows | columns | depth |
//! |---|---|---|---|
//! | forward | N P Q | K | R S C |
//! | backward data, one for each class of `h % stride`, `w % stride` | its pixels | C | its taps x K |
//! | backward filter | K | R S C | N P Q |
//!
//! Each group has a product of its own, with its C and K.

use super::hopper;
use crate::shape::{ConvDims, PoolDims};

/// The three operations of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// y from x and w.
    Forward,
    /// dx from dy and w.
    BackwardData,
    /// dw from dy and x.
    BackwardFilter,
}

/// What the products are made of, and so which storage the tensors have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// f32, naive loops: what the others are held against.
    Plain,
    /// The same from and to bf16 storage.
    PlainBf16,
    /// f32, in tiles.
    Tiled,
    /// f32 storage, operands rounded to TF32, on tensor cores.
    Tf32,
    /// bf16 storage and operands, on tensor cores.
    Bf16,
    /// The same, where they fit by Hopper's own instructions.
    Hopper,
}

impl Arithmetic {
    /// The instructions, as [`super::CudaBackend::convolutions`] names them.
    pub fn name(self) -> &'static str {
        match self {
            Arithmetic::Plain | Arithmetic::PlainBf16 => "plain",
            Arithmetic::Tiled => "tiles",
            Arithmetic::Tf32 | Arithmetic::Bf16 => "mma.sync",
            Arithmetic::Hopper => "wgmma",
        }
    }

    /// Whether tensors are stored in bf16.
    fn is_bf16(self) -> bool {
        matches!(self, Arithmetic::PlainBf16 | Arithmetic::Bf16 | Arithmetic::Hopper)
    }
}

/// How to launch one convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Its symbol.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory, of a stage if there are any.
    pub shared: u32,
    /// Stages of a tile's depth that may be on their way at a time, at most; 0 if the kernel has none.
    pub most_stages: u32,
    /// Parts that the depth is split into. With more than one, `conv_reduce` has to follow.
    pub splits: u32,
    /// Floats of partial sums: `splits` times the outputs, or none.
    pub partial: usize,
    /// Of a kernel of [`super::hopper`]: a block may take several of the grid's, one after the other, and operands are
    /// tensor maps.
    pub cut: Option<hopper::Cut>,
}

// As in kernels/conv_tensor.cu.
const THREADS: u32 = 256;
const ROWS: u64 = 128;
const WIDE: u64 = 128;
const MEDIUM: u64 = 96;
const NARROW: u64 = 32;
const DEPTH_BYTES: u64 = 128;
const MOST_STAGES: u32 = 3;
const FIRST_FILTERS: u64 = 48;
const FIRST_ACROSS: u64 = 16;
const FIRST_DOWN: u64 = 16;
const FIRST_FILTER_DOWN: u64 = 8;
/// Blocks of a grid along y or z, at most.
const MOST_DEEP: u64 = 65535;
/// Dynamic shared memory that a block may have on every GPU since sm_80.
const MOST_SHARED: u32 = 99 * 1024;

// As in kernels/conv.cu.
const TILE: u64 = 128;
const TILE_DEPTH: u64 = 8;

/// How to compute `direction` of `dims`. `f32_output` asks for f32 results of a bf16 forward pass.
///
/// Groups that fill next to nothing of a tile get the naive loops, whatever the arithmetic, in its
/// storage.
pub fn plan(
    direction: Direction,
    arithmetic: Arithmetic,
    dims: &ConvDims,
    f32_output: bool,
) -> Plan {
    match arithmetic {
        Arithmetic::Plain => plain(direction, false, dims, f32_output),
        Arithmetic::PlainBf16 => plain(direction, true, dims, f32_output),
        _ if !fills_tiles(arithmetic, dims) => {
            plain(direction, arithmetic.is_bf16(), dims, f32_output)
        }
        Arithmetic::Tiled => tiled(direction, dims),
        Arithmetic::Tf32 => tensor(direction, false, dims, f32_output),
        Arithmetic::Bf16 => tensor(direction, true, dims, f32_output),
        Arithmetic::Hopper => {
            let f32_output = f32_output && direction == Direction::Forward;
            let own = if f32_output { None } else { hopper::plan(direction, dims) };
            own.unwrap_or_else(|| tensor(direction, true, dims, f32_output))
        }
    }
}

/// Whether a group has as many channels and filters as 16 bytes hold values (below that a tile is
/// almost all zeros), and the grid a place for every group.
fn fills_tiles(arithmetic: Arithmetic, dims: &ConvDims) -> bool {
    let least = if arithmetic.is_bf16() { 8 } else { 4 };
    let products = u64::from(dims.groups) * dims.stride.map(u64::from).iter().product::<u64>();
    let OfGroup { c, k } = OfGroup::new(dims);
    dims.groups == 1 || c.min(k) >= least && products <= MOST_DEEP
}

/// Channels and filters of one group. `#[repr(C)]`: kernels take the same struct.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct OfGroup {
    c: u32,
    k: u32,
}

impl OfGroup {
    /// Of a convolution.
    pub fn new(dims: &ConvDims) -> Self {
        OfGroup { c: dims.c / dims.groups, k: dims.k / dims.groups }
    }
}

/// The same operation, seen as a convolution of one pixel if it is fully connected. Without this its
/// data gradient would look for every pixel at every tap, and find one.
pub fn flattened(dims: &ConvDims) -> ConvDims {
    if !dims.is_fully_connected() {
        return *dims;
    }
    let (n, c, k) = (dims.n, dims.h * dims.w * dims.c, dims.k);
    let one = ConvDims { h: 1, w: 1, r: 1, s: 1, p: 1, q: 1, ..*dims };
    ConvDims { n, c, k, stride: [1, 1], pad: [0, 0], ..one }
}

/// How many runs of pixels the gradient of a bias is summed in, before these are added.
pub fn chunks_of_bias_gradient(pixels: usize) -> u32 {
    pixels.div_ceil(256).clamp(1, 128) as u32
}

/// The product of a group, or several of the same columns.
pub struct Product {
    /// Of the largest class.
    pub rows: u64,
    /// See the table above, and for the depth of the largest class.
    pub columns: u64,
    pub depth: u64,
    classes: u64,
    groups: u64,
    /// Of all groups.
    pub outputs: u64,
}

impl Product {
    /// Of a convolution.
    pub fn new(direction: Direction, dims: &ConvDims) -> Product {
        let d = |size: u32| u64::from(size);
        let (pixels, taps) = (d(dims.n) * d(dims.p) * d(dims.q), d(dims.r) * d(dims.s));
        let (OfGroup { c, k }, groups) = (OfGroup::new(dims), d(dims.groups));
        let [c, k] = [c, k].map(d);
        let (rows, columns, depth, classes, outputs) = match direction {
            Direction::Forward => (pixels, k, taps * c, 1, pixels * d(dims.k)),
            Direction::BackwardFilter => (k, taps * c, pixels, 1, d(dims.k) * taps * c),
            Direction::BackwardData => {
                let [down, right] = dims.stride.map(d);
                let pixels = d(dims.n) * d(dims.h).div_ceil(down) * d(dims.w).div_ceil(right);
                let taps = d(dims.r).div_ceil(down) * d(dims.s).div_ceil(right);
                let outputs = d(dims.n) * d(dims.h) * d(dims.w) * d(dims.c);
                (pixels, c, taps * k, down * right, outputs)
            }
        };
        Product { rows, columns, depth, classes, groups, outputs }
    }
}

/// Blocks that run at once on the GPUs that this is written for: two on each of 132 multiprocessors.
/// A constant, because a sum must not depend on the machine.
const BLOCKS: u64 = 264;
/// Partial sums that are written and read again in the time of a step: 1.4 microseconds, at 3 TB/s. An estimate.
const FLOATS_A_STEP: u64 = 512 * 1024;

/// Into how many parts to split the depth of `tiles` tiles, `steps` steps each, where so many `blocks` run at once: as many as
/// make the time least, counted in steps of a block. Estimates, not measurements: to fill the stages and to
/// write the results takes about four steps, and so many partial sums as long as one. A product that fills the machine
/// four times over is not split, so that no more than 17 million floats are ever needed.
pub fn splits(tiles: u64, steps: u64, outputs: u64, blocks: u64, floats_a_step: u64) -> u64 {
    let cost = |splits: u64| {
        let waves = (tiles * splits).div_ceil(blocks);
        let partial = if splits > 1 { splits * outputs / floats_a_step } else { 0 };
        waves * (steps.div_ceil(splits) + 4) + partial
    };
    let most = (steps / 4).min(4 * blocks / tiles).max(1);
    (1..=most).min_by_key(|&splits| cost(splits)).unwrap_or(1)
}

/// Floats of the partial sums of so many splits.
pub fn partial(splits: u64, outputs: u64) -> usize {
    if splits > 1 { (splits * outputs) as usize } else { 0 }
}

fn plain(direction: Direction, bf16: bool, dims: &ConvDims, f32_output: bool) -> Plan {
    let (kernel, outputs) = match (direction, bf16) {
        (Direction::Forward, true) if f32_output => {
            ("conv_forward_plain_bf16_f32", dims.output().len())
        }
        (Direction::Forward, true) => ("conv_forward_plain_bf16", dims.output().len()),
        (Direction::Forward, false) => ("conv_forward_plain_f32", dims.output().len()),
        (Direction::BackwardData, true) => ("conv_backward_data_plain_bf16", dims.input().len()),
        (Direction::BackwardData, false) => ("conv_backward_data_plain_f32", dims.input().len()),
        (Direction::BackwardFilter, true) => {
            ("conv_backward_filter_plain_bf16", dims.filter().len())
        }
        (Direction::BackwardFilter, false) => {
            ("conv_backward_filter_plain_f32", dims.filter().len())
        }
    };
    let grid = [outputs.div_ceil(THREADS as usize) as u32, 1, 1];
    Plan {
        kernel,
        grid,
        block: THREADS,
        shared: 0,
        most_stages: 0,
        splits: 1,
        partial: 0,
        cut: None,
    }
}

fn tiled(direction: Direction, dims: &ConvDims) -> Plan {
    let kernel = match direction {
        Direction::Forward => "conv_forward_tiled",
        Direction::BackwardData => "conv_backward_data_tiled",
        Direction::BackwardFilter => "conv_backward_filter_tiled",
    };
    let product = Product::new(direction, dims);
    let (down, right) = (product.rows.div_ceil(TILE), product.columns.div_ceil(TILE));
    let products = product.classes * product.groups;
    let (tiles, steps) = (down * right * products, product.depth.div_ceil(TILE_DEPTH));
    let splits = splits(tiles, steps, product.outputs, BLOCKS, FLOATS_A_STEP);
    Plan {
        kernel,
        grid: [down as u32, right as u32, (products * splits) as u32],
        block: THREADS,
        shared: 0,
        most_stages: 0,
        splits: splits as u32,
        partial: partial(splits, product.outputs),
        cut: None,
    }
}

/// The first layer's own kernels, which read three channels without gathering them one by one, where
/// they fit.
fn first(direction: Direction, bf16: bool, dims: &ConvDims) -> Option<Plan> {
    let padded = u64::from(dims.s).next_multiple_of(4);
    let size: u64 = if bf16 { 2 } else { 4 };
    let fits = dims.c == 3
        && dims.groups == 1
        && matches!(padded, 8 | 12)
        && u64::from(dims.r) <= padded
        && dims.stride[1].is_multiple_of(2)
        && dims.k.is_multiple_of(8);
    if !fits || direction == Direction::BackwardData {
        return None;
    }
    let [r, k, n, p, q] = [dims.r, dims.k, dims.n, dims.p, dims.q].map(u64::from);
    let filter_tiles = k.div_ceil(FIRST_FILTERS);
    let tiles = |down: u64| n * p.div_ceil(down) * q.div_ceil(FIRST_ACROSS);
    let patch = |down: u64| {
        let [stride_down, stride_right] = dims.stride.map(u64::from);
        let rows = (down - 1) * stride_down + r;
        let columns = (FIRST_ACROSS - 1) * stride_right + padded;
        rows * columns.next_multiple_of(4) * 4 * size
    };
    let plan = if direction == Direction::Forward {
        let slabs = u64::from(THREADS) / 32 * 16 * (FIRST_FILTERS + 8) * 4;
        let shared = FIRST_FILTERS * (r * padded * 4 * size + 16) + slabs.max(patch(FIRST_DOWN));
        // Each block lays out the filters once, and then takes tile after tile.
        let blocks = tiles(FIRST_DOWN).min((2 * BLOCKS).div_ceil(filter_tiles));
        Plan {
            kernel: if bf16 { "conv_forward_first_bf16" } else { "conv_forward_first_tf32" },
            grid: [blocks as u32, filter_tiles as u32, 1],
            block: THREADS,
            shared: shared as u32,
            most_stages: 0,
            splits: 1,
            partial: 0,
            cut: None,
        }
    } else {
        // Three blocks on a multiprocessor, where one takes few registers.
        let blocks = if padded == 8 && bf16 { 3 * BLOCKS / 2 } else { BLOCKS };
        let splits = tiles(FIRST_FILTER_DOWN).min(blocks.div_ceil(filter_tiles));
        let gradients = FIRST_FILTER_DOWN * FIRST_ACROSS * (FIRST_FILTERS + 8) * size;
        let stage = gradients + patch(FIRST_FILTER_DOWN);
        Plan {
            kernel: match (padded, bf16) {
                (8, true) => "conv_backward_filter_first_8_bf16",
                (_, true) => "conv_backward_filter_first_12_bf16",
                (8, false) => "conv_backward_filter_first_8_tf32",
                (_, false) => "conv_backward_filter_first_12_tf32",
            },
            grid: [1, filter_tiles as u32, splits as u32],
            block: 32 * dims.r,
            shared: stage as u32,
            most_stages: if 2 * stage <= u64::from(MOST_SHARED) { 2 } else { 1 },
            splits: splits as u32,
            partial: partial(splits, dims.filter().len() as u64),
            cut: None,
        }
    };
    (plan.shared <= MOST_SHARED).then_some(plan)
}

/// The filter gradient of a first layer that is max pooled, from the gradient of the pooled output, where its
/// kernel unpools: [`plan`]'s, but for the kernel and its shared memory, so that sums are the same.
pub fn pooled_filter(arithmetic: Arithmetic, dims: &ConvDims, pool: &PoolDims) -> Option<Plan> {
    let size = match arithmetic {
        Arithmetic::Bf16 | Arithmetic::Hopper => 2,
        Arithmetic::Tf32 => 4,
        _ => return None,
    };
    let fits = (pool.window, pool.stride) == ([3; 2], [2; 2])
        && pool.pad.iter().all(|pad| pad.is_multiple_of(2))
        && !dims.is_fully_connected();
    let plan = first(Direction::BackwardFilter, size == 2, dims).filter(|_| fits)?;
    let kernel = match plan.kernel {
        "conv_backward_filter_first_8_bf16" => "conv_backward_filter_first_pooled_8_bf16",
        "conv_backward_filter_first_12_bf16" => "conv_backward_filter_first_pooled_12_bf16",
        "conv_backward_filter_first_8_tf32" => "conv_backward_filter_first_pooled_8_tf32",
        _ => "conv_backward_filter_first_pooled_12_tf32",
    };
    // Stages have windows in the place of dy's tile, which there is once.
    let [down, across, filters] =
        [FIRST_FILTER_DOWN, FIRST_ACROSS, FIRST_FILTERS].map(|v| v as u32);
    let tile = down * across * (filters + 8) * size;
    let windows = (down / 2 + 1) * (across / 2 + 1) * filters * (size + 1);
    let stage = plan.shared - tile + windows;
    let most_stages = if tile + 2 * stage <= MOST_SHARED { 2 } else { 1 };
    let shared = (tile + most_stages * stage) / most_stages;
    (shared * most_stages <= MOST_SHARED).then_some(Plan { kernel, shared, most_stages, ..plan })
}

fn tensor(direction: Direction, bf16: bool, dims: &ConvDims, f32_output: bool) -> Plan {
    let f32_output = f32_output && bf16 && direction == Direction::Forward;
    if !f32_output && let Some(plan) = first(direction, bf16, dims) {
        return plan;
    }
    let product = Product::new(direction, dims);
    let chunk = if bf16 { 8 } else { 4 };
    let OfGroup { c, k } = OfGroup::new(dims);
    let whole =
        c.is_multiple_of(chunk) && (direction == Direction::Forward || k.is_multiple_of(chunk));
    let filter = direction == Direction::BackwardFilter;
    let narrow = !filter && product.columns <= NARROW;
    let padded = |width: u64| product.columns.next_multiple_of(width);
    let medium = !filter && !f32_output && whole && padded(MEDIUM) < padded(WIDE);
    let (width, variant) = match (narrow, medium, whole) {
        (true, ..) => (NARROW, 3),
        (_, true, _) => (MEDIUM, 1),
        (.., true) => (WIDE, 0),
        (.., false) => (WIDE, 2),
    };
    // Wide, medium, wide for any number of channels, narrow for any number.
    let kernel = match (direction, bf16) {
        _ if f32_output => [
            "conv_forward_bf16_f32",
            "",
            "conv_forward_bf16_f32_any",
            "conv_forward_bf16_f32_narrow",
        ],
        (Direction::Forward, true) => [
            "conv_forward_bf16",
            "conv_forward_bf16_medium",
            "conv_forward_bf16_any",
            "conv_forward_bf16_narrow",
        ],
        (Direction::Forward, false) => [
            "conv_forward_tf32",
            "conv_forward_tf32_medium",
            "conv_forward_tf32_any",
            "conv_forward_tf32_narrow",
        ],
        (Direction::BackwardData, true) => [
            "conv_backward_data_bf16",
            "conv_backward_data_bf16_medium",
            "conv_backward_data_bf16_any",
            "conv_backward_data_bf16_narrow",
        ],
        (Direction::BackwardData, false) => [
            "conv_backward_data_tf32",
            "conv_backward_data_tf32_medium",
            "conv_backward_data_tf32_any",
            "conv_backward_data_tf32_narrow",
        ],
        (Direction::BackwardFilter, true) => {
            ["conv_backward_filter_bf16", "", "conv_backward_filter_bf16_any", ""]
        }
        (Direction::BackwardFilter, false) => {
            ["conv_backward_filter_tf32", "", "conv_backward_filter_tf32_any", ""]
        }
    }[variant];
    // A row of the tile of B takes at least 128 bytes, and 96 columns take up the room of 128.
    let stage = (ROWS + if narrow { 64 } else { WIDE }) * DEPTH_BYTES;
    let tiles = product.rows.div_ceil(ROWS) * product.columns.div_ceil(width) * product.classes;
    let depth = DEPTH_BYTES / if bf16 { 2 } else { 4 };
    let steps = product.depth.div_ceil(depth);
    let splits = splits(tiles * product.groups, steps, product.outputs, BLOCKS, FLOATS_A_STEP);
    Plan {
        kernel,
        grid: [tiles as u32, product.groups as u32, splits as u32],
        block: THREADS,
        shared: stage as u32,
        most_stages: MOST_STAGES,
        splits: splits as u32,
        partial: partial(splits, product.outputs),
        cut: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIRECTIONS: [Direction; 3] =
        [Direction::Forward, Direction::BackwardData, Direction::BackwardFilter];
    const ARITHMETICS: [Arithmetic; 5] = [
        Arithmetic::Plain,
        Arithmetic::Tiled,
        Arithmetic::Tf32,
        Arithmetic::Bf16,
        Arithmetic::Hopper,
    ];

    /// `n` images of `c` maps, `side` pixels square, by `k` filters.
    fn square(n: u32, side: u32, c: u32, k: u32, kernel: u32, stride: u32, pad: u32) -> ConvDims {
        let out = (side + 2 * pad - kernel).div_ceil(stride) + 1;
        ConvDims {
            n,
            h: side,
            w: side,
            c,
            k,
            r: kernel,
            s: kernel,
            p: out,
            q: out,
            stride: [stride; 2],
            pad: [pad; 2],
            groups: 1,
        }
    }

    fn zfnet(n: u32) -> [ConvDims; 8] {
        [
            square(n, 224, 3, 96, 7, 2, 0),
            square(n, 55, 96, 256, 5, 2, 0),
            square(n, 13, 256, 384, 3, 1, 1),
            square(n, 13, 384, 384, 3, 1, 1),
            square(n, 13, 384, 256, 3, 1, 1),
            square(n, 6, 256, 4096, 6, 1, 0),
            square(n, 1, 4096, 4096, 1, 1, 0),
            square(n, 1, 4096, 10, 1, 1, 0),
        ]
    }

    /// Every plan for these sizes, with the product it is for.
    fn plans(dims: &ConvDims) -> Vec<(Direction, Arithmetic, Plan, Product)> {
        let mut all = Vec::new();
        for direction in DIRECTIONS {
            for arithmetic in ARITHMETICS {
                for f32_output in [false, true] {
                    let plan = plan(direction, arithmetic, dims, f32_output);
                    all.push((direction, arithmetic, plan, Product::new(direction, dims)));
                }
            }
        }
        all
    }

    #[test]
    fn plans_fit_every_gpu_and_their_partial_sums() {
        for n in [1, 2, 7, 128, 1000, 1024, 2048] {
            let classes = [769, 1000].map(|classes| square(n, 1, 4096, classes, 1, 1, 0));
            let grouped = alexnet_grouped(n).into_iter().chain([
                ConvDims { groups: 4096, ..square(n, 1, 1 << 15, 1 << 15, 1, 1, 0) },
                ConvDims { groups: 4096, ..square(n, 5, 1 << 15, 1 << 15, 1, 5, 0) },
            ]);
            for dims in zfnet(n).into_iter().chain(classes).chain(grouped) {
                for (direction, arithmetic, plan, product) in plans(&flattened(&dims)) {
                    let what = format!("{direction:?} {arithmetic:?} {dims:?}: {plan:?}");
                    let [_, y, z] = plan.grid;
                    assert!(plan.grid.iter().all(|&size| size > 0), "{what}");
                    let shared = plan.shared * plan.most_stages.max(1);
                    let most = if plan.cut.is_some() { 227 << 10 } else { MOST_SHARED };
                    assert!(y <= 65535 && z <= 65535 && shared <= most, "{what}");
                    assert!(plan.block.is_multiple_of(32) && plan.block <= 1024, "{what}");
                    let sums = u64::from(plan.splits) * product.outputs;
                    let partial = if plan.splits > 1 { sums as usize } else { 0 };
                    assert_eq!(plan.partial, partial, "{what}");
                    assert!(plan.partial <= (4 * BLOCKS * TILE * TILE) as usize, "{what}");
                }
            }
        }
    }

    #[test]
    fn one_image_keeps_most_of_the_machine_busy_in_fully_connected_layers() {
        let [.., fc6, fc7, _] = zfnet(1).map(|dims| flattened(&dims));
        for dims in [fc6, fc7] {
            for direction in DIRECTIONS {
                let plan = plan(direction, Arithmetic::Bf16, &dims, false);
                let blocks: u32 = plan.grid.iter().product();
                assert!(blocks >= 192, "{plan:?}");
            }
        }
    }

    #[test]
    fn flattening_keeps_tensors_and_work() {
        for dims in zfnet(3) {
            let flat = flattened(&dims);
            assert_eq!(flat.multiply_adds(), dims.multiply_adds());
            for (was, is) in [
                (dims.input(), flat.input()),
                (dims.filter(), flat.filter()),
                (dims.output(), flat.output()),
            ] {
                assert_eq!((was.n, was.len()), (is.n, is.len()));
            }
            assert_eq!(flat != dims, dims.h == 6, "{dims:?}");
        }
    }

    /// AlexNet's layers of two groups.
    fn alexnet_grouped(n: u32) -> [ConvDims; 3] {
        [
            square(n, 27, 96, 256, 5, 1, 2),
            square(n, 13, 384, 384, 3, 1, 1),
            square(n, 13, 384, 256, 3, 1, 1),
        ]
        .map(|dims| ConvDims { groups: 2, ..dims })
    }

    #[test]
    fn small_groups_take_the_naive_loops() {
        let dims = ConvDims { groups: 4, ..square(1, 9, 12, 32, 3, 1, 1) };
        for (_, arithmetic, plan, _) in plans(&dims) {
            let bf16 = arithmetic.is_bf16();
            assert!(plan.kernel.contains("_plain_"), "{plan:?}");
            assert_eq!(plan.kernel.contains("bf16"), bf16, "{plan:?}");
        }
    }

    /// A grid of blocks for each group: as many as the layer of its size alone has, if none is split. (Hopper's own
    /// instructions are for layers without groups.)
    #[test]
    fn groups_take_the_kernels_of_a_layer_of_their_size() {
        for dims in alexnet_grouped(256) {
            let alone = ConvDims { c: dims.c / 2, k: dims.k / 2, groups: 1, ..dims };
            for ((_, arithmetic, plan, product), (.., of_one, one)) in
                plans(&dims).into_iter().zip(plans(&alone))
            {
                if of_one.cut.is_some() {
                    assert!(plan.cut.is_none(), "{dims:?}");
                    continue;
                }
                assert_eq!(plan.kernel, of_one.kernel, "{dims:?}");
                assert_eq!(product.outputs, 2 * one.outputs, "{dims:?}");
                if plan.splits == 1 && of_one.splits == 1 && arithmetic != Arithmetic::Plain {
                    let blocks = |plan: &Plan| plan.grid.iter().product::<u32>();
                    assert_eq!(blocks(&plan), 2 * blocks(&of_one), "{plan:?}");
                }
            }
        }
    }

    #[test]
    fn channels_choose_the_kernel() {
        let kernel = |direction, dims| plan(direction, Arithmetic::Bf16, &dims, false).kernel;
        let [conv1, conv2, .., fc8] = zfnet(8);
        assert_eq!(kernel(Direction::Forward, conv1), "conv_forward_first_bf16");
        assert_eq!(kernel(Direction::BackwardData, conv1), "conv_backward_data_bf16_narrow");
        assert_eq!(kernel(Direction::BackwardFilter, conv1), "conv_backward_filter_first_8_bf16");
        assert_eq!(kernel(Direction::Forward, conv2), "conv_forward_bf16");
        assert_eq!(kernel(Direction::BackwardData, conv2), "conv_backward_data_bf16_medium");
        assert_eq!(kernel(Direction::Forward, fc8), "conv_forward_bf16_narrow");
        assert_eq!(kernel(Direction::BackwardData, fc8), "conv_backward_data_bf16_any");
        assert_eq!(kernel(Direction::BackwardFilter, fc8), "conv_backward_filter_bf16_any");
    }

    /// Of the common pooling, with the sums of the kernel that reads what is unpooled, in shared memory that
    /// as many blocks of a multiprocessor have.
    #[test]
    fn a_pooled_first_layer_is_unpooled_by_its_kernel() {
        let conv = &square(256, 224, 3, 96, 7, 2, 0);
        let (n, k, p, q) = (conv.n, conv.k, 55, 55);
        let (h, w, window, stride, pad) = (conv.p, conv.q, [3; 2], [2; 2], [0; 2]);
        let pool = PoolDims { n, h, w, c: k, p, q, window, stride, pad, any_sign: 0 };
        for (arithmetic, suffix) in [(Arithmetic::Tf32, "tf32"), (Arithmetic::Bf16, "bf16")] {
            let pooled = pooled_filter(arithmetic, conv, &pool).expect("of a common pooling");
            let whole = plan(Direction::BackwardFilter, arithmetic, conv, false);
            let shared = |plan: &Plan| plan.shared * plan.most_stages;
            assert_eq!(pooled.kernel, format!("conv_backward_filter_first_pooled_8_{suffix}"));
            assert!(shared(&pooled) <= shared(&whole), "{pooled:?}, {whole:?}");
            let Plan { kernel, shared, .. } = whole;
            assert_eq!(Plan { kernel, shared, ..pooled }, whole);
        }
        let of = |arithmetic, pool| pooled_filter(arithmetic, conv, &pool);
        assert_eq!(of(Arithmetic::Tiled, pool), None);
        assert_eq!(of(Arithmetic::Bf16, PoolDims { window: [2; 2], ..pool }), None);
        assert_eq!(of(Arithmetic::Bf16, PoolDims { pad: [1; 2], ..pool }), None);
    }

    /// The files that are compiled are the ones meant here.
    #[test]
    fn constants_and_names_are_those_of_the_kernels() {
        let tensor = include_str!("../../../kernels/conv_tensor.cu");
        let conv = include_str!("../../../kernels/conv.cu");
        let hopper = include_str!("../../../kernels/conv_hopper.cu");
        for (name, value) in [
            ("THREADS", u64::from(THREADS)),
            ("ROWS", ROWS),
            ("WIDE", WIDE),
            ("MEDIUM", MEDIUM),
            ("NARROW", NARROW),
            ("DEPTH_BYTES", DEPTH_BYTES),
            ("MOST_STAGES", u64::from(MOST_STAGES)),
            ("FIRST_FILTERS", FIRST_FILTERS),
            ("FIRST_ACROSS", FIRST_ACROSS),
            ("FIRST_DOWN", FIRST_DOWN),
            ("FIRST_FILTER_DOWN", FIRST_FILTER_DOWN),
        ] {
            let says =
                |before: &str| [";", ","].map(|after| format!("{before}{name} = {value}{after}"));
            let known = [says("constexpr int "), says(", ")].concat();
            assert!(known.iter().any(|line| tensor.contains(line)), "{name}");
        }
        assert!(conv.contains(&format!("TILE = {TILE}, DEPTH = {TILE_DEPTH}, ")));
        for dims in zfnet(8).into_iter().chain([square(8, 9, 5, 10, 3, 1, 1)]) {
            for (.., plan, _) in plans(&dims) {
                let exported = [tensor, conv, hopper].iter().any(|file| file.contains(plan.kernel));
                let by_macro = plan.kernel.contains("_plain_"); // its suffix is an argument there
                assert!(exported || by_macro, "{}", plan.kernel);
            }
        }
    }
}
