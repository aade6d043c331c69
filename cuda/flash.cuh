// Attention on tensor cores with an online softmax: the instructions, and the tile of 64 queries that dense_attention
// and paged_prefill share.
//
// A warp owns 16 queries and keeps their output in registers; the block walks over the keys, 64 at a time, from key 0
// on, with the next 64 keys and values on their way to shared memory meanwhile. Scores, maxima, sums and outputs are
// f32; the weights of the second product are rounded to the storage type, relative to the maximum so far, and their
// sum is taken before that rounding.
//
// A query's arithmetic depends on the query and on its keys alone: neither on its place in a tile nor on the other
// queries. A masked key has the weight 0, which changes no bit as long as the masked value is finite.

#pragma once

#include "common.cuh"
#include "mma.cuh"

constexpr int kTileM = 64;         // queries of a block
constexpr int kTileN = 64;         // keys of a step
constexpr int kFlashThreads = 128;  // 16 queries a warp

// 16 bytes to shared memory, asynchronously; zeros if not `valid`, and then nothing is read.
__device__ __forceinline__ void cp_async16(uint32_t smem, const void* p, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem), "l"(p), "r"(valid ? 16 : 0) : "memory");
}

// ldmatrix_x4 of the transposed matrices.
__device__ __forceinline__ void ldmatrix_x4_transposed(uint32_t (&r)[4], uint32_t smem) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem)
                 : "memory");
}

