//! Kernels from a folder on a GPU.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use ocelli::backend::cuda::driver::Device;
use ocelli::backend::cuda::folder::Folder;
use ocelli::backend::cuda::image::{self, Kind};
use ocelli::backend::cuda::nvcc::{self, Arch};
use ocelli::mem::{Bases, DType};
use ocelli::workbench::check::Checker;
use ocelli::workbench::{Bed, Numbers, Size, cases};

use crate::gpu;

/// The image that this device would run of `kernel`, under another name in a folder.
fn folder(kernel: &str, name: &str) -> Arc<Folder> {
    let device = Device::open(0).expect("the GPU opens");
    let image = device.image(kernel).expect("an image");
    let dir = tempfile::tempdir().expect("a folder");
    let extension = if image.kind == Kind::Ptx { "ptx" } else { "cubin" };
    fs::write(dir.path().join(format!("{name}.{}.{extension}", image.arch)), image.bytes).expect("a file");
    Arc::new(Folder::read(dir.path()).expect("a folder of kernels"))
}

#[test]
fn the_kernels_of_a_folder_run_and_another_kernels_image_is_refused() {
    if gpu::device().is_none() {
        return;
    }
    let mut cases = cases::select(Some("gather"), None);
    cases.retain(|case| case.size == Size::Edge);
    let own = Checker::with(0, folder("gather", "gather").into(), &cases).expect("a checker");
    for case in &cases {
        let verdicts = own.check(case, DType::Bf16, &[0xff]).expect("it runs");
        assert!(verdicts.iter().all(|verdict| verdict.fault.is_none()), "{}", case.name);
    }
    let other = Checker::with(0, folder("rmsnorm", "gather").into(), &cases).expect("a checker");
    let error = format!("{:#}", other.check(&cases[0], DType::Bf16, &[0xff]).expect_err("another kernel"));
    assert!(error.contains("cuda/gather.cu exports no gather_params_size"), "{error}");
}

/// What `ocelli kernels watch` does when a source with a fault is saved.
#[test]
fn a_fault_in_a_compiled_kernel_is_found() {
    let Some(device) = gpu::device() else { return };
    let Some(nvcc) = nvcc::find(Path::new(".")).expect("OCELLI_NVCC names a compiler") else {
        gpu::skipped("no nvcc");
        return;
    };
    let (major, minor) = device.properties().gpu.compute_capability;
    let arch = if device.properties().gpu.sm_90a { "sm_90a".into() } else { format!("sm_{major}{minor}") };
    let arch = Arch::parse(&arch).expect("an architecture");
    let mut cases = cases::select(Some("gather"), None);
    cases.retain(|case| case.size == Size::Edge);
    let kernel = fs::read_to_string("cuda/gather.cu").expect("the source");
    let faulty = kernel.replace("from = p.index[row];", "from = p.index[row] - 1;");
    assert_ne!(kernel, faulty);
    for (source, right) in [(kernel, true), (faulty, false)] {
        let dir = tempfile::tempdir().expect("a folder");
        let (file, image) = (dir.path().join("gather.cu"), dir.path().join(format!("gather.{}.cubin", arch.name)));
        fs::write(&file, source).expect("a file");
        let ran = nvcc::command(&nvcc, &arch, &file, &image).arg("-Icuda").output().expect("nvcc runs");
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        let folder = Arc::new(Folder::read(dir.path()).expect("a folder of kernels"));
        let checker = Checker::with(0, folder.into(), &cases).expect("a checker");
        for case in &cases {
            let verdicts = checker.check(case, DType::F16, &[0xff]).expect("it runs");
            assert!(verdicts.iter().all(|verdict| verdict.fault.is_none() == right), "{}", case.name);
        }
    }
}

/// What a case asks of a multiprocessor is there.
#[test]
fn every_launch_of_the_table_fits_a_multiprocessor() {
    let Some(device) = gpu::device() else { return };
    let info = device.properties().gpu;
    for case in cases::all() {
        let op = case.build(&mut Bed::new(DType::Bf16, Numbers::Exact));
        let launched = op.launched(&Bases::new([0; 4]), &info);
        let module = device.load(launched.kernel, launched.params().len()).expect("it loads");
        let g = launched.geometry;
        let function = module.function(g.symbol, g.smem).expect("an entry point");
        let threads = g.block.iter().product();
        let blocks = function.blocks_per_sm(threads, g.smem).expect("an occupancy");
        assert!(
            blocks >= 1 && blocks * threads <= device.threads_per_sm().expect("an attribute"),
            "{} {g:?}",
            case.name
        );
    }
    assert!(!image::embedded().is_empty());
}
