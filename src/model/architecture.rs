//! A network as data: the TOML that describes it, and the checked list of layers built from it.
//!
//! ```toml
//! name = "tiny"
//! classes = 10
//! input = { size = 32, resize = 36 } # or { size = [24, 48], resize = [28, 56], channels = 1 }
//! layers = [
//!   { type = "conv", name = "conv1", channels = 16, kernel = 5, stride = 2 },
//!   { type = "relu" },
//!   { type = "maxpool", name = "pool1", kernel = 3, stride = 2 },
//!   { type = "fc", name = "fc2" },
//! ]
//! [recipe]
//! learning_rate = 0.01
//! ```

use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::layer::{Kind, Layer, LayerSpec, MAX_NUMBER, Place, Planned};
use crate::shape::{Field, Shape};
use crate::{Error, Result};
use zfnet_core::{Canvas, MAX_CANVAS, Preprocess, Recipe, size_text, text};

/// The networks that are built in: their names and descriptions.
const PRESETS: [&str; 12] = [
    include_str!("presets/zfnet.toml"),
    include_str!("presets/zfnet-wide.toml"),
    include_str!("presets/alexnet.toml"),
    include_str!("presets/zfnet-mini.toml"),
    include_str!("presets/alexnet-mini.toml"),
    include_str!("presets/zfnet-torch.toml"),
    include_str!("presets/zfnet-torch-lrn.toml"),
    include_str!("presets/alexnet-torchvision.toml"),
    include_str!("presets/vgg11.toml"),
    include_str!("presets/vgg13.toml"),
    include_str!("presets/vgg16.toml"),
    include_str!("presets/vgg19.toml"),
];

/// Largest number of values of one image in any layer, and of parameters in all: a guard against
/// descriptions that no machine can hold.
const MAX_VALUES: usize = 1 << 31;

/// What a network is, and how it is trained, as a user writes it down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// Its name.
    pub name: String,
    /// A sentence about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Number of classes; the data's number takes its place when training starts. 0 for a network
    /// that gives maps instead: any layer may be its last, and it is run and trained by the library's
    /// caller, who knows what the maps are to be.
    pub classes: usize,
    /// What the network sees.
    pub input: Input,
    /// The chain, from pixels to classes.
    pub layers: Vec<LayerSpec>,
    /// How to train it.
    #[serde(default)]
    pub recipe: Recipe,
}

/// What the network sees of an image.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Rows and columns of a crop: a number for both, or `[rows, columns]`.
    #[serde(with = "zfnet_core::size")]
    pub size: [usize; 2],
    /// What crops are cut from: for a number, an image's shortest side is resized to this, and its
    /// centre taken.
    pub resize: Canvas,
    /// 3 for RGB, 1 for luma.
    #[serde(default = "three", skip_serializing_if = "is_three")]
    pub channels: usize,
    /// Values are divided by this after the mean is taken off (1 in the paper).
    #[serde(default = "one_f32")]
    pub std: f32,
}

fn one_f32() -> f32 {
    1.0
}

fn three() -> usize {
    3
}

fn is_three(channels: &usize) -> bool {
    *channels == 3
}

impl Input {
    /// The paper's preprocessing for it. The mean is that of RGB, for each channel or each value of the
    /// canvas.
    pub fn preprocess(&self, mean: Vec<f32>) -> Preprocess {
        Preprocess::paper(self.size, self.resize, self.std, mean).of_channels(self.channels)
    }

    /// Its shape.
    pub fn shape(&self) -> Shape {
        Shape::new(1, self.size[0], self.size[1], self.channels)
    }
}

impl Architecture {
    /// The built-in networks.
    pub fn presets() -> Vec<Architecture> {
        let parse = |text| toml::from_str(text).expect("a built-in network is well-formed");
        PRESETS.map(parse).into()
    }

    /// A built-in network by its name, or one described in a TOML file.
    ///
    /// # Errors
    /// If there is neither, or the file is not a network's description.
    pub fn find(name_or_file: &str) -> Result<Self> {
        let presets = Self::presets();
        if let Some(preset) = presets.iter().find(|preset| preset.name == name_or_file) {
            return Ok(preset.clone());
        }
        let path = Path::new(name_or_file);
        let found = std::fs::metadata(path).map_err(|error| error.kind());
        if found.is_err_and(|kind| kind == ErrorKind::NotFound) {
            let names: Vec<&str> = presets.iter().map(|preset| preset.name.as_str()).collect();
            return Err(Error::Network(format!(
                "no network `{name_or_file}`: expected {} or the path of a TOML file",
                names.join(", ")
            )));
        }
        let text = text::read(path)?;
        Self::parse(&text).map_err(|error| Error::file(path, error.to_string()))
    }

    /// A network from its TOML text.
    ///
    /// # Errors
    /// If the text is not a network's description; the message says where and what was expected.
    pub fn parse(text: &str) -> Result<Self> {
        toml::from_str(text).map_err(|error| Error::Network(error.to_string()))
    }

