//! Gradients against central differences: of every operation, and of a whole network.
//!
//! Differences are taken of the f64 twins, whose forward values the operations are shown to have
//! elsewhere, so that a step of 1e-5 leaves an error near 1e-10 and all else is the backend's.
//! Relu and max pooling have kinks, where a difference means nothing: a place is left out if a step
//! in either direction changes who fires or who wins, and few may be left out.

use crate::common::{
    Conv, Random, bytes, grey_and_wide, host_params, in_full, indices, network, norm, pooling,
    random_params, tensor, twin, unwritten, unwritten_in_full, values, weights, widen,
};
use zfnet::backend::{Backend, Dropout, Lrn, Param, ReluRule, SeedUnit, StepState};
use zfnet::model::{BackwardOptions, BackwardTo, Network, Params, Purpose, Rule, Workspace};
use zfnet::shape::{PoolDims, Rounding, Shape};

in_f32!(
    of_convolution,
    of_pooling_and_relu,
    of_pooling_without_a_relu,
    of_normalisation,
    of_dropout,
    of_the_loss,
    of_a_network,
    of_a_network_that_is_grey_and_wide,
    of_a_network_that_normalises_first,
    of_a_network_that_enlarges,
    of_networks_that_pool_without_a_relu,
    of_single_activations,
);

const STEP: f64 = 1e-5;

/// The derivative of `f` along one coordinate of `x`.
fn difference(f: &mut dyn FnMut(&[f64]) -> f64, x: &[f64], i: usize) -> f64 {
    let mut at = |sign: f64| {
        let mut x = x.to_vec();
        x[i] += sign * STEP;
        f(&x)
    };
    (at(1.0) - at(-1.0)) / (2.0 * STEP)
}

/// Asserts that `found` is the gradient of `f` at `x`, everywhere or in `sample` places. Sums of at
/// most a hundred products in f32 err by `eps * sqrt(100)`, a millionth of the largest; ten times
/// that is allowed.
#[track_caller]
fn assert_gradient(
    found: &[f32],
    x: &[f64],
    f: &mut dyn FnMut(&[f64]) -> f64,
    sample: usize,
    what: &str,
) {
    assert_eq!(found.len(), x.len(), "{what}");
    let mut random = Random(99);
    let largest = found.iter().fold(0.0, |a: f64, b| a.max(f64::from(b.abs())));
    assert!(largest > 0.0, "{what}: the gradient is zero");
    for i in 0..sample.min(x.len()) {
        let i = if sample < x.len() { random.below(x.len()) } else { i };
        let expected = difference(f, x, i);
        let error = (f64::from(found[i]) - expected).abs();
        assert!(error <= 1e-5 * largest, "{what}: {} for {expected} at {i}", found[i]);
    }
}

