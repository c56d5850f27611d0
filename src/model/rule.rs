//! The rule of the backward pass: what makes the deconvnet of backpropagation.

use crate::backend::ReluRule;
use crate::{Error, Result};

/// How contrast normalisation is passed backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LrnRule {
    /// Unchanged, as the paper does.
    Identity,
    /// By its derivative.
    Derivative,
}

/// The rule of the backward pass: the one thing in which the deconvnet differs from the gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Stop what goes backward where the forward activation was not positive.
    pub forward_mask: bool,
    /// Stop what is negative itself (the paper's relu on the reconstruction, relu*).
    pub relu_down: bool,
    /// What normalisation does.
    pub lrn: LrnRule,
}

impl Rule {
    /// Zeiler and Fergus, section 2.1.
    pub const DECONVNET: Rule =
        Rule { forward_mask: false, relu_down: true, lrn: LrnRule::Identity };
    /// The true gradient: training, and saliency (Simonyan et al. 2013).
    pub const GRADIENT: Rule =
        Rule { forward_mask: true, relu_down: false, lrn: LrnRule::Derivative };
    /// Guided backpropagation (Springenberg et al. 2014).
    pub const GUIDED: Rule = Rule { forward_mask: true, relu_down: true, lrn: LrnRule::Derivative };

    /// By name.
    ///
    /// # Errors
    /// If there is no such rule.
    pub fn named(name: &str) -> Result<Self> {
        match name {
            "deconvnet" => Ok(Rule::DECONVNET),
            "gradient" => Ok(Rule::GRADIENT),
            "guided" => Ok(Rule::GUIDED),
            other => Err(Error::Network(format!(
                "no rule `{other}`: expected deconvnet, gradient or guided"
            ))),
        }
    }

    /// The value a backward pass starts with, for a unit whose activation is `activation`: 1 for the
    /// gradient, the activation itself for the others.
    pub fn seed_value(&self, activation: f32) -> f32 {
        if *self == Rule::GRADIENT { 1.0 } else { activation }
    }

    /// What it says of a relu.
    pub(super) fn relu(&self) -> ReluRule {
        ReluRule { forward_mask: self.forward_mask, relu_down: self.relu_down }
    }
}