// c += a b, for a of 16x16 and b of 16x8. With g = lane / 4 and t = lane % 4, a lane holds of a the columns 2t, 2t+1 of
// the rows g and g+8 (a0, a1), and the columns 2t+8, 2t+9 of both (a2, a3); of b the rows 2t, 2t+1 and 2t+8, 2t+9 of
// column g; of c the columns 2t, 2t+1 of the rows g (c0, c1) and g+8 (c2, c3).
template <typename T>
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ __forceinline__ void mma<__half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void mma<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two elements in one register, the first in the low half.
template <typename T>
__device__ __forceinline__ uint32_t pack2(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack2<__half>(float low, float high) {
    const __half2 v = __floats2half2_rn(low, high);
    return reinterpret_cast<const uint32_t&>(v);
}
template <>
__device__ __forceinline__ uint32_t pack2<__nv_bfloat16>(float low, float high) {
    const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<const uint32_t&>(v);
}

// 2^x with a relative error of at most 2^-22; 0 for -infinity.
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Where the queries of a tile come from and where their outputs go; one head of them.
template <typename T>
struct QueryTile {
    const T* q;
    T* o;
    uint32_t q_stride, o_stride;  // elements from one query to the next
    uint32_t rows;                // 1 to kTileM
    uint32_t position;            // of the first query among the keys; without a mask, anything
};

// Place of 16-byte chunk `chunk` of row `row` of a tile of keys or values: the chunks of a row are permuted so that
// eight rows of one chunk lie in different banks, and so does a whole row.
template <int kHeadDim>
__device__ __forceinline__ uint32_t swizzled(uint32_t row, uint32_t chunk) {
    constexpr uint32_t kChunks = kHeadDim / 8;
    constexpr uint32_t kLowBit = kChunks & -kChunks, kPermuted = kLowBit < 8 ? kLowBit : 8;
    return row * (kHeadDim * 2) + ((chunk ^ (row / (8 / kPermuted) % kPermuted)) * 16);
}

template <int kHeadDim>
constexpr uint32_t kTileBytes = kTileN * kHeadDim * 2;

// Keys and values from `first` on to one stage of shared memory; zeros from `keys` on. Weights of 0 meet those, so what
// lies behind the last key must not be read as it is: it may be a NaN.
template <int kHeadDim, typename T, typename Rows>
__device__ __forceinline__ void fetch_tile(uint32_t k_smem, uint32_t v_smem, const T* k, const T* v, const Rows& rows,
                                           uint32_t first, uint32_t keys) {
    constexpr uint32_t kChunks = kHeadDim / 8;
#pragma unroll
    for (uint32_t j = 0; j < kTileN * kChunks / kFlashThreads; ++j) {
        const uint32_t i = threadIdx.x + j * kFlashThreads, row = i / kChunks, chunk = i % kChunks;
        const uint32_t key = first + row, at = swizzled<kHeadDim>(row, chunk);
        const size_t from = rows.offset(min(key, keys - 1)) + chunk * 8;
        cp_async16(k_smem + at, k + from, key < keys);
        cp_async16(v_smem + at, v + from, key < keys);
    }
    cp_async_commit();
}

// A warp's 16 queries on their way over the keys. With g = lane / 4 and t = lane % 4, a lane has the rows g and g + 8;
// of 8 scores or outputs in a row, it has 2t and 2t + 1.
template <typename T, int kHeadDim>
struct WarpRows {
    uint32_t q[kHeadDim / 16][4];
    float s[kTileN / 8][4];         // scores, then weights
    float o[kHeadDim / 8][4] = {};
    float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};  // sums of this lane's keys

    // Rows from tile.rows on are zeros.
    __device__ __forceinline__ void fetch_queries(const QueryTile<T>& tile, uint32_t warp_row, uint32_t lane) {
#pragma unroll
        for (int part = 0; part < 4; ++part) {
            const uint32_t row = warp_row + lane / 4 + part % 2 * 8;
            const T* from = tile.q + size_t(row) * tile.q_stride + lane % 4 * 2 + part / 2 * 8;
#pragma unroll
            for (int i = 0; i < kHeadDim / 16; ++i) {
                q[i][part] = row < tile.rows ? *reinterpret_cast<const uint32_t*>(from + i * 16) : 0;
            }
        }
    }

    __device__ __forceinline__ void score(uint32_t k_smem, uint32_t lane) {
#pragma unroll
        for (int n = 0; n < kTileN / 8; ++n) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
#pragma unroll
        for (int i = 0; i < kHeadDim / 16; ++i) {
#pragma unroll
            for (int n = 0; n < kTileN / 16; ++n) {
                const uint32_t key = n * 16 + lane % 8 + lane / 16 * 8, chunk = i * 2 + lane / 8 % 2;
                uint32_t b[4];
                ldmatrix_x4(b, k_smem + swizzled<kHeadDim>(key, chunk));
                mma<T>(s[2 * n], q[i], b[0], b[1]);
                mma<T>(s[2 * n + 1], q[i], b[2], b[3]);
            }
        }
    }

    // Keys from seen0 on, in row g, and from seen1 on, in row g + 8, do not count; `first` is the first of this step.
    __device__ __forceinline__ void mask(uint32_t first, uint32_t seen0, uint32_t seen1, uint32_t lane) {
#pragma unroll
        for (int n = 0; n < kTileN / 8; ++n) {
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                const uint32_t key = first + n * 8 + lane % 4 * 2 + c % 2;
                if (key >= (c < 2 ? seen0 : seen1)) s[n][c] = -INFINITY;
            }
        }
    }

    // Scores to weights relative to the new maximum; what was summed so far is scaled to it.
    __device__ __forceinline__ void soften(float scale_log2) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float high = top[r];
#pragma unroll
            for (int n = 0; n < kTileN / 8; ++n) high = fmaxf(high, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
            high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 1));
            high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 2));
            const float shrink = exp2_approx((top[r] - high) * scale_log2), shift = high * scale_log2;
            float total = 0.0f;
#pragma unroll
            for (int n = 0; n < kTileN / 8; ++n) {
#pragma unroll
                for (int c = 2 * r; c < 2 * r + 2; ++c) {
                    s[n][c] = exp2_approx(fmaf(s[n][c], scale_log2, -shift));
                    total += s[n][c];
                }
            }
            top[r] = high;
            sum[r] = fmaf(sum[r], shrink, total);
