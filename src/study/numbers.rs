//! Small sums over lists of numbers.

/// The index of the largest value; ties go to the first. 0 if there are no values.
pub(crate) fn argmax<T: PartialOrd>(values: &[T]) -> usize {
    (0..values.len()).fold(0, |best, i| if values[i] > values[best] { i } else { best })
}

/// The most probable class; ties go to the first. `None` if a probability is NaN.
pub(crate) fn most_probable(probabilities: &[f64]) -> Option<usize> {
    let is_number = |p: &f64| !p.is_nan();
    probabilities.iter().all(is_number).then(|| argmax(probabilities))
}

/// The mean; NaN of none.
pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The standard deviation of a sample; `None` of a single value.
pub(crate) fn deviation(values: &[f64]) -> Option<f64> {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (values.len() - 1) as f64).sqrt())
}

/// Both; a single value has the standard deviation 0.
pub(crate) fn mean_and_std(values: &[f64]) -> [f64; 2] {
    [mean(values), deviation(values).unwrap_or(0.0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_the_largest() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0, 2.0]), 1);
        assert_eq!(argmax::<f32>(&[]), 0);
        assert_eq!(most_probable(&[0.5, 0.5]), Some(0));
        assert_eq!(most_probable(&[0.5, f64::NAN]), None);
    }

    #[test]
    fn deviations_are_those_of_a_sample() {
        assert_eq!(mean_and_std(&[1.0, 3.0]), [2.0, 2f64.sqrt()]);
        assert_eq!(mean_and_std(&[5.0]), [5.0, 0.0]);
        assert_eq!(deviation(&[5.0]), None);
    }
}
