//! Networks as data: the paper's table number by number, other published networks, what is wrong
//! with wrong descriptions, and how weights are drawn.

use std::collections::BTreeSet;

use crate::common::{Samples, host_params, network, twin, values, widen};
use crate::deconvnet::{EDGES, rounding_down};
use zfnet::backend::{Backend, Precision, ReluRule, StepState};
use zfnet::data::classes::Classes;
use zfnet::model::{
    Architecture, Conv, Dropout, Kind, LayerSigns, MaxPool, Model, Network, Normaliser, Params,
    Preprocess, Purpose, Workspace,
};
use zfnet::study::learnt::changes;
use zfnet::train::Trainer;
use zfnet_core::tensors::deserialize;

on_every_backend!(
    one_seed_draws_one_set_of_weights,
    drawn_weights_have_the_right_moments,
    what_is_left_of_the_start_is_known_exactly,
    untrained_weights_are_others,
    saved_weights_lie_as_pytorch_has_them,
    transposed_weights_lie_as_pytorch_has_them_and_return,
    no_bias_is_learnt_without_one,
    a_watched_step_tells_what_it_did,
);

// ---- published networks ----

fn preset(name: &str) -> Network {
    Network::new(Architecture::find(name).unwrap()).unwrap()
}

/// Name, rows, channels, parameters, field, jump, start of every layer that changes a size.
type Row = (&'static str, usize, usize, usize, usize, usize, i64);

fn assert_rows(network: &Network, rows: &[Row]) {
    for &(name, size, channels, parameters, field, jump, start) in rows {
        let layer = &network.layers[network.layer(name).unwrap()];
        let shape = layer.output;
        assert_eq!((shape.h, shape.w, shape.c), (size, size, channels), "map of {name}");
        assert_eq!(layer.parameters(), parameters, "parameters of {name}");
        for axis in layer.field {
            assert_eq!((axis.size, axis.jump, axis.start), (field, jump, start), "field of {name}");
        }
    }
}

/// Figure 3 of the paper: 224, 110, 55, 26, 13, 6.
#[test]
fn zfnet_is_the_papers() {
    let network = preset("zfnet");
    assert_rows(
        &network,
        &[
            ("conv1", 110, 96, 14_208, 7, 2, 0),
            ("relu1", 110, 96, 0, 7, 2, 0),
            ("pool1", 55, 96, 0, 11, 4, 0),
            ("norm1", 55, 96, 0, 11, 4, 0),
            ("conv2", 26, 256, 614_656, 27, 8, 0),
            ("pool2", 13, 256, 0, 43, 16, 0),
            ("norm2", 13, 256, 0, 43, 16, 0),
            ("conv3", 13, 384, 885_120, 75, 16, -16),
            ("conv4", 13, 384, 1_327_488, 107, 16, -32),
            ("conv5", 13, 256, 884_992, 139, 16, -48),
            ("pool5", 6, 256, 0, 171, 32, -48),
        ],
    );
    let parameters: Vec<usize> =
        network.convolutions().skip(5).map(|(layer, _)| layer.parameters()).collect();
    assert_eq!(parameters, [37_752_832, 16_781_312, 4_097_000]);
    assert_eq!(network.parameters(), 62_357_608);
    assert_eq!((network.multiply_adds() + 500_000) / 1_000_000, 1_168);
    for name in ["fc6", "relu6", "fc7", "fc8"] {
        let field = network.layers[network.layer(name).unwrap()].field;
        assert!(field.iter().all(|axis| axis.of(0) == (0, 224)), "{name} sees the whole image");
    }
    let names: Vec<&str> = network.layers.iter().map(|layer| layer.name.as_str()).collect();
    let order = "conv1 relu1 pool1 norm1 conv2 relu2 pool2 norm2 conv3 relu3 conv4 relu4 conv5 \
                 relu5 pool5 fc6 relu6 drop6 fc7 relu7 drop7 fc8";
    assert_eq!(names.join(" "), order);
    for layer in &network.layers {
        match layer.kind {
            Kind::Lrn(lrn) => {
                assert_eq!((lrn.size, lrn.k, lrn.alpha, lrn.beta), (5, 2.0, 1e-4, 0.75));
            }
            Kind::Dropout(Dropout { rate }) => assert_eq!(rate, 0.5),
            Kind::Conv(Conv { rms_limit, .. }) => assert_eq!(rms_limit, 0.1),
            Kind::FullyConnected(Conv { rms_limit, .. }) => assert_eq!(rms_limit, 0.0),
            _ => {}
        }
    }
}

/// The usual port has the same sizes with other pads and floor rounding, and other fields.
#[test]
fn the_port_with_floor_rounding_sees_elsewhere() {
    let mut toml = String::from(
        r#"
        name = "port"
        classes = 1000
        input = { size = 224, resize = 256 }
        layers = [
          { type = "conv", name = "conv1", channels = 96, kernel = 7, stride = 2, pad = 1, ROUND },
          { type = "relu" },
          { type = "maxpool", kernel = 3, stride = 2, pad = 1, ROUND },
          { type = "lrn" },
          { type = "conv", name = "conv2", channels = 256, kernel = 5, stride = 2, ROUND },
          { type = "relu" },
          { type = "maxpool", kernel = 3, stride = 2, pad = 1, ROUND },
          { type = "lrn" },
          { type = "conv", name = "conv3", channels = 384, kernel = 3, pad = 1, ROUND },
          { type = "relu" },
          { type = "conv", name = "conv4", channels = 384, kernel = 3, pad = 1, ROUND },
          { type = "relu" },
          { type = "conv", name = "conv5", channels = 256, kernel = 3, pad = 1, ROUND },
          { type = "relu" },
          { type = "maxpool", kernel = 3, stride = 2, ROUND },
          { type = "fc", name = "fc6", outputs = 4096 },
          { type = "relu" },
          { type = "fc", name = "fc7", outputs = 4096 },
          { type = "relu" },
          { type = "fc", name = "fc8" },
        ]"#,
    );
    toml = toml.replace("ROUND", "rounding = \"floor\"");
    let port = network(&toml);
    assert_rows(
        &port,
        &[
            ("conv1", 110, 96, 14_208, 7, 2, -1),
            ("pool1", 55, 96, 0, 11, 4, -3),
            ("conv2", 26, 256, 614_656, 27, 8, -3),
            ("pool2", 13, 256, 0, 43, 16, -11),
            ("conv3", 13, 384, 885_120, 75, 16, -27),
            ("conv4", 13, 384, 1_327_488, 107, 16, -43),
            ("conv5", 13, 256, 884_992, 139, 16, -59),
            ("pool5", 6, 256, 0, 171, 32, -59),
        ],
    );
    assert_eq!(port.parameters(), preset("zfnet").parameters());
}

/// Of every built-in network: the rows of the input that are in the windows below a unit, counted place by place.
/// Rounding down leaves last rows of a map in no window.
#[test]
fn units_see_the_rows_in_their_windows() {
    let presets = Architecture::presets().into_iter().map(|preset| Network::new(preset).unwrap());
    let odd = (57..=66).map(rounding_down);
    let mut clipped = 0;
    for network in presets.chain(odd).chain([network(EDGES)]) {
        for (index, layer) in network.layers.iter().enumerate() {
            for unit in 0..layer.output.h {
                let mut rows = BTreeSet::from([unit as i64]);
                for below in network.layers[..=index].iter().rev() {
                    let (kernel, stride, pad) = match &below.kind {
                        Kind::Conv(Conv { dims, .. }) => (dims.r, dims.stride[0], dims.pad[0]),
                        Kind::MaxPool(MaxPool { dims, .. }) => {
                            (dims.window[0], dims.stride[0], dims.pad[0])
                        }
                        Kind::FullyConnected(_) => (below.input.h as u32, 1, 0),
                        _ => (1, 1, 0),
                    };
                    let [kernel, stride, pad] = [kernel, stride, pad].map(i64::from);
                    let window = |row: i64| (0..kernel).map(move |r| row * stride - pad + r);
                    let inside = |row: &i64| (0..below.input.h as i64).contains(row);
                    rows = rows.into_iter().flat_map(window).filter(inside).collect();
                }
                let expected = (*rows.first().unwrap(), rows.last().unwrap() + 1);
                let what = format!("{} of {}, unit {unit}", layer.name, network.architecture.name);
                assert_eq!(layer.field[0].seen(unit), expected, "{what}");
                let size = network.input().h as i64;
                clipped += usize::from(layer.field[0].of(unit).1.min(size) > expected.1);
            }
        }
    }
    assert!(clipped > 20, "{clipped}");
}

#[test]
fn other_presets_have_their_published_sizes() {
    assert_eq!(preset("zfnet-wide").parameters(), 107_627_624);
    let alexnet = preset("alexnet");
    assert_eq!(alexnet.parameters(), 62_378_344);
    for (network, sizes) in [
        (alexnet, [55, 27, 13, 13, 13, 1, 1, 1]),
        (preset("zfnet-mini"), [32, 16, 8, 8, 8, 1, 1, 1]),
        (preset("alexnet-mini"), [21, 10, 5, 5, 5, 1, 1, 1]),
    ] {
        let maps: Vec<usize> = network.convolutions().map(|(layer, _)| layer.output.h).collect();
        assert_eq!(maps, sizes, "{}", network.architecture.name);
    }
}

/// Krizhevsky's two towers: half of the maps see only the other tower's own half, in layers 2, 4
/// and 5.
#[test]
fn alexnet_of_two_towers() {
    let architecture = Architecture::find("alexnet").unwrap().to_toml();
    let mut towers: toml::Table = toml::from_str(&architecture).unwrap();
    for layer in towers["layers"].as_array_mut().unwrap() {
        let layer = layer.as_table_mut().unwrap();
        let name = layer.get("name").and_then(|name| name.as_str().map(str::to_owned));
        if let Some("conv2" | "conv4" | "conv5") = name.as_deref() {
            layer.insert("groups".into(), 2.into());
        }
    }
    let network = network(&toml::to_string(&towers).unwrap());
    assert_eq!(network.parameters(), 60_965_224);
    let parameters: Vec<usize> =
        network.convolutions().map(|(layer, _)| layer.parameters()).take(5).collect();
    assert_eq!(parameters, [34_944, 307_456, 885_120, 663_936, 442_624]);
}

#[test]
fn descriptions_survive_being_written_down() {
    for preset in Architecture::presets() {
        let again = Architecture::parse(&preset.to_toml()).unwrap();
        assert_eq!(again, preset);
        assert_eq!(Architecture::find(&preset.name).unwrap(), preset);
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.toml");
    std::fs::write(&file, Architecture::find("zfnet-mini").unwrap().to_toml()).unwrap();
    let found = Architecture::find(file.to_str().unwrap()).unwrap();
    assert_eq!(found, Architecture::find("zfnet-mini").unwrap());
    let message = Architecture::find("resnet").unwrap_err().to_string();
    assert!(message.contains("resnet") && message.contains("zfnet-mini"), "{message}");
}

// ---- wrong descriptions ----

/// A description of a small network with these layers.
fn small(layers: &str) -> String {
    format!(
        "name = \"small\"\nclasses = 4\ninput = {{ size = 8, resize = 9 }}\nlayers = [{layers}]"
    )
}

/// Asserts that a description is refused with a message that holds all these words.
#[track_caller]
fn refused(toml: &str, words: &[&str]) {
    let result = Architecture::parse(toml).and_then(Network::new);
    let message = result.err().unwrap_or_else(|| panic!("accepted: {toml}")).to_string();
    for word in words {
        assert!(message.contains(word), "expected {word:?} in {message:?}");
    }
}

const CONV: &str = r#"{ type = "conv", name = "conv1", channels = 6, kernel = 3 }"#;
const RELU: &str = r#"{ type = "relu" }"#;
const FC: &str = r#"{ type = "fc", name = "fc2" }"#;

#[test]
fn wrong_layers_are_refused_by_name() {
    network(&small(&format!("{CONV}, {RELU}, {FC}"))); // the one that the others spoil
    let first = |layer: &str| small(&format!("{layer}, {RELU}, {FC}"));
    let conv = |what: &str| first(&format!("{{ type = \"conv\", name = \"conv1\", {what} }}"));
    let after = |layer: &str| small(&format!("{CONV}, {RELU}, {layer}, {FC}"));

    refused(&conv("channels = 6, kernel = 9"), &["conv1", "kernel 9", "8x8"]);
    refused(&conv("channels = 6, kernel = 0"), &["conv1", "kernel 0"]);
    refused(&conv("channels = 6, kernel = 3, stride = 0"), &["conv1", "stride 0"]);
    refused(&conv("channels = 6, kernel = 3, pad = 3"), &["conv1", "pad", "3"]);
    refused(&conv("channels = 6, kernel = 3, pad = [0, 0, 0, 3]"), &["conv1", "pad"]);
    refused(&conv("channels = 6, kernel = 3, pad = [1, 2]"), &["expected a pad", "top, bottom"]);
    refused(&conv("channels = 6, kernel = 3, groups = 2"), &["conv1", "groups", "3 input", "2"]);
    refused(&conv("channels = 4, kernel = 3, groups = 3"), &["conv1", "groups", "4 output", "3"]);
    refused(&conv("channels = 6, kernel = 3, groups = 0"), &["conv1", "groups", "0"]);
    refused(&conv("channels = 0, kernel = 3"), &["conv1", "0"]);
    refused(&after(CONV), &["conv1", "twice"]);
    let window = after(r#"{ type = "maxpool", kernel = 7, stride = 2 }"#);
    refused(&window, &["pool1", "kernel 7", "6x6"]);
    refused(&after(r#"{ type = "maxpool", kernel = 3, stride = 0 }"#), &["pool1", "stride 0"]);
    refused(&after(r#"{ type = "lrn", size = 0 }"#), &["norm1", "size 0"]);
    refused(&after(r#"{ type = "lrn", size = 34 }"#), &["norm1", "33", "size 34"]);
    refused(&after(r#"{ type = "lrn", k = 0.0 }"#), &["norm1", "k 0"]);
    refused(&after(r#"{ type = "dropout", rate = 1.0 }"#), &["drop1", "1"]);
    refused(&after(r#"{ type = "fc", name = "fc1" }"#), &["fc1", "outputs"]);
    refused(&after(r#"{ type = "fc", name = "fc1", outputs = 0 }"#), &["fc1", "0"]);
    refused(&after(r#"{ type = "relu", name = "a b" }"#), &["a b", "letters"]);
    let other = small(&format!("{CONV}, {RELU}, {{ type = \"fc\", name = \"fc2\", outputs = 5 }}"));
    refused(&other, &["fc2", "4 classes", "found 5"]);
    refused(&small(&format!("{FC}, {RELU}")), &["relu1", "fc"]);
    refused(&small(CONV), &["conv1", "last layer", "fc"]);
    refused(&small(""), &["no layer"]);

    // Maps are enlarged to a size there can be.
    let up = |what: &str| {
        after(&format!("{{ type = \"conv_transpose\", name = \"up\", channels = 4, {what} }}"))
    };
    refused(&up("kernel = 2, pad = 2"), &["up", "pad below the kernel", "All(2)"]);
    refused(&up("kernel = 2, stride = 0"), &["up", "stride 0"]);
    refused(&up("kernel = 0"), &["up", "kernel 0"]);
    refused(&up("kernel = 3, stride = 60000"), &["up", "65535"]);
    refused(&up("kernel = 3, stride = 70000"), &["up", "65535", "70000"]);
    refused(&up("kernel = 3, groups = 5"), &["up", "groups", "found 5"]);
    refused(&up("kernel = 3, rounding = \"ceil\""), &["rounding"]);
    refused(
        &small(&format!("{CONV}, {RELU}, {FC}")).replace("classes = 4", "classes = 0"),
        &["fc2", "outputs"],
    );

    // A window of 16x16 values has more places than a byte.
    let large = small(&format!(r#"{RELU}, {{ type = "maxpool", kernel = 16, stride = 1 }}, {FC}"#));
    let large = large.replace("size = 8, resize = 9", "size = 16, resize = 16");
    refused(&large, &["pool0", "255", "16x16"]);
}

/// With a relu beside a pooling its switches need not tell winners apart that are not positive.
#[test]
fn a_relu_beside_a_pool_decides_what_its_switches_keep() {
    let (pool, lrn) =
        (r#"{ type = "maxpool", kernel = 2, stride = 1 }"#, r#"{ type = "lrn", size = 3 }"#);
    let drop = r#"{ type = "dropout" }"#;
    let again = r#"{ type = "maxpool", name = "again", kernel = 2, stride = 1 }"#;
    for (layers, any_sign) in [
        (format!("{CONV}, {RELU}, {pool}"), vec![0]),
        (format!("{CONV}, {pool}, {RELU}"), vec![0]),
        (format!("{CONV}, {RELU}, {lrn}, {drop}, {pool}, {again}"), vec![0, 0]),
        (format!("{CONV}, {pool}, {again}, {drop}, {RELU}"), vec![0, 0]),
        (format!("{CONV}, {pool}"), vec![1]),
        (format!("{pool}, {CONV}, {RELU}, {again}"), vec![1, 0]),
        (format!("{CONV}, {lrn}, {pool}, {again}"), vec![1, 1]),
        (format!("{RELU}, {CONV}, {pool}, {drop}"), vec![1]),
        // Normalisation's derivative reaches winners that are not positive.
        (format!("{CONV}, {pool}, {lrn}, {RELU}"), vec![1]),
    ] {
        let network = network(&small(&format!("{layers}, {FC}")));
        let pools = network.layers.iter().filter_map(|layer| layer.pooling());
        let found: Vec<u32> = pools.map(|pool| pool.any_sign).collect();
        assert_eq!(found, any_sign, "{layers}");
    }
}

#[test]
fn wrong_texts_are_refused_where_they_are_wrong() {
    let good = small(&format!("{CONV}, {RELU}, {FC}"));
    refused(&good.replace("channels", "chanels"), &["chanels", "channels"]);
    refused(&good.replace("\"conv\"", "\"convolution\""), &["convolution", "conv"]);
    refused(&good.replace("kernel = 3", "kernel = -3"), &["-3"]);
    refused(&good.replace("kernel = 3", "kernel = \"three\""), &["three"]);
    refused(&good.replace(", kernel = 3", ""), &["kernel"]);
    refused(&good.replace("classes = 4", "klasses = 4"), &["klasses", "classes"]);
    refused(&good.replace("classes = 4", ""), &["classes"]);
    refused(&good.replace("classes = 4", "classes = 1"), &["2 classes", "found 1"]);
    refused(&good.replace("resize = 9", "resize = 7"), &["size 8", "resize 7"]);
    refused(&good.replace("size = 8", "size = 0"), &["size 0"]);
    refused(&good.replace("resize = 9", "resize = 9, std = 0.0"), &["std", "0"]);
    let recipe = |line: &str| format!("{good}\n[recipe]\n{line}");
    refused(&recipe("learning_rat = 0.1"), &["learning_rat"]);
    refused(&recipe("learning_rate = -0.1"), &["recipe", "learning_rate", "-0.1"]);
    refused(&recipe("momentum = 1.0"), &["recipe", "momentum", "1"]);
    refused(&recipe("dropout = nan"), &["recipe", "dropout", "NaN"]);
    refused(&recipe("batch_size = 0"), &["recipe", "batch_size", "0"]);
    refused(&recipe("schedule = \"step\""), &["recipe", "milestones"]);
    refused(&recipe("schedule = \"cosine\""), &["cosine", "plateau"]);
    refused(&recipe("gamma = 2.0"), &["recipe", "gamma", "2"]);
    refused(&recipe("patience = 0"), &["recipe", "patience", "0"]);
}

/// Numbers beyond all reason are errors, too, and neither overflow nor take all memory.
#[test]
fn absurd_numbers_are_refused() {
    let layers = |what: &str| {
        small(&format!("{{ type = \"conv\", name = \"conv1\", {what} }}, {RELU}, {FC}"))
    };
    for what in [
        "channels = 4611686018427387904, kernel = 1",
        "channels = 1000000000, kernel = 3",
        "channels = 6, kernel = 4294967296, pad = 4294967295, stride = 4294967296",
        "channels = 6, kernel = 9223372036854775807, pad = 9223372036854775806",
        "channels = 6, kernel = 3, stride = 4294967297",
        "channels = 1000000, kernel = 3, pad = 2",
    ] {
        refused(&layers(what), &["conv1"]);
    }
    let fc = r#"{ type = "fc", name = "fc1", outputs = 4611686018427387904 }"#;
    refused(&small(&format!("{CONV}, {RELU}, {fc}, {RELU}, {FC}")), &["fc1"]);
    let classes = small(&format!("{CONV}, {RELU}, {FC}"));
    refused(&classes.replace("classes = 4", "classes = 4294967298"), &["classes"]);
}

// ---- weights ----

/// A wide enough network for moments to be seen.
fn wide(recipe: &str) -> Network {
    let layers = r#"
        { type = "conv", name = "conv1", channels = 64, kernel = 7 }, { type = "relu" },
        { type = "fc", name = "fc2", outputs = 500 }, { type = "relu" }, { type = "fc", name = "fc3" }"#;
    network(&format!("{}\n[recipe]\n{recipe}", small(&layers.replace('\n', " "))))
}

fn drawn<B: Backend>(backend: &B, network: &Network, seed: u64) -> Vec<[Vec<f32>; 2]> {
    let params = Params::init(backend, network, seed).unwrap();
    let layers = params.layers.iter().flatten();
    layers.map(|p| [&p.weight, &p.bias].map(|tensor| values(backend, tensor))).collect()
}

fn one_seed_draws_one_set_of_weights<B: Backend>(backend: &B) {
    let network = wide("init = \"he\"");
    let one = drawn(backend, &network, 1);
    assert_eq!(one, drawn(backend, &network, 1));
    let two = drawn(backend, &network, 2);
    assert!(one.iter().zip(&two).all(|(one, two)| one[0] != two[0]), "seeds matter");
    assert_ne!(one[1][0][..100], one[0][0][..100], "layers differ");
    // Every layer has a stream of its own: a change below leaves the layers above as they are.
    let mut other = network.architecture.clone();
    if let zfnet::model::LayerSpec::Conv(zfnet::model::ConvSpec { pad, .. }) = &mut other.layers[0]
    {
        *pad = zfnet::model::Pad::All(1);
    }
    let other = drawn(backend, &Network::new(other).unwrap(), 1);
    assert_eq!((&one[0], &one[2]), (&other[0], &other[2]));
}

/// Mean and standard deviation of N drawn values stray by about `deviation / sqrt(N)` and
/// `deviation / sqrt(2 N)`; five times that is allowed. The fourth moment tells a normal
/// distribution (3) from a uniform one (1.8).
fn drawn_weights_have_the_right_moments<B: Backend>(backend: &B) {
    for (recipe, deviations) in [
        ("init = \"normal\"\ninit_std = 0.01", [0.01; 3]),
        ("init = \"normal\"\ninit_std = 0.5", [0.5; 3]),
        ("init = \"he\"", [147.0f64, 256.0, 500.0].map(|inputs| (2.0 / inputs).sqrt())),
    ] {
        let layers = drawn(backend, &wide(recipe), 7);
        assert_eq!(layers.len(), 3);
        for ([weights, biases], deviation) in layers.iter().zip(deviations) {
            assert!(biases.iter().all(|b| *b == 0.0));
            let weights = widen(weights);
            let count = weights.len() as f64;
            let moment =
                |power| weights.iter().map(|w| (w / deviation).powi(power)).sum::<f64>() / count;
            let stray = 5.0 / count.sqrt();
            assert!(moment(1).abs() < stray, "{recipe}: mean of {} deviations", moment(1));
            assert!((moment(2).sqrt() - 1.0).abs() < stray, "{recipe}: {}", moment(2).sqrt());
            assert!(
                (moment(4) - 3.0).abs() < 10.0 * stray,
                "{recipe}: fourth moment {}",
                moment(4)
            );
        }
    }
}

/// Filters of all layers with what they are compared with, in f64: cos^2, and the median over filters.
fn median_share(now: &[f32], then: &[f32], per_filter: usize) -> f64 {
    let pairs = now.chunks_exact(per_filter).zip(then.chunks_exact(per_filter));
    let dot = |a: &[f32], b: &[f32]| {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
    };
    let share = |(now, then)| dot(now, then).powi(2) / (dot(now, now) * dot(then, then));
    let mut shares: Vec<f64> = pairs.map(share).collect();
    shares.sort_by(f64::total_cmp);
    let count = shares.len();
    (shares[(count - 1) / 2] + shares[count / 2]) / 2.0
}

/// Against weights that were kept at step 0.
fn what_is_left_of_the_start_is_known_exactly<B: Backend>(backend: &B) {
    let toml = small(
        r#"{ type = "conv", name = "conv1", channels = 64, kernel = 7, init_std = 0.02 }, { type = "relu" }, { type = "fc", name = "fc2", outputs = 120 }, { type = "relu" }, { type = "fc", name = "fc3" }"#,
    );
    let network = network(&format!("{toml}\n[recipe]\ninit = \"he\"\nbatch_size = 4"));
    let kept = drawn(backend, &network, 5);
    let deviation =
        (kept[0][0].iter().map(|w| w * w).sum::<f32>() / kept[0][0].len() as f32).sqrt();
    assert!((deviation - 0.02).abs() < 0.001, "{deviation}");

    let params = Params::init(backend, &network, 5).unwrap();
    for change in changes(backend, &network, &params).unwrap() {
        let shares = change.initial_share.unwrap();
        assert!(shares.iter().all(|share| (share - 1.0).abs() < 1e-6), "{shares:?}");
    }
    let samples = crate::common::Samples::random(&network, 4);
    let classes = Classes::named(["a", "b", "c", "d"].map(String::from).into());
    let preprocess = samples.preprocess.clone();
    let model = Model { network: network.clone(), params, preprocess, classes };
    let momentum = Params::zeros(backend, &network).unwrap();
    let mut trainer = Trainer::new(backend, model, momentum, 1).unwrap();
    for step in 0..8 {
        let state = StepState { seed: 1, step, first_sample: 0, learning_rate: 0.01 };
        trainer.enqueue(&samples.pixels, &samples.crops, &samples.labels, state).unwrap();
    }
    trainer.wait().unwrap();
    let bytes = trainer.model.to_bytes(backend).unwrap();
    let again = Model::from_bytes(backend, &bytes).unwrap();
    for model in [&trainer.model, &again] {
        let changes = changes(backend, &network, &model.params).unwrap();
        let params = model.params.layers.iter().flatten();
        for ((change, param), [kept, _]) in changes.iter().zip(params).zip(&kept) {
            let expected = median_share(&values(backend, &param.weight), kept, change.weights);
            let [found, high] = change.initial_share.unwrap();
            assert!((found - expected).abs() < 1e-6, "{}: {found} {expected}", change.layer);
            assert!(found < 0.9999 && found <= high, "{}: nothing learnt", change.layer);
        }
    }
}

/// Directions that have nothing to do with each other share 0.455/n of their energy, in the median.
fn untrained_weights_are_others<B: Backend>(backend: &B) {
    let network = wide("init = \"he\"");
    let trained = Params::init(backend, &network, 1).unwrap();
    for mut other in [
        Params::untrained(backend, &network, 1).unwrap(),
        Params::init(backend, &network, 2).unwrap(),
    ] {
        other.initial = trained.initial.clone();
        for change in changes(backend, &network, &other).unwrap() {
            let found = change.initial_share.unwrap()[0] * change.weights as f64;
            // The median of so many has a standard deviation of about 1.25 sqrt(0.5 / filters).
            let stray = 5.0 * 0.9 / (change.filters as f64).sqrt();
            assert!((found - 0.455).abs() < stray.min(0.45), "{}: {found} / n", change.layer);
        }
    }
}

/// Every weight is its own number in our order; where PyTorch looks for it is worked out by hand.
fn saved_weights_lie_as_pytorch_has_them<B: Backend>(backend: &B) {
    let layers = r#"{ type = "conv", name = "conv1", channels = 3, kernel = 7 }, { type = "relu" },
        { type = "fc", name = "fc6" }"#;
    let network = network(&small(&layers.replace('\n', " ")));
    let mut params = Params::weights(backend, &network).unwrap();
    let count = |n: usize| (0..n).map(|i| i as f32).collect::<Vec<_>>();
    for param in params.layers.iter_mut().flatten() {
        let numbers = count(param.weight.shape().len());
        backend.upload(&mut param.weight, &numbers).unwrap();
        let numbers = count(param.bias.shape().len());
        backend.upload(&mut param.bias, &numbers).unwrap();
    }
    let preprocess = Preprocess::paper([8; 2], 9, 1.0, vec![7.0; 9 * 9 * 3]);
    let classes = Classes::named(["a", "b", "c", "d"].map(String::from).into());
    let model = Model { network, params, preprocess, classes };
    let bytes = model.to_bytes(backend).unwrap();
    let saved = deserialize(&bytes).unwrap();
    let read = |name: &str| {
        let tensor = saved.tensor(name).unwrap();
        let value = |b: &[u8]| f32::from_le_bytes(b.try_into().unwrap());
        (tensor.shape().to_vec(), tensor.data().chunks_exact(4).map(value).collect::<Vec<_>>())
    };
    // 3 filters of 7 x 7 x 3: of the first, PyTorch's first row of red are our 0, 3, 6, ...
    let (shape, weight) = read("conv1.weight");
    assert_eq!(shape, [3, 3, 7, 7]);
    assert_eq!(weight[..8], [0., 3., 6., 9., 12., 15., 18., 21.]);
    assert_eq!(weight[49..52], [1., 4., 7.], "green");
    assert_eq!(weight[147], 147.0, "the second filter");
    // 4 outputs of a 2 x 2 map of 3 channels: PyTorch has the map of channel 0 first.
    let (shape, weight) = read("fc6.weight");
    assert_eq!(shape, [4, 12]);
    let one = [0., 3., 6., 9., 1., 4., 7., 10., 2., 5., 8., 11.];
    let all: Vec<f32> = (0..4).flat_map(|out| one.map(|w| w + 12.0 * out as f32)).collect();
    assert_eq!(weight, all);
    assert_eq!(read("fc6.bias"), (vec![4], count(4)));
}

/// Gives maps: 6 channels of 2x2 places for each of 3x3.
fn enlarging() -> Network {
    let layers = r#"
        { type = "conv", name = "conv1", channels = 4, kernel = 6 }, { type = "relu" },
        { type = "conv_transpose", name = "up", channels = 6, kernel = 2, stride = 2, groups = 2 }"#;
    network(&small(&layers.replace('\n', " ")).replace("classes = 4", "classes = 0"))
}

/// `[in, out / groups, rows, columns]` and no bias; and what was saved is read again.
fn transposed_weights_lie_as_pytorch_has_them_and_return<B: Backend>(backend: &B) {
    let network = enlarging();
    assert_eq!(network.layers[2].parameters(), 4 * 3 * 2 * 2);
    assert_eq!(network.layers[2].output.h, 6);
    let mut params = Params::weights(backend, &network).unwrap();
    let up = params.layers[2].as_mut().unwrap();
    let ours: Vec<f32> = (0..48).map(|i| i as f32).collect(); // [in, rows, columns, out]
    backend.upload(&mut up.weight, &ours).unwrap();
    let preprocess = Preprocess::paper([8; 2], 9, 1.0, vec![7.0; 9 * 9 * 3]);
    let model = Model { network, params, preprocess, classes: Classes::unknown(0) };
    let bytes = model.to_bytes(backend).unwrap();
    let saved = deserialize(&bytes).unwrap();
    let weight = saved.tensor("up.weight").unwrap();
    assert_eq!(weight.shape(), [4, 3, 2, 2]);
    let value = |b: &[u8]| f32::from_le_bytes(b.try_into().unwrap());
    let values_of: Vec<f32> = weight.data().chunks_exact(4).map(value).collect();
    assert_eq!(values_of[..13], [0., 3., 6., 9., 1., 4., 7., 10., 2., 5., 8., 11., 12.]);
    assert!(saved.tensor("up.bias").is_err() && saved.tensor("conv1.bias").is_ok());
    let again = Model::from_bytes(backend, &bytes).unwrap();
    assert_eq!(values(backend, &again.params.layers[2].as_ref().unwrap().weight), ours);
    assert_eq!(again.to_bytes(backend).unwrap(), bytes);

    // It tells no classes apart.
    let momentum = Params::zeros(backend, &again.network).unwrap();
    let error = Trainer::new(backend, again, momentum, 1).err().expect("refused").to_string();
    assert!(error.contains("0 classes"), "{error}");
}

/// Three updates of a classifier that enlarges on its way: its weights move, no bias comes up.
fn no_bias_is_learnt_without_one<B: Backend>(backend: &B) {
    let layers = r#"
        { type = "conv", name = "conv1", channels = 4, kernel = 3 }, { type = "relu" },
        { type = "conv_transpose", name = "up", channels = 6, kernel = 2, stride = 2 }, { type = "relu" },
        { type = "fc", name = "fc2" }"#;
    let recipe = "[recipe]\ninit = \"he\"\nbatch_size = 4";
    let network = network(&format!("{}\n{recipe}", small(&layers.replace('\n', " "))));
    let samples = crate::common::Samples::random(&network, 4);
    let params = Params::init(backend, &network, 1).unwrap();
    let momentum = Params::zeros(backend, &network).unwrap();
    let before = values(backend, &params.layers[2].as_ref().unwrap().weight);
    let classes = Classes::named(["a", "b", "c", "d"].map(String::from).into());
    let model = Model { network, params, preprocess: samples.preprocess, classes };
    let mut trainer = Trainer::new(backend, model, momentum, 1).unwrap();
    for step in 0..6 {
        let state = StepState { seed: 1, step, first_sample: 0, learning_rate: 1e-4 };
        trainer.enqueue(&samples.pixels, &samples.crops, &samples.labels, state).unwrap();
    }
    trainer.wait().unwrap();
    let up = trainer.model.params.layers[2].as_ref().unwrap();
    assert_ne!(values(backend, &up.weight), before);
    assert!(values(backend, &up.bias).iter().all(|bias| *bias == 0.0));
}

/// Mean, standard deviation, and root mean square.
fn spread(values: &[f64]) -> [f64; 3] {
    let mean = |of: &dyn Fn(f64) -> f64| {
        values.iter().map(|value| of(*value)).sum::<f64>() / values.len() as f64
    };
    let middle = mean(&|value| value);
    [middle, mean(&|value| (value - middle).powi(2)).sqrt(), mean(&|value| value * value).sqrt()]
}

/// What some samples of a batch tell of [`a_watched_step_tells_what_it_did`]'s network, by its twin: of each layer
/// with weights its output, the gradient of one sample's loss by it, and the maps of both.
fn twins_signs(
    network: &Network,
    params: &twin::HostParams,
    input: &[f64],
    labels: &[u32],
    pooled_at_once: bool,
) -> Vec<[Vec<f64>; 2]> {
    let n = labels.len();
    let pass = twin::forward(network, params, n, input.to_vec());
    let below = |layer: usize, dy: &[f64]| {
        let dims = network.layers[layer].convolution().unwrap().with_n(n);
        twin::conv_data(&dims, dy, &params[layer].as_ref().unwrap()[0])
    };
    let gradient = ReluRule { forward_mask: true, relu_down: false };
    let output = |layer: usize| pass.values[layer + 1].clone();
    let [_, dlogits] = twin::softmax_cross_entropy(pass.logits(), 4, labels, 1.0);
    let fc3 = twin::relu_down(&below(7, &dlogits), &output(6), gradient);
    let conv2 = twin::relu_down(&below(5, &fc3), &output(4), gradient);
    let pool = below(3, &conv2);
    let conv1 = if pooled_at_once {
        [output(2), pool]
    } else {
        let Kind::MaxPool(MaxPool { dims }) = &network.layers[2].kind else { panic!("a pool") };
        let own: Vec<u32> = (0..n as u32).collect();
        let unpooled = twin::unpool(&dims.with_n(n), &pool, &pass.switches[2], &own, true);
        [output(1), twin::relu_down(&unpooled, &output(1), gradient)]
    };
    vec![conv1, [output(4), conv2], [output(6), fc3], [output(7), dlogits]]
}

/// Two updates, whole and in parts, beside the twin in f64: activations and gradients as they are by definition, the
/// update as the weights' difference. Two maps have such biases that they never fire.
fn a_watched_step_tells_what_it_did<B: Backend>(backend: &B) {
    let layers = r#"
        { type = "conv", name = "conv1", channels = 6, kernel = 3 }, { type = "relu" },
        { type = "maxpool", kernel = 2, stride = 2 },
        { type = "conv", name = "conv2", channels = 5, kernel = 2 }, { type = "relu" },
        { type = "fc", name = "fc3", outputs = 12 }, { type = "relu" },
        { type = "fc", name = "fc4" }"#;
    let recipe = "[recipe]\ninit = \"he\"\nbatch_size = 8\nrms_limit = 0.0";
    let toml = small(&layers.replace('\n', " ")).replace("resize = 9", "resize = 9, std = 64.0");
    let network = network(&format!("{toml}\n{recipe}"));
    let samples = Samples::random(&network, 8);
    let input = {
        let mut pixels = backend.bytes(samples.pixels.len()).unwrap();
        backend.upload_bytes(&mut pixels, &samples.pixels).unwrap();
        let mut crops = backend.crops(8).unwrap();
        backend.upload_crops(&mut crops, &samples.crops).unwrap();
        let mut input = backend.activations(network.input().with_n(8)).unwrap();
        let normaliser = Normaliser::new(backend, &samples.preprocess).unwrap();
        normaliser.fill(backend, &mut input, &pixels, &crops).unwrap();
        widen(&values(backend, &input))
    };
    let training = Workspace::new(backend, &network, Purpose::Train, 8).unwrap();
    let pooled_at_once = training.output(0).shape().h == network.layers[2].output.h;
    // Roundings of operands and of what is stored, of which a value near zero may turn a mask.
    let limit = match backend.precision() {
        Precision::F32 => 1e-4,
        Precision::Tf32 => 5e-3,
        Precision::Bf16 => 3e-2,
    };
    for accumulate in [1, 3] {
        let mut params = Params::init(backend, &network, 3).unwrap();
        for (layer, map) in [(0, 1), (5, 2)] {
            let bias = &mut params.layers[layer].as_mut().unwrap().bias;
            let mut never = vec![0.0; bias.shape().len()];
            never[map] = -1e3;
            backend.upload(bias, &never).unwrap();
        }
        let classes = Classes::named(["a", "b", "c", "d"].map(String::from).into());
        let preprocess = samples.preprocess.clone();
        let model = Model { network: network.clone(), params, preprocess, classes };
        let momentum = Params::zeros(backend, &network).unwrap();
        let mut trainer = Trainer::new(backend, model, momentum, accumulate).unwrap();
        trainer.prepare_watch().unwrap();
        trainer.watches = true;
        // Parts of 3, 3 and 2.
        let part = if accumulate == 1 { 0..8 } else { 6..8 };
        let inputs = &input[part.start * network.input().len()..part.end * network.input().len()];
        for step in 0..2 {
            let before = host_params(backend, &trainer.model.params);
            let state = StepState { seed: 1, step, first_sample: 0, learning_rate: 0.05 };
            trainer.enqueue(&samples.pixels, &samples.crops, &samples.labels, state).unwrap();
            trainer.wait().unwrap();
            let after = host_params(backend, &trainer.model.params);
            let signs = trainer.finished().unwrap().signs.expect("watched");
            let what = format!("step {step} in {accumulate} parts");
            let close = |found: f64, expected: f64, limit: f64, of: &str| {
                let error = (found - expected).abs();
                assert!(error <= limit * expected, "{what}: {found} for {expected}, {of}");
            };
            close(signs.input_std, spread(inputs)[1], 1e-4, "input");
            let labels = &samples.labels[part.clone()];
            let expected = twins_signs(&network, &before, inputs, labels, pooled_at_once);
            assert_eq!(signs.layers.len(), 4);
            let layers = [0, 3, 5, 7].into_iter().zip([6, 5, 12, 4]).zip(&expected);
            for (((layer, maps), [output, gradient]), found) in layers.zip(&signs.layers) {
                let name = &network.layers[layer].name;
                assert_eq!(found.layer, layer);
                let LayerSigns { activation_mean, activation_std, gradient_std, .. } = *found;
                let [mean, std, rms] = spread(output);
                assert!((activation_mean - mean).abs() <= limit * rms, "{name}: {activation_mean}");
                close(activation_std, std, limit, name);
                close(gradient_std, spread(gradient)[1], limit, name);

                let [before, after] =
                    [&before, &after].map(|params| &params[layer].as_ref().unwrap()[0]);
                let moved: Vec<f64> = before.iter().zip(after).map(|(b, a)| b - a).collect();
                close(found.weight_rms, spread(after)[2], 1e-5, name);
                close(found.update, spread(&moved)[2] / spread(after)[2], 1e-3, name);
                assert!(found.update > 1e-4, "{name} has hardly moved: {}", found.update);

                let of_map = |map: usize| output.iter().copied().skip(map).step_by(maps);
                let strongest: Vec<f64> =
                    (0..maps).map(|map| of_map(map).fold(0.0, f64::max)).collect();
                if layer == 7 {
                    assert!(found.fired.is_empty(), "no relu follows");
                } else {
                    let is_clear = |strongest: &f64| *strongest == 0.0 || *strongest > 0.05;
                    assert!(strongest.iter().all(is_clear), "{name}, {what}: {strongest:?}");
                    let fired: Vec<bool> = strongest.iter().map(|value| *value > 0.0).collect();
                    assert_eq!(found.fired, fired, "{name}");
                }
                if layer < 5 {
                    let squares = |map: usize| of_map(map).map(|value| value * value).sum::<f64>();
                    let all: f64 = (0..maps).map(squares).sum();
                    assert_eq!(found.shares.len(), maps);
                    for (map, share) in found.shares.iter().enumerate() {
                        let error = (share - squares(map) / all).abs();
                        assert!(error <= limit, "{name}: {share} of map {map}");
                    }
                } else {
                    assert!(found.shares.is_empty(), "one place a map");
                }
            }
            assert!(!signs.layers[0].fired[1] && !signs.layers[2].fired[2], "{what}");
        }
    }
}
