//! What the system allows: open files and threads.

use anyhow::{Result, bail};

/// Fewer open files than any command with a data set can do with.
#[cfg(unix)]
const LEAST_FILES: u64 = 64;

/// Raises the limit on open files as far as the system allows without asking anybody: a set may have thousands of shards.
///
/// # Errors
/// If that is not far enough.
#[cfg(unix)]
pub fn raise_open_files() -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // macOS names no maximum, and takes no more than this.
    let wanted = [maximum, Some(10_240)];
    for current in wanted {
        if setrlimit(Resource::Nofile, Rlimit { current, maximum }).is_ok() {
            break;
        }
    }
    match getrlimit(Resource::Nofile).current.or(current) {
        Some(allowed) if allowed < LEAST_FILES => bail!(
            "the limit on open files is {allowed}, and at least {LEAST_FILES} are needed: raise it (ulimit -n {LEAST_FILES})"
        ),
        _ => Ok(()),
    }
}

#[cfg(not(unix))]
pub fn raise_open_files() -> Result<()> {
    Ok(())
}

/// The number of threads that was asked for, if it does not exceed the processors by more than a little: threads that
/// wait for each other are many times slower than none.
///
/// # Errors
/// If it does.
pub fn check_threads(threads: Option<u16>) -> Result<Option<usize>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let most = 2 * cores + 2;
    match threads.map(usize::from) {
        Some(threads) if threads > most => {
            bail!("--threads: expected at most {most} on {cores} processors, found {threads}")
        }
        threads => Ok(threads),
    }
}
