//! A power loss at any moment costs no more than what was not yet promised.
//!
//! What the program does to its folder is recorded (`record.rs`), and for every moment of it the states that the
//! disk may be in after a power loss are made (`disk.rs`): all that was not synced may be lost. From
//! each of them the same work is done again, and must come out as if nothing had happened.
//!
//! That is done in this process, which is as good as the program and faster; some states are shown to the
//! program as well. `POWER_LOSS=show` prints what was recorded.

mod disk;
mod record;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Write, stderr};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use xxhash_rust::xxh3::xxh3_64;

use self::disk::{State, losses, say};
use self::record::{Change, Event, Record};
use crate::common::program::{Place, Ran};
use zfnet::backend::cpu::CpuBackend;
use zfnet::data::Split;
use zfnet::data::images::ReadOptions;
use zfnet::data::pack::{self, Options, Plan, default_mean_side, pack};
use zfnet::data::set::{DataSet, KeyedImages};
use zfnet::data::shard::manifest::Form;
use zfnet::data::source::Source;
use zfnet::extract::{Dtype, Settings, extract};
use zfnet::import::ExternalConfig;
use zfnet::model::{Architecture, Canvas};
use zfnet::train::checkpoint::load_model;
use zfnet::train::{self, Job, train};

/// One state in so many is shown to the program.
const PROGRAM: usize = 60;
/// So many failures are enough.
const SHOWN: usize = 6;

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// All files in a folder.
fn files(root: &Path) -> Files {
    let mut found = Files::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                let name = entry.path().strip_prefix(root).unwrap().to_owned();
                found.insert(name, fs::read(entry.path()).unwrap());
            }
        }
    }
    found
}

fn same(found: &Files, wanted: &Files) -> Result<(), String> {
    if !found.keys().eq(wanted.keys()) {
        return Err(format!("expected {:?}, found {:?}", wanted.keys(), found.keys()));
    }
    match wanted.iter().find(|(name, bytes)| found[*name] != **bytes) {
        Some((name, _)) => Err(format!("{} is another", name.display())),
        None => Ok(()),
    }
}

/// The command, with what it prints out of the way.
fn quiet(place: &Place, arguments: &str) -> Command {
    let mut command = place.command(arguments);
    let output = |name: &str| File::create(place.path(name)).unwrap();
    command.stdout(output("stdout")).stderr(output("stderr"));
    command
}

/// Loses power at every moment, and tries what `again` makes of each state. It is given a folder in which the
/// state lies, the state's number, and what the program has promised by `promise` (the greatest,
/// where several moments leave one state). There must be `least` states.
fn try_all<P: Ord + Clone + Send + Sync + std::fmt::Debug>(
    what: &str,
    least: usize,
    record: &Record,
    promise: impl FnMut(&Event) -> P,
    again: impl Fn(&Path, usize, &P) -> Result<(), String> + Sync,
) {
    if std::env::var_os("POWER_LOSS").is_some() {
        for (at, event) in record.events.iter().enumerate() {
            println!("{at}: {}", say(event));
        }
    }
    let begun = Instant::now();
    let (losses, states) = losses(record, 1, promise);
    // In memory, if there is such a place: this is not about that disk.
    let scratch = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while failed.lock().unwrap().len() < SHOWN {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(State { tree, promise, how }) = states.get(number) else { return };
            let root = scratch.path().join(number.to_string());
            tree.write(&root);
            let done = catch_unwind(AssertUnwindSafe(|| again(&root, number, promise)));
            if let Err(reason) = done.unwrap_or_else(|_| Err("a panic".into())) {
                let text = format!("{reason}\n  {how}\n  promised: {promise:?}\n  {tree}");
                failed.lock().unwrap().push(text);
            }
            fs::remove_dir_all(&root).unwrap();
        }
    };
    thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
    let (events, all, seconds) = (record.events.len(), states.len(), begun.elapsed().as_secs_f32());
    println!("{what}: {events} events, {losses} losses, {all} states, {seconds:.1} s");
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{what}: wrong after a power loss:\n{}", failed.join("\n"));
    assert!(all >= least, "{all} states only");
}

