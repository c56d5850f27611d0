//! A training step of ZFNet in burn, on its CPU backend `flex`: `peer-burn BATCH STEPS`.
//!
//! The whole network and the whole optimiser; what burn has not got is the alignment of conv1 that
//! rounds up, so it pads by one as PyTorch's users do. `RAYON_NUM_THREADS` sets the threads. Prints one
//! line of JSON.

use std::time::Instant;

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::{
    Dropout, DropoutConfig, Linear, LinearConfig, LocalResponseNorm, LocalResponseNormConfig,
    PaddingConfig2d, Relu,
};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Device, Distribution, Int, Tensor};

#[derive(Module, Debug)]
struct Zfnet {
    conv1: Conv2d,
    conv2: Conv2d,
    conv3: Conv2d,
    conv4: Conv2d,
    conv5: Conv2d,
    fc6: Linear,
    fc7: Linear,
    fc8: Linear,
    pool: MaxPool2d,
    norm: LocalResponseNorm,
    dropout: Dropout,
    relu: Relu,
}

impl Zfnet {
    fn new(device: &Device) -> Self {
        let conv = |from, to, kernel, stride, pad| {
            Conv2dConfig::new([from, to], [kernel, kernel])
                .with_stride([stride, stride])
                .with_padding(PaddingConfig2d::Explicit(pad, pad, pad, pad))
                .init(device)
        };
        let linear = |from, to| LinearConfig::new(from, to).init(device);
        Zfnet {
            conv1: conv(3, 96, 7, 2, 1),
            conv2: conv(96, 256, 5, 2, 0),
            conv3: conv(256, 384, 3, 1, 1),
            conv4: conv(384, 384, 3, 1, 1),
            conv5: conv(384, 256, 3, 1, 1),
            fc6: linear(256 * 6 * 6, 4096),
            fc7: linear(4096, 4096),
            fc8: linear(4096, 1000),
            pool: MaxPool2dConfig::new([3, 3]).with_strides([2, 2]).with_ceil_mode(true).init(),
            // Its alpha is the paper's times the window's size.
            norm: LocalResponseNormConfig::new(5).with_alpha(5e-4).with_k(2.0).init(),
            dropout: DropoutConfig::new(0.5).init(),
            relu: Relu::new(),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        let relu = |x| self.relu.forward(x);
        let x = self.norm.forward(self.pool.forward(relu(self.conv1.forward(x))));
        let x = self.norm.forward(self.pool.forward(relu(self.conv2.forward(x))));
        let x = relu(self.conv3.forward(x));
        let x = relu(self.conv4.forward(x));
        let x = self.pool.forward(relu(self.conv5.forward(x))).flatten::<2>(1, 3);
        let x = self.dropout.forward(self.relu.forward(self.fc6.forward(x)));
        let x = self.dropout.forward(self.relu.forward(self.fc7.forward(x)));
        self.fc8.forward(x)
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = || arguments.next().and_then(|text| text.parse::<usize>().ok());
    let (Some(batch), Some(steps)) = (number(), number()) else {
        panic!("expected BATCH STEPS");
    };
    let plain = Device::flex();
    let device = plain.clone().autodiff();
    let mut network = Zfnet::new(&device);
    let momentum = MomentumConfig::new().with_momentum(0.9).with_dampening(0.0);
    let mut optimizer = SgdConfig::new()
        .with_weight_decay(Some(WeightDecayConfig::new(5e-4)))
        .with_momentum(Some(momentum))
        .init();
    let loss = CrossEntropyLossConfig::new().init(&device);
    let x = Tensor::<4>::random([batch, 3, 224, 224], Distribution::Default, &device);
    let labels = Tensor::<1, Int>::arange(0..batch as i64, &device);
    let mut seconds = Vec::new();
    for _ in 0..=steps {
        let begun = Instant::now();
        let gradients = loss.forward(network.forward(x.clone()), labels.clone()).backward();
        let gradients = GradientsParams::from_grads(gradients, &network);
        network = optimizer.step(1e-4, network, gradients);
        seconds.push(begun.elapsed().as_secs_f64());
    }
    seconds.remove(0); // warm-up
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    let rate = batch as f64 / median;
    println!("{{\"milliseconds\": {}, \"images_per_second\": {rate}}}", median * 1e3);
}
