//! A step allocates nothing of a tensor's size, and a loader no batches: counted, on real shapes.
//!
//! A test program of its own, on one backend after the other: the allocator counts for all threads.

#[macro_use]
mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering};

use common::{Random, is_stand_in, mini, random_params, turn};
use zfnet::backend::{Backend, Crop, SeedUnit, StepState};
use zfnet::data::Split;
use zfnet::data::images::ReadOptions;
use zfnet::data::loader::{Bad, BatchPlan, Loader};
use zfnet::data::order::permutation;
use zfnet::data::set::DataSet;
use zfnet::data::shard::Io;
use zfnet::model::{Canvas, Model, Network, Params, Preprocess, Purpose, Rule, Workspace};
use zfnet::train::Trainer;

on_fast_backends!(steps_and_passes_allocate_no_tensors);

/// The system's allocator, counting while it is told to.
struct Counting;

static COUNTS: AtomicBool = AtomicBool::new(false);
static LARGEST: AtomicUsize = AtomicUsize::new(0);
static TOTAL: AtomicUsize = AtomicUsize::new(0);
/// Bytes that are held now, counted always.
static HELD: AtomicIsize = AtomicIsize::new(0);

fn count(bytes: usize) {
    HELD.fetch_add(bytes as isize, Ordering::Relaxed);
    if COUNTS.load(Ordering::Relaxed) {
        LARGEST.fetch_max(bytes, Ordering::Relaxed);
        TOTAL.fetch_add(bytes, Ordering::Relaxed);
    }
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        HELD.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The largest allocation and the sum of all of them, in bytes.
fn counted(work: impl FnOnce()) -> (usize, usize) {
    LARGEST.store(0, Ordering::SeqCst);
    TOTAL.store(0, Ordering::SeqCst);
    COUNTS.store(true, Ordering::SeqCst);
    work();
    COUNTS.store(false, Ordering::SeqCst);
    (LARGEST.load(Ordering::SeqCst), TOTAL.load(Ordering::SeqCst))
}

/// The smallest tensor that grows with the batch is the logits, 1,280 bytes; the next is fc6's
/// output, 64 KiB. A thread pool may take a block for its queue (below 4 KiB) now and then.
const LARGEST_ALLOWED: usize = 4 << 10;
const TOTAL_ALLOWED: usize = 64 << 10;

/// Batches of raw squares cost no memory once the ring has been round; those that are decoded only
/// what a decoder takes for one image. After three epochs no more is held than after one.
#[test]
fn a_loader_keeps_to_its_ring() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    for (name, path) in zfnet::bench::loader::example(folder.path(), 34).unwrap() {
        for io in [Io::Mmap, Io::Pread] {
            let options = ReadOptions {
                canvas: Canvas::square(256),
                max_bad: 0.0,
                cache_bytes: 0,
                io: Some(io),
            };
            let set = DataSet::open(&path).unwrap();
            let images = Arc::new(set.images(Split::Train, options).unwrap());
            let epoch = |epoch| {
                let order = permutation(1, epoch, images.len()).repeat(3);
                let mut loader =
                    Loader::new(images.clone(), BatchPlan::new(order, 8, Bad::Replace), 1);
                let take = |loader: &mut Loader, batches: usize| {
                    for _ in 0..batches {
                        let batch = loader.next_batch().unwrap().unwrap();
                        loader.recycle(batch);
                    }
                };
                take(&mut loader, 4);
                let counted = counted(|| take(&mut loader, 8));
                assert!(loader.next_batch().unwrap().is_none());
                counted
            };
            let mut held = [0; 3];
            for (number, held) in (0..).zip(&mut held) {
                let (largest, total) = epoch(number);
                if name.contains("raw") {
                    assert!(total <= 4 << 10, "{name} {io:?} allocates {total} bytes");
                }
                // Rows of blocks and tables of a decoder, far from a picture's 562,500 bytes.
                assert!(largest <= 128 << 10, "{name} {io:?} allocates {largest} bytes at once");
                *held = HELD.load(Ordering::SeqCst);
            }
            // Whichever thread is still ending holds its name and handle.
            let more = held[2] - held[0];
            assert!(more <= 8 << 10, "{name} {io:?} holds {more} bytes more after three epochs");
        }
    }
}

