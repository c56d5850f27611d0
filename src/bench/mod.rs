//! One harness for speed: a row for each operation of each layer, projections, whole training steps
//! and whole forward passes.
//!
//! A row's id is `network/layer/op/precision/batch/device`; `zfnet bench` and `cargo bench` run the
//! same rows. What a row reaches is set beside what the machine can do, measured in the same run:
//! multiply-adds a second (from registers; on a GPU with cuBLASLt also those of a large product,
//! whichever are more), and bytes a second copied.

pub mod loader;

use std::hint::black_box;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::backend::cpu::CpuBackend;
use crate::backend::{
    Backend, Crop, Dropout, Param, ReluRule, SeedUnit, SgdConstants, StepState, Tensor,
};
use crate::data::classes::Classes;
use crate::model::{
    Conv, InputStage, Kind, Layer, MaxPool, Model, Network, Params, Preprocess, Purpose, Rule,
    Workspace,
};
use crate::shape::{PoolDims, Shape};
use crate::train::Trainer;
use crate::{Error, Result};

/// What an operation of a layer does; the names of `--op`.
pub const OPS: [&str; 7] = [
    "forward",
    "forward-pooled",
    "backward-data",
    "backward-filter",
    "backward-filter-pooled",
    "update",
    "project",
];

/// Projections at a time of the rows `project`: one image's nine, as on the paper's pages.
const SEEDS: usize = 9;

/// A backend whose speed can be measured.
pub trait Benchmark: Backend {
    /// What the machine can do in this backend's precision, measured now.
    ///
    /// # Errors
    /// If a backend operation fails.
    fn peaks(&self) -> Result<Peaks>;

    /// Seconds that each of several runs took, after one that is not counted: at least five, for
    /// about half a second.
    ///
    /// # Errors
    /// If a run fails.
    fn seconds(&self, run: &mut dyn FnMut() -> Result<()>) -> Result<Vec<f64>>;

    /// Bytes of a cache that operands must not be found in again, because in a training step they
    /// would not be. 0 where runs may follow each other on the same operands.
    fn cache(&self) -> usize;

    /// Names of the kernels and libraries that operations have used since the last call of this; the first
    /// call begins the list. Empty where they have no names.
    fn kernels_used(&self) -> Vec<&'static str> {
        Vec::new()
    }
}

impl Benchmark for CpuBackend {
    fn peaks(&self) -> Result<Peaks> {
        const LEN: usize = 1 << 24;
        let (mut to, from) = (vec![0.0f32; LEN], vec![1.0f32; LEN]);
        let copy = self.seconds(&mut || {
            self.copy(black_box(&mut to), black_box(&from));
            Ok(())
        })?;
        const ROUNDS: usize = 1 << 20;
        let flops = self.multiply_adds(ROUNDS);
        let multiply = self.seconds(&mut || {
            black_box(self.multiply_adds(black_box(ROUNDS)));
            Ok(())
        })?;
        let (copy, multiply) = (Spread::of(copy).median, Spread::of(multiply).median);
        Ok(Peaks { gflops: flops / multiply / 1e9, gbytes: 8.0 * LEN as f64 / copy / 1e9 })
    }

    fn seconds(&self, run: &mut dyn FnMut() -> Result<()>) -> Result<Vec<f64>> {
        wall_clock(run)
    }

    fn cache(&self) -> usize {
        0
    }
}

#[cfg(feature = "cuda")]
impl Benchmark for crate::backend::cuda::CudaBackend {
    fn peaks(&self) -> Result<Peaks> {
        let registers = self.multiply_adds_per_second()?;
        let product = self.product_per_second()?.unwrap_or(0.0);
        Ok(Peaks { gflops: registers.max(product) / 1e9, gbytes: self.copied_per_second()? / 1e9 })
    }

    fn seconds(&self, run: &mut dyn FnMut() -> Result<()>) -> Result<Vec<f64>> {
        self.seconds(run)
    }

    fn cache(&self) -> usize {
        self.cache()
    }

    fn kernels_used(&self) -> Vec<&'static str> {
        self.kernels_used()
    }
}

