//! ImageNet as it is given out: a tar of one tar for each class, a tar of validation images, and the
//! development kit that says what these show. Nothing is unpacked.
//!
//! A class's index is its place among the sorted WordNet ids of the training images. Without these it
//! is its place among the kit's classes, which are the same thousand.

use std::path::Path;

use super::listing::{Item, Listing, Source};
use crate::devkit::{DEVKIT, Devkit, is_wnid};
use crate::tar::Archive;
use zfnet_core::{Error, Result};

pub(super) const TRAIN: &str = "ILSVRC2012_img_train.tar";
pub(super) const VAL: &str = "ILSVRC2012_img_val.tar";
const WNID: usize = 9;

/// Lists what there is of the three files in `root`.
pub(super) fn open(root: &Path, mut listing: Listing) -> Result<Source> {
    let there = |name: &str| Some(root.join(name)).filter(|path| path.is_file());
    let (train_tar, val_tar) = (there(TRAIN), there(VAL));
    let devkit = match there(DEVKIT) {
        Some(path) => Some(Devkit::read(&path)?),
        None if val_tar.is_some() => {
            let reason = format!(
                "says not what its images show; expected {DEVKIT} beside it, found none; it is \
                 given to registered users at https://image-net.org/download-images.php"
            );
            return Err(Error::file(root.join(VAL), reason));
        }
        None => None,
    };

    let (mut classes, mut train) = match &train_tar {
        Some(_) => list_train(root, &mut listing)?,
        None => (Vec::new(), Vec::new()),
    };
    let synsets = devkit.iter().flat_map(|devkit| devkit.synsets.values());
    if train_tar.is_none() {
        classes = synsets.clone().filter(|s| s.leaf).map(|s| s.wnid.clone()).collect();
    }
    classes.sort();
    if let Some(twice) = classes.windows(2).find(|pair| pair[0] == pair[1]) {
        let file = root.join(train_tar.map_or(DEVKIT, |_| TRAIN));
        return Err(Error::file(file, format!("has the class {} twice", twice[0])));
    }
    let mut names = classes.clone();
    for synset in synsets {
        if let Ok(class) = classes.binary_search(&synset.wnid) {
            let first = synset.words.split(',').next().unwrap_or_default().trim();
            if !first.is_empty() {
                names[class] = first.into();
            }
        }
    }

    let mut val = match (val_tar, &devkit) {
        (Some(_), Some(devkit)) => list_val(root, devkit, &mut listing)?,
        _ => Vec::new(),
    };
    for item in train.iter_mut().chain(&mut val) {
        let wnid = &item.name[..WNID];
        let class = classes.binary_search_by(|known| known.as_str().cmp(wnid)).map_err(|_| {
            let reason = format!(
                "has {}, whose class the training images do not have; expected {TRAIN} to hold \
                 {wnid}.tar",
                item.name
            );
            Error::file(root.join(VAL), reason)
        })?;
        item.class = class as u32;
    }
    let source = Source { kind: "ILSVRC2012 tars", classes, names, train, val, tars: listing.tars };
    let source = source.of_tars(root)?;
    if let Some(twice) = source.train.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(Error::file(root.join(TRAIN), format!("has {} twice", twice[0].name)));
    }
    Ok(source)
}

/// The training images, called `WNID/FILE`, and the classes, both as they come.
fn list_train(root: &Path, listing: &mut Listing) -> Result<(Vec<String>, Vec<Item>)> {
    let (mut classes, mut items) = (Vec::new(), Vec::new());
    listing.list(&root.join(TRAIN), &mut |listing, outer, class_tar| {
        let Some(wnid) = class_tar.name.strip_suffix(".tar").filter(|name| is_wnid(name)) else {
            let reason = "is none of a class; expected nXXXXXXXX.tar";
            return Err(outer.member_error(class_tar.name, reason));
        };
        let before = items.len();
        let inner = Archive {
            inner: class_tar.name,
            start: class_tar.offset,
            bytes: class_tar.bytes,
            ..*outer
        };
        inner.members(&mut |image| {
            listing.step()?;
            let number = image.name.strip_prefix(wnid).and_then(|rest| rest.strip_prefix('_'));
            if !number.is_some_and(|rest| rest.ends_with(".JPEG") && !rest.contains('/')) {
                let reason = format!("is none of its images; expected {wnid}_*.JPEG");
                return Err(inner.member_error(image.name, &reason));
            }
            let name = format!("{wnid}/{}", image.name);
            items.push(listing.item(name, 0, image.offset, image.bytes));
            Ok(())
        })?;
        if items.len() == before {
            return Err(inner.error("has no image, so that its class cannot be learnt"));
        }
        classes.push(wnid.into());
        Ok(())
    })?;
    Ok((classes, items))
}

/// The validation images, called `WNID/FILE`, as they come.
fn list_val(root: &Path, devkit: &Devkit, listing: &mut Listing) -> Result<Vec<Item>> {
    let count = devkit.ground_truth.len();
    let mut seen = vec![false; count];
    let mut items = Vec::new();
    listing.list(&root.join(VAL), &mut |listing, tar, image| {
        let digits = image.name.strip_prefix("ILSVRC2012_val_");
        let digits = digits.and_then(|rest| rest.strip_suffix(".JPEG"));
        let digits = digits.filter(|d| d.len() == 8 && d.bytes().all(|b| b.is_ascii_digit()));
        let Some(number) = digits.and_then(|digits| digits.parse::<usize>().ok()) else {
            let reason = "is none of its images; expected ILSVRC2012_val_XXXXXXXX.JPEG";
            return Err(tar.member_error(image.name, reason));
        };
        let Some(place) = number.checked_sub(1).filter(|&place| place < count) else {
            let reason =
                format!("is not in the ground truth of {DEVKIT}; expected images 1 to {count}");
            return Err(tar.member_error(image.name, &reason));
        };
        if std::mem::replace(&mut seen[place], true) {
            return Err(tar.member_error(image.name, "is there twice"));
        }
        let synset = &devkit.synsets[&devkit.ground_truth[place]];
        let name = format!("{}/{}", synset.wnid, image.name);
        items.push(listing.item(name, 0, image.offset, image.bytes));
        Ok(())
    })?;
    if items.len() != count {
        let reason = format!(
            "has {} images; expected {count}, as many as the ground truth of {DEVKIT} has",
            items.len()
        );
        return Err(Error::file(root.join(VAL), reason));
    }
    Ok(items)
}
