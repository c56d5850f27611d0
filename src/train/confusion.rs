//! What the images of each class are taken for in validation, and what that tells of the labels.

use std::collections::{BTreeMap, BTreeSet};

/// Images that would be taken for a class, by the accuracy over all, so that none at all tells something.
const EXPECTED: f64 = 5.0;
/// Fewest validation images of a class that tell what it is taken for.
const FEWEST_IMAGES: u32 = 5;
/// Share of a class's images that are taken for one other class, if the classes are exchanged.
const EXCHANGED: f64 = 0.5;

/// How many images of each class were taken for which.
#[derive(Default)]
pub(super) struct Confusion {
    /// For each class that has images, those taken for each class.
    counts: BTreeMap<usize, BTreeMap<usize, u32>>,
}

impl Confusion {
    pub fn add(&mut self, class: usize, predicted: usize) {
        *self.counts.entry(class).or_default().entry(predicted).or_default() += 1;
    }

    /// Mean over classes of the error on their images, and that of guessing, if it is no better than that, or a
    /// luckier one. Means over classes, because the most frequent one may be nearly all.
    pub fn at_chance(&self) -> Option<(f64, f64)> {
        let classes = self.counts.len() as f64;
        let mut error = 0.0;
        let mut variance = 0.0;
        let by_chance = 1.0 - 1.0 / classes;
        for (class, counts) in &self.counts {
            let all = f64::from(counts.values().sum::<u32>());
            let right = f64::from(counts.get(class).copied().unwrap_or(0));
            error += (1.0 - right / all) / classes;
            variance += by_chance * (1.0 - by_chance) / all / (classes * classes);
        }
        let is_enough = classes > 1.0 && variance.sqrt() < by_chance / 10.0;
        (is_enough && error > by_chance - 2.0 * variance.sqrt()).then_some((error, by_chance))
    }

    /// Classes that no image is taken for, though so many of their own would be by the error over all images.
    pub fn never_predicted(&self) -> Vec<u32> {
        let mut predicted: BTreeSet<usize> = BTreeSet::new();
        let [mut right, mut all] = [0; 2];
        for (class, counts) in &self.counts {
            predicted.extend(counts.keys());
            right += counts.get(class).copied().unwrap_or(0);
            all += counts.values().sum::<u32>();
        }
        let accuracy = f64::from(right) / f64::from(all.max(1));
        let is_silent = |(class, counts): &(&usize, &BTreeMap<usize, u32>)| {
            !predicted.contains(class)
                && f64::from(counts.values().sum::<u32>()) * accuracy >= EXPECTED
        };
        self.counts.iter().filter(is_silent).map(|(class, _)| *class as u32).collect()
    }

    /// Classes most of whose images are taken for one other class, that class's for another one of them, and so on
    /// until the circle is closed; with what each is taken for.
    pub fn exchanged(&self) -> BTreeMap<u32, u32> {
        let mostly = |class: &usize| -> usize {
            let Some(counts) = self.counts.get(class) else { return *class };
            let all: u32 = counts.values().sum();
            let most = counts.iter().max_by_key(|(_, count)| **count);
            match most {
                Some((most, count))
                    if all >= FEWEST_IMAGES && f64::from(*count) > EXCHANGED * f64::from(all) =>
                {
                    *most
                }
                _ => *class,
            }
        };
        let in_circle = |class: &&usize| {
            let mut at = mostly(class);
            for _ in 0..self.counts.len() {
                if at == **class {
                    return mostly(class) != **class;
                }
                at = mostly(&at);
            }
            false
        };
        let circle = self.counts.keys().filter(in_circle);
        circle.map(|class| (*class as u32, mostly(class) as u32)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exchanged_classes_are_named_and_confused_ones_are_not() {
        let mut confusion = Confusion::default();
        for class in 0..10 {
            let taken_for = match class {
                2 => 5,
                5 => 7,
                7 => 2,
                3 => 4, // 4 is taken for itself
                other => other,
            };
            (0..9).for_each(|_| confusion.add(class, taken_for));
            (0..4).for_each(|_| confusion.add(class, (class + 1) % 10));
        }
        assert_eq!(confusion.exchanged(), BTreeMap::from([(2, 5), (5, 7), (7, 2)]));
        let mut half = Confusion::default();
        for (class, predicted) in [(0, 1), (0, 0), (1, 0), (1, 1)] {
            half.add(class, predicted);
        }
        assert!(half.exchanged().is_empty());
        let mut few = Confusion::default();
        few.add(0, 1);
        few.add(1, 0);
        assert!(few.exchanged().is_empty());
    }
}
