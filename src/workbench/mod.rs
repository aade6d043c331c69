//! The bench that kernels are put on: one table of shapes, and what is done with it.
//!
//! | file | job |
//! |---|---|
//! | [`cases`] | the table: for every op the edges and the sizes of LLaVA-1.5-7B, as data that builds the op |
//! | [`bed`] | the memory of a case: buffers, and what they hold before a run |
//! | [`mod@check`] | a kernel against its op's reference, within a stated tolerance |
//! | [`mod@bench`] | what a kernel takes, beside what memory and the matrix units give in the same run |
//! | [`ceiling`] | how fast this GPU reads |
//! | [`timer`] | seconds of a launch, by events on the device |
//! | [`cublaslt`] | the same product by NVIDIA's library |
//!
//! `ocelli kernels` is the command line of it. It knows ops and backends, and no model.

pub mod bed;
#[cfg(feature = "cuda")]
pub mod bench;
pub mod cases;
#[cfg(feature = "cuda")]
pub mod ceiling;
#[cfg(feature = "cuda")]
pub mod check;
#[cfg(feature = "cuda")]
pub mod cublaslt;
#[cfg(feature = "cuda")]
pub mod timer;

pub use bed::{Bed, Numbers};
pub use cases::{Case, Size, Tolerance};
