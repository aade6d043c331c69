// gemm, family wgmma: many rows of a on sm_90a. Part of gemm.cu, which says what is computed.
//
// A block multiplies kPlaces places by kRows rows of a. The places are the rows of the instruction, which come in
// 64s, and the rows of a its columns, which come in eights: the length of b is a multiple of 64 in every model, that
// of a is what a prompt and its pictures make it. One thread fills a ring of slices of 64 k with the copy engine;
// kPlaces / 64 warpgroups multiply 64 places each. Blocks are as many as fit the device and take tile after tile, so
// that the ring fills while sums are finished.
//
// Sums are finished in registers, where a thread has neighbouring rows of a column of c. stmatrix turns them round
// on the way to shared memory, and the copy engine stores tiles of c; for AddResidual it has loaded them there
// before.

#pragma once

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

#include "tma.cuh"
#include "wgmma.cuh"

struct GemmMaps {
    TensorMap a;  // tiles of 64 k x kRows
    TensorMap b;  // tiles of 64 k x kPlaces; with SwiGlu, 64 k x 8 rows x gate and up x kPlaces / 16
    TensorMap c;  // tiles of 64 columns (32 with SwiGlu) x kRows; unused where c is f32
};

// Matrices of 8 x 8 two-byte elements, transposed between the registers of a warp and shared memory.
__device__ __forceinline__ void stmatrix_x1_trans(uint32_t address, uint32_t r) {
    asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(address), "r"(r) : "memory");
}
__device__ __forceinline__ void stmatrix_x2_trans(uint32_t address, uint32_t r0, uint32_t r1) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(address), "r"(r0), "r"(r1)
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address)
                 : "memory");
}

template <typename T>
__device__ __forceinline__ uint32_t pack2(float low, float high) {
    const T v[2] = {from_f32<T>(low), from_f32<T>(high)};
    return reinterpret_cast<const uint32_t&>(v);
}

template <typename T>
__device__ __forceinline__ float2 unpack2(uint32_t raw) {
    const T* v = reinterpret_cast<const T*>(&raw);
    return make_float2(to_f32(v[0]), to_f32(v[1]));
}

// Registers of each thread of the warpgroup from here on: a multiple of 8.
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// The barrier `id` of one warpgroup.
__device__ __forceinline__ void warpgroup_sync(uint32_t id) { asm volatile("bar.sync %0, 128;" ::"r"(id) : "memory"); }

// Where a tile's parts lie in shared memory, from its start, which is a multiple of 1024.
template <int kRows, int kPlaces, int kStages>
struct WgmmaLayout {
    static constexpr int kWarpgroups = kPlaces / 64, kThreads = (kWarpgroups + 1) * 128;
    static constexpr int kSliceB = kPlaces * 128, kSlice = kSliceB + kRows * 128;
    static constexpr int kPanels = kStages * kSlice, kPanel = kRows * 128;  // a tile of c for each warpgroup
    static constexpr int kBarriers = kPanels + kWarpgroups * kPanel;
    static constexpr int kBytes = kBarriers + (2 * kStages + kWarpgroups) * 8;
    static_assert(kPlaces % 64 == 0 && kRows % 8 == 0 && kRows <= 256, "whole instructions");
    static_assert(kBytes <= 232448, "the shared memory of a block");
};

// Which tile of places and which of rows is the t-th. Tiles that are taken together should share both, so rows of
// tiles are cut into groups of at most eight, of the same size.
struct TileOrder {
    uint32_t place_tiles, row_tiles, rows_per_group;

    __device__ TileOrder(uint32_t place_tiles, uint32_t row_tiles) : place_tiles(place_tiles), row_tiles(row_tiles) {
        const uint32_t groups = (row_tiles + 7) / 8;
        rows_per_group = (row_tiles + groups - 1) / groups;
    }
    __device__ uint32_t tiles() const { return place_tiles * row_tiles; }
    __device__ uint2 at(uint32_t t) const {
        const uint32_t group = t / (place_tiles * rows_per_group), first = group * rows_per_group;
        const uint32_t rest = t - group * place_tiles * rows_per_group, rows = min(rows_per_group, row_tiles - first);
        return make_uint2(rest / rows, first + rest % rows);
    }
};

