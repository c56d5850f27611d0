//! Batches, read and decoded by threads of their own ahead of the step that needs them.
//!
//! A fixed ring of batches goes round: a worker takes a free one and the next number, fills it,
//! and hands it over; the loader puts them in order. Which images a batch holds depends on the
//! order given alone.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::images::Images;
use crate::{Error, Result};

/// Images of one batch, as squares of pixels.
#[derive(Default)]
pub struct Batch {
    /// `[images, side, side, 3]`.
    pub pixels: Vec<u8>,
    /// The class of each image.
    pub labels: Vec<u32>,
    /// The index of each image in its set (of the replacement, where a file was bad).
    pub indices: Vec<u32>,
}

/// What to do where a file is bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// The next good image takes its place: training.
    Replace,
    /// It is left out: evaluation.
    Skip,
}

/// An iterator over batches of images in a given order.
pub struct Loader {
    filled: Receiver<(usize, Result<Batch>)>,
    free: Option<Sender<Batch>>,
    early: BTreeMap<usize, Result<Batch>>,
    next: usize,
    end: usize,
    waited: Duration,
    workers: Vec<JoinHandle<()>>,
}

impl Loader {
    /// Batches `first_batch ..` of `batch_size` images each (the last may be smaller) in `order`,
    /// read by `workers` threads.
    pub fn new(
        images: Arc<Images>,
        order: Vec<u32>,
        batch_size: usize,
        first_batch: usize,
        workers: usize,
        bad: Bad,
    ) -> Self {
        let workers = workers.max(1);
        let end = order.len().div_ceil(batch_size);
        let (free, free_receiver) = channel();
        let (filled_sender, filled) = channel();
        for _ in 0..workers + 2 {
            let _ = free.send(Batch::default()); // the receiver is in this function
        }
        // A worker takes the free batch and the number under one lock, so that whoever has a number
        // has room for it.
        let claims = Arc::new(Mutex::new((free_receiver, first_batch)));
        let order = Arc::new(order);
        let spawn = |_| {
            let (images, order, claims) = (images.clone(), order.clone(), claims.clone());
            let filled = filled_sender.clone();
            std::thread::spawn(move || {
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
                    let end = ((number + 1) * batch_size).min(order.len());
                    let indices = &order[number * batch_size..end];
                    // A worker that died with its batch would leave the loader waiting for it.
                    let filled_batch =
                        catch_unwind(AssertUnwindSafe(|| fill(&mut batch, &images, indices, bad)));
                    let result = filled_batch
                        .unwrap_or_else(|_| Err(Error::Data("a decoder has panicked".into())))
                        .map(|()| batch);
                    if filled.send((number, result)).is_err() {
                        return;
                    }
                }
            })
        };
        let workers = (0..workers).map(spawn).collect();
        Loader {
            filled,
            free: Some(free),
            early: BTreeMap::new(),
            next: first_batch,
            end,
            waited: Duration::ZERO,
            workers,
        }
    }

    /// The next batch, or `None` after the last.
    ///
    /// # Errors
    /// If too many files are bad.
    pub fn next_batch(&mut self) -> Result<Option<Batch>> {
        if self.next == self.end {
            return Ok(None);
        }
        let start = Instant::now();
        let batch = loop {
            if let Some(batch) = self.early.remove(&self.next) {
                break batch;
            }
            let (number, batch) = self.filled.recv().expect("workers live until the last batch");
            self.early.insert(number, batch);
        };
        self.waited += start.elapsed();
        self.next += 1;
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

fn fill(batch: &mut Batch, images: &Images, indices: &[u32], bad: Bad) -> Result<()> {
    let len = images.bytes_per_image();
    batch.pixels.resize(indices.len() * len, 0);
    batch.labels.clear();
    batch.indices.clear();
    for &index in indices {
        let start = batch.labels.len() * len;
        let square = &mut batch.pixels[start..start + len];
        let read = match bad {
            Bad::Replace => Some(images.read_good(index as usize, square)?),
            Bad::Skip => images.read(index as usize, square)?.map(|()| index as usize),
        };
        if let Some(index) = read {
            batch.labels.push(images.class(index));
            batch.indices.push(index as u32);
        }
    }
    batch.pixels.truncate(batch.labels.len() * len);
    Ok(())
}
