//! A GPU: opened or refused with a reason, its memory, its two streams and its kernels.
//!
//! Kernels run on one stream, in the order in which they are launched; batches are copied in on a
//! second one. Memory is taken when a network is planned and never while its steps run.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{CString, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use cudarc::driver::sys::{
    CUdevice_attribute, CUevent_flags, CUfunction, CUfunction_attribute, CUmodule, CUresult,
};
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result, sys};

use super::nccl::Communicator;
use crate::backend::HostMemory;
use crate::shape::{ConvDims, PoolDims};
use crate::{Error, Result};

/// What build.rs has made of `kernels/`.
mod embedded {
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));

    /// One `.cu` file, compiled.
    pub struct Module {
        /// What it needs of a GPU.
        pub needs: Needs,
        /// A fatbin.
        pub image: &'static Aligned<[u8]>,
        /// The names of its kernels.
        pub kernels: &'static [&'static str],
    }

    /// What kernels need of a GPU.
    #[derive(Clone, Copy)]
    pub enum Needs {
        /// To be one that this program knows.
        Nothing,
        /// Tensor cores that multiply bf16 and TF32.
        TensorCores,
        /// Hopper's own instructions, which no other has.
        Hopper,
    }

    impl Needs {
        /// Whether a GPU of that compute capability has it.
        pub fn met_by(self, capability: (i32, i32)) -> bool {
            match self {
                Needs::Nothing => true,
                Needs::TensorCores => capability >= super::TENSOR,
                Needs::Hopper => capability == super::HOPPER,
            }
        }
    }

    /// At an address that is a multiple of 16: the driver reads a fatbin's header as words.
    #[repr(C, align(16))]
    pub struct Aligned<T: ?Sized>(pub T);
}

/// Dynamic shared memory that a kernel may use without being allowed to.
const SHARED: u32 = 48 << 10;
/// The oldest GPUs that the kernels are compiled for.
const OLDEST: (i32, i32) = (7, 5);

/// The oldest GPUs that have the kernels' tensor cores.
pub const TENSOR: (i32, i32) = (8, 0);
/// Those that have Hopper's own instructions: an `a` in the name of a target means that no other has them.
const HOPPER: (i32, i32) = (9, 0);
/// The oldest driver that has all that is asked of it, by the CUDA version it is for. Kernels by an
/// nvcc of CUDA 13 need a driver for CUDA 13.
const OLDEST_DRIVER: (i32, i32) = (12, 8);

/// The compiled kernels.
pub fn images() -> impl Iterator<Item = &'static [u8]> {
    embedded::MODULES.iter().map(|module| &module.image.0)
}

/// A GPU with everything loaded.
pub struct Device {
    context: Arc<CudaContext>,
    /// Where kernels run.
    pub stream: Arc<CudaStream>,
    /// Where batches are copied in.
    pub copies: Arc<CudaStream>,
    /// Bytes of shared memory of a multiprocessor.
    shared_memory: u32,
    multiprocessors: u32,
    has_hopper: bool,
    modules: Vec<CUmodule>,
    /// The module of each kernel. To ask one module after the other would make calls that fail, which
    /// tools like compute-sanitizer report.
    module_of: HashMap<&'static str, CUmodule>,
    functions: Mutex<HashMap<&'static str, Function>>,
    /// The names of kernels that were launched, if somebody wants to know.
    launched: Mutex<Option<BTreeSet<&'static str>>>,
    allocated_total: AtomicUsize,
    /// Pinned memory that is in no use now. To pin memory takes long, and to give it back waits for the
    /// GPU, which nobody may do while a step is recorded: so what a loader drops, in whichever thread,
    /// is kept for the next one.
    unused_pinned: Mutex<Vec<PinnedMemory>>,
    /// By what values are exchanged with other GPUs, if they are: a wait may then be for a rank that never comes.
    communicator: Mutex<Weak<Communicator>>,
}

/// An allocation of pinned memory: where it begins, and bytes.
struct PinnedMemory {
    pointer: *mut u8,
    bytes: usize,
}

