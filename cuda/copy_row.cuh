// A row moved by one block: what the ops that only pick rows share.

#pragma once

#include "common.cuh"

// y[0 .. cols] = x[0 .. cols], in 16-byte pieces where length and addresses allow.
template <typename T>
__device__ __forceinline__ void copy_row(T* y, const T* x, uint32_t cols) {
    if (cols % 8 == 0 && is_aligned16(x) && is_aligned16(y)) {
        for (uint32_t i = threadIdx.x; i < cols / 8; i += blockDim.x) store8(y, i, load8(x, i));
    } else {
        for (uint32_t i = threadIdx.x; i < cols; i += blockDim.x) y[i] = x[i];
    }
}
