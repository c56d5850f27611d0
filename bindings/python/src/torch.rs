//! Modules of PyTorch, handed over layer by layer: the chain that readers of files make, too.

use std::path::Path;

use numpy::{PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use zfnet::import::{self, ExternalConfig};
use zfnet_formats::{Chain, Input, Layer, Op, Tensor};

use crate::device::Choice;
use crate::errors::{caught, of_library};
use crate::log;
use crate::network::{Network, with_weights};

/// Of `load`, as advice names them.
const FLAGS: [&str; 2] = ["preprocess", "input-size"];

/// A network of a chain of layers: of each its path in the module, what it does ("conv", "fc", "relu", "maxpool", "lrn",
/// "dropout"), and the fields of [`Op`] by name; weights are f32 arrays in PyTorch's layout.
#[pyfunction]
#[pyo3(signature = (name, layers, *, channels, size, preprocess, classes, device, threads, instructions))]
pub fn from_chain(
    py: Python<'_>,
    name: String,
    layers: Vec<(String, String, Bound<'_, PyDict>)>,
    channels: usize,
    size: [usize; 2],
    preprocess: Option<String>,
    classes: Option<Vec<String>>,
    device: String,
    threads: Option<u16>,
    instructions: Option<String>,
) -> PyResult<Network> {
    let layers = layers.into_iter().map(|(name, kind, fields)| {
        let op = op(&name, &kind, &Fields(fields))?;
        Ok(Layer { name, op })
    });
    let chain = Chain {
        name: name.clone(),
        input: Input { channels, size: Some(size) },
        layers: layers.collect::<PyResult<_>>()?,
        classes: classes.clone().unwrap_or_default(),
        ..Chain::default()
    };
    let config = ExternalConfig { preprocess, ..ExternalConfig::default() };
    let imported = py.detach(|| caught(|| import::from_chain(chain, &config)))?;
    let imported = imported.map_err(|error| of_library(py, error, &FLAGS))?;
    if let Some(classes) = classes
        && classes.len() != imported.network.classes()
    {
        return Err(PyValueError::new_err(format!(
            "classes: expected names of {} classes, found {}",
            imported.network.classes(),
            classes.len()
        )));
    }
    log::collect();
    imported.log(Path::new(&name));
    log::hand_over(py)?;
    let choice = Choice { device, threads, instructions };
    with_weights(py, choice, name, &FLAGS, imported)
}

/// The fields of a layer.
struct Fields<'py>(Bound<'py, PyDict>);

impl<'py> Fields<'py> {
    fn get<T>(&self, name: &str) -> PyResult<T>
    where
        T: for<'a> FromPyObject<'a, 'py>,
    {
        let value = self.0.get_item(name)?;
        let missing = || PyValueError::new_err(format!("a layer lacks `{name}`"));
        value.ok_or_else(missing)?.extract().map_err(Into::into)
    }

    /// Of which the values are copied: the backend has its own.
    fn tensor(&self, layer: &str, name: &str) -> PyResult<Tensor> {
        let array: PyReadonlyArrayDyn<'py, f32> = self.get(name)?;
        let (shape, values) = (array.shape().to_vec(), array.as_slice()?.to_vec());
        Ok(Tensor { name: format!("{layer}.{name}"), shape, values })
    }
}

fn op(layer: &str, kind: &str, fields: &Fields<'_>) -> PyResult<Op> {
    Ok(match kind {
        "conv" => Op::Conv {
            weight: fields.tensor(layer, "weight")?,
            bias: fields.tensor(layer, "bias")?.values,
            stride: fields.get("stride")?,
            pad: fields.get("pad")?,
            groups: fields.get("groups")?,
            ceil: false,
        },
        "fc" => Op::Fc {
            weight: fields.tensor(layer, "weight")?,
            bias: fields.tensor(layer, "bias")?.values,
        },
        "relu" => Op::Relu,
        "maxpool" => Op::MaxPool {
            kernel: fields.get("kernel")?,
            stride: fields.get("stride")?,
            pad: fields.get("pad")?,
            ceil: fields.get("ceil")?,
        },
        "lrn" => Op::Lrn {
            size: fields.get("size")?,
            alpha: fields.get("alpha")?,
            beta: fields.get("beta")?,
            k: fields.get("k")?,
        },
        "dropout" => Op::Dropout { rate: fields.get("rate")? },
        other => return Err(PyValueError::new_err(format!("{layer}: no layer `{other}`"))),
    })
}
