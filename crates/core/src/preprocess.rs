//! What happens to an image before the first layer: kept with the weights, because weights are
//! worth nothing without it.

use serde::{Deserialize, Serialize};

use crate::operation::Crop;
use crate::{Error, Result};

/// How pixels become a network's input: `(pixel * scale - mean) / std`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preprocess {
    /// Rows and columns of the square that crops are cut from: shortest side resized to this,
    /// centre taken.
    pub resize: usize,
    /// Rows and columns of a crop.
    pub size: usize,
    /// Factor of a pixel's byte.
    pub scale: f32,
    /// Divides what is left after the mean is taken off, for each channel.
    pub std: [f32; 3],
    /// Which of R, G, B each channel of the network is: `[0, 1, 2]`, or `[2, 1, 0]` for BGR.
    pub order: [u32; 3],
    /// Taken off: one value for each pixel and channel of the square (HWC), or one a channel; in
    /// the network's order and after `scale`. Kept as a tensor, not in the metadata.
    #[serde(skip)]
    pub mean: Vec<f32>,
}

impl Preprocess {
    /// The paper's: the training set's mean image taken off, values left as they are (divided by
    /// one constant `std`, 1 in the paper).
    pub fn paper(size: usize, resize: usize, std: f32, mean: Vec<f32>) -> Self {
        Preprocess { resize, size, scale: 1.0, std: [std; 3], order: [0, 1, 2], mean }
    }

    /// By name, for weights that come without: `paper` (with mid-grey for the unknown mean image),
    /// `torchvision` (ImageNet's mean and standard deviation, of values from 0 to 1) or `caffe` (BGR, less
    /// ImageNet's mean colour).
    ///
    /// # Errors
    /// If there is no such name.
    pub fn named(name: &str, size: usize, resize: usize) -> Result<Self> {
        let base = Self::paper(size, resize, 1.0, vec![128.0; 3]);
        match name {
            "paper" => Ok(base),
            "torchvision" => Ok(Preprocess {
                scale: 1.0 / 255.0,
                mean: vec![0.485, 0.456, 0.406],
                std: [0.229, 0.224, 0.225],
                ..base
            }),
            "caffe" => Ok(Preprocess { order: [2, 1, 0], mean: vec![104.0, 117.0, 123.0], ..base }),
            other => Err(Error::Network(format!(
                "no preprocessing `{other}`: expected paper, torchvision or caffe"
            ))),
        }
    }

    /// Checks sizes and values that come from a file.
    ///
    /// # Errors
    /// If they make no sense.
    pub fn check(&self) -> Result<()> {
        let pixels = self.resize.saturating_mul(self.resize).saturating_mul(3);
        let sizes = self.size > 0 && self.size <= self.resize && self.resize <= 4096;
        let finite = self.mean.iter().chain(&self.std).chain([&self.scale]).all(|v| v.is_finite());
        let order = matches!(self.order, [0, 1, 2] | [2, 1, 0]);
        let mean = self.mean.len() == 3 || self.mean.len() == pixels;
        if sizes && finite && order && mean && self.std.iter().all(|std| *std > 0.0) {
            return Ok(());
        }
        Err(Error::Network(format!(
            "preprocessing: expected crops of at most {0}x{0}, a mean of 3 or {pixels} finite \
             values, positive standard deviations and RGB or BGR; found size {1}, {2} values, {3:?}, {4:?}",
            self.resize,
            self.size,
            self.mean.len(),
            self.std,
            self.order
        )))
    }

    /// Bytes of one preprocessed image.
    pub fn bytes(&self) -> usize {
        self.resize * self.resize * 3
    }

    /// The crop in the middle.
    pub fn centre(&self) -> [u32; 2] {
        [((self.resize - self.size) / 2) as u32; 2]
    }

    /// The ten crops of the paper: four corners and the centre, then the same mirrored.
    pub fn ten_crops(&self, image: u32) -> [Crop; 10] {
        let far = (self.resize - self.size) as u32;
        let centre = self.centre();
        let places = [[0, 0], [0, far], [far, 0], [far, far], centre];
        std::array::from_fn(|i| {
            let [y, x] = places[i % 5];
            Crop { image, y, x, mirror: u32::from(i >= 5) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offsets of 224-crops in 256 pixels, as the paper takes them.
    #[test]
    fn ten_crops_of_the_paper() {
        let preprocess = Preprocess::named("paper", 224, 256).unwrap();
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
            let p = Preprocess::named(name, 224, 256).unwrap();
            [0, 1, 2].map(|k| (byte * p.scale - p.mean[k]) / p.std[k])
        };
        assert_eq!(becomes("paper", 128.0), [0.0; 3]);
        assert_eq!(becomes("caffe", 0.0), [-104.0, -117.0, -123.0]);
        assert_eq!(Preprocess::named("caffe", 224, 256).unwrap().order, [2, 1, 0]);
        let near = |a: [f32; 3], b: [f32; 3]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-3);
        assert!(near(becomes("torchvision", 0.0), [-2.1179, -2.0357, -1.8044]));
        assert!(near(becomes("torchvision", 255.0), [2.2489, 2.4286, 2.64]));
        assert!(Preprocess::named("keras", 224, 256).is_err());
    }

    #[test]
    fn senseless_values_are_refused() {
        let good = Preprocess::named("caffe", 224, 256).unwrap();
        assert!(good.check().is_ok());
        let bad = [
            Preprocess { size: 257, ..good.clone() },
            Preprocess { size: 0, ..good.clone() },
            Preprocess { mean: vec![0.0; 4], ..good.clone() },
            Preprocess { mean: vec![f32::NAN; 3], ..good.clone() },
            Preprocess { std: [1.0, 0.0, 1.0], ..good.clone() },
            Preprocess { order: [0, 0, 9], ..good.clone() },
            Preprocess { resize: 1 << 40, ..good.clone() },
        ];
        assert!(bad.iter().all(|preprocess| preprocess.check().is_err()));
        assert!(Preprocess::named("tensorflow", 224, 256).is_err());
    }
}
