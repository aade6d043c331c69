// What:   c = epilogue(norm(a) * b^T) for at most 8 rows of a. norm, where there is one, is what cuda/rmsnorm.cu computes,
//         with its two roundings; products are summed in f32, the epilogue is in f32, and c is rounded once. Epilogues:
//         kStore, kAddResidual, kSwiGlu of GemmEpilogue.
// Layout: a (m, k); b (n, k), as checkpoints store a linear layer; norm (k); c (m, n), with kSwiGlu (m, n / 2). All dense
//         and row-major. c must not be a or b.
// Grid:   ring4k, ring8k, ring11k (gemv_ring.cuh): a block a multiprocessor, which share the rows of b out evenly; block
//         544, 544 and 512, dynamic shared memory. stream: x = 16 rows of b, block 256, no dynamic shared memory.
// Limits: 1 <= m <= 8; any n, k >= 1 (n even with kSwiGlu). ring4k: sm_90a, k <= 4096, k % 32 == 0, operands aligned to 16
//         bytes. ring8k, ring11k: the same with k <= 8192 and k <= 11520, no norm. stream: element by element where
//         k % 8 != 0 or an operand is not aligned. With programmatic dependent launch, b and norm must not be written by
//         the kernel before this one.
// Order:  the additions of an element depend on k and on the kernel (ring4k, ring8k, ring11k, stream) alone: a row gives
//         the same bits in any batch of 1 to 8 and in any position.
// Bound:  memory. bf16, in a graph of programmatic dependent launches over 8 layers of weights, with the launch:
//                             1 row            8 rows
//         qkv     12288x4096  23.7 us 4.25     29.7 us     with norm
//         o        4096x4096   9.4 us 3.57     11.8 us
//         gate_up 22016x4096  41.0 us 4.40     47.4 us     with norm, SwiGlu
//         down    4096x11008  24.5 us 3.68     29.6 us
//         lm_head 32064x4096  59.2 us 4.44     66.9 us     with norm, f32 out
//         qkv      9216x3072  14.0 us 4.05                 with norm
//         o        3072x3072   6.4 us 2.96
//         gate_up 16384x3072  23.9 us 4.21                 with norm, SwiGlu
//         down     3072x8192  16.5 us 3.06
//         lm_head 32064x3072  45.1 us 4.37                 with norm, f32 out                TB/s of b
//         and the four of a layer in turn 97.2 and 60.7 us at one row, 116.0 and 71.1 at eight. What is lost is lost
//         between kernels, where long ones stream 4.5 TB/s, and with rows longer than 4096, whose tiles have half the rows
//         (H200, driver 580, 2026-11-22; stream with a norm has not been timed).

#include "gemv.cuh"

// Machine code of sm_90a alone: src/ops/gemv.rs asks for the ring nowhere else.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HAS_RING
#include "gemv_ring.cuh"
#endif

// ---- stream: any device ----
//
// A block owns 16 places and its eight warps share k: every lane keeps eight 16-byte loads of b in flight while it
// multiplies the eight before. A place is a row of b; with kSwiGlu 16 places are 8 gate rows and the up rows that belong
// to them. Here 16 rows of b are one operand of the tensor cores and the rows of a the other: lane (g, t) takes k 8t .. 8t+7
// of a step of 32 as one 16-byte load and feeds them to two instructions. a comes through L1, where it stays, and is
// normalised on the way.

constexpr uint32_t kStreamWarps = 8;
constexpr uint32_t kStreamUnroll = 4;                  // steps in one stage
constexpr uint32_t kStreamStage = 32 * kStreamUnroll;  // k of one stage of one warp
constexpr uint32_t kPlaces = 16;

__device__ __forceinline__ uint32_t row_of_place(const GemvParams& p, uint32_t place) {
    if (p.epilogue != kSwiGlu) return min(place, p.n - 1);
    const uint32_t half = p.n / 2, j = min(place / 16 * 8 + place % 8, half - 1);
    return place % 16 < 8 ? j : half + j;
}

