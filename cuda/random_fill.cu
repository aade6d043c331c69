// What:   y[i] = mean + spread * u(key, i), u uniform in (-1, 1) from 16 bits of Philox: the same bits as on the host.
// Layout: y (n).
// Grid:   x = as many blocks of 256 threads as run at a time; thread t writes vectors t, t + threads, ... of eight.
// Limits: any n; 16-byte stores where y is 16-byte aligned.
// Bound:  the generator: 131 million elements in bf16 take 86 us, 3.1 TB/s of writes (H200, driver 580.159, 2026-11-22).

#include "common.cuh"
#include "params.cuh"
#include "philox.cuh"

constexpr int kVector = 8;  // elements of one call of the generator: two of each word

// In the open interval (-1, 1), and exact: 17 bits are enough for it.
__device__ __forceinline__ float centred(uint32_t half) { return (float(half) + 0.5f) * 0x1p-15f - 1.0f; }

// Two roundings, never one: the host has no fused multiply-add that is quick everywhere.
__device__ __forceinline__ float scaled(const RandomFillParams& p, uint32_t half) {
    return __fadd_rn(p.mean, __fmul_rn(p.spread, centred(half)));
}

template <typename T>
__device__ __forceinline__ void random_fill(const RandomFillParams& p) {
    pdl_launch_dependents();
    pdl_wait();
    T* y = static_cast<T*>(p.y);
    const bool aligned = is_aligned16(y);
    const uint64_t vectors = (p.n + kVector - 1) / kVector, threads = uint64_t(gridDim.x) * blockDim.x;
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < vectors; i += threads) {
        const uint4 counter = make_uint4(uint32_t(i), uint32_t(i >> 32), 0, 0);
        const uint4 words = philox4x32_10(counter, make_uint2(p.key[0], p.key[1]));
        const uint32_t word[4] = {words.x, words.y, words.z, words.w};
        Vec8<T> values;
#pragma unroll
        for (int j = 0; j < kVector; ++j) values.v[j] = from_f32<T>(scaled(p, word[j / 2] >> 16 * (j % 2) & 0xffff));
        if (aligned && (i + 1) * kVector <= p.n) {
            reinterpret_cast<uint4*>(y)[i] = reinterpret_cast<const uint4&>(values);
        } else {
#pragma unroll
            for (int j = 0; j < kVector; ++j) {
                if (i * kVector + j < p.n) y[i * kVector + j] = values.v[j];
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(256) random_fill_f16(const __grid_constant__ RandomFillParams p) {
    random_fill<__half>(p);
}
extern "C" __global__ void __launch_bounds__(256) random_fill_bf16(const __grid_constant__ RandomFillParams p) {
    random_fill<__nv_bfloat16>(p);
}
EXPORT_PARAMS(random_fill, RandomFillParams)
