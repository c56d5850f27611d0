//! The deconvnet: what the paper says of it, by hand, by properties, and against a naive twin.

use crate::common::{
    Random, bits, grey_and_wide, host_params, indices, is_stand_in, mini, network, random_params,
    twin, values, widen,
};
use zfnet::Error;
use zfnet::backend::{Backend, Crop, Peak, SeedUnit};
use zfnet::model::{
    BackwardOptions, BackwardTo, LrnRule, Network, Params, Preprocess, Projector, Purpose, Rule,
    Seed, Workspace, strongest,
};
use zfnet::shape::Shape;

on_every_backend!(
    rules_by_hand,
    unpooling_by_hand,
    unpooling_without_a_relu_by_hand,
    scaling_the_seed_scales_the_picture,
    rules_agree_where_all_is_positive,
    normalisation_is_skipped,
    projector_refuses_what_did_not_fire,
    peaks_and_the_strongest,
    gradients_reach_all_that_a_unit_sees,
    windows_equal_whole_maps_on_integers,
    windows_are_all_that_descends,
    enlarging_by_hand,
);
mod full_size {
    use super::*;
    on_fast_backends!(projections_stay_inside_the_receptive_field);
}
// The forward passes, and so the switches, agree with the twin's, and with those of another batch, in f32.
mod in_f32 {
    use super::*;
    in_f32!(
        rules_equal_the_naive_pass,
        seeds_that_share_a_forward_pass_equal_single_ones,
        windows_equal_whole_maps,
    );
}

const RULES: [(&str, Rule); 3] =
    [("deconvnet", Rule::DECONVNET), ("gradient", Rule::GRADIENT), ("guided", Rule::GUIDED)];

/// A network with weights, and a workspace that has run `n` inputs forward.
struct Passes<'a, B: Backend> {
    backend: &'a B,
    network: Network,
    params: Params<B>,
    workspace: Workspace<B>,
}

impl<'a, B: Backend> Passes<'a, B> {
    fn new(backend: &'a B, network: Network, params: Params<B>, input: &[f32]) -> Self {
        let n = input.len() / network.input().len();
        let purpose = Purpose::Project { seeds: 8 };
        let mut workspace = Workspace::new(backend, &network, purpose, n).unwrap();
        backend.upload(&mut workspace.input, input).unwrap();
        workspace.forward(backend, &params).unwrap();
        Passes { backend, network, params, workspace }
    }

    /// Runs backward from what has been written into `signal` of a layer's `n` samples.
    fn down(&mut self, from: usize, images: &[u32], seed: &[f32], rule: Rule) -> Vec<f32> {
        let signal = self.workspace.signal();
        signal.reshape(self.network.layers[from].output.with_n(images.len()));
        self.backend.upload(signal, seed).unwrap();
        let images = indices(self.backend, images);
        let options = BackwardOptions {
            from,
            rule,
            images: Some(&images),
            gradients: None,
            accumulate: false,
            to: BackwardTo::Pixels,
        };
        self.workspace.backward(self.backend, &self.params, options).unwrap();
        values(self.backend, self.workspace.signal())
    }

    /// The same from single units, by windows.
    fn windows(&mut self, from: usize, images: &[u32], units: &[SeedUnit], rule: Rule) -> Vec<f32> {
        let images = indices(self.backend, images);
        let mut pictures = vec![f32::NAN; units.len() * self.network.input().len()];
        self.workspace
            .project(self.backend, &self.params, from, rule, &images, units, &mut pictures)
            .unwrap();
        pictures
    }

    /// Projects one unit of the first image.
    fn project(&mut self, layer: &str, unit: usize, value: f32, rule: Rule) -> Vec<f32> {
        let from = self.network.layer(layer).unwrap();
        let mut seed = vec![0.0; self.network.layers[from].output.len()];
        seed[unit] = value;
        self.down(from, &[0], &seed, rule)
    }
}

/// Weights as given, layer by layer, biases zero.
fn given<B: Backend>(backend: &B, network: &Network, weights: &[&[f32]]) -> Params<B> {
    let mut params = Params::weights(backend, network).unwrap();
    let layers = params.layers.iter_mut().flatten();
    for (param, weights) in layers.zip(weights) {
        backend.upload(&mut param.weight, weights).unwrap();
    }
    params
}

/// One pixel of red 1. Three maps see red times 1, -1 and 0.5: they fire with 1, 0 and 0.5. The
/// unit above weighs them by 2, 3 and -1: it fires with 1.5.
///
/// From 1, down come 2, 3 and -1. The gradient lets through what fired, 2 and -1: red gets
/// 2 * 1 - 1 * 0.5 = 1.5. Guided also drops the negative: red gets 2. The deconvnet does not ask who
/// fired, and drops the negative: red gets 2 * 1 + 3 * -1 = -1; the pixels are not rectified.
fn rules_by_hand<B: Backend>(backend: &B) {
    let network = network(
        r#"
        name = "hand"
        classes = 2
        input = { size = 1, resize = 1 }
        layers = [
          { type = "conv", name = "conv1", channels = 3, kernel = 1 },
          { type = "relu" },
          { type = "fc", name = "fc2" },
        ]"#,
    );
    let conv1 = [1., 0., 0., -1., 0., 0., 0.5, 0., 0.];
    let params = given(backend, &network, &[&conv1, &[2., 3., -1., 0., 0., 0.]]);
    let mut passes = Passes::new(backend, network, params, &[1., 0., 0.]);
    let logits = values(backend, passes.workspace.output(2));
    assert_eq!(logits, [1.5, 0.]);
    for ((name, rule), red) in RULES.iter().zip([-1., 1.5, 2.]) {
        assert_eq!(passes.project("fc2", 0, 1.0, *rule), [red, 0., 0.], "{name}");
        assert_eq!(Rule::named(name).unwrap(), *rule);
    }
    assert!(Rule::named("saliency").is_err());
    assert_eq!(Rule::DECONVNET.seed_value(1.5), 1.5);
    assert_eq!(Rule::GUIDED.seed_value(1.5), 1.5);
    assert_eq!(Rule::GRADIENT.seed_value(1.5), 1.0);
}

