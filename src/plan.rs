//! The flat list of launches.