/// A kernel, and the dynamic shared memory it is allowed.
#[derive(Clone, Copy)]
struct Function {
    handle: CUfunction,
    shared: u32,
}

// SAFETY: modules and functions are handles into the driver, which may be used from any thread in
// which the context is current; every use makes it so first. Unused pinned memory is plain memory, owned.
unsafe impl Send for Device {}
// SAFETY: as above; what changes is behind a lock.
unsafe impl Sync for Device {}

/// How many GPUs there are.
///
/// # Errors
/// If there is none or no driver: which of the two.
pub fn count() -> Result<usize> {
    // SAFETY: loading the driver's library runs its initialisers, as for every CUDA program.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::NoDevice(
            "no NVIDIA driver on this machine (libcuda.so.1 was not found): install one".into(),
        ));
    }
    let count = match result::init() {
        Ok(()) => result::device::get_count().map_err(failed("count devices"))?,
        Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => 0,
        Err(error) => return Err(failed("start the driver")(error)),
    };
    if count < 1 {
        return Err(Error::NoDevice(
            "an NVIDIA driver, but no GPU that it sees (CUDA_VISIBLE_DEVICES hides those it does \
             not name)"
                .into(),
        ));
    }
    Ok(count as usize)
}

impl Device {
    /// Opens a GPU by its number and loads the kernels.
    ///
    /// # Errors
    /// If there is no driver, no such GPU, or one that cannot run this build's kernels.
    pub fn open(ordinal: usize) -> Result<Self> {
        let count = count()?;
        if ordinal >= count {
            return Err(Error::NoDevice(format!(
                "no CUDA device {ordinal}: this machine has {count} (0 to {})",
                count - 1
            )));
        }
        let driver = driver_version()?;
        let major = env!("ZFNET_NVCC_MAJOR").parse().expect("a number from build.rs");
        let needed = OLDEST_DRIVER.max((major, 0));
        if driver < needed {
            return Err(Error::NoDevice(format!(
                "the driver is for CUDA {}.{}: this program's kernels were compiled by nvcc {}.{} \
                 and need a driver for CUDA {}.{} or later; update the driver, or build with an \
                 older nvcc (12.8 or later)",
                driver.0,
                driver.1,
                env!("ZFNET_NVCC_MAJOR"),
                env!("ZFNET_NVCC_MINOR"),
                needed.0,
                needed.1
            )));
        }
        let context = CudaContext::new(ordinal).map_err(failed("open the GPU"))?;
        // SAFETY: nothing has been allocated yet; from here on this module orders the streams.
        unsafe { context.disable_event_tracking() };
        let capability = context.compute_capability().map_err(failed("ask the GPU"))?;
        if capability < OLDEST {
            return Err(Error::NoDevice(format!(
                "{} has compute capability {}.{}: expected {}.{} (Turing) or later",
                context.name().unwrap_or_default(),
                capability.0,
                capability.1,
                OLDEST.0,
                OLDEST.1
            )));
        }
        let (stream, copies) = (
            context.new_stream().map_err(failed("make a stream"))?,
            context.new_stream().map_err(failed("make a stream"))?,
        );
        let ask = |attribute| context.attribute(attribute).map_err(failed("ask the GPU"));
        let shared_memory =
            ask(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?
                .unsigned_abs();
        let multiprocessors =
            ask(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.unsigned_abs();
        let mut device = Device {
            context,
            stream,
            copies,
            shared_memory,
            multiprocessors,
            has_hopper: false,
            modules: Vec::new(),
            module_of: HashMap::new(),
            functions: Mutex::default(),
            launched: Mutex::default(),
            allocated_total: AtomicUsize::new(0),
            unused_pinned: Mutex::default(),
            communicator: Mutex::default(),
        };
        for module in embedded::MODULES {
            if module.needs.met_by(capability) {
                let loaded = device.load(module.image, capability)?;
                device.has_hopper |= matches!(module.needs, embedded::Needs::Hopper);
                device.modules.push(loaded);
                device.module_of.extend(module.kernels.iter().map(|kernel| (*kernel, loaded)));
            }
        }
        Ok(device)
    }

    fn load(
        &self,
        image: &'static embedded::Aligned<[u8]>,
        capability: (i32, i32),
    ) -> Result<CUmodule> {
        self.bind()?;
        // SAFETY: `image` is a whole fatbin that nvcc made, aligned as its header asks.
        unsafe { result::module::load_data(image.0.as_ptr().cast()) }.map_err(|error| {
            Error::NoDevice(format!(
                "CUDA cannot load this build's kernels (for {}) on a GPU of compute capability \
                 {}.{}: {}; build with ZFNET_CUDA_ARCH={}{}",
                env!("ZFNET_CUDA_TARGETS"),
                capability.0,
                capability.1,
                describe(error),
                capability.0,
                capability.1
            ))
        })
    }

    /// Makes this GPU current in the calling thread.
    pub fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(failed("use the GPU"))
    }

    /// The GPU's name.
    pub fn name(&self) -> String {
        self.context.name().unwrap_or_else(|_| "GPU".into())
    }

    /// What no other GPU is called, on any machine.
    pub fn uuid(&self) -> Result<[u8; 16]> {
        let uuid = self.context.uuid().map_err(failed("ask for the GPU's identifier"))?;
        Ok(uuid.bytes.map(|byte| byte as u8))
    }

    /// Compute capability: major, minor.
    pub fn capability(&self) -> (i32, i32) {
        self.context.compute_capability().unwrap_or(OLDEST)
    }

    /// A number that the driver knows of the GPU.
    pub fn attribute(&self, attribute: CUdevice_attribute) -> usize {
        self.context.attribute(attribute).map_or(0, |value| value.max(0) as usize)
    }

    /// Bytes of shared memory of a multiprocessor.
    pub fn shared_memory(&self) -> u32 {
        self.shared_memory
    }

    /// Multiprocessors.
    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// Whether there are kernels of Hopper's own instructions: this is one, and this build is for it.
    pub fn has_hopper(&self) -> bool {
        self.has_hopper
    }

    /// Whether values are exchanged with other GPUs.
    pub fn exchanges(&self) -> bool {
        self.communicator().is_some()
    }

    /// Bytes allocated so far, and free now.
    pub fn memory(&self) -> Result<(usize, usize)> {
        let (free, _) = self.context.mem_get_info().map_err(failed("ask for free memory"))?;
        Ok((self.allocated_total.load(Ordering::Relaxed), free))
    }

    /// Memory of `bytes` bytes, zero.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn allocate(self: &Arc<Self>, bytes: usize) -> Result<Memory> {
        self.bind()?;
        // SAFETY: the memory is zeroed below before anyone can read it.
        let pointer = match unsafe { result::malloc_sync(bytes.max(1)) } {
            Ok(pointer) => pointer,
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let free = self.memory().ok().map(|(_, free)| free);
                return Err(Error::Memory { wanted: bytes, free });
            }
            Err(error) => return Err(failed("take memory")(error)),
        };
        self.allocated_total.fetch_add(bytes, Ordering::Relaxed);
        let memory = Memory { device: self.clone(), pointer, bytes };
        self.clear(&memory, bytes)?;
        Ok(memory)
    }

    /// Memory of the host that the GPU can copy from and to beside its work: of a size that was asked for
    /// before and has been dropped since, the same again, once the GPU is done with it. So this waits, and is
    /// not to be called while a step is recorded; to drop it is allowed at any time.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn pinned(self: &Arc<Self>, bytes: usize) -> Result<Pinned> {
        self.bind()?;
        let unused = {
            let mut unused = self.unused_pinned.lock().expect("no thread panicked here");
            let found = unused.iter().position(|memory| memory.bytes == bytes);
            found.map(|place| unused.swap_remove(place))
        };
        if let Some(PinnedMemory { pointer, bytes }) = unused {
            self.settle(); // the last copy from there, or to there
            return Ok(Pinned { device: self.clone(), pointer, bytes });
        }
        // Not write-combined: losses are read from it.
        // SAFETY: the memory is initialised before anyone can read it.
        let pin = || unsafe { result::malloc_host(bytes.max(1), 0) };
        let pinned = match pin() {
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                self.free_unused_pinned();
                pin()
            }
            pinned => pinned,
        };
        let pointer = match pinned {
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                return Err(Error::Memory { wanted: bytes, free: None });
            }
            pointer => pointer.map_err(failed("pin memory"))?,
        };
        // SAFETY: a fresh allocation of that many bytes.
        unsafe { pointer.cast::<u8>().write_bytes(0, bytes.max(1)) };
        Ok(Pinned { device: self.clone(), pointer: pointer.cast(), bytes })
    }

    fn free_unused_pinned(&self) {
        self.settle();
        let mut unused = self.unused_pinned.lock().expect("no thread panicked here");
        for PinnedMemory { pointer, .. } in unused.drain(..) {
            // SAFETY: the allocation is ours, nobody holds it, and no copy is under way.
            let _ = unsafe { result::free_host(pointer.cast()) };
        }
    }

    /// An event, not yet recorded: waiting for it does not wait.
    pub fn event(&self) -> Result<CudaEvent> {
        self.context.new_event(None).map_err(failed("make an event"))
    }

    /// An event that notes the time.
    pub fn timer(&self) -> Result<CudaEvent> {
        let flags = CUevent_flags::CU_EVENT_DEFAULT;
        self.context.new_event(Some(flags)).map_err(failed("make an event"))
    }

    /// A stream whose kernels come before those of others.
    pub fn urgent_stream(&self) -> Result<Arc<CudaStream>> {
        self.bind()?;
        let priorities = result::stream::get_priority_range();
        priorities
            .and_then(|(_, highest)| self.context.new_stream_with_priority(highest))
            .map_err(failed("make a stream"))
    }

    /// Notes that values are exchanged with other GPUs, by streams that wait for each other.
    pub fn exchanges_by(&self, communicator: &Arc<Communicator>) {
        *self.communicator.lock().expect("no thread panicked here") = Arc::downgrade(communicator);
    }

    fn communicator(&self) -> Option<Arc<Communicator>> {
        self.communicator.lock().expect("no thread panicked here").upgrade()
    }

    /// Waits for an event; where other GPUs may have a part in what comes before it, as patiently as their
    /// communicator is.
    pub fn wait(&self, event: &CudaEvent, what: &'static str) -> Result<()> {
        let Some(communicator) = self.communicator() else {
            return event.synchronize().map_err(failed(what));
        };
        self.bind()?;
        communicator.wait_until(what, || event.try_is_complete())
    }

    /// Zeroes the first `bytes` bytes, in the stream's order.
    pub fn clear(&self, memory: &Memory, bytes: usize) -> Result<()> {
        assert!(bytes <= memory.bytes);
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: the range lies inside one live allocation.
        unsafe { result::memset_d8_async(memory.pointer, 0, bytes, self.stream.cu_stream()) }
            .map_err(failed("clear memory"))
    }

    /// Copies values in, after all work before, and waits for that: an asynchronous copy may read
    /// `src` later, and the synchronous one has an order with the legacy stream only.
    pub fn upload<T: bytemuck::Pod>(&self, dst: &Memory, src: &[T]) -> Result<()> {
        self.upload_at(dst, 0, src)
    }

    /// The same from byte `first` on.
    pub fn upload_at<T: bytemuck::Pod>(&self, dst: &Memory, first: usize, src: &[T]) -> Result<()> {
        assert!(first + size_of_val(src) <= dst.bytes);
        self.bind()?;
        let pointer = dst.pointer + first as u64;
        // SAFETY: the range lies inside one live allocation, and `src` is borrowed until the stream
        // has been waited for.
        unsafe { result::memcpy_htod_async(pointer, src, self.stream.cu_stream()) }
            .map_err(failed("copy to the GPU"))?;
        self.synchronize()
    }

    /// Copies values out, after all work before.
    pub fn download<T: bytemuck::Pod>(&self, dst: &mut [T], src: &Memory) -> Result<()> {
        self.download_at(dst, src, 0)
    }

    /// The same from byte `first` on.
    pub fn download_at<T: bytemuck::Pod>(
        &self,
        dst: &mut [T],
        src: &Memory,
        first: usize,
    ) -> Result<()> {
        assert!(first + size_of_val(dst) <= src.bytes);
        self.bind()?;
        if let Some(communicator) = self.communicator() {
            // A copy to memory that is not pinned waits in the driver.
            communicator.wait_for(&self.stream, "run kernels")?;
        }
        let pointer = src.pointer + first as u64;
        // SAFETY: the range lies inside one live allocation, and `dst` is borrowed until the
        // stream has been waited for.
        unsafe { result::memcpy_dtoh_async(dst, pointer, self.stream.cu_stream()) }
            .map_err(failed("copy from the GPU"))?;
        self.synchronize()
    }

    /// Waits for all kernels.
    pub fn synchronize(&self) -> Result<()> {
        self.bind()?;
        if let Some(communicator) = self.communicator() {
            return communicator.wait_for(&self.stream, "run kernels");
        }
        self.stream.synchronize().map_err(failed("run kernels"))
    }

    /// Waits for all work on all streams, before something that it may use is given back. Whatever
    /// has failed by then is told by the call that needed it.
    fn settle(&self) {
        let _ = self.bind();
        if let Some(communicator) = self.communicator() {
            communicator.settle(); // all that could keep the others waiting
        }
        let _ = self.copies.synchronize();
        let _ = self.stream.synchronize();
    }

    /// Launches a kernel. See [`launch`] for the arguments.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Safety
    /// `arguments` must point at values of the types and in the order of the kernel's parameters;
    /// what the kernel reads and writes by them must lie inside live allocations.
    pub unsafe fn launch(
        &self,
        name: &'static str,
        launch: Launch,
        arguments: &mut [*mut c_void],
    ) -> Result<()> {
        self.bind()?;
        self.note(name);
        let function = self.function(name, launch.shared)?;
        let Launch { grid, block, shared } = launch;
        let (grid, block) = ((grid[0], grid[1], grid[2]), (block[0], block[1], block[2]));
        let stream = self.stream.cu_stream();
        // SAFETY: the function is loaded; the rest is promised by the caller.
        unsafe { result::launch_kernel(function, grid, block, shared, stream, arguments) }
            .map_err(|error| Error::Backend(format!("CUDA: {name}: {}", describe(error))))
    }

    /// Notes that something is computed by this kernel or library, if somebody wants to know.
    pub fn note(&self, name: &'static str) {
        if let Some(names) = &mut *self.launched.lock().expect("no thread panicked here") {
            names.insert(name);
        }
    }

    /// What has been noted since the last call; nothing is before the first.
    pub fn noted(&self) -> BTreeSet<&'static str> {
        let mut launched = self.launched.lock().expect("no thread panicked here");
        launched.replace(BTreeSet::new()).unwrap_or_default()
    }

    fn function(&self, name: &'static str, shared: u32) -> Result<CUfunction> {
        let mut functions = self.functions.lock().expect("no thread panicked here");
        let found = match functions.get(name) {
            Some(function) if function.shared >= shared => return Ok(function.handle),
            Some(function) => function.handle,
            None => self.find(name)?,
        };
        if shared > SHARED {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: `found` is a function of a loaded module.
            unsafe { result::function::set_function_attribute(found, attribute, shared as i32) }
                .map_err(failed("give a kernel its shared memory"))?;
        }
        functions.insert(name, Function { handle: found, shared: shared.max(SHARED) });
        Ok(found)
    }

    fn find(&self, name: &'static str) -> Result<CUfunction> {
        let Some(module) = self.module_of.get(name) else {
            return Err(Error::Backend(format!("CUDA: no kernel {name} for this GPU")));
        };
        let symbol = CString::new(name).expect("kernel names hold no zero");
        // SAFETY: the module is loaded, and stays so as long as `self` lives.
        unsafe { result::module::get_function(*module, symbol) }
            .map_err(|error| Error::Backend(format!("CUDA: kernel {name}: {}", describe(error))))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.free_unused_pinned();
        for module in self.modules.drain(..) {
            // SAFETY: nothing runs any more, and no function of it can be called again.
            let _ = unsafe { result::module::unload(module) };
        }
    }
}