fn steps_and_passes_allocate_no_tensors<B: Backend>(backend: &B) {
    let _turn = turn();
    assert!(counted(|| drop(vec![1u8; 100_000])).0 >= 100_000, "the allocator counts");

    let mut architecture = mini(backend);
    let samples = if is_stand_in(backend) { 6 } else { 32 };
    architecture.recipe.batch_size = samples;
    let network = Network::new(architecture).unwrap();
    let input = network.architecture.input;
    let preprocess = Preprocess::named("paper", input.size, input.resize).unwrap();
    let pixels = Random(1).bytes(samples * preprocess.bytes());
    let crops: Vec<Crop> =
        (0..samples as u32).map(|image| preprocess.ten_crops(image)[image as usize % 10]).collect();
    let labels: Vec<u32> = (0..samples as u32).map(|image| image % 10).collect();

    let params = random_params(backend, &network, 1);
    let mut workspace = Workspace::new(backend, &network, Purpose::Infer, samples).unwrap();
    let mut logits = vec![0.0; samples * network.classes()];
    let mut pass = || {
        workspace.forward(backend, &params).unwrap();
        backend.download(&mut logits, workspace.logits()).unwrap();
    };
    pass();
    let (largest, total) = counted(pass);
    assert!(largest <= LARGEST_ALLOWED, "a forward pass allocates {largest} bytes at once");
    assert!(total <= TOTAL_ALLOWED, "a forward pass allocates {total} bytes");

    // On a GPU a picture's way to the host may take a buffer.
    if backend.device() == "cpu" {
        let purpose = Purpose::Project { seeds: 4 };
        let mut workspace = Workspace::new(backend, &network, purpose, 2).unwrap();
        workspace.forward(backend, &params).unwrap();
        let images = backend.indices(4).unwrap();
        let mut pictures = vec![0.0; 4 * network.input().len()];
        let mut project = |layer: &str| {
            let layer = network.layer(layer).unwrap();
            let units = [SeedUnit { map: 1, y: 0, x: 0, value: 1.0 }; 4];
            for rule in [Rule::DECONVNET, Rule::GRADIENT] {
                workspace
                    .project(backend, &params, layer, rule, &images, &units, &mut pictures)
                    .unwrap();
            }
        };
        for layer in ["conv2", "conv5", "fc6"] {
            project(layer);
            let (largest, total) = counted(|| project(layer));
            assert!(largest <= LARGEST_ALLOWED, "{layer}: {largest} bytes at once");
            assert!(total <= TOTAL_ALLOWED, "{layer}: {total} bytes");
        }
    }

    for (accumulate, watches) in [(1, false), (3, false), (1, true), (3, true)] {
        let model = Model {
            network: network.clone(),
            params: random_params(backend, &network, 1),
            preprocess: preprocess.clone(),
            classes: zfnet::data::classes::Classes::unknown(10),
        };
        let momentum = Params::zeros(backend, &network).unwrap();
        let mut trainer = Trainer::new(backend, model, momentum, accumulate).unwrap();
        if watches {
            trainer.prepare_watch().unwrap();
            trainer.watches = true;
        }
        let mut step = |step| {
            let state = StepState { seed: 1, step, first_sample: 0, learning_rate: 1e-4 };
            trainer.step(&pixels, &crops, &labels, state).unwrap();
        };
        step(0);
        let (largest, total) = counted(|| step(1));
        let kind = if watches { "watched" } else { "usual" };
        let what = format!("a {kind} step in {accumulate} parts allocates");
        assert!(largest <= LARGEST_ALLOWED, "{what} {largest} bytes at once");
        assert!(total <= TOTAL_ALLOWED, "{what} {total} bytes");
    }
}