/// Two rows of two pixels, [[1, 2], [3, 4]] in red, enlarged by a 3x3 filter with a stride of 2: each
/// pixel lays the filter, times itself, around twice its place; where they overlap they add. Down
/// comes, for each pixel, the filter times what lies there.
fn enlarging_by_hand<B: Backend>(backend: &B) {
    let network = network(
        r#"
        name = "hand"
        classes = 0
        input = { size = 2, resize = 2 }
        layers = [{ type = "conv_transpose", name = "up", channels = 1, kernel = 3, stride = 2, pad = [0, 1, 1, 0] }]"#,
    );
    let mut weights = [0.0; 27]; // [in, rows, columns, out]
    weights[..9].copy_from_slice(&[1., 2., 3., 4., 5., 6., 7., 8., 9.]);
    let params = given(backend, &network, &[&weights]);
    let input = [1., 0., 0., 2., 0., 0., 3., 0., 0., 4., 0., 0.];
    let mut passes = Passes::new(backend, network, params, &input);
    // Without pads: [[1, 2, 5, 4, 6], [4, 5, 14, 10, 12], [10, 14, 36, 24, 30], [12, 15, 34, 20, 24],
    // [21, 24, 55, 32, 36]]; the last row and the first column are padding.
    let expected = [2., 5., 4., 6., 5., 14., 10., 12., 14., 36., 24., 30., 15., 34., 20., 24.];
    assert_eq!(values(backend, passes.workspace.output(0)), expected);
    assert_eq!(passes.workspace.output(0).shape(), Shape::new(1, 4, 4, 1));
    for (_, rule) in RULES {
        // The place in row 2 and column 1 is reached by all four.
        let found = passes.project("up", 2 * 4 + 1, 1.0, rule);
        assert_eq!(found, [9., 0., 0., 7., 0., 0., 3., 0., 0., 1., 0., 0.]);
        let unit = SeedUnit { map: 0, y: 2, x: 1, value: 1.0 };
        assert_eq!(passes.windows(0, &[0], &[unit], rule), found);
    }
}

/// A map that is the red of 5x5 pixels, pooled by 3x3 with a stride of 2: four windows, which
/// share the pixel in the middle.
fn unpooling_by_hand<B: Backend>(backend: &B) {
    let network = network(
        r#"
        name = "hand"
        classes = 2
        input = { size = 5, resize = 5 }
        layers = [
          { type = "conv", name = "conv1", channels = 1, kernel = 1 },
          { type = "relu" },
          { type = "maxpool", kernel = 3, stride = 2 },
          { type = "fc", name = "fc2" },
        ]"#,
    );
    let weights: [&[f32]; 2] = [&[1., 0., 0.], &[1., 2., 3., -1., 0., 0., 0., 0.]];
    let image = |red: [[f32; 5]; 5]| -> Vec<f32> {
        red.iter().flatten().flat_map(|red| [*red, 0., 0.]).collect()
    };
    let cases = [
        // The middle wins all four windows: what they bring is added, 1 + 2 + 3 - 1.
        (
            [
                [0., 0., 0., 0., 0.],
                [0., 1., 0., 2., 0.],
                [0., 0., 9., 0., 0.],
                [0., 3., 0., 4., 0.],
                [0., 0., 0., 0., 0.],
            ],
            [
                [0., 0., 0., 0., 0.],
                [0., 0., 0., 0., 0.],
                [0., 0., 5., 0., 0.],
                [0., 0., 0., 0., 0.],
                [0., 0., 0., 0., 0.],
            ],
        ),
        // Each window has a winner of its own; -1 comes down and is rectified.
        (
            [
                [0., 0., 0., 0., 7.],
                [0., 1., 0., 0., 0.],
                [0., 0., 0., 0., 0.],
                [5., 0., 0., 0., 0.],
                [0., 5., 0., 4., 0.],
            ],
            [
                [0., 0., 0., 0., 2.],
                [0., 1., 0., 0., 0.],
                [0., 0., 0., 0., 0.],
                [3., 0., 0., 0., 0.], // the first of the two fives
                [0., 0., 0., 0., 0.],
            ],
        ),
        // Nothing is positive: each value goes to its window's first place.
        (
            [[-1.; 5], [0.; 5], [0.; 5], [-2.; 5], [0.; 5]],
            [[1., 0., 2., 0., 0.], [0.; 5], [3., 0., 0., 0., 0.], [0.; 5], [0.; 5]],
        ),
    ];
    for (red, expected) in cases {
        let params = given(backend, &network, &weights);
        let mut passes = Passes::new(backend, network.clone(), params, &image(red));
        let found = passes.project("fc2", 0, 1.0, Rule::DECONVNET);
        assert_eq!(found, image(expected), "unpooled, of {red:?}");
        let nothing_fired = red.iter().flatten().all(|v| *v <= 0.0);
        let gradient = passes.project("fc2", 0, 1.0, Rule::GRADIENT);
        assert_eq!(gradient.iter().all(|v| *v == 0.0), nothing_fired, "a forward mask");
    }
}