/// An allocation on the GPU.
pub struct Memory {
    device: Arc<Device>,
    pointer: u64,
    bytes: usize,
}

impl Memory {
    /// Its address on the GPU.
    pub fn pointer(&self) -> u64 {
        self.pointer
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.device.settle();
        // SAFETY: the allocation is ours, and no work uses it any more.
        let _ = unsafe { result::free_sync(self.pointer) };
    }
}

/// An allocation of the host that does not move.
pub struct Pinned {
    device: Arc<Device>,
    pointer: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory, owned.
unsafe impl Send for Pinned {}
// SAFETY: it is only written through `&mut self`.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// Its bytes. Whatever the GPU copies from or to it must have been waited for.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `bytes` initialised bytes, borrowed as `self` is.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.bytes) }
    }

    /// Copies the first `len` bytes to the GPU, in the order of `stream`.
    pub fn upload(&self, dst: &Memory, len: usize, stream: &CudaStream) -> Result<()> {
        assert!(len <= self.bytes && len <= dst.bytes);
        self.device.bind()?;
        // SAFETY: both ranges lie inside live allocations; the event that is recorded after this
        // copy is waited for before the host writes here again.
        unsafe {
            let source = std::slice::from_raw_parts(self.pointer, len);
            result::memcpy_htod_async(dst.pointer, source, stream.cu_stream())
        }
        .map_err(failed("copy a batch to the GPU"))
    }

    /// Copies the first `len` bytes back from the GPU, in the order of `stream`.
    pub fn download(&mut self, src: &Memory, len: usize, stream: &CudaStream) -> Result<()> {
        assert!(len <= self.bytes && len <= src.bytes);
        self.device.bind()?;
        // SAFETY: as for `upload`; the host reads after an event that is recorded behind this copy.
        unsafe {
            let target = std::slice::from_raw_parts_mut(self.pointer, len);
            result::memcpy_dtoh_async(target, src.pointer, stream.cu_stream())
        }
        .map_err(failed("copy results from the GPU"))
    }
}

