//! What takes long: a thread of its own computes, while Python's shows how far it is and listens to Ctrl-C.

use std::ffi::{CString, OsString};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyException, PyRuntimeWarning, PyTypeError};
use pyo3::prelude::*;
use zfnet::cli::python::{
    self as command, ArgumentError, Features, Listener, PageFolder, Progress, ProgressEvent, Train,
    Trained, Value, arguments, harmless, in_python, raise_open_files,
};

use crate::device::is_forked;
use crate::errors::{Error, of_arguments, of_command, of_panic};
use crate::log;
use crate::network::Network;

/// Between two looks at Python's signals.
const LISTEN: Duration = Duration::from_millis(100);
/// Between two words on how far the same work is.
const TELL: Duration = Duration::from_millis(50);
/// The signal of Ctrl-C.
const SIGINT: usize = 2;

/// What the thread that computes tells the one that is Python's.
enum Message {
    Progress(String, usize, usize, String),
    Line(String),
    End,
}

/// What unwinds work that was interrupted and has no end of its own.
struct Interrupted;

/// Runs `work`, of a command with these flags, in a thread. `listener` has methods `show(what, done, total, more)`,
/// `line(text)` and `end()`, as `zfnet._progress`. Ctrl-C sets the flag that work is given; if `at_once`, or at a second
/// Ctrl-C, work ends when it next tells how far it is. What Ctrl-C raises is raised when work has ended; if that failed,
/// its error is, in the context of the former. A listener that fails is told nothing more, and work goes on.
pub fn watched<T: Send>(
    py: Python<'_>,
    listener: &Bound<'_, PyAny>,
    at_once: bool,
    flags: &[&str],
    work: impl FnOnce(Progress, Arc<AtomicUsize>) -> anyhow::Result<T> + Send,
) -> PyResult<T> {
    let names: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
    let (send, mut receive) = channel();
    let stop = Arc::new(AtomicUsize::new(0));
    let leave = Arc::new(AtomicUsize::new(0)); // how often it was interrupted
    let mut last: Option<(String, Instant)> = None;
    let interruptions = leave.clone();
    let tell: Listener = Box::new(move |told| {
        if interruptions.load(Ordering::Relaxed) > usize::from(!at_once) {
            resume_unwind(Box::new(Interrupted));
        }
        let message = match told {
            ProgressEvent::Progress(what, done, total, more) => {
                let recent = |(of, at): &(String, Instant)| of == what && at.elapsed() < TELL;
                if done < total && last.as_ref().is_some_and(recent) {
                    return;
                }
                last = Some((what.into(), Instant::now()));
                Message::Progress(what.into(), done, total, more.into())
            }
            ProgressEvent::Line(text) => Message::Line(harmless(in_python(text, &names))),
            ProgressEvent::End => Message::End,
        };
        let _ = send.send(message); // who hears it waits for this thread
    });
    log::collect();
    let mut raised = None;
    let mut failed = None; // how the listener did
    let result = thread::scope(|scope| {
        let flag = stop.clone();
        let worker = scope
            .spawn(move || catch_unwind(AssertUnwindSafe(|| work(Progress::told_to(tell), flag))));
        loop {
            let from = &mut receive;
            let message = py.detach(move || from.recv_timeout(LISTEN));
            let told = match message {
                Err(RecvTimeoutError::Disconnected) => break,
                _ if failed.is_some() => Ok(()),
                Ok(message) => say(listener, message).and_then(|()| log::hand_over(py)),
                Err(RecvTimeoutError::Timeout) => log::hand_over(py),
            };
            let told = told.or_else(|error| match error.is_instance_of::<PyException>(py) {
                true => {
                    failed = Some(error);
                    Ok(())
                }
                false => Err(error), // KeyboardInterrupt
            });
            for error in [told, py.check_signals()].into_iter().filter_map(Result::err) {
                stop.store(SIGINT, Ordering::Relaxed);
                leave.fetch_add(1, Ordering::Relaxed);
                raised.get_or_insert(error);
            }
        }
        py.detach(|| worker.join()).unwrap_or_else(Err)
    });
    let ended = listener.call_method0("end").and_then(|_| log::hand_over(py));
    if let Some(error) = failed.or(ended.err()) {
        warn(py, &error);
    }
    let error = match result {
        Ok(Ok(result)) => return raised.map_or(Ok(result), Err),
        Ok(Err(error)) => of_command(py, error, flags),
        Err(panic) => {
            let interrupted = panic.is::<Interrupted>();
            match raised {
                Some(raised) if interrupted => return Err(raised),
                _ => of_panic(panic),
            }
        }
    };
    if let Some(raised) = raised {
        error.value(py).setattr("__context__", raised)?;
    }
    Err(error)
}

/// Warns that no more was shown. A warning that is an error must not take the place of what was computed.
fn warn(py: Python<'_>, error: &PyErr) {
    let text = format!("progress could not be shown to the end: {error}").replace('\0', "");
    let text = CString::new(text).expect("no NUL");
    let category = py.get_type::<PyRuntimeWarning>();
    if let Err(error) = PyErr::warn(py, &category, &text, 1) {
        error.write_unraisable(py, None);
    }
}