/// [`Benchmark::seconds`] by the clock on the wall, for runs that are done when they return.
pub(crate) fn wall_clock(run: &mut dyn FnMut() -> Result<()>) -> Result<Vec<f64>> {
    run()?;
    let begun = Instant::now();
    let mut times = Vec::new();
    while times.len() < 5 || begun.elapsed() < Duration::from_millis(400) {
        let start = Instant::now();
        run()?;
        times.push(start.elapsed().as_secs_f64());
    }
    Ok(times)
}

/// The middle of several times, and how far apart they lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Half of them are shorter.
    pub median: f64,
    /// From the first quarter of them to the last, as a share of the median.
    pub quartiles: f64,
}

impl Spread {
    /// Of at least one time.
    pub fn of(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        let at = |quarter: usize| times[(times.len() - 1) * quarter / 4];
        Spread { median: times[times.len() / 2], quartiles: (at(3) - at(1)) / at(2) }
    }
}

/// An operation to be timed.
pub struct Case<'a> {
    /// `network/layer/op/precision/batch/device`.
    pub id: String,
    /// Floating-point operations, or bytes that must be moved at least.
    pub work: Work,
    network: &'a Network,
    layer: usize,
    op: &'static str,
    batch: usize,
}

/// What is to be timed.
pub type Run<'a> = Box<dyn FnMut() -> Result<()> + 'a>;

/// What limits an operation, and how much of it there is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Work {
    /// Floating-point operations (two for each multiply-add).
    Flops(f64),
    /// Bytes read and written at least once.
    Bytes(f64),
}

/// A timed operation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// `network/layer/op/precision/batch/device`.
    pub id: String,
    /// Median time of one run.
    pub milliseconds: f64,
    /// From the first quartile of the times to the third, as a share of the median.
    #[serde(default)]
    pub spread: f64,
    /// 10^9 floating-point operations a second, for what arithmetic limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gflops: Option<f64>,
    /// 10^9 bytes a second, for what memory limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gbytes: Option<f64>,
    /// Images a second, of whole training steps and whole forward passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images_per_second: Option<f64>,
    /// Share of the machine's measured peak of the same kind.
    pub share: f64,
    /// On a GPU: the kernels and libraries that an operation has used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernels: Vec<String>,
}

/// What the machine can do.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Peaks {
    /// 10^9 floating-point operations a second, of multiply-adds.
    pub gflops: f64,
    /// 10^9 bytes a second read and written, copying.
    pub gbytes: f64,
}

/// The rows of a network, for layers and operations of these names (all of them where none is named).
///
/// # Errors
/// If a layer is not there, or no row is left.
pub fn cases<'a, B: Backend>(
    backend: &B,
    network: &'a Network,
    batch: usize,
    layers: &[String],
    ops: &[String],
) -> Result<Vec<Case<'a>>> {
    for name in layers {
        network.layer(name)?;
    }
    let wanted = |names: &[String], name: &str| names.is_empty() || names.iter().any(|n| n == name);
    let mut cases = Vec::new();
    for (index, l) in network.layers.iter().enumerate() {
        let mut rows = operations(l, index, batch, backend.precision().bytes() as f64);
        if matches!(l.kind, Kind::Conv(_)) {
            let below = network.layers[..=index].iter().map(Layer::multiply_adds).sum::<u64>();
            rows.push(("project", Work::Flops(2.0 * (SEEDS as u64 * below) as f64)));
        }
        // As training runs them, where the backend does both at once.
        if let (0, Some(dims), Some(pool)) = (index, l.convolution(), pool_of_first(network))
            && backend.supports_conv_pool(&dims.with_n(batch), &pool.with_n(batch))
        {
            let flops = Work::Flops(2.0 * dims.with_n(batch).multiply_adds() as f64);
            rows.extend([("forward-pooled", flops), ("backward-filter-pooled", flops)]);
        }
        for (name, work) in rows {
            if wanted(layers, &l.name) && wanted(ops, name) {
                let batch = if name == "project" { SEEDS } else { batch };
                let id = id_of(backend, network, &l.name, name, batch);
                cases.push(Case { id, work, network, layer: index, op: name, batch });
            }
        }
    }
    if cases.is_empty() {
        let named = |names: &[String]| match names {
            [] => "any".into(),
            names => names.join(" or "),
        };
        let (layer, op) = (named(layers), named(ops));
        return Err(Error::Network(format!(
            "nothing to measure: layer {layer} has no operation {op}"
        )));
    }
    Ok(cases)
}

