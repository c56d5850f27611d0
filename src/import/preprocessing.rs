//! How images are prepared for a network that another program trained.

use zfnet_core::{Canvas, Fit, Interpolation, MAX_CANVAS, size_text};
use zfnet_formats::{Preprocessing, Resize};

use super::ExternalConfig;
use crate::model::{Network, Preprocess};
use crate::{Error, Result};

/// Below so many pixels an image is not made larger than the input first, to be cropped then: CIFAR, MNIST.
const WITHOUT_MARGIN: usize = 128;

/// What images are resized to where nobody says: 8/7 of the crop, as 256 is of 224.
pub(super) fn canvas_for(size: [usize; 2]) -> Canvas {
    let margin = size.iter().all(|side| *side >= WITHOUT_MARGIN);
    Canvas::of(if margin { size.map(|side| (side * 8 + 3) / 7) } else { size })
}

/// The preprocessing of a network: what the user names, else what its file says, else what one beside it does.
///
/// # Errors
/// If none of them does, or it does not fit the network.
pub(super) fn resolve(
    network: &Network,
    config: &ExternalConfig,
    known: Option<Preprocessing>,
    notes: &mut Vec<String>,
) -> Result<Preprocess> {
    let input = network.architecture.input;
    let canvas = config.resize.map_or(input.resize, Canvas::of);
    if !canvas.holds(input.size) {
        return Err(Error::Network(format!(
            "expected images to be resized to at least the input's {}, and to at most {MAX_CANVAS} pixels a side, found \
             {}",
            size_text(input.size),
            size_text(canvas.size())
        )));
    }
    let preprocess = match (&config.preprocess, known) {
        (Some(name), known) => {
            if known.is_some() {
                notes.push(
                    "the preprocessing that was found is not used: another was asked for".into(),
                );
            }
            Preprocess::named(name, input.size, canvas)?.of_channels(input.channels)
        }
        (None, Some(known)) => of_file(network, known, config, canvas, notes)?,
        (None, None) => return Err(Error::UnknownPreprocessing(None)),
    };
    preprocess.check()?;
    Ok(preprocess)
}

fn of_file(
    network: &Network,
    known: Preprocessing,
    config: &ExternalConfig,
    otherwise: Canvas,
    notes: &mut Vec<String>,
) -> Result<Preprocess> {
    let input = network.architecture.input;
    let (size, channels) = (input.size, input.channels);
    let wrong = |expected: String, found: String| {
        Error::Network(format!("preprocessing: expected {expected}, found {found}"))
    };
    if let Some(crop) = known.crop.filter(|crop| *crop != size) {
        return Err(wrong(format!("crops of {}", size_text(size)), size_text(crop)));
    }
    let mut canvas = match (config.resize, known.resize, known.mean_size) {
        (Some(_), ..) => otherwise,
        (None, Some(Resize::Shortest(side)), _) if size.iter().all(|crop| *crop <= side) => {
            Canvas::square(side)
        }
        (None, Some(Resize::Squash(to)), _) if known.crop.is_some() || to == size => {
            Canvas { fit: Fit::Squash, ..Canvas::of(to) }
        }
        (None, Some(resize), _) => {
            let to = match resize {
                Resize::Shortest(side) => format!("resized to a shortest side of {side}"),
                Resize::Squash(to) => format!("resized to {}", size_text(to)),
            };
            return Err(wrong(
                format!("images of which {} is seen", size_text(size)),
                format!("them {to}"),
            ));
        }
        (None, None, Some(mean)) => {
            notes.push(format!(
                "an image's centre of the shape of the mean image, {}, is resized to it, since the file does not say how",
                size_text(mean)
            ));
            Canvas::of(mean)
        }
        (None, None, None) if known.crop.is_none() => {
            notes.push(format!(
                "images are resized to the input's {}, whatever their shape, since the file names no crop",
                size_text(size)
            ));
            Canvas { fit: Fit::Squash, ..Canvas::of(size) }
        }
        (None, None, None) => {
            notes.push(format!(
                "images are resized to {otherwise} first, since the file does not say to what"
            ));
            otherwise
        }
    };
    if let Some(name) = &known.interpolation {
        canvas.interpolation = match name.as_str() {
            "nearest" => Interpolation::Nearest,
            "bilinear" => Interpolation::Bilinear,
            "bicubic" => Interpolation::Bicubic,
            "lanczos" => Interpolation::Lanczos,
            "box" => Interpolation::Box,
            other => {
                let expected = "the interpolation nearest, bilinear, bicubic, lanczos or box";
                return Err(wrong(expected.into(), other.into()));
            }
        };
    }
    canvas.antialias = known.antialias.unwrap_or(true);
    let of_channels = |what: &str, values: Vec<f32>| match values.len() {
        1 => Ok(vec![values[0]; channels]),
        n if n == channels => Ok(values),
        n => Err(wrong(format!("{what} of {channels} channels"), format!("{n} values"))),
    };
    let mean = match known.mean_size {
        None if known.mean.is_empty() => {
            let expected = "the mean image that was taken off in training (mean.binaryproto)";
            return Err(wrong(expected.into(), "that it is in another file".into()));
        }
        None => of_channels("a mean", known.mean)?,
        Some(mean) if mean == canvas.size() && known.mean.len() == mean[0] * mean[1] * channels => {
            let places = mean[0] * mean[1];
            (0..places * channels)
                .map(|i| known.mean[i % channels * places + i / channels])
                .collect()
        }
        Some(mean) => {
            let expected = format!("a mean image of {}", size_text(canvas.size()));
            return Err(wrong(expected, size_text(mean)));
        }
    };
    Ok(Preprocess {
        resize: canvas,
        size,
        scale: known.scale,
        std: of_channels("standard deviations", known.std)?,
        order: if known.bgr && channels == 3 { [2, 1, 0] } else { [0, 1, 2] },
        mean,
    })
}
