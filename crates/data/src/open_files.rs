//! How many files are kept open: a set may have more shards, and a source more tars, than the system lets a process
//! have open files. Those beyond are opened for each read.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Files that the process needs beside: standard streams, what is being written, libraries, devices.
const OTHERS: usize = 64;

static KEPT: AtomicUsize = AtomicUsize::new(0);

/// The right to keep one file open, until it is dropped.
pub(crate) struct Permit(());

impl Permit {
    /// One more, if the limit allows it.
    pub(crate) fn new() -> Option<Self> {
        Self::within(most())
    }

    fn within(most: usize) -> Option<Self> {
        let more = KEPT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |kept| {
            (kept < most).then_some(kept + 1)
        });
        more.is_ok().then(|| Permit(())) // made only if it is given: dropping one counts
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        KEPT.fetch_sub(1, Ordering::Relaxed);
    }
}

fn most() -> usize {
    static MOST: OnceLock<usize> = OnceLock::new();
    *MOST.get_or_init(|| limit().map_or(usize::MAX, |limit| limit.saturating_sub(OTHERS)))
}

#[cfg(unix)]
fn limit() -> Option<usize> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current?;
    Some(usize::try_from(limit).unwrap_or(usize::MAX))
}

#[cfg(not(unix))]
fn limit() -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Others of this process's tests may hold some.
    #[test]
    fn refused_permits_leave_no_most() {
        let most = KEPT.load(Ordering::Relaxed) + 1000;
        let held: Vec<Permit> = std::iter::from_fn(|| Permit::within(most)).collect();
        assert!((0..100).all(|_| Permit::within(most - 100).is_none()));
        assert!(KEPT.load(Ordering::Relaxed) >= held.len());
        drop(held);
        assert!(Permit::within(most).is_some());
    }
}