/// The same pools without a relu, of pixels below zero: each value goes to its window's winner, by every
/// rule.
fn unpooling_without_a_relu_by_hand<B: Backend>(backend: &B) {
    let network = network(
        r#"
        name = "hand"
        classes = 2
        input = { size = 5, resize = 5 }
        layers = [
          { type = "conv", name = "conv1", channels = 1, kernel = 1 },
          { type = "maxpool", kernel = 3, stride = 2 },
          { type = "fc", name = "fc2" },
        ]"#,
    );
    let weights: [&[f32]; 2] = [&[1., 0., 0.], &[1., 2., 3., -1., 0., 0., 0., 0.]];
    let image = |red: [[f32; 5]; 5]| -> Vec<f32> {
        red.iter().flatten().flat_map(|red| [*red, 0., 0.]).collect()
    };
    let red = [
        [-9., -9., -9., -9., -9.],
        [-9., -1., -9., -9., -2.],
        [-9., -9., -9., -9., -9.],
        [-9., -9., -9., 0., -9.],
        [-9., -9., -4., -9., -9.],
    ];
    let expected = [
        [0., 0., 0., 0., 0.],
        [0., 1., 0., 0., 2.],
        [0., 0., 0., 0., 0.],
        [0., 0., 0., -1., 0.],
        [0., 0., 3., 0., 0.],
    ];
    let params = given(backend, &network, &weights);
    let mut passes = Passes::new(backend, network, params, &image(red));
    for (name, rule) in RULES {
        assert_eq!(passes.project("fc2", 0, 1.0, rule), image(expected), "{name}");
    }
    let unit = SeedUnit { map: 0, y: 0, x: 1, value: 1.0 };
    let pool = passes.network.layer("pool1").unwrap();
    let mut expected = vec![0.0; 75];
    expected[(5 + 4) * 3] = 1.0;
    for (name, rule) in RULES {
        assert_eq!(passes.windows(pool, &[0], &[unit], rule), expected, "{name}, windows");
    }
}

/// All that a chain may hold, small, with a large `alpha`.
const SMALL: &str = r#"
    name = "small"
    classes = 5
    input = { size = 20, resize = 20 }
    layers = [
      { type = "conv", name = "conv1", channels = 6, kernel = 5, pad = [2, 1, 1, 2] },
      { type = "relu" },
      { type = "maxpool", kernel = 3, stride = 2 },
      { type = "lrn", size = 3, k = 1.0, alpha = 0.5 },
      { type = "conv", name = "conv2", channels = 8, kernel = 3, pad = 1, groups = 2 },
      { type = "relu" },
      { type = "maxpool", kernel = 3, stride = 2 },
      { type = "conv", name = "conv3", channels = 9, kernel = 3, stride = 2 },
      { type = "relu" },
      { type = "fc", name = "fc4", outputs = 12 },
      { type = "relu" },
      { type = "dropout" },
      { type = "fc", name = "fc5" },
    ]
    [recipe]
    init = "he"
"#;

/// The small network with random weights and `n` random inputs.
fn small<B: Backend>(
    backend: &B,
    n: usize,
) -> (Passes<'_, B>, twin::HostParams, twin::ForwardPass) {
    random_passes(backend, SMALL, n)
}

fn random_passes<'a, B: Backend>(
    backend: &'a B,
    toml: &str,
    n: usize,
) -> (Passes<'a, B>, twin::HostParams, twin::ForwardPass) {
    let network = network(toml);
    let params = random_params(backend, &network, 5);
    let input = Random(1).reals(n * network.input().len());
    let host = host_params(backend, &params);
    let pass = twin::forward(&network, &host, n, widen(&input));
    (Passes::new(backend, network, params, &input), host, pass)
}

/// Every rule, from every layer, all maps seeded at once: sums of at most a few hundred products,
/// three of them in a row, err by a few millionths of the largest.
fn rules_equal_the_naive_pass<B: Backend>(backend: &B) {
    let mut random = Random(2);
    let mut all = Vec::new();
    for forward_mask in [false, true] {
        for relu_down in [false, true] {
            for lrn in [LrnRule::Identity, LrnRule::Derivative] {
                all.push(Rule { forward_mask, relu_down, lrn });
            }
        }
    }
    for toml in [SMALL, POOLS] {
        let (mut passes, host, pass) = random_passes(backend, toml, 2);
        for from in 0..passes.network.layers.len() {
            // The pass holds a convolution and the relu above it as one.
            let layers = &passes.network.layers;
            let next = layers.get(from + 1).is_some_and(|layer| layer.name.starts_with("relu"));
            let twin_from = if layers[from].has_bias() && next { from + 1 } else { from };
            let seed = random.reals(2 * passes.network.layers[from].output.len());
            for &rule in &all {
                let found = passes.down(from, &[0, 1], &seed, rule);
                let network = &passes.network;
                let (expected, _) =
                    twin::backward(network, &host, &pass, twin_from, widen(&seed), rule);
                let largest = expected.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
                for (found, expected) in found.iter().zip(&expected) {
                    let error = (f64::from(*found) - expected).abs();
                    let name = &network.layers[from].name;
                    assert!(error <= 1e-5 * largest, "{name}, {rule:?}: {found} for {expected}");
                }
            }
        }
    }
}

