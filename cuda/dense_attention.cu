// What:   o = softmax(q k^T / sqrt(head_dim)) v without a mask, for every tile of a picture and every head.
// Layout: qkv (tiles, tokens, 3, heads, head_dim); o (tiles, tokens, heads, head_dim).
// Grid:   x = block of 64 tokens, y = head, z = tile; four warps of 16 queries.
// Limits: head_dim 32 or 64; tokens >= 1; buffers 16-byte aligned.
// Bound:  latency at one tile of 577 tokens and 16 heads of 64, 14.5 us: ten steps in a row, 160 blocks of four warps.
//         Then mma.sync and shared memory: 33 us and 167 TFLOP/s for 4 tiles, 110 us and 201 TFLOP/s for 16, a fifth
//         of the card's peak. (bf16, H200, driver 580.159, 2026-11-22.)

#include "flash.cuh"
#include "params.cuh"

// Keys and values of one head of a tile, in the rows of qkv.
struct FusedRows {
    size_t stride;
    __device__ __forceinline__ size_t offset(uint32_t token) const { return token * stride; }
};

template <typename T, int kHeadDim>
__device__ __forceinline__ void dense_attention(const DenseAttentionParams& p) {
    pdl_launch_dependents();
    const uint32_t first = blockIdx.x * kTileM, head = blockIdx.y, width = p.heads * kHeadDim;
    const size_t token0 = size_t(blockIdx.z) * p.tokens;
    const T* qkv = static_cast<const T*>(p.qkv) + token0 * 3 * width + head * kHeadDim;
    const QueryTile<T> tile{qkv + size_t(first) * 3 * width,
                            static_cast<T*>(p.o) + (token0 + first) * width + head * kHeadDim,
                            3 * width,
                            width,
                            min(p.tokens - first, uint32_t(kTileM)),
                            0};
    pdl_wait();
    flash_tile<false, kHeadDim>(tile, qkv + width, qkv + 2 * width, FusedRows{3 * size_t(width)}, p.tokens,
                                p.scale_log2);
}

#define ENTRY(name, T, kHeadDim)                                \
    extern "C" __global__ void __launch_bounds__(kFlashThreads) \
        name(const __grid_constant__ DenseAttentionParams p) {  \
        dense_attention<T, kHeadDim>(p);                        \
    }
ENTRY(dense_attention_f16_d32, __half, 32)
ENTRY(dense_attention_f16_d64, __half, 64)
ENTRY(dense_attention_bf16_d32, __nv_bfloat16, 32)
ENTRY(dense_attention_bf16_d64, __nv_bfloat16, 64)
EXPORT_PARAMS(dense_attention, DenseAttentionParams)

// Tried: 128 registers, for four blocks on a multiprocessor instead of three: 16 tiles 106 us, but 4 tiles 36 us.
