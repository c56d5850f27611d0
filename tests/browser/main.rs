//! The explorer in a real browser: each thing a person does on its page is done by clicks, keys and drags.
//!
//! Needs Chromium and its driver (Debian: chromium, chromium-driver). Where they are missing the tests say so and
//! are skipped; `ZFNET_BROWSER=required` makes that a failure.

mod compare;
mod look;
mod page;
mod slow;

#[allow(dead_code)] // what other tests use of it
#[path = "../common/place.rs"]
mod place;
