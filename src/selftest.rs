//! Whether the operations give the right numbers on this machine: each of them on small integers, at
//! the channel counts of the paper's networks, beside the same operation of a plain backend.
//!
//! What only adds, multiplies and compares has to be equal, but for the one rounding to storage; what
//! takes roots or exponentials may be off by a few roundings. `cargo test` asks much more of every
//! operation; this asks the machine at hand, and takes seconds.

use crate::Result;
use crate::backend::{
    Backend, Crop, Dropout, InputDims, Lrn, MapMoments, Param, Peak, Precision, ReluRule, SeedUnit,
    SgdConstants, StepState, Tensor, Update,
};
use crate::model::{Architecture, Kind, Network};
use crate::shape::{ConvDims, PoolDims, Shape, Windows};

/// What the operands are.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Networks, by name or TOML file, whose layers are taken.
    pub networks: Vec<String>,
    /// Images at a time.
    pub images: usize,
    /// Rows and columns of a layer's output, at most: larger maps are cut to this, and those of first
    /// layers, which backends compute in tiles of maps, to six times as much.
    pub map: usize,
}

impl Default for Settings {
    fn default() -> Self {
        // AlexNet's first layer is larger, and the small network has few classes.
        let networks = ["zfnet", "alexnet", "zfnet-mini"].map(String::from).into();
        Settings { networks, images: 2, map: 20 }
    }
}

/// What was found of one result of one operation.
#[derive(Clone, Debug)]
pub struct Check {
    /// Network and layer, as `zfnet/conv2`; empty for what belongs to no layer.
    pub layer: String,
    /// The operation, as [`Backend`] calls it, and which of its results.
    pub operation: &'static str,
    /// Values compared.
    pub values: usize,
    /// Values that are wrong.
    pub wrong: usize,
    /// The first of them: its index, what was found, and what was expected.
    pub first: Option<(usize, f32, f32)>,
}

/// How a result is compared.
#[derive(Clone, Copy)]
enum Compared {
    /// f32, equal.
    Exact,
    /// An activation: equal, once rounded to storage.
    Stored,
    /// An activation that may be off by this share of its value, and of one.
    Close(f32),
    /// The same of what is f32 in every precision.
    CloseF32(f32),
}

/// A result of an operation on one backend.
struct Outcome {
    layer: String,
    operation: &'static str,
    values: Vec<f32>,
    compared: Compared,
}

/// What the plain backend has computed, for all that are compared with it.
pub struct Reference {
    settings: Settings,
    outcomes: Vec<Outcome>,
}

/// How far a convolution by Winograd's method, which adds transformed values, may be from an integer.
const NEAREST: f32 = 0.25;

impl Reference {
    /// Computes every result on a backend whose sums of integers are exact, in f32.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn new<B: Backend>(plain: &B, settings: Settings) -> Result<Self> {
        assert_eq!(plain.precision(), Precision::F32, "of other results no rounding can be told");
        let mut outcomes = Vec::new();
        run(plain, &settings, |outcome| {
            outcomes.push(outcome);
            Ok(())
        })?;
        Ok(Reference { settings, outcomes })
    }

    /// Computes every result on another backend and compares. `exact` says whether its sums of
    /// integers are exact, as they are but for Winograd's method. `observe` hears of each.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn compare<B: Backend>(
        &self,
        backend: &B,
        exact: bool,
        mut observe: impl FnMut(&Check),
    ) -> Result<Vec<Check>> {
        let mut checks = Vec::new();
        let mut expected = self.outcomes.iter();
        run(backend, &self.settings, |found| {
            let expected = expected.next().expect("the same operations");
            let check = compare(backend, &found, expected, exact)?;
            observe(&check);
            checks.push(check);
            Ok(())
        })?;
        Ok(checks)
    }
}