/// No bias on the way down: twice the seed is exactly twice the picture.
fn scaling_the_seed_scales_the_picture<B: Backend>(backend: &B) {
    let (mut passes, _, _) = small(backend, 1);
    for layer in ["conv1", "pool1", "norm1", "conv2", "pool2", "conv3", "fc4", "fc5"] {
        for (name, rule) in RULES {
            let unit = 3;
            let one = passes.project(layer, unit, 0.7, rule);
            let two = passes.project(layer, unit, 1.4, rule);
            let doubled: Vec<f32> = one.iter().map(|v| 2.0 * v).collect();
            assert_eq!(two, doubled, "{name} from {layer}");
            let fires =
                values(backend, passes.workspace.output(passes.network.layer(layer).unwrap()));
            let reaches = rule == Rule::DECONVNET || fires[unit] > 0.0 || layer == "fc5";
            assert_eq!(one.iter().any(|v| *v != 0.0), reaches, "{name} from {layer}");
        }
    }
}

/// Positive weights and pixels: everything fires, nothing that descends is negative, so that no
/// rule has anything to decide, but for normalisation, of which there is none here.
fn rules_agree_where_all_is_positive<B: Backend>(backend: &B) {
    let without = SMALL.replace("{ type = \"lrn\", size = 3, k = 1.0, alpha = 0.5 },", "");
    let network = network(&without);
    let mut params = Params::weights(backend, &network).unwrap();
    let mut random = Random(3);
    for param in params.layers.iter_mut().flatten() {
        for tensor in [&mut param.weight, &mut param.bias] {
            let positive: Vec<f32> =
                random.reals(tensor.shape().len()).iter().map(|v| v.abs() + 0.01).collect();
            backend.upload(tensor, &positive).unwrap();
        }
    }
    let input: Vec<f32> =
        random.reals(network.input().len()).iter().map(|v| v.abs() + 0.01).collect();
    let mut passes = Passes::new(backend, network, params, &input);
    for layer in ["conv1", "pool1", "conv2", "pool2", "conv3", "fc4", "fc5"] {
        let pictures = RULES.map(|(_, rule)| bits(&passes.project(layer, 2, 1.0, rule)));
        assert!(pictures[0].iter().any(|v| *v != 0), "{layer}");
        assert!(pictures.iter().all(|picture| *picture == pictures[0]), "{layer}");
    }
    // With weights of both signs they do not.
    let (mut passes, _, pass) = small(backend, 1);
    let unit = pass.values[9].iter().position(|v| *v > 0.0).unwrap();
    let pictures = RULES.map(|(_, rule)| passes.project("conv3", unit, 1.0, rule));
    assert!(pictures[0] != pictures[1] && pictures[1] != pictures[2] && pictures[2] != pictures[0]);
}

/// Without pools and masks the deconvnet does not look at the way up at all: with normalisation or
/// without, it gives the same picture. The gradient does not.
fn normalisation_is_skipped<B: Backend>(backend: &B) {
    let with = r#"
        name = "norm"
        classes = 3
        input = { size = 9, resize = 9 }
        layers = [
          { type = "conv", name = "conv1", channels = 4, kernel = 3 },
          { type = "relu" },
          { type = "lrn", name = "norm1", alpha = 0.5 },
          { type = "conv", name = "conv2", channels = 5, kernel = 3 },
          { type = "relu" },
          { type = "fc", name = "fc3" },
        ]"#;
    let without = with.replace("{ type = \"lrn\", name = \"norm1\", alpha = 0.5 },", "");
    let mut random = Random(4);
    let weights = [4 * 27, 5 * 36, 3 * 125].map(|count| random.reals(count));
    let input = random.reals(9 * 9 * 3);
    let mut lookers = [with, &without].map(|toml| {
        let network = network(toml);
        let params = given(backend, &network, &weights.each_ref().map(|w| w.as_slice()));
        Passes::new(backend, network, params, &input)
    });
    for layer in ["conv2", "fc3"] {
        let [with, without] =
            lookers.each_mut().map(|passes| passes.project(layer, 1, 1.0, Rule::DECONVNET));
        assert!(with.iter().any(|v| *v != 0.0));
        assert_eq!(bits(&with), bits(&without), "{layer}");
    }
    let all_fire = Rule { forward_mask: false, ..Rule::GRADIENT };
    let [with, without] = lookers.each_mut().map(|passes| passes.project("fc3", 1, 1.0, all_fire));
    assert_ne!(with, without, "the gradient does not skip it");
}

/// Squares of random pixels for a preset, and crops of them.
fn random_pixels(network: &Network, images: usize) -> (Preprocess, Vec<u8>, Vec<Crop>) {
    let input = network.architecture.input;
    let preprocess = input.preprocess(vec![128.0; 3]);
    let pixels = Random(5).bytes(images * preprocess.bytes());
    let crop = |image: usize| preprocess.ten_crops(image as u32)[image % 10];
    let crops = (0..images).map(crop).collect();
    (preprocess, pixels, crops)
}

