//! How a network is trained, as data: the `[recipe]` of its description.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How weights are drawn. Biases start at zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Init {
    /// N(0, `init_std`^2), as in the paper.
    #[default]
    Normal,
    /// N(0, 2 / inputs of a filter), He et al. 2015.
    He,
}

/// How the learning rate is reduced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// When validation has not improved for `patience` epochs; the paper did this by hand.
    #[default]
    Plateau,
    /// After each of the epochs in `milestones`.
    Step,
    /// Never.
    Constant,
}

/// Where training crops are cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Crops {
    /// One of the paper's ten: corners and centre, mirrored or not.
    #[default]
    Ten,
    /// Anywhere, mirrored or not.
    Random,
    /// Always the centre, never mirrored.
    Centre,
}

/// How to train a network. Every field has a flag on `train`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// How weights are drawn.
    pub init: Init,
    /// Standard deviation for [`Init::Normal`].
    pub init_std: f32,
    /// Learning rate at the start.
    pub learning_rate: f32,
    /// Momentum.
    pub momentum: f32,
    /// Weight decay.
    pub weight_decay: f32,
    /// Whether biases decay too.
    pub bias_decay: bool,
    /// How the learning rate is reduced.
    pub schedule: ScheduleKind,
    /// Epochs after which the learning rate is reduced, for [`ScheduleKind::Step`].
    #[serde(alias = "steps")]
    pub milestones: Vec<u32>,
    /// Factor by which the learning rate is multiplied then.
    #[serde(alias = "factor")]
    pub gamma: f32,
    /// Epochs without improvement before it is reduced, for [`ScheduleKind::Plateau`].
    pub patience: u32,
    /// Number of epochs.
    pub epochs: u32,
    /// Batch size.
    pub batch_size: usize,
    /// Share of values set to zero by dropout layers without a rate of their own.
    pub dropout: f32,
    /// Where training crops are cut.
    pub crops: Crops,
    /// Spatial filters whose RMS is above this are scaled down to it; 0 for no limit.
    pub rms_limit: f32,
}

impl Default for Recipe {
    /// The paper's, where it says.
    fn default() -> Self {
        Recipe {
            init: Init::Normal,
            init_std: 0.01,
            learning_rate: 0.01,
            momentum: 0.9,
            weight_decay: 5e-4,
            bias_decay: true,
            schedule: ScheduleKind::Plateau,
            milestones: Vec::new(),
            gamma: 0.1,
            patience: 5,
            epochs: 70,
            batch_size: 128,
            dropout: 0.5,
            crops: Crops::Ten,
            rms_limit: 0.1,
        }
    }
}

/// Largest batch of a recipe.
const MAX_BATCH: usize = 1 << 16;

impl Recipe {
    /// What fields were called in earlier versions, and are now. Both are read.
    pub const FORMER_NAMES: [(&str, &str); 2] = [("steps", "milestones"), ("factor", "gamma")];

    /// Checks that every number makes sense.
    ///
    /// # Errors
    /// If one does not: its name, what was expected, what was found.
    pub fn check(&self) -> Result<()> {
        let wrong = |name: &str, expected: &str, found: &dyn std::fmt::Display| {
            Err(Error::Network(format!("recipe: expected {name} {expected}, found {found}")))
        };
        let not_negative = [
            ("init_std", self.init_std),
            ("learning_rate", self.learning_rate),
            ("weight_decay", self.weight_decay),
            ("rms_limit", self.rms_limit),
        ];
        for (name, value) in not_negative {
            if !(value >= 0.0 && value.is_finite()) {
                return wrong(name, "not below 0", &value);
            }
        }
        if !(0.0..1.0).contains(&self.momentum) {
            return wrong("momentum", "from 0 to below 1", &self.momentum);
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return wrong("dropout", "from 0 to below 1", &self.dropout);
        }
        if !(self.gamma > 0.0 && self.gamma <= 1.0) {
            return wrong("gamma", "above 0 and at most 1", &self.gamma);
        }
        if self.batch_size == 0 || self.batch_size > MAX_BATCH {
            return wrong("batch_size", &format!("from 1 to {MAX_BATCH}"), &self.batch_size);
        }
        if self.schedule == ScheduleKind::Step && self.milestones.is_empty() {
            return wrong("milestones", "with schedule `step`", &"none");
        }
        if self.patience == 0 {
            return wrong("patience", "of at least 1", &self.patience);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn former_names_are_read() {
        let now = serde_json::to_value(Recipe { gamma: 0.5, ..Recipe::default() }).unwrap();
        let mut former = now.clone();
        let fields = former.as_object_mut().unwrap();
        for (old, new) in Recipe::FORMER_NAMES {
            let value = fields.remove(new).unwrap();
            fields.insert(old.into(), value);
        }
        let read = |json: serde_json::Value| serde_json::from_value::<Recipe>(json).unwrap();
        assert_ne!(former, now);
        assert_eq!(read(former), read(now));
    }
}
