//! The `ocelli` binary: parse, dispatch, exit code.

fn main() {}
