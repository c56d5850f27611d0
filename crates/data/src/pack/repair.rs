//! A finished set that has lost something: what is missing or of another length is made anew, and must
//! come out as it was.

use std::collections::HashSet;
use std::sync::atomic::AtomicUsize;

use super::finish::on_one_line;
use super::{Outcome, Packer, Progress, REJECTED, ShardPlan};
use crate::Split;
use crate::shard::manifest::{Manifest, ShardMark};
use crate::shard::set::{ShardSet, open_shard};
use crate::source::Item;
use zfnet_core::{Error, Result};

impl Packer<'_> {
    /// Makes anew the shards of a finished set that are not there as the manifest says. Damage that
    /// leaves a shard's length as it is takes [`verify`](crate::verify::verify) to find.
    pub(super) fn repair(
        &self,
        manifest: &Manifest,
        stop: &AtomicUsize,
        observe: &mut dyn FnMut(Progress),
    ) -> Result<Outcome> {
        let mut damaged = Vec::new();
        for split in [Split::Train, Split::Val] {
            for mark in manifest.shards(split) {
                if !is_whole(open_shard(self.out, mark))? {
                    damaged.push((self.planned(mark)?, mark));
                }
            }
        }
        if damaged.is_empty() {
            return Ok(Outcome::Already(0));
        }
        let shards: Vec<&ShardPlan> = damaged.iter().map(|(shard, _)| *shard).collect();
        self.check_space(&shards)?;
        let numbers = self.numbers_as_before(manifest)?;
        let of_images = shards.iter().map(|shard| shard.items.len()).sum();
        let mut progress = Progress { images: 0, of_images, bytes: 0, rejected: 0 };
        for &(shard, mark) in &damaged {
            if !self.write_shard(shard, Some(mark), stop, &mut [0; 2], &mut progress, observe)? {
                return Ok(Outcome::Stopped);
            }
            let part = self.read_part(shard).into_iter().collect();
            let numbers = &numbers[shard.split as usize];
            self.write_indices(&[shard], part, numbers)?;
        }
        Ok(Outcome::Already(damaged.len()))
    }

    /// The plan of a shard of the manifest.
    fn planned(&self, mark: &ShardMark) -> Result<&ShardPlan> {
        let known = self.plan.shards.iter().find(|shard| shard.file == mark.file);
        known.ok_or_else(|| self.holds(format!("{}, which is no part of it", mark.file)))
    }

    /// The numbers that the images of a finished set have, by split.
    fn numbers_as_before(&self, manifest: &Manifest) -> Result<[Vec<Option<u32>>; 2]> {
        let path = self.path(REJECTED);
        let rejected = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(Error::io("read", path)(error)),
        };
        let names: HashSet<(&str, &str)> = rejected
            .lines()
            .filter_map(|line| {
                let mut columns = line.split('\t');
                Some((columns.next()?, columns.next()?))
            })
            .collect();
        let mut left_out = 0;
        let numbers = [Split::Train, Split::Val].map(|split| {
            let mut next = 0;
            let number = |item: &Item| {
                let bad = names.contains(&(split.name(), on_one_line(&item.name).as_str()));
                left_out += u32::from(bad);
                next += u32::from(!bad);
                (!bad).then(|| next - 1)
            };
            self.source.items(split).iter().map(number).collect()
        });
        if left_out != manifest.rejected {
            let reason = format!(
                "expected the {} images that were left out, found {left_out} of the source's; remove \
                 the whole set and pack it again",
                manifest.rejected
            );
            return Err(Error::file(path, reason));
        }
        Ok(numbers)
    }

    /// Whether the mean image, if there is to be one, is there as the manifest says.
    pub(super) fn has_mean(&self, manifest: &Manifest) -> Result<bool> {
        let set = ShardSet { root: self.out.into(), manifest: manifest.clone(), renumbered: None };
        manifest.mean.as_ref().map_or(Ok(true), |mark| is_whole(set.read_mean(mark)))
    }
}

/// Whether something of a set was as it must be. A disk that fails is another matter.
fn is_whole<T>(read: Result<T>) -> Result<bool> {
    match read {
        Ok(_) => Ok(true),
        Err(error @ Error::Io { .. }) => Err(error),
        Err(_) => Ok(false),
    }
}
