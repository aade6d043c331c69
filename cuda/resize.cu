// What:   Pillow's 8-bit resampling of a window of a picture on a canvas: horizontal, round to 8 bits, vertical, round.
// Layout: y (rows.tile, columns.tile, 3), black outside the window; x (rows.picture, columns.picture, 3); tables of an
//         axis (1 + taps, kept): the first canvas position of each output, then its weights with 22 fraction bits.
// Grid:   x = 32 columns, y = 16 rows of the tile; 8 warps, which first squeeze the canvas rows that these 16 rows are
//         made of (at most `reach`) into shared memory, a lane a column, and then these rows into the tile.
// Limits: any sizes; (reach, 32, 3) bytes must fit the shared memory of a block.
// Bound:  latency; 640x480 to 336x336 of 448x336 takes 5.8 us, 2560x1440 takes 26 us (H200, driver 580.159, 2026-11-22).

#include "common.cuh"
#include "params.cuh"

constexpr int kColumns = 32;  // of a tile of the kernel; a lane each
constexpr int kRows = 16;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kStride = 3 * kColumns;  // bytes of a squeezed row
constexpr int kRowsAtOnce = 4;         // of the canvas: each weight is loaded once for them
constexpr int kPrecision = 22;
static_assert(kColumns == kWarpSize, "a lane a column");

__device__ __forceinline__ uint8_t to_u8(int32_t sum) { return uint8_t(min(max(sum >> kPrecision, 0), 255)); }

// Byte c of the colour of a canvas.
__device__ __forceinline__ int32_t channel(uint32_t colour, int c) { return int32_t(colour >> 8 * c & 0xff); }

// Canvas rows first, first + kWarps, ... squeezed to column i of the window.
__device__ __forceinline__ void squeeze(const ResizeParams& p, uint32_t i, int first, int count, uint8_t* out) {
    const ResizeAxisParams &columns = p.columns, &rows = p.rows;
    const int left = columns.table[i] - int(columns.offset);
    const int32_t* weights = columns.table + columns.kept + i;
    int32_t sum[kRowsAtOnce][3];
    const uint8_t* row[kRowsAtOnce];
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
        const int y = first + r * kWarps - int(rows.offset);
        row[r] = uint32_t(y) < rows.picture && r < count ? p.x + size_t(y) * columns.picture * 3 : nullptr;
#pragma unroll
        for (int c = 0; c < 3; ++c) sum[r][c] = 1 << (kPrecision - 1);
    }
    for (uint32_t k = 0; k < columns.taps; ++k) {
        const int32_t weight = weights[size_t(k) * columns.kept];
        const int x = left + int(k);
        const bool inside = uint32_t(x) < columns.picture;
#pragma unroll
        for (int r = 0; r < kRowsAtOnce; ++r) {
#pragma unroll
            for (int c = 0; c < 3; ++c) {
                const int32_t value = inside && row[r] ? row[r][3 * x + c] : channel(p.colour, c);
                sum[r][c] += weight * value;
            }
        }
    }
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
        if (r >= count) break;
#pragma unroll
        for (int c = 0; c < 3; ++c) out[r * kWarps * kStride + c] = to_u8(sum[r][c]);
    }
}

extern "C" __global__ void __launch_bounds__(kThreads) resize_u8(const __grid_constant__ ResizeParams p) {
    extern __shared__ uint8_t squeezed_smem[];  // (reach, kColumns, 3)
    const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
    // Rows and columns of the window under this block's part of the tile.
    const int top = blockIdx.y * kRows - int(p.rows.first), left = blockIdx.x * kColumns - int(p.columns.first);
    const int row_begin = max(top, 0), row_end = min(top + kRows, int(p.rows.kept));
    pdl_launch_dependents();
    int base = 0;  // the canvas row in front of squeezed_smem
    if (row_begin < row_end) {
        base = p.rows.table[row_begin];
        const int end = p.rows.table[row_end - 1] + int(p.rows.taps);
        if (uint32_t(left + lane) < p.columns.kept) {
            for (int y = base + warp; y < end; y += kRowsAtOnce * kWarps) {
                const int count = min((end - y + kWarps - 1) / kWarps, kRowsAtOnce);
                squeeze(p, left + lane, y, count, squeezed_smem + (y - base) * kStride + lane * 3);
            }
        }
    }
    __syncthreads();
    pdl_wait();  // the tile before this one may still be read; picture and tables come from the host
    const int width = min(kStride, 3 * (int(p.columns.tile) - int(blockIdx.x) * kColumns));
    for (int r = warp; r < kRows && blockIdx.y * kRows + r < p.rows.tile; r += kWarps) {
        const bool kept = uint32_t(top + r) < p.rows.kept;
        const int32_t* weights = p.rows.table + p.rows.kept + (top + r);
        const uint8_t* column = squeezed_smem + (kept ? p.rows.table[top + r] - base : 0) * kStride;
        uint8_t* out = p.y + (size_t(blockIdx.y * kRows + r) * p.columns.tile + blockIdx.x * kColumns) * 3;
        for (int b = lane; b < width; b += kWarpSize) {
            int32_t sum = 1 << (kPrecision - 1);
            const bool inside = kept && uint32_t(left + b / 3) < p.columns.kept;
            for (uint32_t k = 0; inside && k < p.rows.taps; ++k) {
                sum += weights[size_t(k) * p.rows.kept] * column[k * kStride + b];
            }
            out[b] = inside ? to_u8(sum) : 0;
        }
    }
}
EXPORT_PARAMS(resize, ResizeParams)