fn say(listener: &Bound<'_, PyAny>, message: Message) -> PyResult<()> {
    match message {
        Message::Progress(what, done, total, more) => {
            listener.call_method1("show", (what, done, total, more))?
        }
        Message::Line(text) => listener.call_method1("line", (text,))?,
        Message::End => listener.call_method0("end")?,
    };
    Ok(())
}

/// Arguments of a command, as Python's values: None, bool, numbers, texts and paths, and lists of them.
pub fn values(given: Vec<(String, Bound<'_, PyAny>)>) -> PyResult<Vec<(String, Value)>> {
    let text = |name: &str, value: &Bound<'_, PyAny>| -> PyResult<OsString> {
        if let Ok(path) = value.extract::<PathBuf>() {
            return Ok(path.into());
        }
        if value.extract::<f64>().is_ok() {
            return Ok(value.str()?.extract::<String>()?.into());
        }
        let found = value.get_type().name()?;
        Err(PyTypeError::new_err(format!(
            "{name}: expected a number, a text, a path or a list of them, found {found}"
        )))
    };
    let value = |(name, value): (String, Bound<'_, PyAny>)| {
        let taken = if value.is_none() {
            Value::None
        } else if let Ok(on) = value.extract::<bool>() {
            Value::Bool(on)
        } else if let Ok(list) = value.extract::<Vec<Bound<'_, PyAny>>>() {
            Value::List(list.iter().map(|value| text(&name, value)).collect::<PyResult<_>>()?)
        } else {
            Value::Text(text(&name, &value)?)
        };
        Ok((name, taken))
    };
    given.into_iter().map(value).collect()
}

/// What arguments become in a process that was forked: there is one thread.
fn with_one_thread(mut given: Vec<(String, Value)>) -> Vec<(String, Value)> {
    if is_forked() {
        given.retain(|(name, _)| name != "threads");
        given.push(("threads".into(), Value::Text("1".into())));
    }
    given
}

/// Trains as `zfnet train` does; what a dry run has found.
#[pyfunction]
pub fn train(
    py: Python<'_>,
    given: Vec<(String, Bound<'_, PyAny>)>,
    listener: &Bound<'_, PyAny>,
) -> PyResult<Option<String>> {
    let given = with_one_thread(values(given)?);
    let args: Train = arguments(&given).map_err(of_arguments)?;
    raise_open_files().map_err(|error| of_command(py, error, &[]))?;
    let flags = command::flags::<Train>();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let trained = watched(py, listener, false, &flags, |progress, stop| {
        #[cfg(feature = "cuda")]
        if let Some(count) = args.gpus()? {
            return args.on_gpus(count, || Ok(stop), progress);
        }
        let device = args.device.open()?;
        match &device {
            command::Device::Cpu(backend) => {
                backend.install(|| args.train(backend, || Ok(stop), progress))
            }
            #[cfg(feature = "cuda")]
            command::Device::Cuda(backend) => args.train(backend, || Ok(stop), progress),
        }
    })?;
    match trained {
        Trained::Needs(text) => Ok(Some(text)),
        Trained::Done | Trained::Stopped(_) => Ok(None),
    }
}

/// Folders that calls write pages into, by process. Locked by who holds Python's lock, and for as long at most: whole in
/// a process that was forked.
static WRITTEN: Mutex<Vec<(u32, PathBuf)>> = Mutex::new(Vec::new());

/// A folder that only one call of one process writes into.
struct Written {
    mine: (u32, PathBuf),
    folder: PageFolder,
}

impl Written {
    fn claim(py: Python<'_>, out: &Path) -> PyResult<Self> {
        let mine = (process::id(), std::path::absolute(out)?);
        let mut written = WRITTEN.lock().unwrap_or_else(PoisonError::into_inner);
        if written.contains(&mine) {
            let by = "another call".into();
            return Err(Error::new_err(zfnet::Error::Locked { path: out.into(), by }.to_string()));
        }
        let folder = PageFolder::lock(out).map_err(|error| of_command(py, error, &[]))?;
        written.push(mine.clone());
        Ok(Written { mine, folder })
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        let mut written = WRITTEN.lock().unwrap_or_else(PoisonError::into_inner);
        written.retain(|other| *other != self.mine);
    }
}

/// Makes the page of a network's features as `zfnet study features` does, and says where it is.
#[pyfunction]
pub fn top9(
    py: Python<'_>,
    network: &Bound<'_, Network>,
    out: PathBuf,
    given: Vec<(String, Bound<'_, PyAny>)>,
    listener: &Bound<'_, PyAny>,
) -> PyResult<PathBuf> {
    if let Some((name, _)) = given.iter().find(|(name, _)| is_of_the_network(name)) {
        let text = format!("unexpected argument '{name}' found: the network is loaded already");
        return Err(of_arguments(ArgumentError { signature: true, text }));
    }
    let mut given = values(given)?;
    let network = network.borrow();
    given.push(("checkpoint".into(), Value::Text(network.source().into())));
    let features: Features = arguments(&given).map_err(of_arguments)?;
    raise_open_files().map_err(|error| of_command(py, error, &[]))?;
    let written = Written::claim(py, &out)?;
    network.top9(py, &features, &written.folder, listener)
}

/// Flags of the command that say which network, and on what.
pub fn is_of_the_network(name: &str) -> bool {
    [
        "checkpoint",
        "arch",
        "preprocess",
        "device",
        "threads",
        "precision",
        "exact",
        "gemm",
        "kernels",
    ]
    .contains(&name)
}
