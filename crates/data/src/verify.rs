//! Whether a set of shards is what was packed: every byte of it is read once and compared.
//!
//! The manifest holds the hashes of all other files, so damage to any of them shows. What only whoever
//! wrote the manifest could get wrong is checked too: that each number is there once, that classes
//! have as many images as they should, that images decode, and that a tar has the members that its
//! index speaks of. Nothing that a set says is believed before it is checked, and no more of a shard
//! is in memory than a piece of it.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;
use serde::Serialize;
use xxhash_rust::xxh3::Xxh3;

use super::Split;
use super::checksum::check_crc32c;
use super::decode::{Rgb, decode_into};
use super::folder::MAX_IMAGE_BYTES;
use super::pack::key_matches;
use super::shard::bytes::{Io, ShardBytes};
use super::shard::index::{Entry, Index};
use super::shard::manifest::{Form, PAGE, ShardMark};
use super::shard::set::{ShardSet, check_hash, check_length, read_index};
use super::tar::{Archive, ReadAt};
use zfnet_core::{Error, Result};

/// Bytes of a shard in memory at a time, if no single image has more.
const PIECE: u64 = 32 << 20;

/// What has been checked, and what was wrong.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Images whose bytes were read.
    pub images: usize,
    /// Length of the shards that were read to their ends.
    pub bytes: u64,
    /// How many these are.
    pub shards: usize,
    /// What is wrong, sorted by file and image.
    pub problems: Vec<Problem>,
}

/// Something wrong with a set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// The file of the set.
    pub file: String,
    /// The image in it, as `CLASS/FILE`, if it is about one.
    pub key: Option<String>,
    /// What was expected and what was found.
    pub what: String,
    /// Whether the file could not be read at all, so that nothing is known of what it holds.
    pub unread: bool,
}

/// Checks the set in `root`. `observe` is told how many images of how many are done; `stop` becoming
/// other than zero ends it soon, with a report of what was checked so far.
///
/// # Errors
/// If the manifest cannot be read. All else that is wrong stands in the report.
pub fn verify(
    root: &Path,
    stop: &AtomicUsize,
    observe: &mut dyn FnMut(usize, usize),
) -> Result<Report> {
    let set = ShardSet::open(root)?;
    let mut report = Report::default();
    if let Some(mark) = &set.manifest.mean {
        report.take(set.read_mean(mark));
    }
    let total = set.manifest.images(Split::Train) + set.manifest.images(Split::Val);
    let mut before = 0;
    'set: for split in [Split::Train, Split::Val] {
        let marks = set.manifest.shards(split);
        let indices: Vec<_> = marks.par_iter().map(|mark| read_index(root, mark)).collect();
        let indices: Vec<_> = indices.into_iter().map(|index| report.take(index)).collect();
        // If one cannot be read, its numbers are missing, and nobody needs to be told of each.
        if indices.iter().all(Option::is_some) {
            let paths: Vec<_> = marks.iter().map(|mark| root.join(mark.index_file())).collect();
            let indices: Vec<_> =
                paths.iter().map(AsRef::as_ref).zip(indices.iter().flatten()).collect();
            let places = set.places(split, &indices, &mut |error| {
                report.problems.push(Problem::new(error));
                Ok(())
            });
            report.take(places);
        }
        for (mark, index) in marks.iter().zip(&indices) {
            let mut shown = |images: usize| observe((before + images).min(total), total);
            let checked = check_shard(&set, mark, index.as_ref(), stop, &mut report, &mut shown);
            report.take(checked);
            if stop.load(Ordering::Relaxed) != 0 {
                break 'set;
            }
            before += mark.images as usize;
            observe(before, total);
        }
    }
    report.problems.sort_unstable();
    Ok(report)
}

