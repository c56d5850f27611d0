//! Which images a study of transfer trains and tests on: some of each class, drawn several times over
//! (the paper's Tables 4 and 5 take five such folds).
//!
//! The images of a class and split are put in one seeded order, and each fold takes the next stretch of
//! it. Folds are thus disjoint as long as a class has `folds x per class` images; where it has fewer, the
//! order is gone through again from its beginning, and folds share images.

use crate::data::images::Images;
use crate::data::order::permutation;
use crate::{Error, Result};

/// The images of one fold, by class, in the order in which they were drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fold {
    train: Vec<Vec<u32>>,
    test: Vec<Vec<u32>>,
}

impl Fold {
    /// Indices of the training images, `per_class` of each class, ascending. A smaller number takes a
    /// part of what a larger one takes.
    ///
    /// # Panics
    /// If `per_class` is more than the folds were drawn for.
    pub fn train(&self, per_class: usize) -> Vec<u32> {
        ascending(self.train.iter().flat_map(|images| &images[..per_class]))
    }

    /// Indices of the test images, ascending.
    pub fn test(&self) -> Vec<u32> {
        ascending(self.test.iter().flatten())
    }
}

fn ascending<'a>(images: impl Iterator<Item = &'a u32>) -> Vec<u32> {
    let mut images: Vec<u32> = images.copied().collect();
    images.sort_unstable();
    images
}

/// Draws `folds` folds from the images of each class in the two splits: `per_class` training images and
/// at most `test_per_class` test images of each class.
///
/// # Errors
/// If a number is 0, a class has no image in one of the splits, or fewer training images than
/// `per_class`.
pub fn folds(
    train: &[Vec<u32>],
    val: &[Vec<u32>],
    classes: &[String],
    per_class: usize,
    test_per_class: usize,
    folds: usize,
    seed: u64,
) -> Result<Vec<Fold>> {
    if classes.is_empty() || per_class == 0 || test_per_class == 0 || folds == 0 {
        return Err(Error::Data(format!(
            "expected at least one class, fold, training and test image a class, found {} classes, \
             {folds} folds, {per_class} training and {test_per_class} test images",
            classes.len()
        )));
    }
    for (class, name) in classes.iter().enumerate() {
        for (split, wanted, images) in
            [("training", per_class, &train[class]), ("validation", 1, &val[class])]
        {
            if images.len() < wanted {
                return Err(Error::Data(format!(
                    "class `{name}`: found {} {split} images, expected at least {wanted}: ask for \
                     fewer, or leave the class out",
                    images.len()
                )));
            }
        }
    }
    // Every class and split has an order of its own.
    let orders = |of_class: &[Vec<u32>], split: u32| -> Vec<Vec<u32>> {
        let order = |(class, images): (usize, &Vec<u32>)| {
            let order = permutation(seed, 2 * class as u32 + split, images.len());
            order.into_iter().map(|i| images[i as usize]).collect()
        };
        of_class.iter().enumerate().map(order).collect()
    };
    let (train, val) = (orders(train, 0), orders(val, 1));
    let stretch = |orders: &[Vec<u32>], fold: usize, most: usize| {
        let of_class = |order: &Vec<u32>| {
            let count = most.min(order.len());
            order.iter().cycle().skip(fold * count % order.len()).take(count).copied().collect()
        };
        orders.iter().map(of_class).collect()
    };
    let fold = |fold: usize| Fold {
        train: stretch(&train, fold, per_class),
        test: stretch(&val, fold, test_per_class),
    };
    Ok((0..folds).map(fold).collect())
}

/// The images of each of so many classes.
///
/// # Panics
/// If an image is of a further class.
pub fn by_class(images: &Images, classes: usize) -> Vec<Vec<u32>> {
    let mut of_class = vec![Vec::new(); classes];
    for image in 0..images.len() {
        of_class[images.class(image) as usize].push(image as u32);
    }
    of_class
}

/// The classes whose folds share images, because they have fewer than `folds x per_class`.
pub fn shared(images: &[Vec<u32>], per_class: usize, folds: usize) -> Vec<usize> {
    (0..images.len())
        .filter(|&class| images[class].len() < folds.saturating_mul(per_class))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Three classes with images of their own, `counts` of each.
    fn set(counts: [u32; 3]) -> Vec<Vec<u32>> {
        let ends = [counts[0], counts[0] + counts[1], counts.iter().sum()];
        counts.iter().zip(ends).map(|(count, end)| (end - count..end).collect()).collect()
    }

    fn names() -> Vec<String> {
        ["a", "b", "c"].map(String::from).to_vec()
    }

    #[test]
    fn folds_are_disjoint_and_repeatable() {
        let (train, val) = (set([50, 60, 70]), set([20, 30, 40]));
        let draw = |seed| folds(&train, &val, &names(), 10, 4, 5, seed).unwrap();
        let five = draw(0);
        assert_eq!(five, draw(0));
        assert_ne!(five, draw(1));
        let distinct = |lists: Vec<Vec<u32>>| lists.concat().into_iter().collect::<BTreeSet<_>>();
        assert_eq!(distinct(five.iter().map(|f| f.train(10)).collect()).len(), 5 * 3 * 10);
        assert_eq!(distinct(five.iter().map(Fold::test).collect()).len(), 5 * 3 * 4);
        for fold in &five {
            for images in &train {
                assert_eq!(fold.train(10).iter().filter(|i| images.contains(i)).count(), 10);
            }
        }
        assert!(shared(&train, 10, 5).is_empty());
    }

    #[test]
    fn fewer_images_are_part_of_more() {
        let (train, val) = (set([50, 60, 70]), set([9, 9, 9]));
        for fold in folds(&train, &val, &names(), 20, 9, 3, 7).unwrap() {
            let all = fold.train(20);
            for k in [1, 5, 19] {
                let some = fold.train(k);
                assert_eq!(some.len(), 3 * k);
                assert!(some.iter().all(|i| all.contains(i)));
            }
        }
    }

    #[test]
    fn small_classes_are_gone_through_again() {
        let (train, val) = (set([12, 60, 60]), set([3, 30, 30]));
        assert_eq!(shared(&train, 10, 5), [0]);
        for fold in folds(&train, &val, &names(), 10, 5, 5, 0).unwrap() {
            assert_eq!(fold.train(10).into_iter().collect::<BTreeSet<_>>().len(), 30);
            assert_eq!(fold.test().into_iter().collect::<BTreeSet<_>>().len(), 3 + 5 + 5);
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let reason = |train: [u32; 3], val: [u32; 3], k, count| {
            folds(&set(train), &set(val), &names(), k, 5, count, 0).unwrap_err().to_string()
        };
        let few = reason([9, 4, 9], [9; 3], 5, 2);
        assert!(few.contains("`b`") && few.contains("found 4") && few.contains("least 5"), "{few}");
        assert!(reason([9; 3], [9, 9, 0], 5, 2).contains("`c`: found 0 validation"));
        assert!(reason([9; 3], [9; 3], 0, 2).contains("0 training"));
        assert!(reason([9; 3], [9; 3], 5, 0).contains("0 folds"));
        assert!(folds(&[], &[], &[], 1, 1, 1, 0).is_err());
    }
}