impl HostMemory for Pinned {
    fn bytes(&self) -> &[u8] {
        // SAFETY: `bytes` initialised bytes, borrowed as `self` is.
        unsafe { std::slice::from_raw_parts(self.pointer, self.bytes) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        Pinned::bytes_mut(self)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let memory = PinnedMemory { pointer: self.pointer, bytes: self.bytes };
        self.device.unused_pinned.lock().expect("no thread panicked here").push(memory);
    }
}

/// How a kernel is spread over the GPU.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

impl Launch {
    /// Threads of a block where a kernel's contract says nothing else.
    pub const BLOCK: u32 = 256;

    /// A thread for each of `count` values. (2^31 blocks would be more values than GPUs hold.)
    pub fn per_value(count: usize) -> Self {
        Self::blocks(count.div_ceil(Self::BLOCK as usize))
    }

    /// A thread for each of `count` values of an image, and a row of blocks for each of `images`; beyond
    /// what a grid may have, a kernel takes the rest too.
    pub fn per_image(count: usize, images: usize) -> Self {
        let Launch { grid: [across, ..], block, shared } = Self::per_value(count);
        Launch { grid: [across, images.min(65535) as u32, 1], block, shared }
    }

    /// So many blocks.
    pub fn blocks(count: usize) -> Self {
        let count = u32::try_from(count).expect("values that fit into memory");
        Launch { grid: [count, 1, 1], block: [Self::BLOCK, 1, 1], shared: 0 }
    }
}

/// A type that a kernel takes by value, laid out as in `kernels/common.cuh`.
///
/// # Safety
/// Its layout must be that of the parameter.
pub unsafe trait Argument {}

/// Division by a number that does not change, for kernels: `Divisor` of `kernels/common.cuh`, where the
/// arithmetic is explained.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Divisor {
    divisor: u32,
    multiplier: u32,
    shift: u32,
}

