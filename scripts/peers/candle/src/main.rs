//! A training step in candle, as near to ZFNet's as candle has it: `peer-candle BATCH STEPS`.
//!
//! Left out, so that candle has less to do than the others: local response normalisation (there is
//! none), and momentum and weight decay (its SGD has neither). Pooling is 2x2 instead of 3x3, because
//! windows that overlap have no backward pass; the maps' sizes come out the same. `RAYON_NUM_THREADS`
//! sets the threads. Prints one line of JSON.

use std::time::Instant;

use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::{
    Conv2dConfig, Dropout, Optimizer, SGD, VarBuilder, VarMap, conv2d, linear, loss::cross_entropy,
};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = || arguments.next().and_then(|text| text.parse::<usize>().ok());
    let (Some(batch), Some(steps)) = (number(), number()) else {
        panic!("expected BATCH STEPS");
    };
    let device = Device::Cpu;
    let weights = VarMap::new();
    let vb = VarBuilder::from_varmap(&weights, DType::F32, &device);
    let shape = |stride, padding| Conv2dConfig { stride, padding, ..Default::default() };
    let conv1 = conv2d(3, 96, 7, shape(2, 1), vb.pp("conv1"))?;
    let conv2 = conv2d(96, 256, 5, shape(2, 0), vb.pp("conv2"))?;
    let conv3 = conv2d(256, 384, 3, shape(1, 1), vb.pp("conv3"))?;
    let conv4 = conv2d(384, 384, 3, shape(1, 1), vb.pp("conv4"))?;
    let conv5 = conv2d(384, 256, 3, shape(1, 1), vb.pp("conv5"))?;
    let fc6 = linear(256 * 6 * 6, 4096, vb.pp("fc6"))?;
    let fc7 = linear(4096, 4096, vb.pp("fc7"))?;
    let fc8 = linear(4096, 1000, vb.pp("fc8"))?;
    let dropout = Dropout::new(0.5);
    let network = |x: &Tensor| -> Result<Tensor> {
        let x = conv1.forward(x)?.relu()?.max_pool2d(2)?;
        let x = conv2.forward(&x)?.relu()?.max_pool2d(2)?;
        let x = conv3.forward(&x)?.relu()?;
        let x = conv4.forward(&x)?.relu()?;
        let x = conv5.forward(&x)?.relu()?.max_pool2d(2)?.flatten_from(1)?;
        let x = dropout.forward(&fc6.forward(&x)?.relu()?, true)?;
        let x = dropout.forward(&fc7.forward(&x)?.relu()?, true)?;
        fc8.forward(&x)
    };
    let mut optimizer = SGD::new(weights.all_vars(), 1e-4)?;
    let x = Tensor::randn(0f32, 1.0, (batch, 3, 224, 224), &device)?;
    let labels = Tensor::arange(0u32, batch as u32, &device)?;
    let mut seconds = Vec::new();
    for _ in 0..=steps {
        let begun = Instant::now();
        let loss = cross_entropy(&network(&x)?, &labels)?;
        optimizer.backward_step(&loss)?;
        seconds.push(begun.elapsed().as_secs_f64());
    }
    seconds.remove(0); // warm-up
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    let rate = batch as f64 / median;
    println!("{{\"milliseconds\": {}, \"images_per_second\": {rate}}}", median * 1e3);
    Ok(())
}
