//! `zfnet study diagnose`: what was watched while a network was trained.

use std::path::PathBuf;

use crate::backend::cpu::CpuBackend;
use crate::report;
use crate::study::diagnose::{STUDY, run as diagnose};
use anyhow::Result;
use clap::Args;

use super::{finish, run_folder, watched};
use crate::cli::progress::Progress;
use crate::cli::{ExitCode, make_folder, output, shown};

#[derive(Args)]
pub struct Diagnose {
    /// Folder of the run
    #[arg(required_unless_present = "checkpoint")]
    run: Option<PathBuf>,
    /// The same, as other studies have it
    #[arg(long, value_name = "RUN", hide = true, conflicts_with = "run")]
    checkpoint: Option<PathBuf>,
    /// Folder for the page, its pictures and numbers [default: RUN/report/diagnose]
    #[arg(long)]
    out: Option<PathBuf>,
}

pub fn run(Diagnose { run, checkpoint, out }: Diagnose) -> Result<ExitCode> {
    let named = run.or(checkpoint).expect("clap demands one of them");
    let run = run_folder(&named).unwrap_or(&named);
    let out = out.unwrap_or_else(|| run.join("report").join(STUDY.name));
    // Weights are read, and nothing is computed with them.
    let backend = CpuBackend::new(Some(1))?;
    let mut progress = Progress::new();
    let mut session = watched(&backend, &out, &mut progress);
    session.fact("Run", shown(run));
    let found = diagnose(&mut session, run)?;
    make_folder(&out)?; // now that it is known to be a run
    let page = finish(session, &out, report::diagnose::write(&out, &found))?;
    progress.end();
    for reason in &found.left_out {
        tracing::warn!("left out: {reason}");
    }
    output::line(page.display())?;
    Ok(ExitCode::SUCCESS)
}
