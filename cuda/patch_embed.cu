// What:   tiles -> hidden states: look each byte up, project the patches, put the class token in front, add positions,
//         LayerNorm. A tile of values is rounded in place of the look-up. The product is accumulated in f32 and nothing
//         else is rounded before the end.
// Layout: pixels (any, image_size, image_size, 3); values (any, 3, image_size, image_size) f32; source (tiles): n is
//         tile n of the pixels, -1 - n tile n of the values; table (3, 256) f32; weight (hidden, patch_len) with
//         patch_len = (channel, y, x); y (tiles, 1 + grid^2, hidden).
// Grid:   x = 16 patches, and one block more for the class token, y = tile; 512 threads, dynamic shared memory as
//         `Shared` lays it out: the normalised row needs all its columns in one block.
// Limits: any sizes whose rows fit: 64 * hidden + 32 * patch_len bytes and about 3 KB; 85 KiB at 1024 and 588, and about
//         3300 columns on a card with 227 KiB. Weights move 8 bytes at a time where patch_len % 4 == 0.
// Order:  the additions depend on patch_len and hidden alone, so a patch gives the same bits in any batch.
// Bound:  the way of the weights to a multiprocessor, probably the look-ups of cache lines, since a warp's load touches
//         eight rows. In f16 with 336 pixels, patches of 14 and 1024 columns a tile takes 47 us, 5 take 88 us and 32
//         take 397 us, 56 TFLOP/s (H200, driver 580.159, 2026-11-22).
// Tried:  weights four steps ahead in registers, one block a multiprocessor: 46, 96 and 463 us.

#include "common.cuh"
#include "mma.cuh"
#include "params.cuh"

constexpr int kThreads = 512, kWarps = kThreads / kWarpSize;
constexpr int kRows = 16;                          // patches of a block: the rows of one tensor-core product
constexpr int kWarpTiles = 4;                      // products of 8 columns that a warp has in flight
constexpr int kPassCols = kWarps * kWarpTiles * 8;  // columns of one pass over the patches
constexpr int kTable = 3 * 256;
static_assert(kWarps == kRows, "one warp normalises one row");

// Shared memory holds the table, the patches and the hidden states; their strides. Twin of `PatchEmbed::smem`.
struct Shared {
    uint32_t patch_stride;  // elements between patches; 32 or 96 bytes past a multiple of 128: no bank conflicts
    uint32_t row_stride;    // f32 between hidden states

    __device__ __forceinline__ Shared(uint32_t patch_len, uint32_t hidden)
        : patch_stride((patch_len + 15) / 16 * 16 + (((patch_len + 15) / 16) % 2 == 0 ? 16 : 0)),
          row_stride(hidden + 8) {}
};

// Which of the sixteen k an operand register holds does not matter as long as a and b agree, so a thread takes four
// neighbours: registers 0, 2 of a and 0 of b the first two, the others the rest.
template <typename T>
__device__ __forceinline__ void mma(float (&d)[4], const uint2& a_low, const uint2& a_high, const uint2& b) {
    mma<T>(d, a_low.x, a_high.x, a_low.y, a_high.y, b.x, b.y);
}

// Four neighbours of a row of weights from k on; zeros past its end.
template <typename T, bool kWhole>
__device__ __forceinline__ uint2 four_weights(const T* row, uint32_t k, uint32_t len) {
    if constexpr (kWhole) {
        return k < len ? __ldg(reinterpret_cast<const uint2*>(row + k)) : make_uint2(0, 0);
    } else {
        alignas(8) T w[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) w[j] = k + j < len ? row[k + j] : from_f32<T>(0.0f);
        return *reinterpret_cast<const uint2*>(w);
    }
}

