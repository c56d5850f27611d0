//! Networks: what they are made of, what they make of an image, and what single units show of it.
//!
//! A network's weights stay where they were loaded. What it takes to compute (buffers, and a backend's threads) is made
//! when first needed, by one call at a time, and anew in a process that was forked.

use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Arc, Mutex, PoisonError};

use numpy::{PyArray1, PyArrayDyn, PyArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde_json::{Value, json};
use zfnet::backend::{Backend, SeedUnit, Tensor};
use zfnet::cli::python::{self as command, Device, Features, PageFolder};
use zfnet::import::{ExternalConfig, Imported};
use zfnet::model::{Canvas, Kind, Model, Network as Chain, Preprocess, Projector, Rule, Seed};
use zfnet::picture::Image;
use zfnet::study::image_selection::StudyImage;
use zfnet::study::occluder::Fill;
use zfnet::study::project::{classify, clipped, field_box, projection_image};
use zfnet::study::{Session, invariance, occlusion, unit_named};
use zfnet::train::checkpoint::load_model;
use zfnet::train::evaluate::{Classifier, TestCrops};

use crate::device::{Choice, Host, is_forked};
use crate::errors::{Error, caught, of_library};
use crate::image::{Prepared, prepared};
use crate::log;
use crate::work::{is_of_the_network, watched};

/// Flags of commands that `load` takes as arguments.
const FLAGS: [&str; 4] = ["arch", "preprocess", "device", "threads"];

/// A network with its weights, on a device.
#[pyclass(frozen, module = "zfnet._zfnet")]
pub struct Network {
    on: Box<dyn OnDevice>,
    /// Where it is from, as pages name it.
    source: PathBuf,
}

/// Reads a network: a run, a checkpoint, or another program's file.
#[pyfunction]
#[pyo3(signature = (path, *, arch, preprocess, device, threads, instructions))]
pub fn load(
    py: Python<'_>,
    path: PathBuf,
    arch: Option<String>,
    preprocess: Option<String>,
    device: String,
    threads: Option<u16>,
    instructions: Option<String>,
) -> PyResult<Network> {
    log::collect();
    let external = ExternalConfig { arch, preprocess, ..ExternalConfig::default() };
    let choice = Choice { device, threads, instructions };
    let on: Box<dyn OnDevice> = match choice.open(py)? {
        Device::Cpu(backend) => {
            Box::new(DeviceNetwork::load(py, backend, choice, &path, &external)?)
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(backend) => {
            Box::new(DeviceNetwork::load(py, backend, choice, &path, &external)?)
        }
    };
    log::hand_over(py)?;
    Ok(Network { on, source: path })
}

/// A network that was in another program's memory. `flags`: as for [`of_library`].
pub fn with_weights(
    py: Python<'_>,
    choice: Choice,
    name: String,
    flags: &[&str],
    imported: Imported,
) -> PyResult<Network> {
    let on: Box<dyn OnDevice> = match choice.open(py)? {
        Device::Cpu(backend) => {
            Box::new(DeviceNetwork::take(py, backend, choice, imported, flags)?)
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(backend) => {
            Box::new(DeviceNetwork::take(py, backend, choice, imported, flags)?)
        }
    };
    Ok(Network { on, source: name.into() })
}

#[pymethods]
impl Network {
    /// Its name.
    #[getter]
    fn name(&self) -> String {
        self.on.chain().architecture.name.clone()
    }

    /// Names of its classes, in the order of its outputs; none if it gives maps.
    #[getter]
    fn classes(&self) -> Vec<String> {
        self.on.classes().to_vec()
    }

    /// Rows and columns of its input.
    #[getter]
    fn input_size(&self) -> (usize, usize) {
        let [rows, columns] = self.on.preprocess().size;
        (rows, columns)
    }

    /// Rows and columns that images are resized to before the input is cut from them.
    #[getter]
    fn canvas_size(&self) -> (usize, usize) {
        let [rows, columns] = self.canvas().size();
        (rows, columns)
    }

    /// How images are prepared, in words.
    #[getter]
    fn preprocess(&self) -> String {
        self.on.preprocess().to_string()
    }

    /// Its layers from pixels to logits, as JSON.
    fn layers(&self) -> String {
        Value::from_iter(layers(self.on.chain())).to_string()
    }

    /// All classes with their probabilities, most probable first, averaged over `crops` (1 or 10) crops.
    fn classify(
        &self,
        py: Python<'_>,
        image: &Bound<'_, PyAny>,
        crops: usize,
    ) -> PyResult<Vec<(String, f32)>> {
        let crops = match crops {
            1 => TestCrops::One,
            10 => TestCrops::Ten,
            other => {
                let text = format!("crops: expected 1 or 10, found {other}");
                return Err(PyValueError::new_err(text));
            }
        };
        let image = self.prepared(py, image)?;
        self.on.classify(py, &image.canvas, crops)
    }

    /// What the network sees of an image, f32 `[rows, columns, channels]`.
    fn input<'py>(
        &self,
        py: Python<'py>,
        image: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        let image = self.prepared(py, image)?;
        let values = self.on.input(py, &image.canvas)?;
        let shape = self.on.chain().input();
        array(py, values, &[shape.h, shape.w, shape.c])
    }

    /// What layers make of an image's centre crop, by their names: f32 `[rows, columns, maps]`, or `[outputs]` from the
    /// first fully connected layer on.
    fn activations<'py>(
        &self,
        py: Python<'py>,
        image: &Bound<'py, PyAny>,
        layers: Vec<String>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let chain = self.on.chain();
        let indices = layers.iter().map(|name| chain.layer(name)).collect::<Result<Vec<_>, _>>();
        let indices = indices.map_err(|error| of_library(py, error, &[]))?;
        let image = self.prepared(py, image)?;
        let full = |layer: &zfnet::model::Layer| matches!(layer.kind, Kind::FullyConnected(_));
        let first_full = chain.layers.iter().position(full).unwrap_or(usize::MAX);
        let found = PyDict::new(py);
        let values = self.on.activations(py, &image.canvas, &indices)?;
        for ((name, index), values) in layers.iter().zip(indices).zip(values) {
            let shape = chain.layers[index].output;
            let spatial = [shape.h, shape.w, shape.c];
            let shape = if index < first_full { &spatial[..] } else { &spatial[2..] };
            found.set_item(name, array(py, values, shape)?)?;
        }
        Ok(found)
    }

    /// The strongest place of a map (`LAYER:MAP`) in an image, projected: values, picture, and about the unit its row,
    /// column, activation and box.
    fn project<'py>(
        &self,
        py: Python<'py>,
        image: &Bound<'py, PyAny>,
        unit: &str,
        rule: &str,
    ) -> PyResult<Shown<'py>> {
        let wrong = |error| of_library(py, error, &[]);
        let (layer, map) = unit_named(self.on.chain(), unit).map_err(wrong)?;
        let rule = Rule::named(rule).map_err(wrong)?;
        let image = self.prepared(py, image)?;
        let (unit, values) = self.on.project(py, &image.canvas, layer, map, rule)?;
        let (chain, preprocess) = (self.on.chain(), self.on.preprocess());
        let Image { width, height, pixels } = projection_image(preprocess, &values);
        let [y, x] = [unit.y, unit.x].map(|place| place as usize);
        let field = field_box(&chain.layers[layer], y, x);
        let [x0, y0, x1, y1] = clipped(preprocess.size, field);
        let shape = chain.input();
        Ok((
            array(py, values, &[shape.h, shape.w, shape.c])?,
            array(py, pixels, &[height, width, 3])?,
            (y, x),
            unit.value,
            (y0, x0, y1, x1),
        ))
    }

    /// What covering parts of an image changes, as `zfnet study occlusion` writes it: JSON.
    #[pyo3(signature = (image, class_name, square, stride, fill, layer))]
    fn occlusion(
        &self,
        py: Python<'_>,
        image: &Bound<'_, PyAny>,
        class_name: Option<String>,
        square: Option<usize>,
        stride: Option<usize>,
        fill: &str,
        layer: Option<String>,
    ) -> PyResult<String> {
        for (name, value) in [("square", square), ("stride", stride)] {
            if value == Some(0) {
                return Err(PyValueError::new_err(format!("{name}: expected a number above 0")));
            }
        }
        let fill = match fill {
            "mean" => Fill::Mean,
            "grey" => Fill::Grey,
            "blur" => Fill::Blur,
            other => {
                let text = format!("fill: expected mean, grey or blur, found {other}");
                return Err(PyValueError::new_err(text));
            }
        };
        let chain = self.on.chain();
        let wrong = |error| of_library(py, error, &[]);
        let layer = layer.map(|name| chain.layer(&name)).transpose().map_err(wrong)?;
        let settings =
            occlusion::Settings::new(chain, layer, square, stride, fill).map_err(wrong)?;
        let image = self.looked_into(py, image, class_name)?;
        self.on.occlusion(py, image, &settings)
    }

    /// How features change with shifts, scales and rotations of an image, as `zfnet study invariance` writes it: JSON.
    #[pyo3(signature = (image, class_name, layers, shift, step))]
    fn invariance(
        &self,
        py: Python<'_>,
        image: &Bound<'_, PyAny>,
        class_name: Option<String>,
        layers: Option<Vec<String>>,
        shift: Option<usize>,
        step: Option<usize>,
    ) -> PyResult<String> {
        let chain = self.on.chain();
        let wrong = |error| of_library(py, error, &[]);
        let mut layers = match layers {
            Some(names) => names.iter().map(|name| chain.layer(name)).collect::<Result<_, _>>(),
            None => Ok(invariance::default_layers(chain)),
        }
        .map_err(wrong)?;
        layers.sort_unstable();
        layers.dedup();
        let shifts = invariance::shifts(chain.input().h, shift, step)
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        let image = self.looked_into(py, image, class_name)?;
        self.on.invariance(py, image, &invariance::Settings { layers, shifts })
    }
}

