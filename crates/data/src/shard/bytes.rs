//! The bytes of one shard, mapped into memory or read with `pread`: what the loader's threads copy
//! images from.
//!
//! What holds when something happens to a shard while it is open:
//!
//! | | mapped, on Linux | mapped, elsewhere | `pread` |
//! |---|---|---|---|
//! | cut short | an error that names it | Unix: the same, not tried; Windows does not let anyone cut a mapped file | an error that names it, once bytes are wanted that are gone |
//! | the disk fails under it | an error that names it | Unix: the same, not tried; on Windows the process ends | an error that names it |
//! | deleted or replaced by rename | stays readable as it was | the same | the same |
//! | overwritten in place, or cut short and filled up again between two reads | what it then holds: the caller's checksums must tell | the same | the same |
//!
//! The errors for mapped files rest on the handler in `sigbus`. A program that puts its own handler
//! for SIGBUS in its place later, or blocks the signal in a loader's thread, has `pread` alone.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use memmap2::{MmapOptions, MmapRaw};

#[cfg(unix)]
use super::sigbus::Guarded;
use zfnet_core::{Error, Result};

/// For one request, Linux reads no more ahead than the device's setting, often 128 KiB, and drops
/// the rest.
const AHEAD: u64 = 128 << 10;

/// How a shard is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// Mapped into memory: one copy, no call of the system where the bytes are in memory already.
    Mmap,
    /// Read into the caller's memory.
    Pread,
}

impl Io {
    /// What suits the file system of `path`: `Pread` where it is reached over a network or through
    /// FUSE, because there a file may change or vanish on another machine; else, and wherever that
    /// cannot be told, `Mmap`.
    pub fn for_path(path: &Path) -> Self {
        if on_network(path) { Io::Pread } else { Io::Mmap }
    }
}

/// A shard, open until it is dropped. Any number of threads may read from it.
pub struct ShardBytes {
    path: PathBuf,
    file: File,
    len: u64,
    /// None for `Io::Pread`.
    map: Option<Map>,
}

struct Map {
    memory: MmapRaw,
    #[cfg(unix)]
    guard: Guarded,
}

impl ShardBytes {
    /// Opens a shard that must be `len` bytes long.
    ///
    /// # Errors
    /// If it is missing, shorter or longer, with what to do; if it cannot be opened or mapped.
    pub fn open(path: &Path, len: u64, io: Io) -> Result<Self> {
        let unlike = |found: String| {
            let reason = format!("expected a shard of {len} bytes, found {found}");
            Error::DamagedSet { path: path.into(), reason }
        };
        // Asked for before it is opened, which waits for ever if it is a pipe.
        match fs::metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(unlike("none".into())),
            Ok(found) if !found.is_file() => return Err(unlike("no regular file".into())),
            _ => (),
        }
        let file = File::open(path).map_err(Error::io("open", path))?;
        let found = file.metadata().map_err(Error::io("read", path))?.len();
        if found != len {
            return Err(unlike(found.to_string()));
        }
        let map = match io {
            Io::Mmap => Some(Map::new(&file, len).map_err(Error::io("map", path))?),
            Io::Pread => None,
        };
        Ok(ShardBytes { path: path.into(), file, len, map })
    }

    /// Copies the `out.len()` bytes from `offset` on.
    ///
    /// # Errors
    /// If they are not all within the shard's length; if it has been cut short since it was opened,
    /// with what to do; if the disk fails. What `out` then holds is undefined.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let end = offset.saturating_add(out.len() as u64);
        if end > self.len {
            let reason = format!("expected bytes {offset} to {end}, found {} in all", self.len);
            return Err(Error::file(&self.path, reason));
        }
        match &self.map {
            Some(map) => {
                let whole = map.copy(offset as usize, out);
                // The rest of a file's last page is zeros that can be read. So the copy can go well
                // and the file be too short for it.
                if whole && self.found()? >= self.len { Ok(()) } else { Err(self.lost()) }
            }
            None => read_exact_at(&self.file, out, offset).map_err(|error| match error.kind() {
                ErrorKind::UnexpectedEof => self.lost(),
                _ => Error::io("read", &self.path)(error),
            }),
        }
    }

    /// Asks the system to have the `len` bytes from `offset` on in memory soon. Returns before they
    /// are there; what it cannot do, it leaves.
    pub fn advise(&self, offset: u64, len: u64) {
        let end = offset.saturating_add(len).min(self.len);
        let mut from = offset;
        while from < end {
            let part = AHEAD.min(end - from);
            match &self.map {
                Some(map) => map.advise(from as usize, part as usize),
                None => advise_file(&self.file, from, part),
            }
            from += part;
        }
    }

    /// The file's length now.
    fn found(&self) -> Result<u64> {
        Ok(self.file.metadata().map_err(Error::io("read", &self.path))?.len())
    }

    fn lost(&self) -> Error {
        let reason = match self.found() {
            Ok(found) if found < self.len => format!(
                "was cut short while it was read: expected {} bytes, found {found}",
                self.len
            ),
            Ok(_) => {
                "a part of it could not be read: the disk failed, or it was cut short for a while"
                    .into()
            }
            Err(error) => return error,
        };
        Error::LostShard { path: self.path.clone(), reason }
    }
}

