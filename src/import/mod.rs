//! Networks of other programs: what is in their files, as a network of ours with its weights.
//!
//! [`zfnet_formats`] reads files; here their chains become descriptions, their tensors find their layers, and
//! preprocessing and classes are looked for where they are usually kept.

mod chain;
mod classes;
mod matching;
mod preprocessing;

pub use zfnet_formats::Kind;

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use zfnet_formats::sidecar::{self, Sidecar};
use zfnet_formats::{Chain, Preprocessing, Tensors, caffe, kind, onnx, pytorch, safetensors};

use crate::backend::{Backend, Param};
use crate::data::classes::Classes;
use crate::export::MEAN_KEY;
use crate::model::weights::{KEY, Metadata, NamedTensors, is_model, read_params};
use crate::model::{Architecture, Kind as LayerKind, Layer, LayerSpec, Model, Network, Preprocess};
use crate::{Error, Result};
use zfnet_core::text;

/// What a file of another program does not say itself.
#[derive(Clone, Debug, Default)]
pub struct ExternalConfig {
    /// The network: a name or a TOML file.
    pub arch: Option<String>,
    /// The preprocessing, by name.
    pub preprocess: Option<String>,
    /// A file with the classes' names.
    pub classes: Option<PathBuf>,
    /// Rows and columns of the input, where a file leaves them open.
    pub input_size: Option<[usize; 2]>,
    /// Rows and columns that images are resized to before crops are cut, where that is to be other than a file says.
    pub resize: Option<[usize; 2]>,
    /// The node of an ONNX or Caffe network that is the last to be read.
    pub until: Option<String>,
    /// A prototxt that describes a caffemodel's network.
    pub prototxt: Option<PathBuf>,
    /// A mean image, as Caffe keeps it (`mean.binaryproto`).
    pub mean: Option<PathBuf>,
}

/// A network as it was read from another program's file.
#[derive(Debug)]
pub struct Imported {
    /// Its description.
    pub network: Network,
    /// Weights and biases under our names, in PyTorch's layout.
    pub tensors: NamedTensors,
    /// What happens to an image first.
    pub preprocess: Preprocess,
    /// Its classes.
    pub classes: Classes,
    /// What kind of file it was; none if it was in memory.
    pub kind: Option<Kind>,
    /// Which layer of the file each layer with weights is.
    pub table: Vec<Row>,
    /// What was left out, folded or assumed, a sentence each.
    pub notes: Vec<String>,
}

/// A layer with weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its name in the file.
    pub from: String,
    /// Its weights' shape there.
    pub shape: Vec<usize>,
    /// Its name here.
    pub layer: String,
}

/// Reads a network from another program's file.
///
/// # Errors
/// If it is of no kind that is read, damaged or no chain of layers that we have, or if its network or preprocessing is
/// neither in the file, nor in one beside it, nor in `config`.
pub fn read(path: &Path, config: &ExternalConfig) -> Result<Imported> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let kind = kind::kind(path)?;
    let bytes = |path: &Path| fs::read(path).map_err(Error::io("read", path));
    let until = config.until.as_deref();
    let read = || match kind {
        Kind::Safetensors if is_model(&bytes(path)?) => {
            Err(Error::file(path, "is a checkpoint of zfnet already; it can be used as it is"))
        }
        Kind::Safetensors => of_tensors(kind, safetensors::read(path)?, folder, config),
        Kind::PytorchZip | Kind::PytorchStream | Kind::PytorchTar => {
            of_tensors(kind, pytorch::read(path)?, folder, config)
        }
        Kind::Onnx => {
            let bytes = bytes(path)?;
            let chain = onnx::read(&bytes, Some(folder), until)?;
            let asked = config.preprocess.is_some() || config.resize.is_some();
            match Described::find(&bytes)?.filter(|_| !asked && config.classes.is_none()) {
                Some(ours) => ours.take(chain, path, config),
                None => of_chain(kind, chain, path, folder, config),
            }
        }
        Kind::Caffemodel => {
            let prototxt = config.prototxt.as_deref().map(text::read).transpose()?;
            let mut chain = caffe::read(&bytes(path)?, prototxt.as_deref(), until)?;
            if let Some(mean) = &config.mean {
                let set = caffe::set_mean(&mut chain, &bytes(mean)?);
                set.map_err(|error| error.in_file(mean))?;
            }
            of_chain(kind, chain, path, folder, config)
        }
        other => Err(kind::unexpected(path, other)),
    };
    read().map_err(|error: Error| error.in_file(path))
}

