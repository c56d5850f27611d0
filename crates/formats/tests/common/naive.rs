//! A chain's forward pass in f64, as slow and plain as it can be.
#![allow(dead_code)] // a test program uses a part

use zfnet_formats::{Chain, Op};

/// Maps: channels, rows, columns, and their values in that order.
#[derive(Clone, Debug, PartialEq)]
pub struct Maps {
    pub sizes: [usize; 3],
    pub values: Vec<f64>,
}

impl Maps {
    fn at(&self, c: usize, y: isize, x: isize) -> Option<f64> {
        let [_, h, w] = self.sizes;
        let inside = y >= 0 && x >= 0 && (y as usize) < h && (x as usize) < w;
        inside.then(|| self.values[(c * h + y as usize) * w + x as usize])
    }
}

/// What the last layer makes of an input. Dropout does nothing.
pub fn forward(chain: &Chain, input: Maps) -> Maps {
    assert_eq!(input.sizes[0], chain.input.channels);
    chain.layers.iter().fold(input, |maps, layer| apply(&layer.op, maps))
}

fn apply(op: &Op, x: Maps) -> Maps {
    let [c, h, w] = x.sizes;
    match op {
        Op::Conv { weight, bias, stride, pad, groups, ceil } => {
            assert!(!ceil, "not needed yet");
            let [o, i, kh, kw] = weight.shape[..] else { panic!("{:?}", weight.shape) };
            assert_eq!(i * groups, c);
            let sizes = [
                o,
                (h + pad[0] + pad[1] - kh) / stride[0] + 1,
                (w + pad[2] + pad[3] - kw) / stride[1] + 1,
            ];
            each(sizes, |oc, oy, ox| {
                let mut sum = f64::from(bias[oc]);
                for ic in 0..i {
                    for ky in 0..kh {
                        for kx in 0..kw {
                            let y = (oy * stride[0] + ky) as isize - pad[0] as isize;
                            let x_ = (ox * stride[1] + kx) as isize - pad[2] as isize;
                            let from = oc / (o / groups) * i + ic;
                            let weight = weight.values[((oc * i + ic) * kh + ky) * kw + kx];
                            sum += f64::from(weight) * x.at(from, y, x_).unwrap_or(0.);
                        }
                    }
                }
                sum
            })
        }
        Op::Fc { weight, bias } => {
            let inputs = weight.shape[1];
            assert_eq!(inputs, c * h * w);
            each([weight.shape[0], 1, 1], |o, _, _| {
                let row = &weight.values[o * inputs..(o + 1) * inputs];
                let products = row.iter().zip(&x.values).map(|(&a, b)| f64::from(a) * b);
                f64::from(bias[o]) + products.sum::<f64>()
            })
        }
        Op::Relu => {
            Maps { sizes: x.sizes, values: x.values.iter().map(|value| value.max(0.)).collect() }
        }
        Op::MaxPool { kernel, stride, pad, ceil } => {
            let size = |size: usize, i: usize| {
                let free = size + pad[2 * i] + pad[2 * i + 1] - kernel[i];
                match ceil {
                    false => free / stride[i] + 1,
                    true => {
                        let count = free.div_ceil(stride[i]) + 1;
                        count - usize::from((count - 1) * stride[i] >= size + pad[2 * i])
                    }
                }
            };
            each([c, size(h, 0), size(w, 1)], |c, oy, ox| {
                let mut most = f64::NEG_INFINITY;
                for ky in 0..kernel[0] {
                    for kx in 0..kernel[1] {
                        let y = (oy * stride[0] + ky) as isize - pad[0] as isize;
                        let x_ = (ox * stride[1] + kx) as isize - pad[2] as isize;
                        most = most.max(x.at(c, y, x_).unwrap_or(f64::NEG_INFINITY));
                    }
                }
                most
            })
        }
        &Op::Lrn { size, alpha, beta, k } => each(x.sizes, |channel, y, x_| {
            let near = channel.saturating_sub(size / 2)..c.min(channel + size / 2 + 1);
            let at = |c| x.at(c, y as isize, x_ as isize).unwrap();
            let squares: f64 = near.map(|c| at(c) * at(c)).sum();
            let base = f64::from(k) + f64::from(alpha) / size as f64 * squares;
            at(channel) / base.powf(f64::from(beta))
        }),
        Op::Dropout { .. } => x,
    }
}

fn each(sizes: [usize; 3], value: impl Fn(usize, usize, usize) -> f64) -> Maps {
    let [c, h, w] = sizes;
    let mut values = Vec::with_capacity(c * h * w);
    for c in 0..c {
        for y in 0..h {
            values.extend((0..w).map(|x| value(c, y, x)));
        }
    }
    Maps { sizes, values }
}
