//! `y = max(x, 0)`; NaN stays NaN.

use serde::{Deserialize, Serialize};

use super::{Backward, Forward, Kind, Operation, Output, Place, Planned, Spec};
use crate::Result;
use crate::backend::Backend;

/// A relu, as a description has it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // the fields are the field's own terms
pub struct ReluSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A relu.
#[derive(Clone, Copy, Debug)]
pub struct Relu;

impl Spec for ReluSpec {
    const PREFIX: &'static str = "relu";

    fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    fn rename(&mut self, name: &str) {
        self.name = Some(name.into());
    }

    fn plan(&self, place: &Place<'_>) -> Result<Planned> {
        Ok(place.pointwise(Kind::Relu(Relu)))
    }
}

impl Operation for Relu {
    fn forward<B: Backend>(&self, pass: Forward<'_, B>) -> Result<()> {
        pass.backend.relu_forward(pass.y, pass.x)
    }

    /// The backward pass has done it already, as it does for a relu that was computed together with a
    /// convolution: in place, from the relu's output alone.
    fn backward<B: Backend>(&self, _pass: Backward<'_, B>) -> Result<Output> {
        Ok(Output::Dy)
    }
}