    /// The TOML text that [`Architecture::parse`] reads back.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a description is plain data")
    }

    /// Checks the description and works out every layer's sizes.
    ///
    /// # Errors
    /// If a layer does not fit: its name, what was expected, what was found.
    pub(super) fn plan(&self) -> Result<Vec<Layer>> {
        self.check_input()?;
        self.recipe.check()?;
        let size = self.input.size;
        let mut layers: Vec<Layer> = Vec::new();
        let (mut output, mut field) =
            (self.input.shape(), size.map(|size| Field::PIXEL.limited(size)));
        let (mut number, mut parameters) = (0, 0);
        for (index, spec) in self.layers.iter().enumerate() {
            number += usize::from(spec.has_weights());
            let last = !self.layers[index + 1..].iter().any(LayerSpec::has_weights);
            let name = &spec.name(number);
            let place = Place {
                name,
                input: output,
                field,
                size,
                classes: (last && self.classes > 0).then_some(self.classes),
                recipe: &self.recipe,
            };
            let usable = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            if name.is_empty() || !name.chars().all(usable) {
                return Err(place.error("expected a name of letters, digits, `_` and `-`"));
            }
            if layers.iter().any(|layer| layer.name == *name) {
                return Err(place.error("expected a name of its own, found it twice"));
            }
            let init_std = spec.init_std();
            if let Some(std) = init_std.filter(|std| !(*std >= 0.0 && std.is_finite())) {
                return Err(
                    place.error(format!("expected a finite init_std not below 0, found {std}"))
                );
            }
            let input = output;
            let kind;
            Planned { kind, output, field } = spec.plan(&place)?;
            field = [field[0].limited(output.h), field[1].limited(output.w)];
            let layer = Layer { name: name.clone(), kind, input, output, field, init_std };
            parameters += layer.parameters();
            if parameters.max(output.len()) > MAX_VALUES {
                return Err(place.error(format!(
                    "expected at most {MAX_VALUES} values, and parameters up to here, found {} and \
                     {parameters}",
                    output.len()
                )));
            }
            if field.iter().any(|field| field.size.max(field.jump) > MAX_NUMBER) {
                return Err(place.error(format!(
                    "expected a receptive field and steps of at most {MAX_NUMBER} pixels, found {} \
                     and {}",
                    field[0].size, field[0].jump
                )));
            }
            layers.push(layer);
        }
        let gives_classes = |layer: &Layer| matches!(layer.kind, Kind::FullyConnected(_));
        if !layers.last().is_some_and(|last| self.classes == 0 || gives_classes(last)) {
            return Err(Error::Network(format!(
                "expected a last layer of type `fc` that gives the classes (or 0 classes, for a \
                 network that gives maps), found {}",
                layers.last().map_or("no layer", |layer| &layer.name)
            )));
        }
        choose_switches(&mut layers);
        Ok(layers)
    }

    fn check_input(&self) -> Result<()> {
        let Input { size, resize, channels, std } = self.input;
        let wrong = |message: String| Err(Error::Network(message));
        if !resize.holds(size) {
            let text = |[rows, columns]: [usize; 2]| match rows == columns {
                true => rows.to_string(),
                false => size_text([rows, columns]),
            };
            return wrong(format!(
                "input: expected 0 < size <= resize <= {MAX_CANVAS}, found size {} and resize {}",
                text(size),
                text(resize.size())
            ));
        }
        if !matches!(channels, 1 | 3) {
            return wrong(format!(
                "input: expected 3 channels (RGB) or 1 (grey), found {channels}"
            ));
        }
        if !(std > 0.0 && std.is_finite()) {
            return wrong(format!("input: expected a positive std, found {std}"));
        }
        if !(2..=MAX_NUMBER).contains(&self.classes) && self.classes != 0 {
            return wrong(format!(
                "expected at least 2 classes and at most {MAX_NUMBER} (or 0, for a network that \
                 gives maps), found {}",
                self.classes
            ));
        }
        Ok(())
    }
}

/// Lets poolings without a relu beside them keep the place of every winner. A relu, above (directly) or
/// below, stops whatever goes back to a winner that is not positive.
fn choose_switches(layers: &mut [Layer]) {
    for i in 0..layers.len() {
        let is_relu = |layer: &Layer| matches!(layer.kind, Kind::Relu(_));
        // These keep what is not positive so. Above, normalisation does not do: its derivative
        // sends something down to such a winner, from its neighbours.
        let signless =
            |layer: &Layer| matches!(layer.kind, Kind::Dropout(_)) || layer.pooling().is_some();
        let keeps = |layer: &&Layer| !signless(layer) && !matches!(layer.kind, Kind::Lrn(_));
        let below = layers[..i].iter().rev().find(keeps).is_some_and(is_relu);
        let above = layers[i + 1..].iter().find(|layer| !signless(layer));
        let above = above.is_some_and(is_relu);
        if let Kind::MaxPool(pool) = &mut layers[i].kind {
            pool.dims.any_sign = u32::from(!below && !above);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zfnet_core::{Fit, Interpolation};

    /// Runs and kept parts are known by a hash of this text: that of a square RGB input must not change.
    #[test]
    fn a_plain_input_is_written_as_ever() {
        let zfnet = Architecture::find("zfnet").unwrap();
        assert!(zfnet.to_toml().contains("[input]\nsize = 224\nresize = 256\nstd = 1.0\n\n"));
        let json = serde_json::to_string(&zfnet.input).unwrap();
        assert_eq!(json, r#"{"size":224,"resize":256,"std":1.0}"#);
    }

    #[test]
    fn other_inputs_are_read_back() {
        let zfnet = Architecture::find("zfnet").unwrap();
        let resize = Canvas {
            fit: Fit::Squash,
            interpolation: Interpolation::Lanczos,
            antialias: false,
            ..Canvas::of([40, 300])
        };
        for resize in [resize, Canvas::of([40, 300])] {
            let input = Input { size: [32, 290], resize, channels: 1, std: 2.0 };
            let other = Architecture { input, ..zfnet.clone() };
            assert_eq!(Architecture::parse(&other.to_toml()).unwrap(), other);
            let json = serde_json::to_string(&other).unwrap();
            assert_eq!(serde_json::from_str::<Architecture>(&json).unwrap(), other);
        }
    }
}
