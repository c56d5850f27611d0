//! What commands say: results on standard output, messages on standard error.
//!
//! Nothing else writes to either, so that what becomes of them is decided here: a result that cannot be written is
//! an error, a message that cannot be written ends no work.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

/// Standard output that cannot be written.
#[derive(Debug)]
pub struct Unwritable(io::Error);

impl Unwritable {
    /// Whether its reader has left, as `head` does once it has seen enough.
    pub fn reader_has_left(&self) -> bool {
        self.0.kind() == io::ErrorKind::BrokenPipe
    }
}

impl Display for Unwritable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot write to standard output: {}", self.0)
    }
}

impl std::error::Error for Unwritable {}

/// Whether results and messages are another process's to say.
static SILENT: AtomicBool = AtomicBool::new(false);

/// Leaves results and messages to another process, or says them from now on.
pub fn be_silent(silent: bool) {
    SILENT.store(silent, Ordering::Relaxed);
}

/// Whether another process says what is to be said.
pub fn is_silent() -> bool {
    SILENT.load(Ordering::Relaxed)
}

/// A line of a command's result.
///
/// # Errors
/// If it cannot be written: a full disk, a reader that has left.
pub fn line(text: impl Display) -> Result<(), Unwritable> {
    if is_silent() {
        return Ok(());
    }
    // One that ends within a line, which is kept back until the next, would end unnoticed.
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", harmless(text)).and_then(|()| stdout.flush()).map_err(Unwritable)
}

/// A line for the person who waits. Where nobody can read it (a log on a full disk, a terminal that was closed),
/// work goes on.
pub fn message(text: impl Display) {
    if !is_silent() {
        complain(text);
    }
}

/// The same, also of a process that is otherwise silent.
pub fn complain(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{}", harmless(text));
}

/// A text whose names, which may come from anywhere, do not drive the terminal.
pub fn harmless(text: impl Display) -> String {
    text.to_string().replace(|c: char| c.is_control() && !matches!(c, '\n' | '\t'), "\u{fffd}")
}

/// Whether standard error is a terminal on which a line can be drawn anew.
pub fn redraws() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Whether messages may have colours: on such a terminal, unless `NO_COLOR` (no-color.org) is set.
pub fn colours() -> bool {
    redraws() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty())
}
