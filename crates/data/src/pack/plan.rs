//! Which image goes into which shard, and how many bytes that makes: a function of the listing and
//! the options alone, so that every run of a packer plans the same.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use rayon::prelude::*;
use xxhash_rust::xxh3::Xxh3;

use super::image::Maker;
use crate::Split;
use crate::decode::{DECODER, RESIZER};
use crate::order::permutation;
use crate::shard::manifest::{Form, PAGE};
use crate::source::{Item, Source};
use zfnet_core::{Error, Result};

/// Tar counts in blocks.
const BLOCK: u64 = 512;
/// Two empty blocks end a tar.
pub(super) const TAR_END: u64 = 2 * BLOCK;
/// Images looked at to estimate the size of resized ones.
const SAMPLES: usize = 64;
/// Seed of the order in the shards.
const ORDER_SEED: u64 = 0x7a66_6e65_7420_3031;
/// The largest shards. With more, an index's names could pass the 4 GiB that it can count.
const MAX_SHARD_BYTES: u64 = 16 << 30;

/// How a set is to be made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// How images lie in it.
    pub form: Form,
    /// A shard is ended before it becomes longer than this, if it has an image. Resized images are
    /// counted at their estimated length, so that shards come out about as long.
    pub shard_bytes: u64,
    /// Whether images lie in a shuffled order, always the same, so that a shard read from its front
    /// gives mixed classes; or by class and name.
    pub shuffle: bool,
    /// Rows and columns of the mean image.
    pub mean_side: u32,
}

/// The usual side of the mean image: that of the images, or the 256 that ImageNet is trained at.
pub fn default_mean_side(form: Form) -> u32 {
    match form {
        Form::Kept => 256,
        Form::Resized { side, .. } | Form::Raw { side } => side,
    }
}

/// What will be written where.
pub struct Plan {
    /// How the set is made.
    pub options: Options,
    /// Its shards.
    pub shards: Vec<ShardPlan>,
    /// Whether the lengths of the shards are known exactly (if no image is rejected), or about.
    pub exact: bool,
    /// Hash of the listing and the options.
    pub hash: String,
    /// The keys of images, by split, that cannot have the one which their name gives.
    other_keys: [HashMap<u32, String>; 2],
}

/// A shard to be written.
pub struct ShardPlan {
    /// Which images it holds.
    pub split: Split,
    /// Its file.
    pub file: String,
    /// Places of its images in the source's list, in the order in which they lie in the shard.
    pub items: Vec<u32>,
    /// Its length.
    pub bytes: u64,
}

impl ShardPlan {
    /// A file of the same name with another ending.
    pub(super) fn beside(&self, extension: &str) -> String {
        Path::new(&self.file).with_extension(extension).to_string_lossy().into_owned()
    }
}

impl Plan {
    /// Plans a set.
    ///
    /// # Errors
    /// If the options are out of bounds, names cannot be used, or (when images are resized) none of
    /// those looked at can be read.
    pub fn new(source: &Source, options: &Options) -> Result<Self> {
        check_options(options)?;
        check_names(source)?;
        let other_keys = [other_keys(&source.train), other_keys(&source.val)];
        let mut plan = Plan {
            options: *options,
            shards: Vec::new(),
            exact: !matches!(options.form, Form::Resized { .. }),
            hash: String::new(),
            other_keys,
        };
        let estimate = match options.form {
            Form::Resized { .. } => plan.look_at_some(source)?,
            Form::Kept | Form::Raw { .. } => 0,
        };
        for split in [Split::Train, Split::Val] {
            plan.cut(split, source.items(split), estimate);
        }
        plan.hash = hash(source, options, estimate);
        Ok(plan)
    }

