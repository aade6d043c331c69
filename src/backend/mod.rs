//! What runs plans. A backend knows ops, plans and memory, and no model.

pub mod cpu;

pub use cpu::Cpu;
