// What:   q rotated in place; k rotated, and v, to their slot in the paged cache. The k and v of qkv stay as they are.
//         For rows of prompts: paged_decode does this itself. The arithmetic is that of rope.cuh.
// Layout: qkv (tokens, q heads then k heads then v heads, head_dim); cache (block, kv_head, 16, head_dim).
// Grid:   x = token, y = slices of its heads; a thread turns eight pairs of a head.
// Limits: head_dim even. 16-byte accesses where head_dim % 16 == 0 and all addresses are 16-byte aligned. A slot of -1
//         leaves its token alone; two tokens of a launch never have the same slot.
// Bound:  memory; with 32 heads of 128 in f16, 4096 tokens move 3.5 TB/s (58 us), 645 take 7.7 us out of the L2 cache,
//         and one takes 3.4 us, which is the launch (H200, driver 580.159, 2026-11-22).

#include "common.cuh"
#include "params.cuh"
#include "rope.cuh"

constexpr uint32_t kKvBlock = 16;  // tokens of a cache block: KV_BLOCK in src/ops/attention.rs

template <typename T, int W>
__device__ __forceinline__ void rope_token(const RopeKvParams& p, uint32_t position, uint32_t slot) {
    const uint32_t d = p.head_dim, half = d / 2, pieces = half / W, heads = p.heads, kv_heads = p.kv_heads;
    T* row = static_cast<T*>(p.qkv) + size_t(blockIdx.x) * (heads + 2 * kv_heads) * d;
    const float* cosines = p.table + size_t(position) * d;
    const size_t first_kv_row = size_t(slot / kKvBlock) * kv_heads * kKvBlock + slot % kKvBlock;

    const uint32_t work = (heads + 2 * kv_heads) * pieces, stride = gridDim.y * blockDim.x;
    for (uint32_t i = blockIdx.y * blockDim.x + threadIdx.x; i < work; i += stride) {
        const uint32_t head = i / pieces, j = i % pieces * W;
        T* from = row + head * d + j;
        Pack<T, W> low = pack<T, W>(from), high = pack<T, W>(from + half);
        if (head < heads + kv_heads) {
            rotate(low, high, pack<float, W>(cosines + j), pack<float, W>(cosines + half + j));
        }
        T* to = from;
        if (head >= heads) {
            const bool is_v = head >= heads + kv_heads;
            const uint32_t kv_head = head - heads - (is_v ? kv_heads : 0);
            to = static_cast<T*>(is_v ? p.v : p.k) + (first_kv_row + size_t(kv_head) * kKvBlock) * d + j;
        }
        pack<T, W>(to) = low;
        pack<T, W>(to + half) = high;
    }
}

template <typename T>
__device__ __forceinline__ void rope_kv(const RopeKvParams& p) {
    pdl_launch_dependents();
    pdl_wait();
    const int32_t slot = p.slot_mapping[blockIdx.x];
    if (slot < 0) return;
    const uint32_t position = p.positions[blockIdx.x];
    const bool aligned = is_aligned16(p.qkv) && is_aligned16(p.k) && is_aligned16(p.v) && is_aligned16(p.table);
    if (p.head_dim % 16 == 0 && aligned) {
        rope_token<T, 8>(p, position, slot);
    } else {
        rope_token<T, 1>(p, position, slot);
    }
}

extern "C" __global__ void __launch_bounds__(256) rope_kv_f16(const __grid_constant__ RopeKvParams p) {
    rope_kv<__half>(p);
}
extern "C" __global__ void __launch_bounds__(256) rope_kv_bf16(const __grid_constant__ RopeKvParams p) {
    rope_kv<__nv_bfloat16>(p);
}
EXPORT_PARAMS(rope_kv, RopeKvParams)