impl Divisor {
    /// Of numbers below 2^31.
    pub fn new(divisor: u32) -> Self {
        let divisor = divisor.max(1);
        let shift = divisor.next_power_of_two().trailing_zeros();
        let rest = (1u64 << shift) - u64::from(divisor);
        let multiplier = ((rest << 32) / u64::from(divisor) + 1) as u32;
        Divisor { divisor, multiplier, shift }
    }
}

// SAFETY: `repr(C)`, the same fields as `Divisor` there.
unsafe impl Argument for Divisor {}
// SAFETY: C's `unsigned long long`, `size_t` and pointers.
unsafe impl Argument for u64 {}
// SAFETY: C's `unsigned`.
unsafe impl Argument for u32 {}
// SAFETY: C's `float`.
unsafe impl Argument for f32 {}
// SAFETY: `repr(C)`, the same fields as `ConvDims` there.
unsafe impl Argument for ConvDims {}
// SAFETY: `repr(C)`, the same fields as `OfGroup` in `kernels/conv.cuh`.
unsafe impl Argument for super::plan::OfGroup {}
// SAFETY: `repr(C)`, the same fields as `PoolDims` there.
unsafe impl Argument for PoolDims {}
// SAFETY: `repr(C)`, the same fields as `Windows` there.
unsafe impl Argument for crate::shape::Windows {}
// SAFETY: `repr(C)`, the same fields as `Lrn` there.
unsafe impl Argument for crate::backend::Lrn {}
// SAFETY: `repr(C)`, the same fields as `InputDims` there.
unsafe impl Argument for crate::backend::InputDims {}

