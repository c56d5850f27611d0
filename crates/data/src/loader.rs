//! Batches, read and decoded by threads of their own ahead of the step that needs them.
//!
//! A fixed ring of batches goes round: a worker takes a free one and the next number, tells the
//! system what will be wanted a ring's length later, fills its batch and hands it over; the loader
//! puts them in order. Once each has been filled, no memory is asked for but what decoding one image
//! takes. Which images a batch holds depends on the order given alone.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::images::{Images, Scratch};
use super::order::Rank;
use zfnet_core::operation::HostMemory;
use zfnet_core::{Error, Result};

/// A batch of preprocessed images.
pub struct Batch {
    /// Begins with `[images, rows, columns, 3]`: see [`Batch::pixels`].
    pub memory: Box<dyn HostMemory>,
    /// Bytes of that.
    pub bytes: usize,
    /// The class of each image.
    pub labels: Vec<u32>,
    /// The index of each image in its set (of the replacement, where a file was bad).
    pub indices: Vec<u32>,
    /// The position in the order of its first image.
    pub first: usize,
    /// Bad images that were met on the way, to be counted when it is handed out.
    pub bad: Vec<usize>,
}

impl Batch {
    /// `[images, rows, columns, 3]`.
    pub fn pixels(&self) -> &[u8] {
        &self.memory.bytes()[..self.bytes]
    }
}

/// What to do where a file is bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// The next good image takes its place: training.
    Replace,
    /// It is left out: evaluation.
    Skip,
}

/// Which images are read, and in which batches.
#[derive(Clone, Debug)]
pub struct BatchPlan {
    /// The images, by index.
    pub order: Vec<u32>,
    /// Images of a batch, over all ranks; the last batch may be smaller.
    pub batch_size: usize,
    /// The number of the first batch to read.
    pub first_batch: usize,
    /// Whose share of each batch is read.
    pub rank: Rank,
    /// What to do where a file is bad.
    pub bad: Bad,
}

impl BatchPlan {
    /// All batches of an order.
    pub fn new(order: Vec<u32>, batch_size: usize, bad: Bad) -> Self {
        BatchPlan { order, batch_size, first_batch: 0, rank: Rank::ALONE, bad }
    }

    /// The number of the batch behind the last.
    fn end(&self) -> usize {
        self.order.len().div_ceil(self.batch_size)
    }

    /// Images that a batch has at most.
    fn images_at_most(&self) -> usize {
        self.batch_size.min(self.rank.share).min(self.order.len())
    }

    /// The images of a batch, and the position of the first; none behind the last.
    fn batch(&self, number: usize) -> (usize, &[u32]) {
        let positions = self.rank.positions(number, self.batch_size, self.order.len());
        (positions.start, &self.order[positions])
    }
}

/// An iterator over batches of images in a given order.
pub struct Loader {
    images: Arc<Images>,
    filled: Receiver<(usize, Batch, Result<()>)>,
    free: Option<SyncSender<Batch>>,
    /// Batches that are ready before their turn: number n in place n modulo the ring's length.
    early: Vec<Option<(Batch, Result<()>)>>,
    next: usize,
    end: usize,
    waited: Duration,
    workers: Vec<JoinHandle<()>>,
}

impl Loader {
    /// The batches of a plan, read by `workers` threads into ordinary memory.
    pub fn new(images: Arc<Images>, plan: BatchPlan, workers: usize) -> Self {
        Self::into_memory(images, plan, workers, |bytes| Ok(Box::new(vec![0; bytes])))
            .expect("vectors are made or the program ends")
    }

