//! Doubles the size of photographs, better than bicubic interpolation does.
//!
//! ```text
//! cargo run --release --example super_resolution -- FOLDER [OUT]
//! ```
//!
//! Pairs are made from the photographs themselves: halved (antialiased), they are what the network
//! sees; as they were, what it is to give. It sees a small picture and gives a large one, by
//! a transposed convolution, and this is *added to the bicubic enlargement*:
//! `large = bicubic(small) + network(small) / GAIN`. So it learns only what bicubic gets wrong,
//! and what it learns is to undo this one way of halving. Photographs it has not trained on are held out, and on them the
//! ratio of the range to the root mean square error is printed for both, in decibels (PSNR).
//!
//! The crate's own passes and update train it; only the loss, half the squared error, is computed here.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;

use fast_image_resize as fir;
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use zfnet::backend::cpu::CpuBackend;
use zfnet::backend::{Backend, SgdConstants, StepState};
use zfnet::data::images::read_rgb;
use zfnet::model::{
    Architecture, BackwardOptions, BackwardTo, Network, Params, Purpose, Rule, Workspace,
};
use zfnet::picture::Image;

/// Sees `size` pixels, gives twice as many; 0 classes, since it gives maps.
const NETWORK: &str = r#"
    name = "super-resolution"
    classes = 0
    input = { size = 24, resize = 24 }
    layers = [
      { type = "conv", name = "conv1", channels = 32, kernel = 5, pad = 2 },
      { type = "relu" },
      { type = "conv", name = "conv2", channels = 32, kernel = 3, pad = 1 },
      { type = "relu" },
      { type = "conv_transpose", name = "up", channels = 3, kernel = 6, stride = 2, pad = 2 },
    ]
    [recipe]
    init = "he"
"#;

