//! The CUDA driver: opening a device, its memory, loading kernels, and the one place where a kernel is launched.
//!
//! The driver library is loaded when it is first asked for, never linked: a binary with this code starts on a machine
//! that has none. Everything here is asked in an order in which it can answer: is there a library, is it recent
//! enough to have the entry points used below, does it show a device; the binding underneath panics otherwise.
//!
//! A [`Device`] has one stream, and all work goes through it in order. That is why the binding's own event tracking is
//! switched off before the first allocation. After an error that the device does not survive, none of its methods calls
//! the driver any more: see [`DeviceLost`](crate::error::DeviceLost).
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::env;
use std::ffi::{CString, c_void};
use std::ptr;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail, ensure};
use cudarc::driver::CudaContext;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{
    self, CUdevice_attribute, CUfunction_attribute, CUjit_option, CUlaunchAttributeID, CUresult,
};

use super::fault::{Gate, failed, name};
use super::image::{self, Image};
use super::kernels::Kernels;
use super::tma::EncodedMaps;
use super::transfer::{Landings, Staging};
use crate::kernel::{Geometry, GpuInfo};

/// The oldest CUDA whose driver has every entry point used here, and records launches that overlap.
const OLDEST_DRIVER: (u32, u32) = (12, 3);

/// Room for the driver's account of why it could not load an image.
const LOG_BYTES: usize = 16 << 10;

/// Whether the machine has a CUDA driver library. It may still have no device.
pub fn present() -> bool {
    // SAFETY: loads and unloads the driver library, whose initialisers do nothing before `cuInit`.
    unsafe { sys::is_culib_present() }
}

/// The CUDA version that the driver supports, for example `(13, 0)`.
///
/// # Errors
/// There is no driver.
pub fn version() -> Result<(u32, u32)> {
    ensure!(
        present(),
        "no NVIDIA driver: libcuda.so.1 cannot be loaded. Install the driver (in a container, start it with GPUs), or \
         use --device cpu"
    );
    let mut number = 0;
    // SAFETY: writes one integer, and may be called before `cuInit`.
    unsafe { sys::cuDriverGetVersion(&mut number) }.result().map_err(|e| anyhow!("cuDriverGetVersion: {}", name(e)))?;
    let number = u32::try_from(number)?;
    Ok((number / 1000, number % 1000 / 10))
}

/// Number of GPUs that this process can see.
///
/// # Errors
/// No driver, a driver too old, or no GPU.
pub fn count() -> Result<usize> {
    let (major, minor) = version()?;
    let (need_major, need_minor) = OLDEST_DRIVER;
    ensure!(
        (major, minor) >= OLDEST_DRIVER,
        "the NVIDIA driver supports CUDA {major}.{minor} and ocelli needs {need_major}.{need_minor}: update the driver, \
         or use --device cpu"
    );
    match CudaContext::device_count() {
        Ok(0) | Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => {
            Err(no_device(env::var("CUDA_VISIBLE_DEVICES").ok().as_deref()))
        }
        Ok(n) => Ok(usize::try_from(n)?),
        Err(e) => Err(failed(e)).context("the NVIDIA driver does not start"),
    }
}

/// The driver is there and shows no GPU.
fn no_device(visible: Option<&str>) -> anyhow::Error {
    match visible {
        Some(list) => anyhow!(
            "no GPU: CUDA_VISIBLE_DEVICES=\"{list}\" hides every one from this process; unset it, or use --device cpu"
        ),
        None => anyhow!(
            "no GPU: the NVIDIA driver is installed and finds none. See what nvidia-smi says (in a container, start it \
             with GPUs), or use --device cpu"
        ),
    }
}

