//! What the library logs, for Python's `logging`: kept until a thread that holds Python's lock comes by.

use std::fmt::{Debug, Write};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use pyo3::prelude::*;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use zfnet::cli::python::harmless;

use crate::device::is_forked;

/// Lines that are kept at most.
const MOST: usize = 1000;

static LINES: Mutex<Vec<(Level, String)>> = Mutex::new(Vec::new());

struct Collector;

impl Subscriber for Collector {
    fn enabled(&self, about: &Metadata<'_>) -> bool {
        *about.level() <= Level::INFO && about.target().starts_with("zfnet")
    }

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        let line = (*event.metadata().level(), harmless(text.0));
        if let Some(mut lines) = lines()
            && lines.len() < MOST
        {
            lines.push(line);
        }
    }

    // The library has no spans.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// The lines that are kept. Not waited for in a process that was forked, where they may be locked for good.
fn lines() -> Option<MutexGuard<'static, Vec<(Level, String)>>> {
    match is_forked() {
        true => LINES.try_lock().ok(),
        false => Some(LINES.lock().unwrap_or_else(PoisonError::into_inner)),
    }
}

/// An event's message.
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            let _ = write!(self.0, "{value:?}"); // to memory
        }
    }
}

/// From now on lines are kept, unless the program, called in this process, prints them.
pub fn collect() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _ = tracing::subscriber::set_global_default(Collector);
    });
}

/// Hands what is kept to the logger `zfnet`.
pub fn hand_over(py: Python<'_>) -> PyResult<()> {
    let lines = lines().map(|mut lines| std::mem::take(&mut *lines)).unwrap_or_default();
    if lines.is_empty() {
        return Ok(());
    }
    let logger = py.import("logging")?.call_method1("getLogger", ("zfnet",))?;
    for (level, text) in lines {
        let number = match level {
            Level::ERROR => 40,
            Level::WARN => 30,
            _ => 20,
        };
        logger.call_method1("log", (number, "%s", text))?;
    }
    Ok(())
}
