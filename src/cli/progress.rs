//! Bars, if somebody is watching.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar over `bytes` bytes on stderr; hidden if that is no terminal.
pub fn loading(bytes: u64) -> ProgressBar {
    bar(bytes, "loading {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}")
}

/// A bar over the bytes of a file of requests, with a message; hidden likewise.
#[cfg(feature = "server")]
pub fn lines() -> ProgressBar {
    bar(0, "{wide_bar} {percent}% {msg}, {eta} left")
}

/// A bar over requests; hidden likewise.
#[cfg(feature = "server")]
pub fn requests(count: u64) -> ProgressBar {
    bar(count, "{wide_bar} {pos} of {len} requests, {eta} left")
}

fn bar(length: u64, template: &str) -> ProgressBar {
    let target = if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(length), target).with_style(style)
}
