//! Errors of a GPU: those that it survives, and those after which it is not asked again.

#![cfg(feature = "cuda")]
#![allow(clippy::print_stdout)]

#[path = "cuda/gpu.rs"]
mod gpu;

use ocelli::DeviceLost;
use ocelli::backend::cuda::driver::Device;
use ocelli::backend::cuda::image::{Image, Kind};
use ocelli::kernel::Geometry;

/// A kernel that stores to an address that nobody has.
const STRAY: &str = ".version 7.0
.target sm_80
.address_size 64
.visible .const .align 4 .u32 stray_params_size = 8;
.visible .entry stray(.param .u64 p) {
    .reg .u64 %a;
    .reg .u32 %v;
    ld.param.u64 %a, [p];
    mov.u32 %v, 1;
    st.global.u32 [%a], %v;
    ret;
}
";

fn image(ptx: &'static str) -> Image<'static> {
    Image {
        kernel: "stray",
        arch: "compute_80",
        kind: Kind::Ptx,
        major: 8,
        minor: 0,
        exact: false,
        bytes: ptx.as_bytes(),
    }
}

/// One test, because the second half ends the context that tests of one process share.
#[test]
fn a_failed_call_leaves_the_device_usable_and_after_a_fatal_error_nothing_reaches_the_driver() {
    let Some(device) = gpu::device() else { return };
    survives(&device);
    is_lost(device);
}

fn survives(device: &Device) {
    let memory = device.properties().memory;
    let error = device.alloc(memory + (1 << 30), 0).err().expect("more than there is").to_string();
    println!("{error}");
    let said = error.starts_with("out of memory on cuda:0: ") && error.contains(" GiB are needed and ");
    assert!(said && error.ends_with(" GiB are free"), "{error}");

    let error = device.load_image(&image("this is no PTX"), 8).err().expect("not PTX");
    assert!(
        error.downcast_ref::<DeviceLost>().is_none() && format!("{error:#}").contains("stray (compute_80)"),
        "{error:#}"
    );
    let error = format!("{:#}", device.load_image(&image(STRAY), 16).err().expect("another size"));
    assert!(error.contains("compiled with 8 bytes of parameters and this binary passes 16"), "{error}");

    // A launch that the driver refuses.
    let module = device.load_image(&image(STRAY), 8).expect("it loads");
    let function = module.function("stray", 0).expect("it has the entry point");
    let block = [4096, 1, 1];
    let geometry = Geometry { symbol: "stray", grid: [1; 3], block, smem: 0, cluster: 1, pdl: false };
    let error = device.launch(&function, &geometry, &[0; 8]).expect_err("4096 threads");
    assert!(error.downcast_ref::<DeviceLost>().is_none(), "{error:#}");

    let bytes = device.alloc(16, 7).expect("the device still works");
    let mut read = [0; 16];
    device.read(&bytes, 0, &mut read).expect("the device still works");
    assert_eq!(read, [7; 16]);
}

fn is_lost(device: Device) {
    let bytes = device.alloc(16, 0).expect("memory");
    let module = device.load_image(&image(STRAY), 8).expect("it loads");
    let function = module.function("stray", 0).expect("it has the entry point");
    let geometry = Geometry { symbol: "stray", grid: [1; 3], block: [1; 3], smem: 0, cluster: 1, pdl: false };
    let nowhere = 0xdead_0000_0000_u64.to_ne_bytes();
    device.launch(&function, &geometry, &nowhere).expect("a launch does not wait");
    let first = device.synchronize().expect_err("the kernel left its memory");
    let lost = first.downcast_ref::<DeviceLost>().expect("this is fatal").clone();
    println!("{first:#}");
    assert_eq!(lost.device, "cuda:0");
    assert!(lost.cause.starts_with("CUDA_ERROR_ILLEGAL_ADDRESS"), "{lost}");

    let later = [
        device.write(&bytes, 0, &[1]).err(),
        device.read(&bytes, 0, &mut [0]).err(),
        device.alloc(1, 0).err(),
        device.launch(&function, &geometry, &nowhere).err(),
        device.load_image(&image(STRAY), 8).err(),
        device.synchronize().err(),
    ];
    for error in later {
        assert_eq!(error.expect("the device is lost").downcast_ref::<DeviceLost>(), Some(&lost));
    }
    drop((function, module, bytes, device));
}