impl Map {
    fn new(file: &File, len: u64) -> io::Result<Self> {
        let len = usize::try_from(len).map_err(|_| io::Error::from(ErrorKind::OutOfMemory))?;
        let memory = MmapOptions::new().len(len).map_raw_read_only(file)?;
        Ok(Map {
            // SAFETY: `memory` is dropped with the guard, and stays where it is when `Map` moves.
            // It is read through raw pointers only.
            #[cfg(unix)]
            guard: unsafe { Guarded::new(memory.as_ptr(), len)? },
            memory,
        })
    }

    /// Fills `out` from `offset` on, and says whether it holds the file's bytes. Pages are mapped by
    /// the faults of the copy: asking for them all before it (MADV_POPULATE_READ) takes longer.
    fn copy(&self, offset: usize, out: &mut [u8]) -> bool {
        #[cfg(unix)]
        return self.guard.run(|| self.copy_unguarded(offset, out));
        #[cfg(not(unix))]
        {
            self.copy_unguarded(offset, out);
            true
        }
    }

    fn copy_unguarded(&self, offset: usize, out: &mut [u8]) {
        assert!(offset + out.len() <= self.memory.len(), "the copy lies within the mapping");
        // SAFETY: both are `out.len()` bytes long, and `out` is ours alone. Another process may
        // write to the file during the copy; then some mixture of bytes arrives, which nothing here
        // looks at.
        unsafe {
            let from = self.memory.as_ptr().add(offset);
            from.copy_to_nonoverlapping(out.as_mut_ptr(), out.len());
        }
    }

    /// The mapping keeps the system's usual way of reading (no MADV_RANDOM): what was asked for
    /// here comes in time, and what was not comes in larger pieces than a page.
    fn advise(&self, offset: usize, len: usize) {
        #[cfg(unix)]
        let _ = self.memory.advise_range(memmap2::Advice::WillNeed, offset, len);
        #[cfg(not(unix))]
        let _ = (offset, len);
    }
}

#[cfg(target_os = "linux")]
fn advise_file(file: &File, offset: u64, len: u64) {
    let _ = rustix::fs::fadvise(file, offset, len.try_into().ok(), rustix::fs::Advice::WillNeed);
}

#[cfg(not(target_os = "linux"))]
fn advise_file(_: &File, _: u64, _: u64) {}

#[cfg(unix)]
fn read_exact_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut out: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !out.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, out, offset) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                out = &mut out[read..];
                offset += read as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Names and numbers of the file systems for which `statfs` tells that they are reached over a
