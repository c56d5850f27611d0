//! What several GPUs send each other: NCCL, on a stream of its own beside the kernels.
//!
//! NVIDIA's library is loaded when the first communicator is asked for, under the name that PyPI's and the
//! distributions' packages give it; one GPU needs none. (cudarc's bindings look for `libnccl.so` and for names with
//! CUDA's version, not for `libnccl.so.2`, and end the program where there is none. So the few functions are declared
//! here.)
//!
//! Of the library's operations only those are used whose results do not depend on how it joins the GPUs: sends,
//! receives, and the largest of integers. Sums of floats are made by our own kernels, in an order that is ours.
//!
//! **Nothing waits for ever.** A rank that has ended leaves the others' work on their GPUs hanging, and whoever waits
//! for it. So communicators do not block (NCCL's user guide, "Fault Tolerance"); every wait of a backend that has one
//! asks again and again, and when an error has come up, a rank is known to be lost, or it takes too long, the communicator
//! is aborted: what hangs then ends, and the wait is an error.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use cudarc::driver::sys::{CUresult, cuStreamQuery};
use cudarc::driver::{CudaEvent, CudaStream, DriverError};

use super::CudaBackend;
use super::device::{Device, Memory, failed};
use crate::backend::Tensor;
use crate::{Error, Result};

// ---- the library ----

/// Names of the library, those of packages first.
const FILES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];
/// The first version with communicators that do not block, as NCCL counts: 2.14.
const OLDEST: c_int = 21400;

/// How long the word of a rank is waited for that may be the cause of an error of the library.
const WORD: Duration = Duration::from_secs(3);

const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;
const UINT32: c_int = 3;
const FLOAT32: c_int = 7;
const MAX: c_int = 2;

/// `ncclComm_t`.
type Handle = *mut c_void;
/// `cudaStream_t`, which is the driver's `CUstream`.
type Stream = *mut c_void;

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Id([u8; 128]);

/// `ncclConfig_t` of version 2.14: later versions of the library read no more of it, and take their defaults.
#[repr(C)]
struct Config {
    size: usize,
    magic: u32,
    version: c_int,
    blocking: c_int,
}

