//! The closed list of ops.
