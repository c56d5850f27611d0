//! Checkpoints: `RUN/step-N`, a directory that is there whole or not at all.
//!
//! Written as `step-N.tmp`, every file and the directory synced, `state.json` last with size and
//! checksum of the others, then renamed.
//!
//! Which checkpoint is the newest, their names say; which is the best, the newest one's state. `RUN/last` and
//! `RUN/best` are relative symbolic links for people and other programs: copies of a run lose them or have folders
//! in their place, and some file systems have none. Nothing here reads them, but where no `step-N` is left.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Once;

use serde::de::Deserializer;
use serde::{Deserialize, Serialize};
use serde_json::error::Category;
use xxhash_rust::xxh3::xxh3_64;

use super::schedule::Schedule;
use super::watcher::WatchState;
use crate::backend::{Backend, BackendId, Param, Precision};
use crate::disk::{sync_folder, write_synced};
use crate::import::{self, ExternalConfig};
use crate::model::weights::{
    architecture_in, is_model, named_values, read_params, serialize, values_of_shape,
};
use crate::model::{Architecture, Model, Network, Params};
use crate::ranks::Ranks;
use crate::{Error, Result};
use zfnet_core::Recipe;
use zfnet_core::tensors::deserialize;
use zfnet_formats::Kind;
use zfnet_formats::kind::kind;

/// The model's file in a checkpoint.
pub(crate) const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
/// Links to the newest and the best checkpoint.
const LAST: &str = "last";
const BEST: &str = "best";
/// Times that a model is read, at most, where a training replaces it meanwhile.
const READS: usize = 20;
/// Version 1 had the backend as a line of text.
const VERSION: u32 = 2;

/// Where training stands: everything beside weights and momentum.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Version of this file.
    pub version: u32,
    /// Updates of the weights so far.
    pub step: u32,
    /// The epoch in hand, from 0.
    pub epoch: u32,
    /// Batches of it that are done.
    pub batch: usize,
    /// Sum of the losses of its samples so far.
    pub loss_sum: f64,
    /// Number of its samples so far.
    pub samples: usize,
    /// The learning rate's schedule.
    pub schedule: Schedule,
    /// Lowest validation error, and its step.
    pub best: Option<(f64, u32)>,
    /// Seed of order, crops, dropout and initialisation.
    pub seed: u64,
    /// Parts of a batch.
    pub accumulate: usize,
    /// Whether the parts' gradients are added along a binary tree; earlier versions added them one after the other.
    #[serde(default)]
    pub tree: bool,
    /// Neighbouring images of shards that are shuffled at a time; all, for `None`.
    #[serde(default)]
    pub shuffle_window: Option<usize>,
    /// The recipe that it is trained by.
    pub recipe: Recipe,
    /// What ran it: a bit-identical continuation needs the same.
    #[serde(deserialize_with = "backend_id")]
    pub backend: BackendId,
    /// The program that wrote this.
    pub program: String,
    /// The training images: as many, under the same names, must be there to go on.
    pub data: String,
    /// The validation images likewise; earlier versions did not say. Others may be gone on with.
    #[serde(default)]
    pub val: Option<String>,
    /// What the run has been watched for so far.
    #[serde(default)]
    pub watch: WatchState,
    /// Size and xxh3 of each other file.
    pub files: BTreeMap<String, FileMark>,
}

/// What is read first of a state, which another version may have written.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// Reads which backend it was, also from the line of text of version 1.
/// One that this version does not know keeps nobody from using the weights.
fn backend_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BackendId, D::Error> {
    let written = serde_json::Value::deserialize(deserializer)?;
    let known = match &written {
        serde_json::Value::String(text) => backend_of_text(text),
        data => BackendId::deserialize(data).ok(),
    };
    let text = || written.as_str().map_or_else(|| written.to_string(), str::to_owned);
    Ok(known.unwrap_or_else(|| BackendId::Other { text: text() }))
}