/// What is known about an open device.
#[derive(Clone, Debug)]
pub struct Properties {
    /// Its number among the visible ones: the `N` of `cuda:N`.
    pub ordinal: usize,
    /// For example `NVIDIA H200`.
    pub name: String,
    /// What launch geometries depend on.
    pub gpu: GpuInfo,
    /// The CUDA version that the driver supports.
    pub driver: (u32, u32),
    /// Bytes of device memory.
    pub memory: usize,
}

/// An open GPU and its one stream.
pub struct Device {
    properties: Properties,
    kernels: Kernels,
    /// What writes are copied from and reads are copied to.
    pub(super) staging: RefCell<Staging>,
    pub(super) landings: Landings,
    pub(super) gate: Arc<Gate>,
}

impl Device {
    /// Open GPU number `ordinal` of those that the process can see.
    ///
    /// # Errors
    /// No driver, a driver too old, no GPU, or no such GPU; each is one line with the remedy.
    pub fn open(ordinal: usize) -> Result<Device> {
        Device::open_with(ordinal, Kernels::default())
    }

    /// [`Device::open`] with other images than the best that the build has for it.
    ///
    /// # Errors
    /// As there.
    pub fn open_with(ordinal: usize, kernels: Kernels) -> Result<Device> {
        let count = count()?;
        ensure!(ordinal < count, "no GPU cuda:{ordinal}: there are {count}, cuda:0 to cuda:{}", count - 1);
        let opening = || format!("opening cuda:{ordinal}");
        let context = CudaContext::new(ordinal).map_err(failed).with_context(opening)?;
        // SAFETY: nothing is allocated yet, and there will be one stream, which orders every use by itself.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(failed).with_context(opening)?;
        let attribute =
            |a| -> Result<u32> { Ok(u32::try_from(context.attribute(a).map_err(failed).with_context(opening)?)?) };
        let compute_capability = (
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        let gpu = GpuInfo {
            compute_capability,
            sm_90a: kernels.sm_90a(compute_capability),
            sms: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            max_smem: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        };
        let name = context.name().map_err(failed).with_context(opening)?;
        let memory = context.total_mem().map_err(failed).with_context(opening)?;
        let gate = Arc::new(Gate::new(ordinal, context, stream));
        Ok(Device {
            properties: Properties { ordinal, name, gpu, driver: version()?, memory },
            kernels,
            staging: RefCell::new(Staging::new(&gate).with_context(opening)?),
            landings: Landings::default(),
            gate,
        })
    }

    /// What is known about it.
    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    /// Where its images come from.
    pub fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// Threads that a multiprocessor holds at once.
    ///
    /// # Errors
    /// The driver fails.
    pub fn threads_per_sm(&self) -> Result<u32> {
        self.gate.enter()?;
        let attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR;
        Ok(u32::try_from(self.gate.check(self.gate.context.attribute(attribute))?)?)
    }

    /// Bytes of the L2 cache.
    ///
    /// # Errors
    /// The driver fails.
    pub fn l2_bytes(&self) -> Result<usize> {
        self.gate.enter()?;
        let attribute = self.gate.context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
        Ok(usize::try_from(self.gate.check(attribute)?)?)
    }

    /// Wait until everything that was enqueued has run.
    ///
    /// # Errors
    /// Also those of earlier launches: a kernel that read or wrote where it may not is reported here.
    pub fn synchronize(&self) -> Result<()> {
        self.gate.enter()?;
        self.gate.check(self.gate.stream.synchronize())
    }

    /// Tell a profiler that is attached to the process where what it should look at begins, and where it ends.
    ///
    /// # Errors
    /// The driver fails. Without a profiler nothing happens.
    pub fn profile(&self, on: bool) -> Result<()> {
        self.synchronize()?;
        self.gate.enter()?;
        // SAFETY: they take nothing and concern the context that `enter` has bound.
        let code = unsafe { if on { sys::cuProfilerStart() } else { sys::cuProfilerStop() } };
        self.gate.check(code.result())
    }

    /// Bytes of device memory that nobody has taken.
    ///
    /// # Errors
    /// The driver fails.
    pub fn free_memory(&self) -> Result<usize> {
        self.gate.enter()?;
        Ok(self.gate.check(self.gate.context.mem_get_info())?.0)
    }

    /// `bytes` bytes of device memory, each set to `fill`.
    ///
    /// # Errors
    /// Out of memory, with what was asked for and what is free.
    pub fn alloc(&self, bytes: usize, fill: u8) -> Result<Memory> {
        self.gate.enter()?;
        // The driver refuses an empty allocation, and a plan may have an empty region.
        // SAFETY: the memory is written below before anyone else has its address.
        let address = unsafe { result::malloc_sync(bytes.max(1)) }.map_err(|e| self.no_memory(bytes, e))?;
        let memory = Memory { address, bytes, gate: self.gate.clone() };
        // SAFETY: the range is the allocation just made.
        self.gate.check(unsafe { result::memset_d8_async(address, fill, bytes, self.gate.stream.cu_stream()) })?;
        self.synchronize()?;
        Ok(memory)
    }

    fn no_memory(&self, bytes: usize, e: DriverError) -> anyhow::Error {
        let ordinal = self.properties.ordinal;
        let gib = |bytes: usize| bytes as f64 / f64::from(1 << 30);
        if e.0 != CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return self.gate.fail(e).context(format!("allocating {:.2} GiB on cuda:{ordinal}", gib(bytes)));
        }
        match self.free_memory() {
            Ok(free) => anyhow!(
                "out of memory on cuda:{ordinal}: {:.2} GiB are needed and {:.2} of {:.2} GiB are free",
                gib(bytes),
                gib(free),
                gib(self.properties.memory)
            ),
            Err(e) => e,
        }
    }

