// Bulk copies of sm_90: bytes in a row, from global to shared memory, counted off a barrier of tma.cuh.

#pragma once

#include "mma.cuh"
#include "tma.cuh"

// A cache policy for what is read once: it leaves the L2 cache before anything else does.
__device__ __forceinline__ uint64_t evict_first_policy() {
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

// `bytes` (a multiple of 16, as both addresses); `barrier` counts them when they land.
__device__ __forceinline__ void bulk_copy(uint32_t smem, const void* global, uint32_t bytes, uint32_t barrier,
                                          uint64_t policy) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
        :
        : "r"(smem), "l"(global), "r"(bytes), "r"(barrier), "l"(policy)
        : "memory");
}

// Before shared memory is given back to the copy engine: an arrival may overtake earlier reads whose values nobody has
// used yet, and the engine would then overwrite what they are about to read.
__device__ __forceinline__ void fence_reads_before_copies() {
    asm volatile("fence.proxy.async.shared::cta;" : : : "memory");
}

__device__ __forceinline__ uint4 load_shared(uint32_t address) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
}