// Elements k0 .. k0 + 7 of a row of k, zeros behind its end. For rows that vectors cannot read.
template <typename T>
__device__ __noinline__ uint4 gather8(const T* row, uint32_t k0, uint32_t k) {
    Vec8<T> v{};
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        if (k0 + j < k) v.v[j] = row[k0 + j];
    }
    return reinterpret_cast<const uint4&>(v);
}

template <typename T>
__device__ __forceinline__ uint4 load_part(const GemvParams& p, const T* row, uint32_t k0) {
    if (!p.vectors) return gather8(row, k0, p.k);
    return k0 < p.k ? *reinterpret_cast<const uint4*>(row + k0) : make_uint4(0, 0, 0, 0);
}

// A stage of the lane's two rows of b.
template <typename T>
struct StreamStage {
    uint4 low[kStreamUnroll], high[kStreamUnroll];

    __device__ __forceinline__ void load(const GemvParams& p, const T* row_low, const T* row_high, uint32_t k0) {
#pragma unroll
        for (uint32_t u = 0; u < kStreamUnroll; ++u) {
            const uint32_t at = k0 + 32 * u;
            if (p.vectors) {
                low[u] = high[u] = make_uint4(0, 0, 0, 0);
                if (at < p.k) low[u] = load_before_wait(row_low + at), high[u] = load_before_wait(row_high + at);
            } else {
                low[u] = gather8(row_low, at, p.k), high[u] = gather8(row_high, at, p.k);
            }
        }
    }
};

// 1 / sqrt(mean(x^2) + eps) of row g of a, for which every lane adds up the k that it will multiply.
template <typename T>
__device__ __forceinline__ float stream_scale(const GemvParams& p, const T* row, uint32_t first, uint32_t stride) {
    __shared__ float squares_smem[kStreamWarps][8];
    const uint32_t lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    float squares = 0.0f;
    for (uint32_t k0 = first; k0 < p.k; k0 += stride) {
#pragma unroll
        for (uint32_t u = 0; u < kStreamUnroll; ++u) squares += sum_of_squares<T>(load_part(p, row, k0 + 32 * u));
    }
    squares += __shfl_xor_sync(0xffffffffu, squares, 1);
    squares += __shfl_xor_sync(0xffffffffu, squares, 2);
    if (lane % 4 == 0) squares_smem[warp][lane / 4] = squares;
    __syncthreads();
    squares = 0.0f;
#pragma unroll
    for (uint32_t w = 0; w < kStreamWarps; ++w) squares += squares_smem[w][lane / 4];
    return rsqrtf(__fdividef(squares, p.k) + p.eps);
}

