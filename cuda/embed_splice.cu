// What:   y[i] = table[ids[i]], or image_rows[-1 - ids[i]] for a negative id. An id from the lowest integer on refers to a
//         token that the step before sampled: table[sampled[ids[i] - lowest]], where -1, no token, counts as token 0.
// Layout: y (rows, cols); table (vocab, cols); image_rows (any, cols); ids (rows); sampled (any).
// Grid:   x = row of y; one block a row, best one thread for eight columns, at most 1024.
// Limits: any cols >= 1. 16-byte accesses where cols % 8 == 0 and the addresses are 16-byte aligned.
// Bound:  memory; 8192 rows of 4096 in f16 move 3.3 TB/s (41 us); 645 take 4.5 us, as one does, which is the launch
//         (H200, driver 580.159, 2026-11-22).

#include "copy_row.cuh"
#include "params.cuh"

// The numbers are those of src/ops/embed_splice.rs.
constexpr int32_t kLowest = INT32_MIN, kReferences = INT32_MIN / 2;

template <typename T>
__device__ __forceinline__ void embed_splice(const EmbedSpliceParams& p) {
    pdl_launch_dependents();
    pdl_wait();
    const size_t row = blockIdx.x;
    int32_t id = p.ids[row];
    if (id < kReferences) id = max(p.sampled[id - kLowest], 0);
    const T* rows = static_cast<const T*>(id < 0 ? p.image_rows : p.table);
    copy_row(static_cast<T*>(p.y) + row * p.cols, rows + size_t(id < 0 ? ~id : id) * p.cols, p.cols);
}

extern "C" __global__ void __launch_bounds__(1024) embed_splice_f16(const __grid_constant__ EmbedSpliceParams p) {
    embed_splice<__half>(p);
}
extern "C" __global__ void __launch_bounds__(1024) embed_splice_bf16(const __grid_constant__ EmbedSpliceParams p) {
    embed_splice<__nv_bfloat16>(p);
}
EXPORT_PARAMS(embed_splice, EmbedSpliceParams)
