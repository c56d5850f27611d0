//! One harness for speed: a row for each operation of each layer, and whole training steps.
//!
//! A row's id is `network/layer/op/precision/batch/device`; `zfnet bench` and `cargo bench` run the
//! same rows. What a row reaches is set beside what the machine can do, measured in the same run:
//! multiply-adds a second from registers, and bytes a second copied.

use std::hint::black_box;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::backend::cpu::CpuBackend;
use crate::backend::{Backend, Crop, Dropout, Param, ReluRule, SgdConstants, StepState, Tensor};
use crate::model::{Kind, Layer, Model, Network, Params, Preprocess};
use crate::shape::Shape;
use crate::train::Trainer;
use crate::{Error, Result};

/// What an operation of a layer does; the names of `--op`.
pub const OPS: [&str; 4] = ["forward", "backward-data", "backward-filter", "update"];

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

/// What limits an operation, and how much of it there is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Work {
    /// Floating-point operations (two for each multiply-add).
    Flops(f64),
    /// Bytes read and written at least once.
    Bytes(f64),
}

/// A timed operation.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// `network/layer/op/precision/batch/device`.
    pub id: String,
    /// Median time of one run.
    pub milliseconds: f64,
    /// 10^9 floating-point operations a second, for what arithmetic limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gflops: Option<f64>,
    /// 10^9 bytes a second, for what memory limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gbytes: Option<f64>,
    /// Images a second, of whole training steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images_per_second: Option<f64>,
    /// Share of the machine's measured peak of the same kind.
    pub share: f64,
}

/// What the machine can do.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Peaks {
    /// 10^9 floating-point operations a second, of multiply-adds in registers on all threads.
    pub gflops: f64,
    /// 10^9 bytes a second read and written, copying on all threads.
    pub gbytes: f64,
}

/// The rows of a network, for layers and operations of these names (all of them for `None`).
///
/// # Errors
/// If no row is left.
pub fn cases<'a>(
    network: &'a Network,
    batch: usize,
    layer: Option<&str>,
    op: Option<&str>,
) -> Result<Vec<Case<'a>>> {
    if let Some(name) = layer {
        network.layer(name)?;
    }
    let mut cases = Vec::new();
    for (index, l) in network.layers.iter().enumerate() {
        for (name, work) in operations(l, index, batch) {
            if layer.is_none_or(|wanted| wanted == l.name) && op.is_none_or(|wanted| wanted == name)
            {
                let id = format!("{}/{}/{name}/f32/{batch}/cpu", network.architecture.name, l.name);
                cases.push(Case { id, work, network, layer: index, op: name, batch });
            }
        }
    }
    if cases.is_empty() {
        return Err(Error::Network(format!(
            "nothing to measure: layer {} has no operation {}",
            layer.unwrap_or("any"),
            op.unwrap_or("any")
        )));
    }
    Ok(cases)
}

/// The operations of a layer and their work; the first layer's data gradient is left out, since
/// training does not ask for it.
fn operations(layer: &Layer, index: usize, batch: usize) -> Vec<(&'static str, Work)> {
    let values = |shape: Shape| 4.0 * (shape.len() * batch) as f64;
    let (x, y) = (values(layer.input), values(layer.output));
    match &layer.kind {
        Kind::Conv { dims, .. } | Kind::FullyConnected { dims, .. } => {
            let flops = Work::Flops(2.0 * dims.with_n(batch).multiply_adds() as f64);
            let parameters = layer.parameters() as f64;
            let mut rows = vec![("forward", flops), ("backward-filter", flops)];
            if index > 0 {
                rows.insert(1, ("backward-data", flops));
            }
            rows.push(("update", Work::Bytes(4.0 * 5.0 * parameters)));
            rows
        }
        Kind::MaxPool { .. } => vec![
            ("forward", Work::Bytes(x + y + y / 4.0)),
            ("backward-data", Work::Bytes(x + y + y / 4.0)),
        ],
        Kind::Lrn(_) => {
            vec![("forward", Work::Bytes(x + y)), ("backward-data", Work::Bytes(2.0 * x + y))]
        }
        Kind::Relu => vec![("backward-data", Work::Bytes(2.0 * x + y))],
        Kind::Dropout { .. } => vec![("forward", Work::Bytes(x + y))],
    }
}