    /// Load the image of `cuda/<kernel>.cu` that suits this device. `params` is the size of its parameter struct here.
    ///
    /// # Errors
    /// No image suits, the driver refuses it, or the kernel was compiled with another parameter struct.
    pub fn load(&self, kernel: &str, params: usize) -> Result<Arc<Module>> {
        self.load_image(&self.image(kernel)?, params)
    }

    /// The image of `cuda/<kernel>.cu` that suits this device.
    ///
    /// # Errors
    /// None suits.
    pub fn image(&self, kernel: &str) -> Result<Image<'_>> {
        self.kernels.pick(kernel, &self.properties.gpu)
    }

    /// [`Device::load`] of a given image.
    ///
    /// # Errors
    /// As there.
    pub fn load_image(&self, image: &Image<'_>, params: usize) -> Result<Arc<Module>> {
        self.gate.enter()?;
        // PTX is text and must end in a zero; machine code says its own length.
        let data = [image.bytes, &[0]].concat();
        let mut log = vec![0u8; LOG_BYTES];
        let mut options = [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), ptr::without_provenance_mut(log.len())];
        let mut raw = ptr::null_mut();
        // SAFETY: `data` ends in a zero, each option has its value, and the log is as long as its option says.
        let code = unsafe {
            sys::cuModuleLoadDataEx(&mut raw, data.as_ptr().cast(), 2, options.as_mut_ptr(), values.as_mut_ptr())
        };
        code.result().map_err(|e| {
            let end = log.iter().position(|&b| b == 0).unwrap_or(log.len());
            let log = String::from_utf8_lossy(&log[..end]);
            let refused = format!("{} ({})", image.kernel, image.arch);
            load_failed(&refused, e.0, &self.gate.fail(e), self.properties.driver, log.trim())
        })?;
        let module = Module { raw, kernel: image.kernel, params, gate: self.gate.clone() };
        module.check_params()?;
        Ok(Arc::new(module))
    }

    /// Enqueue one kernel. Returns before it has run; what goes wrong inside it surfaces at [`Device::synchronize`].
    ///
    /// This is safe to call only in the sense that matters to Rust: `params` holds device addresses, and those come
    /// from `Kernel::params` over the regions that the backend allocated, or the plan is wrong. A wrong address
    /// corrupts device memory or stops the context with an error; it cannot be checked here.
    ///
    /// # Errors
    /// `params` has another size than the kernel expects, or the driver refuses the geometry.
    pub fn launch(&self, function: &Function, geometry: &Geometry, params: &[u8]) -> Result<()> {
        self.launch_with(function, geometry, params, None)
    }

    /// [`Device::launch`] of a kernel that takes tensor maps as its second parameter.
    ///
    /// # Errors
    /// As there.
    pub fn launch_with(
        &self,
        function: &Function,
        geometry: &Geometry,
        params: &[u8],
        maps: Option<&EncodedMaps>,
    ) -> Result<()> {
        let Geometry { symbol, grid, block, smem, cluster, pdl } = *geometry;
        let expected = function.module.params;
        if params.len() != expected {
            bail!("{symbol} takes {expected} bytes of parameters, not {}", params.len());
        }
        // SAFETY: an integer id, padding and a union of plain data; all zeros is the attribute to ignore.
        let mut attributes: [sys::CUlaunchAttribute; 2] = unsafe { std::mem::zeroed() };
        let mut used = 0;
        if pdl {
            attributes[used].id = CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
            attributes[used].value.programmaticStreamSerializationAllowed = 1;
            used += 1;
        }
        if cluster > 1 {
            attributes[used].id = CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
            attributes[used].value.clusterDim =
                sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: cluster, y: 1, z: 1 };
            used += 1;
        }
        let config = sys::CUlaunchConfig {
            gridDimX: grid[0],
            gridDimY: grid[1],
            gridDimZ: grid[2],
            blockDimX: block[0],
            blockDimY: block[1],
            blockDimZ: block[2],
            sharedMemBytes: smem,
            hStream: self.gate.stream.cu_stream(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: used as u32,
        };
        // The driver looks at as many as the kernel has parameters.
        let maps = maps.map_or(ptr::null_mut(), |maps| ptr::from_ref(maps).cast_mut().cast());
        let mut arguments: [*mut c_void; 2] = [params.as_ptr().cast_mut().cast(), maps];
        self.gate.enter()?;
        // SAFETY: the kernel takes one parameter by value, of which `params` has exactly the size (checked above, and
        // against the image when it was loaded), and some another, no larger than `EncodedMaps`; the driver copies them,
        // the configuration and the attributes before it returns. What the kernel does with its addresses, and that
        // it is given maps if it takes them, is the caller's promise.
        let code = unsafe { sys::cuLaunchKernelEx(&config, function.raw, arguments.as_mut_ptr(), ptr::null_mut()) };
        self.gate.check(code.result()).with_context(|| format!("launching {geometry:?}"))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // The staging memory may still be read by a copy.
        let _ = self.synchronize();
    }
}

