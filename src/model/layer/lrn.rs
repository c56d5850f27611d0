//! Local response normalisation across channels, `y = x / (k + alpha * sum of x^2)^beta`; `alpha` is not
//! divided by `size`.

use serde::{Deserialize, Serialize};

use super::{Backward, Forward, Kind, Operation, Output, Place, Planned, Spec};
use crate::Result;
use crate::backend::{Backend, Lrn, MAX_LRN_SIZE};
use crate::model::rule::{LrnRule, Rule};

/// Local response normalisation, as a description has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // the fields are the field's own terms
pub struct LrnSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default = "size")]
    pub size: u32,
    #[serde(default = "k")]
    pub k: f32,
    #[serde(default = "alpha")]
    pub alpha: f32,
    #[serde(default = "beta")]
    pub beta: f32,
}

fn size() -> u32 {
    5
}
fn k() -> f32 {
    2.0
}
fn alpha() -> f32 {
    1e-4
}
fn beta() -> f32 {
    0.75
}

impl Spec for LrnSpec {
    const PREFIX: &'static str = "norm";

    fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    fn rename(&mut self, name: &str) {
        self.name = Some(name.into());
    }

    fn plan(&self, place: &Place<'_>) -> Result<Planned> {
        let &LrnSpec { size, k, alpha, beta, .. } = self;
        let fits = size > 0 && size as usize <= MAX_LRN_SIZE;
        if !(fits && k > 0.0 && alpha >= 0.0 && beta >= 0.0) {
            return Err(place.error(format!(
                "expected a size of 1 to {MAX_LRN_SIZE}, k above 0, alpha and beta not below 0, \
                 found size {size}, k {k}, alpha {alpha}, beta {beta}"
            )));
        }
        Ok(place.pointwise(Kind::Lrn(Lrn { size, k, alpha, beta })))
    }
}

impl Operation for Lrn {
    fn forward<B: Backend>(&self, pass: Forward<'_, B>) -> Result<()> {
        pass.backend.lrn_forward(pass.y, pass.x, self)
    }

    fn backward<B: Backend>(&self, pass: Backward<'_, B>) -> Result<Output> {
        match pass.rule.lrn {
            LrnRule::Identity => Ok(Output::Dy),
            LrnRule::Derivative => {
                pass.dx.reshape(pass.dy.shape());
                pass.backend.lrn_backward(pass.dx, pass.dy, pass.x, pass.images, self)?;
                Ok(Output::Dx)
            }
        }
    }

    fn reads_input(&self, rule: &Rule) -> bool {
        rule.lrn == LrnRule::Derivative
    }
}
