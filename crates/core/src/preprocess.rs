//! What happens to an image before the first layer: kept with the weights, because weights are
//! worth nothing without it.

use serde::{Deserialize, Serialize};

use crate::operation::Crop;
use crate::{Canvas, Error, MAX_CANVAS, Result, size_text};

/// How pixels become a network's input: `(pixel * scale - mean) / std`.
///
/// A network with one channel sees the luma of each pixel (`operation::luma`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preprocess {
    /// What an image is resized to before crops are cut from it.
    pub resize: Canvas,
    /// Rows and columns of a crop.
    #[serde(with = "crate::size")]
    pub size: [usize; 2],
    /// Factor of a pixel's byte.
    pub scale: f32,
    /// Divides what is left after the mean is taken off: one value for each channel, 1 or 3.
    pub std: Vec<f32>,
    /// Which of R, G, B each channel of the network is: `[0, 1, 2]`, or `[2, 1, 0]` for BGR. Not asked for
    /// where there is one channel.
    pub order: [u32; 3],
    /// Taken off: one value for each pixel and channel of the canvas (HWC), or one a channel; in
    /// the network's order and after `scale`. Kept as a tensor, not in the metadata.
    #[serde(skip)]
    pub mean: Vec<f32>,
}

impl Preprocess {
    /// The paper's: the training set's mean image taken off, values left as they are (divided by
    /// one constant `std`, 1 in the paper). Of three channels; see [`Preprocess::of_channels`].
    pub fn paper(size: [usize; 2], resize: impl Into<Canvas>, std: f32, mean: Vec<f32>) -> Self {
        let (resize, std) = (resize.into(), vec![std; 3]);
        Preprocess { resize, size, scale: 1.0, std, order: [0, 1, 2], mean }
    }

    /// By name, for weights that come without: `paper` (with mid-grey for the unknown mean image),
    /// `torchvision` (ImageNet's mean and standard deviation, of values from 0 to 1) or `caffe` (BGR, less
    /// ImageNet's mean colour).
    ///
    /// # Errors
    /// If there is no such name.
    pub fn named(name: &str, size: [usize; 2], resize: impl Into<Canvas>) -> Result<Self> {
        let base = Self::paper(size, resize, 1.0, vec![128.0; 3]);
        match name {
            "paper" => Ok(base),
            "torchvision" => Ok(Preprocess {
                scale: 1.0 / 255.0,
                mean: vec![0.485, 0.456, 0.406],
                std: vec![0.229, 0.224, 0.225],
                ..base
            }),
            "caffe" => Ok(Preprocess { order: [2, 1, 0], mean: vec![104.0, 117.0, 123.0], ..base }),
            other => Err(Error::Network(format!(
                "no preprocessing `{other}`: expected paper, torchvision or caffe"
            ))),
        }
    }

    /// The same for a network of so many channels: of one, mean and standard deviation become those of luma, by
    /// its weights (exact for the mean of grey pictures).
    #[must_use]
    pub fn of_channels(mut self, channels: usize) -> Self {
        if channels == 1 && self.channels() == 3 {
            let weights = self.order.map(|rgb| [19595.0, 38470.0, 7471.0][rgb as usize] / 65536.0);
            let luma = |values: &Vec<f32>| -> Vec<f32> {
                let of_pixel = |pixel: &[f32]| {
                    let parts = pixel.iter().zip(weights).map(|(v, weight)| f64::from(*v) * weight);
                    parts.sum::<f64>() as f32
                };
                values.chunks_exact(3).map(of_pixel).collect()
            };
            (self.mean, self.std) = (luma(&self.mean), luma(&self.std));
            self.order = [0, 1, 2];
        }
        self
    }

    /// Channels of the network's input, 1 or 3.
    pub fn channels(&self) -> usize {
        self.std.len()
    }

    /// Whether the mean is an image, not a value for each channel.
    pub fn mean_is_image(&self) -> bool {
        self.mean.len() != self.channels()
    }

    /// The shape of the mean, `[rows, columns, channels]` or `[channels]`.
    pub fn mean_shape(&self) -> Vec<usize> {
        match self.mean_is_image() {
            true => vec![self.resize.rows, self.resize.columns, self.channels()],
            false => vec![self.channels()],
        }
    }

