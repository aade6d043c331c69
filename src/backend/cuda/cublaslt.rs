//! NVIDIA's matrix products, to measure ours against. Nothing that runs a model comes here.
//!
//! The library is loaded when it is first asked for, as the driver is.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ptr;

use anyhow::{Context, Result, ensure};
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{self, cublasLtMatmulDescAttributes_t, cublasLtMatmulPreferenceAttributes_t};

use super::driver::{Device, Memory};
use super::graph::Graph;
use crate::mem::DType;

/// Memory that an algorithm may use besides its operands: what the library's documentation recommends for this card.
static WORKSPACE: usize = 32 << 20;

/// Results that have no place of their own go here: the widest product of a prompt, `[645, 22016]`, and more.
const SPARE: usize = 128 << 20;

/// `CUBLAS_OP_T`, which the binding leaves out.
static TRANSPOSED: i32 = 1;

/// Algorithms that are asked for.
const ALGORITHMS: usize = 8;

fn failed(e: CublasError) -> anyhow::Error {
    anyhow::anyhow!("cuBLASLt: {e}")
}

/// The library, and memory for it.
pub struct CublasLt {
    handle: sys::cublasLtHandle_t,
    workspace: Memory,
    spare: Memory,
}

/// `c = a b^T`, or `c += a b^T`, all row-major.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Rows of `a`.
    pub m: usize,
    /// Rows of `b`.
    pub n: usize,
    /// Length of a row of either.
    pub k: usize,
    /// Type of `a` and `b`.
    pub inputs: DType,
    /// Type of `c`.
    pub output: DType,
    /// Whether `c` is read, too.
    pub accumulate: bool,
}

impl CublasLt {
    /// Load the library.
    ///
    /// # Errors
    /// It cannot be loaded, or does not start.
    pub fn open(device: &Device) -> Result<CublasLt> {
        // SAFETY: loads and unloads a library whose initialisers do nothing.
        let present = unsafe { sys::is_culib_present() };
        ensure!(
            present,
            "cuBLASLt is not present: libcublasLt.so cannot be loaded. Install CUDA's libraries, or name their directory in \
             LD_LIBRARY_PATH"
        );
        let (workspace, spare) = (device.alloc(WORKSPACE, 0)?, device.alloc(SPARE, 0)?);
        Ok(CublasLt { handle: result::create_handle().map_err(failed)?, workspace, spare })
    }

    /// For example `cuBLASLt 13.1.0`.
    pub fn version(&self) -> String {
        // SAFETY: takes and returns a number.
        let number = unsafe { sys::cublasLtGetVersion() };
        // Before 12 the major version stood a digit further right.
        let (major, rest) =
            if number >= 100_000 { (number / 10_000, number % 10_000) } else { (number / 1000, number % 1000) };
        format!("cuBLASLt {major}.{}.{}", rest / 100, rest % 100)
    }

    /// Ask for the best algorithms for a shape.
    ///
    /// # Errors
    /// The library has none.
    pub fn product(&self, shape: Shape) -> Result<Product<'_>> {
        let Shape { m, n, k, .. } = shape;
        // The library is column-major, where our rows of `c` are columns: c^T (n, m) = b (n, k) a^T (k, m), with b given
        // transposed, as (k, n).
        let layouts = Layouts::new(shape)?;
        let mut product = Product { library: self, shape, layouts, algorithms: Vec::new() };
        product.algorithms = product.heuristic().with_context(|| format!("cuBLASLt has nothing for {m}x{n}x{k}"))?;
        Ok(product)
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        // SAFETY: created by `open` and destroyed once; every `Product` borrows the library.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// The descriptions of a product that the library keeps.
struct Layouts {
    matmul: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    c: sys::cublasLtMatrixLayout_t,
}

fn data_type(dtype: DType) -> Result<sys::cudaDataType> {
    Ok(match dtype {
        DType::F32 => sys::cudaDataType::CUDA_R_32F,
        DType::F16 => sys::cudaDataType::CUDA_R_16F,
        DType::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        _ => anyhow::bail!("no matrix product in {dtype}"),
    })
}

impl Layouts {
    fn new(shape: Shape) -> Result<Layouts> {
        let Shape { m, n, k, inputs, output, .. } = shape;
        let [m64, n64, k64] = [m, n, k].map(|v| v as u64);
        let float = sys::cudaDataType::CUDA_R_32F;
        let layouts = Layouts {
            matmul: result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, float).map_err(failed)?,
            a: result::create_matrix_layout(data_type(inputs)?, k64, m64, k as i64).map_err(failed)?,
            b: result::create_matrix_layout(data_type(inputs)?, k64, n64, k as i64).map_err(failed)?,
            c: result::create_matrix_layout(data_type(output)?, n64, m64, n as i64).map_err(failed)?,
        };
        let attribute = cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
        // SAFETY: the descriptor was just made, and the attribute is an integer of four bytes.
        unsafe { result::set_matmul_desc_attribute(layouts.matmul, attribute, (&raw const TRANSPOSED).cast(), 4) }
            .map_err(failed)?;
        Ok(layouts)
    }
}

