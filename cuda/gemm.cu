// What:   c = epilogue(a * b^T + bias): sums and epilogue in f32, one rounding at the end. Epilogues: GemmEpilogue.
// Layout: a (m, k); b (n, k), as checkpoints store a linear layer; bias (n); c (m, n), with SwiGlu (m, n / 2), where
//         rows [0, n / 2) of b are gate and the others up. All dense and row-major. c must not be a or b.
// Grid:   stream16: m <= 16; x = 16 rows of b, block 256, no dynamic shared memory.
//         tile<M>x<N>: x = M rows of a, y = N rows of b, block 128, dynamic shared memory for the ring.
//         wgmma<M>x<N>, on sm_90a alone: x = at most one block a multiprocessor, each of which takes one tile of M
//         rows of a and N rows of b after another; block 128 + 2N, dynamic shared memory for the ring and a tile of
//         c, and a second parameter, GemmMaps. See gemm_sm90.cuh.
// Limits: any m, n, k >= 1 (n even with SwiGlu). With programmatic dependent launch, b must not be written by the
//         kernel before this one: stream and wgmma read it before the wait. Slow, element by element, where k % 8 !=
//         0 or a or b is not 16-byte aligned. wgmma: k % 8 == 0, n % 8 == 0 (16 with SwiGlu), all aligned to 16
//         bytes; f32 output with kStore alone, which needs nothing of n and c.
// Order:  the additions of an element depend on k and on the family (stream, tile or wgmma) alone: the same row gives
//         the same bits in any batch that takes the same family, whatever the tile, and in any position.
// Bound:  stream: memory; bf16, one row of a, behind its like with dependent launch: 4096x4096 3.02 TB/s (11.1 us),
//         12288x4096 3.47, 22016x4096 SwiGlu 3.56, 4096x11008 3.79, 32064x4096 3.77; eight rows cost 4 to 7% more
//         (with the kernel for eight rows that was here).
//         tile: tensor cores by mma.sync, which reach half of what wgmma would; 2308 rows: 260 to 336 TFLOP/s; 577
//         rows of the language model's layers: 204 to 288, of the vision model's: 105 to 161; 64 rows: 1.3 to 3.6
//         TB/s.
//         wgmma: tensor cores; bf16, in a graph with dependent launch, us (TFLOP/s), and cuBLAS in a run of its own:
//           rows    12288x4096       4096x4096       22016x4096       4096x11008
//           2048    260 (792) 265    93 (739) 89     498 (742) 486    234 (789) 233
//            645    89.0 (729) 91.8  30.8 (703) 30.6 151.2 (769) 153.5 78.3 (743) 78.4
//            128    33.0 29.9        13.7 13.9       58.3 51.9        31.5 31.5
//             64    30.4 29.7        12.9 12.4       50.9 49.6        31.5 29.8
//           577 rows: 3072x1024 8.3 (435) 8.5, 4096x1024 11.1 (438) 10.0, 1024x4096 17.3 (280) 12.7,
//           1024x1024 5.7 (212) 5.4
//         (H200, driver 580, 2026-11-22).

#include "mma.cuh"
#include "params.cuh"

// f32 outputs, logits for one, go the way of the others.
__device__ __forceinline__ float to_f32(float v) { return v; }
template <>
__device__ __forceinline__ float from_f32<float>(float v) {
    return v;
}

// ---- What stream and tile share: which row of b a place in the product stands for, and the epilogue ----

// The product is computed over `places`, groups of 16 rows of b. With SwiGlu a group is 8 gate rows and the 8 up rows that
// belong to them; otherwise place r is row r. A place that no row has is p.n.
__device__ __forceinline__ uint32_t row_of_place(const GemmParams& p, uint32_t place) {
    if (p.epilogue != kSwiGlu) return min(place, p.n);
    const uint32_t half = p.n / 2, j = place / 16 * 8 + place % 8;
    return j >= half ? p.n : place % 16 < 8 ? j : half + j;
}

// x * sigmoid(slope * x); 0 where the exponential is infinite.
__device__ __forceinline__ float sigmoid_times(float x, float slope) {
    return __fdividef(x, 1.0f + __expf(-slope * x));
}

