//! What must hold for any bytes at all that pose as one of our inputs: an error or a sound answer,
//! never a panic. Shared by `tests/hostile.rs` and the targets in `fuzz/`.
//!
//! Checksums stop a fuzzer at the door. So what has one is read twice, as it is and signed anew.
#![allow(dead_code)] // a fuzz target uses one of these

use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;
use zfnet_core::Error;
use zfnet_data::Split;
use zfnet_data::decode::{MAX_PIXELS, MAX_SIDE, decode as decode_image, prepare};
use zfnet_data::devkit::{is_wnid, parse_meta};
use zfnet_data::shard::index::Index;
use zfnet_data::shard::manifest::Manifest;
use zfnet_data::tar::Archive;

/// The index beside a shard.
pub fn index(bytes: &[u8]) {
    check_index(bytes);
    if let Some(end) = bytes.len().checked_sub(8) {
        let mut signed = bytes.to_vec();
        signed[end..].copy_from_slice(&xxh3_64(&bytes[..end]).to_le_bytes());
        check_index(&signed);
    }
}

fn check_index(bytes: &[u8]) {
    let Ok(index) = Index::parse(bytes) else { return };
    assert!(index.len() * 32 <= bytes.len(), "more images than the file can hold");
    for (place, entry) in index.entries().iter().enumerate() {
        let end = entry.offset.checked_add(u64::from(entry.bytes));
        assert!(end.is_some_and(|end| end <= index.shard_bytes), "an image outside its shard");
        assert!(index.name(place).len() <= bytes.len(), "a name longer than the file");
    }
    assert_eq!(Index::parse(&index.to_bytes()), Ok(index), "written and read again");
}

/// The manifest of a set of shards.
pub fn manifest(bytes: &[u8]) {
    let Ok(manifest) = Manifest::parse(bytes) else { return };
    for split in [Split::Train, Split::Val] {
        assert!(manifest.images(split) <= u32::MAX as usize, "images that numbers do not reach");
        for shard in manifest.shards(split) {
            for file in [&shard.file, &shard.index_file()] {
                assert_eq!(Path::new(file).components().count(), 1, "{file:?} is not in the set");
                assert!(Path::new("set").join(file).starts_with("set"), "{file:?} leads elsewhere");
            }
        }
    }
    let again = Manifest::parse(manifest.to_json().as_bytes());
    assert_eq!(again, Ok(manifest), "written and read again");
}

/// An image file, to its prepared square.
pub fn decode(bytes: &[u8]) {
    let Ok(image) = decode_image(bytes) else { return };
    let (width, height) = (image.width, image.height);
    assert!(width >= 1 && height >= 1, "{width}x{height} pixels");
    assert!(width <= MAX_SIDE && height <= MAX_SIDE && width * height <= MAX_PIXELS);
    assert_eq!(image.pixels.len(), width * height * 3);
    prepare(&image, 32, &mut [0; 32 * 32 * 3]);
}

/// The listing of a tar.
pub fn tar(bytes: &[u8]) {
    check_tar(bytes);
    let mut signed = bytes.to_vec();
    for header in signed.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    check_tar(&signed);
}

fn check_tar(bytes: &[u8]) {
    // As a member of another: its bytes are looked for where they lie in the outer file.
    const START: u64 = 512;
    let outer = [&[0; START as usize], bytes].concat();
    let (path, end) = (Path::new("hostile.tar"), outer.len() as u64);
    let archive =
        Archive { path, inner: "inner.tar", file: &outer, start: START, bytes: end - START };
    let mut members = 0;
    let listed = archive.members(&mut |member| {
        members += 1;
        assert!(members * 512 <= bytes.len(), "more members than headers");
        assert!(member.offset >= START + 512, "a member before its header");
        let behind = member.offset.checked_add(member.bytes);
        assert!(behind.is_some_and(|behind| behind <= end), "a member beyond the tar");
        let parts = Path::new(member.name).components();
        assert!(
            !member.name.is_empty()
                && parts.into_iter().all(|part| matches!(part, std::path::Component::Normal(_))),
            "{:?} leads elsewhere",
            member.name
        );
        Ok(())
    });
    if let Err(error) = listed {
        assert!(matches!(error, Error::File { .. }), "an error that does not say what is wrong");
    }
}

/// The classes in ImageNet's development kit.
pub fn devkit(bytes: &[u8]) {
    let Ok(synsets) = parse_meta(bytes) else { return };
    for (id, synset) in synsets {
        assert_eq!(id, synset.id);
        assert!(is_wnid(&synset.wnid));
    }
}
