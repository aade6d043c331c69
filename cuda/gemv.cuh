// What the kernels of gemv share: the normalisation of a, and what becomes of a sum.

#pragma once

#include "mma.cuh"
#include "params.cuh"

// f32 outputs, logits for one, go the way of the others.
__device__ __forceinline__ float to_f32(float v) { return v; }
template <>
__device__ __forceinline__ float from_f32<float>(float v) {
    return v;
}

// What AddResidual adds to.
template <typename T>
__device__ __forceinline__ float load_c(const GemvParams& p, size_t at) {
    return p.c_is_f32 ? __ldcg(static_cast<const float*>(p.c) + at) : to_f32(__ldcg(static_cast<const T*>(p.c) + at));
}

// An element of c out of its sum; `up` is read with kSwiGlu alone, `residual` with kAddResidual alone.
template <typename T>
__device__ __forceinline__ void store_c(const GemvParams& p, size_t at, float sum, float up, float residual) {
    if (p.epilogue == kAddResidual) sum += residual;
    if (p.epilogue == kSwiGlu) sum = __fdividef(sum, 1.0f + __expf(-sum)) * up;
    if (p.c_is_f32) {
        static_cast<float*>(p.c)[at] = sum;
    } else {
        static_cast<T*>(p.c)[at] = from_f32<T>(sum);
    }
}

template <typename T>
__device__ __forceinline__ float sum_of_squares(const uint4& raw) {
    const Vec8<T>& x = reinterpret_cast<const Vec8<T>&>(raw);
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < 8; ++j) sum += to_f32(x.v[j]) * to_f32(x.v[j]);
    return sum;
}

// round(round(x * scale) * w): the product of two T is exact in f32, so rounding it once equals multiplying in T.
template <typename T>
__device__ __forceinline__ uint4 normalised(const uint4& raw_x, const uint4& raw_w, float scale) {
    const Vec8<T>&x = reinterpret_cast<const Vec8<T>&>(raw_x), &w = reinterpret_cast<const Vec8<T>&>(raw_w);
    Vec8<T> y;
#pragma unroll
    for (int j = 0; j < 8; ++j) y.v[j] = from_f32<T>(to_f32(from_f32<T>(to_f32(x.v[j]) * scale)) * to_f32(w.v[j]));
    return reinterpret_cast<const uint4&>(y);
}

// 16 bytes that no kernel writes. Not the non-coherent path, whose loads the compiler moves below the wait.
__device__ __forceinline__ uint4 load_before_wait(const void* p) {
    uint4 v;
    asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}
