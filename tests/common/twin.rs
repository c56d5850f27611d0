//! Naive twins of the operations and of the two passes, in f64: as short as they can be, so that
//! they can be checked by reading.

use zfnet::backend::{Lrn, NOT_POSITIVE, ReluRule};
use zfnet::model::{Conv, ConvTranspose, Kind, LrnRule, MaxPool, Network, Rule};
use zfnet::shape::{ConvDims, PoolDims, Windows};

/// Weights and biases of each layer that has them.
pub type HostParams = Vec<Option<[Vec<f64>; 2]>>;

/// Calls `tap(output, weight, input)` with the places of every product of a convolution.
pub fn taps(dims: &ConvDims, mut tap: impl FnMut(usize, usize, usize)) {
    let [n, h, w, c] = [dims.n, dims.h, dims.w, dims.c].map(|v| v as usize);
    let [k, r, s, p, q] = [dims.k, dims.r, dims.s, dims.p, dims.q].map(|v| v as usize);
    let [[down, right], [top, left]] = [dims.stride, dims.pad].map(|v| v.map(|v| v as usize));
    let [channels, filters] = [c, k].map(|v| v / dims.groups as usize);
    for (image, y, x) in places(n, p, q) {
        for (filter, i, j) in places(k, r, s) {
            let (row, column) = (y * down + i, x * right + j);
            if row < top || row >= h + top || column < left || column >= w + left {
                continue; // beyond the edge lie zeros
            }
            let pixel = (image * h + row - top) * w + column - left;
            for channel in 0..channels {
                let output = ((image * p + y) * q + x) * k + filter;
                let weight = ((filter * r + i) * s + j) * channels + channel;
                tap(output, weight, pixel * c + filter / filters * channels + channel);
            }
        }
    }
}

/// All triples below three bounds, the last index fastest.
pub fn places(a: usize, b: usize, c: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..a).flat_map(move |i| (0..b).flat_map(move |j| (0..c).map(move |k| (i, j, k))))
}

pub fn conv(dims: &ConvDims, x: &[f64], weight: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
    let k = dims.k as usize;
    let start = |i: usize| bias.map_or(0.0, |bias| bias[i % k]);
    let mut y: Vec<f64> = (0..dims.output().len()).map(start).collect();
    taps(dims, |output, filter, input| y[output] += weight[filter] * x[input]);
    y
}

pub fn conv_data(dims: &ConvDims, dy: &[f64], weight: &[f64]) -> Vec<f64> {
    let mut dx = vec![0.0; dims.input().len()];
    taps(dims, |output, filter, input| dx[input] += weight[filter] * dy[output]);
    dx
}

/// Gradients of the weights and of the biases.
pub fn conv_filter(dims: &ConvDims, dy: &[f64], x: &[f64]) -> [Vec<f64>; 2] {
    let mut dw = vec![0.0; dims.filter().len()];
    taps(dims, |output, filter, input| dw[filter] += dy[output] * x[input]);
    let mut db = vec![0.0; dims.k as usize];
    dy.iter().enumerate().for_each(|(i, dy)| db[i % dims.k as usize] += dy);
    [dw, db]
}

/// Calls `window(output, places)` for each window, with its places inside the image in row-major
/// order: (index in the window, place in the input).
fn pool_windows(dims: &PoolDims, mut window: impl FnMut(usize, &[(u8, usize)])) {
    let [h, w, c, p, q] = [dims.h, dims.w, dims.c, dims.p, dims.q].map(|v| v as usize);
    let [rows, columns] = dims.window.map(|v| v as usize);
    let [[down, right], [top, left]] = [dims.stride, dims.pad].map(|v| v.map(|v| v as usize));
    for (image, y, x) in places(dims.n as usize, p, q) {
        for channel in 0..c {
            let inside: Vec<(u8, usize)> = places(1, rows, columns)
                .filter_map(|(_, i, j)| {
                    let row = (y * down + i).checked_sub(top).filter(|row| *row < h)?;
                    let column = (x * right + j).checked_sub(left).filter(|column| *column < w)?;
                    let place = ((image * h + row) * w + column) * c + channel;
                    Some(((i * columns + j) as u8, place))
                })
                .collect();
            window(((image * p + y) * q + x) * c + channel, &inside);
        }
    }
}

/// Winners, and their switches.
pub fn pool(dims: &PoolDims, x: &[f64]) -> (Vec<f64>, Vec<u8>) {
    let len = dims.output().len();
    let (mut y, mut switches) = (vec![0.0; len], vec![0; len]);
    pool_windows(dims, |output, inside| {
        let nan = inside.iter().find(|(_, place)| x[*place].is_nan());
        let largest = inside.iter().map(|(_, place)| x[*place]).fold(f64::NEG_INFINITY, f64::max);
        let first = inside.iter().find(|(_, place)| x[*place] == largest);
        let (index, place) = *nan.or(first).expect("a window holds a value");
        y[output] = x[place];
        let forgotten = x[place] <= 0.0 && dims.any_sign == 0;
        switches[output] = if forgotten { NOT_POSITIVE } else { index };
    });
    (y, switches)
}

