//! Inverted dropout, `y = mask * x / (1 - rate)`, while training.

use serde::{Deserialize, Serialize};

use super::{Backward, Common, Forward, Kind, Operation, Output, Place, Planned, Spec};
use crate::Result;
use crate::backend::{self, Backend};

/// Dropout, as a description has it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // the fields are the field's own terms
pub struct DropoutSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Share of values set to zero, instead of the recipe's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<f32>,
}

/// Dropout.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// Share of values set to zero.
    pub rate: f32,
}

impl Spec for DropoutSpec {
    const PREFIX: &'static str = "drop";

    fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    fn rename(&mut self, name: &str) {
        self.name = Some(name.into());
    }

    fn plan(&self, place: &Place<'_>) -> Result<Planned> {
        let rate = self.rate.unwrap_or(place.recipe.dropout);
        if !(0.0..1.0).contains(&rate) {
            return Err(place.error(format!("expected a rate of 0 to below 1, found {rate}")));
        }
        Ok(place.pointwise(Kind::Dropout(Dropout { rate })))
    }
}

impl Dropout {
    fn mask<B: Backend>(&self, common: &Common<'_, B>) -> backend::Dropout {
        let rate = if common.training { self.rate } else { 0.0 };
        backend::Dropout { rate, layer: common.layer }
    }
}

impl Operation for Dropout {
    fn forward<B: Backend>(&self, pass: Forward<'_, B>) -> Result<()> {
        let mask = self.mask(&pass.common);
        pass.backend.dropout(pass.y, pass.x, &mask, pass.common.state)
    }

    fn backward<B: Backend>(&self, pass: Backward<'_, B>) -> Result<Output> {
        let mask = self.mask(&pass.common);
        pass.dx.reshape(pass.dy.shape());
        pass.backend.dropout(pass.dx, pass.dy, &mask, pass.common.state)?;
        Ok(Output::Dx)
    }
}
