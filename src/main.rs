//! The command line: parses, chooses the device once, runs, and prints an error's chain.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
