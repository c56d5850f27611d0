//! What a workspace runs as one, decided from the layers, the purpose and what the backend can.

use super::Network;
use super::layer::{ConvPool, Kind, Step};
use crate::backend::Backend;
use crate::shape::Shape;

/// What a workspace is for, and so what it keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Purpose {
    /// Forward with dropout, and backward with gradients of the weights.
    Train,
    /// Forward only.
    Infer,
    /// Forward, then backward from so many units at a time.
    Project {
        /// Units at a time.
        seeds: usize,
    },
}

/// What is run, and kept, as one.
pub(super) struct Block {
    /// Index of its first layer, whose weights it has.
    pub layer: usize,
    pub step: Step,
    /// Whether a relu makes its output: a layer of its own, or computed with a convolution.
    pub relu: bool,
    /// Shape of its input for one image.
    pub input: Shape,
    /// Shape of its output for one image.
    pub output: Shape,
}

/// What is run as one: a convolution with the relu behind it, the first also with its pooling if the
/// backend can. Dropout that drops nothing is left out. And for each layer, the block that holds its
/// output.
pub(super) fn plan<B: Backend>(
    backend: &B,
    network: &Network,
    purpose: Purpose,
    capacity: usize,
) -> (Vec<Block>, Vec<usize>) {
    let training = purpose == Purpose::Train;
    let layers = &network.layers;
    let mut blocks: Vec<Block> = Vec::new();
    let mut block_of = Vec::new();
    if let Some(first) = training.then(|| ConvPool::new(backend, layers, capacity)).flatten() {
        let (input, output) = (layers[0].input, layers[2].output);
        blocks.push(Block { layer: 0, step: Step::ConvPool(first), relu: false, input, output });
        block_of.extend([0; 3]);
    }
    for (index, layer) in layers.iter().enumerate().skip(block_of.len()) {
        let is_relu = matches!(layer.kind, Kind::Relu(_));
        let skipped = matches!(layer.kind, Kind::Dropout(_)) && !training;
        match blocks.last_mut() {
            Some(block)
                if is_relu && block.layer + 1 == index && layers[block.layer].has_bias() =>
            {
                block.relu = true;
            }
            Some(_) if skipped => {}
            _ => blocks.push(Block {
                layer: index,
                step: Step::Layer(layer.kind),
                relu: is_relu,
                input: layer.input,
                output: layer.output,
            }),
        }
        block_of.push(blocks.len() - 1);
    }
    (blocks, block_of)
}