/// Checks a shard, whose index is None if it cannot be read; `observe` is told of each piece how many
/// of its images are done.
fn check_shard(
    set: &ShardSet,
    mark: &ShardMark,
    index: Option<&Index>,
    stop: &AtomicUsize,
    report: &mut Report,
    observe: &mut dyn FnMut(usize),
) -> Result<()> {
    check_length(&set.root, mark)?;
    let path = set.root.join(&mark.file);
    // Everything is read once, in order: mapped memory has nothing to offer.
    let bytes = ShardBytes::open(&path, mark.bytes, Io::Pread)?;
    let form = set.manifest.form;
    let images = index.map_or(Vec::new(), |index| readable(mark, index, form, report));
    let mut hash = Xxh3::new();
    let (mut at, mut done, mut piece) = (0, 0, Vec::new());
    while at < mark.bytes {
        if stop.load(Ordering::Relaxed) != 0 {
            return Ok(());
        }
        let (count, end) = next_piece(at, &images[done..], mark.bytes);
        let some = &images[done..done + count];
        piece.resize((end - at) as usize, 0);
        bytes.read_at(at, &mut piece)?;
        bytes.advise(end, PIECE);
        let check = |decoded: &mut Rgb, image: &Image<'_>| {
            let start = (image.entry.offset - at) as usize;
            let bytes = &piece[start..start + image.entry.bytes as usize];
            let checked = check_crc32c(bytes, image.entry.crc32c).and_then(|()| match form {
                Form::Raw { .. } => Ok(()),
                _ => decode_into(bytes, decoded).map_err(|error| error.to_string()),
            });
            checked.err().map(|what| image.problem(mark, what))
        };
        let (_, problems) = rayon::join(
            || hash.update(&piece),
            || some.par_iter().map_init(Rgb::default, check).flatten().collect::<Vec<_>>(),
        );
        report.problems.extend(problems);
        report.images += count;
        (at, done) = (end, done + count);
        observe(done);
    }
    report.shards += 1;
    report.bytes += mark.bytes;
    report.take(check_hash(&path, hash.digest(), &mark.xxh3));
    match (form, index) {
        (Form::Raw { .. }, _) | (_, None) => Ok(()),
        (_, Some(index)) => check_tar(&path, mark, index, stop, report),
    }
}

/// An image of an index.
struct Image<'a> {
    entry: Entry,
    name: &'a str,
}

impl Image<'_> {
    fn problem(&self, mark: &ShardMark, what: String) -> Problem {
        Problem { file: mark.file.clone(), key: Some(self.name.into()), what, unread: false }
    }

    fn end(&self) -> u64 {
        self.entry.offset + u64::from(self.entry.bytes)
    }
}

/// The images of a shard that lie in it one behind the other and have a length that can be; the others
/// are problems.
fn readable<'a>(
    mark: &ShardMark,
    index: &'a Index,
    form: Form,
    report: &mut Report,
) -> Vec<Image<'a>> {
    let mut images: Vec<Image<'a>> = Vec::with_capacity(index.len());
    for (place, &entry) in index.entries().iter().enumerate() {
        let image = Image { entry, name: index.name(place) };
        let (offset, bytes) = (entry.offset, u64::from(entry.bytes));
        let wrong = match form {
            Form::Raw { side } if bytes != 3 * u64::from(side).pow(2) => {
                Some(format!("expected {side}x{side} pixels, found {bytes} bytes"))
            }
            Form::Raw { .. } if offset % PAGE != 0 => {
                Some(format!("expected it at a multiple of {PAGE}, found it at {offset}"))
            }
            _ if !(1..=MAX_IMAGE_BYTES).contains(&bytes) => {
                Some(format!("expected 1 to {MAX_IMAGE_BYTES} bytes, found {bytes}"))
            }
            _ => match images.last() {
                Some(last) if offset < last.end() => {
                    Some(format!("expected it behind {}, found it at {offset}", last.name))
                }
                _ => None,
            },
        };
        match wrong {
            Some(what) => report.problems.push(image.problem(mark, what)),
            None => images.push(image),
        }
    }
    images
}

