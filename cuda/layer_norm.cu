// What:   y = round((x - mean) / sqrt(variance + eps) * w + b), rounded once; mean and biased variance in f32, the
//         variance from the differences to the mean, so that a large mean does not cancel it.
// Layout: x, y (rows, cols); weight, bias (cols). y may be x.
// Grid:   x = row; one block a row, a whole number of warps, best one thread for eight columns, at most 1024.
// Limits: any cols >= 1. 16-byte accesses where cols % 8 == 0 and all four addresses are 16-byte aligned.
// Order:  the additions depend on cols and the block size alone, so a row gives the same bits in any batch.
// Bound:  memory; (18464, 1024) in f16 moves 2.2 TB/s (35 us): two barriers for one load a thread. (577, 1024) takes
//         4.8 us, of which the launch is 3.5 (H200, driver 580.159, 2026-11-22). Forced to 32 registers, f16 spills.

#include "common.cuh"
#include "params.cuh"

template <typename T>
__device__ __forceinline__ T normalised(T x, T w, T b, float mean, float scale) {
    return from_f32<T>((to_f32(x) - mean) * scale * to_f32(w) + to_f32(b));
}

template <typename T>
__device__ __forceinline__ Vec8<T> normalised(const Vec8<T>& x, const Vec8<T>& w, const Vec8<T>& b, float mean,
                                              float scale) {
    Vec8<T> y;
#pragma unroll
    for (int j = 0; j < 8; ++j) y.v[j] = normalised(x.v[j], w.v[j], b.v[j], mean, scale);
    return y;
}

template <typename T>
__device__ __forceinline__ float sum(const Vec8<T>& x) {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < 8; ++j) sum += to_f32(x.v[j]);
    return sum;
}

__device__ __forceinline__ float square(float v) { return v * v; }

template <typename T>
__device__ __forceinline__ float sum_of_squares(const Vec8<T>& x, float mean) {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < 8; ++j) sum += square(to_f32(x.v[j]) - mean);
    return sum;
}

template <typename T>
__device__ __forceinline__ void layer_norm(const LayerNormParams& p) {
    __shared__ float mean_smem[kMaxWarps], variance_smem[kMaxWarps];
    pdl_launch_dependents();
    const uint32_t cols = p.cols, stride = blockDim.x;
    const size_t row = size_t(blockIdx.x) * cols;
    const T* x = static_cast<const T*>(p.x) + row;
    const T* w = static_cast<const T*>(p.weight);
    const T* b = static_cast<const T*>(p.bias);
    T* y = static_cast<T*>(p.y) + row;
    float total = 0.0f, squares = 0.0f;

    if (cols % 8 == 0 && is_aligned16(x) && is_aligned16(y) && is_aligned16(w) && is_aligned16(b)) {
        // A thread keeps its first vector in registers; with the block that Grid asks for, up to 8192 columns, it is
        // the only one. Parameters are never written by a kernel, so they are fetched before the wait.
        const uint32_t vecs = cols / 8, first = threadIdx.x;
        Vec8<T> x0{}, w0{}, b0{};
        if (first < vecs) w0 = load8(w, first), b0 = load8(b, first);
        pdl_wait();
        if (first < vecs) x0 = load8(x, first);
        total = sum(x0);
        for (uint32_t i = first + stride; i < vecs; i += stride) total += sum(load8(x, i));
        const float mean = block_sum(total, mean_smem) / cols;

        if (first < vecs) squares = sum_of_squares(x0, mean);
        for (uint32_t i = first + stride; i < vecs; i += stride) squares += sum_of_squares(load8(x, i), mean);
        const float scale = rsqrtf(block_sum(squares, variance_smem) / cols + p.eps);

        if (first < vecs) store8(y, first, normalised(x0, w0, b0, mean, scale));
        for (uint32_t i = first + stride; i < vecs; i += stride) {
            store8(y, i, normalised(load8(x, i), load8(w, i), load8(b, i), mean, scale));
        }
    } else {
        pdl_wait();
        for (uint32_t i = threadIdx.x; i < cols; i += stride) total += to_f32(x[i]);
        const float mean = block_sum(total, mean_smem) / cols;
        for (uint32_t i = threadIdx.x; i < cols; i += stride) squares += square(to_f32(x[i]) - mean);
        const float scale = rsqrtf(block_sum(squares, variance_smem) / cols + p.eps);
        for (uint32_t i = threadIdx.x; i < cols; i += stride) y[i] = normalised(x[i], w[i], b[i], mean, scale);
    }
}

extern "C" __global__ void __launch_bounds__(1024) layer_norm_f16(const __grid_constant__ LayerNormParams p) {
    layer_norm<__half>(p);
}
extern "C" __global__ void __launch_bounds__(1024) layer_norm_bf16(const __grid_constant__ LayerNormParams p) {
    layer_norm<__nv_bfloat16>(p);
}
EXPORT_PARAMS(layer_norm, LayerNormParams)