/// Twelve steps: every state is gone on from to the end.
const TRAIN: &str = "train --arch tiny.toml --epochs 3 --save-steps 2 --keep 1 --max-bad 0.1 \
                     --threads 1 --workers 1 --resume";
/// The run's folder. That it lies in is new as well.
const RUN: &str = "runs/one";

/// The command, run in a place.
fn train_into(place: &Place, out: &str) -> String {
    // Bad images are listed by their whole path.
    format!("{TRAIN} --data {} --out {out}", place.path("data").display())
}

/// The same training, and evaluation, in this process.
struct Trainer {
    architecture: Architecture,
    data: DataSet,
    backend: CpuBackend,
}

impl Trainer {
    fn new(place: &Place) -> Self {
        let file = place.path("tiny.toml");
        let mut architecture = Architecture::find(file.to_str().unwrap()).unwrap();
        architecture.recipe.epochs = 3;
        let data = DataSet::open(&place.path("data")).unwrap();
        Trainer { architecture, data, backend: CpuBackend::new(Some(1)).unwrap() }
    }

    /// Trains to the end. Says at which step it began, and its notes.
    fn train(&self, run: &Path) -> Result<(u32, String), String> {
        let options = ReadOptions {
            canvas: self.architecture.input.resize,
            max_bad: 0.1,
            cache_bytes: 1 << 30,
            io: None,
        };
        let images = |split| Arc::new(self.data.images(split, options).unwrap());
        let job = Job {
            architecture: self.architecture.clone(),
            train: images(Split::Train),
            val: images(Split::Val),
            classes: self.data.classes(),
            out: run.into(),
            seed: 0,
            shuffle_window: None,
            accumulate: None,
            ranks: zfnet::ranks::Ranks::alone(),
            max_steps: None,
            resume: true,
            init: None,
            save_steps: Some(2),
            save_interval: Duration::from_secs(600),
            keep: 1,
            watch: true,
            workers: 1,
            stop: &AtomicUsize::new(0),
        };
        let mut begun = None;
        let outcome = train(&self.backend, &job, |event| {
            if let train::Event::Start { state, notes, .. } = event {
                begun = Some((state.step, notes.join("\n")));
            }
            Ok(())
        });
        match outcome {
            Ok(train::Outcome::Done) => Ok(begun.expect("it has begun")),
            Ok(train::Outcome::Stopped) => Err("stopped".into()),
            Err(error) => Err(format!("does not go on: {error:#}")),
        }
    }

    /// The hash of the model that evaluation finds in a run.
    fn model(&self, run: &Path) -> Result<u64, String> {
        load_model(&self.backend, run, &ExternalConfig::default())
            .and_then(|model| model.to_bytes(&self.backend))
            .map(|bytes| xxh3_64(&bytes))
            .map_err(|error| format!("{error:#}"))
    }
}

/// The number in the name of a checkpoint, or of what has this ending.
fn step_of(name: &str, ending: &str) -> Option<u32> {
    name.strip_prefix("step-")?.strip_suffix(ending)?.parse().ok()
}

/// The newest checkpoint that a folder has files of, among those that have this ending.
fn newest(root: &Path, ending: &str) -> Option<u32> {
    let files = files(root);
    let names = files.keys().flat_map(|path| path.iter().filter_map(|name| name.to_str()));
    names.filter_map(|name| step_of(name, ending)).max()
}

/// What a run is worth: checkpoints and what they leave, metrics, bad images.
fn results(run: &Path) -> Files {
    let mut files = files(run);
    files.retain(|name, _| {
        name.iter().count() > 1
            || name.ends_with("metrics.jsonl")
            || name.ends_with("quarantine.tsv")
    });
    files
}