/// The max pooling that follows the first layer and its relu.
fn pool_of_first(network: &Network) -> Option<&PoolDims> {
    let relu = matches!(network.layers.get(1)?.kind, Kind::Relu(_));
    network.layers.get(2)?.pooling().filter(|_| relu)
}

fn id_of<B: Backend>(
    backend: &B,
    network: &Network,
    layer: &str,
    op: &str,
    batch: usize,
) -> String {
    let (precision, device) = (backend.precision().name(), backend.device());
    format!("{}/{layer}/{op}/{precision}/{batch}/{device}", network.architecture.name)
}

/// The operations of a layer and their work, for activations of so many `bytes`; the first layer's
/// data gradient is left out, since training does not ask for it.
fn operations(layer: &Layer, index: usize, batch: usize, bytes: f64) -> Vec<(&'static str, Work)> {
    let count = |shape: Shape| (shape.len() * batch) as f64;
    let (x, y) = (bytes * count(layer.input), bytes * count(layer.output));
    let switches = count(layer.output);
    match &layer.kind {
        Kind::Conv(Conv { dims, .. }) | Kind::FullyConnected(Conv { dims, .. }) => {
            let flops = Work::Flops(2.0 * dims.with_n(batch).multiply_adds() as f64);
            let parameters = layer.parameters() as f64;
            let mut rows = vec![("forward", flops), ("backward-filter", flops)];
            if index > 0 {
                rows.insert(1, ("backward-data", flops));
            }
            // Weight and velocity read and written, the gradient read, a copy in storage written.
            let copy = if bytes < 4.0 { bytes } else { 0.0 };
            rows.push(("update", Work::Bytes((4.0 * 5.0 + copy) * parameters)));
            rows
        }
        Kind::MaxPool(_) => vec![
            ("forward", Work::Bytes(x + y + switches)),
            ("backward-data", Work::Bytes(x + y + switches)),
        ],
        Kind::Lrn(_) => {
            vec![("forward", Work::Bytes(x + y)), ("backward-data", Work::Bytes(2.0 * x + y))]
        }
        Kind::Relu(_) => vec![("backward-data", Work::Bytes(2.0 * x + y))],
        // Its operations are a convolution's, which have their rows.
        Kind::ConvTranspose(_) => Vec::new(),
        Kind::Dropout(_) => vec![("forward", Work::Bytes(x + y))],
    }
}