// Eight neighbours of a row of c, from column j on, out of their sums; `up` is read with SwiGlu alone.
template <typename T, typename C>
__device__ __forceinline__ void finish8_as(const GemmParams& p, uint32_t i, uint32_t j, const float* sums,
                                           const float* up) {
    const uint32_t cols = p.epilogue == kSwiGlu ? p.n / 2 : p.n;
    const T* bias = static_cast<const T*>(p.bias);
    C* c = static_cast<C*>(p.c) + size_t(i) * cols + j;
    struct alignas(16) {
        C v[8];
    } out;
    if (p.epilogue == kAddResidual) {
#pragma unroll
        for (int q = 0; q < 8; ++q) {
            if (j + q < cols) out.v[q] = c[q];
        }
    }
#pragma unroll
    for (int q = 0; q < 8; ++q) {
        const uint32_t row_of_b = min(j + q, cols - 1);
        float v = sums[q];
        if (bias) v += to_f32(bias[row_of_b]);
        switch (p.epilogue) {
            case kAddResidual: v += to_f32(out.v[q]); break;
            case kQuickGelu: v = sigmoid_times(v, 1.702f); break;
            case kGelu: v = 0.5f * v * (1.0f + erff(v * 0.70710678118654752f)); break;
            case kSwiGlu: v = sigmoid_times(v, 1.0f) * (up[q] + (bias ? to_f32(bias[cols + row_of_b]) : 0.0f)); break;
            default: break;
        }
        out.v[q] = from_f32<C>(v);
    }
    if (p.c_vectors) {
#pragma unroll
        for (int x = 0; x < int(sizeof(out) / 16); ++x) {
            reinterpret_cast<uint4*>(c)[x] = reinterpret_cast<const uint4*>(&out)[x];
        }
    } else {
#pragma unroll
        for (int q = 0; q < 8; ++q) {
            if (j + q < cols) c[q] = out.v[q];
        }
    }
}