impl Drop for Layouts {
    fn drop(&mut self) {
        // SAFETY: each was made by `new` and is destroyed once.
        unsafe {
            let _ = result::destroy_matmul_desc(self.matmul);
            for layout in [self.a, self.b, self.c] {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}

/// A product that the library is ready to compute.
pub struct Product<'a> {
    library: &'a CublasLt,
    shape: Shape,
    layouts: Layouts,
    algorithms: Vec<sys::cublasLtMatmulAlgo_t>,
}

impl Product<'_> {
    fn heuristic(&self) -> Result<Vec<sys::cublasLtMatmulAlgo_t>> {
        let Layouts { matmul, a, b, c } = self.layouts;
        let preference = result::create_matmul_pref().map_err(failed)?;
        let limit = cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        let mut count = 0;
        // SAFETY: a result is plain data, and zeros are one that names no algorithm.
        let mut found: [sys::cublasLtMatmulHeuristicResult_t; ALGORITHMS] = unsafe { std::mem::zeroed() };
        // SAFETY: the preference was just made and is destroyed once; its attribute is a size; the descriptions belong to
        // this product; and there is room for as many results as are asked for.
        let asked = unsafe {
            let set =
                result::set_matmul_pref_attribute(preference, limit, (&raw const WORKSPACE).cast(), size_of::<usize>());
            let asked = set.and_then(|()| {
                let handle = self.library.handle;
                let room = ALGORITHMS as i32;
                // `b` comes first: see `CublasLt::product`.
                sys::cublasLtMatmulAlgoGetHeuristic(
                    handle,
                    matmul,
                    b,
                    a,
                    c,
                    c,
                    preference,
                    room,
                    found.as_mut_ptr(),
                    &mut count,
                )
                .result()
            });
            let _ = result::destroy_matmul_pref(preference);
            asked
        };
        asked.map_err(failed)?;
        let usable = found.iter().take(usize::try_from(count)?).filter(|f| f.state.result().is_ok());
        let algorithms: Vec<_> = usable.map(|f| f.algo).collect();
        ensure!(!algorithms.is_empty(), "no algorithm");
        Ok(algorithms)
    }

    /// How many algorithms there are.
    pub fn algorithms(&self) -> usize {
        self.algorithms.len()
    }

    /// Device address of memory for a result that nobody wants.
    pub fn spare(&self) -> u64 {
        self.library.spare.address()
    }

    /// Record one product for each set of addresses, `rounds` times over. The algorithm must have run before: the library
    /// loads its code then, which cannot be recorded.
    ///
    /// # Errors
    /// The library or the driver fails.
    pub fn record(&self, device: &Device, algorithm: usize, rounds: usize, sets: &[[u64; 3]]) -> Result<Recorded> {
        let all = || (0..rounds).flat_map(|_| sets).try_for_each(|at| self.enqueue(device, algorithm, *at));
        Ok(Recorded(device.capture(all)?))
    }

    /// Enqueue the product with `c`, `a` and `b` at these device addresses.
    ///
    /// # Errors
    /// The library fails.
    pub fn enqueue(&self, device: &Device, algorithm: usize, [c, a, b]: [u64; 3]) -> Result<()> {
        let Shape { m, n, output, accumulate, .. } = self.shape;
        if c == self.spare() {
            ensure!(m * n * output.size() <= SPARE, "a result of {m}x{n} does not fit {SPARE} bytes");
        }
        device.gate.enter()?;
        let (alpha, beta) = (1.0f32, if accumulate { 1.0f32 } else { 0.0 });
        let at = |address: u64| ptr::without_provenance::<c_void>(address as usize);
        let c = at(c).cast_mut();
        let Layouts { matmul, a: a_layout, b: b_layout, c: c_layout } = self.layouts;
        // SAFETY: the descriptions belong to this product; the caller gives addresses of operands of its shape, as it
        // does to a kernel; both factors are f32, as the description says; work on the stream orders every use.
        let done = unsafe {
            result::matmul(
                self.library.handle,
                matmul,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                at(b),
                b_layout,
                at(a),
                a_layout,
                c,
                c_layout,
                c,
                c_layout,
                &raw const self.algorithms[algorithm],
                at(self.library.workspace.address()).cast_mut(),
                WORKSPACE,
                device.gate.stream.cu_stream().cast(),
            )
        };
        done.map_err(failed)
    }
}

/// Products that are enqueued by one call.
pub struct Recorded(Graph);

impl Recorded {
    /// Enqueue them.
    ///
    /// # Errors
    /// The driver fails.
    pub fn replay(&self, device: &Device) -> Result<()> {
        device.replay(&self.0)
    }
}
