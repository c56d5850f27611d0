//! `zfnet train --gpus`: several GPUs, each by a thread of this process.

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::thread::ScopedJoinHandle;

use crate::backend::{Backend, cuda};
use crate::ranks::{Ranks, TIMEOUT};
use anyhow::{Context, Result, bail};
use tracing::subscriber::NoSubscriber;

use super::progress::Progress;
use super::ranks::{is_own_trouble, tell_failure};
use super::train::{Train, Trained};

impl Train {
    /// How many GPUs are to be used, if that was said.
    ///
    /// # Errors
    /// If it is no number that can share a batch, or this is one of several processes that train together, each on a GPU of
    /// its own.
    pub fn gpus(&self) -> Result<Option<usize>> {
        if self.gpus.is_some() && self.ranks.ranks.count() > 1 {
            bail!("--gpus is for one process; of several that a launcher starts each has one GPU");
        }
        if let Some(count) = self.gpus.filter(|count| !count.is_power_of_two()) {
            bail!("--gpus: expected a power of two, found {count}");
        }
        Ok(self.gpus.map(usize::from))
    }

    /// As [`Train::train`], by a thread for each of so many GPUs.
    ///
    /// # Errors
    /// If there are not as many GPUs, or as [`Train::train`] at one of them.
    pub fn on_gpus(
        &self,
        count: usize,
        listen: impl FnOnce() -> Result<Arc<AtomicUsize>>,
        progress: Progress,
    ) -> Result<Trained> {
        let found = cuda::devices()?;
        if found < count {
            bail!("--gpus {count}: expected as many GPUs, found {found}");
        }
        let inputs = self.inputs(listen)?;
        let (mut of_first, opening) = (Some(progress), Mutex::new(()));
        let results: Vec<Result<Trained>> = std::thread::scope(|scope| {
            let start = |ranks: Ranks| {
                let progress = of_first.take().unwrap_or_else(Progress::silent);
                let (inputs, opening) = (&inputs, &opening);
                scope.spawn(move || {
                    let silent = (!ranks.is_first())
                        .then(|| tracing::subscriber::set_default(NoSubscriber::new()));
                    // One after the other: the first tests the kernels, if they are new to this kind of GPU.
                    let one_at_a_time = opening.lock();
                    let backend = self.device.open_gpu(ranks.rank());
                    drop(one_at_a_time);
                    let result = backend.and_then(|backend| {
                        tracing::info!("devices: {count} of {}", backend.describe());
                        drop(silent); // of images that cannot be read each rank tells those of its share
                        self.train_rank(&backend, &ranks, inputs, progress)
                    });
                    tell_failure(&ranks, result)
                })
            };
            let ranks: Vec<_> = Ranks::threads(count, TIMEOUT).into_iter().map(start).collect();
            let join = |(rank, thread): (usize, ScopedJoinHandle<'_, _>)| {
                thread.join().unwrap_or_else(|_| bail!("rank {rank} has panicked"))
            };
            ranks.into_iter().enumerate().map(join).collect()
        });
        // The others only know what it has told.
        let own = |(rank, result): (usize, &Result<Trained>)| {
            result.as_ref().is_err_and(|error| is_own_trouble(rank, error))
        };
        let said = results.iter().enumerate().position(own).unwrap_or(0);
        let result = results.into_iter().nth(said).expect("at least one rank");
        if said == 0 { result } else { result.with_context(|| format!("rank {said}")) }
    }
}