/// What version 1 meant by "CPU, 2 threads, AVX-512, exact" or
/// "CUDA, NVIDIA H200 (sm_90) bf16 cublaslt 130100". In bf16 it did not say `exact`.
fn backend_of_text(text: &str) -> Option<BackendId> {
    if let Some(cpu) = text.strip_prefix("CPU, ") {
        let mut parts = cpu.split(", ").skip(1); // threads
        let instructions = parts.next()?.into();
        let kind = parts.next();
        let precision = if kind == Some("bf16") { Precision::Bf16 } else { Precision::F32 };
        return Some(BackendId::Cpu { instructions, precision, exact: kind == Some("exact") });
    }
    let (name, rest) = text.strip_prefix("CUDA, ")?.rsplit_once(" (sm_")?;
    let (capability, rest) = rest.split_once(") ")?;
    let (precision, gemm) = rest.split_once(' ')?;
    let known = [Precision::F32, Precision::Tf32, Precision::Bf16];
    let capability: i32 = capability.parse().ok()?;
    Some(BackendId::Cuda {
        name: name.into(),
        capability: (capability / 10, capability % 10),
        precision: known.into_iter().find(|known| known.name() == precision)?,
        cublaslt: gemm.strip_prefix("cublaslt ").and_then(|version| version.parse().ok()),
        convolutions: String::new(),
    })
}

/// What a file must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMark {
    /// Its length.
    pub bytes: u64,
    /// Its xxh3 (64 bits), in hexadecimal.
    pub xxh3: String,
}

impl FileMark {
    fn of(bytes: &[u8]) -> Self {
        FileMark { bytes: bytes.len() as u64, xxh3: format!("{:016x}", xxh3_64(bytes)) }
    }
}

/// Writes `run/step-N`, and points `last` and `best` where its state says.
///
/// # Errors
/// If the disk is full, the folder cannot be written or a weight is not finite; what was there
/// before is kept.
pub(super) fn save<B: Backend>(
    backend: &B,
    run: &Path,
    model: &Model<B>,
    momentum: &Params<B>,
    state: &mut State,
) -> Result<()> {
    let name = format!("step-{}", state.step);
    let folder = run.join(&name);
    let aside = run.join(format!("{name}.tmp"));
    if aside.exists() {
        fs::remove_dir_all(&aside).map_err(Error::io("remove", &aside))?;
    }
    fs::create_dir(&aside).map_err(Error::io("create", &aside))?;
    state.files.clear();
    let mut write = |file: &str, bytes: Vec<u8>| {
        state.files.insert(file.into(), FileMark::of(&bytes));
        write_synced(&aside.join(file), &bytes)
    };
    write(MODEL, model.to_bytes(backend)?)?;
    let momentum = named_values(backend, &model.network, momentum)?;
    // What a weight moves by is not finite if the weight is not, nor if it soon will not be.
    if let Some((name, ..)) = momentum.iter().find(|(.., v)| v.iter().any(|v| !v.is_finite())) {
        return Err(Error::Diverged {
            what: format!("the momentum of {name} is no longer finite"),
            step: state.step,
            learning_rate: state.schedule.rate(&state.recipe),
        });
    }
    write(OPTIMIZER, serialize(&momentum, None)?)?;
    let json = serde_json::to_string_pretty(state).expect("plain data");
    write_synced(&aside.join(STATE), json.as_bytes())?;
    sync_folder(&aside)?;
    if folder.exists() {
        // The same step once more, now with its validation: a moment without `step-N`, in which
        // `step-N.old` stands in for it (see `recover`).
        let old = run.join(format!("{name}.old"));
        if old.exists() {
            fs::remove_dir_all(&old).map_err(Error::io("remove", &old))?;
        }
        fs::rename(&folder, &old).map_err(Error::io("rename", &folder))?;
    }
    fs::rename(&aside, &folder).map_err(Error::io("rename", &aside))?;
    sync_folder(run)?;
    relink(run, state);
    Ok(())
}