impl Case<'_> {
    /// Makes the tensors and returns what is to be timed.
    ///
    /// # Errors
    /// If the backend is out of memory.
    pub fn prepare<'b, B: Benchmark>(&'b self, backend: &'b B) -> Result<Run<'b>> {
        if self.op == "project" {
            return self.prepare_projection(backend);
        }
        // As many sets of operands as it takes for none to be left in a cache when its turn comes.
        let layer = &self.network.layers[self.layer];
        let samples = if self.op == "update" { 1 } else { self.batch };
        let values = samples * (layer.input.len() + layer.output.len());
        let bytes = values * backend.precision().bytes() + 4 * layer.parameters();
        let sets = (2 * backend.cache()).div_ceil(bytes.max(1)).clamp(1, 64);
        let mut runs =
            (0..sets).map(|_| self.prepare_operation(backend)).collect::<Result<Vec<Run<'b>>>>()?;
        let mut turn = 0;
        Ok(Box::new(move || {
            turn = (turn + 1) % runs.len();
            runs[turn]()
        }))
    }

    /// The deconvnet's backward pass from nine units of one image, and the pictures' way to the host.
    /// Only what the units can reach is computed; the work counted is that of whole maps, as others
    /// do it, so that a share of the peak may be above 1.
    fn prepare_projection<'b, B: Backend>(&'b self, backend: &'b B) -> Result<Run<'b>> {
        let network = self.network;
        let params = Params::init(backend, network, 0)?;
        let purpose = Purpose::Project { seeds: SEEDS };
        let mut workspace = Workspace::new(backend, network, purpose, 1)?;
        fill(backend, &mut workspace.input)?;
        workspace.forward(backend, &params)?;
        let images = backend.indices(SEEDS)?; // all of them the first
        let shape = network.layers[self.layer].output.with_n(SEEDS);
        let unit = |i: usize| {
            let place = [i % shape.c, i * 7 % shape.h, i * 5 % shape.w];
            let [map, y, x] = place.map(|v| v as u32);
            SeedUnit { map, y, x, value: 1.0 }
        };
        let units: Vec<SeedUnit> = (0..SEEDS).map(unit).collect();
        let mut pictures = vec![0.0; SEEDS * network.input().len()];
        Ok(Box::new(move || {
            let (layer, rule) = (self.layer, Rule::DECONVNET);
            workspace.project(backend, &params, layer, rule, &images, &units, &mut pictures)
        }))
    }

    fn prepare_operation<'b, B: Backend>(&'b self, backend: &'b B) -> Result<Run<'b>> {
        let layer = &self.network.layers[self.layer];
        let state = backend.state()?;
        // An update looks at no activation.
        let n = if self.op == "update" { 1 } else { self.batch };
        let mut x = noise(backend, layer.input.with_n(n))?;
        let mut y = noise(backend, layer.output.with_n(n))?;
        Ok(match (layer.kind, self.op) {
            (Kind::Conv(Conv { dims, .. }) | Kind::FullyConnected(Conv { dims, .. }), op) => {
                let dims = dims.with_n(n);
                let mut scratch = backend.scratch(&[dims])?;
                let mut w = Param::weights(backend, &dims)?;
                fill(backend, &mut w.weight)?;
                let mut g = Param::zeros(backend, &dims)?;
                let mut v = Param::zeros(backend, &dims)?;
                let sgd = SgdConstants { momentum: 0.9, weight_decay: 5e-4 };
                match op {
                    "forward" => Box::new(move || {
                        let (weight, bias) = (&w.weight, Some(&w.bias));
                        backend.conv_forward(&mut y, &x, weight, bias, true, &dims, &mut scratch)
                    }),
                    "backward-data" => Box::new(move || {
                        backend.conv_backward_data(&mut x, &y, &w.weight, &dims, &mut scratch)
                    }),
                    "backward-filter" => Box::new(move || {
                        backend.conv_backward_filter(&mut g, &y, &x, false, &dims, &mut scratch)
                    }),
                    "forward-pooled" | "backward-filter-pooled" => {
                        let pool = pool_of_first(self.network).expect("a row of its own");
                        let pool = pool.with_n(n);
                        backend.prepare_conv_pool(&mut scratch, &dims)?;
                        let mut pooled = noise(backend, pool.output())?;
                        let mut switches = backend.bytes(pool.output().len())?;
                        let mut run = move |down: bool| {
                            let (y, s, scratch) = (&mut pooled, &mut switches, &mut scratch);
                            if down {
                                let (g, add) = (&mut g, false);
                                return backend.conv_pool_backward_filter(
                                    g, y, s, &x, add, &dims, &pool, scratch,
                                );
                            }
                            let (weight, bias) = (&w.weight, &w.bias);
                            backend.conv_pool_forward(y, s, &x, weight, bias, &dims, &pool, scratch)
                        };
                        run(false)?; // for the switches
                        Box::new(move || run(op != "forward-pooled"))
                    }
                    _ => Box::new(move || {
                        backend.sgd_step(&mut w.weight, &mut v.weight, &g.weight, &sgd, &state)
                    }),
                }
            }
            (Kind::MaxPool(MaxPool { dims }), op) => {
                let dims = dims.with_n(n);
                let mut switches = backend.bytes(dims.output().len())?;
                backend.maxpool_forward(&mut y, &mut switches, &x, &dims)?;
                if op == "forward" {
                    Box::new(move || backend.maxpool_forward(&mut y, &mut switches, &x, &dims))
                } else {
                    Box::new(move || {
                        backend.maxpool_backward(&mut x, &y, &switches, None, true, &dims)
                    })
                }
            }
            (Kind::Lrn(lrn), "forward") => Box::new(move || backend.lrn_forward(&mut y, &x, &lrn)),
            (Kind::Lrn(lrn), _) => {
                let mut dx = noise(backend, layer.input.with_n(n))?;
                Box::new(move || backend.lrn_backward(&mut dx, &y, &x, None, &lrn))
            }
            (Kind::ConvTranspose(_), _) => unreachable!("has no row"),
            (Kind::Relu(_), _) => {
                let rule = ReluRule { forward_mask: true, relu_down: false };
                Box::new(move || backend.relu_backward(&mut y, &x, None, rule))
            }
            (Kind::Dropout(layer), _) => {
                let dropout = Dropout { rate: layer.rate, layer: self.layer as u32 };
                Box::new(move || backend.dropout(&mut y, &x, &dropout, &state))
            }
        })
    }

    /// Times the case.
    ///
    /// # Errors
    /// If the backend is out of memory or an operation of it fails.
    pub fn measure<B: Benchmark>(&self, backend: &B, peaks: &Peaks) -> Result<Row> {
        let mut run = self.prepare(backend)?;
        backend.kernels_used(); // begins the list
        let Spread { median, quartiles } = Spread::of(backend.seconds(&mut run)?);
        let kernels = backend.kernels_used().into_iter().map(String::from).collect();
        let rate = |work: f64| work / median / 1e9;
        let (gflops, gbytes, share) = match self.work {
            Work::Flops(flops) => (Some(rate(flops)), None, rate(flops) / peaks.gflops),
            Work::Bytes(bytes) => (None, Some(rate(bytes)), rate(bytes) / peaks.gbytes),
        };
        let (id, milliseconds) = (self.id.clone(), median * 1e3);
        let (spread, images_per_second) = (quartiles, None);
        Ok(Row { id, milliseconds, spread, gflops, gbytes, images_per_second, share, kernels })
    }
}