template <typename T>
__device__ __forceinline__ void stream(const GemvParams& p) {
    __shared__ float partial_smem[kStreamWarps][8][kPlaces + 1];
    const uint32_t lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize, g = lane / 4, t = lane % 4;
    const uint32_t place = kPlaces * blockIdx.x, stride = kStreamWarps * kStreamStage;
    const T* b = static_cast<const T*>(p.b);
    const T* b_low = b + size_t(row_of_place(p, place + g)) * p.k;
    const T* b_high = b + size_t(row_of_place(p, place + g + 8)) * p.k;
    const T* a = static_cast<const T*>(p.a) + size_t(min(g, p.m - 1)) * p.k;
    const T* norm = static_cast<const T*>(p.norm);

    pdl_launch_dependents();
    const uint32_t first = warp * kStreamStage + 8 * t;
    StreamStage<T> now, next;
    now.load(p, b_low, b_high, first);
    pdl_wait();
    const float scale = norm ? stream_scale(p, a, first, stride) : 0.0f;
    float sum[4] = {};
    for (uint32_t k0 = first; k0 - 8 * t < p.k; k0 += stride) {
        next.load(p, b_low, b_high, k0 + stride);
        uint4 x[kStreamUnroll];
#pragma unroll
        for (uint32_t u = 0; u < kStreamUnroll; ++u) {
            x[u] = load_part(p, a, k0 + 32 * u);
            if (norm) x[u] = normalised<T>(x[u], load_part(p, norm, k0 + 32 * u), scale);
        }
#pragma unroll
        for (uint32_t u = 0; u < kStreamUnroll; ++u) {
            const uint4 &l = now.low[u], &h = now.high[u];
            mma<T>(sum, l.x, h.x, l.y, h.y, x[u].x, x[u].y);
            mma<T>(sum, l.z, h.z, l.w, h.w, x[u].z, x[u].w);
        }
        now = next;
    }

#pragma unroll
    for (uint32_t r = 0; r < 4; ++r) partial_smem[warp][2 * t + r % 2][g + r / 2 * 8] = sum[r];
    __syncthreads();
    const uint32_t i = threadIdx.x / kPlaces, x = threadIdx.x % kPlaces;
    const bool pairs = p.epilogue == kSwiGlu;
    const uint32_t cols = pairs ? p.n / 2 : p.n, j = pairs ? place / 2 + x : place + x;
    if (i >= p.m || j >= cols || (pairs && x >= 8)) return;
    const auto total = [&](uint32_t x) {
        float v = partial_smem[0][i][x];
#pragma unroll
        for (uint32_t w = 1; w < kStreamWarps; ++w) v += partial_smem[w][i][x];
        return v;
    };
    const size_t at = size_t(i) * cols + j;
    const float residual = p.epilogue == kAddResidual ? load_c<T>(p, at) : 0.0f;
    store_c<T>(p, at, total(x), pairs ? total(x + 8) : 0.0f, residual);
}

// ---- Entry points ----

#define STREAM(name, T)                                                       \
    extern "C" __global__ void __launch_bounds__(kStreamWarps * kWarpSize, 2) \
        gemv_##name##_stream(const __grid_constant__ GemvParams p) {          \
        stream<T>(p);                                                         \
    }
STREAM(f16, __half)
STREAM(bf16, __nv_bfloat16)

#ifdef HAS_RING
#define RING(name, T, suffix, R)                                      \
    extern "C" __global__ void __launch_bounds__(R::kThreads, 1)      \
        gemv_##name##_##suffix(const __grid_constant__ GemvParams p) { \
        ring<T, R>(p);                                                \
    }
RING(f16, __half, ring4k, Ring4k)
RING(bf16, __nv_bfloat16, ring4k, Ring4k)
RING(f16, __half, ring8k, Ring8k)
RING(bf16, __nv_bfloat16, ring8k, Ring8k)
RING(f16, __half, ring11k, Ring11k)
RING(bf16, __nv_bfloat16, ring11k, Ring11k)
#endif
EXPORT_PARAMS(gemv, GemvParams)

// Tried, with one row, four products of a layer in turn (of 7B; of Phi-3-mini) unless something else is said:
//   as it is: 97.2 us; 60.7
//   a copy and two barriers a row, rows padded, long ones in two pieces, tiles of 8: 102.0; 71.2. At k = 3072 barriers
//   are the limit: 18.6 us for qkv; 14.5 with a barrier of 4 rows and still a copy a row; 13.9 as it is. For down that
//   is better than what it is: 23.8 instead of 24.4; 15.6 instead of 16.4
//   bytes in flight, to the nearest group: 32 KB 109.6; 69.9, 40 KB 106.2; 59.1, 56 KB 99.1; 60.6, 72 KB 99.3; 61.7
//   groups of 2 rows in ring4k: 97.7; 61.2. Tiles of 4 rows in ring4k: 107.8; 75.0
//   12 warps at k = 3072: qkv 13.7. No fence before a slot is released, which is wrong: 96.7; 60.6
//   copies of 2 KB instead of whole rows: 3 % slower; of 1 KB: 50 %, a copy costs 110 cycles whichever lane or warp
//   issues it
//   groups of warps that take chunks in turn: 11 % slower; where a block starts in a row rotated by its number: no change
//   rows of a through the ring by bulk copies: 8 rows arrive in 1.5 us instead of 5, but 10 % slower, because of what
//   follows
//   a run of the loops before the wait, to warm the instruction cache: 5 us slower