/// Values, picture, place, activation and box.
type Shown<'py> = (
    Bound<'py, PyArrayDyn<f32>>,
    Bound<'py, PyArrayDyn<u8>>,
    (usize, usize),
    f32,
    (usize, usize, usize, usize),
);

impl Network {
    /// Where it is from.
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// Makes the page of its features.
    pub fn top9(
        &self,
        py: Python<'_>,
        features: &Features,
        out: &PageFolder,
        listener: &Bound<'_, PyAny>,
    ) -> PyResult<PathBuf> {
        self.on.top9(py, features, out, listener)
    }

    fn canvas(&self) -> Canvas {
        self.on.preprocess().resize
    }

    fn prepared(&self, py: Python<'_>, image: &Bound<'_, PyAny>) -> PyResult<Prepared> {
        prepared(py, image, self.canvas())
    }

    /// An image and its class: the one that is named, else what the network takes it for.
    fn looked_into(
        &self,
        py: Python<'_>,
        image: &Bound<'_, PyAny>,
        class_name: Option<String>,
    ) -> PyResult<StudyImage> {
        let Prepared { canvas, size } = self.prepared(py, image)?;
        let name =
            image.extract().map_or("image".into(), |path: PathBuf| path.display().to_string());
        let classes = self.on.classes();
        let known = class_name.is_some();
        let class = match class_name {
            Some(class) => classes.iter().position(|name| *name == class).ok_or_else(|| {
                PyValueError::new_err(format!("the network has no class `{class}`"))
            })?,
            None => {
                let found = self.on.classify(py, &canvas, TestCrops::One)?;
                let best = found.first().map(|(name, _)| name);
                classes.iter().position(|name| Some(name) == best).unwrap_or(0)
            }
        };
        Ok(StudyImage { name, class, known, square: canvas, size })
    }
}

