//! Softmax and cross-entropy.

use rayon::prelude::*;

use crate::values::{Element, ValuesMut, by_element};

/// `losses[n] = -ln p[n, label]` and `dlogits = scale * (p - onehot)` of rows of `classes` logits.
/// Whether all losses are finite.
pub fn cross_entropy(
    losses: &mut [f32],
    dlogits: ValuesMut<'_>,
    logits: &[f32],
    labels: &[u32],
    scale: f32,
    classes: usize,
) -> bool {
    by_element!(dlogits; => {
        let rows = dlogits.par_chunks_exact_mut(classes).zip(losses);
        let rows = rows.zip(logits.par_chunks_exact(classes)).zip(labels);
        rows.map(|(((gradient, loss), logits), &label)| {
            *loss = of_row(gradient, logits, label as usize, scale);
            loss.is_finite()
        })
        .reduce(|| true, |all, finite| all && finite)
    })
}

/// One row's loss. Exponentials are computed twice, since a gradient stored in bf16 would round them.
fn of_row<T: Element>(gradient: &mut [T], logits: &[f32], label: usize, scale: f32) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from((logit - max).exp())).sum();
    let factor = (1.0 / sum) as f32;
    for (class, (g, logit)) in gradient.iter_mut().zip(logits).enumerate() {
        let target = if class == label { 1.0 } else { 0.0 };
        *g = T::from_f32(((logit - max).exp() * factor - target) * scale);
    }
    (sum.ln() - f64::from(logits[label] - max)) as f32
}