    /// Length of all shards.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes).sum()
    }

    /// What the files beside so many shards take, at the least: indices, parts and mean.
    pub(super) fn beside_bytes(&self, shards: usize, images: usize) -> u64 {
        let sums = 8 * 3 * u64::from(self.options.mean_side).pow(2);
        (shards as u64 + 1) * sums + 128 * images as u64
    }

    /// The name of an image in tar shards, without its ending. Tools that read WebDataset's shards
    /// end a key at the first dot of the file name, so it has none; no two of a split are the same.
    pub(super) fn key(&self, split: Split, item: u32, name: &str) -> String {
        self.other_keys[split as usize].get(&item).cloned().unwrap_or_else(|| plain_key(name))
    }

    /// Cuts a split into shards.
    fn cut(&mut self, split: Split, items: &[Item], estimate: u64) {
        let order = if self.options.shuffle {
            permutation(ORDER_SEED, split as u32, items.len())
        } else {
            (0..items.len() as u32).collect()
        };
        let (end, extension) = match self.options.form {
            Form::Kept | Form::Resized { .. } => (TAR_END, "tar"),
            Form::Raw { .. } => (0, "raw"),
        };
        let mut number = 0;
        let mut shard: Option<ShardPlan> = None;
        for item in order {
            let bytes = match self.options.form {
                Form::Kept => self.tar_bytes(split, items, item, items[item as usize].bytes),
                Form::Resized { .. } => estimate,
                Form::Raw { side } => raw_stride(side),
            };
            if let Some(full) = shard.take_if(|s| s.bytes + bytes > self.options.shard_bytes) {
                self.shards.push(full);
            }
            let shard = shard.get_or_insert_with(|| {
                let file = format!("{}-{number:06}.{extension}", split.name());
                number += 1;
                ShardPlan { split, file, items: Vec::new(), bytes: end }
            });
            shard.items.push(item);
            shard.bytes += bytes;
        }
        self.shards.extend(shard);
    }

    /// What an image of so many bytes, and its class, take in a tar.
    fn tar_bytes(&self, split: Split, items: &[Item], item: u32, bytes: u64) -> u64 {
        let key = self.key(split, item, &items[item as usize].name);
        let header = header_bytes(&format!("{key}.jpg")); // .png and .cls are as long
        2 * header + bytes.next_multiple_of(BLOCK) + BLOCK
    }

    /// What a resized image takes, from evenly spaced ones.
    fn look_at_some(&self, source: &Source) -> Result<u64> {
        let [train, val] = [Split::Train, Split::Val].map(|split| source.items(split).len());
        let looks = SAMPLES.min(train + val);
        let lengths: Vec<Result<u64, String>> = (0..looks)
            .into_par_iter()
            .map_init(Maker::default, |maker, look| {
                let place = look * (train + val) / looks;
                let (split, place) = match place.checked_sub(train) {
                    None => (Split::Train, place),
                    Some(place) => (Split::Val, place),
                };
                let items = source.items(split);
                let made = maker.make(source, &items[place], self.options.form)?;
                Ok(made.map(|(stored, _)| {
                    self.tar_bytes(split, items, place as u32, stored.bytes.len() as u64)
                }))
            })
            .collect::<Result<_>>()?;
        let (mut total, mut good, mut fault) = (0, 0, String::from("there is none"));
        for length in lengths {
            match length {
                Ok(length) => (total, good) = (total + length, good + 1),
                Err(reason) => fault = reason,
            }
        }
        if good == 0 {
            let reason = format!("none of {looks} images looked at can be used; the last: {fault}");
            return Err(Error::Data(reason));
        }
        Ok(u64::div_ceil(total, good))
    }

    /// What an image may take in memory while its shard is written, about.
    pub(super) fn weight(&self, item: &Item) -> u64 {
        let made = match self.options.form {
            Form::Kept => 0,
            Form::Resized { side, .. } => u64::from(side).pow(2),
            Form::Raw { side } => raw_stride(side),
        };
        item.bytes.max(made)
    }
}

/// Distance between the beginnings of two images in a raw shard.
pub(super) fn raw_stride(side: u32) -> u64 {
    (3 * u64::from(side).pow(2)).next_multiple_of(PAGE)
}

/// What a member's header takes: a block, and where the name does not fit in, two or more.
fn header_bytes(name: &str) -> u64 {
    match tar::Header::new_ustar().set_path(name) {
        Ok(()) => BLOCK,
        Err(_) => 2 * BLOCK + (name.len() as u64 + 1).next_multiple_of(BLOCK),
    }
}

/// `CLASS/FILE.EXT` as a key: without the ending, other dots replaced.
fn plain_key(name: &str) -> String {
    let (class, file) = name.split_once('/').unwrap_or(("", name));
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
    let stem = if stem.is_empty() { "_".into() } else { stem.replace('.', "_") };
    format!("{class}/{stem}")
}