macro_rules! library {
    ($($name:ident = $symbol:ident($($argument:ty),*) -> $result:ty;)*) => {
        /// NCCL's functions.
        struct Library {
            $($name: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl Library {
            /// The functions of a library, or the name of one that it lacks.
            fn of(library: &'static libloading::Library) -> Result<Self, &'static str> {
                Ok(Library {
                    $($name: {
                        let symbol = concat!(stringify!($symbol), "\0").as_bytes();
                        // SAFETY: the type is that of `nccl.h`, which NCCL 2 keeps.
                        *unsafe { library.get(symbol) }.map_err(|_| stringify!($symbol))?
                    },)*
                })
            }
        }
    };
}

library! {
    version = ncclGetVersion(*mut c_int) -> c_int;
    error_string = ncclGetErrorString(c_int) -> *const c_char;
    last_error = ncclGetLastError(Handle) -> *const c_char;
    unique_id = ncclGetUniqueId(*mut Id) -> c_int;
    begin = ncclCommInitRankConfig(*mut Handle, c_int, Id, c_int, *mut Config) -> c_int;
    state = ncclCommGetAsyncError(Handle, *mut c_int) -> c_int;
    finalize = ncclCommFinalize(Handle) -> c_int;
    destroy = ncclCommDestroy(Handle) -> c_int;
    abort = ncclCommAbort(Handle) -> c_int;
    group_start = ncclGroupStart() -> c_int;
    group_end = ncclGroupEnd() -> c_int;
    send = ncclSend(*const c_void, usize, c_int, c_int, Handle, Stream) -> c_int;
    receive = ncclRecv(*mut c_void, usize, c_int, c_int, Handle, Stream) -> c_int;
    all_reduce = ncclAllReduce(*const c_void, *mut c_void, usize, c_int, c_int, Handle, Stream) -> c_int;
}

/// The library, which is loaded once.
fn library() -> Result<&'static Library> {
    static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
    LIBRARY.get_or_init(load).as_ref().map_err(|reason| Error::Backend(reason.clone()))
}

fn load() -> Result<Library, String> {
    let [first, other] = FILES;
    // SAFETY: opening the library runs its initialisers, which NVIDIA's library allows at any time.
    let opened =
        unsafe { libloading::Library::new(first).or_else(|_| libloading::Library::new(other)) };
    // It stays loaded until the program ends: functions are taken from it.
    let opened = Box::leak(Box::new(opened.map_err(|error| {
        format!(
            "NCCL ({first}), by which several GPUs exchange gradients, cannot be loaded ({error}): install \
             libnccl2 of your distribution, or nvidia-nccl-cu13 from PyPI and put its folder into \
             LD_LIBRARY_PATH; a single GPU needs none"
        )
    })?));
    let library = Library::of(opened).map_err(|missing| format!("NCCL: it has no {missing}"))?;
    let mut version = 0;
    // SAFETY: it writes one integer.
    let status = unsafe { (library.version)(&mut version) };
    if status != SUCCESS || version < OLDEST {
        let [major, minor] = [version / 10_000, version % 10_000 / 100];
        return Err(format!("NCCL: expected version 2.14 or later, found {major}.{minor}"));
    }
    Ok(library)
}

/// Whether the library can be used.
///
/// # Errors
/// If not: why.
pub(super) fn can_load() -> Result<()> {
    library().map(|_| ())
}

impl Library {
    /// What the library says of an error, and of the last that it has noticed.
    fn describe(&self, status: c_int) -> String {
        let text = |text: *const c_char| {
            if text.is_null() {
                return String::new();
            }
            // SAFETY: the library gives strings that end with a zero and that it keeps.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_owned()
        };
        // SAFETY: any number is allowed, and any communicator, also none.
        let (error, last) =
            unsafe { ((self.error_string)(status), (self.last_error)(std::ptr::null_mut())) };
        match text(last) {
            last if last.is_empty() => text(error),
            last => format!("{} ({last})", text(error)),
        }
    }
}

// ---- communicators ----

/// What identifies the ranks of a communicator to each other. One of them makes it and sends its bytes to the others,
/// by whatever means they have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UniqueId(pub [u8; 128]);

impl UniqueId {
    /// Another one with each call.
    ///
    /// # Errors
    /// If NCCL cannot be loaded, or finds no way for ranks to reach this machine.
    pub fn new() -> Result<Self> {
        let library = library()?;
        let mut id = Id([0; 128]);
        // SAFETY: it fills the identifier.
        match unsafe { (library.unique_id)(&mut id) } {
            SUCCESS => Ok(UniqueId(id.0)),
            status => Err(Error::Backend(format!("NCCL: {}", library.describe(status)))),
        }
    }
}

/// A rank among several, each on a GPU of its own, in threads of one process or in several.
///
/// What it sends and receives waits in a stream beside that of the backend's operations, and neither waits for the
/// other unless told: [`Communicator::after_operations`], [`Communicator::before_operations`].
pub struct Communicator {
    library: &'static Library,
    /// None when it was finished, or aborted.
    handle: Mutex<Option<Owned>>,
    device: Arc<Device>,
    stream: Arc<CudaStream>,
    /// Recorded behind operations, which are waited for here.
    operated: CudaEvent,
    /// Recorded behind what was exchanged, which operations wait for.
    exchanged: CudaEvent,
    rank: usize,
    ranks: usize,
    patience: Duration,
    alive: Box<Alive>,
}

/// Says which rank is known to be lost.
type Alive = dyn Fn() -> Result<()> + Send + Sync;

/// A communicator of the library.
struct Owned(Handle);

// SAFETY: a communicator may be used from any thread, by one at a time: it is behind a lock.
unsafe impl Send for Owned {}

impl Communicator {
    /// Joins the other ranks, each of which calls this with the same identifier. Then it has connections to all of them.
    /// From now on whatever waits for the backend waits at most `patience` for other ranks: longer than the longest
    /// step, and than one of them may be late. Meanwhile it asks `alive`, which fails when a rank is known to be lost.
    ///
    /// # Errors
    /// If NCCL cannot be loaded, a rank is lost, or the others do not come within `patience`.
    pub fn new(
        backend: &CudaBackend,
        id: &UniqueId,
        rank: usize,
        ranks: usize,
        patience: Duration,
        alive: impl Fn() -> Result<()> + Send + Sync + 'static,
    ) -> Result<Arc<Self>> {
        assert!(rank < ranks, "rank {rank} of {ranks}");
        let library = library()?;
        let device = backend.device.clone();
        device.bind()?;
        let mut config =
            Config { size: size_of::<Config>(), magic: 0xcafe_beef, version: OLDEST, blocking: 0 };
        let mut handle = std::ptr::null_mut();
        // SAFETY: the GPU is current; the handle and the configuration live until the call is over.
        let status = unsafe {
            (library.begin)(&mut handle, ranks as c_int, Id(id.0), rank as c_int, &mut config)
        };
        let communicator = Arc::new(Communicator {
            library,
            handle: Mutex::new((!handle.is_null()).then_some(Owned(handle))),
            stream: device.urgent_stream()?,
            operated: device.event()?,
            exchanged: device.event()?,
            device,
            rank,
            ranks,
            patience,
            alive: Box::new(alive),
        });
        let mut locked = communicator.lock();
        communicator.done(&mut locked, status, "join the other ranks", patience)?;
        drop(locked);
        communicator.device.exchanges_by(&communicator);
        communicator.connect()?;
        Ok(communicator)
    }

    /// Its number.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many there are.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// Makes all connections, which the library makes when they are first used: while steps run nobody is to wait for
    /// that. What arrives has to be what was sent.
    fn connect(&self) -> Result<()> {
        let numbers: Vec<u32> = (0..self.ranks as u32).collect();
        let [sent, received] = [self.device.allocate(4)?, self.device.allocate(4 * self.ranks)?];
        self.device.upload(&sent, &[self.rank as u32])?;
        self.after_operations()?;
        let mut group = self.group();
        for other in self.others() {
            group.calls.push(Call::Send { to: other, at: sent.pointer(), count: 1, kind: UINT32 });
            let at = received.pointer() + 4 * other as u64;
            group.calls.push(Call::Receive { from: other, at, count: 1, kind: UINT32 });
        }
        group.enqueue()?;
        let mut group = self.group();
        let at = received.pointer() + 4 * self.rank as u64;
        group.calls.push(Call::Largest { at });
        group.enqueue()?;
        self.before_operations()?;
        let mut found = vec![0; self.ranks];
        self.device.download(&mut found, &received)?;
        found[self.rank] = self.rank as u32; // the largest of zeros
        match found == numbers {
            true => Ok(()),
            false => Err(self.error(format!("{found:?} has arrived where {numbers:?} was sent"))),
        }
    }

    /// All other ranks, beginning behind this one: so not all of them send to the same one first.
    pub fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let (rank, ranks) = (self.rank, self.ranks);
        (1..ranks).map(move |i| (rank + i) % ranks)
    }

    /// What is exchanged from here on waits for all operations so far.
    ///
    /// # Errors
    /// If the GPU refuses.
    pub fn after_operations(&self) -> Result<()> {
        self.operated.record(&self.device.stream).map_err(failed("record an event"))?;
        self.stream.wait(&self.operated).map_err(failed("order streams"))
    }

    /// Operations from here on wait for all that has been exchanged so far.
    ///
    /// # Errors
    /// If the GPU refuses.
    pub fn before_operations(&self) -> Result<()> {
        self.exchanged.record(&self.stream).map_err(failed("record an event"))?;
        self.device.stream.wait(&self.exchanged).map_err(failed("order streams"))
    }

    /// Begins a list of what is exchanged at the same time.
    pub fn group(&self) -> Group<'_> {
        Group { communicator: self, calls: Vec::new() }
    }

    /// Ends it, when all ranks do: waits for what has been exchanged, at all of them, but not longer than this.
    ///
    /// # Errors
    /// If another rank does not come to this end.
    pub fn finish(&self, patience: Duration) -> Result<()> {
        self.wait_patiently(&self.stream, "exchange values", patience)?;
        let mut handle = self.lock();
        let Some(Owned(raw)) = *handle else { return Ok(()) };
        // SAFETY: the communicator is alive, and locked.
        let status = unsafe { (self.library.finalize)(raw) };
        self.done(&mut handle, status, "end the exchange", patience)?;
        *handle = None;
        // SAFETY: as above; from here on nobody has it.
        match unsafe { (self.library.destroy)(raw) } {
            SUCCESS => Ok(()),
            status => Err(self.error(self.library.describe(status))),
        }
    }

    /// Gives up: what still waits for other ranks ends without its values.
    pub fn abort(&self) {
        self.give_up(&mut self.lock());
    }

    /// Why the library fails: perhaps because of a rank that says so itself, or will be known to be lost.
    fn cause(&self, error: Error) -> Error {
        let begun = Instant::now();
        loop {
            match (self.alive)() {
                Err(known) => return known,
                Ok(()) if begun.elapsed() < WORD => pause(),
                Ok(()) => return error,
            }
        }
    }

    fn give_up(&self, handle: &mut Option<Owned>) {
        if let Some(Owned(raw)) = handle.take() {
            let _ = self.device.bind();
            // SAFETY: the communicator is alive, and from here on nobody has it. A failure cannot be helped.
            let _ = unsafe { (self.library.abort)(raw) };
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Owned>> {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, reason: impl fmt::Display) -> Error {
        Error::Backend(format!("rank {} of {}: NCCL: {reason}", self.rank, self.ranks))
    }

    /// Nobody has done anything for too long.
    fn too_long(&self, patience: Duration) -> Error {
        Error::Backend(format!(
            "rank {} of {}: the other ranks have not done their part for {} seconds: one of them has ended, or stands \
             still",
            self.rank,
            self.ranks,
            patience.as_secs_f64()
        ))
    }

    /// Waits until the library has done what it has been asked for with this answer. If it has failed, so has the
    /// communicator.
    fn done(
        &self,
        handle: &mut Option<Owned>,
        status: c_int,
        what: &str,
        patience: Duration,
    ) -> Result<()> {
        let begun = Instant::now();
        let result = match status {
            SUCCESS | IN_PROGRESS => loop {
                let busy = || self.is_busy(handle).map_err(|error| self.cause(error));
                match (self.alive)().and_then(|()| busy()) {
                    Ok(false) => break Ok(()),
                    Ok(true) if begun.elapsed() < patience => pause(),
                    Ok(true) => break Err(self.too_long(patience)),
                    Err(error) => break Err(error),
                }
            },
            status => {
                let reason = format!("cannot {what}: {}", self.library.describe(status));
                Err(self.cause(self.error(reason)))
            }
        };
        if result.is_err() {
            self.give_up(handle);
        }
        result
    }

    /// Whether the library is at something in the background.
    fn is_busy(&self, handle: &Option<Owned>) -> Result<bool> {
        let Some(Owned(raw)) = *handle else {
            return Err(self.error("the exchange has ended"));
        };
        let mut state = SUCCESS;
        // SAFETY: the communicator is alive, and locked; one integer is written.
        match unsafe { (self.library.state)(raw, &mut state) } {
            SUCCESS if matches!(state, SUCCESS | IN_PROGRESS) => Ok(state == IN_PROGRESS),
            SUCCESS => Err(self.error(format_args!(
                "{}: a rank has failed, or what joins them",
                self.library.describe(state)
            ))),
            status => Err(self.error(self.library.describe(status))),
        }
    }

    /// Waits on the host for what is asked about, and gives up if a rank has failed or it takes too long. Whoever has
    /// given up before only waits.
    ///
    /// # Errors
    /// If it had to give up, or the GPU has failed.
    pub(super) fn wait_until(
        &self,
        what: &'static str,
        is_over: impl Fn() -> Result<bool, DriverError>,
    ) -> Result<()> {
        self.wait_patiently_until(what, self.patience, is_over)
    }

    fn wait_patiently_until(
        &self,
        what: &'static str,
        patience: Duration,
        is_over: impl Fn() -> Result<bool, DriverError>,
    ) -> Result<()> {
        let begun = Instant::now();
        loop {
            let over = is_over();
            if let Ok(true) = over {
                return Ok(());
            }
            let mut handle = self.lock();
            let well = (self.alive)().and_then(|()| match *handle {
                Some(_) => self.is_busy(&handle).map(drop).map_err(|error| self.cause(error)),
                None => Ok(()),
            });
            let reason = match (handle.is_some(), well, over) {
                (true, Err(error), _) => error,
                (_, _, Err(error)) => failed(what)(error),
                (true, Ok(()), _) if begun.elapsed() > patience => self.too_long(patience),
                _ => {
                    drop(handle);
                    pause();
                    continue;
                }
            };
            self.give_up(&mut handle);
            return Err(reason);
        }
    }

    /// [`Communicator::wait_until`] a stream has done all that it was given.
    pub(super) fn wait_for(&self, stream: &CudaStream, what: &'static str) -> Result<()> {
        self.wait_patiently(stream, what, self.patience)
    }

    fn wait_patiently(
        &self,
        stream: &CudaStream,
        what: &'static str,
        patience: Duration,
    ) -> Result<()> {
        self.device.bind()?;
        self.wait_patiently_until(what, patience, || {
            // SAFETY: the stream is alive.
            let status = unsafe { cuStreamQuery(stream.cu_stream()) };
            match status {
                CUresult::CUDA_ERROR_NOT_READY => Ok(false),
                status => status.result().map(|()| true),
            }
        })
    }

    /// [`Communicator::wait_until`] all its work is done, and the errors of that left to others.
    pub(super) fn settle(&self) {
        let _ = self.wait_for(&self.stream, "exchange values");
    }
}

impl Drop for Communicator {
    /// Who has not finished has failed, and the others are not to wait for its part.
    fn drop(&mut self) {
        self.abort();
        let _ = self.stream.synchronize();
    }
}

/// Between two questions about what takes tens of microseconds to milliseconds.
fn pause() {
    std::thread::sleep(Duration::from_micros(20));
}

// ---- what is exchanged ----

/// What is exchanged at the same time: no part of it waits for another, but for those with the same rank, which are
/// done in their order.
#[must_use = "nothing is exchanged before it is enqueued"]
pub struct Group<'a> {
    communicator: &'a Communicator,
    calls: Vec<Call>,
}

/// Addresses are of the GPU; counts are of values.
enum Call {
    Send {
        to: usize,
        at: u64,
        count: usize,
        kind: c_int,
    },
    Receive {
        from: usize,
        at: u64,
        count: usize,
        kind: c_int,
    },
    /// The largest of all ranks, in the place of each.
    Largest {
        at: u64,
    },
}

impl Group<'_> {
    /// Sends values of a tensor (in f32: gradients, weights, momentum) to a rank, which receives as many.
    ///
    /// # Panics
    /// If there are no such values.
    pub fn send(&mut self, to: usize, tensor: &Tensor<CudaBackend>, values: Range<usize>) {
        if let (at, count @ 1..) = place(tensor, &values) {
            self.calls.push(Call::Send { to, at, count, kind: FLOAT32 });
        }
    }

    /// Receives values into a tensor (in f32) from a rank, which sends as many.
    ///
    /// # Panics
    /// If there are no such values.
    pub fn receive(&mut self, from: usize, tensor: &mut Tensor<CudaBackend>, values: Range<usize>) {
        if let (at, count @ 1..) = place(tensor, &values) {
            self.calls.push(Call::Receive { from, at, count, kind: FLOAT32 });
        }
    }

    /// Halts updates by this state if those of any rank are halted.
    pub fn halt(&mut self, state: &mut Memory) {
        self.calls.push(Call::Largest { at: state.pointer() + super::HALTED as u64 });
    }

    /// Gives the list to the communicator's stream. Tensors are to be left alone, by operations that do not wait, until
    /// it is done; memory that is dropped waits for that.
    ///
    /// # Errors
    /// If the library refuses, or another rank has failed.
    pub fn enqueue(self) -> Result<()> {
        let Group { communicator, calls } = self;
        if calls.is_empty() {
            return Ok(());
        }
        communicator.device.bind()?;
        let mut handle = communicator.lock();
        let Some(Owned(raw)) = *handle else {
            return Err(communicator.error("the exchange has ended"));
        };
        let library = communicator.library;
        let stream: Stream = communicator.stream.cu_stream().cast();
        // SAFETY: a group is begun and ended in this thread. The communicator and the stream are alive; addresses are
        // of memory of its GPU, as large as was checked, which is not given back before the stream has come to its end.
        let status = unsafe {
            let calls = calls.iter().map(|call| match *call {
                Call::Send { to, at, count, kind } => {
                    (library.send)(at as *const c_void, count, kind, to as c_int, raw, stream)
                }
                Call::Receive { from, at, count, kind } => {
                    (library.receive)(at as *mut c_void, count, kind, from as c_int, raw, stream)
                }
                Call::Largest { at } => {
                    let at = at as *mut c_void;
                    (library.all_reduce)(at.cast_const(), at, 1, UINT32, MAX, raw, stream)
                }
            });
            let begun = (library.group_start)();
            let called = calls.fold(begun, first_error);
            first_error(called, (library.group_end)())
        };
        communicator.done(&mut handle, status, "exchange values", communicator.patience)
    }
}

/// The first of two answers that is an error.
fn first_error(first: c_int, second: c_int) -> c_int {
    if matches!(first, SUCCESS | IN_PROGRESS) { second } else { first }
}

/// Where values of a tensor in f32 lie, and how many there are.
fn place(tensor: &Tensor<CudaBackend>, values: &Range<usize>) -> (u64, usize) {
    let memory = tensor.buffer.f32.as_ref().expect("values in f32");
    assert!(values.end <= tensor.shape().len(), "{values:?} of {}", tensor.shape());
    (memory.pointer() + 4 * values.start as u64, values.len())
}
