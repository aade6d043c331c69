// Philox 4x32-10, random bits as a pure function of a key and a counter: twin of src/ops/philox.rs.

#pragma once

#include <stdint.h>

// Four random words; who takes fewer does not pay for the others.
__device__ __forceinline__ uint4 philox4x32_10(uint4 counter, uint2 key) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint32_t low0 = 0xD2511F53u * counter.x, high0 = __umulhi(0xD2511F53u, counter.x);
        const uint32_t low1 = 0xCD9E8D57u * counter.z, high1 = __umulhi(0xCD9E8D57u, counter.z);
        counter = make_uint4(high1 ^ counter.y ^ key.x, low1, high0 ^ counter.w ^ key.y, low0);
        key = make_uint2(key.x + 0x9E3779B9u, key.y + 0xBB67AE85u);
    }
    return counter;
}

// In the open interval (0, 1): 23 bits and a half fill the significand of an f32 exactly.
__device__ __forceinline__ float uniform(uint32_t word) { return (float(word >> 9) + 0.5f) * 0x1p-23f; }