// Everything of c that follows from `kPlaces` places of rows i0 .. i0 + kRows - 1, whose sums lie in shared memory.
template <typename T, int kRows, int kPlaces, int kPitch>
__device__ __forceinline__ void finish(const GemmParams& p, uint32_t i0, uint32_t place0, const float* sums_smem) {
    const bool pairs = p.epilogue == kSwiGlu;
    const uint32_t per_row = pairs ? kPlaces / 16 : kPlaces / 8, cols = pairs ? p.n / 2 : p.n;
    for (uint32_t e = threadIdx.x; e < kRows * per_row; e += blockDim.x) {
        const uint32_t r = e / per_row, x = e % per_row, i = i0 + r;
        const uint32_t j = pairs ? place0 / 2 + 8 * x : place0 + 8 * x;
        if (i >= p.m || j >= cols) continue;
        const float* sums = sums_smem + r * kPitch + (pairs ? 16 : 8) * x;
        p.c_is_f32 ? finish8_as<T, float>(p, i, j, sums, sums + 8) : finish8_as<T, T>(p, i, j, sums, sums + 8);
    }
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

// ---- stream: few rows of a, bound by reading b once ----
//
// A block owns 16 places and its eight warps share k: every lane keeps eight 16-byte loads of b in flight while it
// multiplies the eight before. The tensor cores do the arithmetic with b as the 16-row operand and the rows of a as
// columns, so that eight rows of a cost what one does. A sum does not care which k a slot of the instruction holds as
// long as both operands agree: lane t of four takes k 8t .. 8t+7 of 32 as one 16-byte load and feeds them to two
// instructions, which makes a load of b the fragment, without shared memory. a comes through L1, where it stays.

constexpr int kStreamWarps = 8;
constexpr int kStreamUnroll = 4;                     // 32-wide steps of k in one stage
constexpr uint32_t kStreamStage = 32 * kStreamUnroll;  // k of one stage of one warp: 256 bytes of a row

// 16 bytes that nobody reads again. Not the non-coherent path, whose loads the compiler moves below the wait.
__device__ __forceinline__ uint4 load_once(const void* p) {
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}

template <typename T>
struct StreamStage {
    uint4 low[kStreamUnroll], high[kStreamUnroll];  // of the lane's two rows of b

    __device__ __forceinline__ void load(const T* row_low, const T* row_high, uint32_t k0, uint32_t k, bool vectors) {
        if (vectors) {
#pragma unroll
            for (int u = 0; u < kStreamUnroll; ++u) {
                const uint32_t at = k0 + 32 * u;
                low[u] = high[u] = make_uint4(0, 0, 0, 0);
                if (at < k) {
                    low[u] = load_once(row_low + at);
                    high[u] = load_once(row_high + at);
                }
            }
        } else {
#pragma unroll
            for (int u = 0; u < kStreamUnroll; ++u) {
                low[u] = gather8(row_low, k0 + 32 * u, k);
                high[u] = gather8(row_high, k0 + 32 * u, k);
            }
        }
    }
};

template <typename T, int kRows>  // kRows of a: a multiple of 8
__device__ __forceinline__ void stream(const GemmParams& p) {
    constexpr int kColumns = kRows / 8;
    constexpr int kPitch = 16 + 1;
    __shared__ float partial_smem[kStreamWarps][kRows * kPitch];
    const uint32_t lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize, g = lane / 4, t = lane % 4;
    const uint32_t k = p.k, place = 16 * blockIdx.x, step = kStreamWarps * kStreamStage;
    const T* b = static_cast<const T*>(p.b);
    // Places without a row are computed from the last row, and dropped.
    const T* b_low = b + size_t(min(row_of_place(p, place + g), p.n - 1)) * k;
    const T* b_high = b + size_t(min(row_of_place(p, place + g + 8), p.n - 1)) * k;

    const bool vectors = p.vectors;
    float sum[kColumns][4] = {};
    uint32_t k0 = warp * kStreamStage + 8 * t;
    StreamStage<T> now, next;
    now.load(b_low, b_high, k0, k, vectors);
    pdl_wait();
    pdl_launch_dependents();
    for (; k0 - 8 * t < k; k0 += step) {
        next.load(b_low, b_high, k0 + step, k, vectors);
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
            const T* a = static_cast<const T*>(p.a) + size_t(min(8 * c + g, p.m - 1)) * k;
            uint4 x[kStreamUnroll];
#pragma unroll
            for (int u = 0; u < kStreamUnroll; ++u) {
                const uint32_t at = k0 + 32 * u;
                x[u] = make_uint4(0, 0, 0, 0);
                if (!vectors) {
                    x[u] = gather8(a, at, k);
                } else if (at < k) {
                    x[u] = *reinterpret_cast<const uint4*>(a + at);
                }
            }
#pragma unroll
            for (int u = 0; u < kStreamUnroll; ++u) {
                const uint4 &l = now.low[u], &h = now.high[u];
                mma<T>(sum[c], l.x, h.x, l.y, h.y, x[u].x, x[u].y);
                mma<T>(sum[c], l.z, h.z, l.w, h.w, x[u].z, x[u].w);
            }
        }
        now = next;
    }

#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int r = 0; r < 4; ++r) partial_smem[warp][(8 * c + 2 * t + r % 2) * kPitch + g + r / 2 * 8] = sum[c][r];
    }
    __syncthreads();
    for (uint32_t e = threadIdx.x; e < kRows * 16; e += blockDim.x) {
        const uint32_t at = e / 16 * kPitch + e % 16;
        float v = partial_smem[0][at];
#pragma unroll
        for (int w = 1; w < kStreamWarps; ++w) v += partial_smem[w][at];
        partial_smem[0][at] = v;
    }
    __syncthreads();
    finish<T, kRows, 16, kPitch>(p, 0, place, partial_smem[0]);
}

// ---- tile: many rows of a, bound by the tensor cores ----
//
// A block of four warps computes kM rows of a by kN places. Slices of 64 k travel through a ring of kStages in shared
// memory; a row of a slice is 128 bytes, whose 16-byte chunks are permuted by the row number so that neither the copies
// nor ldmatrix meet a bank conflict. What lies behind an edge is zeros: reading the last row for it instead makes all
// blocks wait for the same few lines of the L2 cache (up to 2.3 times slower at 16 rows).

constexpr int kTileThreads = 128;
constexpr int kTileK = 64;

// Bytes from the start of a slice to chunk `chunk` of row `row`.
__device__ __forceinline__ uint32_t chunk_offset(uint32_t row, uint32_t chunk) {
    return row * 128 + ((chunk ^ row % 8) * 16);
}