fn compare<B: Backend>(
    backend: &B,
    found: &Outcome,
    expected: &Outcome,
    exact: bool,
) -> Result<Check> {
    assert_eq!(found.values.len(), expected.values.len(), "the same sizes");
    let stored = match found.compared {
        Compared::Exact | Compared::CloseF32(_) => None,
        Compared::Stored | Compared::Close(_) => {
            // As the backend stores them.
            let mut tensor = backend.activations(Shape::vector(expected.values.len()))?;
            backend.upload(&mut tensor, &expected.values)?;
            Some(download(backend, &tensor)?)
        }
    };
    let storage = if backend.precision() == Precision::Bf16 { 1.01 / 128.0 } else { 0.0 };
    let agree = |found_value: f32, value: f32| match found.compared {
        Compared::Close(share) => {
            (found_value - value).abs() <= share + (share + storage) * value.abs()
        }
        Compared::CloseF32(share) => (found_value - value).abs() <= share * (1.0 + value.abs()),
        _ if exact || !found.operation.starts_with("conv_") => found_value == value,
        _ => (found_value - value).abs() <= NEAREST.max(storage * value.abs()),
    };
    let values = stored.as_ref().unwrap_or(&expected.values);
    let mut wrong =
        found.values.iter().zip(values).enumerate().filter(|(_, (f, e))| !agree(**f, **e));
    let first = wrong.next().map(|(index, (found, expected))| (index, *found, *expected));
    let count = usize::from(first.is_some()) + wrong.count();
    let (layer, operation) = (found.layer.clone(), found.operation);
    Ok(Check { layer, operation, values: values.len(), wrong: count, first })
}

// ---- operands ----

/// Small integers, the same for every backend.
struct Integers(u64);

impl Integers {
    /// `count` integers from `-most` to `most`.
    fn draw(&mut self, count: usize, most: i32) -> Vec<f32> {
        let mut next = || {
            // A linear congruential generator by Knuth's constants, of which the high bits are the random ones.
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as i32
        };
        (0..count).map(|_| (next() % (2 * most + 1) - most) as f32).collect()
    }

    /// An activation of integers from -2 to 2, whose sums of products f32 holds.
    fn tensor<B: Backend>(&mut self, backend: &B, shape: Shape) -> Result<Tensor<B>> {
        let mut tensor = backend.activations(shape)?;
        backend.upload(&mut tensor, &self.draw(shape.len(), 2))?;
        Ok(tensor)
    }
}

/// An activation that an operation has to overwrite whole.
fn unwritten<B: Backend>(backend: &B, shape: Shape) -> Result<Tensor<B>> {
    let mut tensor = backend.activations(shape)?;
    backend.upload(&mut tensor, &vec![f32::NAN; shape.len()])?;
    Ok(tensor)
}

fn download<B: Backend>(backend: &B, tensor: &Tensor<B>) -> Result<Vec<f32>> {
    let mut values = vec![0.0; tensor.shape().len()];
    backend.download(&mut values, tensor)?;
    Ok(values)
}

// ---- operations ----

/// What operations are run in, and who hears of their results.
struct Session<'a, B, F> {
    backend: &'a B,
    layer: String,
    integers: Integers,
    done: F,
}

/// Every operation of every layer, in an order that is the same on all backends.
fn run<B: Backend>(
    backend: &B,
    settings: &Settings,
    done: impl FnMut(Outcome) -> Result<()>,
) -> Result<()> {
    let mut session = Session { backend, layer: String::new(), integers: Integers(1), done };
    let mut seen: Vec<String> = Vec::new();
    for name in &settings.networks {
        let network = Network::new(Architecture::find(name)?)?;
        for layer in &network.layers {
            session.layer = format!("{name}/{}", layer.name);
            let images = settings.images;
            // A kind of layer of the same sizes is the same code.
            let sizes = match layer.kind {
                Kind::Conv(conv) | Kind::FullyConnected(conv) => format!("{:?}", conv.dims),
                Kind::MaxPool(pool) => format!("{:?}", pool.dims),
                Kind::Lrn(lrn) => format!("{:?} of {}", lrn, layer.input.c),
                _ => continue,
            };
            if seen.contains(&sizes) {
                continue;
            }
            seen.push(sizes);
            match layer.kind {
                Kind::Conv(conv) => {
                    session.convolution(&cut_conv(&conv.dims, images, settings.map))?
                }
                Kind::FullyConnected(conv) => session.convolution(&conv.dims.with_n(images))?,
                Kind::MaxPool(pool) => {
                    session.pooling(&cut_pool(&pool.dims, images, settings.map))?
                }
                Kind::Lrn(lrn) => {
                    let side = layer.input.h.min(settings.map);
                    session.normalisation(&lrn, Shape::new(images, side, side, layer.input.c))?;
                }
                _ => {}
            }
        }
    }
    for name in &settings.networks {
        session.first_layers(name, settings.map)?;
    }
    session.layer.clear();
    session.odd_sizes(settings.images)?;
    session.pointwise(settings)?;
    session.maps(settings)?;
    session.update()
}