/// Points `last` and `best` where a run stands, if the file system has links. No command needs them.
pub(super) fn relink(run: &Path, state: &State) {
    static SAID: Once = Once::new();
    let steps = [(LAST, Some(state.step)), (BEST, state.best.map(|(_, step)| step))];
    for (name, step) in steps {
        let Some(step) = step else { continue };
        let target = format!("step-{step}");
        if !run.join(&target).is_dir() {
            continue; // not copied with the run
        }
        if let Err(error) = link(run, name, &target) {
            SAID.call_once(|| {
                tracing::warn!("{error:#}; no command needs this link: go on without it");
            });
        }
    }
}

/// Removes all checkpoints but the newest `keep`, the one that the run stands at and the best, and whatever an
/// interrupted run has left.
///
/// # Errors
/// If the folder cannot be read or a checkpoint not removed.
pub(super) fn prune(run: &Path, keep: usize, state: &State) -> Result<()> {
    let kept = [Some(state.step), state.best.map(|(_, step)| step)];
    remove_leftovers(run)?;
    let steps = steps(run, "")?;
    for step in &steps[..steps.len().saturating_sub(keep)] {
        if !kept.contains(&Some(*step)) {
            let path = run.join(format!("step-{step}"));
            fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
        }
    }
    Ok(())
}

/// Removes what an interrupted run has left: its beginnings, and what was replaced. After [`recover`].
///
/// # Errors
/// If the folder cannot be read or something not removed.
pub(super) fn remove_leftovers(run: &Path) -> Result<()> {
    for ending in [".tmp", ".old"] {
        for step in steps(run, ending)? {
            let path = run.join(format!("step-{step}{ending}"));
            fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
        }
    }
    Ok(())
}

/// Gives checkpoints back their names that a kill has caught while they were replaced.
///
/// # Errors
/// If the folder cannot be written.
pub(super) fn recover(run: &Path) -> Result<()> {
    for step in steps(run, ".old")? {
        let (old, folder) =
            (run.join(format!("step-{step}.old")), run.join(format!("step-{step}")));
        if !folder.exists() {
            fs::rename(&old, &folder).map_err(Error::io("rename", &old))?;
        }
    }
    Ok(())
}

/// The checkpoints of a run that may be whole, the newest first. A folder `last` or `best` is one where its
/// `step-N` is not there: somebody has copied no more of the run.
fn candidates(run: &Path) -> Result<Vec<PathBuf>> {
    let steps = steps(run, "")?;
    let copies = [LAST, BEST].into_iter().filter_map(|name| {
        let copy = Some(run.join(name)).filter(|copy| is_there(copy))?;
        let step = read_state(&copy).ok()?.step;
        (!steps.contains(&step)).then_some((step, copy))
    });
    let own = steps.iter().map(|step| (*step, run.join(format!("step-{step}"))));
    // Caught while it was replaced: see `recover`.
    let old = self::steps(run, ".old")?.into_iter().filter(|step| !steps.contains(step));
    let old = old.map(|step| (step, run.join(format!("step-{step}.old"))));
    let mut all: Vec<_> = own.chain(old).chain(copies).collect();
    all.sort_by_key(|(step, _)| Reverse(*step)); // stable: `last` before `best`
    Ok(all.into_iter().map(|(_, folder)| folder).collect())
}

/// Whether a run has checkpoints, whole or not.
///
/// # Errors
/// If the folder cannot be read.
pub(super) fn exists(run: &Path) -> Result<bool> {
    Ok(!candidates(run)?.is_empty())
}

/// The states of a run's checkpoints, the newest first. Damaged ones are left out.
///
/// # Errors
/// If one cannot be read for another reason.
pub fn states(run: &Path) -> Result<Vec<(State, PathBuf)>> {
    let state = |folder: PathBuf| match read_state(&folder) {
        Ok(state) => Some(Ok((state, folder))),
        Err(Error::DamagedCheckpoint { .. }) => None,
        Err(error) => Some(Err(error)),
    };
    candidates(run)?.into_iter().filter_map(state).collect()
}

