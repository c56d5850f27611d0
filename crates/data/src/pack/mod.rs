//! Packing: from a source of images to a set of shards, the same bytes from the same source.
//!
//! A set is a folder with
//! * `train-000000.tar`, ...: images in WebDataset's manner, `CLASS/KEY.jpg` (or `.png`, by content)
//!   and then `CLASS/KEY.cls`, the index of the class in decimal. `--raw` writes `.raw` files
//!   instead: centre squares as raw pixels, u8 `[side, side, 3]`, each from a multiple of 4096 on;
//! * `train-000000.idx`, ...: where each image lies ([`super::shard::index`]);
//! * the same for `val`;
//! * `mean.safetensors`: the mean of the training squares, exactly as training would compute it;
//! * `rejected.tsv`: split, name and fault of the files that cannot be read as images, if there are any;
//! * `manifest.json`, written last ([`super::shard::manifest`]).
//!
//! Which image goes into which shard is planned first ([`Plan`]), from the listing and the options
//! alone. Each shard is then written aside, synced and renamed (`shard.rs`), and a `.part` file beside
//! it holds what the end needs of it: so a packer that is killed goes on with the next shard. When
//! all shards are there, `finish` numbers the images that are in, and writes indices, mean and
//! manifest. Meanwhile `plan.json` says whose shards these are.

mod finish;
mod image;
mod plan;
mod repair;
mod shard;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) use plan::key_matches;
pub use plan::{Options, Plan, ShardPlan, default_mean_side};

use super::Split;
use super::folder::{outside_of_images, outside_of_shards, resolve};
use super::images::too_many;
use super::shard::manifest::{MANIFEST, Manifest};
use super::source::Source;
use zfnet_core::disk::{create_folder, lock, sync_folder, write_durable};
use zfnet_core::human_bytes;
use zfnet_core::{Error, Result};

/// Names the plan whose shards a folder holds, until the manifest does.
pub(super) const PLAN: &str = "plan.json";
const MEAN: &str = "mean.safetensors";
const REJECTED: &str = "rejected.tsv";
const LOCK: &str = "lock";
/// Ends the names of files that are not whole yet, as [`write_durable`] has it.
const ASIDE: &str = ".tmp";

/// How packing ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The set is there.
    Done,
    /// It was there already; so many of its shards were made anew.
    Already(usize),
    /// It was asked to stop; the same call goes on.
    Stopped,
}

/// How far it is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Images that are in the shards, or rejected.
    pub images: usize,
    /// Of so many.
    pub of_images: usize,
    /// Bytes of the shards so far.
    pub bytes: u64,
    /// Files rejected so far.
    pub rejected: usize,
}

/// Makes the set that `plan` describes in the folder `out`, or goes on with it. More than the share
/// `max_bad` of a split's files that cannot be read as images is an error. `stop` becoming other than zero
/// ends it soon; `observe` is told how far it is.
///
/// # Errors
/// If `out` holds anything else, cannot be written or is full, or too many files are bad. What
/// is there stays, for the same call to go on with.
pub fn pack(
    source: &Source,
    plan: &Plan,
    out: &Path,
    max_bad: f64,
    stop: &AtomicUsize,
    observe: &mut dyn FnMut(Progress),
) -> Result<Outcome> {
    let packer = Packer { source, plan, out, max_bad };
    create_folder(out)?;
    if packer.finished()?.is_none() {
        packer.unfinished()?; // or the lock would be left in a folder that is none of ours
    }
    let _lock = lock(out, "another packing")?;
    if let Some(manifest) = packer.finished()? {
        if packer.has_mean(&manifest)? {
            let outcome = packer.repair(&manifest, stop, observe)?;
            packer.tidy()?;
            return Ok(outcome);
        }
        // The mean image takes all shards to make.
        packer.write_aside(PLAN, packer.claim_text().as_bytes())?;
        packer.remove(MANIFEST)?;
    }
    packer.unfinished()?.iter().try_for_each(|name| packer.remove(name))?;

    let of_images = source.train.len() + source.val.len();
    let mut progress = Progress { images: 0, of_images, bytes: 0, rejected: 0 };
    let mut rejected = [0; 2];
    let mut missing = Vec::new();
    for shard in &plan.shards {
        if let Some(part) = packer.read_part(shard) {
            progress.images += shard.items.len();
            progress.bytes += part.shard_bytes;
            progress.rejected += part.rejected.len();
            rejected[shard.split as usize] += part.rejected.len();
        } else {
            missing.push(shard);
        }
    }
    packer.check_space(&missing)?;
    packer.write_aside(PLAN, packer.claim_text().as_bytes())?;
    for shard in missing {
        if !packer.write_shard(shard, None, stop, &mut rejected, &mut progress, observe)? {
            return Ok(Outcome::Stopped);
        }
    }
    if stop.load(Ordering::Relaxed) != 0 {
        return Ok(Outcome::Stopped);
    }
    packer.finish()?;
    packer.tidy()?;
    Ok(Outcome::Done)
}

/// Whether a set made from `source` may be put at `out`.
///
/// # Errors
/// If it would lie in the source's folder, or among other images.
pub fn check_place(source: &Path, out: &Path) -> Result<()> {
    let train_and_val = [Split::Train, Split::Val].map(|split| source.join(split.name()));
    let inside = [source, &train_and_val[0], &train_and_val[1]]
        .iter()
        .any(|folder| folder.is_dir() && resolve(out).starts_with(resolve(folder)));
    if inside {
        let reason =
            format!("lies in {}; choose a folder outside of it for the set", source.display());
        return Err(Error::file(out, reason));
    }
    let place = resolve(out);
    outside_of_images(out, &place)?;
    // In a set of its own it is gone on with.
    place.parent().map_or(Ok(()), |parent| outside_of_shards(out, parent))
}

