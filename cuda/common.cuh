// What more than one kernel needs: float conversions, 16-byte vectors, reductions, programmatic dependent launch.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

constexpr int kWarpSize = 32;
constexpr int kMaxWarps = 32;  // of a block: 1024 threads

// f32 <-> storage type. Rounding is to nearest even, as in every framework whose results we compare with.
__device__ __forceinline__ float to_f32(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_f32(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename T>
__device__ __forceinline__ T from_f32(float v);
template <>
__device__ __forceinline__ __half from_f32<__half>(float v) {
    return __float2half_rn(v);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_f32<__nv_bfloat16>(float v) {
    return __float2bfloat16_rn(v);
}

// Eight 2-byte elements, moved by one 16-byte load or store.
template <typename T>
struct alignas(16) Vec8 {
    static_assert(sizeof(T) == 2, "a 16-byte vector holds eight elements of 2 bytes");
    T v[8];
};

// Vector i of an array. `p` must be 16-byte aligned: see is_aligned16.
template <typename T>
__device__ __forceinline__ Vec8<T> load8(const T* p, uint32_t i) {
    const uint4 raw = reinterpret_cast<const uint4*>(p)[i];
    return reinterpret_cast<const Vec8<T>&>(raw);
}

template <typename T>
__device__ __forceinline__ void store8(T* p, uint32_t i, const Vec8<T>& v) {
    reinterpret_cast<uint4*>(p)[i] = reinterpret_cast<const uint4&>(v);
}

// Whether 16-byte accesses may start here.
__device__ __forceinline__ bool is_aligned16(const void* p) { return (reinterpret_cast<uintptr_t>(p) & 15) == 0; }

// Sum over a warp, in every lane. A butterfly: the order of additions is fixed, so the result is the same bits each run.
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
        v += __shfl_xor_sync(0xffffffffu, v, offset);
    }
    return v;
}

// Sum over a block of whole warps, in every thread. Every warp adds up the partial sums for itself: that costs one
// barrier where a broadcast from warp 0 would cost two. Call it once for a given `partial_smem`, or put a barrier between.
__device__ __forceinline__ float block_sum(float v, float (&partial_smem)[kMaxWarps]) {
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    v = warp_sum(v);
    if (lane == 0) partial_smem[warp] = v;
    __syncthreads();
    return warp_sum(lane < blockDim.x / kWarpSize ? partial_smem[lane] : 0.0f);
}

// Dynamic shared memory of this launch: Geometry::smem.
__device__ __forceinline__ uint32_t dynamic_smem_bytes() {
    uint32_t bytes;
    asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(bytes));
    return bytes;
}

// Programmatic dependent launch (Geometry::pdl). Both are nothing when the launch does not carry the attribute. Every kernel
// triggers at its start and waits in every thread, even one that needs nothing of its predecessor: that a kernel has ended
// must mean that all before it have. Before the wait it may read what no kernel of a plan writes: weights, what the host
// wrote before the plan, and keys and values of earlier steps.

// Before the first access to anything that the previous kernel wrote, or still reads.
__device__ __forceinline__ void pdl_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// From here on the next kernel may be put on the multiprocessors; its own pdl_wait still holds it until this one ends.
__device__ __forceinline__ void pdl_launch_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