/// A checkpoint that was read.
pub struct Newest<T> {
    /// Its folder.
    pub folder: PathBuf,
    /// What was made of it.
    pub read: T,
    /// What was wrong with the newest of those that were passed over.
    pub damage: Option<Error>,
}

/// The newest checkpoint of a run that `read` can read; `None` if there are no checkpoints. Damaged ones are
/// passed over, and nothing else is: what is in order but cannot be read (of a newer version, say) ends the
/// search, so that nobody goes on from an older one by mistake.
///
/// # Errors
/// If one cannot be read for another reason than damage, or all are damaged.
pub fn newest<T>(run: &Path, read: impl Fn(&Path) -> Result<T>) -> Result<Option<Newest<T>>> {
    let mut damage = None;
    let candidates = candidates(run)?;
    let count = candidates.len();
    for folder in candidates {
        match read(&folder) {
            Ok(read) => return Ok(Some(Newest { folder, read, damage })),
            Err(error @ Error::DamagedCheckpoint { .. }) => {
                damage.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    match (damage, count) {
        (Some(Error::DamagedCheckpoint { path, reason }), 2..) => Err(Error::DamagedCheckpoint {
            path,
            reason: format!("{reason}; none of the {count} checkpoints is whole"),
        }),
        (damage, _) => damage.map_or(Ok(None), Err),
    }
}

/// The numbers of a run's folders `step-N` with this ending, in order; none if there is no run.
fn steps(run: &Path, ending: &str) -> Result<Vec<u32>> {
    let number = |name: &str| name.strip_prefix("step-")?.strip_suffix(ending)?.parse::<u32>().ok();
    let mut steps = Vec::new();
    match fs::read_dir(run) {
        Ok(entries) => {
            for entry in entries {
                let name = entry.map_err(Error::io("read", run))?.file_name();
                steps.extend(name.to_str().and_then(number));
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io("read", run)(error)),
    }
    steps.sort_unstable();
    Ok(steps)
}

/// A checkpoint to go on from.
pub(super) struct Resumed<B: Backend> {
    /// Network, weights, preprocessing, classes.
    pub model: Model<B>,
    /// Momentum.
    pub momentum: Params<B>,
    /// Where training stands.
    pub state: State,
}

/// Reads a checkpoint whole, checking every file.
///
/// # Errors
/// If a file is missing, damaged or does not belong: its name, what was expected, what was found.
pub(super) fn load<B: Backend>(backend: &B, folder: &Path) -> Result<Resumed<B>> {
    let state = read_state(folder)?;
    let model = read_model(backend, folder, &state)?;
    let bytes = verified(folder, OPTIMIZER, &state)?;
    let momentum = momentum_of(backend, &model.network, &bytes);
    let momentum = momentum.map_err(|error| error.in_file(&folder.join(OPTIMIZER)))?;
    Ok(Resumed { model, momentum, state })
}

fn momentum_of<B: Backend>(backend: &B, network: &Network, bytes: &[u8]) -> Result<Params<B>> {
    let tensors = deserialize(bytes)?;
    let tensor = |name: &str, shape: &[usize]| values_of_shape(&tensors, name, shape);
    read_params(backend, network, tensor, Param::zeros)
}

/// Gives all ranks what rank 0 begins with, or nothing where it does not begin.
///
/// # Errors
/// If a rank is lost or has failed, or a backend operation fails.
pub(super) fn share<B: Backend>(
    backend: &B,
    ranks: &Ranks,
    begun: Option<Resumed<B>>,
) -> Result<Option<Resumed<B>>> {
    if ranks.count() == 1 {
        return Ok(begun);
    }
    let files = begun.as_ref().map(|Resumed { model, momentum, state }| {
        let momentum = named_values(backend, &model.network, momentum)?;
        let state = serde_json::to_vec(state).expect("plain data");
        Ok([model.to_bytes(backend)?, serialize(&momentum, None)?, state])
    });
    let files = files.transpose()?.unwrap_or_default();
    let [model, momentum, state] = files
        .map(|file| ranks.broadcast(ranks.is_first().then_some(file)))
        .into_iter()
        .collect::<Result<Vec<_>>>()?
        .try_into()
        .expect("three of them");
    if ranks.is_first() || state.is_empty() {
        return Ok(begun);
    }
    let model = Model::from_bytes(backend, &model)?;
    let momentum = momentum_of(backend, &model.network, &momentum)?;
    let state = serde_json::from_slice(&state)
        .map_err(|error| Error::Ranks(format!("the state of rank 0: {error}")))?;
    Ok(Some(Resumed { model, momentum, state }))
}

fn read_model<B: Backend>(backend: &B, folder: &Path, state: &State) -> Result<Model<B>> {
    let bytes = verified(folder, MODEL, state)?;
    Model::from_bytes(backend, &bytes).map_err(|error| error.in_file(&folder.join(MODEL)))
}

/// The network of a checkpoint.
///
/// # Errors
/// If the checkpoint is damaged.
pub fn architecture_of(folder: &Path) -> Result<Architecture> {
    let bytes = verified(folder, MODEL, &read_state(folder)?)?;
    architecture_in(&bytes).map_err(|error| error.in_file(&folder.join(MODEL)))
}

/// Reads a model: of a checkpoint (`RUN/step-N`), of a run (`RUN` or `RUN/best` is its best checkpoint, `RUN/last` the
/// newest one that is whole, whether or not there are links of these names), of a safetensors file that we have
/// written, or of another program's file, of which `external` says what it does not say itself ([`import::read`]).
///
/// # Errors
/// If there is none, it is damaged, or another program's file needs saying what it is.
pub fn load_model<B: Backend>(
    backend: &B,
    path: &Path,
    external: &ExternalConfig,
) -> Result<Model<B>> {
    for _ in 1..READS {
        let before = states_at(path);
        match load_model_once(backend, path, external) {
            // A training that goes on has replaced or removed the checkpoint while it was read.
            Err(Error::DamagedCheckpoint { .. } | Error::Io { .. })
                if states_at(path) != before => {}
            result => return result,
        }
    }
    load_model_once(backend, path, external)
}

/// What tells whether checkpoints that a path may speak of have changed: their states' texts.
fn states_at(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let beside = path.parent().unwrap_or(Path::new(""));
    let folders = [path, beside].into_iter().flat_map(|run| candidates(run).unwrap_or_default());
    let folders = folders.chain([path.to_owned(), beside.to_owned()]);
    let state = |folder: PathBuf| Some((fs::read(folder.join(STATE)).ok()?, folder));
    folders.filter_map(state).map(|(state, folder)| (folder, state)).collect()
}

fn load_model_once<B: Backend>(
    backend: &B,
    path: &Path,
    external: &ExternalConfig,
) -> Result<Model<B>> {
    let read = |folder: &Path| read_model(backend, folder, &read_state(folder)?);
    let is_run = |folder: &Path| Ok(folder.is_dir() && exists(folder)?);
    let is_named = |name: &str| path.file_name().is_some_and(|of_path| of_path == name);
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let pointer = (is_named(LAST) || is_named(BEST)) && is_run(parent)?;
    let run = if pointer { parent } else { path };
    if pointer || is_run(run)? {
        let best = if pointer && is_named(LAST) { None } else { best(run)? };
        if let Some(best) = best {
            return read(&best);
        }
        let Some(Newest { read, damage, folder }) = newest(run, read)? else {
            return Err(Error::file(run, "its checkpoints have been removed while it was read"));
        };
        if let Some(error) = damage {
            tracing::warn!("fell back to {}: {error:#}", folder.display());
        }
        return Ok(read);
    }
    fs::metadata(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            let expected = "expected a run, a checkpoint (RUN/step-N) or a network's file";
            Error::file(path, format!("no such file or folder: {expected}"))
        }
        _ => Error::io("read", path)(error),
    })?;
    if path.is_file() {
        if is_named(MODEL) && parent.join(STATE).is_file() {
            return read(parent); // it has a checksum
        }
        if kind(path)? == Kind::Safetensors {
            let bytes = fs::read(path).map_err(Error::io("read", path))?;
            if is_model(&bytes) {
                return Model::from_bytes(backend, &bytes).map_err(|error| error.in_file(path));
            }
        }
        let imported = import::read(path, external)?;
        imported.log(path);
        return imported.into_model(backend).map_err(|error| error.in_file(path));
    }
    let state = fs::metadata(path.join(STATE)).map_err(|error| error.kind());
    if state.is_err_and(|kind| kind == ErrorKind::NotFound) {
        let reason = format!(
            "expected a run or a checkpoint, found neither folders step-N nor {STATE} in it"
        );
        return Err(Error::file(path, reason));
    }
    read(path)
}

/// The best checkpoint of a run, by the newest whole state; `None` if no epoch has ended, or if it is not there.
fn best(run: &Path) -> Result<Option<PathBuf>> {
    let Some(Newest { read: state, damage, folder }) = newest(run, read_state)? else {
        return Ok(None);
    };
    if let Some(error) = damage {
        tracing::warn!("which is the best is taken from {}: {error:#}", folder.display());
    }
    let Some((_, step)) = state.best else { return Ok(None) };
    let there = folder_of(run, step);
    if there.is_none() {
        tracing::warn!("{}: its best checkpoint, step-{step}, is not there", run.display());
    }
    Ok(there)
}

/// Where a run's checkpoint after so many updates lies; `None` if it does not.
pub(crate) fn folder_of(run: &Path, step: u32) -> Option<PathBuf> {
    let folder = run.join(format!("step-{step}"));
    let old = run.join(format!("step-{step}.old"));
    let copy = |name| run.join(name);
    let is_of_step =
        |copy: &PathBuf| is_there(copy) && read_state(copy).is_ok_and(|copied| copied.step == step);
    let mut there = [folder, old].into_iter().filter(|f| fs::symlink_metadata(f).is_ok());
    there.next().or_else(|| [BEST, LAST].map(copy).into_iter().find(is_of_step))
}

/// Reads and checks `state.json`.
///
/// # Errors
/// If it is missing, damaged or of another version.
pub fn read_state(folder: &Path) -> Result<State> {
    let path = folder.join(STATE);
    let damaged = |reason: String| Error::DamagedCheckpoint { path: path.clone(), reason };
    let text = fs::read_to_string(&path).map_err(|error| match error.kind() {
        ErrorKind::InvalidData => damaged(format!("a damaged checkpoint: {error}")),
        ErrorKind::NotFound if is_there(folder) => damaged("a damaged checkpoint: no file".into()),
        _ => Error::Io { action: "read", path: path.clone(), error },
    })?;
    // What is JSON to its end was written so: by another version, perhaps.
    let unreadable = |error: serde_json::Error| match error.classify() {
        Category::Data => Error::file(
            &path,
            format!(
                "expected a state as this version of the program writes it, found {error}: use the \
                 version that wrote it"
            ),
        ),
        _ => damaged(format!("a damaged checkpoint: {error}")),
    };
    let Version { version } = serde_json::from_str(&text).map_err(unreadable)?;
    if !(1..=VERSION).contains(&version) {
        let error = Error::Version { what: "a state", expected: VERSION, found: version };
        return Err(error.in_file(&path));
    }
    // What is saved next is of this version.
    let state = State { version: VERSION, ..serde_json::from_str(&text).map_err(unreadable)? };
    state.recipe.check().map_err(|error| Error::file(&path, error.to_string()))?;
    Ok(state)
}

impl State {
    /// At the start of training.
    pub(super) fn new(
        recipe: Recipe,
        seed: u64,
        accumulate: usize,
        backend: BackendId,
        data: String,
    ) -> Self {
        State {
            version: VERSION,
            step: 0,
            epoch: 0,
            batch: 0,
            loss_sum: 0.0,
            samples: 0,
            schedule: Schedule::new(),
            best: None,
            seed,
            accumulate,
            tree: accumulate.is_power_of_two(),
            shuffle_window: None,
            recipe,
            backend,
            program: concat!("zfnet ", env!("CARGO_PKG_VERSION")).into(),
            data,
            val: None,
            watch: WatchState::default(),
            files: BTreeMap::new(),
        }
    }
}

/// Whether a checkpoint's folder is there, so that a file that is not has been lost. What a link points at may
/// be there again tomorrow.
fn is_there(folder: &Path) -> bool {
    fs::symlink_metadata(folder).is_ok_and(|found| found.is_dir())
}

/// The bytes of a checkpoint's file, whose length and checksum are what the state says.
fn verified(folder: &Path, file: &str, state: &State) -> Result<Vec<u8>> {
    let path = folder.join(file);
    let expected = state.files.get(file).ok_or_else(|| {
        let listed: Vec<&str> = state.files.keys().map(String::as_str).collect();
        let reason = format!("expected {file} among its files, found {}", listed.join(", "));
        Error::file(folder.join(STATE), reason)
    })?;
    let damaged = |found: String| Error::DamagedCheckpoint {
        path: path.clone(),
        reason: format!(
            "damaged: expected {} bytes with xxh3 {}, found {found}; use another checkpoint of the run",
            expected.bytes, expected.xxh3
        ),
    };
    let bytes = fs::read(&path).map_err(|error| match error.kind() {
        ErrorKind::NotFound if is_there(folder) => damaged("no file".into()),
        _ => Error::Io { action: "read", path: path.clone(), error },
    })?;
    let found = FileMark::of(&bytes);
    if found != *expected {
        return Err(damaged(format!("{} bytes with xxh3 {}", found.bytes, found.xxh3)));
    }
    Ok(bytes)
}

/// Points the relative symbolic link `run/name` at `target`, replacing what it pointed at.
fn link(run: &Path, name: &str, target: &str) -> Result<()> {
    let aside = run.join(format!("{name}.tmp"));
    let path = run.join(name);
    if fs::read_link(&path).is_ok_and(|present| present == Path::new(target)) {
        return Ok(());
    }
    if is_there(&path) {
        remove_copy(run, &path)?;
    }
    let _ = fs::remove_file(&aside); // left by a run that was killed, or not there
    #[cfg(unix)]
    let linked = std::os::unix::fs::symlink(target, &aside);
    #[cfg(windows)]
    let linked = std::os::windows::fs::symlink_dir(target, &aside);
    linked.map_err(Error::io("create", &aside))?;
    fs::rename(&aside, &path).map_err(Error::io("replace", &path))
}

/// Removes what a program that follows links has put in the place of one: a second copy of a checkpoint that is there.
fn remove_copy(run: &Path, copy: &Path) -> Result<()> {
    let read = |folder: &Path| fs::read(folder.join(STATE)).ok();
    let state = read_state(copy).ok();
    let own = state.as_ref().map(|state| run.join(format!("step-{}", state.step)));
    let is_copy = own.and_then(|own| read(&own)).is_some_and(|own| Some(own) == read(copy));
    let is_own = |name: &std::ffi::OsStr| {
        let name = name.to_string_lossy();
        name == STATE || state.as_ref().is_some_and(|state| state.files.contains_key(&*name))
    };
    let mut inside = fs::read_dir(copy).map_err(Error::io("read", copy))?;
    if !is_copy || !inside.all(|entry| entry.is_ok_and(|entry| is_own(&entry.file_name()))) {
        return Err(Error::file(copy, "is a folder, where a link should be"));
    }
    fs::remove_dir_all(copy).map_err(Error::io("remove", copy))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the first version wrote it.
    const VERSION_1: &str = r#"{
  "version": 1, "step": 20, "epoch": 2, "batch": 0, "loss_sum": 0.0, "samples": 0,
  "schedule": { "drops": 0, "best": 0.7875, "waited": 0 },
  "best": [0.7875, 20], "seed": 3, "accumulate": 1, "shuffle_window": null,
  "recipe": {
    "init": "he", "init_std": 0.01, "learning_rate": 0.01, "momentum": 0.9,
    "weight_decay": 0.0005, "bias_decay": true, "schedule": "step", "steps": [13, 15],
    "factor": 0.1, "patience": 5, "epochs": 2, "batch_size": 32, "dropout": 0.3,
    "crops": "random", "rms_limit": 0.1
  },
  "backend": "CPU, 2 threads, AVX-512", "program": "zfnet 0.1.0",
  "data": "300 files, xxh3 d3227a4cb4c988eb",
  "files": { "model.safetensors": { "bytes": 8701916, "xxh3": "f3165de63185d57f" } }
}"#;

    #[test]
    fn states_of_earlier_versions_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let read = |text: &str| {
            fs::write(folder.path().join(STATE), text).unwrap();
            read_state(folder.path())
        };
        let cpu = |instructions: &str, precision, exact| BackendId::Cpu {
            instructions: instructions.into(),
            precision,
            exact,
        };
        let h200 = |cublaslt| BackendId::Cuda {
            name: "NVIDIA H200, (of two)".into(),
            capability: (9, 0),
            precision: Precision::Tf32,
            cublaslt,
            convolutions: String::new(),
        };
        for (text, backend) in [
            ("CPU, 2 threads, AVX-512", cpu("AVX-512", Precision::F32, false)),
            ("CPU, 16 threads, AVX2, exact", cpu("AVX2", Precision::F32, true)),
            ("CPU, 1 threads, AVX-512, bf16", cpu("AVX-512", Precision::Bf16, false)),
            ("CUDA, NVIDIA H200, (of two) (sm_90) tf32 cublaslt 130100", h200(Some(130_100))),
            ("CUDA, NVIDIA H200, (of two) (sm_90) tf32 own gemm", h200(None)),
        ] {
            let state = read(&VERSION_1.replace("CPU, 2 threads, AVX-512", text)).unwrap();
            assert_eq!((state.step, &state.backend), (20, &backend));
            assert_eq!(read(&serde_json::to_string(&state).unwrap()).unwrap(), state);
        }
        let refused = |from, to, word: &str| {
            let error = format!("{:#}", read(&VERSION_1.replace(from, to)).unwrap_err());
            assert!(error.contains(word), "{word} is not in {error}");
        };
        let other = |text: &str| BackendId::Other { text: text.into() };
        for (written, text) in
            [(r#""TPU, v5""#, "TPU, v5"), (r#"{"device":"tpu"}"#, r#"{"device":"tpu"}"#)]
        {
            let state = read(&VERSION_1.replace("\"CPU, 2 threads, AVX-512\"", written)).unwrap();
            assert_eq!(state.backend, other(text));
            assert_eq!(read(&serde_json::to_string(&state).unwrap()).unwrap(), state);
        }
        refused(
            "\"version\": 1",
            "\"version\": 3",
            "expected a state of version 2 at most, found 3",
        );
    }

    /// A plateau's end is told by comparing errors, so what is read must be what was written.
    #[test]
    fn states_are_read_back_to_the_last_bit() {
        let mut sum = 0.0;
        for k in 1..4000u32 {
            sum += f64::from(k).sqrt().ln();
            let recipe = Recipe { learning_rate: 0.1 / k as f32, ..Recipe::default() };
            let backend = BackendId::Cpu {
                instructions: "AVX2".into(),
                precision: Precision::F32,
                exact: true,
            };
            let mut state = State::new(recipe, u64::MAX - 1, 2, backend, "data".into());
            state.loss_sum = sum;
            state.best = Some((f64::from(k) / 3925.0, k));
            state.schedule.best = Some(1.0 / f64::from(k));
            let json = serde_json::to_string(&state).unwrap();
            assert_eq!(serde_json::from_str::<State>(&json).unwrap(), state);
        }
    }
}
