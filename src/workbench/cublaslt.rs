//! The same products by NVIDIA's library, where a build and a machine have it.
//!
//! It computes `a b^T`, plus `c` where our epilogue adds a residual; normalisation, biases and activations are left out,
//! so it has less to do than the kernel beside it. Every algorithm that its heuristic proposes is timed, and the best one
//! counts.

use anyhow::Result;

use crate::backend::cuda::Cuda;
use crate::backend::cuda::driver::Device;
use crate::ops::Op;

#[cfg(feature = "cublaslt")]
mod present {
    use super::{Cuda, Device, Op, Result};
    use crate::backend::cuda::cublaslt::{CublasLt, Product, Recorded, Shape};
    use crate::mem::{Act, Buf};
    use crate::ops::Epilogue;

    /// The library, open.
    pub struct Library(CublasLt);

    impl Library {
        /// Load it.
        ///
        /// # Errors
        /// It is not there, or does not start.
        pub fn open(device: &Device) -> Result<Library> {
            Ok(Library(CublasLt::open(device)?))
        }

        /// For example `cuBLASLt 13.0.2`.
        pub fn version(&self) -> String {
            self.0.version()
        }
    }

    /// The products of some copies of a case.
    pub struct Products<'a> {
        product: Product<'a>,
        /// `c`, `a` and `b` of each.
        addresses: Vec<[u64; 3]>,
    }

    /// What the library is asked for, and `c`, `a` and `b`, if `op` is a product.
    fn product(op: &Op) -> Option<(Shape, [Buf<Act>; 3])> {
        let ([m, n, k], [c, a, b], epilogue) = match *op {
            Op::Gemm(g) => ([g.m, g.n, g.k], [g.c, g.a, g.b], g.epilogue),
            Op::Gemv(g) => ([g.m, g.n, g.k], [g.c, g.a, g.b], g.epilogue),
            _ => return None,
        };
        let accumulate = epilogue == Epilogue::AddResidual;
        Some((Shape { m, n, k, inputs: a.dtype(), output: c.dtype(), accumulate }, [c, a, b]))
    }

    impl Products<'_> {
        /// Of `ops`, which are one product over several sets of buffers; `None` if they are something else.
        ///
        /// # Errors
        /// The library refuses the shape.
        pub fn of<'a>(library: &'a Library, cuda: &Cuda, ops: &[Op]) -> Result<Option<Products<'a>>> {
            let Some((shape, _)) = ops.first().and_then(product) else { return Ok(None) };
            let product = library.0.product(shape)?;
            let addresses = ops.iter().filter_map(self::product).map(|(_, buffers)| {
                let [c, a, b] = buffers.map(|buf| cuda.bases().at(buf));
                // With gate and up in one, the plain product is twice as wide as the op's result; it goes to memory of the
                // library's own.
                [if buffers[0].len() < shape.m * shape.n { product.spare() } else { c }, a, b]
            });
            let addresses = addresses.collect();
            Ok(Some(Products { product, addresses }))
        }

        /// How many algorithms the heuristic proposes.
        pub fn algorithms(&self) -> usize {
            self.product.algorithms()
        }

        /// Record `rounds` products for every copy; see [`Product::record`].
        ///
        /// # Errors
        /// The library fails.
        pub fn record(&self, device: &Device, algorithm: usize, rounds: usize) -> Result<Recorded> {
            self.product.record(device, algorithm, rounds, &self.addresses)
        }

        /// Enqueue one product for every copy.
        ///
        /// # Errors
        /// The library fails.
        pub fn enqueue(&self, device: &Device, algorithm: usize) -> Result<()> {
            self.addresses.iter().try_for_each(|at| self.product.enqueue(device, algorithm, *at))
        }
    }
}

#[cfg(not(feature = "cublaslt"))]
mod absent {
    use super::{Cuda, Device, Op, Result};

    /// Stands for the library in a build without it, and cannot be opened.
    pub enum Library {}

    impl Library {
        /// Says that it is not there.
        ///
        /// # Errors
        /// Always.
        pub fn open(_: &Device) -> Result<Library> {
            anyhow::bail!("this build has no cuBLASLt: build with --features cublaslt")
        }

        /// Of what is not there.
        pub fn version(&self) -> String {
            match *self {}
        }
    }

    /// Recorded [`Products`], which there are none of.
    pub enum Recorded {}

    impl Recorded {
        /// Never called.
        ///
        /// # Errors
        /// None.
        pub fn replay(&self, _: &Device) -> Result<()> {
            match *self {}
        }
    }

    /// Products of a [`Library`], which there are none of.
    pub enum Products {}

    impl Products {
        /// Never called: there is no library.
        ///
        /// # Errors
        /// None.
        pub fn of(library: &Library, _: &Cuda, _: &[Op]) -> Result<Option<Products>> {
            match *library {}
        }

        /// Never called.
        pub fn algorithms(&self) -> usize {
            match *self {}
        }

        /// Never called.
        ///
        /// # Errors
        /// None.
        pub fn record(&self, _: &Device, _: usize, _: usize) -> Result<Recorded> {
            match *self {}
        }

        /// Never called.
        ///
        /// # Errors
        /// None.
        pub fn enqueue(&self, _: &Device, _: usize) -> Result<()> {
            match *self {}
        }
    }
}

#[cfg(not(feature = "cublaslt"))]
pub use absent::{Library, Products};
#[cfg(feature = "cublaslt")]
pub use present::{Library, Products};