fn inner(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

// ---- operations ----

fn of_convolution<B: Backend>(backend: &B) {
    let mut random = Random(1);
    for conv in [
        Conv { n: 2, input: [5, 6, 2], filters: [3, 3, 2], pad: [1, 0, 1, 1], ..Conv::SIMPLE },
        Conv {
            n: 2,
            input: [6, 6, 4],
            filters: [4, 3, 3],
            stride: [2, 2],
            rounding: Rounding::Ceil,
            groups: 2,
            ..Conv::SIMPLE
        },
        Conv { n: 3, input: [3, 3, 2], filters: [4, 3, 3], ..Conv::SIMPLE },
    ] {
        let dims = &conv.dims().unwrap();
        let [x, w, dy] =
            [dims.input(), dims.filter(), dims.output()].map(|s| random.reals(s.len()));
        let b = random.reals(dims.k as usize);
        let x_tensor = tensor(backend, dims.input(), &x);
        let w_tensor = weights(backend, dims.filter(), &w);
        let dy_tensor = tensor(backend, dims.output(), &dy);
        let mut scratch = backend.scratch(&[*dims]).unwrap();
        let mut dx = unwritten(backend, dims.input());
        backend.conv_backward_data(&mut dx, &dy_tensor, &w_tensor, dims, &mut scratch).unwrap();
        let mut g = Param::zeros(backend, dims).unwrap();
        backend
            .conv_backward_filter(&mut g, &dy_tensor, &x_tensor, false, dims, &mut scratch)
            .unwrap();
        let [x, w, b, dy] = [x, w, b, dy].map(|v| widen(&v));
        let loss = |x: &[f64], w: &[f64], b: &[f64]| inner(&twin::conv(dims, x, w, Some(b)), &dy);
        let what = format!("{conv:?}");
        assert_gradient(&values(backend, &dx), &x, &mut |x| loss(x, &w, &b), 999, &what);
        assert_gradient(&values(backend, &g.weight), &w, &mut |w| loss(&x, w, &b), 999, &what);
        assert_gradient(&values(backend, &g.bias), &b, &mut |b| loss(&x, &w, b), 999, &what);
    }
}

/// Relu, then pooling, so that the mask is what the chain makes of it.
fn of_pooling_and_relu<B: Backend>(backend: &B) {
    let mut random = Random(2);
    let dims = &pooling(2, [7, 8, 3], [3, 3], [2, 2], [0, 0, 1, 0], Rounding::Ceil).unwrap();
    let (x, dy) = (random.reals(dims.input().len()), random.reals(dims.output().len()));
    let mut rectified = unwritten(backend, dims.input());
    backend.relu_forward(&mut rectified, &tensor(backend, dims.input(), &x)).unwrap();
    let mut y = unwritten(backend, dims.output());
    let mut switches = bytes(backend, &vec![0; dims.output().len()]);
    backend.maxpool_forward(&mut y, &mut switches, &rectified, dims).unwrap();
    for forward_mask in [false, true] {
        // Under a relu's mask it does not matter where a window without a winner points.
        let mut dx = unwritten(backend, dims.input());
        let dy_tensor = tensor(backend, dims.output(), &dy);
        let mask = forward_mask;
        backend.maxpool_backward(&mut dx, &dy_tensor, &switches, None, mask, dims).unwrap();
        let rule = ReluRule { forward_mask: true, relu_down: false };
        backend.relu_backward(&mut dx, &rectified, None, rule).unwrap();
        let (x, dy) = (widen(&x), widen(&dy));
        // No two of these values are within a step of each other, nor of zero.
        let mut loss = |x: &[f64]| inner(&twin::pool(dims, &twin::relu(x)).0, &dy);
        assert_gradient(&values(backend, &dx), &x, &mut loss, 999, "pooling");
    }
}

/// Winners of any sign, whatever the mask.
fn of_pooling_without_a_relu<B: Backend>(backend: &B) {
    let mut random = Random(9);
    let dims = pooling(2, [7, 8, 3], [3, 2], [2, 1], [0, 0, 1, 0], Rounding::Ceil).unwrap();
    let dims = &PoolDims { any_sign: 1, ..dims };
    // A part of the windows hold nothing positive.
    let x: Vec<f32> = random.reals(dims.input().len()).iter().map(|x| x - 0.5).collect();
    let dy = random.reals(dims.output().len());
    let mut y = unwritten(backend, dims.output());
    let mut switches = bytes(backend, &vec![0; dims.output().len()]);
    let x_tensor = tensor(backend, dims.input(), &x);
    backend.maxpool_forward(&mut y, &mut switches, &x_tensor, dims).unwrap();
    let negative = values(backend, &y).iter().filter(|y| **y < 0.0).count();
    assert!(negative * 8 > dims.output().len(), "only {negative}");
    for mask in [false, true] {
        let mut dx = unwritten(backend, dims.input());
        let dy_tensor = tensor(backend, dims.output(), &dy);
        backend.maxpool_backward(&mut dx, &dy_tensor, &switches, None, mask, dims).unwrap();
        let (x, dy) = (widen(&x), widen(&dy));
        let mut loss = |x: &[f64]| inner(&twin::pool(dims, x).0, &dy);
        assert_gradient(&values(backend, &dx), &x, &mut loss, 999, "pooling");
    }
}

fn of_normalisation<B: Backend>(backend: &B) {
    let mut random = Random(3);
    for (c, size) in [(3, 5), (70, 5), (10, 4), (9, 1)] {
        for beta in [0.75, 1.1] {
            let lrn = &Lrn { size, k: 1.5, alpha: 0.4, beta };
            let shape = Shape::new(2, 2, 1, c);
            let (x, dy) = (random.reals(shape.len()), random.reals(shape.len()));
            let mut dx = unwritten(backend, shape);
            let (x_tensor, dy_tensor) = (tensor(backend, shape, &x), tensor(backend, shape, &dy));
            backend.lrn_backward(&mut dx, &dy_tensor, &x_tensor, None, lrn).unwrap();
            let (x, dy) = (widen(&x), widen(&dy));
            let mut loss = |x: &[f64]| inner(&twin::lrn(x, c, lrn), &dy);
            assert_gradient(&values(backend, &dx), &x, &mut loss, 999, &format!("{lrn:?}, {c}"));
        }
    }
}

/// A mask is linear, and its own transpose: exact on integers at a rate of one half.
fn of_dropout<B: Backend>(backend: &B) {
    let mut random = Random(4);
    for shape in [Shape::new(3, 1, 1, 33), Shape::new(2, 3, 3, 5)] {
        let dropout = Dropout { rate: 0.5, layer: 2 };
        let mut state = backend.state().unwrap();
        let now = StepState { seed: 4, step: 1, first_sample: 3, learning_rate: 0.0 };
        backend.set_state(&mut state, now).unwrap();
        let run = |x: &[f32]| {
            let mut y = unwritten(backend, shape);
            backend.dropout(&mut y, &tensor(backend, shape, x), &dropout, &state).unwrap();
            values(backend, &y)
        };
        let (x, dy) = (random.integers(shape.len(), 9), random.integers(shape.len(), 9));
        assert_eq!(crate::common::dot(&run(&x), &dy), crate::common::dot(&x, &run(&dy)));
    }
}

fn of_the_loss<B: Backend>(backend: &B) {
    let mut random = Random(5);
    let (n, classes) = (3, 7);
    let shape = Shape::new(n, 1, 1, classes);
    let logits: Vec<f32> = random.reals(shape.len()).iter().map(|v| v * 3.0).collect();
    let labels = [2, 0, 6];
    let mut losses = unwritten_in_full(backend, Shape::vector(n));
    let mut gradient = unwritten(backend, shape);
    let label_indices = indices(backend, &labels);
    let logits_tensor = in_full(backend, shape, &logits);
    let mut state = backend.state().unwrap();
    let (losses, dlogits) = (&mut losses, &mut gradient);
    backend
        .softmax_cross_entropy(losses, dlogits, &logits_tensor, &label_indices, 0.25, &mut state)
        .unwrap();
    let mut loss = |logits: &[f64]| {
        let [losses, _] = twin::softmax_cross_entropy(logits, classes, &labels, 1.0);
        0.25 * losses.iter().sum::<f64>()
    };
    assert_gradient(&values(backend, &gradient), &widen(&logits), &mut loss, 999, "loss");
}

// ---- a whole network ----

/// Everything a chain may hold, small; `alpha` is so large that normalisation matters.
const SMALL: &str = r#"
    name = "small"
    classes = 5
    input = { size = 16, resize = 16 }
    layers = [
      { type = "conv", name = "conv1", channels = 6, kernel = 3, pad = [1, 0, 0, 1] },
      { type = "relu" },
      { type = "maxpool", kernel = 3, stride = 2 },
      { type = "lrn", size = 3, k = 1.0, alpha = 0.5 },
      { type = "conv", name = "conv2", channels = 8, kernel = 3, pad = 1, groups = 2 },
      { type = "relu" },
      { type = "maxpool", kernel = 2, stride = 2 },
      { type = "fc", name = "fc3", outputs = 12 },
      { type = "relu" },
      { type = "fc", name = "fc4" },
    ]
    [recipe]
    init = "he"
"#;

/// The network on a backend and on the host, with an input that both have run forward.
struct Both<B: Backend> {
    network: Network,
    params: Params<B>,
    host: twin::HostParams,
    input: Vec<f32>,
    workspace: Workspace<B>,
    pass: twin::ForwardPass,
}

impl<B: Backend> Both<B> {
    fn new(backend: &B, toml: &str, purpose: Purpose, n: usize) -> Self {
        let network = network(toml);
        let params = random_params(backend, &network, 3);
        let host = host_params(backend, &params);
        let input = Random(6).reals(n * network.input().len());
        let mut workspace = Workspace::new(backend, &network, purpose, n).unwrap();
        backend.upload(&mut workspace.input, &input).unwrap();
        workspace.forward(backend, &params).unwrap();
        let pass = twin::forward(&network, &host, n, widen(&input));
        for (layer, expected) in pass.switches.iter().enumerate() {
            if let Some(switches) = workspace.switches(layer).filter(|_| !expected.is_empty()) {
                let mut found = vec![0; expected.len()];
                backend.download_bytes(&mut found, switches).unwrap();
                assert_eq!(&found, expected, "the passes stand on one side of all kinks");
            }
        }
        Both { network, params, host, input, workspace, pass }
    }

    /// How far a pass through so many sums may be off: each layer's roundings, twice over because
    /// the way down meets the way up, and a factor of two.
    fn limit(&self) -> f64 {
        let roots = self.network.convolutions().map(|(_, dims)| dims.filter().per_image() as f64);
        4.0 * f64::from(f32::EPSILON) * roots.map(f64::sqrt).sum::<f64>()
    }

    /// Asserts that `found` is `expected` but for roundings, each value measured by the largest.
    #[track_caller]
    fn assert_close(&self, found: &[f32], expected: &[f64], what: &str) {
        assert_eq!(found.len(), expected.len(), "{what}");
        let limit = self.limit();
        let largest = expected.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
        let error = |(found, expected): (&f32, &f64)| f64::from(*found) - expected;
        for pair in found.iter().zip(expected) {
            assert!(error(pair).abs() <= limit * largest, "{what}: {pair:?}, of {largest}");
        }
        let size = norm(expected.iter().copied());
        assert!(norm(found.iter().zip(expected).map(error)) <= limit * size, "{what} in norm");
    }

    /// The difference of `f` over passes from varied weights or inputs, unless it crosses a kink.
    fn difference(
        &self,
        vary: impl Fn(&mut twin::HostParams, &mut Vec<f64>, f64),
        f: impl Fn(&twin::ForwardPass) -> f64,
    ) -> Option<f64> {
        let pass = |step: f64| {
            let (mut host, mut input) = (self.host.clone(), widen(&self.input));
            vary(&mut host, &mut input, step);
            twin::forward(&self.network, &host, self.pass.n, input)
        };
        let (above, below) = (pass(STEP), pass(-STEP));
        let here = self.pass.pattern(&self.network);
        let same = |pass: &twin::ForwardPass| pass.pattern(&self.network) == here;
        (same(&above) && same(&below)).then(|| (f(&above) - f(&below)) / (2.0 * STEP))
    }
}

fn of_a_network<B: Backend>(backend: &B) {
    of_a_chain(backend, SMALL);
}

fn of_a_network_that_is_grey_and_wide<B: Backend>(backend: &B) {
    of_a_chain(backend, &grey_and_wide(SMALL));
}

/// AlexNet's order: normalisation before pooling.
fn of_a_network_that_normalises_first<B: Backend>(backend: &B) {
    let [pool, norm] = [
        "{ type = \"maxpool\", kernel = 3, stride = 2 },",
        "{ type = \"lrn\", size = 3, k = 1.0, alpha = 0.5 },",
    ];
    let swapped = SMALL.replace(pool, "POOL").replace(norm, pool).replace("POOL", norm);
    assert!(swapped.find("lrn") < swapped.find("maxpool"));
    of_a_chain(backend, &swapped);
}

/// Transposed convolutions: first of all, strided, with groups and uneven pads, below a relu, a pool and
/// a convolution.
fn of_a_network_that_enlarges<B: Backend>(backend: &B) {
    of_a_chain(backend, ENLARGES);
}

const ENLARGES: &str = r#"
    name = "enlarges"
    classes = 5
    input = { size = 6, resize = 6 }
    layers = [
      { type = "conv_transpose", name = "up1", channels = 4, kernel = 4, stride = 2, pad = 1 },
      { type = "relu" },
      { type = "conv", name = "conv2", channels = 6, kernel = 3, pad = 1 },
      { type = "relu" },
      { type = "conv_transpose", name = "up3", channels = 4, kernel = 3, stride = 2, pad = [1, 0, 0, 2], groups = 2 },
      { type = "relu" },
      { type = "maxpool", kernel = 3, stride = 2 },
      { type = "fc", name = "fc4" },
    ]
    [recipe]
    init = "he"
"#;

/// LeNet's order; and pools on pixels, after a normalisation, below one, on another pool, and below a
/// relu, of which the last alone stops what goes to a winner that is not positive.
fn of_networks_that_pool_without_a_relu<B: Backend>(backend: &B) {
    for toml in [LENET, POOLS] {
        of_a_chain(backend, toml);
        let (network, pass) = {
            let both = Both::new(backend, toml, Purpose::Train, 3);
            (both.network, both.pass)
        };
        for (layer, y) in network.layers.iter().zip(&pass.values[1..]) {
            let negative = y.iter().filter(|y| **y < 0.0).count();
            let pools = layer.pooling().is_some();
            assert!(!pools || negative * 50 > y.len(), "{}: {negative} negative", layer.name);
        }
    }
}

const LENET: &str = r#"
    name = "lenet"
    classes = 5
    input = { size = 14, resize = 14 }
    layers = [
      { type = "conv", name = "conv1", channels = 4, kernel = 3 },
      { type = "maxpool", kernel = 2, stride = 2 },
      { type = "conv", name = "conv2", channels = 8, kernel = 3, pad = 1, groups = 2 },
      { type = "maxpool", kernel = 3, stride = 2 },
      { type = "fc", name = "fc3", outputs = 12 },
      { type = "relu" },
      { type = "fc", name = "fc4" },
    ]
    [recipe]
    init = "he"
"#;

const POOLS: &str = r#"
    name = "pools"
    classes = 5
    input = { size = 16, resize = 16 }
    layers = [
      { type = "maxpool", name = "pool0", kernel = 2, stride = 1 },
      { type = "conv", name = "conv1", channels = 6, kernel = 3, pad = 1 },
      { type = "lrn", size = 3, k = 1.0, alpha = 0.5 },
      { type = "maxpool", name = "pool1", kernel = 2, stride = 2 },
      { type = "maxpool", name = "pool1b", kernel = 2, stride = 1 },
      { type = "conv", name = "conv2", channels = 8, kernel = 3, pad = 1 },
      { type = "maxpool", name = "pool2", kernel = 2, stride = 1, pad = 1 },
      { type = "lrn", size = 3, k = 1.0, alpha = 0.5 },
      { type = "conv", name = "conv3", channels = 8, kernel = 3, pad = 1 },
      { type = "maxpool", name = "pool3", kernel = 3, stride = 2 },
      { type = "relu" },
      { type = "fc", name = "fc4" },
    ]
    [recipe]
    init = "he"
"#;

fn of_a_chain<B: Backend>(backend: &B, toml: &str) {
    const N: usize = 3;
    const SAMPLE: usize = 25;
    let both = &mut Both::new(backend, toml, Purpose::Train, N);
    let logits = values(backend, both.workspace.logits());
    both.assert_close(&logits, both.pass.logits(), "logits");

    let labels = [4, 0, 2];
    let label_indices = indices(backend, &labels);
    let scale = 1.0 / N as f32;
    let last = both.network.layers.len() - 1;
    // Down to the weights, and, as training does not, to the pixels.
    let down = |both: &mut Both<B>, gradients: Option<&mut Params<B>>, to| {
        let mut losses = unwritten_in_full(backend, Shape::vector(N));
        both.workspace.loss(backend, &mut losses, &label_indices, scale).unwrap();
        let (from, rule, images, accumulate) = (last, Rule::GRADIENT, None, false);
        let options = BackwardOptions { from, rule, images, gradients, accumulate, to };
        both.workspace.backward(backend, &both.params, options).unwrap();
    };
    let mut gradients = Params::zeros(backend, &both.network).unwrap();
    down(both, Some(&mut gradients), BackwardTo::FirstWeights);
    let gradients = host_params(backend, &gradients);
    let to_pixels = &mut Both::new(backend, toml, Purpose::Project { seeds: N }, N);
    down(to_pixels, None, BackwardTo::Pixels);
    let dx = values(backend, to_pixels.workspace.signal());
    // In two parts, by way of any layer's output, it is the same.
    for from in 0..last {
        down(to_pixels, None, BackwardTo::Output(from));
        let (rule, images, accumulate) = (Rule::GRADIENT, None, false);
        let to = BackwardTo::Pixels;
        let options = BackwardOptions { from, rule, images, gradients: None, accumulate, to };
        to_pixels.workspace.backward(backend, &to_pixels.params, options).unwrap();
        let name = &to_pixels.network.layers[from].name;
        assert_eq!(values(backend, to_pixels.workspace.signal()), dx, "by way of {name}");
    }

    // All of it against the twin's backward pass ...
    let classes = both.network.classes();
    let [_, seed] =
        twin::softmax_cross_entropy(both.pass.logits(), classes, &labels, f64::from(scale));
    let (twin_dx, twin_gradients) =
        twin::backward(&both.network, &both.host, &both.pass, last, seed, Rule::GRADIENT);
    both.assert_close(&dx, &twin_dx, "input");
    let narrow = |values: &[f64]| values.iter().map(|v| *v as f32).collect::<Vec<f32>>();
    for (layer, (found, expected)) in gradients.iter().zip(&twin_gradients).enumerate() {
        let (Some(found), Some(expected)) = (found, expected) else { continue };
        for part in 0..2 {
            let what = format!("gradient of {}", both.network.layers[layer].name);
            both.assert_close(&narrow(&found[part]), &expected[part], &what);
        }
    }

    // ... and a sample of it against differences of the loss.
    let loss = |pass: &twin::ForwardPass| {
        let [losses, _] = twin::softmax_cross_entropy(pass.logits(), classes, &labels, 1.0);
        losses.iter().sum::<f64>() * f64::from(scale)
    };
    let mut random = Random(7);
    let (mut kept, mut all) = (0, 0);
    let mut check = |found: &[f64], difference: &dyn Fn(usize) -> Option<f64>, what: &str| {
        let largest = found.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
        for _ in 0..SAMPLE {
            let i = random.below(found.len());
            all += 1;
            let Some(expected) = difference(i) else { continue };
            kept += 1;
            let error = (found[i] - expected).abs();
            let limit = both.limit() * largest;
            assert!(error <= limit, "{what}: {} for {expected} at {i}, of {largest}", found[i]);
        }
    };
    for (layer, found) in gradients.iter().enumerate() {
        let Some(found) = found else { continue };
        for (part, name) in ["weights", "biases"].iter().enumerate() {
            if part == 1 && !both.network.layers[layer].has_bias() {
                assert!(found[part].iter().all(|v| *v == 0.0), "no bias is learnt");
                continue;
            }
            let what = format!("{name} of {}", both.network.layers[layer].name);
            let difference = |i: usize| {
                both.difference(
                    |host, _, step| host[layer].as_mut().unwrap()[part][i] += step,
                    loss,
                )
            };
            check(&found[part], &difference, &what);
        }
    }
    let difference = |i: usize| both.difference(|_, input, step| input[i] += step, loss);
    check(&widen(&dx), &difference, "pixels");
    assert!(kept * 10 >= all * 9, "only {kept} of {all} places are away from kinks");
}

/// The backward pass from one unit, by the rule of the gradient, is the derivative of its activation.
fn of_single_activations<B: Backend>(backend: &B) {
    let both = &mut Both::new(backend, SMALL, Purpose::Project { seeds: 1 }, 1);
    let mut random = Random(8);
    let (mut kept, mut all) = (0, 0);
    for name in ["conv1", "pool1", "norm1", "conv2", "pool2", "fc3", "fc4"] {
        let layer = both.network.layer(name).unwrap();
        // A convolution's unit is seen after the relu that follows it.
        let fires = if name.starts_with("conv") || name == "fc3" { layer + 1 } else { layer };
        let activations = &both.pass.values[fires + 1];
        let positive: Vec<usize> =
            (0..activations.len()).filter(|unit| activations[*unit] > 0.0).collect();
        for _ in 0..3 {
            let unit = positive[random.below(positive.len())];
            let Shape { w, c, .. } = both.network.layers[layer].output;
            let place = SeedUnit {
                map: (unit % c) as u32,
                y: (unit / c / w) as u32,
                x: (unit / c % w) as u32,
                value: 1.0,
            };
            let signal = both.workspace.signal();
            signal.reshape(both.network.layers[layer].output);
            backend.scatter_units(signal, &[place]).unwrap();
            let options = BackwardOptions {
                from: layer,
                rule: Rule::GRADIENT,
                images: None,
                gradients: None,
                accumulate: false,
                to: BackwardTo::Pixels,
            };
            both.workspace.backward(backend, &both.params, options).unwrap();
            let dx = values(backend, both.workspace.signal());
            let largest = dx.iter().fold(0.0, |a: f64, b| a.max(f64::from(b.abs())));
            assert!(largest > 0.0, "{name}, {place:?}");
            // Pixels that it sees, and a few others.
            let seen: Vec<usize> = (0..dx.len()).filter(|i| dx[*i] != 0.0).collect();
            for i in (0..30).map(|i| match i {
                0..20 => seen[random.below(seen.len())],
                _ => random.below(dx.len()),
            }) {
                all += 1;
                let activation = |pass: &twin::ForwardPass| pass.values[fires + 1][unit];
                let vary = |_: &mut _, input: &mut Vec<f64>, step| input[i] += step;
                let Some(expected) = both.difference(vary, activation) else { continue };
                kept += 1;
                let error = (f64::from(dx[i]) - expected).abs();
                let limit = both.limit() * largest;
                assert!(error <= limit, "{name}: {} for {expected} at {i}", dx[i]);
            }
        }
    }
    assert!(kept * 10 >= all * 9, "only {kept} of {all} places are away from kinks");
}