/// network, or through FUSE, as most of those in user space are.
#[cfg(target_os = "linux")]
const NETWORK: [(&str, u32); 15] = [
    ("NFS", 0x6969),
    ("SMB", 0x517b),
    ("CIFS", 0xff53_4d42),
    ("SMB2", 0xfe53_4d42),
    ("Ceph", 0x00c3_6400),
    ("Lustre", 0x0bd0_0bd0),
    ("GPFS", 0x4750_4653),
    ("BeeGFS", 0x1983_0326),
    ("AFS", 0x6b41_4653),
    ("OpenAFS", 0x5346_414f),
    ("9p", 0x0102_1997),
    ("FUSE", 0x6573_5546),
    ("Coda", 0x7375_7245),
    ("PanFS", 0xaad7_aaea),
    ("OrangeFS", 0x2003_0528),
];

#[cfg(target_os = "linux")]
fn on_network(path: &Path) -> bool {
    // The type's width and sign differ between machines; the numbers are 32 bits.
    rustix::fs::statfs(path)
        .is_ok_and(|system| NETWORK.iter().any(|&(_, number)| number == system.f_type as u32))
}

#[cfg(not(target_os = "linux"))]
fn on_network(_: &Path) -> bool {
    false
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, ExitStatus};
    use std::sync::Barrier;
    use std::thread;
    use tempfile::TempDir;

    const BOTH: [Io; 2] = [Io::Mmap, Io::Pread];
    /// No multiple of a page, of whatever size.
    const LEN: usize = 300_123;

    /// Never zero, so that lost bytes show.
    fn byte(at: usize) -> u8 {
        (at % 251) as u8 + 1
    }

    fn content() -> Vec<u8> {
        (0..LEN).map(byte).collect()
    }

    fn shard(folder: &TempDir, name: &str) -> PathBuf {
        let path = folder.path().join(name);
        fs::write(&path, content()).unwrap();
        path
    }

    fn cut(path: &Path, len: u64) {
        File::options().write(true).open(path).unwrap().set_len(len).unwrap();
    }

    #[test]
    fn bytes_are_read_as_they_were_written() {
        let folder = TempDir::new().unwrap();
        let path = shard(&folder, "a.tar");
        for io in BOTH {
            let bytes = ShardBytes::open(&path, LEN as u64, io).unwrap();
            bytes.advise(5, u64::MAX);
            bytes.advise(u64::MAX, 7);
            for (from, to) in [(0, LEN), (0, 0), (1, 4097), (4095, 12_289), (LEN - 1, LEN)] {
                let mut out = vec![0; to - from];
                bytes.advise(from as u64, out.len() as u64);
                bytes.read_at(from as u64, &mut out).unwrap();
                assert_eq!(out, content()[from..to], "{io:?} from {from} to {to}");
            }
            for from in [LEN as u64 - 1, LEN as u64, u64::MAX] {
                let error = bytes.read_at(from, &mut [0; 2]).unwrap_err().to_string();
                assert!(error.contains("a.tar") && error.contains("300123"), "{error}");
            }
            fs::write(folder.path().join("empty"), []).unwrap();
            let empty = ShardBytes::open(&folder.path().join("empty"), 0, io).unwrap();
            empty.read_at(0, &mut []).unwrap();
            assert!(empty.read_at(0, &mut [0]).is_err());
        }
    }

    /// Offsets of 32 bits wrap there (mosaicml/streaming 659 and 671, influxdata/influxdb 4388).
    #[test]
    fn bytes_beyond_four_gibibytes_are_read() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("large.tar");
        let file = File::create(&path).unwrap();
        let (beyond, len) = ((1u64 << 32) + 70_000, (1u64 << 32) + 80_000);
        file.set_len(len).unwrap(); // takes no space on the disk
        std::os::unix::fs::FileExt::write_all_at(&file, &content()[..10_000], beyond).unwrap();
        for io in BOTH {
            let bytes = ShardBytes::open(&path, len, io).unwrap();
            let mut out = vec![1; 10_000];
            bytes.advise(beyond, 10_000);
            bytes.read_at(beyond, &mut out).unwrap();
            assert_eq!(out, content()[..10_000], "{io:?}");
            bytes.read_at(beyond - (1 << 32), &mut out).unwrap();
            assert_eq!(out, vec![0; 10_000], "{io:?}");
        }
    }

    #[test]
    fn a_shard_of_another_length_is_refused() {
        let folder = TempDir::new().unwrap();
        let path = shard(&folder, "a.tar");
        for io in BOTH {
            for (path, wanted, found) in [
                (&path, LEN - 1, "300123"),
                (&path, LEN + 1, "300123"),
                (&folder.path().join("gone.tar"), LEN, "none"),
                (&folder.path().to_path_buf(), LEN, "no regular file"),
            ] {
                let error = ShardBytes::open(path, wanted as u64, io).err().unwrap();
                assert!(matches!(error, Error::DamagedSet { .. }), "{error:?}");
                let wanted = format!("expected a shard of {wanted} bytes, found {found}");
                assert_eq!(error.to_string(), format!("{}: {wanted}", path.display()));
            }
        }
    }

    #[test]
    fn a_shard_cut_short_is_an_error() {
        let folder = TempDir::new().unwrap();
        for io in BOTH {
            // To nothing, at a page, within one, within the last, by a byte.
            for to in [0, 65_536, 65_536 + 100, LEN as u64 - 50, LEN as u64 - 1] {
                let path = shard(&folder, "cut.tar");
                let other = shard(&folder, "other.tar");
                let bytes = ShardBytes::open(&path, LEN as u64, io).unwrap();
                let others = ShardBytes::open(&other, LEN as u64, io).unwrap();
                let mut out = vec![0; LEN];
                bytes.read_at(0, &mut out).unwrap();
                cut(&path, to);
                for from in [0, LEN - 60, LEN - 1] {
                    let error = bytes.read_at(from as u64, &mut out[from..]).unwrap_err();
                    let wanted = format!(
                        "cut.tar: was cut short while it was read: expected 300123 bytes, found {to}"
                    );
                    assert!(matches!(error, Error::LostShard { .. }), "{error:?}");
                    assert!(error.to_string().ends_with(&wanted), "{io:?} {to} {from}: {error}");
                }
                others.read_at(0, &mut out).unwrap();
                assert_eq!(out, content());
            }
        }
    }

    /// Its mapping holds zeros by then.
    #[test]
    fn a_shard_that_comes_back_must_be_opened_again() {
        let folder = TempDir::new().unwrap();
        let path = shard(&folder, "a.tar");
        let bytes = ShardBytes::open(&path, LEN as u64, Io::Mmap).unwrap();
        let mut out = vec![0; LEN];
        cut(&path, 0);
        bytes.read_at(0, &mut out).unwrap_err();
        fs::write(&path, content()).unwrap();
        let error = bytes.read_at(0, &mut out).unwrap_err().to_string();
        assert!(error.contains("a.tar: a part of it could not be read"), "{error}");
        let again = ShardBytes::open(&path, LEN as u64, Io::Mmap).unwrap();
        again.read_at(0, &mut out).unwrap();
        assert_eq!(out, content());
    }

    #[test]
    fn a_deleted_shard_stays_readable() {
        let folder = TempDir::new().unwrap();
        for io in BOTH {
            let path = shard(&folder, "a.tar");
            let bytes = ShardBytes::open(&path, LEN as u64, io).unwrap();
            fs::remove_file(&path).unwrap();
            let mut out = vec![0; LEN];
            bytes.read_at(0, &mut out).unwrap();
            assert_eq!(out, content(), "{io:?}");
        }
    }

    /// Threads copy from one shard while it is cut, and from another that is not. Whatever they are
    /// told is right is right.
    #[test]
    fn threads_never_get_lost_bytes_for_good_ones() {
        const THREADS: usize = 4;
        let folder = TempDir::new().unwrap();
        let whole = content();
        let safe = shard(&folder, "safe.tar");
        let safe = ShardBytes::open(&safe, LEN as u64, Io::Mmap).unwrap();
        for round in 0..40 {
            let path = shard(&folder, "cut.tar");
            let bytes = ShardBytes::open(&path, LEN as u64, Io::Mmap).unwrap();
            let started = Barrier::new(THREADS + 1);
            thread::scope(|scope| {
                for thread in 0..THREADS {
                    let (bytes, safe, whole, started) = (&bytes, &safe, &whole, &started);
                    scope.spawn(move || {
                        let mut out = vec![0; 70_000];
                        started.wait();
                        for turn in thread.. {
                            let from = turn * 7919 % (LEN - out.len());
                            safe.read_at(from as u64, &mut out).unwrap();
                            assert_eq!(out, whole[from..][..out.len()], "the safe shard");
                            if bytes.read_at(from as u64, &mut out).is_err() {
                                break;
                            }
                            assert_eq!(out, whole[from..][..out.len()], "the cut shard");
                        }
                    });
                }
                started.wait();
                cut(&path, [0, 4096, 100_000][round % 3]);
            });
        }
    }

    #[test]
    fn local_file_systems_are_mapped() {
        assert_eq!(Io::for_path(Path::new("/proc")), Io::Mmap);
        assert_eq!(Io::for_path(Path::new("/not/there")), Io::Mmap);
        #[cfg(target_os = "linux")]
        for local in [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630] {
            assert!(!NETWORK.iter().any(|&(_, number)| number == local), "{local:x}");
        }
    }

    /// Runs `child` below in a process of its own.
    fn run_child(what: &str) -> ExitStatus {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "shard::bytes::tests::child", "--ignored", "--nocapture"])
            .env("ZFNET_CHILD", what)
            .output()
            .unwrap()
            .status
    }

    #[test]
    fn other_bus_errors_are_not_ours() {
        assert_eq!(run_child("guarded").code(), Some(0));
        for what in ["foreign", "foreign out", "foreign, ignored before"] {
            assert_eq!(run_child(what).signal(), Some(libc::SIGBUS), "{what}");
        }
        assert_eq!(run_child("foreign, handled before").code(), Some(42));
        assert_eq!(run_child("foreign, handled simply before").code(), Some(43));
        assert_eq!(run_child("sent, default before").signal(), Some(libc::SIGBUS));
        assert_eq!(run_child("sent, ignored before").code(), Some(0));
    }

    /// A signal stack of the least size that the system allows is all that Rust gives a thread where
    /// signal frames are large, as they are with AMX.
    #[test]
    #[cfg(target_os = "linux")]
    fn the_smallest_signal_stack_suffices() {
        assert_eq!(run_child("guarded, smallest stack").code(), Some(0));
    }

    /// The same with tiles in use, whose 8 KiB are part of the frame then.
    #[test]
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    #[ignore = "needs a CPU with AMX"]
    fn the_smallest_signal_stack_suffices_with_tiles() {
        assert_eq!(run_child("guarded, smallest stack, tiles").code(), Some(0));
    }

    /// Has this thread's signals handled on the smallest stack that the system allows, below which
    /// is memory that must not be touched.
    #[cfg(target_os = "linux")]
    fn use_smallest_signal_stack() {
        // SAFETY: the memory is this function's own, and stays for as long as the process lives.
        unsafe {
            let size = (libc::getauxval(libc::AT_MINSIGSTKSZ) as usize).max(libc::MINSIGSTKSZ);
            let page = libc::sysconf(libc::_SC_PAGESIZE) as usize;
            let (access, kind) = (libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let memory = libc::mmap(std::ptr::null_mut(), page + size, access, kind, -1, 0);
            assert_ne!(memory, libc::MAP_FAILED);
            let start = memory.byte_add(page);
            assert_eq!(libc::mprotect(start, size, libc::PROT_READ | libc::PROT_WRITE), 0);
            let stack = libc::stack_t { ss_sp: start, ss_flags: 0, ss_size: size };
            assert_eq!(libc::sigaltstack(&raw const stack, std::ptr::null_mut()), 0);
        }
    }

    /// Puts something into a tile: from then on a signal's frame has the contents of all tiles.
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    fn use_tiles() {
        let mut configuration = [0_u8; 64];
        (configuration[0], configuration[16], configuration[48]) = (1, 64, 16); // palette, bytes of a row, rows
        let ones = [0x3f80_3f80_u32; 256];
        // SAFETY: asks for the permission (`ARCH_REQ_XCOMP_PERM`, `XFEATURE_XTILEDATA`), without
        // which the instructions end this process; they read the arrays. The compiler uses no tiles.
        unsafe {
            assert_eq!(libc::syscall(libc::SYS_arch_prctl, 0x1023, 18), 0, "AMX is refused");
            std::arch::asm!(
                "ldtilecfg [{configuration}]",
                "tileloadd tmm0, [{ones} + {stride}]",
                configuration = in(reg) &raw const configuration,
                ones = in(reg) &raw const ones,
                stride = in(reg) 64_usize,
                out("tmm0") _,
                options(nostack, readonly),
            );
        }
    }

    #[test]
    #[ignore = "only as a process of its own"]
    fn child() {
        extern "C" fn exit_42(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
            // SAFETY: the system passes what SA_SIGINFO announces; `_exit` may be called here.
            unsafe {
                libc::_exit(if (*info).si_code == libc::BUS_ADRERR { 42 } else { 1 });
            }
        }
        extern "C" fn exit_43(_: libc::c_int) {
            // SAFETY: may be called here.
            unsafe { libc::_exit(43) }
        }
        let Ok(what) = std::env::var("ZFNET_CHILD") else { return };
        let before = match what.as_str() {
            "foreign, ignored before" | "sent, ignored before" => Some((libc::SIG_IGN, 0)),
            "sent, default before" => Some((libc::SIG_DFL, 0)),
            "foreign, handled before" => {
                let handler: extern "C" fn(_, _, _) = exit_42;
                Some((handler as libc::sighandler_t, libc::SA_SIGINFO))
            }
            "foreign, handled simply before" => {
                let handler: extern "C" fn(_) = exit_43;
                Some((handler as libc::sighandler_t, 0))
            }
            _ => None,
        };
        if let Some((handler, flags)) = before {
            // SAFETY: the handlers have the arguments that their flags announce.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = handler;
                action.sa_flags = flags;
                assert_eq!(libc::sigaction(libc::SIGBUS, &raw const action, &raw mut action), 0);
            }
        }
        let folder = TempDir::new().unwrap();
        let path = shard(&folder, "ours.tar");
        let bytes = ShardBytes::open(&path, LEN as u64, Io::Mmap).unwrap();
        if what.starts_with("sent") {
            // SAFETY: sends a signal to this thread.
            unsafe { libc::raise(libc::SIGBUS) };
            return;
        }
        #[cfg(target_os = "linux")]
        if what.contains("smallest stack") {
            use_smallest_signal_stack();
        }
        #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
        if what.contains("tiles") {
            use_tiles();
        }
        cut(&path, 0);
        bytes.read_at(0, &mut [0; 10]).unwrap_err();
        if what.starts_with("guarded") {
            return;
        }
        let whole = shard(&folder, "whole.tar");
        let whole = ShardBytes::open(&whole, LEN as u64, Io::Mmap).unwrap();
        let foreign = shard(&folder, "foreign");
        let file = File::options().read(true).write(true).open(&foreign).unwrap();
        let memory = MmapOptions::new().map_raw(&file).unwrap();
        cut(&foreign, 0);
        // SAFETY: the memory is ours; touching it raises SIGBUS, as is wanted.
        unsafe {
            if what == "foreign out" {
                let out = std::slice::from_raw_parts_mut(memory.as_mut_ptr(), 100);
                let _ = whole.read_at(0, out);
            }
            memory.as_ptr().read_volatile();
        }
    }
}
