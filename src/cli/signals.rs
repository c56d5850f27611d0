//! Signals: those that ask a long command to save and end, and those that must end none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::ExitCode;
use crate::Error;
use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// A number that becomes the signal's once Ctrl-C, SIGTERM or SIGHUP (a terminal that is closed) arrives; the
/// second one kills. SIGHUP stays ignored where the caller ignores it, as `nohup` does.
///
/// # Errors
/// If the system allows no handler.
pub fn stop_on_signals() -> Result<Arc<AtomicUsize>> {
    let stop = Arc::new(AtomicUsize::new(0));
    let again = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM].into_iter().chain(hang_up()) {
        flag::register_conditional_default(signal, again.clone())
            .and_then(|_| flag::register(signal, again.clone()))
            .and_then(|_| flag::register_usize(signal, stop.clone(), signal as usize))
            .context("cannot listen to signals")?;
    }
    Ok(stop)
}

/// Has Ctrl-C, SIGTERM or SIGHUP end the program at once, also where a script has started it in the background, whose
/// shell lets it ignore Ctrl-C: for a command that has nothing to save.
///
/// # Errors
/// If the system allows no handler.
pub fn end_on_signals() -> Result<()> {
    for signal in [SIGINT, SIGTERM].into_iter().chain(hang_up()) {
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::new(AtomicBool::new(true)))
            .context("cannot listen to signals")?;
    }
    Ok(())
}

/// The exit code of a program that a signal has ended: 128 and the signal's number.
pub fn signal_code(stop: &AtomicUsize) -> ExitCode {
    ExitCode(128u8.saturating_add(stop.load(Ordering::Relaxed) as u8))
}

/// The same where the signal is told by an error.
pub fn code_of(error: &anyhow::Error) -> Option<ExitCode> {
    error.chain().find_map(|cause| match cause.downcast_ref()? {
        Error::Stopped { signal } => Some(ExitCode(128u8.saturating_add(*signal))),
        _ => None,
    })
}

/// The exit code of a program whose output nobody reads any more, as if SIGPIPE had ended it.
pub const SIGPIPE_CODE: u8 = 128 + 13;

/// SIGHUP, unless it is ignored.
#[cfg(unix)]
fn hang_up() -> Option<i32> {
    use signal_hook::consts::SIGHUP;
    // SAFETY: plain data, for which zeros are a value; with no new action the call only fills in the present one.
    let ignored = unsafe {
        let mut present: libc::sigaction = std::mem::zeroed();
        libc::sigaction(SIGHUP, std::ptr::null(), &raw mut present) == 0
            && present.sa_sigaction == libc::SIG_IGN
    };
    (!ignored).then_some(SIGHUP)
}

#[cfg(not(unix))]
fn hang_up() -> Option<i32> {
    None
}

/// A file that reaches the size that `ulimit -f` allows is an error of the write (EFBIG) like any other, not the
/// program's sudden end.
pub fn outlive_file_size_limits() {
    #[cfg(unix)]
    let _ = flag::register(signal_hook::consts::signal::SIGXFSZ, Arc::default());
}