/// The strongest units of a layer, in turn of all images.
fn strongest_seeds<B: Backend>(
    projector: &Projector<'_, B>,
    network: &Network,
    layer: usize,
    images: usize,
    each: usize,
) -> Vec<Seed> {
    let peaks = projector.peaks(layer).unwrap();
    let shape = network.layers[layer].output;
    let units: Vec<Vec<SeedUnit>> =
        peaks.chunks(shape.c).map(|peaks| strongest(peaks, shape.w, each)).collect();
    assert_eq!(units.len(), images);
    let seed = |(i, image): (usize, usize)| Seed { image: image as u32, unit: units[image][i] };
    (0..each).flat_map(|i| (0..images).rev().map(move |image| (i, image))).map(seed).collect()
}

/// The CPU sums in the same order whatever the batch. A GPU cuts the sums of few samples in more
/// parts: roundings of a few hundred products, three layers of them, as in the test above.
#[track_caller]
fn same_for_any_batch<B: Backend>(backend: &B, found: &[f32], expected: &[f32], what: &str) {
    if backend.device() == "cpu" {
        assert!(bits(found) == bits(expected), "{what}");
    }
    let largest = expected.iter().fold(0.0, |a: f32, b| a.max(b.abs()));
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-5 * largest, "{what}: {found} for {expected}");
    }
}

fn seeds_that_share_a_forward_pass_equal_single_ones<B: Backend>(backend: &B) {
    let network = Network::new(mini(backend)).unwrap();
    let params = random_params(backend, &network, 6);
    let (preprocess, pixels, crops) = random_pixels(&network, 3);
    let len = network.input().len();
    let side = preprocess.bytes();
    // Seven seeds at a time do not divide them: the last batch is smaller.
    let mut many = Projector::new(backend, &network, &params, &preprocess, 3, 7).unwrap();
    let mut single = Projector::new(backend, &network, &params, &preprocess, 1, 1).unwrap();
    many.look(&pixels, &crops).unwrap();
    for name in ["conv1", "pool1", "norm1", "conv3", "pool5", "fc6", "fc7", "fc8"] {
        let layer = network.layer(name).unwrap();
        let seeds = strongest_seeds(&many, &network, layer, 3, 4);
        for (rule_name, rule) in RULES {
            let mut pictures = vec![Vec::new(); seeds.len()];
            many.project(layer, &seeds, rule, |i, picture| {
                pictures[i] = picture.to_vec();
                Ok(())
            })
            .unwrap();
            for (seed, picture) in seeds.iter().zip(&pictures) {
                let image = seed.image as usize;
                let crop = Crop { image: 0, ..crops[image] };
                single.look(&pixels[image * side..][..side], &[crop]).unwrap();
                let alone = Seed { image: 0, ..*seed };
                let mut calls = 0;
                single
                    .project(layer, &[alone], rule, |i, found| {
                        calls += 1;
                        assert_eq!((i, found.len()), (0, len));
                        let what = format!("{rule_name} of {seed:?} in {name}");
                        same_for_any_batch(backend, found, picture, &what);
                        Ok(())
                    })
                    .unwrap();
                assert_eq!(calls, 1);
            }
        }
    }
}

fn projector_refuses_what_did_not_fire<B: Backend>(backend: &B) {
    let network = network(SMALL);
    let params = random_params(backend, &network, 7);
    let (preprocess, pixels, crops) = random_pixels(&network, 1);
    let mut projector = Projector::new(backend, &network, &params, &preprocess, 1, 2).unwrap();
    projector.look(&pixels, &crops).unwrap();
    let layer = network.layer("conv2").unwrap();
    let seed = |value| Seed { image: 0, unit: SeedUnit { map: 3, y: 2, x: 1, value } };
    for value in [0.0, -0.0, -1.5, f32::NAN] {
        let seeds = [seed(1.0), seed(value)];
        let error = projector
            .project(layer, &seeds, Rule::DECONVNET, |_, _| panic!("nothing is to be projected"));
        let message = error.unwrap_err().to_string();
        for word in ["conv2", "3", "(2, 1)", "did not fire"] {
            assert!(message.contains(word), "{word} in {message}");
        }
    }
    // What the caller refuses comes back.
    let refuse = |_, _: &[f32]| Err(Error::callback("enough"));
    let error = projector.project(layer, &[seed(1.0)], Rule::DECONVNET, refuse).unwrap_err();
    assert!(error.to_string().contains("enough"));
}