/// Whether `key` is one that an image called `name` can have.
pub fn key_matches(key: &str, name: &str) -> bool {
    let rest = key.strip_prefix(&plain_key(name));
    rest.is_some_and(|rest| {
        let digits = rest.strip_prefix('-').unwrap_or("x");
        rest.is_empty() || digits.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// Where names of the same class differ in nothing but dots and endings, the later ones get a number.
fn other_keys(items: &[Item]) -> HashMap<u32, String> {
    let mut others = HashMap::new();
    let mut place = 0;
    for class in items.chunk_by(|a, b| a.class == b.class) {
        let mut taken = HashSet::new();
        for item in class {
            let plain = plain_key(&item.name);
            let mut key = plain.clone();
            for number in 2.. {
                if taken.insert(key.clone()) {
                    break;
                }
                key = format!("{plain}-{number}");
            }
            if key != plain {
                others.insert(place, key);
            }
            place += 1;
        }
    }
    others
}

fn check_options(options: &Options) -> Result<()> {
    let refuse = |what: String| Err(Error::Data(what));
    if !(PAGE..=MAX_SHARD_BYTES).contains(&options.shard_bytes) {
        return refuse(format!(
            "expected shards of {PAGE} to {MAX_SHARD_BYTES} bytes, found {}",
            options.shard_bytes
        ));
    }
    let (side, most) = match options.form {
        Form::Kept => (options.mean_side, 4096),
        // At 8:1 and with more, what is written could not be read again: see decode::MAX_PIXELS.
        Form::Resized { side, .. } => (side, 2048),
        Form::Raw { side } => (side, 4096),
    };
    if !(1..=most).contains(&side) || !(1..=4096).contains(&options.mean_side) {
        return refuse(format!("expected a side of 1 to {most} pixels, found {side}"));
    }
    match options.form {
        Form::Resized { quality, .. } if !(1..=100).contains(&quality) => {
            refuse(format!("expected a quality of 1 to 100, found {quality}"))
        }
        _ => Ok(()),
    }
}

/// Every image must be `CLASS/FILE` of a class of its own: what names become must stay in the set.
fn check_names(source: &Source) -> Result<()> {
    let mut folders = HashSet::new();
    for class in &source.classes {
        let plain = !["", ".", ".."].contains(&class.as_str()) && !class.contains(['/', '\0']);
        if !plain || !folders.insert(class) {
            return Err(Error::Data(format!(
                "expected classes with different names that can be folders, found {class:?}"
            )));
        }
    }
    let mut empty = vec![!source.train.is_empty(); source.classes.len()];
    for item in &source.train {
        if let Some(class) = empty.get_mut(item.class as usize) {
            *class = false;
        }
    }
    if let Some(class) = empty.iter().position(|empty| *empty) {
        let class = &source.classes[class];
        return Err(Error::Data(format!(
            "class {class} has no training image; it cannot be learnt"
        )));
    }
    for item in source.train.iter().chain(&source.val) {
        let class = source.classes.get(item.class as usize);
        let file = class.and_then(|class| item.name.strip_prefix(class)?.strip_prefix('/'));
        if file.is_none_or(|file| file.is_empty() || file.contains(['/', '\0'])) {
            return Err(Error::Data(format!(
                "expected an image called CLASS/FILE of one of the classes, found {:?}",
                item.name
            )));
        }
    }
    Ok(())
}

/// All that decides the bytes of a set.
fn hash(source: &Source, options: &Options, estimate: u64) -> String {
    let mut hash = Xxh3::new();
    let mut text = |text: &str| {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    };
    for part in ["zfnet shards 1", DECODER, RESIZER, source.kind] {
        text(part);
    }
    text(&format!("{options:?} {estimate}"));
    for (class, name) in source.classes.iter().zip(&source.names) {
        text(class);
        text(name);
    }
    for split in [Split::Train, Split::Val] {
        text(split.name());
        for item in source.items(split) {
            text(&item.name);
            text(&format!("{} {}", item.class, item.bytes));
        }
    }
    format!("{:016x}", hash.digest())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_no_dots() {
        let keys = ["a/x.jpg", "a.b/x.y.z.JPEG", "a/none", "a/.png"].map(plain_key);
        assert_eq!(keys, ["a/x", "a.b/x_y_z", "a/none", "a/_"]);
        assert!(key_matches("a/x", "a/x.jpg") && key_matches("a/x-2", "a/x.jpg"));
        assert!(!key_matches("a/x-b", "a/x.jpg") && !key_matches("a/y", "a/x.jpg"));
    }

    #[test]
    fn long_names_take_more_blocks() {
        assert_eq!(header_bytes(&"x".repeat(100)), 512);
        assert_eq!(header_bytes(&format!("{}/{}", "c".repeat(90), "x".repeat(90))), 512);
        assert_eq!(header_bytes(&"x".repeat(101)), 3 * 512);
        assert_eq!(header_bytes(&"x".repeat(512)), 4 * 512);
    }
}