// The exact GELU, with erf to 1.5e-7 (Abramowitz and Stegun 7.1.26) in a fifth of the instructions of erff.
__device__ __forceinline__ float short_gelu(float x) {
    const float z = x * 0.70710678118654752f, t = __fdividef(1.0f, 1.0f + 0.3275911f * fabsf(z));
    const float q = 0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f)));
    return 0.5f * x * (1.0f + copysignf(1.0f - t * q * __expf(-z * z), z));
}

// Panels of c in shared memory are rows of 64 columns, of 32 with SwiGlu, whose 16-byte chunks are permuted as the
// copy engine has them. A lane gives stmatrix and ldmatrix the address of row lane % 8 of matrix lane / 8; matrices
// are eight columns wide.

// The sums of one warpgroup, finished, in its panel. `column` is the thread's first column of c, the other is eight
// further on.
template <typename T, int kRows>
__device__ __forceinline__ void finish_panel(const GemmParams& p, float (&sum)[kRows / 2], uint32_t panel,
                                             uint32_t column) {
    // Eights of rows between two branches, without which the compiler starts everything at once and spills.
    constexpr int kBatch = 4;
    const uint32_t lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize % 4, row = lane % 8;
    const uint32_t at = panel + row * 128 + ((2 * warp + lane / 8 % 2) ^ row) * 16;
    const T* bias = static_cast<const T*>(p.bias);
    const float bias0 = bias && column < p.n ? to_f32(bias[column]) : 0.0f;
    const float bias1 = bias && column + 8 < p.n ? to_f32(bias[column + 8]) : 0.0f;
#pragma unroll
    for (int c0 = 0; c0 < kRows / 8; c0 += kBatch) {
        const int end = min(c0 + kBatch, kRows / 8);
#pragma unroll
        for (int e = 4 * c0; e < 4 * end; ++e) sum[e] += e % 4 < 2 ? bias0 : bias1;
        if (p.epilogue == kAddResidual) {
            uint32_t old[kBatch][2];
#pragma unroll
            for (int c = c0; c < end; ++c) ldmatrix_x2_trans(old[c - c0], at + c * 8 * 128);
#pragma unroll
            for (int c = c0; c < end; ++c) {
                const float2 low = unpack2<T>(old[c - c0][0]), high = unpack2<T>(old[c - c0][1]);
                sum[4 * c] += low.x, sum[4 * c + 1] += low.y, sum[4 * c + 2] += high.x, sum[4 * c + 3] += high.y;
            }
        } else if (p.epilogue == kQuickGelu) {
#pragma unroll
            for (int e = 4 * c0; e < 4 * end; ++e) sum[e] = sigmoid_times(sum[e], 1.702f);
        } else if (p.epilogue == kGelu) {
#pragma unroll
            for (int e = 4 * c0; e < 4 * end; ++e) sum[e] = short_gelu(sum[e]);
        }
#pragma unroll
        for (int c = c0; c < end; ++c) {
            stmatrix_x2_trans(at + c * 8 * 128, pack2<T>(sum[4 * c], sum[4 * c + 1]),
                              pack2<T>(sum[4 * c + 2], sum[4 * c + 3]));
        }
    }
}

