//! The binary index beside each shard: where each image lies, and what it must be.
//!
//! All numbers are little-endian.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `ZFNETIDX` |
//! | 4, 4 | version (1), 0 |
//! | 8, 8 | length and xxh3 of the shard |
//! | 8, 8 | number of images n; bytes of all names |
//! | 32 n | the images, in the order in which they lie in the shard: offset (8), length (4), CRC-32C (4), class (4), number in the split (4), end of its name among the names (4), 0 (4) |
//! | | the names, UTF-8, one after the other |
//! | 8 | xxh3 of all that stands before |

use xxhash_rust::xxh3::xxh3_64;

pub(crate) const MAGIC: &[u8; 8] = b"ZFNETIDX";
const VERSION: u32 = 1;
const HEADER: usize = 48;
const RECORD: usize = 32;

/// One image of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where its bytes begin in the shard.
    pub offset: u64,
    /// How many they are.
    pub bytes: u32,
    /// Their CRC-32C.
    pub crc32c: u32,
    /// Its class.
    pub class: u32,
    /// Its place in the split, sorted by class and then by file name: what an epoch's order counts.
    pub number: u32,
}

/// The images of a shard, in the order in which they lie in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// The shard's length.
    pub shard_bytes: u64,
    /// The shard's xxh3 (64 bits).
    pub shard_xxh3: u64,
    entries: Vec<Entry>,
    names: String,
    /// Where each name ends.
    ends: Vec<u32>,
}

impl Index {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The images.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// `CLASS/FILE` as the image was called where it came from.
    pub fn name(&self, place: usize) -> &str {
        let start = place.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.names[start as usize..self.ends[place] as usize]
    }

    /// Adds an image behind the others.
    ///
    /// # Panics
    /// If the names of one shard are longer than 4 GiB.
    pub fn push(&mut self, entry: Entry, name: &str) {
        self.entries.push(entry);
        self.names.push_str(name);
        self.ends.push(u32::try_from(self.names.len()).expect("names of less than 4 GiB"));
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + RECORD * self.len() + self.names.len() + 8);
        out.extend(MAGIC);
        out.extend(u64::from(VERSION).to_le_bytes());
        for number in
            [self.shard_bytes, self.shard_xxh3, self.len() as u64, self.names.len() as u64]
        {
            out.extend(number.to_le_bytes());
        }
        for (entry, end) in self.entries.iter().zip(&self.ends) {
            out.extend(entry.offset.to_le_bytes());
            for number in [entry.bytes, entry.crc32c, entry.class, entry.number, *end, 0] {
                out.extend(number.to_le_bytes());
            }
        }
        out.extend(self.names.as_bytes());
        out.extend(xxh3_64(&out).to_le_bytes());
        out
    }

    /// Reads the file's bytes. Nothing is allocated that they do not hold.
    ///
    /// # Errors
    /// What was expected and what was found, if they are no whole index.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if !bytes.starts_with(MAGIC) {
            return Err("expected an index that begins with ZFNETIDX, found something else".into());
        }
        if bytes.len() < HEADER + 8 {
            return Err(format!(
                "cut short: an index has {} bytes or more, found {}",
                HEADER + 8,
                bytes.len()
            ));
        }
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"));
        if u32_at(8) != VERSION {
            return Err(format!("expected an index of version {VERSION}, found {}", u32_at(8)));
        }
        let (count, names) = (u64_at(32), u64_at(40));
        let wanted = (HEADER as u64 + 8)
            .saturating_add(count.saturating_mul(RECORD as u64))
            .saturating_add(names);
        if wanted != bytes.len() as u64 {
            return Err(format!(
                "expected {wanted} bytes for {count} images and their names, found {}",
                bytes.len()
            ));
        }
        let end = bytes.len() - 8;
        let (written, found) = (u64_at(end), xxh3_64(&bytes[..end]));
        if written != found {
            return Err(format!("damaged: expected xxh3 {written:016x}, found {found:016x}"));
        }
        let (shard_bytes, shard_xxh3) = (u64_at(16), u64_at(24));
        let names_at = end - names as usize;
        let names = std::str::from_utf8(&bytes[names_at..end])
            .map_err(|error| format!("damaged names: {error}"))?;
        let mut index = Index {
            shard_bytes,
            shard_xxh3,
            entries: Vec::with_capacity(count as usize),
            ends: Vec::with_capacity(count as usize),
            names: names.to_owned(),
        };
        let mut last = 0;
        for at in (HEADER..names_at).step_by(RECORD) {
            let [bytes, crc32c, class, number, end] =
                std::array::from_fn(|field| u32_at(at + 8 + 4 * field));
            let entry = Entry { offset: u64_at(at), bytes, crc32c, class, number };
            let inside =
                entry.offset.checked_add(u64::from(bytes)).is_some_and(|e| e <= shard_bytes);
            if !inside || end < last || !names.is_char_boundary(end as usize) {
                return Err(format!("image {} lies outside its shard or has no name", index.len()));
            }
            last = end;
            index.entries.push(entry);
            index.ends.push(end);
        }
        if last as usize != names.len() {
            return Err("there are more names than images".into());
        }
        Ok(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> Index {
        let mut index = Index { shard_bytes: 1000, shard_xxh3: 7, ..Index::default() };
        for (i, name) in ["a/x.jpg", "b/größe.png", "c/y.jpg"].into_iter().enumerate() {
            let i = i as u32;
            let entry = Entry {
                offset: u64::from(i) * 300,
                bytes: 200 + i,
                crc32c: i,
                class: i,
                number: 2 - i,
            };
            index.push(entry, name);
        }
        index
    }

    #[test]
    fn an_index_is_read_as_it_was_written() {
        let read = Index::parse(&index().to_bytes()).unwrap();
        assert_eq!(read, index());
        assert_eq!([0, 1, 2].map(|i| read.name(i)), ["a/x.jpg", "b/größe.png", "c/y.jpg"]);
        assert!(Index::parse(&Index::default().to_bytes()).unwrap().is_empty());
    }

    #[test]
    fn no_damage_goes_unnoticed() {
        let bytes = index().to_bytes();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            assert!(Index::parse(&damaged).is_err(), "byte {at}");
            assert!(Index::parse(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    /// Whoever knows the checksum can still not make it point outside.
    #[test]
    fn signed_nonsense_is_refused() {
        let with = |at: usize, value: u64| {
            let mut bytes = index().to_bytes();
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            let end = bytes.len() - 8;
            let sum = xxh3_64(&bytes[..end]).to_le_bytes();
            bytes[end..].copy_from_slice(&sum);
            Index::parse(&bytes)
        };
        assert!(with(16, 1000).is_ok());
        assert!(with(16, 801).is_err(), "a shard shorter than its images");
        assert!(with(48, u64::MAX).is_err(), "an offset that overflows");
        for place in [32, 40] {
            assert!(with(place, u64::MAX).is_err(), "more than there is");
        }
        assert!(with(80 + 24, 3).is_err(), "a name that ends before the one before it");
        assert!(with(80 + 24, 1 << 30).is_err(), "a name beyond all names");
    }
}