/// What the parts of packing share.
struct Packer<'a> {
    source: &'a Source,
    plan: &'a Plan,
    out: &'a Path,
    max_bad: f64,
}

impl Packer<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.out.join(name)
    }

    /// Writes a file that is there whole or not at all, even after a power cut.
    fn write_aside(&self, name: &str, bytes: &[u8]) -> Result<()> {
        write_durable(&self.path(name), bytes)
    }

    /// Gives a file that has been written aside and synced its name.
    fn commit(&self, name: &str) -> Result<()> {
        let (aside, path) = (self.path(&format!("{name}{ASIDE}")), self.path(name));
        fs::rename(&aside, &path).map_err(Error::io("rename", &aside))?;
        sync_folder(self.out)
    }

    /// The manifest, if the set has been finished.
    fn finished(&self) -> Result<Option<Manifest>> {
        if !self.path(MANIFEST).exists() {
            return Ok(None);
        }
        let manifest = Manifest::read(self.out)?;
        if manifest.plan == self.plan.hash {
            return Ok(Some(manifest));
        }
        Err(self.holds(format!("a finished set ({MANIFEST}), of another source or other options")))
    }

    /// What `plan.json` says.
    fn claim_text(&self) -> String {
        format!("{{\"packing\": \"zfnet shards\", \"plan\": \"{}\"}}\n", self.plan.hash)
    }

    /// Makes sure that the folder holds nothing but parts of this set. Returns the files that were
    /// not written to their end.
    fn unfinished(&self) -> Result<Vec<String>> {
        let own = match fs::read_to_string(self.path(PLAN)) {
            Ok(text) if text == self.claim_text() => true,
            Ok(_) => {
                let what = "the beginning of one, of another source or other options";
                return Err(self.holds(format!("{what} ({PLAN})")));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(Error::io("read", self.path(PLAN))(error)),
        };
        let mut names = vec![PLAN.to_owned(), LOCK.to_owned()];
        if own {
            names.extend([MEAN, REJECTED, MANIFEST].map(str::to_owned));
            names.extend(
                self.plan.shards.iter().flat_map(|shard| {
                    [shard.file.clone(), shard.beside("idx"), shard.beside("part")]
                }),
            );
        }
        names.sort_unstable();
        let mut unfinished = Vec::new();
        for entry in fs::read_dir(self.out).map_err(Error::io("list", self.out))? {
            let name = entry.map_err(Error::io("list", self.out))?.file_name();
            let name = name.to_string_lossy().into_owned();
            let whole = name.strip_suffix(ASIDE).unwrap_or(&name).to_owned();
            if names.binary_search(&whole).is_err() {
                return Err(self.holds(format!("{name}, which is no part of it")));
            }
            if whole != name {
                unfinished.push(name);
            }
        }
        Ok(unfinished)
    }

    fn holds(&self, what: String) -> Error {
        let reason = format!(
            "holds another set: expected an empty folder or the beginning of this set, found {what}; \
             choose another folder or empty this one"
        );
        Error::file(self.out, reason)
    }

    /// Removes a file if it is there.
    fn remove(&self, name: &str) -> Result<()> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Error::io("remove", path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Removes what only packing needs. Another packer that waits for the lock meanwhile finds the
    /// manifest.
    fn tidy(&self) -> Result<()> {
        for shard in &self.plan.shards {
            let [index, part] = ["idx", "part"].map(|extension| shard.beside(extension));
            self.remove(&part)?;
            for name in [&shard.file, &index, &part] {
                self.remove(&format!("{name}{ASIDE}"))?;
            }
        }
        [PLAN, LOCK].into_iter().try_for_each(|name| self.remove(name))
    }

    /// Whether the disk has space for the shards that are still to be written.
    fn check_space(&self, missing: &[&ShardPlan]) -> Result<()> {
        // One that is there already is written beside itself, and then takes its place.
        let there = |shard: &ShardPlan| fs::metadata(self.path(&shard.file)).map_or(0, |f| f.len());
        let more = |shard: &&ShardPlan| shard.bytes.saturating_sub(there(shard));
        let beside = missing.iter().map(|s| there(s)).max().unwrap_or(0);
        let shards: u64 = missing.iter().map(more).sum::<u64>() + beside;
        let images: usize = missing.iter().map(|shard| shard.items.len()).sum();
        let wanted = shards + self.plan.beside_bytes(missing.len(), images);
        match free_bytes(self.out) {
            Some(free) if free < wanted => {
                let [wanted, free] = [wanted, free].map(|bytes| human_bytes(bytes as usize));
                let about = if self.plan.exact { "" } else { "about " };
                let reason = format!(
                    "the set needs {about}{wanted} more, and its disk has {free} free; free some or \
                     choose another disk"
                );
                Err(Error::file(self.out, reason))
            }
            _ => Ok(()),
        }
    }

    /// Whether so many bad files of a split are too many; `last` names one.
    fn check_bad(&self, split: Split, rejected: usize, last: &dyn Fn() -> String) -> Result<()> {
        let total = self.source.items(split).len();
        if !too_many(rejected, total, self.max_bad) {
            return Ok(());
        }
        Err(Error::TooManyBad {
            files: format!("{} files", split.name()),
            bad: rejected,
            of: total,
            allowed: self.max_bad,
            last: last(),
        })
    }
}

/// Free bytes of the disk of a folder, if the system tells.
fn free_bytes(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let disk = rustix::fs::statvfs(folder).ok()?;
        Some(disk.f_bavail.saturating_mul(disk.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}