/// Trains in four sessions, two of which are killed.
fn record_training(place: &Place) -> Record {
    fs::create_dir(place.path("disk")).unwrap();
    let mut record = Record::new(&place.path("disk"));
    let session = |flags: &str| quiet(place, &train_into(place, &format!("disk/{RUN} {flags}")));
    // When a checkpoint is written once more and its first version was put aside.
    let aside = |change: &Change| change.name == "step-4" && change.after.is_none();
    let status = record.run(&mut session(""), |event| event.changes().iter().any(aside));
    assert_eq!(status.code(), None, "killed");
    // Ended between two checkpoints, and continued.
    let status = record.run(&mut session("--max-steps 7"), |_| false);
    assert_eq!(status.code(), Some(0));
    // In the midst of the second checkpoint of this session.
    let written = Cell::new(0);
    let status = record.run(&mut session(""), |event| {
        let states = event.changes().iter().filter(|change| change.name == "state.json");
        written.set(written.get() + states.count());
        written.get() == 2
    });
    assert_eq!(status.code(), None, "killed");
    assert_eq!(record.run(&mut session(""), |_| false).code(), Some(0));
    record
}

fn is_skipped() -> bool {
    let skipped = !record::is_allowed();
    if skipped {
        // Not `eprintln!`, which nobody sees of a test that passes.
        writeln!(stderr(), "skipped: this process may not trace another (ptrace)").expect("stderr");
    }
    skipped
}

#[test]
fn training_goes_on() {
    if is_skipped() {
        return;
    }
    let place = Place::new();
    let class = place.images("data/train").remove(0);
    fs::write(class.join("bad.png"), "no picture").unwrap();
    place.run(&train_into(&place, "whole")).ok();
    let wanted = results(&place.path("whole"));
    assert!(wanted.contains_key(Path::new("quarantine.tsv")));
    let record = record_training(&place);
    same(&results(&place.path("disk").join(RUN)), &wanted).unwrap();

    // A checkpoint that has its name is promised when the program goes on to something else.
    let (mut named, mut promised) = (None, None);
    let promise = |event: &Event| {
        let mut set = event.changes().iter().filter(|change| change.after.is_some());
        let begins = set.clone().any(|change| step_of(&change.name, ".tmp").is_some());
        if begins || matches!(event, Event::Told | Event::Ended) {
            promised = named;
        }
        named = named.max(set.find_map(|change| step_of(&change.name, "")));
        promised
    };
    let saved: BTreeSet<u64> = record.contents().map(|content| content.hash).collect();
    let trainer = Trainer::new(&place);
    let best = trainer.model(&place.path("whole")).unwrap();
    try_all("training", 500, &record, promise, |root, number, promised| {
        let run = root.join(RUN);
        let shown = run.to_str().unwrap();
        match trainer.model(&run) {
            Ok(model) if saved.contains(&model) => {}
            Ok(_) => return Err("evaluates what was never saved".into()),
            Err(error)
                if promised.is_some()
                    && newest(root, "").max(newest(root, ".old")) >= *promised =>
            {
                return Err(format!("does not evaluate: {error}"));
            }
            Err(error) if error.contains(shown) => {}
            Err(error) => return Err(format!("does not say what cannot be evaluated: {error}")),
        }
        if number % PROGRAM == 0 {
            let ran = place.run(&format!("eval --checkpoint {shown} --data data"));
            if ran.code != Some(0) {
                ran.refused(&[shown]);
            }
        }
        let begun = newest(root, "").or(newest(root, ".old")).is_some();
        let (step, notes) = if number % PROGRAM == 1 {
            let Ran { stderr, .. } = place.run(&train_into(&place, shown)).ok();
            let step = stderr.split(", step ").nth(1).unwrap().split(' ').next().unwrap();
            (step.parse().unwrap(), stderr)
        } else {
            trainer.train(&run)?
        };
        if Some(step) < *promised {
            return Err(format!("went back to step {step}: {notes}"));
        }
        if notes.contains("no checkpoint yet") == begun {
            return Err(format!("went on at step {step}, but said: {notes}"));
        }
        if notes.contains("fell back to") {
            return Err(format!("a checkpoint has its name and is not whole: {notes}"));
        }
        same(&results(&run), &wanted)?;
        if trainer.model(&run)? != best {
            return Err("evaluates another checkpoint of the finished run".into());
        }
        Ok(())
    });
}