fn peaks_and_the_strongest<B: Backend>(backend: &B) {
    let network = network(SMALL);
    let params = random_params(backend, &network, 8);
    let (preprocess, pixels, crops) = random_pixels(&network, 2);
    let mut projector = Projector::new(backend, &network, &params, &preprocess, 2, 1).unwrap();
    projector.look(&pixels, &crops).unwrap();
    let layer = network.layer("conv2").unwrap();
    let peaks = projector.peaks(layer).unwrap();
    let activations = values(backend, projector.workspace.output(layer));
    let shape = network.layers[layer].output;
    assert_eq!(peaks.len(), 2 * shape.c);
    for (i, peak) in peaks.iter().enumerate() {
        let (image, map) = (i / shape.c, i % shape.c);
        let at = |place: usize| activations[image * shape.len() + place * shape.c + map];
        assert!(peak.value == at(peak.position as usize));
        assert!((0..shape.h * shape.w).all(|place| at(place) <= peak.value));
    }
    // Strongest first, the lower map of equals, and none that did not fire.
    let peak = |value, position| Peak { value, position };
    let peaks = [peak(1.0, 7), peak(0.0, 0), peak(3.0, 5), peak(-1.0, 2), peak(1.0, 3)];
    let units = strongest(&peaks, 3, 9);
    let found: Vec<_> = units.iter().map(|unit| (unit.map, unit.y, unit.x, unit.value)).collect();
    assert_eq!(found, [(2, 1, 2, 3.0), (0, 2, 1, 1.0), (4, 1, 0, 1.0)]);
    assert_eq!(strongest(&peaks, 3, 2), units[..2]);
}

/// Whatever the rule, and from the corners, the edges and the middle of every map.
fn projections_stay_inside_the_receptive_field<B: Backend>(backend: &B) {
    let network = Network::new(mini(backend)).unwrap();
    let params = random_params(backend, &network, 9);
    let size = network.input().h;
    let input = Random(6).reals(network.input().len());
    let mut passes = Passes::new(backend, network, params, &input);
    let mut confined = 0;
    for layer in 0..passes.network.layers.len() {
        let (name, output, field) = {
            let layer = &passes.network.layers[layer];
            (layer.name.clone(), layer.output, layer.field)
        };
        if name.starts_with("fc") {
            break;
        }
        // On a stand-in the corners must do.
        let places = match is_stand_in(backend) {
            true => vec![0, output.h - 1],
            false => vec![0, 1, output.h / 2, output.h - 1],
        };
        for (y, x) in places.iter().flat_map(|y| places.iter().map(|x| (*y, *x))) {
            // All maps of one place, so that something comes through.
            let mut seed = vec![0.0; output.len()];
            seed[(y * output.w + x) * output.c..][..output.c].fill(1.0);
            for (rule_name, rule) in RULES {
                let picture = passes.down(layer, &[0], &seed, rule);
                let ((top, bottom), (left, right)) = (field[0].seen(y), field[1].seen(x));
                let what = format!("{rule_name} from {name} at ({y}, {x})");
                assert!(picture.iter().any(|v| *v != 0.0), "{what} is empty");
                for (i, j, c) in twin::places(size, size, 3) {
                    let inside =
                        (top..bottom).contains(&(i as i64)) && (left..right).contains(&(j as i64));
                    let value = picture[(i * size + j) * 3 + c];
                    assert!(inside || value == 0.0, "{what}: {value} at ({i}, {j})");
                    confined += usize::from(!inside);
                }
            }
        }
    }
    assert!(confined > 100_000);
    // A convolution's field is filled to its edges where nothing is masked.
    let all = Rule { forward_mask: false, relu_down: false, lrn: LrnRule::Identity };
    let layer = passes.network.layer("conv1").unwrap();
    let field = passes.network.layers[layer].field[0];
    let unit =
        (5 * passes.network.layers[layer].output.w + 5) * passes.network.layers[layer].output.c;
    let picture = passes.project("conv1", unit, 1.0, all);
    let (first, end) = field.of(5);
    for corner in [(first, first), (first, end - 1), (end - 1, first), (end - 1, end - 1)] {
        assert!(picture[(corner.0 as usize * size + corner.1 as usize) * 3] != 0.0, "{corner:?}");
    }
}

/// Rounds down everywhere, so that for most sizes the last pixels are in no window.
pub fn rounding_down(size: usize) -> Network {
    network(&format!(
        r#"
        name = "floor"
        classes = 3
        input = {{ size = {size}, resize = {size} }}
        layers = [
          {{ type = "conv", name = "conv1", channels = 24, kernel = 7, stride = 4, rounding = "floor" }},
          {{ type = "relu" }},
          {{ type = "maxpool", kernel = 3, stride = 2, pad = 1, rounding = "floor" }},
          {{ type = "conv", name = "conv2", channels = 16, kernel = 3, stride = 2, pad = 1, rounding = "floor" }},
          {{ type = "relu" }},
          {{ type = "fc", name = "fc3" }},
        ]
        [recipe]
        init = "he""#
    ))
}

