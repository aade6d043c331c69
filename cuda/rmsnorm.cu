// What:   y = round(round(x / sqrt(mean(x^2) + eps)) * w), each round to the storage type: the order in which the
//         Hugging Face models do it, and therefore two roundings. The mean is taken in f32.
// Layout: x, y (rows, cols); weight (cols). y may be x.
// Grid:   x = row; one block a row, a whole number of warps, best one thread for eight columns, at most 1024.
// Limits: any cols >= 1. 16-byte accesses where cols % 8 == 0 and all three addresses are 16-byte aligned.
// Order:  the additions depend on cols and the block size alone, so a row gives the same bits in any batch.
// Bound:  memory; (rows, 4096) in bf16 moves 3.41 TB/s at 131072 rows, 86% of a plain copy in the same run, and takes
//         7.1 us at 645 rows and 3.7 us at one, which is the launch (H200, driver 580.159, 2026-11-22). Odd lengths
//         reach 1.28 TB/s.

#include "common.cuh"
#include "params.cuh"

// The second rounding: the product of two T is exact in f32, so rounding it once equals multiplying in T.
template <typename T>
__device__ __forceinline__ T normalised(T x, T w, float scale) {
    return from_f32<T>(to_f32(from_f32<T>(to_f32(x) * scale)) * to_f32(w));
}

template <typename T>
__device__ __forceinline__ Vec8<T> normalised(const Vec8<T>& x, const Vec8<T>& w, float scale) {
    Vec8<T> y;
#pragma unroll
    for (int j = 0; j < 8; ++j) y.v[j] = normalised(x.v[j], w.v[j], scale);
    return y;
}

template <typename T>
__device__ __forceinline__ float sum_of_squares(const Vec8<T>& x) {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < 8; ++j) sum += to_f32(x.v[j]) * to_f32(x.v[j]);
    return sum;
}

template <typename T>
__device__ __forceinline__ void rmsnorm(const RmsNormParams& p) {
    __shared__ float partial_smem[kMaxWarps];
    pdl_launch_dependents();
    const uint32_t cols = p.cols, stride = blockDim.x;
    const size_t row = size_t(blockIdx.x) * cols;
    const T* x = static_cast<const T*>(p.x) + row;
    const T* w = static_cast<const T*>(p.weight);
    T* y = static_cast<T*>(p.y) + row;
    float sum = 0.0f;

    if (cols % 8 == 0 && is_aligned16(x) && is_aligned16(y) && is_aligned16(w)) {
        // A thread keeps its first vector in registers; with the block that Grid asks for, up to 8192 columns, it is
        // the only one. Weights are never written by a kernel, so they are fetched before the wait.
        const uint32_t vecs = cols / 8, first = threadIdx.x;
        Vec8<T> x0{}, w0{};
        if (first < vecs) w0 = load8(w, first);
        pdl_wait();
        if (first < vecs) x0 = load8(x, first);
        sum = sum_of_squares(x0);
        for (uint32_t i = first + stride; i < vecs; i += stride) sum += sum_of_squares(load8(x, i));

        const float scale = rsqrtf(block_sum(sum, partial_smem) / cols + p.eps);
        if (first < vecs) store8(y, first, normalised(x0, w0, scale));
        for (uint32_t i = first + stride; i < vecs; i += stride) {
            store8(y, i, normalised(load8(x, i), load8(w, i), scale));
        }
    } else {
        pdl_wait();
        for (uint32_t i = threadIdx.x; i < cols; i += stride) sum += to_f32(x[i]) * to_f32(x[i]);

        const float scale = rsqrtf(block_sum(sum, partial_smem) / cols + p.eps);
        for (uint32_t i = threadIdx.x; i < cols; i += stride) y[i] = normalised(x[i], w[i], scale);
    }
}

extern "C" __global__ void __launch_bounds__(1024) rmsnorm_f16(const __grid_constant__ RmsNormParams p) {
    rmsnorm<__half>(p);
}
extern "C" __global__ void __launch_bounds__(1024) rmsnorm_bf16(const __grid_constant__ RmsNormParams p) {
    rmsnorm<__nv_bfloat16>(p);
}
EXPORT_PARAMS(rmsnorm, RmsNormParams)