#pragma unroll
            for (int n = 0; n < kHeadDim / 8; ++n) {
                o[n][2 * r] *= shrink;
                o[n][2 * r + 1] *= shrink;
            }
        }
    }

    __device__ __forceinline__ void accumulate(uint32_t v_smem, uint32_t lane) {
#pragma unroll
        for (int i = 0; i < kTileN / 16; ++i) {
            const float(&left)[4] = s[2 * i], (&right)[4] = s[2 * i + 1];
            const uint32_t p[4] = {pack2<T>(left[0], left[1]), pack2<T>(left[2], left[3]),
                                   pack2<T>(right[0], right[1]), pack2<T>(right[2], right[3])};
#pragma unroll
            for (int n = 0; n < kHeadDim / 16; ++n) {
                uint32_t b[4];
                ldmatrix_x4_transposed(b, v_smem + swizzled<kHeadDim>(i * 16 + lane % 16, n * 2 + lane / 16));
                mma<T>(o[2 * n], p, b[0], b[1]);
                mma<T>(o[2 * n + 1], p, b[2], b[3]);
            }
        }
    }

    __device__ __forceinline__ void store(const QueryTile<T>& tile, uint32_t warp_row, uint32_t lane) const {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float total = sum[r];
            total += __shfl_xor_sync(0xffffffffu, total, 1);
            total += __shfl_xor_sync(0xffffffffu, total, 2);
            const float inverse = 1.0f / total;
            const uint32_t row = warp_row + lane / 4 + r * 8;
            if (row >= tile.rows) continue;
            T* to = tile.o + size_t(row) * tile.o_stride + lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < kHeadDim / 8; ++n) {
                *reinterpret_cast<uint32_t*>(to + n * 8) = pack2<T>(o[n][2 * r] * inverse, o[n][2 * r + 1] * inverse);
            }
        }
    }
};

// softmax(q k^T * scale) v of one tile of one head, over the keys 0 .. `keys` or, causally, up to each query's own.
// `rows.offset(i)` is the place of key and value i after `k` and `v`; scale_log2 is the scale times log2(e). Needs
// 4 * kTileBytes of dynamic shared memory.
template <bool kCausal, int kHeadDim, typename T, typename Rows>
__device__ __forceinline__ void flash_tile(const QueryTile<T>& tile, const T* k, const T* v, const Rows& rows,
                                           uint32_t keys, float scale_log2) {
    static_assert(kHeadDim % 32 == 0, "whole pairs of 16-byte chunks, and whole rounds of copies by 128 threads");
    extern __shared__ uint4 tiles_smem[];
    constexpr uint32_t kBytes = kTileBytes<kHeadDim>;
    const uint32_t k_smem = smem_address(tiles_smem), v_smem = k_smem + 2 * kBytes;
    const uint32_t lane = threadIdx.x % kWarpSize, warp_row = threadIdx.x / kWarpSize * 16;
    const uint32_t steps = (keys + kTileN - 1) / kTileN;
    // How many keys a row sees. Rows that are not there see some too, and are not stored.
    const auto seen = [&](uint32_t row) { return kCausal ? tile.position + row + 1 : keys; };

    WarpRows<T, kHeadDim> warp;
    fetch_tile<kHeadDim>(k_smem, v_smem, k, v, rows, 0, keys);
    warp.fetch_queries(tile, warp_row, lane);
    for (uint32_t step = 0; step < steps; ++step) {
        const uint32_t first = step * kTileN, stage = step % 2 * kBytes, next = (step + 1) % 2 * kBytes;
        if (step + 1 < steps) {
            fetch_tile<kHeadDim>(k_smem + next, v_smem + next, k, v, rows, first + kTileN, keys);
            cp_async_wait<1>();
        } else {
            cp_async_wait<0>();
        }
        __syncthreads();
        // A warp without queries, or of which no query sees a key of this step, has nothing to do.
        if (warp_row < tile.rows && first < seen(warp_row + 15)) {
            warp.score(k_smem + stage, lane);
            if (first + kTileN > seen(warp_row)) {
                const uint32_t row = warp_row + lane / 4;
                warp.mask(first, seen(row), seen(row + 8), lane);
            }
            warp.soften(scale_log2);
            warp.accumulate(v_smem + stage, lane);
        }
        __syncthreads();
    }
    warp.store(tile, warp_row, lane);
}