// The same for SwiGlu: the thread has gate and up of `column`, half of b apart.
template <typename T, int kRows>
__device__ __forceinline__ void finish_pairs(const GemmParams& p, float (&sum)[kRows / 2], uint32_t panel,
                                             uint32_t column) {
    const uint32_t lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize % 4, row = lane % 8;
    const uint32_t at = panel + row * 64 + (warp ^ row / 2) * 16, half = p.n / 2;
    const T* bias = static_cast<const T*>(p.bias);
    const float gate = bias && column < half ? to_f32(bias[column]) : 0.0f;
    const float up = bias && column < half ? to_f32(bias[half + column]) : 0.0f;
#pragma unroll
    for (int c = 0; c < kRows / 8; ++c) {
        const float v0 = sigmoid_times(sum[4 * c] + gate, 1.0f) * (sum[4 * c + 2] + up);
        const float v1 = sigmoid_times(sum[4 * c + 1] + gate, 1.0f) * (sum[4 * c + 3] + up);
        stmatrix_x1_trans(at + c * 8 * 64, pack2<T>(v0, v1));
    }
}

// The sums of one warpgroup as f32, straight to c: eight lanes write 32 neighbouring bytes.
template <typename T, int kRows>
__device__ __forceinline__ void store_f32(const GemmParams& p, float (&sum)[kRows / 2], uint32_t row0,
                                          uint32_t column) {
    const uint32_t t = threadIdx.x % 4;
    const T* bias = static_cast<const T*>(p.bias);
    float* c = static_cast<float*>(p.c);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const uint32_t j = column + 8 * h;
        if (j >= p.n) continue;
        const float add = bias ? to_f32(bias[j]) : 0.0f;
#pragma unroll
        for (int e = 0; e < kRows / 4; ++e) {
            const uint32_t i = row0 + e / 2 * 8 + 2 * t + e % 2;
            if (i < p.m) c[size_t(i) * p.n + j] = sum[e / 2 * 4 + 2 * h + e % 2] + add;
        }
    }
}