    /// Checks sizes and values that come from a file.
    ///
    /// # Errors
    /// If they make no sense.
    pub fn check(&self) -> Result<()> {
        let channels = self.channels();
        let pixels = (self.resize.bytes() / 3).saturating_mul(channels);
        let finite = self.mean.iter().chain(&self.std).chain([&self.scale]).all(|v| v.is_finite());
        let order = matches!(self.order, [0, 1, 2] | [2, 1, 0]);
        let mean = self.mean.len() == channels || self.mean.len() == pixels;
        let channels = matches!(channels, 1 | 3) && self.std.iter().all(|std| *std > 0.0);
        if self.resize.holds(self.size) && finite && order && mean && channels {
            return Ok(());
        }
        Err(Error::Network(format!(
            "preprocessing: expected crops of at most {}, of at most {MAX_CANVAS} pixels a side, a mean of {} or \
             {pixels} finite values, 1 or 3 positive standard deviations and RGB or BGR; found size {}, {} \
             values, {:?}, {:?}",
            size_text(self.resize.size()),
            self.channels(),
            size_text(self.size),
            self.mean.len(),
            self.std,
            self.order
        )))
    }

    /// Bytes of one preprocessed image, which is RGB.
    pub fn bytes(&self) -> usize {
        self.resize.bytes()
    }

    /// First row and column of the last place that a crop can have.
    pub fn last_place(&self) -> [usize; 2] {
        [self.resize.rows - self.size[0], self.resize.columns - self.size[1]]
    }

    /// First row and column of the crop in the middle.
    pub fn centre(&self) -> [u32; 2] {
        self.last_place().map(|last| (last / 2) as u32)
    }

    /// The ten crops of the paper: four corners and the centre, then the same mirrored.
    pub fn ten_crops(&self, image: u32) -> [Crop; 10] {
        let [low, right] = self.last_place().map(|last| last as u32);
        let places = [[0, 0], [0, right], [low, 0], [low, right], self.centre()];
        std::array::from_fn(|i| {
            let [y, x] = places[i % 5];
            Crop { image, y, x, mirror: u32::from(i >= 5) }
        })
    }
}

impl std::fmt::Display for Preprocess {
    /// "resized to 256x256, the 224x224 in the middle cut out; RGB from 0 to 1, less 0.485, ...", numbers to four places.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let short = |value: f32| ((f64::from(value) * 1e4).round() / 1e4).to_string();
        let numbers = |values: &[f32]| {
            values.iter().map(|value| short(*value)).collect::<Vec<_>>().join(", ")
        };
        write!(f, "resized to {}", self.resize)?;
        if self.resize.size() != self.size {
            write!(f, ", the {} in the middle cut out", size_text(self.size))?;
        }
        let channels = match (self.channels(), self.order) {
            (1, _) => "grey",
            (_, [0, ..]) => "RGB",
            _ => "BGR",
        };
        let range = short(255.0 * self.scale);
        let mean = match self.mean_is_image() {
            true => "a mean image".to_owned(),
            false => numbers(&self.mean),
        };
        write!(f, "; {channels} from 0 to {range}, less {mean}, divided by {}", numbers(&self.std))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offsets of 224-crops in 256 pixels, as the paper takes them.
    #[test]
    fn ten_crops_of_the_paper() {
        let preprocess = Preprocess::named("paper", [224; 2], 256).unwrap();
        let crops = preprocess.ten_crops(7);
        let places: Vec<_> = crops.iter().map(|crop| (crop.y, crop.x, crop.mirror)).collect();
        let five = [(0, 0), (0, 32), (32, 0), (32, 32), (16, 16)];
        let expected: Vec<_> = [0, 1].iter().flat_map(|&m| five.map(|(y, x)| (y, x, m))).collect();
        assert_eq!(places, expected);
        assert!(crops.iter().all(|crop| crop.image == 7));
    }