/// Several shards of each split.
const PACK: &str = "pack data disk/set --resize 20 --shard-size 32kB --threads 1";

/// Stands in a promise for a set that is finished.
const FINISHED: u64 = 1 << 63;

#[test]
fn packing_goes_on() {
    if is_skipped() {
        return;
    }
    let place = Place::new();
    let source = Source::open(&place.path("data"), &mut |_| Ok(())).unwrap();
    let form = Form::Resized { side: 20, quality: 90 };
    let mean_side = default_mean_side(form);
    let options = Options { form, shard_bytes: 32_000, shuffle: true, mean_side };
    let plan = Plan::new(&source, &options).unwrap();
    let shards: Vec<&str> = plan.shards.iter().map(|shard| shard.file.as_str()).collect();
    assert!(shards.len() >= 4, "{shards:?}");

    let disk = place.path("disk");
    fs::create_dir(&disk).unwrap();
    let set = disk.join("set");
    let all: u64 = (1 << shards.len()) - 1;
    let mut wanted = None;
    let mut try_record = |what: &str, least: usize, there: u64, prepare: &dyn Fn()| {
        prepare();
        let mut record = Record::new(&disk);
        assert_eq!(record.run(&mut quiet(&place, PACK), |_| false).code(), Some(0));
        let wanted = wanted.get_or_insert_with(|| files(&set));
        same(&files(&set), wanted).unwrap();
        // A shard is promised when the next is begun, and the set at the end.
        let (mut done, mut promised) = (0, there);
        let promise = |event: &Event| {
            for change in event.changes().iter().filter(|change| change.after.is_some()) {
                if change.name.ends_with(".tar.tmp") {
                    promised |= done;
                }
                let part = change.name.strip_suffix(".part");
                let part = part.and_then(|part| {
                    shards.iter().position(|shard| shard.strip_suffix(".tar") == Some(part))
                });
                done |= part.map_or(0, |place| 1 << place);
            }
            if matches!(event, Event::Ended) {
                promised = all | FINISHED;
            }
            promised
        };
        try_all(what, least, &record, promise, |root, number, promised| {
            let set = root.join("set");
            // What is written anew is another file.
            let inode = |shard: &str| fs::metadata(set.join(shard)).ok().map(|found| found.ino());
            let before: Vec<_> = shards.iter().map(|shard| inode(shard)).collect();
            if number % PROGRAM == 1 {
                let pack = PACK.replace("disk/set", set.to_str().unwrap());
                place.run(&pack).ok();
            } else {
                let stop = AtomicUsize::new(0);
                let outcome = pack(&source, &plan, &set, 0.01, &stop, &mut |_| ())
                    .map_err(|error| format!("does not go on: {error:#}"))?;
                if promised & FINISHED != 0 && outcome != pack::Outcome::Already(0) {
                    return Err(format!("a finished set was lost: {outcome:?}"));
                }
            }
            for (place, (shard, before)) in shards.iter().zip(before).enumerate() {
                if promised >> place & 1 == 1 && (before.is_none() || before != inode(shard)) {
                    return Err(format!("{shard} was lost"));
                }
            }
            same(&files(&set), wanted)
        });
    };
    try_record("packing", 100, 0, &|| ());
    // Damaged so that it is noticed: a shard is gone, an index is cut short.
    try_record("repairing", 20, all & !0b101, &|| {
        fs::remove_file(set.join(shards[0])).unwrap();
        let index = set.join(shards[2]).with_extension("idx");
        let bytes = fs::read(&index).unwrap();
        fs::write(index, &bytes[..bytes.len() / 2]).unwrap();
    });
    // The mean image takes all shards to make.
    try_record("without a mean", 100, 0, &|| {
        fs::remove_file(set.join("mean.safetensors")).unwrap()
    });
}