/// An activation of numbers from -1 to 1 in no particular order.
fn noise<B: Backend>(backend: &B, shape: Shape) -> Result<Tensor<B>> {
    let mut tensor = backend.activations(shape)?;
    fill(backend, &mut tensor)?;
    Ok(tensor)
}

/// Numbers from -1 to 1 in no particular order, the same again after a while.
fn fill<B: Backend>(backend: &B, tensor: &mut Tensor<B>) -> Result<()> {
    const PERIOD: usize = 65_521; // a prime: no two rows of a tensor are alike
    let mut number = 1u32;
    let values: Vec<f32> = std::iter::repeat_with(|| {
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        number as f32 / u32::MAX as f32 * 2.0 - 1.0
    })
    .take(PERIOD)
    .collect();
    let all = values.iter().copied().cycle().take(tensor.shape().len());
    backend.upload(tensor, &all.collect::<Vec<f32>>())
}

/// Images a second of whole training steps (input, forward pass, loss, backward pass, update): the median
/// step's, on pixels in the host's memory, which are copied in as in training, or with `resident`
/// on a batch that stays where the backend has it.
///
/// # Errors
/// If the backend is out of memory or an operation of it fails.
pub fn training_steps<B: Benchmark>(
    backend: &B,
    mut network: Network,
    batch: usize,
    resident: bool,
    peaks: &Peaks,
) -> Result<Row> {
    network.must_classify()?;
    network.architecture.recipe.batch_size = batch;
    let op = if resident { "step-resident" } else { "step" };
    let id = id_of(backend, &network, "all", op, batch);
    let flops = 2.0 * batch as f64 * step_multiply_adds(&network) as f64;
    let (preprocess, pixels, crops) = squares(&network, batch);
    let classes = Classes::unknown(network.classes());
    let params = Params::init(backend, &network, 0)?;
    let momentum = Params::zeros(backend, &network)?;
    let labels: Vec<u32> = (0..batch).map(|i| (i % network.classes()) as u32).collect();
    let model = Model { network, params, preprocess, classes };
    let mut trainer = Trainer::new(backend, model, momentum, 1)?;
    let mut state = StepState { seed: 0, step: 0, first_sample: 0, learning_rate: 1e-4 };
    // Every buffer has a batch, and steps that can be recorded are.
    for _ in 0..3 * backend.batches_in_flight() {
        trainer.enqueue(&pixels, &crops, &labels, state)?;
        state.step += 1;
    }
    trainer.wait()?;
    // Many steps a run where one's end overlaps the next one's beginning.
    let steps = if backend.batches_in_flight() > 1 { 20 } else { 1 };
    let times = backend.seconds(&mut || {
        for _ in 0..steps {
            state.step += 1;
            if resident {
                trainer.again(state)?;
            } else {
                trainer.enqueue(&pixels, &crops, &labels, state)?;
            }
        }
        trainer.wait()
    })?;
    let times = times.into_iter().map(|seconds| seconds / steps as f64).collect();
    Ok(whole(id, times, flops, batch, peaks))
}

