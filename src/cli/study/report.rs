//! `zfnet study report`: everything known of a run on one page.

use std::path::PathBuf;

use crate::Error;
use crate::report::run::{Run, Written, write};
use crate::study::diagnose::Record;
use crate::train::checkpoint::{architecture_of, newest, read_state};
use anyhow::Result;
use clap::Args;

use crate::cli::ExitCode;
use crate::cli::output;

#[derive(Args)]
pub struct Report {
    /// Folder of the run; the page is RUN/report/index.html
    run: PathBuf,
}

pub fn run(Report { run: folder }: Report) -> Result<ExitCode> {
    let newest = newest(&folder, |step| Ok((read_state(step)?, architecture_of(step)?)))?;
    let none =
        || Error::file(&folder, "is no run: expected checkpoints in it (step-N), found none");
    let (state, architecture) = newest.ok_or_else(none)?.read;
    let record = Record::read(&folder)?;
    let run = Run { folder: &folder, state: &state, architecture: &architecture, record: &record };
    let Written { page, studies, left_out } = write(&run)?;
    for reason in left_out {
        tracing::warn!("left out: {reason}");
    }
    if studies.is_empty() {
        output::message("no study of this run has been made yet: see `zfnet study --help`");
    }
    output::line(page.display())?;
    Ok(ExitCode::SUCCESS)
}