/// Values in the shape that they have, in memory that the array owns: they are not copied.
fn array<'py, T: numpy::Element>(
    py: Python<'py>,
    values: Vec<T>,
    shape: &[usize],
) -> PyResult<Bound<'py, PyArrayDyn<T>>> {
    PyArray1::from_vec(py, values).reshape(shape.to_vec())
}

/// Each layer's description as in TOML, and what follows from it.
fn layers(chain: &Chain) -> impl Iterator<Item = Value> {
    chain.layers.iter().zip(&chain.architecture.layers).map(|(layer, spec)| {
        let mut told = serde_json::to_value(spec).expect("plain data");
        let [down, across] = layer.field;
        told["name"] = layer.name.as_str().into();
        told["output"] = json!([layer.output.h, layer.output.w, layer.output.c]);
        told["parameters"] = layer.parameters().into();
        told["field"] = json!([down.size, across.size]);
        told["jump"] = json!([down.jump, across.jump]);
        told
    })
}

/// A network on some device, for calls from Python.
trait OnDevice: Send + Sync {
    fn chain(&self) -> &Chain;
    fn preprocess(&self) -> &Preprocess;
    fn classes(&self) -> &[String];
    fn classify(
        &self,
        py: Python<'_>,
        canvas: &[u8],
        crops: TestCrops,
    ) -> PyResult<Vec<(String, f32)>>;
    fn input(&self, py: Python<'_>, canvas: &[u8]) -> PyResult<Vec<f32>>;
    fn activations(
        &self,
        py: Python<'_>,
        canvas: &[u8],
        layers: &[usize],
    ) -> PyResult<Vec<Vec<f32>>>;
    fn project(
        &self,
        py: Python<'_>,
        canvas: &[u8],
        layer: usize,
        map: usize,
        rule: Rule,
    ) -> PyResult<(SeedUnit, Vec<f32>)>;
    fn occlusion(
        &self,
        py: Python<'_>,
        image: StudyImage,
        settings: &occlusion::Settings,
    ) -> PyResult<String>;
    fn invariance(
        &self,
        py: Python<'_>,
        image: StudyImage,
        settings: &invariance::Settings,
    ) -> PyResult<String>;
    fn top9(
        &self,
        py: Python<'_>,
        features: &Features,
        out: &PageFolder,
        listener: &Bound<'_, PyAny>,
    ) -> PyResult<PathBuf>;
}

/// A model, and what it takes to compute.
struct DeviceNetwork<B: Backend> {
    model: Arc<Model<B>>,
    choice: Choice,
    /// Of the process of this number. Locked by who holds Python's lock, and for as long at most: see [`crate::device`].
    tools: Mutex<(u32, Arc<Mutex<Tools<B>>>)>,
}

/// What it takes to compute, as far as it was needed.
struct Tools<B: Backend> {
    backend: &'static B,
    projector: Option<Projector<'static, B>>,
    classifiers: [Option<Classifier<B>>; 2],
}

impl<B: Backend> Tools<B> {
    fn of(backend: &'static B) -> Self {
        Tools { backend, projector: None, classifiers: [None, None] }
    }

