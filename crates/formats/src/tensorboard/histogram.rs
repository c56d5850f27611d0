//! Histograms with TensorFlow's own buckets, whose ends grow by a tenth from 1e-12 to 1e20 on both sides of zero: fine
//! where weights are, whatever their size.

use std::sync::LazyLock;

use super::proto::HistogramProto;

static LIMITS: LazyLock<Vec<f64>> = LazyLock::new(|| {
    let mut above: Vec<f64> = std::iter::successors(Some(1e-12), |limit| Some(limit * 1.1))
        .take_while(|limit| *limit < 1e20)
        .collect();
    above.push(f64::MAX);
    let below = above.iter().rev().map(|limit| -limit);
    below.chain([0.0]).chain(above.iter().copied()).collect()
});

/// How some values are distributed; what is not finite is left out.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    min: f64,
    max: f64,
    sum: f64,
    sum_squares: f64,
    /// Values of each bucket.
    counts: Vec<u64>,
}

impl Histogram {
    /// Of these values.
    pub fn of(values: &[f32]) -> Self {
        let mut histogram = Histogram {
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            sum: 0.0,
            sum_squares: 0.0,
            counts: vec![0; LIMITS.len()],
        };
        for value in values.iter().filter(|value| value.is_finite()) {
            let value = f64::from(*value);
            histogram.min = histogram.min.min(value);
            histogram.max = histogram.max.max(value);
            histogram.sum += value;
            histogram.sum_squares += value * value;
            histogram.counts[LIMITS.partition_point(|limit| *limit <= value)] += 1;
        }
        histogram
    }

    /// Takes in those of another.
    pub fn add(&mut self, other: &Histogram) {
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.sum += other.sum;
        self.sum_squares += other.sum_squares;
        self.counts.iter_mut().zip(&other.counts).for_each(|(count, other)| *count += other);
    }

    /// Without the empty buckets at both ends, and with one for all empty ones that follow each other.
    pub(super) fn proto(&self) -> HistogramProto {
        let filled = |count: &u64| *count > 0;
        let Some(first) = self.counts.iter().position(filled) else {
            return HistogramProto::default();
        };
        let last = self.counts.iter().rposition(filled).expect("one is filled");
        let mut found = HistogramProto {
            min: self.min,
            max: self.max,
            num: self.counts.iter().sum::<u64>() as f64,
            sum: self.sum,
            sum_squares: self.sum_squares,
            ..HistogramProto::default()
        };
        for (count, limit) in self.counts[first..=last].iter().zip(&LIMITS[first..=last]) {
            match found.bucket.last() {
                Some(0.0) if *count == 0 => {
                    *found.bucket_limit.last_mut().expect("as many") = *limit
                }
                _ => {
                    found.bucket.push(*count as f64);
                    found.bucket_limit.push(*limit);
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_lie_in_their_buckets() {
        let values = [-2.0, 0.0, 0.0, 1e-13, 0.5, 0.5, 3e38, -0.0, f32::NAN, f32::INFINITY];
        let mut histogram = Histogram::of(&values[..3]);
        histogram.add(&Histogram::of(&values[3..]));
        let found = histogram.proto();
        assert_eq!((found.min, found.max, found.num), (-2.0, f64::from(3e38f32), 8.0));
        assert_eq!(found.bucket.iter().sum::<f64>(), 8.0);
        assert_eq!(found.bucket, [1.0, 0.0, 4.0, 0.0, 2.0, 0.0, 1.0]);
        let lowest = |place: usize| found.bucket_limit[place - 1];
        assert!(found.bucket_limit[0] > -2.0 && found.bucket_limit[0] < -1.8);
        assert_eq!((lowest(2), found.bucket_limit[2]), (0.0, 1e-12));
        assert!(lowest(4) <= 0.5 && found.bucket_limit[4] > 0.5);
        assert!(found.bucket_limit[4] < 1.1 * lowest(4) + 1e-9);
        assert!(lowest(6) > 9e19 && found.bucket_limit[6] == f64::MAX);
        assert!(found.bucket_limit.is_sorted());
    }

    #[test]
    fn of_nothing_there_is_no_bucket() {
        assert_eq!(Histogram::of(&[f32::NAN]).proto(), HistogramProto::default());
    }
}