/// Images of first layers: several tiles for each of a GPU's multiprocessors.
const FIRST_IMAGES: usize = 12;

/// The convolution over a smaller map: the outputs at its top left.
fn cut_conv(dims: &ConvDims, images: usize, map: usize) -> ConvDims {
    let mut cut = dims.with_n(images);
    cut_axis(&mut cut.p, &mut cut.h, dims.stride[0], dims.r, dims.pad[0], map);
    cut_axis(&mut cut.q, &mut cut.w, dims.stride[1], dims.s, dims.pad[1], map);
    cut
}

fn cut_pool(dims: &PoolDims, images: usize, map: usize) -> PoolDims {
    let mut cut = dims.with_n(images);
    cut_axis(&mut cut.p, &mut cut.h, dims.stride[0], dims.window[0], dims.pad[0], map);
    cut_axis(&mut cut.q, &mut cut.w, dims.stride[1], dims.window[1], dims.pad[1], map);
    cut
}

/// A convolution by 3 x 3 filters with a stride of 1.
fn three_by_three(n: u32, [h, w]: [u32; 2], c: u32, k: u32, pad: u32) -> ConvDims {
    let [p, q] = [h, w].map(|size| size + 2 * pad - 2);
    ConvDims { n, h, w, c, k, r: 3, s: 3, p, q, stride: [1; 2], pad: [pad; 2], groups: 1 }
}

/// Rows or columns for `map` outputs. As many more are left as make the remainder by four what it was: some
/// kernels read images in groups of four pixels.
fn cut_axis(out: &mut u32, input: &mut u32, stride: u32, window: u32, pad: u32, map: usize) {
    if *out as usize > map {
        *out = map as u32;
        let needed = ((*out - 1) * stride + window).saturating_sub(pad).max(1);
        *input = (*input).min(needed + (*input + 4 - needed % 4) % 4);
    }
}

