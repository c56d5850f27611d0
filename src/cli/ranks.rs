//! The processes that a launcher of MPI has started to do one command together.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use crate::Error;
use crate::ranks::{Ranks, TIMEOUT};
use anyhow::{Result, bail};
use clap::Args;

/// What launchers tell each process: how many they have started, and which one it is.
const LAUNCHERS: [(&str, &str); 3] = [
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
    ("SLURM_NTASKS", "PMIX_RANK"),
];

#[derive(Args, Clone)]
pub struct RankArgs {
    /// For several ranks: end when nothing has been heard of one for so many seconds, at least 2 [default: 60]
    #[cfg_attr(not(feature = "mpi"), arg(hide = true))]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(2..))]
    rank_timeout: Option<u32>,
    /// Those who do it together.
    #[arg(skip = Ranks::alone())]
    pub ranks: Ranks,
}

impl RankArgs {
    /// Joins the ranks that a launcher has started.
    ///
    /// # Errors
    /// If MPI cannot be used, or the launcher is not this build's.
    pub fn join(&mut self) -> Result<()> {
        let Some((_, launched)) = launched() else { return Ok(()) };
        let silence =
            self.rank_timeout.map_or(TIMEOUT, |seconds| Duration::from_secs(seconds.into()));
        self.ranks = of_mpi(silence)?;
        let found = self.ranks.count();
        if found != launched {
            bail!(
                "the launcher has started {launched} ranks, MPI knows of {found}: expected the launcher of the MPI that \
                 this program was built with"
            );
        }
        if self.ranks.is_first() {
            tracing::info!("ranks: {found}");
        }
        Ok(())
    }

    /// From now on what stops one rank stops all.
    pub fn share_stop(&self, stop: &Arc<AtomicUsize>) {
        self.ranks.share_stop(stop.clone());
    }
}

#[cfg(feature = "mpi")]
fn of_mpi(silence: Duration) -> Result<Ranks> {
    Ok(Ranks::of_mpi(silence)?)
}

#[cfg(not(feature = "mpi"))]
fn of_mpi(_silence: Duration) -> Result<Ranks> {
    bail!(
        "several ranks need a build with cargo's feature `mpi`: cargo install --path . --features mpi"
    )
}

/// Tells the other ranks of an error.
pub fn tell_failure<T>(ranks: &Ranks, result: Result<T>) -> Result<T> {
    if let Err(error) = &result
        && !causes(error).any(Error::is_of_all_ranks)
    {
        ranks.fail(format_args!("{error:#}"));
    }
    result
}

/// Whether an error of a rank above 0 is for it to say: not what rank 0 knows as well, nor what comes of a command that
/// all were given.
pub fn is_own_trouble(rank: usize, error: &anyhow::Error) -> bool {
    let own = |cause: &Error| match cause {
        Error::LostRank { rank: lost, .. } => *lost == 0 && rank == 1,
        cause => !cause.is_of_all_ranks(),
    };
    causes(error).next().is_some() && causes(error).all(own)
}

fn causes(error: &anyhow::Error) -> impl Iterator<Item = &Error> {
    error.chain().filter_map(|cause| cause.downcast_ref())
}

/// Which process of how many a launcher has started, if it has started several.
pub fn launched() -> Option<(usize, usize)> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<usize>().ok();
    LAUNCHERS.iter().find_map(|(count, rank)| {
        let (count, rank) = (number(count)?, number(rank)?);
        (count > 1).then_some((rank, count))
    })
}