/// Takes a network whose layers another program has in memory. It does not say how images are prepared unless `config` or
/// the chain does; without a size of its own the chain has that of `config`.
///
/// # Errors
/// If a layer is none that we have, layers do not fit each other, or preprocessing or size are missing.
pub fn from_chain(mut chain: Chain, config: &ExternalConfig) -> Result<Imported> {
    let (notes, classes) = (chain.notes.clone(), std::mem::take(&mut chain.classes));
    let preprocessing = chain.preprocessing.take();
    let (architecture, tensors, table) =
        chain::describe(chain, Path::new(""), config.input_size, false)?;
    let network = Network::new(architecture)?;
    Found { network, tensors, table, notes, preprocessing, classes }.complete(None, None, config)
}

/// A network whose file has tensors alone.
fn of_tensors(
    kind: Kind,
    mut file: Tensors,
    folder: &Path,
    config: &ExternalConfig,
) -> Result<Imported> {
    let mut notes = std::mem::take(&mut file.notes);
    let modules = matching::modules(file, &mut notes)?;
    let architecture = match &config.arch {
        Some(arch) => matching::with_classes(Architecture::find(arch)?, &modules),
        None => {
            let found = matching::recognise(&modules)?;
            notes.push(format!("the network is {}, by its shapes", found.name));
            found
        }
    };
    let network = Network::new(architecture)?;
    let (tensors, table) = matching::matched(&network, modules, &mut notes)?;
    let found = Found { network, tensors, table, notes, preprocessing: None, classes: Vec::new() };
    found.complete(Some(kind), sidecar::read_sidecars(folder), config)
}

/// A network whose file has its layers too.
fn of_chain(
    kind: Kind,
    mut chain: Chain,
    path: &Path,
    folder: &Path,
    config: &ExternalConfig,
) -> Result<Imported> {
    let (notes, classes) = (chain.notes.clone(), std::mem::take(&mut chain.classes));
    let preprocessing = chain.preprocessing.take();
    let beside = sidecar::read_sidecars(folder);
    let said = [&preprocessing, beside.as_ref().map_or(&None, |beside| &beside.preprocessing)];
    let crop = said.into_iter().flatten().find_map(|known| known.crop);
    let size = config.input_size.or(crop.filter(|_| chain.input.size.is_none()));
    if kind == Kind::Onnx && preprocessing.is_some() && config.preprocess.is_some() {
        return Err(Error::Network(
            "its graph prepares pixels itself, and other preprocessing cannot take the place of that".into(),
        ));
    }
    let (architecture, tensors, table) =
        chain::describe(chain, path, size, config.until.is_some() && config.classes.is_none())?;
    let network = Network::new(architecture)?;
    let found = Found { network, tensors, table, notes, preprocessing, classes };
    found.complete(Some(kind), beside, config)
}

/// What a file says of a network.
struct Found {
    network: Network,
    tensors: NamedTensors,
    table: Vec<Row>,
    notes: Vec<String>,
    preprocessing: Option<Preprocessing>,
    classes: Vec<String>,
}

impl Found {
    /// With what files beside it and the user say.
    fn complete(
        self,
        kind: Option<Kind>,
        beside: Option<Sidecar>,
        config: &ExternalConfig,
    ) -> Result<Imported> {
        let Found { network, tensors, table, mut notes, mut preprocessing, mut classes } = self;
        let mut reason = None;
        if let Some(beside) = beside {
            preprocessing = match (preprocessing, beside.preprocessing) {
                // The file says what is computed, and what lies beside it how images are resized.
                (Some(known), Some(beside)) => Some(Preprocessing {
                    resize: known.resize.or(beside.resize),
                    crop: known.crop.or(beside.crop),
                    interpolation: known.interpolation.or(beside.interpolation),
                    antialias: known.antialias.or(beside.antialias),
                    ..known
                }),
                (known, beside) => known.or(beside),
            };
            classes = if classes.is_empty() { beside.classes } else { classes };
            reason = (!beside.notes.is_empty()).then(|| beside.notes.join("; "));
            notes.extend(beside.notes);
        }
        let preprocess = preprocessing::resolve(&network, config, preprocessing, &mut notes)
            .map_err(|error| match error {
                Error::UnknownPreprocessing(None) => Error::UnknownPreprocessing(reason),
                error => error,
            })?;
        let classes =
            classes::resolve(network.classes(), config.classes.as_deref(), classes, &mut notes)?;
        Ok(Imported { network, tensors, preprocess, classes, kind, table, notes })
    }
}