/// Device memory, freed when dropped.
pub struct Memory {
    address: sys::CUdeviceptr,
    bytes: usize,
    gate: Arc<Gate>,
}

impl Memory {
    /// Device address of the first byte: a multiple of 256.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address of `len` bytes at `offset`, all of them inside.
    pub(super) fn range(&self, offset: usize, len: usize) -> Result<sys::CUdeviceptr> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.bytes);
        ensure!(inside, "{len} bytes at {offset} leave a device allocation of {} bytes", self.bytes);
        Ok(self.address + offset as u64)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // Nothing can be done about an error here, and a device that is lost has freed everything already.
        if self.gate.may_free() {
            // SAFETY: allocated by `Device::alloc` and freed once. The driver waits for the work that still uses it.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// A loaded image, unloaded when dropped.
pub struct Module {
    raw: sys::CUmodule,
    kernel: &'static str,
    params: usize,
    gate: Arc<Gate>,
}

// SAFETY: the handle belongs to the context and not to a thread, nothing changes it, and every use binds the context.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Compare the size of the parameter struct here with the one that the kernel was compiled with.
    fn check_params(&self) -> Result<()> {
        let (kernel, here) = (self.kernel, self.params);
        let symbol = format!("{kernel}_params_size");
        let (mut address, mut bytes) = (0, 0);
        let c_symbol = CString::new(symbol.as_str())?;
        // SAFETY: the module is loaded, the name ends in a zero, and both results are written before they are read.
        let code = unsafe { sys::cuModuleGetGlobal_v2(&mut address, &mut bytes, self.raw, c_symbol.as_ptr()) };
        self.gate
            .check(code.result())
            .with_context(|| format!("cuda/{kernel}.cu exports no {symbol}: it lacks EXPORT_PARAMS"))?;
        let mut size = [0u8; 4];
        ensure!(bytes == size.len(), "{symbol} has {bytes} bytes, not {}", size.len());
        // SAFETY: the symbol has exactly the bytes of `size`.
        self.gate.check(unsafe { result::memcpy_dtoh_sync(&mut size, address) })?;
        let there = u32::from_ne_bytes(size);
        ensure!(
            usize::try_from(there)? == here,
            "kernel `{kernel}` was compiled with {there} bytes of parameters and this binary passes {here}: make \
             cuda/params.cuh and src/ops/{kernel}.rs agree and build again"
        );
        Ok(())
    }

    /// The entry point `symbol`, ready for launches with up to `smem` bytes of dynamic shared memory.
    ///
    /// # Errors
    /// There is no such entry point, or the device has less shared memory.
    pub fn function(self: &Arc<Self>, symbol: &str, smem: u32) -> Result<Function> {
        self.gate.enter()?;
        let c_symbol = CString::new(symbol)?;
        let mut raw = ptr::null_mut();
        // SAFETY: the module is loaded and the name ends in a zero.
        let code = unsafe { sys::cuModuleGetFunction(&mut raw, self.raw, c_symbol.as_ptr()) };
        self.gate.check(code.result()).with_context(|| format!("cuda/{}.cu has no kernel `{symbol}`", self.kernel))?;
        let function = Function { raw, module: self.clone() };
        // Up to 48 KiB are there unasked, but a kernel's own static memory counts among them.
        if smem > 0 {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function was found above.
            let set = unsafe { result::function::set_function_attribute(raw, attribute, i32::try_from(smem)?) };
            self.gate.check(set).with_context(|| format!("{symbol} asks for {smem} bytes of shared memory"))?;
        }
        Ok(function)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.gate.may_free() {
            // SAFETY: loaded by `Device::load_image` and unloaded once; every `Function` of it holds the module.
            let _ = unsafe { sys::cuModuleUnload(self.raw) };
        }
    }
}