/// And no further: of units at the edges, where rounding down leaves pixels in no window. All maps together, over
/// several inputs, since a pooling hands a gradient to one place of its window only.
fn gradients_reach_all_that_a_unit_sees<B: Backend>(backend: &B) {
    let sizes = if is_stand_in(backend) { 64..=64 } else { 57..=66 };
    let mut clipped = 0;
    for network in sizes.map(rounding_down) {
        let size = network.input().h;
        let mut seen: Vec<[[usize; 2]; 4]> = Vec::new(); // rows and columns of each place
        for input in 0..6 {
            let params = random_params(backend, &network, input);
            let values = Random(input + 7).reals(network.input().len());
            let mut passes = Passes::new(backend, network.clone(), params, &values);
            let mut number = 0;
            for layer in 0..4 {
                let output = network.layers[layer].output;
                for place in [0, output.h - 2, output.h - 1] {
                    let mut seed = vec![0.0; output.len()];
                    seed[(place * output.w + place) * output.c..][..output.c].fill(1.0);
                    let picture = passes.down(layer, &[0], &seed, Rule::GRADIENT);
                    let lit = |axis: usize| {
                        let places = twin::places(size, size, 3);
                        let values = places.zip(&picture).filter(|(_, value)| **value != 0.0);
                        let on_axis = values.map(|((i, j, _), _)| [i, j][axis]);
                        on_axis.fold([size, 0], |[low, high], v| [low.min(v), high.max(v + 1)])
                    };
                    let field = network.layers[layer].field;
                    let expected = [field[0].seen(place), field[1].seen(place)]
                        .map(|(first, end)| [first as usize, end as usize]);
                    if input == 0 {
                        seen.push([[size, 0], [size, 0], expected[0], expected[1]]);
                        clipped += usize::from(
                            field[0].of(place).1.min(size as i64) > expected[0][1] as i64,
                        );
                    }
                    for axis in [0, 1] {
                        let [low, high] = lit(axis);
                        let reached = &mut seen[number][axis];
                        *reached = [reached[0].min(low), reached[1].max(high)];
                    }
                    number += 1;
                }
            }
        }
        for (number, [rows, columns, expected_rows, expected_columns]) in seen.iter().enumerate() {
            let what = format!("place {} of layer {}, {size} pixels", number % 3, number / 3);
            assert_eq!((rows, columns), (expected_rows, expected_columns), "{what}");
        }
    }
    assert!(clipped > 0);
}

/// Pads of all sizes, pools that overlap, one on the other, with pads and without, strides wider than
/// a kernel, and last windows that reach beyond the map.
pub const EDGES: &str = r#"
    name = "edges"
    classes = 3
    input = { size = 23, resize = 23 }
    layers = [
      { type = "conv", name = "conv1", channels = 4, kernel = 4, stride = 2, pad = [1, 2, 0, 3] },
      { type = "relu" },
      { type = "maxpool", name = "pool1", kernel = 3, stride = 2, pad = 1 },
      { type = "maxpool", name = "pool2", kernel = 2, stride = 1 },
      { type = "conv", name = "conv2", channels = 6, kernel = 3, pad = [2, 0, 1, 2], groups = 2 },
      { type = "maxpool", name = "pool3", kernel = 3, stride = 1, pad = 1 },
      { type = "relu" },
      { type = "lrn", name = "norm2", size = 3, k = 1.0, alpha = 0.5 },
      { type = "conv", name = "conv3", channels = 8, kernel = 2, stride = 3 },
      { type = "relu" },
      { type = "fc", name = "fc4", outputs = 5 },
      { type = "relu" },
      { type = "dropout" },
      { type = "fc", name = "fc5" },
    ]
"#;

/// What begins with a relu and a normalisation, so that these see the pixels.
const BARE: &str = r#"
    name = "bare"
    classes = 3
    input = { size = 17, resize = 17 }
    layers = [
      { type = "dropout" },
      { type = "lrn", name = "norm0", size = 3, k = 1.0, alpha = 0.5 },
      { type = "relu", name = "relu0" },
      { type = "maxpool", name = "pool0", kernel = 3, stride = 2, pad = 1 },
      { type = "conv", name = "conv1", channels = 8, kernel = 3, pad = 1 },
      { type = "relu" },
      { type = "fc", name = "fc2" },
    ]
"#;

/// Windows end in the middle, where maps are enlarged, and at the first layer.
const ENLARGES: &str = r#"
    name = "enlarges"
    classes = 0
    input = { size = 8, resize = 8 }
    layers = [
      { type = "conv", name = "conv1", channels = 4, kernel = 3, pad = 1 },
      { type = "relu" },
      { type = "conv_transpose", name = "up2", channels = 6, kernel = 4, stride = 2, pad = 1 },
      { type = "relu" },
      { type = "maxpool", kernel = 3, stride = 2, pad = 1 },
      { type = "conv_transpose", name = "up3", channels = 4, kernel = 3, stride = 2, pad = [1, 0, 0, 1], groups = 2 },
      { type = "conv", name = "conv4", channels = 3, kernel = 3, pad = 1 },
    ]
    [recipe]
    init = "he"
"#;

/// Pools without a relu beside them: on pixels, after a convolution, a normalisation and a pool, and
/// below a convolution and a normalisation; one below a relu.
const POOLS: &str = r#"
    name = "pools"
    classes = 3
    input = { size = 25, resize = 25 }
    layers = [
      { type = "maxpool", name = "pool0", kernel = 3, stride = 1, pad = 1 },
      { type = "conv", name = "conv1", channels = 8, kernel = 3, pad = 1 },
      { type = "maxpool", name = "pool1", kernel = 3, stride = 2, pad = 1 },
      { type = "maxpool", name = "pool1b", kernel = 2, stride = 1 },
      { type = "conv", name = "conv2", channels = 6, kernel = 3, pad = [2, 0, 1, 2], groups = 2 },
      { type = "lrn", name = "norm2", size = 3, k = 1.0, alpha = 0.5 },
      { type = "maxpool", name = "pool2", kernel = 2, stride = 2, pad = 1 },
      { type = "lrn", name = "norm2b", size = 3, k = 1.0, alpha = 0.5 },
      { type = "conv", name = "conv3", channels = 8, kernel = 2 },
      { type = "maxpool", name = "pool3", kernel = 2, stride = 1 },
      { type = "dropout" },
      { type = "relu" },
      { type = "fc", name = "fc4", outputs = 5 },
      { type = "relu" },
      { type = "fc", name = "fc5" },
    ]
    [recipe]
    init = "he"