impl Imported {
    /// Says in the log what was made of a file.
    pub fn log(&self, path: &Path) {
        for note in &self.notes {
            tracing::info!("{}: {note}", path.display());
        }
        for Row { from, shape, layer } in self.table.iter().filter(|row| row.from != row.layer) {
            tracing::info!("{}: {from} {shape:?} is {layer}", path.display());
        }
    }

    /// The network on a backend.
    ///
    /// # Errors
    /// If a tensor has another shape than its layer, or a value that is not finite, or the backend is out of memory.
    pub fn into_model<B: Backend>(self, backend: &B) -> Result<Model<B>> {
        let Imported { network, tensors, preprocess, classes, .. } = self;
        let mut tensors: HashMap<_, _> =
            tensors.into_iter().map(|(name, shape, values)| (name, (shape, values))).collect();
        let tensor = |name: &str, expected: &[usize]| match tensors.remove(name) {
            Some((shape, values)) if shape == expected => Ok(Cow::Owned(values)),
            Some((shape, _)) => Err(Error::Network(format!(
                "{name}: expected shape {expected:?}, found {shape:?}: the file is for images of another size, or \
                 damaged"
            ))),
            None => Err(Error::Network(format!("expected a tensor {name}, found none"))),
        };
        let params = read_params(backend, &network, tensor, Param::weights)?;
        Ok(Model { network, params, preprocess, classes })
    }
}

/// The layers of a graph, with dropout where the network had it that the graph was made of, if all other layers are still
/// those.
fn with_dropout(described: &Network, graph: Network) -> Vec<LayerSpec> {
    let is_dropout = |layer: &&Layer| matches!(layer.kind, LayerKind::Dropout(_));
    let names = described.layers.iter().filter(|layer| !is_dropout(layer)).map(|layer| &layer.name);
    let Network { architecture: Architecture { layers, .. }, .. } = graph;
    if !names.eq(graph.layers.iter().map(|layer| &layer.name)) {
        return layers;
    }
    let mut layers = layers.into_iter();
    let dropped = described.layers.iter().zip(&described.architecture.layers);
    let merged = dropped.map(|(layer, spec)| match is_dropout(&layer) {
        true => Some(spec.clone()),
        false => layers.next(),
    });
    merged.map(|layer| layer.expect("as many layers as names")).collect()
}

/// What an ONNX file of our own says beside its graph.
struct Described {
    network: Network,
    preprocess: Preprocess,
    classes: Classes,
}

impl Described {
    fn find(bytes: &[u8]) -> Result<Option<Self>> {
        let metadata: HashMap<String, String> = onnx::metadata(bytes)?.into_iter().collect();
        let (Some(about), Some(mean)) = (metadata.get(KEY), metadata.get(MEAN_KEY)) else {
            return Ok(None);
        };
        let mean = serde_json::from_str(mean).map_err(|error| {
            Error::Network(format!(
                "metadata {MEAN_KEY}: expected a list of numbers, found {error}"
            ))
        })?;
        let (network, preprocess, classes) = Metadata::parse(about)?.parts(mean)?;
        Ok(Some(Described { network, preprocess, classes }))
    }

    /// The network of the graph, prepared for as it was, and with its classes where there are as many. What the graph
    /// computes is the graph's alone: it may have been changed since.
    fn take(self, chain: Chain, path: &Path, config: &ExternalConfig) -> Result<Imported> {
        let Described { network, preprocess, classes } = self;
        let mut notes = chain.notes.clone();
        let (mut architecture, tensors, table) =
            chain::describe(chain, path, Some(preprocess.size), config.until.is_some())?;
        architecture.layers = with_dropout(&network, Network::new(architecture.clone())?);
        architecture.input = network.architecture.input;
        architecture.recipe = network.architecture.recipe.clone();
        architecture.description = network.architecture.description.clone();
        let network = Network::new(architecture)?;
        let classes = if classes.len() == network.classes() {
            classes
        } else {
            Classes::unknown(network.classes())
        };
        notes.push("the preprocessing is as zfnet has written it into the file".into());
        Ok(Imported { network, tensors, preprocess, classes, kind: Some(Kind::Onnx), table, notes })
    }
}