impl<B: Backend, F: FnMut(Outcome) -> Result<()>> Session<'_, B, F> {
    fn report(
        &mut self,
        operation: &'static str,
        values: Vec<f32>,
        compared: Compared,
    ) -> Result<()> {
        (self.done)(Outcome { layer: self.layer.clone(), operation, values, compared })
    }

    fn activation(&mut self, operation: &'static str, tensor: &Tensor<B>) -> Result<()> {
        let values = download(self.backend, tensor)?;
        self.report(operation, values, Compared::Stored)
    }

    fn bytes(&mut self, operation: &'static str, bytes: &B::Bytes, len: usize) -> Result<()> {
        let mut found = vec![0; len];
        self.backend.download_bytes(&mut found, bytes)?;
        let values = found.iter().map(|byte| f32::from(*byte)).collect();
        self.report(operation, values, Compared::Exact)
    }

    fn convolution(&mut self, dims: &ConvDims) -> Result<()> {
        let backend = self.backend;
        let mut scratch = backend.scratch(&[*dims])?;
        let x = self.integers.tensor(backend, dims.input())?;
        let dy = self.integers.tensor(backend, dims.output())?;
        let mut param = Param::weights(backend, dims)?;
        backend.upload(&mut param.weight, &self.integers.draw(dims.filter().len(), 2))?;
        backend.upload(&mut param.bias, &self.integers.draw(dims.k as usize, 2))?;
        let (weight, bias) = (&param.weight, Some(&param.bias));

        let mut y = unwritten(backend, dims.output())?;
        backend.conv_forward(&mut y, &x, weight, bias, true, dims, &mut scratch)?;
        self.activation("conv_forward", &y)?;
        let mut logits = backend.zeros(dims.output())?;
        backend.conv_forward(&mut logits, &x, weight, None, false, dims, &mut scratch)?;
        let logits = download(backend, &logits)?;
        self.report("conv_forward in f32", logits, Compared::Exact)?;

        let mut dx = unwritten(backend, dims.input())?;
        backend.conv_backward_data(&mut dx, &dy, weight, dims, &mut scratch)?;
        self.activation("conv_backward_data", &dx)?;

        let mut gradient = Param::zeros(backend, dims)?;
        backend.conv_backward_filter(&mut gradient, &dy, &x, false, dims, &mut scratch)?;
        let [weights, biases] = [&gradient.weight, &gradient.bias].map(|v| download(backend, v));
        self.report("conv_backward_filter", weights?, Compared::Exact)?;
        self.report("conv_backward_filter, bias", biases?, Compared::Exact)?;
        if dims.filter().len() > 1 << 21 {
            return Ok(()); // the same code as the smaller ones
        }
        backend.conv_backward_filter(&mut gradient, &dy, &x, true, dims, &mut scratch)?;
        let [weights, biases] = [&gradient.weight, &gradient.bias].map(|v| download(backend, v));
        self.report("conv_backward_filter, added", weights?, Compared::Exact)?;
        self.report("conv_backward_filter, bias added", biases?, Compared::Exact)
    }

    /// The first convolution of a network with the pooling behind it, as training runs them.
    fn first_layers(&mut self, name: &str, map: usize) -> Result<()> {
        let backend = self.backend;
        let network = Network::new(Architecture::find(name)?)?;
        let kinds: Vec<Kind> = network.layers.iter().take(3).map(|layer| layer.kind).collect();
        let [Kind::Conv(conv), Kind::Relu(_), Kind::MaxPool(pool)] = kinds[..] else {
            return Ok(());
        };
        self.layer = format!("{name}/{}", network.layers[0].name);
        let dims = &cut_conv(&conv.dims, FIRST_IMAGES, 6 * map);
        let mut pool = pool.dims.with_n(FIRST_IMAGES);
        // The pooling's windows of what is left.
        for (out, input, from, axis) in
            [(&mut pool.p, &mut pool.h, dims.p, 0), (&mut pool.q, &mut pool.w, dims.q, 1)]
        {
            if *input > from {
                let whole = (from + pool.pad[axis]).saturating_sub(pool.window[axis]);
                (*input, *out) = (from, whole / pool.stride[axis] + 1);
            }
        }
        let pool = &pool;
        let mut scratch = backend.scratch(&[*dims])?;
        let x = self.integers.tensor(backend, dims.input())?;
        let dy = self.integers.tensor(backend, pool.output())?;
        // Small sums, of which rounding to storage makes no two equal.
        let mut param = Param::weights(backend, dims)?;
        backend.upload(&mut param.weight, &self.integers.draw(dims.filter().len(), 1))?;
        let mut y = unwritten(backend, pool.output())?;
        let mut switches = backend.bytes(pool.output().len())?;
        let mut gradient = Param::zeros(backend, dims)?;
        let Param { weight, bias } = &param;
        if backend.supports_conv_pool(dims, pool) {
            backend.prepare_conv_pool(&mut scratch, dims)?;
            backend.conv_pool_forward(
                &mut y,
                &mut switches,
                &x,
                weight,
                bias,
                dims,
                pool,
                &mut scratch,
            )?;
            backend.conv_pool_backward_filter(
                &mut gradient,
                &dy,
                &switches,
                &x,
                false,
                dims,
                pool,
                &mut scratch,
            )?;
        } else {
            let mut map = unwritten(backend, dims.output())?;
            backend.conv_forward(&mut map, &x, weight, Some(bias), true, dims, &mut scratch)?;
            backend.maxpool_forward(&mut y, &mut switches, &map, pool)?;
            backend.maxpool_backward(&mut map, &dy, &switches, None, true, pool)?;
            backend.conv_backward_filter(&mut gradient, &map, &x, false, dims, &mut scratch)?;
        }
        self.activation("conv_pool_forward and backward", &y)?;
        let [weights, biases] = [&gradient.weight, &gradient.bias].map(|v| download(backend, v));
        self.report("conv_pool_forward and backward, filter", weights?, Compared::Exact)?;
        self.report("conv_pool_forward and backward, bias", biases?, Compared::Exact)
    }

    /// Channels that no kernel takes several at a time, groups, and neighbourhoods of another size.
    fn odd_sizes(&mut self, images: usize) -> Result<()> {
        let n = images as u32;
        let small = three_by_three(n, [9, 8], 5, 7, 1);
        self.convolution(&small)?;
        self.convolution(&ConvDims { c: 33, k: 150, ..small })?;
        self.convolution(&ConvDims { c: 6, k: 8, groups: 2, ..small })?;
        self.convolution(&ConvDims { c: 96, k: 64, groups: 2, ..small })?;
        for channels in [5, 16] {
            let pool = PoolDims {
                n,
                h: 9,
                w: 8,
                c: channels,
                p: 4,
                q: 7,
                window: [3, 2],
                stride: [2, 1],
                pad: [0; 2],
                any_sign: 0,
            };
            self.pooling(&pool)?;
            self.pooling(&PoolDims { any_sign: 1, ..pool })?;
        }
        for (size, channels) in [(5, 21), (4, 24), (3, 16)] {
            let lrn = Lrn { size, k: 2.0, alpha: 0.125, beta: 0.5 };
            self.normalisation(&lrn, Shape::new(images, 5, 4, channels))?;
        }
        Ok(())
    }

    /// Other images than their own for the samples of a backward pass.
    fn other_images(&self, images: usize) -> Result<B::Indices> {
        let mut indices = self.backend.indices(images)?;
        let list: Vec<u32> = (0..images as u32).rev().collect();
        self.backend.upload_indices(&mut indices, &list)?;
        Ok(indices)
    }

    fn pooling(&mut self, dims: &PoolDims) -> Result<()> {
        let backend = self.backend;
        let x = self.integers.tensor(backend, dims.input())?;
        let dy = self.integers.tensor(backend, dims.output())?;
        let mut y = unwritten(backend, dims.output())?;
        let mut switches = backend.bytes(dims.output().len())?;
        backend.maxpool_forward(&mut y, &mut switches, &x, dims)?;
        self.activation("maxpool_forward", &y)?;
        self.bytes("maxpool_forward, switches", &switches, dims.output().len())?;
        let mut dx = unwritten(backend, dims.input())?;
        backend.maxpool_backward(&mut dx, &dy, &switches, None, true, dims)?;
        self.activation("maxpool_backward, gradient", &dx)?;
        let other = self.other_images(dims.n as usize)?;
        backend.maxpool_backward(&mut dx, &dy, &switches, Some(&other), false, dims)?;
        self.activation("maxpool_backward, deconvnet", &dx)
    }

    fn normalisation(&mut self, lrn: &Lrn, shape: Shape) -> Result<()> {
        let backend = self.backend;
        let x = self.integers.tensor(backend, shape)?;
        let dy = self.integers.tensor(backend, shape)?;
        // So large a factor that neighbours count.
        let lrn = &Lrn { alpha: 0.125, ..*lrn };
        let mut y = unwritten(backend, shape)?;
        backend.lrn_forward(&mut y, &x, lrn)?;
        let values = download(backend, &y)?;
        self.report("lrn_forward", values, Compared::Close(1e-5))?;
        backend.lrn_backward(&mut y, &dy, &x, None, lrn)?;
        let values = download(backend, &y)?;
        self.report("lrn_backward", values, Compared::Close(1e-5))?;
        let other = self.other_images(shape.n)?;
        backend.lrn_backward(&mut y, &dy, &x, Some(&other), lrn)?;
        let values = download(backend, &y)?;
        self.report("lrn_backward, other images", values, Compared::Close(1e-5))
    }

    fn pointwise(&mut self, settings: &Settings) -> Result<()> {
        let backend = self.backend;
        let shape = Shape::new(settings.images, 1, 1, 4096);
        let y = self.integers.tensor(backend, shape)?;
        let mut x = unwritten(backend, shape)?;
        // Recorded, where the backend does that.
        match backend.record(&mut || backend.relu_forward(&mut x, &y))? {
            Some(recording) => backend.replay(&recording)?,
            None => backend.relu_forward(&mut x, &y)?,
        }
        self.activation("relu_forward", &x)?;
        let other = self.other_images(settings.images)?;
        for (operation, rule) in [
            ("relu_backward, gradient", ReluRule { forward_mask: true, relu_down: false }),
            ("relu_backward, deconvnet", ReluRule { forward_mask: false, relu_down: true }),
        ] {
            let mut dy = self.integers.tensor(backend, shape)?;
            backend.relu_backward(&mut dy, &y, Some(&other), rule)?;
            self.activation(operation, &dy)?;
        }
        let mut state = backend.state()?;
        let step = StepState { seed: 7, step: 3, first_sample: 5, learning_rate: 0.25 };
        backend.set_state(&mut state, step)?;
        let dropout = Dropout { rate: 0.5, layer: 6 };
        backend.dropout(&mut x, &y, &dropout, &state)?;
        self.activation("dropout", &x)?;

        let rows = settings.images.min(8);
        let classes = Shape::new(rows, 1, 1, 1000);
        let mut logits = backend.zeros(classes)?;
        backend.upload(&mut logits, &self.integers.draw(classes.len(), 4))?;
        let labels: Vec<u32> = (0..rows as u32).map(|row| row * 97).collect();
        let mut indices = backend.indices(rows)?;
        backend.upload_indices(&mut indices, &labels)?;
        let mut losses = backend.zeros(Shape::vector(rows))?;
        let mut dlogits = unwritten(backend, classes)?;
        backend.softmax_cross_entropy(
            &mut losses,
            &mut dlogits,
            &logits,
            &indices,
            1.0,
            &mut state,
        )?;
        let losses = download(backend, &losses)?;
        self.report("softmax_cross_entropy", losses, Compared::CloseF32(1e-5))?;
        let values = download(backend, &dlogits)?;
        self.report("softmax_cross_entropy, gradient", values, Compared::Close(1e-5))
    }

    /// Crops of `shape` out of canvases of so many rows and columns, 8 more of each.
    fn input(
        &mut self,
        what: &'static str,
        images: usize,
        canvas: [usize; 2],
        shape: Shape,
    ) -> Result<()> {
        let (backend, [rows, columns]) = (self.backend, canvas);
        let pixels: Vec<u8> = self
            .integers
            .draw(images * rows * columns * 3, 127)
            .iter()
            .map(|value| (value + 127.0) as u8)
            .collect();
        let mut bytes = backend.bytes(pixels.len())?;
        backend.upload_bytes(&mut bytes, &pixels)?;
        let crops: Vec<Crop> = (0..images as u32)
            .map(|image| Crop { image, y: image % 9, x: (image * 3 + 1) % 9, mirror: image % 2 })
            .collect();
        let mut places = backend.crops(images)?;
        backend.upload_crops(&mut places, &crops)?;
        let mut mean = backend.zeros(Shape::new(1, rows, columns, shape.c))?;
        backend.upload(&mut mean, &self.integers.draw(rows * columns * shape.c, 100))?;
        let mut inverse_std = backend.zeros(Shape::vector(shape.c))?;
        backend.upload(&mut inverse_std, &[1.0, 0.5, 2.0][..shape.c])?;
        let (rows, columns) = (rows as u32, columns as u32);
        let dims = InputDims { rows, columns, scale: 1.0, order: [2, 1, 0] };
        let mut x = unwritten(backend, shape)?;
        backend.input(&mut x, &bytes, &places, &mean, &inverse_std, &dims)?;
        self.activation(what, &x)
    }

    /// The input, and what looks at maps and cuts windows out of them.
    fn maps(&mut self, settings: &Settings) -> Result<()> {
        let backend = self.backend;
        let images = settings.images;
        self.input("input", images, [40, 40], Shape::new(images, 32, 32, 3))?;
        self.input("input, grey and wide", images, [24, 50], Shape::new(images, 16, 42, 1))?;

        let shape = Shape::new(images, 13, 13, 256);
        let x = self.integers.tensor(backend, shape)?;
        let mut peaks = vec![Peak { value: 0.0, position: 0 }; images * 256];
        backend.channel_max(&mut peaks, &x)?;
        let peaks = peaks.iter().flat_map(|peak| [peak.value, peak.position as f32]).collect();
        self.report("channel_max", peaks, Compared::Exact)?;
        let mut sums = vec![0.0; images * 256];
        backend.channel_sum(&mut sums, &x)?;
        self.report("channel_sum", sums, Compared::Exact)?;
        self.moments("map_moments", &x)?;
        let few = self.integers.tensor(backend, Shape::new(images, 65, 63, 3))?;
        self.moments("map_moments of few maps", &few)?;
        let units: Vec<SeedUnit> = (0..images as u32)
            .map(|n| SeedUnit { map: n * 31 % 256, y: n % 13, x: n * 5 % 13, value: 3.0 })
            .collect();
        let mut dy = unwritten(backend, shape)?;
        backend.scatter_units(&mut dy, &units)?;
        self.activation("scatter_units", &dy)?;

        let windows = Windows { map: [13, 13], size: [5, 4], start: [-2, -1], jump: [1, 1] };
        let mut corners = backend.indices(2 * images)?;
        let pairs: Vec<u32> =
            (0..images as u32).flat_map(|n| [n % 13, (n * 7 + 12) % 13]).collect();
        backend.upload_indices(&mut corners, &pairs)?;
        let mut cut = unwritten(backend, windows.shape(images, 256))?;
        backend.gather_windows(&mut cut, &x, None, &corners, &windows)?;
        self.activation("gather_windows", &cut)?;
        let pool = PoolDims {
            n: images as u32,
            h: 27,
            w: 27,
            c: 256,
            p: 13,
            q: 13,
            window: [3; 2],
            stride: [2; 2],
            pad: [0; 2],
            any_sign: 0,
        };
        let map = self.integers.tensor(backend, pool.input())?;
        let mut pooled = unwritten(backend, pool.output())?;
        let mut switches = backend.bytes(pool.output().len())?;
        backend.maxpool_forward(&mut pooled, &mut switches, &map, &pool)?;
        let len = windows.shape(images, 256).len();
        let mut of_windows = backend.bytes(len)?;
        backend.gather_switches(
            &mut of_windows,
            &switches,
            None,
            &corners,
            &windows,
            false,
            &pool,
        )?;
        self.bytes("gather_switches", &of_windows, len)?;
        let mut cut = self.integers.tensor(backend, windows.shape(images, 256))?;
        backend.zero_out_of_bounds(&mut cut, &corners, &windows)?;
        self.activation("zero_out_of_bounds", &cut)
    }

    fn moments(&mut self, what: &'static str, x: &Tensor<B>) -> Result<()> {
        let (backend, maps) = (self.backend, x.shape().c);
        let mut moments = backend.moments(maps, maps)?;
        backend.map_moments(&mut moments, 0, x)?;
        backend.send_moments(&mut moments)?;
        backend.synchronize()?;
        let mut found = vec![MapMoments { sum: 0.0, squares: 0.0, largest: 0.0 }; maps];
        backend.received_moments(&mut found, &moments)?;
        let values = found.iter().flat_map(|of| [of.sum, of.squares, of.largest]).collect();
        self.report(what, values, Compared::Exact)
    }

    /// An update of many tensors, with constants of which every product is exact; and a convolution by the
    /// new weights, of which backends may keep a copy.
    fn update(&mut self) -> Result<()> {
        let backend = self.backend;
        let dims = three_by_three(1, [5, 5], 16, 24, 0);
        let mut state = backend.state()?;
        let step = StepState { seed: 0, step: 0, first_sample: 0, learning_rate: 1.0 };
        backend.set_state(&mut state, step)?;
        let mut tensors = Vec::new();
        for filters in 1..=20 {
            let shape = Shape { n: if filters == 20 { 24 } else { filters }, ..dims.filter() };
            let [mut w, mut v] = [backend.weights(shape)?, backend.zeros(shape)?];
            let mut g = backend.zeros(shape)?;
            for (tensor, unit) in [(&mut w, 1.0), (&mut v, 2.0), (&mut g, 1.0)] {
                let values: Vec<f32> =
                    self.integers.draw(shape.len(), 3).iter().map(|value| value * unit).collect();
                backend.upload(tensor, &values)?;
            }
            tensors.push((w, v, g));
        }
        let constants = SgdConstants { momentum: 0.5, weight_decay: 1.0 };
        let mut updates: Vec<Update<'_, B>> = tensors
            .iter_mut()
            .map(|(w, v, g)| Update { w, first: 0, v, g, constants, rms_limit: None })
            .collect();
        backend.update(&mut updates, &state)?;
        let [mut w, mut v] = [Vec::new(), Vec::new()];
        for (weights, velocities, _) in &tensors {
            w.extend(download(backend, weights)?);
            v.extend(download(backend, velocities)?);
        }
        self.report("update", w, Compared::Exact)?;
        self.report("update, momentum", v, Compared::Exact)?;

        let (weights, ..) = &tensors[19];
        let mut sum = backend.zeros(weights.shape())?;
        backend.add(&mut sum, &tensors[19].1)?;
        backend.add(&mut sum, &tensors[19].2)?;
        self.report("add", download(backend, &sum)?, Compared::Exact)?;
        let mut scratch = backend.scratch(&[dims])?;
        let x = self.integers.tensor(backend, dims.input())?;
        let mut y = unwritten(backend, dims.output())?;
        backend.conv_forward(&mut y, &x, weights, None, false, &dims, &mut scratch)?;
        self.activation("conv_forward after an update", &y)?;

        let mut updates: Vec<Update<'_, B>> = tensors
            .iter_mut()
            .map(|(w, v, g)| Update { w, first: 0, v, g, constants, rms_limit: Some(0.5) })
            .collect();
        backend.update(&mut updates, &state)?;
        let mut w = Vec::new();
        for (weights, ..) in &tensors {
            w.extend(download(backend, weights)?);
        }
        self.report("update with limits", w, Compared::CloseF32(1e-5))?;
        let (weights, ..) = &tensors[19];
        backend.conv_forward(&mut y, &x, weights, None, false, &dims, &mut scratch)?;
        let values = download(backend, &y)?;
        // Of a sum of 144 weights below one, each rounded to storage.
        let rounded = if backend.precision() == Precision::F32 { 1e-4 } else { 0.2 };
        self.report("conv_forward after limits", values, Compared::Close(rounded))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::CpuBackend;

    fn outcome(values: &[f32], compared: Compared) -> Outcome {
        Outcome { layer: String::new(), operation: "conv_forward", values: values.into(), compared }
    }

    #[test]
    fn what_is_wrong_is_counted() {
        let backend = CpuBackend::new(Some(1)).unwrap();
        let wrong = |found: &[f32], expected: &[f32], compared, exact| {
            let [found, expected] = [found, expected].map(|values| outcome(values, compared));
            let check = compare(&backend, &found, &expected, exact).unwrap();
            (check.wrong, check.first.map(|first| first.0))
        };
        let expected = [1.0, -2.0, 3.0, 0.0];
        assert_eq!(wrong(&expected, &expected, Compared::Exact, true), (0, None));
        let found = [1.0, -2.1, f32::NAN, 0.0];
        assert_eq!(wrong(&found, &expected, Compared::Stored, true), (2, Some(1)));
        // By Winograd's method the nearest integer is enough.
        assert_eq!(wrong(&found, &expected, Compared::Stored, false), (1, Some(2)));
        assert_eq!(wrong(&found, &expected, Compared::Close(0.01), true), (2, Some(1)));
        assert_eq!(wrong(&found, &expected, Compared::Close(0.1), true), (1, Some(2)));
    }

    #[test]
    fn cut_maps_keep_what_chooses_kernels() {
        let network = Network::new(Architecture::find("zfnet").unwrap()).unwrap();
        let dims = *network.layers[0].convolution().unwrap();
        let cut = cut_conv(&dims, 2, 20);
        assert_eq!((cut.p, cut.q, cut.n), (20, 20, 2));
        assert_eq!((cut.w % 4, cut.w >= 19 * 2 + 7), (dims.w % 4, true));
        assert_eq!(cut_conv(&dims, 2, 500), dims.with_n(2));
    }
}
