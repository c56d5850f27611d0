//! The studies: on networks whose values were set by hand, and end to end through the program.

#[macro_use]
#[path = "../common/mod.rs"]
mod common;

mod ablation;
mod by_hand;
mod diagnose;
mod evolution;
mod inputs;
mod invariance;
mod learnt;
mod preferred;
mod probe;
mod report;
mod tables;
mod transfer;