    fn projector(&mut self, model: &Arc<Model<B>>) -> zfnet::Result<&mut Projector<'static, B>> {
        if self.projector.is_none() {
            self.projector = Some(Projector::shared(self.backend, model.clone(), 1, 1)?);
        }
        Ok(self.projector.as_mut().expect("just made"))
    }

    /// Forward on the centre crop, with all activations kept.
    fn look(
        &mut self,
        model: &Arc<Model<B>>,
        canvas: &[u8],
    ) -> zfnet::Result<&mut Projector<'static, B>> {
        let projector = self.projector(model)?;
        projector.look(canvas, &TestCrops::One.of(&model.preprocess, 0))?;
        Ok(projector)
    }
}

impl<B: Host> DeviceNetwork<B>
where
    Tools<B>: Send,
{
    fn load(
        py: Python<'_>,
        backend: &'static B,
        choice: Choice,
        path: &Path,
        external: &ExternalConfig,
    ) -> PyResult<Self> {
        let read = || backend.install(|| load_model(backend, path, external));
        let model = py.detach(|| caught(read))?.map_err(|error| of_library(py, error, &FLAGS))?;
        Ok(DeviceNetwork::new(backend, choice, model))
    }

    fn take(
        py: Python<'_>,
        backend: &'static B,
        choice: Choice,
        imported: Imported,
        flags: &[&str],
    ) -> PyResult<Self> {
        let make = || backend.install(|| imported.into_model(backend));
        let model = py.detach(|| caught(make))?.map_err(|error| of_library(py, error, flags))?;
        Ok(DeviceNetwork::new(backend, choice, model))
    }

    fn new(backend: &'static B, choice: Choice, model: Model<B>) -> Self {
        let tools = Arc::new(Mutex::new(Tools::of(backend)));
        DeviceNetwork { model: Arc::new(model), choice, tools: Mutex::new((process::id(), tools)) }
    }

    /// The tools of this process.
    fn tools(&self, py: Python<'_>) -> PyResult<Arc<Mutex<Tools<B>>>> {
        let mut known = self.tools.lock().unwrap_or_else(PoisonError::into_inner);
        if known.0 != process::id() {
            let of_parent = known.1.clone();
            *known = (process::id(), Arc::new(Mutex::new(Tools::of(self.backend(py)?))));
            // Whoever was using them is not in this process: they may be locked, and half written.
            std::mem::forget(of_parent);
        }
        Ok(known.1.clone())
    }

    /// The backend of this process.
    fn backend(&self, py: Python<'_>) -> PyResult<&'static B> {
        B::of(self.choice.open(py)?).filter(|_| B::FORKS || !is_forked()).ok_or_else(|| {
            Error::new_err(
                "a network on a GPU cannot be used in a process that was forked: load it there, with device \"cpu\"",
            )
        })
    }

    /// Runs `work` without Python's lock, one call at a time.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Tools<B>) -> zfnet::Result<T> + Send,
    ) -> PyResult<T> {
        let tools = self.tools(py)?;
        let result = py.detach(|| {
            let tools = &mut *tools.lock().unwrap_or_else(PoisonError::into_inner);
            let backend = tools.backend;
            // Locked out here: a thread of the backend that waits may begin another call's work.
            let result = caught(|| backend.install(|| work(tools)));
            if result.is_err() {
                *tools = Tools::of(backend); // a panic has left them half written
            }
            result
        });
        result?.map_err(|error| of_library(py, error, &[]))
    }
}