// `kRows` rows of a slice: of a matrix of `rows` rows, the r-th is row_at(r).
template <typename T, int kRows, typename RowAt>
__device__ __forceinline__ void copy_slice(unsigned char* slice, const void* matrix, uint32_t rows, RowAt row_at,
                                           uint32_t k0, const GemmParams& p) {
    const T* x = static_cast<const T*>(matrix);
    const uint32_t first = threadIdx.x / 8, chunk = threadIdx.x % 8, at = k0 + 8 * chunk;
    if (p.vectors) {
        const uint32_t smem = smem_address(slice);
#pragma unroll
        for (int r = 0; r < kRows; r += kTileThreads / 8) {
            const uint32_t row = row_at(first + r);
            const bool inside = at < p.k && row < rows;
            cp_async_16(smem + chunk_offset(first + r, chunk), x + (inside ? size_t(row) * p.k + at : 0), inside);
        }
    } else {
#pragma unroll 1
        for (int r = 0; r < kRows; r += kTileThreads / 8) {
            const uint32_t row = row_at(first + r);
            const uint4 v = row < rows ? gather8(x + size_t(row) * p.k, at, p.k) : make_uint4(0, 0, 0, 0);
            *reinterpret_cast<uint4*>(slice + chunk_offset(first + r, chunk)) = v;
        }
    }
}

template <typename T, int kM, int kN, int kWarpM, int kWarpN, int kStages>
__device__ __forceinline__ void tile(const GemmParams& p) {
    static_assert(kM / kWarpM * (kN / kWarpN) == kTileThreads / kWarpSize, "four warps cover the tile");
    constexpr int kSliceA = kM * kTileK * 2, kSlice = (kM + kN) * kTileK * 2;
    constexpr int kMs = kWarpM / 16, kNs = kWarpN / 8;
    extern __shared__ __align__(128) unsigned char slices_smem[];
    const uint32_t lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    const uint32_t i0 = blockIdx.x * kM, place0 = blockIdx.y * kN, slices = (p.k + kTileK - 1) / kTileK;

    const auto copy = [&](uint32_t s) {
        unsigned char* slice = slices_smem + s % kStages * kSlice;
        copy_slice<T, kM>(slice, p.a, p.m, [&](uint32_t r) { return i0 + r; }, s * kTileK, p);
        const auto row_of_b = [&](uint32_t r) { return row_of_place(p, place0 + r); };
        copy_slice<T, kN>(slice + kSliceA, p.b, p.n, row_of_b, s * kTileK, p);
    };

    pdl_wait();
    pdl_launch_dependents();
#pragma unroll
    for (int s = 0; s < kStages - 1; ++s) {
        if (s < slices) copy(s);
        cp_async_commit();
    }

    const uint32_t warp_m = warp % (kM / kWarpM) * kWarpM, warp_n = warp / (kM / kWarpM) * kWarpN;
    const uint32_t row_a = warp_m + lane % 16, chunk_a = lane / 16;
    const uint32_t row_b = warp_n + lane % 8 + lane / 16 * 8, chunk_b = lane / 8 % 2;
    float sum[kMs][kNs][4] = {};
    for (uint32_t s = 0; s < slices; ++s) {
        // Slice s has arrived, and everyone is done with slice s - 1, whose place the next copy takes.
        cp_async_wait<kStages - 2>();
        __syncthreads();
        if (s + kStages - 1 < slices) copy(s + kStages - 1);
        cp_async_commit();
        const uint32_t slice_a = smem_address(slices_smem + s % kStages * kSlice), slice_b = slice_a + kSliceA;
#pragma unroll
        for (int step = 0; step < kTileK / 16; ++step) {
            uint32_t fa[kMs][4], fb[kNs / 2][4];
#pragma unroll
            for (int i = 0; i < kMs; ++i) {
                ldmatrix_x4(fa[i], slice_a + chunk_offset(row_a + 16 * i, 2 * step + chunk_a));
            }
#pragma unroll
            for (int j = 0; j < kNs / 2; ++j) {
                ldmatrix_x4(fb[j], slice_b + chunk_offset(row_b + 16 * j, 2 * step + chunk_b));
            }
#pragma unroll
            for (int i = 0; i < kMs; ++i) {
#pragma unroll
                for (int j = 0; j < kNs; ++j) {
                    const uint32_t* f = &fb[j / 2][j % 2 * 2];
                    mma<T>(sum[i][j], fa[i][0], fa[i][1], fa[i][2], fa[i][3], f[0], f[1]);
                }
            }
        }
    }

    // The ring becomes the tile of sums, from which rows are finished in whole 16-byte pieces.
    constexpr int kPitch = kN + 4;
    static_assert(kM * kPitch * 4 <= kStages * kSlice, "the sums fit the ring");
    cp_async_wait<0>();
    __syncthreads();
    float* sums_smem = reinterpret_cast<float*>(slices_smem);
    const uint32_t g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < kMs; ++i) {
#pragma unroll
        for (int j = 0; j < kNs; ++j) {
#pragma unroll
            for (int r = 0; r < 4; r += 2) {
                const uint32_t at = (warp_m + 16 * i + g + r / 2 * 8) * kPitch + warp_n + 8 * j + 2 * t;
                *reinterpret_cast<float2*>(sums_smem + at) = make_float2(sum[i][j][r], sum[i][j][r + 1]);
            }
        }
    }
    __syncthreads();
    finish<T, kM, kN, kPitch>(p, i0, place0, sums_smem);
}