/// Images a second of whole forward passes as evaluation does them: pixels copied in, input, forward pass,
/// logits copied out.
///
/// # Errors
/// If the backend is out of memory or an operation of it fails.
pub fn forward<B: Benchmark>(
    backend: &B,
    network: &Network,
    batch: usize,
    peaks: &Peaks,
) -> Result<Row> {
    network.must_classify()?;
    let id = id_of(backend, network, "all", "forward", batch);
    let flops = 2.0 * batch as f64 * network.multiply_adds() as f64;
    let (preprocess, pixels, crops) = squares(network, batch);
    let params = Params::init(backend, network, 0)?;
    let mut stage = InputStage::new(backend, &preprocess, batch, batch)?;
    let mut workspace = Workspace::new(backend, network, Purpose::Infer, batch)?;
    let mut logits = vec![0.0; batch * network.classes()];
    let times = backend.seconds(&mut || {
        stage.fill(backend, &mut workspace.input, &pixels, &crops)?;
        workspace.forward(backend, &params)?;
        backend.download(&mut logits, workspace.logits())
    })?;
    Ok(whole(id, times, flops, batch, peaks))
}

/// A batch of squares in the host's memory, and where they are cropped.
fn squares(network: &Network, batch: usize) -> (Preprocess, Vec<u8>, Vec<Crop>) {
    let input = network.architecture.input;
    let preprocess = input.preprocess(vec![128.0; 3]);
    let pixels = (0..batch * preprocess.bytes()).map(|i| (i * 31 % 251) as u8).collect();
    let crop = |image: u32| preprocess.ten_crops(image)[image as usize % 10];
    let crops = (0..batch as u32).map(crop).collect();
    (preprocess, pixels, crops)
}

/// The row of something that the whole network does with a batch in each of `times`.
fn whole(id: String, times: Vec<f64>, flops: f64, batch: usize, peaks: &Peaks) -> Row {
    let Spread { median, quartiles } = Spread::of(times);
    let gflops = flops / median / 1e9;
    Row {
        id,
        milliseconds: median * 1e3,
        spread: quartiles,
        gflops: Some(gflops),
        gbytes: None,
        images_per_second: Some(batch as f64 / median),
        share: gflops / peaks.gflops,
        kernels: Vec::new(),
    }
}

/// Rows of this run that are slower than the same rows of an earlier one by more than `tolerance`
/// (a share), with both times in milliseconds, the earlier first.
pub fn slower<'a>(rows: &'a [Row], earlier: &[Row], tolerance: f64) -> Vec<(&'a str, f64, f64)> {
    let before =
        |row: &Row| earlier.iter().find(|old| old.id == row.id).map(|old| old.milliseconds);
    let pairs = rows.iter().filter_map(|row| Some((row, before(row)?)));
    pairs
        .filter(|(row, before)| row.milliseconds > before * (1.0 + tolerance))
        .map(|(row, before)| (row.id.as_str(), before, row.milliseconds))
        .collect()
}

/// Multiply-adds of a training step for one image: forward, filter gradient and, above the first
/// layer, data gradient.
fn step_multiply_adds(network: &Network) -> u64 {
    let first = network.convolutions().next().map_or(0, |(_, dims)| dims.multiply_adds());
    3 * network.multiply_adds() - first
}
