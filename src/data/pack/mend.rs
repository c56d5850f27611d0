//! A finished set that has lost something: what is missing or of another length is made anew, and must
//! come out as it was.

use std::collections::HashSet;
use std::sync::atomic::AtomicUsize;

use super::finish::on_one_line;
use super::{LOCK, Outcome, Packer, Progress, REJECTED, ShardPlan};
use crate::data::Split;
use crate::data::shard::manifest::{Manifest, ShardMark};
use crate::data::shard::set::{ShardSet, open_shard};
use crate::disk::lock;
use crate::{Error, Result};

impl Packer<'_> {
    /// Makes anew the shards of a finished set that are not there as the manifest says. Damage that
    /// leaves a shard's length as it is takes `zfnet verify` to find.
    pub(super) fn mend(
        &self,
        manifest: &Manifest,
        stop: &AtomicUsize,
        observe: &mut dyn FnMut(Progress),
    ) -> Result<Outcome> {
        let mut damaged = Vec::new();
        for split in [Split::Train, Split::Val] {
            for mark in manifest.shards(split) {
                if open_shard(self.out, mark).is_err() {
                    damaged.push((self.planned(mark)?, mark));
                }
            }
        }
        if damaged.is_empty() {
            self.tidy()?;
            return Ok(Outcome::Already(0));
        }
        let _lock = lock(self.out, "another `zfnet pack`")?;
        let shards: Vec<&ShardPlan> = damaged.iter().map(|(shard, _)| *shard).collect();
        self.check_space(&shards)?;
        let numbers = [Split::Train, Split::Val].map(|split| self.numbers_as_before(split));
        let [train, val] = numbers;
        let numbers = [train?, val?];
        let of_images = shards.iter().map(|shard| shard.items.len()).sum();
        let mut progress = Progress { images: 0, of_images, bytes: 0, rejected: 0 };
        for &(shard, mark) in &damaged {
            if !self.write_shard(shard, stop, &mut [0; 2], &mut progress, observe)? {
                return Ok(Outcome::Stopped);
            }
            let part = self.read_part(shard).into_iter().collect();
            let numbers = &numbers[shard.split as usize];
            if self.write_indices(&[shard], part, numbers)? != [mark.clone()] {
                let reason = "does not come out as it was: the source has changed, or the decoder; \
                              remove the whole set and pack it again";
                return Err(Error::file(self.path(&shard.file), reason));
            }
            self.remove(&shard.beside("part"))?;
        }
        self.remove(LOCK)?;
        Ok(Outcome::Already(damaged.len()))
    }

    /// The plan of a shard of the manifest.
    fn planned(&self, mark: &ShardMark) -> Result<&ShardPlan> {
        let known = self.plan.shards.iter().find(|shard| shard.file == mark.file);
        known.ok_or_else(|| self.holds(format!("{}, which is no part of it", mark.file)))
    }

    /// The numbers that the images of a finished set have.
    fn numbers_as_before(&self, split: Split) -> Result<Vec<Option<u32>>> {
        let path = self.path(REJECTED);
        let rejected = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(Error::io("read", path)(error)),
        };
        let names: HashSet<&str> = rejected
            .lines()
            .filter_map(|line| {
                line.strip_prefix(split.name())?.strip_prefix('\t')?.split('\t').next()
            })
            .collect();
        let is_bad = |name: &str| names.contains(on_one_line(name).as_str());
        let mut next = 0;
        let number = |bad: bool| {
            next += u32::from(!bad);
            (!bad).then(|| next - 1)
        };
        let items = self.source.items(split).iter();
        Ok(items.map(|item| is_bad(&item.name)).map(number).collect())
    }

    /// Whether the mean image, if there is to be one, is there as the manifest says.
    pub(super) fn has_mean(&self, manifest: &Manifest) -> bool {
        let set = ShardSet { root: self.out.into(), manifest: manifest.clone() };
        manifest.mean.as_ref().is_none_or(|mark| set.read_mean(mark).is_ok())
    }
}
