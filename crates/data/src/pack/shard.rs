//! One shard: its images made on all cores, written in their order, and what is known of them.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tar::{Builder, Header};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::image::{Maker, Stored};
use super::plan::{ShardPlan, raw_stride};
use super::{ASIDE, Packer, Progress};
use crate::Split;
use crate::shard::manifest::{Form, ShardMark};
use crate::source::Item;
use zfnet_core::{Error, Result};

/// Images in memory at a time: so many,
const CHUNK_IMAGES: usize = 256;
/// and about so many bytes,
const CHUNK_BYTES: u64 = 64 << 20;
/// or so many for each thread.
const THREAD_BYTES: u64 = 16 << 20;
/// Images that a thread takes at a time, at most.
const THREAD_IMAGES: usize = 16;
/// The time that all members bear: when the paper appeared. GNU tar warns of 1970.
const MTIME: u64 = 1_384_214_400;

/// What the end of packing needs to know of a shard that is written.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// The shard's length.
    pub shard_bytes: u64,
    /// The shard's xxh3.
    pub shard_xxh3: u64,
    /// Its images, as they lie in it.
    pub images: Vec<Packed>,
    /// Files that cannot be read as images, by place in the source's list, and why.
    pub rejected: Vec<(u32, String)>,
    /// Of a training shard: the sums of all squares, `[side, side, 3]`.
    pub sums: Vec<u64>,
}

/// An image in a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed {
    /// Its place in the source's list.
    pub item: u32,
    /// Where its bytes begin.
    pub offset: u64,
    /// How many they are.
    pub bytes: u32,
    /// Their CRC-32C.
    pub crc32c: u32,
}

impl Packer<'_> {
    /// Writes a shard and its part; `false` if it was asked to stop. If there was one before, it must
    /// come out the same.
    pub(super) fn write_shard(
        &self,
        shard: &ShardPlan,
        as_before: Option<&ShardMark>,
        stop: &AtomicUsize,
        rejected: &mut [usize; 2],
        progress: &mut Progress,
        observe: &mut dyn FnMut(Progress),
    ) -> Result<bool> {
        let path = self.path(&format!("{}{ASIDE}", shard.file));
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        let mut writer = Writer::new(file, self.plan.options.form);
        let before = progress.bytes;
        let mut part = Part::default();
        let items = self.source.items(shard.split);
        for chunk in self.chunks(shard) {
            if stop.load(Ordering::Relaxed) != 0 {
                return Ok(false);
            }
            let made = self.make(shard.split, chunk, &mut part.sums)?;
            for (&item, made) in chunk.iter().zip(made) {
                let Item { name, class, .. } = &items[item as usize];
                match made {
                    Ok(Stored { bytes, crc32c, extension }) => {
                        let key = self.plan.key(shard.split, item, name);
                        let offset = writer
                            .append(&key, extension, &bytes, *class)
                            .map_err(Error::io("write", &path))?;
                        let bytes = bytes.len() as u32;
                        part.images.push(Packed { item, offset, bytes, crc32c });
                    }
                    Err(reason) => {
                        tracing::warn!("left out: {}/{name}: {reason}", shard.split.name());
                        let so_far = &mut rejected[shard.split as usize];
                        *so_far += 1;
                        progress.rejected += 1;
                        self.check_bad(shard.split, *so_far, &|| format!("{name}: {reason}"))?;
                        part.rejected.push((item, reason));
                    }
                }
            }
            progress.images += chunk.len();
            progress.bytes = before + writer.at();
            observe(*progress);
        }
        (part.shard_bytes, part.shard_xxh3) = writer.end().map_err(Error::io("write", &path))?;
        if let Some(mark) = as_before
            && (part.shard_bytes, format!("{:016x}", part.shard_xxh3))
                != (mark.bytes, mark.xxh3.clone())
        {
            let reason = "does not come out as it was: the source has changed, or the decoder; \
                          remove the whole set and pack it again";
            return Err(Error::file(self.path(&shard.file), reason));
        }
        progress.bytes = before + part.shard_bytes;
        self.commit(&shard.file)?;
        let json = serde_json::to_string(&part).expect("plain data");
        let text = format!("{:016x}\n{json}", xxh3_64(json.as_bytes()));
        self.write_aside(&shard.beside("part"), text.as_bytes())?;
        Ok(true)
    }

    /// What was written of a shard, if it is there whole.
    pub(super) fn read_part(&self, shard: &ShardPlan) -> Option<Part> {
        let text = std::fs::read_to_string(self.path(&shard.beside("part"))).ok()?;
        let (sum, json) = text.split_once('\n')?;
        if sum != format!("{:016x}", xxh3_64(json.as_bytes())) {
            return None;
        }
        let part: Part = serde_json::from_str(json).ok()?;
        let found = std::fs::metadata(self.path(&shard.file)).ok()?.len();
        (found == part.shard_bytes).then_some(part)
    }

    /// A shard's images in pieces that fit into memory.
    fn chunks<'a>(&self, shard: &'a ShardPlan) -> Vec<&'a [u32]> {
        let items = self.source.items(shard.split);
        let most = CHUNK_BYTES.max(THREAD_BYTES * rayon::current_num_threads() as u64);
        let (mut chunks, mut first, mut bytes) = (Vec::new(), 0, 0);
        for (place, item) in shard.items.iter().enumerate() {
            let weight = self.plan.weight(&items[*item as usize]);
            let full = place - first == CHUNK_IMAGES || bytes + weight > most;
            if full && place > first {
                chunks.push(&shard.items[first..place]);
                (first, bytes) = (place, 0);
            }
            bytes += weight;
        }
        chunks.push(&shard.items[first..]);
        chunks
    }

    /// Makes images on all cores; adds the training squares to `sums`.
    fn make(
        &self,
        split: Split,
        chunk: &[u32],
        sums: &mut Vec<u64>,
    ) -> Result<Vec<Result<Stored, String>>> {
        let side = self.plan.options.mean_side as usize;
        let length = if split == Split::Train { 3 * side * side } else { 0 };
        let items = self.source.items(split);
        let make_some = |maker: &mut Maker, some: &[u32]| {
            let (mut sums, mut square) = (vec![0; length], Vec::new());
            let mut all = Vec::with_capacity(some.len());
            for &item in some {
                let made =
                    maker.make(self.source, &items[item as usize], self.plan.options.form)?;
                all.push(made.map(|(stored, pixels)| {
                    if split == Split::Train {
                        maker.add_to(&mut sums, &pixels, side, &mut square);
                    }
                    stored
                }));
            }
            Ok::<_, Error>((all, sums))
        };
        // Several pieces for each thread, also where a chunk has few large images.
        let pieces = 4 * rayon::current_num_threads();
        let per_thread = (chunk.len() / pieces).clamp(1, THREAD_IMAGES);
        // Collected in the chunk's order, whichever thread was first.
        let pieces: Vec<_> = chunk
            .par_chunks(per_thread)
            .map_init(Maker::default, make_some)
            .collect::<Result<_>>()?;
        sums.resize(length, 0);
        let mut all = Vec::with_capacity(chunk.len());
        for (made, more) in pieces {
            all.extend(made);
            sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        }
        Ok(all)
    }
}