/// Several batches, the second of them with a bad image: rows that are moved at the end.
const EXTRACT: &str =
    "extract run --data data --layers fc3,pool1 --batch-size 5 --max-bad 0.1 --threads 1 -o";

#[test]
fn extracting_goes_on() {
    if is_skipped() {
        return;
    }
    let place = Place::new();
    place.run("train --data data --arch tiny.toml --out run --max-steps 2").ok();
    for (bad, file) in [(false, "f.safetensors"), (true, "f.safetensors"), (true, "a.npy")] {
        let disk = place.path(&format!("disk-{bad}-{file}"));
        fs::create_dir(&disk).unwrap();
        if bad {
            let class = place.images("data/val").remove(3);
            fs::write(class.join("bad.png"), "no picture").unwrap();
        }
        let layers = if file == "a.npy" { "pool1" } else { "fc3,pool1" };
        let command = |out: &Path| {
            EXTRACT.replace("fc3,pool1", layers)
                + &format!(" {}", out.join("new").join(file).display())
        };
        place.run(&command(&place.path("whole"))).ok();
        let wanted = files(&place.path("whole"));
        fs::remove_dir_all(place.path("whole")).unwrap();
        // Killed when it has said for the first time how far it is, and gone on with.
        let mut record = Record::new(&disk);
        let state = format!("{file}.partial.json");
        let kept = |event: &Event| event.changes().iter().any(|change| change.name == state);
        assert_eq!(record.run(&mut quiet(&place, &command(&disk)), kept).code(), None, "killed");
        let status = record.run(&mut quiet(&place, &command(&disk)), |_| false);
        assert_eq!(status.code(), Some(0));
        same(&files(&disk), &wanted).unwrap();

        let backend = CpuBackend::new(Some(1)).unwrap();
        let model = load_model(&backend, &place.path("run"), &ExternalConfig::default()).unwrap();
        let options =
            ReadOptions { canvas: Canvas::square(20), max_bad: 0.1, cache_bytes: 0, io: None };
        let settings = Settings {
            layers: layers.split(',').map(|name| model.network.layer(name).unwrap()).collect(),
            dtype: Dtype::F32,
            batch: 5,
            overwrite: false,
            facts: ["checkpoint", "data", "split"]
                .iter()
                .zip(["run", "data", "val"])
                .map(|(name, value)| ((*name).to_owned(), value.to_owned()))
                .collect(),
        };
        // The file is promised once it has its name and the program goes on.
        let (mut named, mut promised) = (false, false);
        let promise = |event: &Event| {
            promised |= named && matches!(event, Event::Ended);
            named |= event.changes().iter().any(|change| change.name == file);
            promised
        };
        try_all(&format!("extracting {file}"), 20, &record, promise, |root, number, promised| {
            let out = root.join("new").join(file);
            if *promised {
                return same(&files(root), &wanted);
            }
            if out.exists() {
                // It has its name, and is whole; what it was made of may be left beside it.
                let name = Path::new("new").join(file);
                let same = fs::read(&out).unwrap() == wanted[&name];
                return if same { Ok(()) } else { Err("has its name and is not whole".into()) };
            }
            if number % PROGRAM == 1 {
                place.run(&command(root)).ok();
            } else {
                let data = KeyedImages::open(&place.path("data"), Some(Split::Val), options)
                    .map_err(|error| format!("{error:#}"))?;
                let stop = AtomicUsize::new(0);
                extract(&backend, &model, &data, &settings, &out, 1, &stop, |_, _| ())
                    .map_err(|error| format!("does not go on: {error:#}"))?;
            }
            same(&files(root), &wanted)
        });
    }
}