/// Values added where the switches point. `dims` are those of the backward samples; sample `n`
/// goes by the switches of image `images[n]`.
pub fn unpool(
    dims: &PoolDims,
    dy: &[f64],
    switches: &[u8],
    images: &[u32],
    forward_mask: bool,
) -> Vec<f64> {
    let mut dx = vec![0.0; dims.input().len()];
    let len = dims.output().per_image();
    pool_windows(dims, |output, inside| {
        let switch = switches[images[output / len] as usize * len + output % len];
        let place = match switch {
            NOT_POSITIVE if forward_mask => None,
            NOT_POSITIVE => inside.first(),
            _ => inside.iter().find(|(index, _)| *index == switch),
        };
        place.into_iter().for_each(|(_, place)| dx[*place] += dy[output]);
    });
    dx
}

/// Windows of maps of `c` channels, each sample's where its unit's row and column say; zero outside.
pub fn cut(windows: &Windows, units: &[u32], images: &[u32], c: usize, src: &[f64]) -> Vec<f64> {
    let [h, w] = windows.map.map(|v| v as usize);
    let mut dst = Vec::new();
    for (n, i, j) in places(images.len(), windows.size[0] as usize, windows.size[1] as usize) {
        let at = |axis: usize, index: usize, size: usize| {
            let unit = units[2 * n + axis] as i32;
            let place = windows.start[axis] + windows.jump[axis] * unit + index as i32;
            usize::try_from(place).ok().filter(|place| *place < size)
        };
        let pixel = at(0, i, h).zip(at(1, j, w)).map(|(y, x)| (images[n] as usize * h + y) * w + x);
        dst.extend((0..c).map(|channel| pixel.map_or(0.0, |pixel| src[pixel * c + channel])));
    }
    dst
}

pub fn relu(x: &[f64]) -> Vec<f64> {
    x.iter().map(|x| if *x < 0.0 { 0.0 } else { *x }).collect()
}

/// What comes down through a relu whose output was `y`.
pub fn relu_down(dy: &[f64], y: &[f64], rule: ReluRule) -> Vec<f64> {
    let masked =
        |dy: f64, y: f64| if rule.forward_mask && (y <= 0.0 || y.is_nan()) { 0.0 } else { dy };
    let down = |dy: f64| if rule.relu_down && dy < 0.0 { 0.0 } else { dy };
    dy.iter().zip(y).map(|(dy, y)| down(masked(*dy, *y))).collect()
}

/// The channels that channel `j` of `c` is normalised by.
fn neighbours(j: usize, c: usize, lrn: &Lrn) -> std::ops::Range<usize> {
    let (before, after) = (lrn.size as usize / 2, (lrn.size as usize - 1) / 2);
    j.saturating_sub(before)..(j + after + 1).min(c)
}

/// `s` of one pixel's channels.
fn lrn_scales(x: &[f64], lrn: &Lrn) -> Vec<f64> {
    let squares = |j| neighbours(j, x.len(), lrn).map(|i| x[i] * x[i]).sum::<f64>();
    let (k, alpha) = (f64::from(lrn.k), f64::from(lrn.alpha));
    (0..x.len()).map(|j| k + alpha * squares(j)).collect()
}

pub fn lrn(x: &[f64], c: usize, lrn: &Lrn) -> Vec<f64> {
    let pixel = |x: &[f64]| -> Vec<f64> {
        let scales = lrn_scales(x, lrn);
        x.iter().zip(scales).map(|(x, s)| x * s.powf(-f64::from(lrn.beta))).collect()
    };
    x.chunks(c).flat_map(pixel).collect()
}

/// `dx`, and the sum of the absolute values of what it is the sum of.
pub fn lrn_backward(dy: &[f64], x: &[f64], c: usize, lrn: &Lrn) -> [Vec<f64>; 2] {
    let (alpha, beta) = (f64::from(lrn.alpha), f64::from(lrn.beta));
    let mut dx = vec![0.0; dy.len()];
    let mut magnitude = vec![0.0; dy.len()];
    for start in (0..dy.len()).step_by(c) {
        let (dy, x) = (&dy[start..start + c], &x[start..start + c]);
        let s = lrn_scales(x, lrn);
        for j in 0..c {
            let mut add = |i: usize, term: f64| {
                dx[start + i] += term;
                magnitude[start + i] += term.abs();
            };
            add(j, dy[j] * s[j].powf(-beta));
            for i in neighbours(j, c, lrn) {
                add(i, -2.0 * alpha * beta * x[i] * dy[j] * x[j] * s[j].powf(-beta - 1.0));
            }
        }
    }
    [dx, magnitude]
}