/// Rows and columns of the small crops that are trained on, and of those that are measured.
const TRAIN_SIDE: usize = 24;
const TEST_SIDE: usize = 64;
/// No more of a photograph than its centre of so many rows and columns is kept.
const KEPT_SIDE: usize = 256;
/// So many photographs are read at most, and one in so many is held out.
const MOST: usize = 500;
const HELD_OUT: usize = 10;
const BATCH: usize = 16;
const STEPS: u32 = 4000;
const RATE: f32 = 0.02;
/// The network gives the differences enlarged by this, so that they are of a size with its input.
const GAIN: f32 = 8.0;
/// Pictures that are written.
const SHOWN: usize = 4;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() {
    if let Err(error) = run() {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn run() -> Outcome<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let usage = "expected a folder of photographs: super_resolution FOLDER [OUT]";
    let folder = arguments.next().ok_or(usage)?;
    let out = arguments.next().unwrap_or("super-resolution".into());
    if arguments.next().is_some() {
        return Err(usage.into());
    }
    let (trained_on, held_out) = photographs(&folder)?;
    println!("{} photographs to train on, {} held out", trained_on.len(), held_out.len());

    let backend = CpuBackend::new(None)?;
    let params = train(&backend, &trained_on)?;
    measure(&backend, &params, &held_out, &out)
}

/// Trains on random crops by gradient descent with momentum, the rate falling to 0 as a cosine does.
fn train<B: Backend>(backend: &B, pairs: &[Pair]) -> Outcome<Params<B>> {
    let network = Network::new(Architecture::parse(NETWORK)?)?;
    let mut params = Params::init(backend, &network, 0)?;
    let mut gradients = Params::zeros(backend, &network)?;
    let mut momentum = Params::zeros(backend, &network)?;
    let mut workspace = Workspace::new(backend, &network, Purpose::Train, BATCH)?;
    let last = network.layers.len() - 1;
    let output = network.layers[last].output.with_n(BATCH);
    let mut given = vec![0.0; output.len()];
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut below = |bound: usize| (random.next_u64() % bound as u64) as usize;
    let (begun, mut errors) = (Instant::now(), 0.0);
    for step in 0..STEPS {
        let (mut input, mut wanted) = (Vec::new(), Vec::new());
        for _ in 0..BATCH {
            let pair = &pairs[below(pairs.len())];
            let [x, y] =
                [pair.small.width, pair.small.height].map(|size| below(size - TRAIN_SIDE + 1));
            let crop = pair.crop(x, y, TRAIN_SIDE);
            input.extend(crop.input());
            wanted.extend(crop.wanted());
        }
        backend.upload(&mut workspace.input, &input)?;
        workspace.forward(backend, &params)?;
        backend.download(&mut given, workspace.output(last))?;
        // Of the mean over samples of half the sum of squared errors, over a sample's places too, so that
        // the rate does not depend on how many there are.
        let share = 1.0 / BATCH as f32 / (output.h * output.w) as f32;
        let error = given.iter().zip(&wanted).map(|(given, wanted)| given - wanted);
        let gradient: Vec<f32> = error.clone().map(|error| error * share).collect();
        errors += error.map(|error| f64::from(error * error)).sum::<f64>() / output.len() as f64;
        workspace.signal().reshape(output);
        backend.upload(workspace.signal(), &gradient)?;
        let options = BackwardOptions {
            from: last,
            rule: Rule::GRADIENT,
            images: None,
            gradients: Some(&mut gradients),
            accumulate: false,
            to: BackwardTo::FirstWeights,
        };
        workspace.backward(backend, &params, options)?;

        let turn = std::f32::consts::PI * step as f32 / STEPS as f32;
        let rate = RATE * 0.5 * (1.0 + turn.cos());
        workspace
            .set_state(backend, StepState { step, learning_rate: rate, ..StepState::default() })?;
        let constants = SgdConstants { momentum: 0.9, weight_decay: 0.0 };
        let state = &workspace.state;
        let layers = params.layers.iter_mut().zip(&mut momentum.layers).zip(&gradients.layers);
        for ((w, v), g) in layers {
            let (Some(w), Some(v), Some(g)) = (w, v, g) else { continue };
            backend.sgd_step(&mut w.weight, &mut v.weight, &g.weight, &constants, state)?;
            backend.sgd_step(&mut w.bias, &mut v.bias, &g.bias, &constants, state)?;
        }

        let (done, every) = (step + 1, STEPS / 20);
        if done % every == 0 {
            let mean = errors / f64::from(every) / f64::from(GAIN * GAIN);
            let seconds = begun.elapsed().as_secs_f64();
            let left = seconds / f64::from(done) * f64::from(STEPS - done);
            eprintln!("step {done}/{STEPS}: {:.2} dB on crops, {left:.0} s left", decibels(mean));
            if !mean.is_finite() {
                return Err("the loss is no longer a number: lower RATE".into());
            }
            errors = 0.0;
        }
    }
    Ok(params)
}

/// Enlarges the centres of the held-out photographs, prints how well, and writes a few.
fn measure<B: Backend>(backend: &B, params: &Params<B>, pairs: &[Pair], out: &Path) -> Outcome<()> {
    // The same weights over larger maps.
    let mut architecture = Architecture::parse(NETWORK)?;
    (architecture.input.size, architecture.input.resize) = ([TEST_SIDE; 2], TEST_SIDE.into());
    let network = Network::new(architecture)?;
    let mut workspace = Workspace::new(backend, &network, Purpose::Infer, 1)?;
    let mut given = vec![0.0; network.layers[network.layers.len() - 1].output.len()];
    std::fs::create_dir_all(out).map_err(|error| format!("{}: {error}", out.display()))?;
    let (mut bicubic_sum, mut network_sum, mut better) = (0.0, 0.0, 0);
    for (index, pair) in pairs.iter().enumerate() {
        let [x, y] = [pair.small.width, pair.small.height].map(|size| (size - TEST_SIDE) / 2);
        let crop = pair.crop(x, y, TEST_SIDE);
        backend.upload(&mut workspace.input, &crop.input())?;
        workspace.forward(backend, params)?;
        backend.download(&mut given, workspace.output(network.layers.len() - 1))?;
        let enlarged = Image::new(
            crop.large.width,
            crop.large.height,
            (crop.bicubic.pixels.iter().zip(&given))
                .map(|(base, more)| (f32::from(*base) + 255.0 * more / GAIN).round() as u8)
                .collect(),
        );
        let [of_bicubic, of_network] =
            [&crop.bicubic, &enlarged].map(|image| psnr(image, &crop.large));
        bicubic_sum += of_bicubic;
        network_sum += of_network;
        better += usize::from(of_network > of_bicubic);
        if index < SHOWN {
            // What it sees (its pixels repeated), bicubic, the network, the photograph.
            let seen = crop.small.resize(crop.large.width, crop.large.height);
            let sheet = Image::sheet(&[seen, crop.bicubic, enlarged, crop.large], 4, 4, 255);
            let path = out.join(format!("{index}.png"));
            sheet.write_png(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    let count = pairs.len() as f64;
    let (bicubic, network) = (bicubic_sum / count, network_sum / count);
    println!("mean PSNR on {} photographs it has not trained on, their centres:", pairs.len());
    println!("  bicubic (Catmull-Rom)         {bicubic:6.2} dB");
    println!("  bicubic + the network         {network:6.2} dB  ({:+.2})", network - bicubic);
    println!("the network is better on {better} of {}", pairs.len());
    println!("{}: seen, bicubic, network, photograph, from left to right", out.display());
    Ok(())
}

/// A photograph, its half, and the half enlarged again by bicubic interpolation.
struct Pair {
    small: Image,
    bicubic: Image,
    large: Image,
}

impl Pair {
    /// Of a photograph's centre; `None` if it is too small to be measured.
    fn new(photograph: &zfnet::data::decode::Rgb) -> Outcome<Option<Pair>> {
        let sides = [photograph.width, photograph.height];
        let [width, height] = sides.map(|side| side.min(KEPT_SIDE) / 2 * 2);
        if width.min(height) < 2 * TEST_SIDE {
            return Ok(None);
        }
        let whole = Image::new(sides[0], sides[1], photograph.pixels.clone());
        let [x, y] = [(sides[0] - width) / 2, (sides[1] - height) / 2].map(|v| v as i64);
        let large = whole.crop([x, y, x + width as i64, y + height as i64]);
        let small = bicubic(&large, width / 2, height / 2)?;
        let bicubic = bicubic(&small, width, height)?;
        Ok(Some(Pair { small, bicubic, large }))
    }

    /// The part that has its corner at column x and row y of the small picture.
    fn crop(&self, x: usize, y: usize, side: usize) -> Pair {
        let part = |image: &Image, times: usize| {
            let [x, y, side] = [x, y, side].map(|v| (v * times) as i64);
            image.crop([x, y, x + side, y + side])
        };
        Pair {
            small: part(&self.small, 1),
            bicubic: part(&self.bicubic, 2),
            large: part(&self.large, 2),
        }
    }

    /// What the network sees: from -1/2 to 1/2.
    fn input(&self) -> Vec<f32> {
        self.small.pixels.iter().map(|value| f32::from(*value) / 255.0 - 0.5).collect()
    }

    /// What it is to give: what bicubic lacks.
    fn wanted(&self) -> impl Iterator<Item = f32> {
        let pixels = self.large.pixels.iter().zip(&self.bicubic.pixels);
        pixels.map(|(large, base)| GAIN * (f32::from(*large) - f32::from(*base)) / 255.0)
    }
}

/// Resizes by Catmull and Rom's cubic (a = -1/2), widened, and so antialiased, where it shrinks.
fn bicubic(image: &Image, width: usize, height: usize) -> Outcome<Image> {
    let [w, h] = [image.width, image.height].map(|v| v as u32);
    let from = TypedImageRef::<U8x3>::from_buffer(w, h, &image.pixels)?;
    let mut pixels = vec![0; width * height * 3];
    let mut to = TypedImage::<U8x3>::from_buffer(width as u32, height as u32, &mut pixels)?;
    let options = fir::ResizeOptions::new()
        .resize_alg(fir::ResizeAlg::Convolution(fir::FilterType::CatmullRom));
    fir::Resizer::new().resize_typed(&from, &mut to, &options)?;
    Ok(Image::new(width, height, pixels))
}

/// Over all pixels and the three colours.
fn psnr(found: &Image, expected: &Image) -> f64 {
    let pixels = found.pixels.iter().zip(&expected.pixels);
    let error = pixels.map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2) / (255.0 * 255.0));
    decibels(error.sum::<f64>() / expected.pixels.len() as f64)
}

/// Of a mean squared error in shares of the range; one of a millionth of a level, for none at all.
fn decibels(mean: f64) -> f64 {
    -10.0 * mean.max(1e-12).log10()
}

/// The photographs of a folder and of the folders in it, to train on and held out. Those that
/// cannot be read or are too small are named and left out.
fn photographs(folder: &Path) -> Outcome<(Vec<Pair>, Vec<Pair>)> {
    let mut paths = Vec::new();
    list(folder, &mut paths)?;
    paths.sort();
    // Every so many of them all, so that all folders are seen.
    let step = paths.len().div_ceil(MOST).max(1);
    let (mut trained_on, mut held_out, mut small) = (Vec::new(), Vec::new(), 0);
    for (index, path) in paths.iter().step_by(step).enumerate() {
        let part = if index % HELD_OUT == 0 { &mut held_out } else { &mut trained_on };
        match read_rgb(path) {
            Err(error) => eprintln!("left out: {error}"),
            Ok(photograph) => match Pair::new(&photograph)? {
                Some(pair) => part.push(pair),
                None => small += 1,
            },
        }
    }
    let least = 2 * TEST_SIDE;
    if small > 0 {
        eprintln!("left out: {small} of fewer than {least} rows or columns");
    }
    if trained_on.is_empty() || held_out.is_empty() {
        return Err(format!(
            "{}: expected at least two photographs (.jpg, .jpeg, .png) of {least} rows and columns or \
             more, found {} to train on and {} to hold out",
            folder.display(),
            trained_on.len(),
            held_out.len()
        )
        .into());
    }
    Ok((trained_on, held_out))
}

/// Adds the names of all image files below a folder.
fn list(folder: &Path, paths: &mut Vec<PathBuf>) -> Outcome<()> {
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        let extension = path.extension().map(|e| e.to_ascii_lowercase());
        // A link to a folder is not followed: it may lead back up.
        if entry.file_type().map_err(failed)?.is_dir() {
            list(&path, paths)?;
        } else if extension.is_some_and(|e| ["jpg", "jpeg", "png"].iter().any(|known| e == *known))
        {
            paths.push(path);
        }
    }
    Ok(())
}
