//! A set that was packed before, to be packed again in another form.

use std::path::Path;

use super::{Listing, Source, Tar, read_file};
use crate::data::Split;
use crate::data::shard::index::Index;
use crate::data::shard::manifest::{Form, Manifest};
use crate::{Error, Result};

/// Lists the set in `root`, in the order of the images' numbers.
pub(super) fn open(root: &Path, mut listing: Listing) -> Result<Source> {
    let manifest = Manifest::read(root)?;
    if let Form::Raw { .. } = manifest.form {
        let reason =
            "holds raw pixels, which cannot be packed again; pack what they were made from";
        return Err(Error::file(root, reason));
    }
    let mut splits = [Split::Train, Split::Val].map(|split| (split, Vec::new()));
    let mut bytes = Vec::new();
    for (split, items) in &mut splits {
        for mark in manifest.shards(*split) {
            let tar = Tar::open(root.join(&mark.file))?;
            let path = root.join(mark.index_file());
            read_file(&path, &mut bytes)?;
            let advice = "pack the set again";
            let index = Index::parse(&bytes)
                .map_err(|reason| Error::file(&path, format!("{reason}; {advice}")))?;
            if tar.bytes != mark.bytes {
                let reason = format!(
                    "has {} bytes; expected {} by the set's manifest; {advice}",
                    tar.bytes, mark.bytes
                );
                return Err(Error::file(&tar.path, reason));
            }
            if index.shard_bytes != mark.bytes
                || u64::from_str_radix(&mark.xxh3, 16) != Ok(index.shard_xxh3)
                || index.len() != mark.images as usize
            {
                let reason = format!("is not the index of {} in the manifest; {advice}", mark.file);
                return Err(Error::file(&path, reason));
            }
            listing.push(tar);
            for (place, entry) in index.entries().iter().enumerate() {
                listing.step()?;
                let name = index.name(place);
                let class = manifest.classes.get(entry.class as usize);
                let file = class.and_then(|class| name.strip_prefix(&class.folder));
                if !file.is_some_and(|file| file.starts_with('/')) {
                    let reason = format!(
                        "has {name:?} in class {}, which is another in the manifest; {advice}",
                        entry.class
                    );
                    return Err(Error::file(&path, reason));
                }
                let bytes = u64::from(entry.bytes);
                let item = listing.item(name.into(), entry.class, entry.offset, bytes);
                items.push((entry.number, item));
            }
        }
        items.sort_by_key(|(number, _)| *number);
        let whole = items.iter().enumerate().all(|(i, (number, _))| *number as usize == i);
        if !whole {
            let name = split.name();
            let reason =
                format!("has {name} images whose numbers are not 0, 1, 2, ..; pack it again");
            return Err(Error::file(root, reason));
        }
    }
    let [train, val] = splits.map(|(_, items)| items.into_iter().map(|(_, item)| item).collect());
    let (classes, names) = manifest.classes.into_iter().map(|c| (c.folder, c.name)).unzip();
    Ok(Source { kind: "zfnet shards", classes, names, train, val, tars: listing.tars })
}