impl Case<'_> {
    /// Makes the tensors and returns what is to be timed.
    ///
    /// # Errors
    /// If the backend has no room.
    pub fn prepare<'b, B: Backend>(&self, backend: &'b B) -> Result<Box<dyn FnMut() + 'b>> {
        const CHECKED: &str = "planned sizes";
        let layer = &self.network.layers[self.layer];
        let mut x = noise(backend, layer.input.with_n(self.batch))?;
        let mut y = noise(backend, layer.output.with_n(self.batch))?;
        let state = backend.state()?;
        let n = self.batch;
        Ok(match (layer.kind, self.op) {
            (Kind::Conv { dims, .. } | Kind::FullyConnected { dims, .. }, op) => {
                let dims = dims.with_n(n);
                let mut scratch = backend.scratch(&[dims])?;
                let mut w = Param::zeros(backend, &dims)?;
                w.weight = noise(backend, dims.filter())?;
                let mut g = Param::zeros(backend, &dims)?;
                let mut v = Param::zeros(backend, &dims)?;
                let sgd = SgdConstants { momentum: 0.9, decay: 5e-4 };
                match op {
                    "forward" => Box::new(move || {
                        let (weight, bias) = (&w.weight, Some(&w.bias));
                        backend
                            .conv_forward(&mut y, &x, weight, bias, true, &dims, &mut scratch)
                            .expect(CHECKED);
                    }),
                    "backward-data" => Box::new(move || {
                        backend
                            .conv_backward_data(&mut x, &y, &w.weight, &dims, &mut scratch)
                            .expect(CHECKED);
                    }),
                    "backward-filter" => Box::new(move || {
                        backend
                            .conv_backward_filter(&mut g, &y, &x, false, &dims, &mut scratch)
                            .expect(CHECKED);
                    }),
                    _ => Box::new(move || {
                        backend
                            .sgd_step(&mut w.weight, &mut v.weight, &g.weight, &sgd, &state)
                            .expect(CHECKED);
                    }),
                }
            }
            (Kind::MaxPool { dims }, op) => {
                let dims = dims.with_n(n);
                let mut switches = backend.bytes(dims.output().len())?;
                backend.maxpool_forward(&mut y, &mut switches, &x, &dims)?;
                if op == "forward" {
                    Box::new(move || {
                        backend.maxpool_forward(&mut y, &mut switches, &x, &dims).expect(CHECKED);
                    })
                } else {
                    Box::new(move || {
                        backend
                            .maxpool_backward(&mut x, &y, &switches, None, true, &dims)
                            .expect(CHECKED);
                    })
                }
            }
            (Kind::Lrn(lrn), "forward") => {
                Box::new(move || backend.lrn_forward(&mut y, &x, &lrn).expect(CHECKED))
            }
            (Kind::Lrn(lrn), _) => {
                let mut dx = noise(backend, layer.input.with_n(n))?;
                Box::new(move || backend.lrn_backward(&mut dx, &y, &x, None, &lrn).expect(CHECKED))
            }
            (Kind::Relu, _) => {
                let rule = ReluRule { forward_mask: true, relu_down: false };
                Box::new(move || backend.relu_backward(&mut y, &x, None, rule).expect(CHECKED))
            }
            (Kind::Dropout { rate }, _) => {
                let dropout = Dropout { rate, layer: self.layer as u32 };
                Box::new(move || backend.dropout(&mut y, &x, &dropout, &state).expect(CHECKED))
            }
        })
    }

    /// Times the case.
    ///
    /// # Errors
    /// If the backend has no room.
    pub fn measure<B: Backend>(&self, backend: &B, peaks: &Peaks) -> Result<Row> {
        let mut run = self.prepare(backend)?;
        let seconds = median(|| {
            run();
            backend.synchronize().expect("a backend that ran");
        });
        let rate = |work: f64| work / seconds / 1e9;
        let (gflops, gbytes, share) = match self.work {
            Work::Flops(flops) => (Some(rate(flops)), None, rate(flops) / peaks.gflops),
            Work::Bytes(bytes) => (None, Some(rate(bytes)), rate(bytes) / peaks.gbytes),
        };
        let (id, milliseconds) = (self.id.clone(), seconds * 1e3);
        Ok(Row { id, milliseconds, gflops, gbytes, images_per_second: None, share })
    }
}