"#;

/// Units at the corners, the edges and in the middle of every layer's maps, of all images in turn,
/// eight at a time: hands each batch's pictures to `check`, the windows' first, the whole maps' then.
fn pass_by_windows_and_whole<B: Backend>(
    passes: &mut Passes<'_, B>,
    rules: &[Rule],
    check: impl Fn(&[f32], &[f32], &str),
) {
    let images = passes.workspace.input.shape().n;
    for from in 0..passes.network.layers.len() {
        let layer = &passes.network.layers[from];
        let (name, shape) = (layer.name.clone(), layer.output);
        let few = |size: usize| {
            let mut places = vec![0, 1.min(size - 1), size / 2, size - 1];
            places.dedup();
            places
        };
        let places =
            few(shape.h).into_iter().flat_map(|y| few(shape.w).into_iter().map(move |x| (y, x)));
        let units: Vec<SeedUnit> = (1u32..)
            .zip(places)
            .map(|(i, (y, x))| SeedUnit {
                map: i * 5 % shape.c as u32,
                y: y as u32,
                x: x as u32,
                value: 1.0 + (i % 3) as f32,
            })
            .collect();
        let mut something = false;
        for units in units.chunks(8) {
            let list: Vec<u32> = (0..units.len()).map(|i| ((i + 1) % images) as u32).collect();
            let mut seed = vec![0.0; units.len() * shape.len()];
            for (seed, unit) in seed.chunks_exact_mut(shape.len()).zip(units) {
                let [map, y, x] = [unit.map, unit.y, unit.x].map(|v| v as usize);
                seed[(y * shape.w + x) * shape.c + map] = unit.value;
            }
            for &rule in rules {
                let whole = passes.down(from, &list, &seed, rule);
                let found = passes.windows(from, &list, units, rule);
                something |= found.iter().any(|v| *v != 0.0);
                check(&found, &whole, &format!("{name}, {rule:?}, {units:?}"));
            }
        }
        assert!(something, "nothing came down from {name}");
    }
}

fn windows_equal_whole_maps_on_integers<B: Backend>(backend: &B) {
    let mut rules = Vec::new();
    for forward_mask in [false, true] {
        for relu_down in [false, true] {
            rules.push(Rule { forward_mask, relu_down, lrn: LrnRule::Identity });
        }
    }
    for toml in [EDGES, BARE, SMALL, ENLARGES, POOLS, &grey_and_wide(SMALL)] {
        let network = network(toml);
        let mut random = Random(14);
        let mut params = Params::weights(backend, &network).unwrap();
        for param in params.layers.iter_mut().flatten() {
            let weights = random.integers(param.weight.shape().len(), 1);
            backend.upload(&mut param.weight, &weights).unwrap();
        }
        let input = random.integers(3 * network.input().len(), 3);
        let mut passes = Passes::new(backend, network, params, &input);
        pass_by_windows_and_whole(&mut passes, &rules, |found, whole, what| {
            // Not bit by bit: a zero may have either sign.
            assert!(found == whole, "{what}");
        });
    }
}

/// Sums in other orders: a few hundred products, three layers of them, as in the tests above.
fn windows_equal_whole_maps<B: Backend>(backend: &B) {
    let mut networks =
        [EDGES, BARE, SMALL, ENLARGES, POOLS, &grey_and_wide(SMALL)].map(network).to_vec();
    if !is_stand_in(backend) {
        networks.push(Network::new(mini(backend)).unwrap());
    }
    for network in networks {
        let params = random_params(backend, &network, 15);
        let input = Random(16).reals(2 * network.input().len());
        let mut passes = Passes::new(backend, network, params, &input);
        let rules = RULES.map(|(_, rule)| rule);
        pass_by_windows_and_whole(&mut passes, &rules, |found, whole, what| {
            let largest = whole.iter().fold(0.0, |a: f32, b| a.max(b.abs()));
            for (found, whole) in found.iter().zip(whole) {
                assert!((found - whole).abs() <= 1e-5 * largest, "{what}: {found} for {whole}");
            }
        });
    }
}

/// From a convolution in the middle, no more than its field; from a fully connected layer, all.
fn windows_are_all_that_descends<B: Backend>(backend: &B) {
    let network = Network::new(mini(backend)).unwrap();
    let params = random_params(backend, &network, 17);
    let input = Random(18).reals(network.input().len());
    let size = network.input().h;
    let mut passes = Passes::new(backend, network, params, &input);
    for (name, whole) in [("conv1", false), ("pool1", false), ("conv3", false), ("fc6", true)] {
        let layer = passes.network.layer(name).unwrap();
        let unit = SeedUnit { map: 0, y: 0, x: 0, value: 1.0 };
        passes.windows(layer, &[0, 0], &[unit; 2], Rule::DECONVNET);
        let side = if whole { size } else { passes.network.layers[layer].field[0].size };
        assert!(whole || side < size, "{name} sees it all");
        let descended = passes.workspace.signal().shape();
        assert_eq!(descended, Shape::new(2, side, side, 3), "{name}");
    }
}
