//! The program: see [`zfnet::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(zfnet::cli::main(std::env::args_os()).0)
}
