//! The program as a user runs it: training, evaluation, shards, reports, and every kind of bad input.

#[macro_use]
#[path = "../common/mod.rs"]
mod common;

mod alarms;
mod bad_input;
mod commands;
mod explore;
mod extract;
#[cfg(feature = "cuda")]
mod gpus;
mod import;
#[cfg(target_os = "linux")]
mod output;
#[cfg(unix)]
mod pack;
#[cfg(all(
    target_os = "linux",
    target_env = "gnu",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
mod power_loss;
mod report;
#[cfg(unix)]
mod resume;
mod streaming;
mod tensorboard;
mod verify;
#[cfg(unix)]
mod wrecked;
