//! A network: a chain of layers whose sizes fit.

use super::{Architecture, Kind, Layer};
use crate::shape::{ConvDims, Shape};
use crate::{Error, Result};

/// A chain of layers whose sizes fit. Immutable.
#[derive(Clone, Debug)]
pub struct Network {
    /// The description it was built from.
    pub architecture: Architecture,
    /// Its layers, from pixels to logits.
    pub layers: Vec<Layer>,
}

impl Network {
    /// Checks a description and works out every layer's sizes.
    ///
    /// # Errors
    /// If a layer does not fit: its name, what was expected, what was found.
    pub fn new(architecture: Architecture) -> Result<Self> {
        let layers = architecture.plan()?;
        Ok(Network { architecture, layers })
    }

    /// Number of classes; 0 if it gives maps.
    pub fn classes(&self) -> usize {
        self.architecture.classes
    }

    /// Refuses a network that gives maps, where classes are needed.
    ///
    /// # Errors
    /// If it does.
    pub fn must_classify(&self) -> Result<()> {
        if self.classes() > 0 {
            return Ok(());
        }
        Err(Error::Network(format!(
            "network {}: expected one that tells classes apart, found 0 classes: it gives maps, and \
             is trained and run by a program of its own (see examples/super_resolution.rs)",
            self.architecture.name
        )))
    }

    /// The index of the layer of this name.
    ///
    /// # Errors
    /// If there is none; the message lists the names.
    pub fn layer(&self, name: &str) -> Result<usize> {
        self.layers.iter().position(|layer| layer.name == name).ok_or_else(|| {
            let known = self.layers.iter().map(|layer| layer.name.clone()).collect();
            Error::UnknownLayer { name: name.into(), known }
        })
    }

    /// Indices of the spatial convolutions, from below.
    pub fn spatial(&self) -> Vec<usize> {
        let spatial = |&i: &usize| matches!(self.layers[i].kind, Kind::Conv(_));
        (0..self.layers.len()).filter(spatial).collect()
    }

    /// The last fully connected layer below the logits, if there is one.
    pub fn last_hidden(&self) -> Option<usize> {
        let full = |&i: &usize| matches!(self.layers[i].kind, Kind::FullyConnected(_));
        (0..self.layers.len()).rev().filter(full).nth(1)
    }

    /// The layers with weights and their convolutions' sizes.
    pub fn convolutions(&self) -> impl Iterator<Item = (&Layer, &ConvDims)> {
        self.layers.iter().filter_map(|layer| layer.convolution().map(|dims| (layer, dims)))
    }

    /// Number of weights and biases.
    pub fn parameters(&self) -> usize {
        self.layers.iter().map(Layer::parameters).sum()
    }

    /// Multiply-adds for one image, forward.
    pub fn multiply_adds(&self) -> u64 {
        self.layers.iter().map(Layer::multiply_adds).sum()
    }

    /// Shape of one input.
    pub fn input(&self) -> Shape {
        self.layers[0].input
    }
}