/// The piece of a shard of `total` bytes from `at` on: how many of the images that follow lie in it,
/// and where it ends. No image is cut.
fn next_piece(at: u64, images: &[Image<'_>], total: u64) -> (usize, u64) {
    let count = images.iter().take_while(|image| image.end() <= at + PIECE).count();
    match images.get(count) {
        Some(large) if large.entry.offset == at => (1, large.end()),
        next => (count, (at + PIECE).min(next.map_or(total, |next| next.entry.offset))),
    }
}

/// Whether a tar has an image and its class where its index has an image, and nothing else.
fn check_tar(
    path: &Path,
    mark: &ShardMark,
    index: &Index,
    stop: &AtomicUsize,
    report: &mut Report,
) -> Result<()> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let archive = Archive { path, inner: "", file: &file, start: 0, bytes: mark.bytes };
    let mut members = 0;
    let mut key = String::new();
    let mut wrong = Vec::new();
    let listed = archive.members(&mut |member| {
        let place = members / 2;
        let unlike = |expected: String| {
            let (offset, bytes) = (member.offset, member.bytes);
            let reason = format!("has {bytes} bytes at {offset}; expected {expected}");
            Err(archive.member_error(member.name, &reason))
        };
        if stop.load(Ordering::Relaxed) != 0 {
            return Err(archive.error("was not listed to its end"));
        }
        let Some(entry) = index.entries().get(place) else {
            return unlike("no more than the index has".into());
        };
        let name = index.name(place);
        if members % 2 == 0 {
            let plain = [".jpg", ".png"].iter().find_map(|ending| member.name.strip_suffix(ending));
            key = plain.unwrap_or_default().into();
            let here = (member.offset, member.bytes) == (entry.offset, u64::from(entry.bytes));
            if !here || !key_matches(&key, name) {
                return unlike(format!("{name}, {} bytes at {}", entry.bytes, entry.offset));
            }
        } else {
            if member.name.strip_suffix(".cls") != Some(&key) {
                return unlike(format!("{key}.cls"));
            }
            let class = entry.class.to_string();
            let mut text = vec![0; member.bytes.min(32) as usize];
            file.read_exact_at(&mut text, member.offset).map_err(Error::io("read", path))?;
            if text != class.as_bytes() {
                let text = String::from_utf8_lossy(&text);
                let what = format!("expected class {class} in its .cls, found {text:?}");
                let (file, key) = (mark.file.clone(), Some(name.into()));
                wrong.push(Problem { file, key, what, unread: false });
            }
        }
        members += 1;
        Ok(())
    });
    let whole = listed.and_then(|()| match members == 2 * index.len() {
        true => Ok(()),
        false => Err(archive.error("ends before its index does")),
    });
    report.problems.extend(wrong);
    // A tar has to be read from its front: the image where that ended is the one that is damaged.
    if let (Err(error), 0) = (whole, stop.load(Ordering::Relaxed)) {
        let place = members / 2;
        let key = (place < index.len()).then(|| index.name(place).to_owned());
        report.problems.push(Problem { key, ..Problem::new(error) });
    }
    Ok(())
}

impl Report {
    /// What there is, or else one more problem.
    fn take<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.problems.push(Problem::new(error))).ok()
    }
}

impl Problem {
    /// An error of a file of the set.
    fn new(error: Error) -> Self {
        let file = error.path().and_then(Path::file_name);
        let file = file.map_or(String::new(), |name| name.to_string_lossy().into_owned());
        let unread =
            matches!(&error, Error::Io { error, .. } if error.kind() != ErrorKind::UnexpectedEof);
        Problem { file, key: None, what: error.without_path(), unread }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_shard_and_cut_no_image() {
        let image = |offset, bytes| Image {
            entry: Entry { offset, bytes, crc32c: 0, class: 0, number: 0 },
            name: "",
        };
        let piece = PIECE as u32;
        let images = [
            image(512, 100),
            image(1024, piece),
            image(1024 + PIECE, 7),
            image(3 * PIECE + 5, 3 * piece),
        ];
        let total = 9 * PIECE;
        let (mut at, mut done, mut most) = (0, 0, 0);
        while at < total {
            let (count, end) = next_piece(at, &images[done..], total);
            assert!(
                images[done..done + count].iter().all(|i| at <= i.entry.offset && i.end() <= end)
            );
            assert!(end > at && end <= total);
            most = most.max(end - at);
            (at, done) = (end, done + count);
        }
        assert_eq!((at, done, most), (total, images.len(), 3 * PIECE));
    }
}