/// Losses, and `scale` times their gradients.
pub fn softmax_cross_entropy(
    logits: &[f64],
    classes: usize,
    labels: &[u32],
    scale: f64,
) -> [Vec<f64>; 2] {
    let (mut losses, mut gradients) = (Vec::new(), Vec::new());
    for (logits, &label) in logits.chunks(classes).zip(labels) {
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.iter().map(|l| (l - max).exp()).sum();
        losses.push(max + sum.ln() - logits[label as usize]);
        gradients.extend(logits.iter().enumerate().map(|(class, l)| {
            ((l - max).exp() / sum - f64::from(class == label as usize)) * scale
        }));
    }
    [losses, gradients]
}

/// A forward pass: what each layer reads, and the logits; and the pools' switches.
pub struct ForwardPass {
    pub n: usize,
    pub values: Vec<Vec<f64>>,
    pub switches: Vec<Vec<u8>>,
}

impl ForwardPass {
    pub fn logits(&self) -> &[f64] {
        self.values.last().unwrap()
    }

    /// On which side of every kink the pass went: who fired, and who won.
    pub fn pattern(&self, network: &Network) -> Vec<Vec<u8>> {
        let layers = network.layers.iter().zip(&self.values[1..]);
        let relus = layers.filter(|(layer, _)| matches!(layer.kind, Kind::Relu(_)));
        let fired = relus.map(|(_, y)| y.iter().map(|y| u8::from(*y > 0.0)).collect());
        fired.chain(self.switches.iter().cloned()).collect()
    }
}

/// Runs `n` samples forward, without dropout.
pub fn forward(network: &Network, params: &HostParams, n: usize, input: Vec<f64>) -> ForwardPass {
    let mut pass = ForwardPass { n, values: vec![input], switches: Vec::new() };
    for (layer, param) in network.layers.iter().zip(params) {
        let x = pass.values.last().unwrap();
        let mut switches = Vec::new();
        let y = match &layer.kind {
            Kind::Conv(Conv { dims, .. }) | Kind::FullyConnected(Conv { dims, .. }) => {
                let [weight, bias] = param.as_ref().unwrap();
                conv(&dims.with_n(n), x, weight, Some(bias))
            }
            Kind::ConvTranspose(ConvTranspose { dims }) => {
                conv_data(&dims.with_n(n), x, &param.as_ref().unwrap()[0])
            }
            Kind::Relu(_) => relu(x),
            Kind::MaxPool(MaxPool { dims }) => {
                let (y, winners) = pool(&dims.with_n(n), x);
                switches = winners;
                y
            }
            Kind::Lrn(constants) => lrn(x, layer.input.c, constants),
            Kind::Dropout(_) => x.clone(),
            other => unreachable!("{other:?} has no twin"),
        };
        pass.values.push(y);
        pass.switches.push(switches);
    }
    pass
}

/// Runs backward from the output of layer `from`, to the pixels; also gives the gradients of the
/// weights, which mean something for [`Rule::GRADIENT`].
pub fn backward(
    network: &Network,
    params: &HostParams,
    pass: &ForwardPass,
    from: usize,
    seed: Vec<f64>,
    rule: Rule,
) -> (Vec<f64>, HostParams) {
    let mut dy = seed;
    let mut gradients: HostParams = vec![None; network.layers.len()];
    let relu_rule = ReluRule { forward_mask: rule.forward_mask, relu_down: rule.relu_down };
    let own: Vec<u32> = (0..pass.n as u32).collect();
    for (i, layer) in network.layers.iter().enumerate().take(from + 1).rev() {
        let (x, y) = (&pass.values[i], &pass.values[i + 1]);
        dy = match &layer.kind {
            Kind::Conv(Conv { dims, .. }) | Kind::FullyConnected(Conv { dims, .. }) => {
                let dims = &dims.with_n(pass.n);
                gradients[i] = Some(conv_filter(dims, &dy, x));
                conv_data(dims, &dy, &params[i].as_ref().unwrap()[0])
            }
            Kind::ConvTranspose(ConvTranspose { dims }) => {
                let dims = &dims.with_n(pass.n);
                let [weights, _] = conv_filter(dims, x, &dy);
                gradients[i] = Some([weights, vec![0.0; dims.k as usize]]); // no bias
                conv(dims, &dy, &params[i].as_ref().unwrap()[0], None)
            }
            Kind::Relu(_) => relu_down(&dy, y, relu_rule),
            Kind::MaxPool(MaxPool { dims }) => {
                unpool(&dims.with_n(pass.n), &dy, &pass.switches[i], &own, rule.forward_mask)
            }
            Kind::Lrn(lrn) if rule.lrn == LrnRule::Derivative => {
                let [dx, _] = lrn_backward(&dy, x, layer.input.c, lrn);
                dx
            }
            Kind::Lrn(_) | Kind::Dropout(_) => dy,
            other => unreachable!("{other:?} has no twin"),
        };
    }
    (dy, gradients)
}