/// Median seconds of a run: at least five after a first one, for about half a second.
fn median(mut run: impl FnMut()) -> f64 {
    run();
    let begun = Instant::now();
    let mut times = Vec::new();
    while times.len() < 5 || begun.elapsed() < Duration::from_millis(400) {
        let start = Instant::now();
        run();
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Numbers from -1 to 1 in no particular order.
fn noise<B: Backend>(backend: &B, shape: Shape) -> Result<Tensor<B>> {
    let mut tensor = backend.zeros(shape)?;
    let mut number = 1u32;
    let values: Vec<f32> = std::iter::repeat_with(|| {
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        number as f32 / u32::MAX as f32 * 2.0 - 1.0
    })
    .take(shape.len())
    .collect();
    backend.upload(&mut tensor, &values)?;
    Ok(tensor)
}

/// Measures what the machine can do on the backend's threads.
pub fn peaks(backend: &CpuBackend) -> Peaks {
    const LEN: usize = 1 << 24;
    let (mut to, from) = (vec![0.0f32; LEN], vec![1.0f32; LEN]);
    let copy = median(|| backend.copy(black_box(&mut to), black_box(&from)));
    const ROUNDS: usize = 1 << 20;
    let flops = backend.multiply_adds(ROUNDS);
    let multiply = median(|| {
        black_box(backend.multiply_adds(black_box(ROUNDS)));
    });
    Peaks { gflops: flops / multiply / 1e9, gbytes: 8.0 * LEN as f64 / copy / 1e9 }
}

/// Images a second of whole training steps (input, walk up, loss, walk down, update): the median
/// step's, on pixels already in memory.
///
/// # Errors
/// If the backend has no room or refuses.
pub fn training_steps<B: Backend>(
    backend: &B,
    network: Network,
    batch: usize,
    peaks: &Peaks,
) -> Result<Row> {
    let mut network = network;
    network.architecture.recipe.batch_size = batch;
    let id = format!("{}/all/step/f32/{batch}/cpu", network.architecture.name);
    let flops = 2.0 * batch as f64 * step_multiply_adds(&network) as f64;
    let input = network.architecture.input;
    let preprocess = Preprocess::paper(input.size, input.resize, input.std, vec![128.0; 3]);
    let classes = (0..network.classes()).map(|class| class.to_string()).collect();
    let params = Params::init(backend, &network, 0)?;
    let momentum = Params::zeros(backend, &network)?;
    let labels: Vec<u32> = (0..batch).map(|i| (i % network.classes()) as u32).collect();
    let pixels: Vec<u8> =
        (0..batch * input.resize * input.resize * 3).map(|i| (i * 31 % 251) as u8).collect();
    let crops: Vec<Crop> =
        (0..batch as u32).map(|image| preprocess.ten_crops(image)[image as usize % 10]).collect();
    let model = Model { network, params, preprocess, classes };
    let mut trainer = Trainer::new(backend, model, momentum, 1)?;
    let mut state = StepState { seed: 0, step: 0, first_sample: 0, rate: 1e-4 };
    let mut failed = None;
    let seconds = median(|| {
        state.step += 1;
        failed = trainer.step(&pixels, &crops, &labels, state).err().or(failed.take());
        backend.synchronize().expect("a backend that ran");
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(Row {
            id,
            milliseconds: seconds * 1e3,
            gflops: Some(flops / seconds / 1e9),
            gbytes: None,
            images_per_second: Some(batch as f64 / seconds),
            share: flops / seconds / 1e9 / peaks.gflops,
        }),
    }
}

/// Multiply-adds of a training step for one image: forward, filter gradient and, above the first
/// layer, data gradient.
fn step_multiply_adds(network: &Network) -> u64 {
    let first = network.convolutions().next().map_or(0, |(_, dims)| dims.multiply_adds());
    3 * network.multiply_adds() - first
}