/// `launch!(device, name, launch, argument, ...)`: launches a kernel with arguments by value, in the
/// order of its contract. The compiler sees that each is of a type that kernels take; that they are
/// the right ones the tests show.
macro_rules! launch {
    ($device:expr, $name:expr, $launch:expr $(, $argument:expr)* $(,)?) => {{
        fn address<T: $crate::backend::cuda::device::Argument>(
            argument: &T,
        ) -> *mut std::ffi::c_void {
            std::ptr::from_ref(argument).cast_mut().cast()
        }
        // SAFETY: the arguments are those of the kernel's contract, which the tests of every launch
        // would otherwise show; pointers come from live tensors whose shapes were checked, and
        // from scratch that was found to be large enough.
        unsafe { $device.launch($name, $launch, &mut [$(address(&$argument)),*]) }
    }};
}
pub(super) use launch;

/// For `map_err`: what could not be done, and what the driver said.
pub fn failed(what: &'static str) -> impl Fn(DriverError) -> Error {
    move |error| Error::Backend(format!("CUDA: cannot {what}: {}", describe(error)))
}

fn describe(error: DriverError) -> String {
    let text = |text: Result<&std::ffi::CStr, DriverError>| {
        text.map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
    };
    format!("{} ({})", text(error.error_string()), text(error.error_name()))
}

/// The driver: the CUDA version that it is for and, on Linux, what it says of itself.
pub fn driver() -> String {
    let cuda = driver_version().map(|(major, minor)| format!("CUDA {major}.{minor}"));
    let own = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let own = own.lines().next().unwrap_or_default();
    [cuda.unwrap_or_default().as_str(), own].join(" ").trim().to_owned()
}

/// The CUDA version that the driver is for: major, minor.
fn driver_version() -> Result<(i32, i32)> {
    let mut version = 0;
    // SAFETY: the driver has been initialised; it writes one integer.
    unsafe { sys::cuDriverGetVersion(&mut version) }
        .result()
        .map_err(failed("ask for the driver's version"))?;
    Ok((version / 1000, version % 1000 / 10))
}
