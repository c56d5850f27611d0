//! The command line: parses, chooses the device once, runs, and prints an error's chain.

#![deny(clippy::print_stdout, clippy::print_stderr)] // `cli::output` writes

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