template <typename T, int kRows, int kPlaces, int kStages>
__device__ __forceinline__ void wgmma_tiles(const GemmParams& p, const GemmMaps& maps) {
    using Layout = WgmmaLayout<kRows, kPlaces, kStages>;
    extern __shared__ __align__(1024) unsigned char wgmma_smem[];
    // A shuffle, so that the compiler keeps what follows from it in uniform registers.
    const uint32_t smem = smem_address(wgmma_smem), lane = threadIdx.x % kWarpSize;
    const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / kWarpSize, 0);
    const auto full = [&](uint32_t stage) { return smem + Layout::kBarriers + 8 * stage; };
    const auto empty = [&](uint32_t stage) { return full(kStages + stage); };
    const auto panel_full = [&](uint32_t warpgroup) { return full(2 * kStages + warpgroup); };

    pdl_launch_dependents();
    if (threadIdx.x == 0) {
        for (int s = 0; s < kStages; ++s) {
            barrier_init(full(s), 1);
            barrier_init(empty(s), Layout::kWarpgroups * 4);
        }
        for (int w = 0; w < Layout::kWarpgroups; ++w) barrier_init(panel_full(w), 1);
        barrier_init_fence();
    }
    __syncthreads();

    const bool pairs = p.epilogue == kSwiGlu;
    const uint32_t places = pairs ? p.n / 16 * 16 : p.n, slices = (p.k + 63) / 64;
    const uint32_t place_tiles = (places + kPlaces - 1) / kPlaces;
    const TileOrder order(place_tiles, (p.m + kRows - 1) / kRows);
    const uint32_t first = blockIdx.x, step = gridDim.x, tiles = order.tiles();

    if (warp >= Layout::kWarpgroups * 4) {
        if (Layout::kWarpgroups > 1) give_registers<24>();
        if (threadIdx.x == Layout::kWarpgroups * 128) {
            const auto load_b = [&](uint32_t stage, uint2 tile, uint32_t s) {
                const uint32_t to = smem + stage * Layout::kSlice;
                barrier_expect(full(stage), Layout::kSlice);
                if (pairs) {
                    tile_load_4d(to, maps.b, 64 * s, tile.x * kPlaces / 16, full(stage));
                } else {
                    tile_load(to, maps.b, 64 * s, tile.x * kPlaces, full(stage));
                }
            };
            const auto load_a = [&](uint32_t stage, uint2 tile, uint32_t s) {
                tile_load(smem + stage * Layout::kSlice + Layout::kSliceB, maps.a, 64 * s, tile.y * kRows, full(stage));
            };
            // b is no kernel's output, so what the ring holds of it need not wait for the kernel before.
            const uint32_t early = min(uint32_t(kStages), slices);
            for (uint32_t s = 0; s < early; ++s) load_b(s, order.at(first), s);
            pdl_wait();
            for (uint32_t s = 0; s < early; ++s) load_a(s, order.at(first), s);
            uint32_t stage = early % kStages, parity = early == kStages ? 0 : 1;
            for (uint32_t t = first, s = early; t < tiles; t += step, s = 0) {
                const uint2 tile = order.at(t);
                for (; s < slices; ++s) {
                    barrier_wait(empty(stage), parity);
                    load_b(stage, tile, s);
                    load_a(stage, tile, s);
                    if (++stage == kStages) stage = 0, parity ^= 1;
                }
            }
        }
    } else {
        if (Layout::kWarpgroups > 1) take_registers<240>();
        pdl_wait();
        const uint32_t warpgroup = warp / 4, panel = smem + Layout::kPanels + warpgroup * Layout::kPanel;
        const bool leader = threadIdx.x % 128 == 0;
        uint32_t stage = 0, parity = 0, panel_parity = 0;
        const auto release = [&](uint32_t stage) {
            if (lane == 0) barrier_arrive(empty(stage));
        };
        for (uint32_t t = first; t < tiles; t += step) {
            const uint2 tile = order.at(t);
            const uint32_t place = tile.x * kPlaces + warpgroup * 64, row = tile.y * kRows;
            const uint32_t panel_column = pairs ? place / 2 : place;
            float sum[kRows / 2];
            uint32_t before = 0;
#pragma unroll 1
            for (uint32_t s = 0; s < slices; ++s) {
                barrier_wait(full(stage), parity);
                const uint32_t slice = smem + stage * Layout::kSlice;
                const uint64_t b = wgmma_slice(slice + warpgroup * 64 * 128), a = wgmma_slice(slice + Layout::kSliceB);
                wgmma_fence();
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    Wgmma<T, kRows>::run(sum, wgmma_step(b, i), wgmma_step(a, i), s > 0 || i > 0);
                }
                wgmma_commit();
                if (s == 0 && leader) {
                    // The last tile's panel must have left; with AddResidual, this one's old values take its place.
                    tile_stores_read();
                    if (p.epilogue == kAddResidual) {
                        barrier_expect(panel_full(warpgroup), Layout::kPanel);
                        tile_load(panel, maps.c, panel_column, row, panel_full(warpgroup));
                    }
                }
                __syncwarp();
                // One group stays in flight, so the stage that is free now is the one before.
                wgmma_wait<1>();
                if (s > 0) release(before);
                before = stage;
                if (++stage == kStages) stage = 0, parity ^= 1;
            }
            wgmma_wait<0>();
            release(before);

            const uint32_t column = (pairs ? panel_column + warp % 4 * 8 : place + warp % 4 * 16) + lane / 4;
            if (p.c_is_f32) {
                store_f32<T, kRows>(p, sum, row, column);
                continue;
            }
            if (p.epilogue == kAddResidual) {
                barrier_wait(panel_full(warpgroup), panel_parity);
                panel_parity ^= 1;
            } else {
                warpgroup_sync(1 + warpgroup);
            }
            if (pairs) {
                finish_pairs<T, kRows>(p, sum, panel, column);
            } else {
                finish_panel<T, kRows>(p, sum, panel, column);
            }
            copies_see_stores();
            warpgroup_sync(1 + warpgroup);
            if (leader) tile_store(maps.c, panel_column, row, panel);
        }
        if (leader) tile_stores_done();
    }
}

#endif