/// What a kernel takes of a multiprocessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of local memory of a thread: registers that were spilled, and arrays that no register holds.
    pub spilled: u32,
    /// Bytes of shared memory of a block that the kernel has by itself.
    pub static_smem: u32,
}

/// An entry point of a [`Module`].
#[derive(Clone)]
pub struct Function {
    raw: sys::CUfunction,
    module: Arc<Module>,
}

// SAFETY: as for `Module`.
unsafe impl Send for Function {}
// SAFETY: as for `Module`.
unsafe impl Sync for Function {}

impl Function {
    /// Bytes of parameters that a launch passes.
    pub fn params(&self) -> usize {
        self.module.params
    }

    /// What a thread and a block of it take.
    ///
    /// # Errors
    /// The driver fails.
    pub fn resources(&self) -> Result<Resources> {
        let attribute = |a| -> Result<u32> {
            // SAFETY: the function belongs to a module that is held.
            let value = unsafe { result::function::get_function_attribute(self.raw, a) };
            Ok(u32::try_from(self.module.gate.check(value)?)?)
        };
        self.module.gate.enter()?;
        Ok(Resources {
            registers: attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            spilled: attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
            static_smem: attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
        })
    }

    /// Blocks of so many threads and bytes of dynamic shared memory that a multiprocessor holds at once.
    ///
    /// # Errors
    /// The driver fails.
    pub fn blocks_per_sm(&self, threads: u32, smem: u32) -> Result<u32> {
        self.module.gate.enter()?;
        let mut blocks = 0;
        // SAFETY: the function belongs to a module that is held, and the result is written before it is read.
        let code = unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                &mut blocks,
                self.raw,
                i32::try_from(threads)?,
                usize::try_from(smem)?,
            )
        };
        self.module.gate.check(code.result())?;
        Ok(u32::try_from(blocks)?)
    }
}

