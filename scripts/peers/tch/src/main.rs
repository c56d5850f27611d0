//! A training step of ZFNet in tch, LibTorch from Rust: `peer-tch BATCH STEPS`.
//!
//! The whole network and the whole optimiser, as PyTorch runs them by default: tch makes no tensors in
//! channels_last (its weights and activations are NCHW). `OMP_NUM_THREADS` sets the threads. Prints one
//! line of JSON.

use std::time::Instant;

use tch::nn::{self, ConvConfig, ModuleT, OptimizerConfig};
use tch::{Device, Kind, Tensor};

fn main() -> Result<(), tch::TchError> {
    let mut arguments = std::env::args().skip(1);
    let mut number = || arguments.next().and_then(|text| text.parse::<usize>().ok());
    let (Some(batch), Some(steps)) = (number(), number()) else {
        panic!("expected BATCH STEPS");
    };
    let weights = nn::VarStore::new(Device::Cpu);
    let network = network(&weights.root());
    // Momentum, dampening, weight decay.
    let mut optimizer = nn::sgd(0.9, 0.0, 5e-4, false).build(&weights, 1e-4)?;
    let x = Tensor::randn([batch as i64, 3, 224, 224], (Kind::Float, Device::Cpu));
    let labels = Tensor::arange(batch as i64, (Kind::Int64, Device::Cpu));
    let mut seconds = Vec::new();
    for _ in 0..steps + 2 {
        let begun = Instant::now();
        let loss = network.forward_t(&x, true).cross_entropy_for_logits(&labels);
        optimizer.backward_step(&loss);
        seconds.push(begun.elapsed().as_secs_f64());
    }
    let mut seconds = seconds.split_off(2); // warm-up
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    let rate = batch as f64 / median;
    println!("{{\"milliseconds\": {}, \"images_per_second\": {rate}}}", median * 1e3);
    Ok(())
}

fn network(root: &nn::Path) -> nn::SequentialT {
    let conv = |name, from, to, kernel, stride, padding| {
        let config = ConvConfig { stride, padding, ..Default::default() };
        nn::conv2d(root / name, from, to, kernel, config)
    };
    let linear = |name, from, to| nn::linear(root / name, from, to, Default::default());
    nn::seq_t()
        .add(conv("conv1", 3, 96, 7, 2, 1))
        .add_fn(|x| normalised(&pooled(&x.relu())))
        .add(conv("conv2", 96, 256, 5, 2, 0))
        .add_fn(|x| normalised(&pooled(&x.relu())))
        .add(conv("conv3", 256, 384, 3, 1, 1))
        .add_fn(Tensor::relu)
        .add(conv("conv4", 384, 384, 3, 1, 1))
        .add_fn(Tensor::relu)
        .add(conv("conv5", 384, 256, 3, 1, 1))
        .add_fn(|x| pooled(&x.relu()).flatten(1, -1))
        .add(linear("fc6", 256 * 6 * 6, 4096))
        .add_fn_t(|x, train| x.relu().dropout(0.5, train))
        .add(linear("fc7", 4096, 4096))
        .add_fn_t(|x, train| x.relu().dropout(0.5, train))
        .add(linear("fc8", 4096, 1000))
}

fn pooled(x: &Tensor) -> Tensor {
    x.max_pool2d([3, 3], [2, 2], [0, 0], [1, 1], true)
}

/// y = x / (2 + 1e-4 * sum of x^2 over five neighbouring channels)^0.75, as PyTorch composes it: the
/// squares' mean over a window is an average pooling in three dimensions.
fn normalised(x: &Tensor) -> Tensor {
    let (n, c, h, w) = x.size4().expect("four dimensions");
    let squares = x.square().unsqueeze(1).pad([0, 0, 0, 0, 2, 2], "constant", 0.0);
    let mean = squares.avg_pool3d([5, 1, 1], [1, 1, 1], [0, 0, 0], false, true, None::<i64>);
    x / (mean.view([n, c, h, w]) * 5e-4 + 2.0).pow_tensor_scalar(0.75)
}
