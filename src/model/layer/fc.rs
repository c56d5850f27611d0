//! A fully connected layer with bias: a convolution whose filter covers the input and whose output is one
//! pixel.

use serde::{Deserialize, Serialize};

use super::conv::conv_dims;
use super::{Conv, Kind, Place, Planned, Spec};
use crate::Result;
use crate::shape::Shape;

/// A fully connected layer, as a description has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // the fields are the field's own terms
pub struct FcSpec {
    pub name: String,
    /// The last layer goes without: it has as many as there are classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outputs: Option<usize>,
    /// Limit of each row's RMS; none by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rms_limit: Option<f32>,
    /// Standard deviation of its initial weights, which are normal, instead of the recipe's initialization.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_std: Option<f32>,
}

impl Spec for FcSpec {
    const PREFIX: &'static str = "fc";
    const HAS_WEIGHTS: bool = true;

    fn name(&self) -> Option<&str> {
        Some(&self.name)
    }

    fn rename(&mut self, name: &str) {
        self.name = name.into();
    }

    fn init_std(&self) -> Option<f32> {
        self.init_std
    }

    fn clear_init_std(&mut self) {
        self.init_std = None;
    }

    fn plan(&self, place: &Place<'_>) -> Result<Planned> {
        place.check_numbers([self.outputs.unwrap_or(0)])?;
        let outputs = match (self.outputs, place.classes) {
            (Some(outputs), Some(classes)) if outputs != classes => {
                return Err(place.error(format!(
                    "expected one output for each of {classes} classes (or no `outputs` at all), \
                     found {outputs}"
                )));
            }
            (None, None) => {
                return Err(place.error(
                    "expected `outputs`; only a last layer that gives the classes goes without",
                ));
            }
            (outputs, classes) => outputs.or(classes).unwrap_or(0),
        };
        if outputs == 0 {
            return Err(place.error("expected at least one output, found 0"));
        }
        let (input, output) = (place.input, Shape::vector(outputs));
        let dims = conv_dims(input, output, [input.h, input.w], 1, [0, 0], 1);
        let rms_limit = self.rms_limit.unwrap_or(0.0);
        let kind = Kind::FullyConnected(Conv { dims, rms_limit });
        let field = [0, 1].map(|axis| place.field[axis].whole(place.size[axis]));
        Ok(Planned { kind, output, field })
    }
}
