//! Gradients of a batch that is cut into parts, added up in one order: sums of two neighbouring parts, of two such sums,
//! and so on, whoever computes the parts.

use crate::Result;
use crate::backend::{Backend, Param};
use crate::model::{Network, Params};

/// What makes the first of so many values the sum of all, along a binary tree: to the value at the first of two places that
/// at the second is added.
pub(crate) fn tree_additions(count: usize) -> impl Iterator<Item = (usize, usize)> {
    let strides = std::iter::successors(Some(1), |stride| Some(2 * stride));
    strides.take_while(move |stride| *stride < count).flat_map(move |stride| {
        (0..count - stride).step_by(2 * stride).map(move |i| (i, i + stride))
    })
}

/// Adds up what a rank's parts give.
pub(super) struct PartGradients<B: Backend> {
    /// Of the part in hand; behind the last part, the sum.
    pub sum: Params<B>,
    /// Sums of 1, 2, 4, ... parts, which wait for those of as many more.
    waiting: Vec<Params<B>>,
}

impl<B: Backend> PartGradients<B> {
    /// For up to `parts` parts.
    ///
    /// # Errors
    /// If the backend is out of memory.
    pub fn new(backend: &B, network: &Network, parts: usize) -> Result<Self> {
        let waiting = usize::BITS - parts.saturating_sub(1).leading_zeros();
        let zeros = |_| Params::zeros(backend, network);
        Ok(PartGradients {
            sum: Params::zeros(backend, network)?,
            waiting: (0..waiting).map(zeros).collect::<Result<_>>()?,
        })
    }

    /// The gradients of the part in hand, and what adds a layer's to those of the parts before it.
    pub fn split(&mut self) -> (&mut Params<B>, Tree<'_, B>) {
        (&mut self.sum, Tree { waiting: &mut self.waiting })
    }
}

/// Where sums wait.
pub(super) struct Tree<'a, B: Backend> {
    waiting: &'a mut [Params<B>],
}

impl<B: Backend> Tree<'_, B> {
    /// Takes a layer's gradient of part `part` of a rank, from 0; behind the last, the sum is in its place.
    ///
    /// # Errors
    /// If a backend operation fails.
    pub fn add(
        &mut self,
        backend: &B,
        layer: usize,
        gradient: &mut Option<Param<B>>,
        part: usize,
        is_last: bool,
    ) -> Result<()> {
        // Sums wait where the number of parts before this one has a binary digit 1.
        let waits = |level: usize| part >> level & 1 == 1;
        for (level, waiting) in self.waiting.iter_mut().enumerate() {
            let waiting = &mut waiting.layers[layer];
            if waits(level) {
                if let (Some(sum), Some(before)) = (&mut *gradient, &*waiting) {
                    backend.add(&mut sum.weight, &before.weight)?;
                    backend.add(&mut sum.bias, &before.bias)?;
                }
            } else if !is_last {
                std::mem::swap(gradient, waiting);
                return Ok(());
            }
        }
        Ok(())
    }
}
