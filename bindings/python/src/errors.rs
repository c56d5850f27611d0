//! The library's errors as Python's, with the same words.

use std::any::Any;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::exceptions::{
    PyFileExistsError, PyFileNotFoundError, PyMemoryError, PyOSError, PyPermissionError,
    PyRuntimeError, PyTypeError, PyValueError,
};
use pyo3::prelude::*;
use zfnet::cli::python::{ArgumentError, message};

pyo3::create_exception!(
    zfnet,
    Error,
    PyRuntimeError,
    "What cannot be done although the arguments are in order: a damaged file, a training that diverges, a device that \
     is not there. Arguments that are wrong are ValueError or TypeError, files that cannot be read or written OSError."
);

/// An error of the library in a function that takes what these flags of commands say.
pub fn of_library(py: Python<'_>, error: zfnet::Error, flags: &[&str]) -> PyErr {
    of_command(py, error.into(), flags)
}

/// The same of a command's error.
pub fn of_command(py: Python<'_>, error: anyhow::Error, flags: &[&str]) -> PyErr {
    let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
    let text = message(&error, &flags);
    let cause = error.chain().find_map(|cause| cause.downcast_ref::<zfnet::Error>());
    let io = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    use zfnet::Error as E;
    match (cause, io) {
        (_, Some(io)) => of_system(py, text, io),
        (Some(E::Memory { .. } | E::TrainingMemory { .. }), _) => PyMemoryError::new_err(text),
        (Some(E::File { path, .. }), _) if !path.exists() => PyFileNotFoundError::new_err(text),
        (Some(E::RunExists { .. }), _) => PyFileExistsError::new_err(text),
        (
            Some(
                E::UnknownLayer { .. }
                | E::UnknownNetwork(_)
                | E::UnknownPreprocessing(_)
                | E::UnknownInputSize(_)
                | E::Network(_),
            ),
            _,
        ) => PyValueError::new_err(text),
        // In a file: what is missing is an argument.
        (Some(E::InFile { error, .. }), _)
            if matches!(
                **error,
                E::UnknownNetwork(_) | E::UnknownPreprocessing(_) | E::UnknownInputSize(_)
            ) =>
        {
            PyValueError::new_err(text)
        }
        // The command's own words about its flags.
        (None, None) => PyValueError::new_err(text),
        _ => Error::new_err(text),
    }
}

/// The kind of `OSError` that Python itself would raise, with its number.
fn of_system(py: Python<'_>, text: String, error: &std::io::Error) -> PyErr {
    let raised = match error.kind() {
        ErrorKind::NotFound => PyFileNotFoundError::new_err(text),
        ErrorKind::PermissionDenied => PyPermissionError::new_err(text),
        ErrorKind::AlreadyExists => PyFileExistsError::new_err(text),
        ErrorKind::InvalidInput => PyValueError::new_err(text), // a name with a NUL
        _ => PyOSError::new_err(text),
    };
    if let Some(number) = error.raw_os_error() {
        let _ = raised.value(py).setattr("errno", number); // without it the error is one all the same
    }
    raised
}

/// Arguments that are none of a function's.
pub fn of_arguments(ArgumentError { signature, text }: ArgumentError) -> PyErr {
    match signature {
        true => PyTypeError::new_err(text),
        false => PyValueError::new_err(text),
    }
}

/// Runs `work`; a panic of it is an error like any other.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, PyErr> {
    catch_unwind(AssertUnwindSafe(work)).map_err(of_panic)
}

/// What a panic says.
pub fn of_panic(panic: Box<dyn Any + Send>) -> PyErr {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
    Error::new_err(format!("this could not be computed, by an error of zfnet itself: {text}"))
}