impl<B: Host> OnDevice for DeviceNetwork<B>
where
    Tools<B>: Send,
{
    fn chain(&self) -> &Chain {
        &self.model.network
    }

    fn preprocess(&self) -> &Preprocess {
        &self.model.preprocess
    }

    fn classes(&self) -> &[String] {
        &self.model.classes.names
    }

    fn classify(
        &self,
        py: Python<'_>,
        canvas: &[u8],
        crops: TestCrops,
    ) -> PyResult<Vec<(String, f32)>> {
        let model = &*self.model;
        self.with(py, |Tools { backend, classifiers, .. }| {
            let kept = &mut classifiers[usize::from(crops == TestCrops::Ten)];
            if kept.is_none() {
                let (network, preprocess) = (&model.network, &model.preprocess);
                *kept = Some(Classifier::new(*backend, network, preprocess, crops, 1)?);
            }
            classify(*backend, model, kept.as_mut().expect("just made"), canvas)
        })
    }

    fn input(&self, py: Python<'_>, canvas: &[u8]) -> PyResult<Vec<f32>> {
        self.with(py, |tools| {
            let backend = tools.backend;
            downloaded(backend, &tools.look(&self.model, canvas)?.workspace.input)
        })
    }

    fn activations(
        &self,
        py: Python<'_>,
        canvas: &[u8],
        layers: &[usize],
    ) -> PyResult<Vec<Vec<f32>>> {
        self.with(py, |tools| {
            let backend = tools.backend;
            let workspace = &tools.look(&self.model, canvas)?.workspace;
            layers.iter().map(|&layer| downloaded(backend, workspace.output(layer))).collect()
        })
    }

    fn project(
        &self,
        py: Python<'_>,
        canvas: &[u8],
        layer: usize,
        map: usize,
        rule: Rule,
    ) -> PyResult<(SeedUnit, Vec<f32>)> {
        let width = self.model.network.layers[layer].output.w;
        self.with(py, |tools| {
            let projector = tools.look(&self.model, canvas)?;
            let unit = projector.peaks(layer)?[map].unit(map, width);
            let mut values = Vec::new();
            projector.project(layer, &[Seed { image: 0, unit }], rule, |_, projection| {
                values = projection.to_vec();
                Ok(())
            })?;
            Ok((unit, values))
        })
    }

    fn occlusion(
        &self,
        py: Python<'_>,
        image: StudyImage,
        settings: &occlusion::Settings,
    ) -> PyResult<String> {
        self.with(py, |tools| {
            let mut session = Session::new(tools.backend);
            let images = vec![(image, None)];
            let found = occlusion::run(&mut session, &self.model, settings, images)?;
            Ok(serde_json::to_string(&found).expect("plain data"))
        })
    }

    fn invariance(
        &self,
        py: Python<'_>,
        image: StudyImage,
        settings: &invariance::Settings,
    ) -> PyResult<String> {
        self.with(py, |tools| {
            let mut session = Session::new(tools.backend);
            let found = invariance::run(&mut session, &self.model, settings, &[image])?;
            Ok(serde_json::to_string(&found).expect("plain data"))
        })
    }

    fn top9(
        &self,
        py: Python<'_>,
        features: &Features,
        out: &PageFolder,
        listener: &Bound<'_, PyAny>,
    ) -> PyResult<PathBuf> {
        let backend = self.backend(py)?;
        // Those of the network were said when it was loaded.
        let flags = command::flags::<Features>();
        let flags: Vec<&str> =
            flags.iter().map(String::as_str).filter(|flag| !is_of_the_network(flag)).collect();
        watched(py, listener, true, &flags, |progress, _| {
            backend.install(|| command::top9(features, backend, &self.model, out, progress))
        })
    }
}

fn downloaded<B: Backend>(backend: &B, tensor: &Tensor<B>) -> zfnet::Result<Vec<f32>> {
    let mut values = vec![0.0; tensor.shape().len()];
    backend.download(&mut values, tensor)?;
    Ok(values)
}
