// What:   causal attention of prompt chunks: the rows of a sequence are the last of its seq_len tokens, and each sees
//         the cache up to itself.
// Layout: qkv (rows of the step, heads + 2 kv_heads, head_dim), of which only q is read; cache (block, kv_head, 16,
//         head_dim); o (rows of the step, heads, head_dim). Rows of other sequences are left alone.
// Grid:   x = head, y = block of 64 rows, the last rows of the last sequence first, because the blocks that see the
//         most keys should start first. y is an upper bound; the blocks find their sequence by themselves. Four warps.
// Limits: head_dim 32, 64, 96 or 128; buffers 16-byte aligned.
// Order:  a row gives the same bits in any batch and however its prompt is cut into chunks, as long as no later token
//         that shares its 64 keys has an infinite or undefined value.
// Bound:  mma.sync and shared memory at long prompts: 252 TFLOP/s for 2048 tokens with 32 heads of 128, a quarter of
//         the card's peak. At 645 tokens the last blocks leave multiprocessors idle: 24 us, 144 TFLOP/s, with 8 key
//         heads as with 32. A chunk of 100 behind 600 is bound by the latency of eleven steps in a row, 18 us. (bf16,
//         H200, driver 580.159, 2026-11-22.)

#include "flash.cuh"
#include "params.cuh"

constexpr uint32_t kKvBlock = 16;

// Keys and values of one head of a sequence, by its block table.
template <int kHeadDim>
struct PagedRows {
    const int32_t* block_table;
    uint32_t kv_heads, kv_head;
    __device__ __forceinline__ size_t offset(uint32_t token) const {
        const size_t block = block_table[token / kKvBlock];
        return ((block * kv_heads + kv_head) * kKvBlock + token % kKvBlock) * kHeadDim;
    }
};

template <typename T, int kHeadDim>
__device__ __forceinline__ void paged_prefill(const PagedPrefillParams& p) {
    pdl_launch_dependents();
    pdl_wait();
    // Block number `number` of all sequences is block `number` of sequence `seq` after the loop.
    uint32_t number = gridDim.y - 1 - blockIdx.y, seq = 0, first_row = 0, rows = 0;
    for (; seq < p.seqs; ++seq) {
        first_row = p.query_start[seq];
        rows = p.query_start[seq + 1] - first_row;
        const uint32_t blocks = (rows + kTileM - 1) / kTileM;
        if (number < blocks) break;
        number -= blocks;
    }
    if (seq == p.seqs) return;

    const uint32_t first = number * kTileM, head = blockIdx.x;
    const uint32_t width = p.heads * kHeadDim, qkv_width = width + 2 * p.kv_heads * kHeadDim;
    const size_t row = first_row + first;
    const uint32_t seq_len = p.seq_lens[seq];
    const QueryTile<T> tile{static_cast<const T*>(p.qkv) + row * qkv_width + head * kHeadDim,
                            static_cast<T*>(p.o) + row * width + head * kHeadDim,
                            qkv_width,
                            width,
                            min(rows - first, uint32_t(kTileM)),
                            seq_len - rows + first};
    const PagedRows<kHeadDim> cached{p.block_table + size_t(seq) * p.max_blocks, p.kv_heads,
                                     head / (p.heads / p.kv_heads)};
    flash_tile<true, kHeadDim>(tile, static_cast<const T*>(p.k), static_cast<const T*>(p.v), cached,
                               tile.position + tile.rows, p.scale_log2);
}

#define ENTRY(name, T, kHeadDim)                                \
    extern "C" __global__ void __launch_bounds__(kFlashThreads) \
        name(const __grid_constant__ PagedPrefillParams p) {    \
        paged_prefill<T, kHeadDim>(p);                          \
    }
ENTRY(paged_prefill_f16_d32, __half, 32)
ENTRY(paged_prefill_f16_d64, __half, 64)
ENTRY(paged_prefill_f16_d96, __half, 96)
ENTRY(paged_prefill_f16_d128, __half, 128)
ENTRY(paged_prefill_bf16_d32, __nv_bfloat16, 32)
ENTRY(paged_prefill_bf16_d64, __nv_bfloat16, 64)
ENTRY(paged_prefill_bf16_d96, __nv_bfloat16, 96)
ENTRY(paged_prefill_bf16_d128, __nv_bfloat16, 128)
EXPORT_PARAMS(paged_prefill, PagedPrefillParams)
