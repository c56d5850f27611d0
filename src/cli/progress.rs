//! Progress: a bar with ETA on a terminal, plain lines every few seconds elsewhere; or whatever another program makes
//! of it.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output;

/// Time between two plain lines.
const PLAIN: Duration = Duration::from_secs(10);

/// What a long command says of how far it is.
pub enum ProgressEvent<'a> {
    /// What is being done, how much of it is done, of how much, and a few words more.
    Progress(&'a str, usize, usize, &'a str),
    /// A line that stays.
    Line(&'a str),
    /// That what was being done has ended.
    End,
}

/// Who is told it instead of the terminal.
pub type Listener = Box<dyn FnMut(ProgressEvent<'_>) + Send>;

/// One stretch of work at a time.
pub struct Progress {
    listener: Option<Listener>,
    bar: Option<ProgressBar>,
    plain: bool,
    what: String,
    said: Instant,
    begun: Instant,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let plain = !output::redraws() || output::is_silent();
        let now = Instant::now();
        Progress { listener: None, bar: None, plain, what: String::new(), said: now, begun: now }
    }

    /// One that shows nothing.
    #[cfg(feature = "cuda")]
    pub(crate) fn silent() -> Self {
        Progress::told_to(Box::new(|_| {}))
    }

    /// One that is told to `listener` instead of the terminal.
    pub fn told_to(listener: Listener) -> Self {
        Progress { listener: Some(listener), ..Progress::new() }
    }

    /// Shows that `done` of `total` of `what` is done, with a few words more.
    pub fn show(&mut self, what: &str, done: usize, total: usize, more: &str) {
        if let Some(tell) = &mut self.listener {
            return tell(ProgressEvent::Progress(what, done, total, more));
        }
        if self.what != what {
            self.end();
            self.what = what.to_owned();
            self.begun = Instant::now();
            self.said = self.begun;
        }
        if self.plain {
            if self.said.elapsed() >= PLAIN {
                self.said = Instant::now();
                let left = self.begun.elapsed().as_secs_f64() / done.max(1) as f64
                    * total.saturating_sub(done) as f64;
                output::message(format_args!("{what}: {done} of {total}, {left:.0} s left{more}"));
            }
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(
                Some(total as u64),
                ProgressDrawTarget::stderr_with_hz(5),
            );
            let template = "{prefix} {wide_bar} {pos}/{len} ETA {eta}{msg}";
            bar.set_style(ProgressStyle::with_template(template).expect("a fixed template"));
            bar.set_prefix(what.to_owned());
            bar
        });
        bar.set_length(total as u64);
        bar.set_message(more.to_owned());
        bar.set_position(done as u64);
    }

    /// Clears the bar, so that a line can be printed.
    pub fn end(&mut self) {
        if let Some(tell) = &mut self.listener {
            return tell(ProgressEvent::End);
        }
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.what.clear();
    }

    /// Prints a line that stays.
    pub fn line(&mut self, line: &str) {
        self.end();
        match &mut self.listener {
            Some(tell) => tell(ProgressEvent::Line(line)),
            None => output::message(line),
        }
    }
}
