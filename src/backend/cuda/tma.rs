//! Tensor maps: what the copy engine of compute capability 9.0 has to know of an array, in the form that it reads.
#![allow(unsafe_code)]

use anyhow::{Result, bail, ensure};
use cudarc::driver::sys::{
    self, CUtensorMap, CUtensorMapDataType, CUtensorMapFloatOOBfill, CUtensorMapInterleave, CUtensorMapL2promotion,
    CUtensorMapSwizzle,
};

use crate::kernel::{MAX_TENSOR_MAPS, TensorMap, TensorMaps};
use crate::mem::DType;

/// The tensor maps of a launch, by value the second parameter of its kernel; zeros where there is none.
///
/// The driver wants them aligned to 64 bytes and later ones to 128, whatever the binding says.
#[repr(C, align(128))]
pub struct EncodedMaps([CUtensorMap; MAX_TENSOR_MAPS]);

/// Encode the tensor maps of a launch; `None` if it has none.
///
/// # Errors
/// A map that the copy engine cannot follow: an address, a stride, a size or a tile that it does not take.
pub fn encode(maps: &TensorMaps) -> Result<Option<Box<EncodedMaps>>> {
    if maps.iter().all(Option::is_none) {
        return Ok(None);
    }
    let mut encoded = Box::new(EncodedMaps([CUtensorMap { opaque: [0; 16] }; MAX_TENSOR_MAPS]));
    for (to, map) in encoded.0.iter_mut().zip(maps) {
        if let Some(map) = map {
            *to = encode_one(map)?;
        }
    }
    Ok(Some(encoded))
}

fn encode_one(map: &TensorMap) -> Result<CUtensorMap> {
    let dtype = match map.dtype {
        DType::F16 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        DType::Bf16 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        other => bail!("no kernel moves tiles of {other}"),
    };
    let swizzle = match map.tile[0] as usize * map.dtype.size() {
        64 => CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
        128 => CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        bytes => bail!("a row of a tile has 64 or 128 bytes, not {bytes}: {map:?}"),
    };
    ensure!((1..=map.dims.len()).contains(&map.rank), "an array has 1 to 4 dimensions: {map:?}");
    let steps = [1u32; 4];
    let mut encoded = CUtensorMap { opaque: [0; 16] };
    // SAFETY: writes one map and reads `rank` numbers of each array, one less of the strides. The address is stored and
    // not followed; what a kernel does with it is the promise of whoever launches one.
    let code = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut encoded,
            dtype,
            map.rank as u32,
            std::ptr::with_exposed_provenance_mut(map.address as usize),
            map.dims.as_ptr(),
            map.strides.as_ptr(),
            map.tile.as_ptr(),
            steps.as_ptr(),
            CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    ensure!(code == sys::CUresult::CUDA_SUCCESS, "the driver refuses {map:?} ({code:?})");
    Ok(encoded)
}