// Cut the block's patches out of a tile of bytes, as (channel, y, x), zeros behind the last patch.
template <typename T>
__device__ __forceinline__ void cut_bytes(const PatchEmbedParams& p, const uint8_t* tile, const T* table_smem,
                                          T* patches_smem, uint32_t stride, uint32_t first_patch) {
    const uint32_t side = p.patch_size, grid = p.image_size / side, run = 3 * side;
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    const T zero = from_f32<T>(0.0f);
    // A line of a patch is a run of bytes in memory.
    for (uint32_t line = warp; line < kRows * side; line += kWarps) {
        const uint32_t r = line / side, y = line % side, patch = first_patch + r;
        const bool exists = patch < grid * grid;
        const uint32_t first_x = patch % grid * side, pixel_y = patch / grid * side + y;
        const uint8_t* bytes = tile + (size_t(pixel_y) * p.image_size + first_x) * 3;
        T* to = patches_smem + r * stride + y * side;
        for (uint32_t i = lane; i < run; i += kWarpSize) {
            const uint32_t x = i / 3, c = i % 3;
            to[c * side * side + x] = exists ? table_smem[c * 256 + bytes[i]] : zero;
        }
    }
}

// The same of a tile of values. Patches side by side continue each other's lines in memory, so a warp takes one line of
// a channel of all of them.
template <typename T>
__device__ __forceinline__ void cut_values(const PatchEmbedParams& p, const float* tile, T* patches_smem,
                                           uint32_t stride, uint32_t first_patch) {
    const uint32_t side = p.patch_size, grid = p.image_size / side;
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    const T zero = from_f32<T>(0.0f);
    for (uint32_t line = warp; line < 3 * side; line += kWarps) {
        const uint32_t c = line / side, y = line % side;
        const float* plane = tile + size_t(c) * p.image_size * p.image_size;
        for (uint32_t i = lane; i < kRows * side; i += kWarpSize) {
            const uint32_t r = i / side, x = i % side, patch = first_patch + r;
            const uint32_t pixel_y = patch / grid * side + y, pixel_x = patch % grid * side + x;
            const bool exists = patch < grid * grid;
            patches_smem[r * stride + line * side + x] =
                exists ? from_f32<T>(plane[size_t(pixel_y) * p.image_size + pixel_x]) : zero;
        }
    }
}

// The block's patches of its tile, and zeros behind their last column.
template <typename T>
__device__ __forceinline__ void fill_patches(const PatchEmbedParams& p, const T* table_smem, T* patches_smem,
                                             uint32_t stride, uint32_t first_patch, uint32_t patch_len) {
    const size_t tile_len = size_t(3) * p.image_size * p.image_size;
    const int32_t source = p.source[blockIdx.y];
    for (uint32_t i = threadIdx.x; i < kRows * (stride - patch_len); i += kThreads) {
        patches_smem[i % kRows * stride + patch_len + i / kRows] = from_f32<T>(0.0f);
    }
    if (source >= 0) {
        cut_bytes(p, p.pixels + source * tile_len, table_smem, patches_smem, stride, first_patch);
    } else {
        cut_values(p, p.values + (-1 - source) * tile_len, patches_smem, stride, first_patch);
    }
}

// rows_smem[r, n] = patch r . weight[n]: each warp takes 32 columns of a pass.
template <typename T, bool kWhole>
__device__ __forceinline__ void project(const PatchEmbedParams& p, const T* patches_smem, float* rows_smem,
                                        const Shared& shared, uint32_t patch_len) {
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    const uint32_t group = lane / 4, quad = lane % 4;
    const T* weight = static_cast<const T*>(p.weight);
    const T* low = patches_smem + group * shared.patch_stride + 4 * quad;
    const T* high = low + 8 * shared.patch_stride;
    for (uint32_t first = warp * kWarpTiles * 8; first < p.hidden; first += kPassCols) {
        const T* columns[kWarpTiles];
        float d[kWarpTiles][4] = {};
        uint2 next[kWarpTiles];
#pragma unroll
        for (int t = 0; t < kWarpTiles; ++t) {
            // A column past the end computes the last one again, and is not stored.
            columns[t] = weight + size_t(min(first + t * 8 + group, p.hidden - 1)) * patch_len;
            next[t] = four_weights<T, kWhole>(columns[t], 4 * quad, patch_len);
        }
#pragma unroll 2
        for (uint32_t k = 0; k < patch_len; k += 16) {
            uint2 b[kWarpTiles];
#pragma unroll
            for (int t = 0; t < kWarpTiles; ++t) {
                b[t] = next[t];
                next[t] = four_weights<T, kWhole>(columns[t], k + 16 + 4 * quad, patch_len);
            }
            const uint2 a_low = *reinterpret_cast<const uint2*>(low + k);
            const uint2 a_high = *reinterpret_cast<const uint2*>(high + k);
#pragma unroll
            for (int t = 0; t < kWarpTiles; ++t) mma<T>(d[t], a_low, a_high, b[t]);
        }
#pragma unroll
        for (int t = 0; t < kWarpTiles; ++t) {
            const uint32_t col = first + t * 8 + 2 * quad;
            float* row = rows_smem + group * shared.row_stride + col;
            if (col < p.hidden) row[0] = d[t][0], row[8 * shared.row_stride] = d[t][2];
            if (col + 1 < p.hidden) row[1] = d[t][1], row[8 * shared.row_stride + 1] = d[t][3];
        }
    }
}