#include "gemm_sm90.cuh"

// ---- Entry points: dtype, family, shape; how many blocks a multiprocessor shall hold ----
//
// A ring takes stages * (m + n) * 128 bytes of dynamic shared memory: src/ops/gemm.rs asks for it.

#define STREAM(name, T, rows)                                                                                     \
    extern "C" __global__ void __launch_bounds__(kStreamWarps* kWarpSize, 2)                                      \
        gemm_##name##_stream##rows(const __grid_constant__ GemmParams p) {                                        \
        stream<T, rows>(p);                                                                                       \
    }
#define TILE(name, T, m, n, warp_m, warp_n, stages, blocks)                                                       \
    extern "C" __global__ void __launch_bounds__(kTileThreads, blocks)                                            \
        gemm_##name##_tile##m##x##n(const __grid_constant__ GemmParams p) {                                       \
        tile<T, m, n, warp_m, warp_n, stages>(p);                                                                 \
    }
#define GEMM(name, T)                      \
    STREAM(name, T, 16)                    \
    TILE(name, T, 64, 32, 32, 16, 6, 3)    \
    TILE(name, T, 64, 64, 32, 32, 3, 4)    \
    TILE(name, T, 128, 64, 64, 32, 3, 3)   \
    TILE(name, T, 128, 128, 64, 64, 3, 2)

GEMM(f16, __half)
GEMM(bf16, __nv_bfloat16)

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define WGMMA_TILE(name, T, m, n, stages)                                                                           \
    extern "C" __global__ void __launch_bounds__(WgmmaLayout<m, n, stages>::kThreads, 1) gemm_##name##_wgmma##m##x##n( \
        const __grid_constant__ GemmParams p, const __grid_constant__ GemmMaps maps) {                             \
        wgmma_tiles<T, m, n, stages>(p, maps);                                                                     \
    }
#define GEMM_SM90(name, T)           \
    WGMMA_TILE(name, T, 256, 128, 3) \
    WGMMA_TILE(name, T, 216, 128, 4) \
    WGMMA_TILE(name, T, 184, 128, 4) \
    WGMMA_TILE(name, T, 168, 128, 4) \
    WGMMA_TILE(name, T, 152, 128, 5) \
    WGMMA_TILE(name, T, 128, 128, 5) \
    WGMMA_TILE(name, T, 96, 128, 6)  \
    WGMMA_TILE(name, T, 64, 128, 8)  \
    WGMMA_TILE(name, T, 80, 64, 10)  \
    WGMMA_TILE(name, T, 64, 64, 11)  \
    WGMMA_TILE(name, T, 32, 64, 16)

GEMM_SM90(f16, __half)
GEMM_SM90(bf16, __nv_bfloat16)
#endif

EXPORT_PARAMS(gemm, GemmParams)

// Lost, same machine and date as Bound: 32 places a block in stream (4% faster for 22016 rows of b, 19% slower for
// 4096 rows of 11008); stream for 32 rows of a (82 us against 56 for gate and up); 64x128 tiles (up to 8% slower than
// 128x64); six stages for 64x64 (a quarter slower from 256 rows on: fewer blocks fit).
// In wgmma: clusters of two blocks that load half of a for each other (2% slower, but 14.5 us against 16.7 for 577
// rows of 1024x4096); b and a loaded by a thread each (1 to 2% slower); two or three blocks a multiprocessor with
// shorter rings (faster by 4% for 32 rows of 12288x4096, slower by up to 45% for 64 rows of 4096x11008); rows of a as
// the rows of the instruction, which come in 64s (by arithmetic: 768 rows for 645 with tiles of 128, where eights
// make 672).
