//! How the learning rate falls from epoch to epoch.

use serde::{Deserialize, Serialize};

use zfnet_core::{Recipe, ScheduleKind};

/// The state of a schedule; part of a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// How often the rate has fallen.
    pub drops: u32,
    /// Lowest validation error so far.
    pub best: Option<f64>,
    /// Epochs since then, or since the last drop.
    pub waited: u32,
}

impl Schedule {
    /// At the start of training.
    pub fn new() -> Self {
        Schedule { drops: 0, best: None, waited: 0 }
    }

    /// The learning rate now.
    pub fn rate(&self, recipe: &Recipe) -> f32 {
        (f64::from(recipe.learning_rate) * f64::from(recipe.gamma).powi(self.drops as i32)) as f32
    }

    /// Takes note of an epoch's end (`epoch` counts from 1) and of its validation error; says
    /// whether the rate falls.
    pub fn epoch_ends(&mut self, recipe: &Recipe, epoch: u32, error: f64) -> bool {
        let improved = self.best.is_none_or(|best| error < best);
        if improved {
            self.best = Some(error);
        }
        self.waited = if improved { 0 } else { self.waited + 1 };
        let falls = match recipe.schedule {
            ScheduleKind::Plateau => self.waited >= recipe.patience,
            ScheduleKind::Step => recipe.milestones.contains(&epoch),
            ScheduleKind::Constant => false,
        };
        if falls {
            self.drops += 1;
            self.waited = 0;
        }
        falls
    }
}

impl Default for Schedule {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drops(recipe: &Recipe, errors: &[f64]) -> Vec<u32> {
        let mut schedule = Schedule::new();
        (1..)
            .zip(errors)
            .filter(|(epoch, error)| schedule.epoch_ends(recipe, *epoch, **error))
            .map(|(epoch, _)| epoch)
            .collect()
    }

    #[test]
    fn plateau_waits_and_starts_again_after_a_drop() {
        let recipe = Recipe { patience: 2, ..Recipe::default() };
        let errors = [0.9, 0.8, 0.8, 0.85, 0.7, 0.71, 0.72, 0.73, 0.74];
        assert_eq!(drops(&recipe, &errors), [4, 7, 9]);
    }

    #[test]
    fn steps_and_constant() {
        let step =
            Recipe { schedule: ScheduleKind::Step, milestones: vec![2, 3], ..Recipe::default() };
        assert_eq!(drops(&step, &[0.5; 5]), [2, 3]);
        let constant = Recipe { schedule: ScheduleKind::Constant, ..Recipe::default() };
        assert_eq!(drops(&constant, &[0.5; 9]), [0u32; 0]);
        let twice = Schedule { drops: 2, ..Schedule::new() };
        assert_eq!(twice.rate(&Recipe::default()), 1e-4);
    }
}