/// A shard on its way to the disk.
enum Writer {
    Tar(Box<Builder<Hashed>>),
    Raw(Box<Hashed>, u64),
}

impl Writer {
    fn new(file: File, form: Form) -> Self {
        let file = BufWriter::with_capacity(1 << 20, file);
        let hashed = Hashed { file, hash: Xxh3::new(), at: 0 };
        match form {
            Form::Kept | Form::Resized { .. } => Writer::Tar(Box::new(Builder::new(hashed))),
            Form::Raw { side } => Writer::Raw(Box::new(hashed), raw_stride(side)),
        }
    }

    /// Appends an image, in a tar followed by its class. Returns where its bytes begin.
    fn append(&mut self, key: &str, extension: &str, bytes: &[u8], class: u32) -> io::Result<u64> {
        match self {
            Writer::Tar(tar) => {
                append_member(tar, &format!("{key}.{extension}"), bytes)?;
                let offset = tar.get_ref().at - (bytes.len() as u64).next_multiple_of(512);
                append_member(tar, &format!("{key}.cls"), class.to_string().as_bytes())?;
                Ok(offset)
            }
            Writer::Raw(file, stride) => {
                let offset = file.at;
                file.write_all(bytes)?;
                file.write_all(&vec![0; *stride as usize - bytes.len()])?;
                Ok(offset)
            }
        }
    }

    fn at(&self) -> u64 {
        match self {
            Writer::Tar(tar) => tar.get_ref().at,
            Writer::Raw(file, _) => file.at,
        }
    }

    /// Waits until the shard is on the disk. Returns its length and hash.
    fn end(self) -> io::Result<(u64, u64)> {
        let mut hashed = match self {
            Writer::Tar(tar) => tar.into_inner()?,
            Writer::Raw(file, _) => *file,
        };
        hashed.flush()?;
        hashed.file.get_ref().sync_all()?;
        Ok((hashed.at, hashed.hash.digest()))
    }
}

/// Appends a file to a tar, the same for all who pack it: no owner, no date. As POSIX's ustar, or
/// with GNU's long name where the name does not fit in.
fn append_member(tar: &mut Builder<Hashed>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = Header::new_ustar();
    if header.set_path(name).is_err() {
        header = Header::new_gnu();
    }
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(MTIME);
    header.set_entry_type(tar::EntryType::Regular);
    tar.append_data(&mut header, name, bytes)
}

/// A file with the hash of what was written to it.
struct Hashed {
    file: BufWriter<File>,
    hash: Xxh3,
    at: u64,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.at += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