/// Why an image does not load, in words that say what to change.
fn load_failed(image: &str, code: CUresult, said: &anyhow::Error, driver: (u32, u32), log: &str) -> anyhow::Error {
    use CUresult::{CUDA_ERROR_INVALID_IMAGE, CUDA_ERROR_NO_BINARY_FOR_GPU, CUDA_ERROR_UNSUPPORTED_PTX_VERSION};
    let log = if log.is_empty() { String::new() } else { format!("; its log: {log}") };
    match code {
        CUDA_ERROR_UNSUPPORTED_PTX_VERSION | CUDA_ERROR_INVALID_IMAGE | CUDA_ERROR_NO_BINARY_FOR_GPU => {
            let (major, minor) = driver;
            let nvcc = image::nvcc_version().unwrap_or("of unknown version");
            anyhow!(
                "the driver cannot load kernel {image}: {said}. It was compiled by nvcc {nvcc} and the driver supports \
                 CUDA {major}.{minor}: update the driver, or build with an nvcc that is not newer (OCELLI_NVCC){log}"
            )
        }
        _ => anyhow!("the driver cannot load kernel {image}: {said}{log}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_driver_gets_an_error_and_not_a_panic() {
        if present() {
            return;
        }
        for e in [version().err(), count().err(), Device::open(0).err()] {
            let message = e.map(|e| format!("{e:#}")).unwrap_or_default();
            assert!(message.starts_with("no NVIDIA driver: libcuda.so.1 cannot be loaded."), "{message}");
            assert!(message.contains("--device cpu") && !message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn hidden_gpus_are_told_from_absent_ones() {
        assert!(no_device(Some("")).to_string().starts_with("no GPU: CUDA_VISIBLE_DEVICES=\"\" hides every one"));
        assert!(no_device(Some("7")).to_string().contains("CUDA_VISIBLE_DEVICES=\"7\""));
        assert!(no_device(None).to_string().contains("nvidia-smi"));
    }

    #[test]
    fn an_image_newer_than_the_driver_is_named_with_both_versions() {
        let said = anyhow!(
            "CUDA_ERROR_UNSUPPORTED_PTX_VERSION (the provided PTX was compiled with an unsupported toolchain.)"
        );
        let code = CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION;
        let e = load_failed("gemm (compute_80)", code, &said, (12, 4), "ptxas fatal: .version 9.0").to_string();
        assert!(
            e.starts_with("the driver cannot load kernel gemm (compute_80): CUDA_ERROR_UNSUPPORTED_PTX_VERSION"),
            "{e}"
        );
        assert!(e.contains("the driver supports CUDA 12.4: update the driver, or build with an nvcc"), "{e}");
        assert!(e.ends_with("(OCELLI_NVCC); its log: ptxas fatal: .version 9.0"), "{e}");

        let said = anyhow!("CUDA_ERROR_OUT_OF_MEMORY (out of memory)");
        let e = load_failed("gemm (sm_90a)", CUresult::CUDA_ERROR_OUT_OF_MEMORY, &said, (13, 0), "").to_string();
        assert_eq!(e, "the driver cannot load kernel gemm (sm_90a): CUDA_ERROR_OUT_OF_MEMORY (out of memory)");
    }
}
