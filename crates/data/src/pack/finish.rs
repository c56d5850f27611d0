//! The end of packing, when all shards are there: the images are numbered, and what says where they
//! lie is written, the manifest last.

use rayon::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use xxhash_rust::xxh3::xxh3_64;

use super::plan::ShardPlan;
use super::shard::Part;
use super::{MEAN, Packer, REJECTED};
use crate::Split;
use crate::decode::{DECODER, RESIZER};
use crate::shard::index::{Entry, Index};
use crate::shard::manifest::{Class, MANIFEST, Manifest, MeanMark, ShardMark};
use zfnet_core::{Error, Result};

impl Packer<'_> {
    /// Writes all but the shards.
    pub(super) fn finish(&self) -> Result<()> {
        let mut manifest = Manifest::new(self.plan.options.form);
        manifest.decoder = DECODER.into();
        manifest.resizer = RESIZER.into();
        manifest.source = self.source.kind.into();
        manifest.plan = self.plan.hash.clone();
        let names = self.source.classes.iter().zip(&self.source.names);
        manifest.classes = names
            .map(|(folder, name)| Class {
                folder: folder.clone(),
                name: name.clone(),
                train: 0,
                val: 0,
            })
            .collect();

        let mut rejected = Vec::new();
        for split in [Split::Train, Split::Val] {
            let (mut parts, sums) = self.parts(split)?;
            let bad: Vec<_> = parts.iter_mut().flat_map(|part| part.rejected.drain(..)).collect();
            let numbers = self.numbers(split, &bad)?;
            for (item, number) in self.source.items(split).iter().zip(&numbers) {
                let class = &mut manifest.classes[item.class as usize];
                let count = match split {
                    Split::Train => &mut class.train,
                    Split::Val => &mut class.val,
                };
                *count += u32::from(number.is_some());
            }
            let shards: Vec<_> = self.plan.shards.iter().filter(|s| s.split == split).collect();
            let marks = self.write_indices(&shards, parts, &numbers)?;
            match split {
                Split::Train if numbers.is_empty() => {} // a source of validation images alone
                Split::Train => {
                    self.check_classes(&manifest.classes)?;
                    let count = numbers.iter().flatten().count();
                    manifest.mean = Some(self.write_mean(&sums, count)?);
                    manifest.train = marks;
                }
                Split::Val => manifest.val = marks,
            }
            let named = |(item, reason): (u32, String)| {
                let name = &self.source.items(split)[item as usize].name;
                (split.name(), name, reason)
            };
            rejected.extend(bad.into_iter().map(named));
        }
        rejected.sort_unstable();
        manifest.rejected = rejected.len() as u32;
        if !rejected.is_empty() {
            let line = |(split, name, reason): &(&str, &String, String)| {
                format!("{split}\t{}\t{}\n", on_one_line(name), on_one_line(reason))
            };
            let lines: String = rejected.iter().map(line).collect();
            self.write_aside(REJECTED, lines.as_bytes())?;
        }
        self.write_aside(MANIFEST, manifest.to_json().as_bytes())
    }

    /// What is known of a split's shards, and the sums of all its squares.
    fn parts(&self, split: Split) -> Result<(Vec<Part>, Vec<u64>)> {
        let (mut parts, mut sums) = (Vec::new(), Vec::new());
        for shard in self.plan.shards.iter().filter(|shard| shard.split == split) {
            let gone = || {
                let reason = "has changed while the set was packed; run this again";
                Error::file(self.path(&shard.file), reason)
            };
            let mut part = self.read_part(shard).ok_or_else(gone)?;
            let more = std::mem::take(&mut part.sums);
            sums.resize(more.len(), 0);
            sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
            parts.push(part);
        }
        Ok((parts, sums))
    }

    /// The numbers of a split's images: without gaps, in the source's order. Those left out have none.
    fn numbers(&self, split: Split, bad: &[(u32, String)]) -> Result<Vec<Option<u32>>> {
        let items = self.source.items(split);
        if let Some((item, reason)) = bad.last() {
            let last = || format!("{}: {reason}", items[*item as usize].name);
            self.check_bad(split, bad.len(), &last)?;
        }
        let mut numbers = vec![Some(0); items.len()];
        bad.iter().for_each(|(item, _)| numbers[*item as usize] = None);
        (0..).zip(numbers.iter_mut().flatten()).for_each(|(next, number)| *number = next);
        Ok(numbers)
    }

    /// Writes the indices of shards.
    pub(super) fn write_indices(
        &self,
        shards: &[&ShardPlan],
        parts: Vec<Part>,
        numbers: &[Option<u32>],
    ) -> Result<Vec<ShardMark>> {
        let write = |(shard, part): (&&ShardPlan, Part)| {
            let items = self.source.items(shard.split);
            if part.images.is_empty() {
                self.remove(&shard.file)?; // all were rejected; a rerun would write it again
                return Ok(None);
            }
            let mut index = Index::default();
            (index.shard_bytes, index.shard_xxh3) = (part.shard_bytes, part.shard_xxh3);
            for image in &part.images {
                let item = &items[image.item as usize];
                let entry = Entry {
                    offset: image.offset,
                    bytes: image.bytes,
                    crc32c: image.crc32c,
                    class: item.class,
                    number: numbers[image.item as usize].expect("those rejected are not in"),
                };
                index.push(entry, &item.name);
            }
            let bytes = index.to_bytes();
            self.write_aside(&shard.beside("idx"), &bytes)?;
            Ok(Some(ShardMark {
                file: shard.file.clone(),
                images: index.len() as u32,
                bytes: part.shard_bytes,
                xxh3: format!("{:016x}", part.shard_xxh3),
                index_xxh3: format!("{:016x}", xxh3_64(&bytes)),
            }))
        };
        let marks: Vec<_> = shards.par_iter().zip(parts).map(write).collect::<Result<_>>()?;
        Ok(marks.into_iter().flatten().collect())
    }

    /// Every class needs something to be learnt from.
    fn check_classes(&self, classes: &[Class]) -> Result<()> {
        match classes.iter().find(|class| class.train == 0) {
            None => Ok(()),
            Some(class) => Err(Error::Data(format!(
                "none of the training images of class {} can be used; mend them or remove the class",
                class.folder
            ))),
        }
    }

    /// Writes the mean image, from exact sums: to the last bit what training would compute.
    fn write_mean(&self, sums: &[u64], count: usize) -> Result<MeanMark> {
        let side = self.plan.options.mean_side;
        let mean = sums.iter().map(|sum| (*sum as f64 / count as f64) as f32);
        let bytes: Vec<u8> = mean.flat_map(f32::to_le_bytes).collect();
        let shape = vec![side as usize, side as usize, 3];
        let tensor = TensorView::new(Dtype::F32, shape, &bytes).expect("side * side * 3 floats");
        let file = safetensors::serialize([("mean", tensor)], None).expect("plain data");
        self.write_aside(MEAN, &file)?;
        Ok(MeanMark { file: MEAN.into(), side, xxh3: format!("{:016x}", xxh3_64(&file)) })
    }
}

/// A name or reason as one field of a line.
pub(super) fn on_one_line(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}