    /// What a mid-grey pixel and a black one become, by hand.
    #[test]
    fn named_preprocessings_are_the_published_ones() {
        let becomes = |name: &str, byte: f32| {
            let p = Preprocess::named(name, [224; 2], 256).unwrap();
            [0, 1, 2].map(|k| (byte * p.scale - p.mean[k]) / p.std[k])
        };
        assert_eq!(becomes("paper", 128.0), [0.0; 3]);
        assert_eq!(becomes("caffe", 0.0), [-104.0, -117.0, -123.0]);
        assert_eq!(Preprocess::named("caffe", [224; 2], 256).unwrap().order, [2, 1, 0]);
        let near = |a: [f32; 3], b: [f32; 3]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-3);
        assert!(near(becomes("torchvision", 0.0), [-2.1179, -2.0357, -1.8044]));
        assert!(near(becomes("torchvision", 255.0), [2.2489, 2.4286, 2.64]));
        assert!(Preprocess::named("keras", [224; 2], 256).is_err());
        assert_eq!(
            Preprocess::named("torchvision", [224; 2], 256).unwrap().to_string(),
            "resized to 256x256, the 224x224 in the middle cut out; RGB from 0 to 1, less 0.485, 0.456, 0.406, divided \
             by 0.229, 0.224, 0.225"
        );
    }

    #[test]
    fn senseless_values_are_refused() {
        let good = Preprocess::named("caffe", [224; 2], 256).unwrap();
        assert!(good.check().is_ok());
        let bad = [
            Preprocess { size: [257, 224], ..good.clone() },
            Preprocess { size: [224, 0], ..good.clone() },
            Preprocess { mean: vec![0.0; 4], ..good.clone() },
            Preprocess { mean: vec![f32::NAN; 3], ..good.clone() },
            Preprocess { std: vec![1.0, 0.0, 1.0], ..good.clone() },
            Preprocess { order: [0, 0, 9], ..good.clone() },
            Preprocess { resize: Canvas::square(1 << 40), ..good.clone() },
            Preprocess { resize: Canvas::of([256, 1 << 62]), ..good.clone() },
            Preprocess { std: vec![1.0; 2], mean: vec![0.0; 2], ..good.clone() },
            Preprocess { std: Vec::new(), mean: Vec::new(), ..good.clone() },
            Preprocess { std: vec![1.0], ..good.clone() },
        ];
        assert!(bad.iter().all(|preprocess| preprocess.check().is_err()));
        assert!(Preprocess::named("tensorflow", [224; 2], 256).is_err());
    }

    /// Metadata of checkpoints that are square and RGB stay as they were before other inputs were known.
    #[test]
    fn plain_preprocessing_is_written_as_ever() {
        let old = r#"{"resize":256,"size":224,"scale":1.0,"std":[1.0,1.0,1.0],"order":[0,1,2]}"#;
        let read: Preprocess = serde_json::from_str(old).unwrap();
        assert_eq!(read, Preprocess::paper([224; 2], 256, 1.0, Vec::new()));
        assert_eq!(serde_json::to_string(&read).unwrap(), old);
    }

    #[test]
    fn crops_of_what_is_not_square() {
        let preprocess = Preprocess::paper([4, 6], [8, 20], 1.0, vec![0.0; 3]);
        let places: Vec<_> =
            preprocess.ten_crops(0)[..5].iter().map(|crop| (crop.y, crop.x)).collect();
        assert_eq!(places, [(0, 0), (0, 14), (4, 0), (4, 14), (2, 7)]);
        assert_eq!(preprocess.bytes(), 8 * 20 * 3);
        assert!(preprocess.check().is_ok());
    }

    #[test]
    fn of_one_channel_the_mean_is_that_of_luma() {
        let caffe = Preprocess::named("caffe", [2; 2], 2).unwrap().of_channels(1);
        // 104 is blue's: 0.299 * 123 + 0.587 * 117 + 0.114 * 104.
        assert!((caffe.mean[0] - 117.312).abs() < 0.01, "{:?}", caffe.mean);
        assert!(caffe.check().is_ok() && caffe.channels() == 1);
        let image = (0..4).flat_map(|v| [v as f32 * 60.5; 3]).collect();
        let grey = Preprocess::paper([2; 2], 2, 1.0, image).of_channels(1);
        assert_eq!((grey.mean, grey.std), (vec![0.0, 60.5, 121.0, 181.5], vec![1.0]));
    }
}
