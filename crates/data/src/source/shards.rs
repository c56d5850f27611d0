//! A set that was packed before, to be packed again in another form.

use std::path::Path;

use super::listing::{Item, Listing, Place, Source, Tar};
use crate::Split;
use crate::shard::ShardSet;
use crate::shard::manifest::Form;
use crate::shard::set::{check_length, read_index};
use zfnet_core::{Error, Result};

/// Lists the set in `root`, in the order of the images' numbers.
pub(super) fn open(root: &Path, mut listing: Listing) -> Result<Source> {
    let set = ShardSet::open(root)?;
    if let Form::Raw { .. } = set.manifest.form {
        let reason =
            "holds raw pixels, which cannot be packed again; pack what they were made from";
        return Err(Error::file(root, reason));
    }
    let mut splits = [Split::Train, Split::Val].map(|split| (split, Vec::new()));
    for (split, items) in &mut splits {
        let first = listing.tars.len() as u32;
        let (mut paths, mut indices) = (Vec::new(), Vec::new());
        for mark in set.manifest.shards(*split) {
            indices.push(read_index(root, mark)?);
            check_length(root, mark)?;
            let path = root.join(&mark.file);
            listing.tars.push(Tar::open(path.clone())?.0);
            paths.push(path);
        }
        let shards: Vec<_> = paths.iter().map(AsRef::as_ref).zip(&indices).collect();
        for [shard, place] in set.places(*split, &shards, &mut Err)? {
            listing.step()?;
            listing.found += 1;
            let index = &indices[shard as usize];
            let entry = index.entries()[place as usize];
            let (tar, offset) = (first + shard, entry.offset);
            items.push(Item {
                name: index.name(place as usize).into(),
                class: entry.class,
                bytes: u64::from(entry.bytes),
                place: Place::Tar { tar, offset, crc32c: Some(entry.crc32c) },
            });
        }
    }
    let [train, val] = splits.map(|(_, items)| items);
    let (classes, names) = set.manifest.classes.into_iter().map(|c| (c.folder, c.name)).unzip();
    Ok(Source { kind: "zfnet shards", classes, names, train, val, tars: listing.tars })
}