    /// The batches of a plan, read by `workers` threads into memory made by `memory`, which is asked
    /// for so many bytes for each batch of the ring.
    ///
    /// # Errors
    /// If `memory` fails.
    pub fn into_memory(
        images: Arc<Images>,
        plan: BatchPlan,
        workers: usize,
        memory: impl Fn(usize) -> Result<Box<dyn HostMemory>>,
    ) -> Result<Self> {
        let workers = workers.max(1);
        let ring = workers + 2;
        let images_at_most = plan.images_at_most();
        let (first, end) = (plan.first_batch, plan.end());
        let (free, free_receiver) = sync_channel(ring);
        let (filled_sender, filled) = sync_channel(ring);
        for _ in 0..ring {
            let batch = Batch {
                memory: memory(images_at_most * images.bytes_per_image())?,
                bytes: 0,
                labels: Vec::with_capacity(images_at_most),
                indices: Vec::with_capacity(images_at_most),
                first: 0,
                bad: Vec::new(),
            };
            let _ = free.send(batch); // the receiver is in this function
        }
        (first..first + ring).for_each(|number| images.advise(plan.batch(number).1));
        // A worker takes the free batch and the number under one lock, so that whoever has a number
        // has room for it.
        let claims = Arc::new(Mutex::new((free_receiver, first)));
        let plan = Arc::new(plan);
        let spawn = |_| {
            let (images, plan, claims) = (images.clone(), plan.clone(), claims.clone());
            let filled = filled_sender.clone();
            std::thread::spawn(move || {
                let mut scratch = Scratch::default();
                loop {
                    let (mut batch, number) = {
                        let mut claims = claims.lock().expect("no panic while it is held");
                        if claims.1 >= end {
                            return;
                        }
                        let Ok(batch) = claims.0.recv() else { return };
                        claims.1 += 1;
                        (batch, claims.1 - 1)
                    };
                    images.advise(plan.batch(number + ring).1);
                    // A worker that died with its batch would leave the loader waiting for it.
                    let filled_batch = catch_unwind(AssertUnwindSafe(|| {
                        fill(&mut batch, &images, &plan, number, &mut scratch)
                    }));
                    let result = filled_batch
                        .unwrap_or_else(|_| Err(Error::Data("a decoder has panicked".into())));
                    if filled.send((number, batch, result)).is_err() {
                        return;
                    }
                }
            })
        };
        let workers = (0..workers).map(spawn).collect();
        Ok(Loader {
            images,
            filled,
            free: Some(free),
            early: (0..ring).map(|_| None).collect(),
            next: first,
            end,
            waited: Duration::ZERO,
            workers,
        })
    }

    /// The next batch, or `None` after the last.
    ///
    /// # Errors
    /// If too many files are bad, or a shard can no longer be read.
    pub fn next_batch(&mut self) -> Result<Option<Batch>> {
        if self.next >= self.end {
            return Ok(None);
        }
        let start = Instant::now();
        let ring = self.early.len();
        let batch = loop {
            if let Some(batch) = self.early[self.next % ring].take() {
                break batch;
            }
            let (number, batch, filled) =
                self.filled.recv().expect("workers live until the last batch");
            self.early[number % ring] = Some((batch, filled));
        };
        self.waited += start.elapsed();
        let (mut batch, filled) = batch;
        let batch = self.images.count_bad(batch.bad.drain(..)).and(filled).map(|()| batch);
        // An error is the end: the batch is lost to the ring.
        self.next = if batch.is_err() { self.end } else { self.next + 1 };
        batch.map(Some)
    }

    /// Gives a batch back, to be filled again.
    pub fn recycle(&self, batch: Batch) {
        if let Some(free) = &self.free {
            let _ = free.send(batch); // no worker is left to want it after the last batch
        }
    }

    /// The time that [`Loader::next_batch`] has waited so far.
    pub fn waited(&self) -> Duration {
        self.waited
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.free = None; // wakes workers that wait for a free batch
        for worker in self.workers.drain(..) {
            let _ = worker.join(); // a worker's panic has been printed already
        }
    }
}

fn fill(
    batch: &mut Batch,
    images: &Images,
    plan: &BatchPlan,
    number: usize,
    scratch: &mut Scratch,
) -> Result<()> {
    let len = images.bytes_per_image();
    let (first, indices) = plan.batch(number);
    batch.first = first;
    batch.labels.clear();
    batch.indices.clear();
    batch.bad.clear();
    for &index in indices {
        let start = batch.labels.len() * len;
        let square = &mut batch.memory.bytes_mut()[start..start + len];
        let read = match plan.bad {
            Bad::Replace => {
                Some(images.read_good_ahead(index as usize, scratch, square, &mut batch.bad)?)
            }
            Bad::Skip => {
                let read = images.read_ahead(index as usize, scratch, square)?;
                if read.is_none() {
                    batch.bad.push(index as usize);
                }
                read.map(|()| index as usize)
            }
        };
        if let Some(index) = read {
            batch.labels.push(images.class(index));
            batch.indices.push(index as u32);
        }
    }
    batch.bytes = batch.labels.len() * len;
    Ok(())
}
