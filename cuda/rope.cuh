// Rotary position embedding of neighbouring pairs, for rope_kv and paged_decode: with h = head_dim / 2,
// x'[j] = x[j] cos - x[j+h] sin and x'[j+h] = x[j+h] cos + x[j] sin, cosine and sine rounded to the storage type first.
// Products of two such numbers are exact in f32, so a sum is rounded once in f32 and once on storing, fused or not.

#pragma once

#include "common.cuh"

// `W` neighbours, moved as one where they are 2-byte elements.
template <typename T, int W>
struct alignas(W * sizeof(T) < 16 ? W * sizeof(T) : 16) Pack {
    T v[W];
};

template <typename T, int W>
__device__ __forceinline__ const Pack<T, W>& pack(const T* p) {
    return *reinterpret_cast<const Pack<T, W>*>(p);
}
template <typename T, int W>
__device__ __forceinline__ Pack<T, W>& pack(T* p) {
    return *reinterpret_cast<Pack<T, W>*>(p);
}

// `low` are elements of the first half of a head, `high` those of the same places in the second.
template <typename T, int W>
__device__ __forceinline__ void rotate(Pack<T, W>& low, Pack<T, W>& high, const Pack<float, W>& cosines,
                                       const Pack<float, W>& sines) {
#pragma unroll
    for (int i = 0; i < W; ++i) {
        const float c = to_f32(from_f32<T>(cosines.v[i])), s = to_f32(from_f32<T>(sines.v[i]));
        const float a = to_f32(low.v[i]), b = to_f32(high.v[i]);
        low.v[i] = from_f32<T>(a * c - b * s);
        high.v[i] = from_f32<T>(b * c + a * s);
    }
}