// y[token] = LayerNorm(row + position[token]), by one warp.
template <typename T>
__device__ __forceinline__ void normalise(const PatchEmbedParams& p, float* row, uint32_t token, uint32_t tokens) {
    const int lane = threadIdx.x % kWarpSize;
    const T* position = static_cast<const T*>(p.position) + size_t(token) * p.hidden;
    const T* weight = static_cast<const T*>(p.norm_weight);
    const T* bias = static_cast<const T*>(p.norm_bias);
    T* y = static_cast<T*>(p.y) + (size_t(blockIdx.y) * tokens + token) * p.hidden;
    float total = 0.0f, squares = 0.0f;
    for (uint32_t i = lane; i < p.hidden; i += kWarpSize) {
        row[i] += to_f32(position[i]);
        total += row[i];
    }
    const float mean = warp_sum(total) / p.hidden;
    for (uint32_t i = lane; i < p.hidden; i += kWarpSize) squares += (row[i] - mean) * (row[i] - mean);
    const float scale = rsqrtf(warp_sum(squares) / p.hidden + p.eps);
    for (uint32_t i = lane; i < p.hidden; i += kWarpSize) {
        y[i] = from_f32<T>((row[i] - mean) * scale * to_f32(weight[i]) + to_f32(bias[i]));
    }
}

template <typename T>
__device__ __forceinline__ void patch_embed(const PatchEmbedParams& p) {
    extern __shared__ uint4 bytes_smem[];
    pdl_launch_dependents();
    const uint32_t grid = p.image_size / p.patch_size, patches = grid * grid;
    const uint32_t patch_len = 3 * p.patch_size * p.patch_size, first_patch = blockIdx.x * kRows;
    const Shared shared(patch_len, p.hidden);
    T* table_smem = reinterpret_cast<T*>(bytes_smem);
    T* patches_smem = table_smem + kTable;
    float* rows_smem = reinterpret_cast<float*>(patches_smem + kRows * shared.patch_stride);
    const uint32_t warp = threadIdx.x / kWarpSize;

    for (uint32_t i = threadIdx.x; i < kTable; i += kThreads) table_smem[i] = from_f32<T>(p.table[i]);
    pdl_wait();
    if (first_patch >= patches) {
        const T* class_token = static_cast<const T*>(p.class_token);
        for (uint32_t i = threadIdx.x; i < p.hidden; i += kThreads) rows_smem[i] = to_f32(class_token[i]);
        __syncthreads();
        if (warp == 0) normalise<T>(p, rows_smem, 0, 1 + patches);
        return;
    }
    __syncthreads();
    fill_patches(p, table_smem, patches_smem, shared.patch_stride, first_patch, patch_len);
    __syncthreads();
    if (patch_len % 4 == 0 && (reinterpret_cast<uintptr_t>(p.weight) & 7) == 0) {
        project<T, true>(p, patches_smem, rows_smem, shared, patch_len);
    } else {
        project<T, false>(p, patches_smem, rows_smem, shared, patch_len);
    }
    __syncthreads();
    const uint32_t patch = first_patch + warp;
    if (patch < patches) normalise<T>(p, rows_smem + warp * shared.row_stride, 1 + patch, 1 + patches);
}

extern "C" __global__ void __launch_bounds__(kThreads, 2) patch_embed_f16(const __grid_constant__ PatchEmbedParams p) {
    patch_embed<__half>(p);
}
extern "C" __global__ void __launch_bounds__(kThreads, 2) patch_embed_bf16(const __grid_constant__ PatchEmbedParams p) {
    patch_embed<__nv_bfloat16>(p);
}
EXPORT_PARAMS(patch_embed, PatchEmbedParams)
