//! What runs plans. A backend knows ops, plans and memory, and no model.

pub mod any;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;

pub use any::Any;
pub use cpu::Cpu;
