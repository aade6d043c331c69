// The ring kernel of gemv: bound by reading b once.
//
// A block owns consecutive rows of b (with kSwiGlu, gate rows and the up rows that belong to them) and visits them in
// tiles. One thread copies them into a ring that takes nearly all of shared memory: b is constant, so the ring fills while
// the kernel before this one still runs. A copy takes a group of rows, which are neighbours in memory as in a slot of the
// ring: memory serves long runs best, and every copy and every barrier costs the same, whatever its bytes.
// Few at a time, because a deeper queue serves the multiprocessors unevenly and delays every other access.
//
// The other warps share k: to a warp always come the same k, so its part of a stays in registers. The tensor cores do the
// arithmetic. Lane (g, t) takes k 8t .. 8t+7 of a step of 32 from row g of b as one 16-byte load, and from row g of a. The
// load is a whole operand of the instruction, which reads its words 0 and 2 as k of row g and words 1 and 3 as k of row
// g + 8: with words 0 and 2 of a as the other operand the upper half of the result is a sum over those, with words 1
// and 3 the lower half one over these. The other halves are thrown away.

#pragma once

#include "bulk.cuh"
#include "gemv.cuh"

constexpr uint32_t kRingBytes = 216 << 10;
constexpr uint32_t kMaxSlots = 64;      // which short rows do not fill
constexpr uint32_t kWindow = 48 << 10;  // bytes in flight, to the nearest group

// kWarps consume; of a row of b a warp takes at most kSteps steps of 32 k. A tile is kTileRows rows, 8 or, where these
// would leave no room for others to land, 4; a slot holds kGroup of them.
template <uint32_t kWarpsOf, uint32_t kStepsOf, uint32_t kTileRowsOf, uint32_t kGroupOf>
struct Ring {
    static constexpr uint32_t kWarps = kWarpsOf, kSteps = kStepsOf, kTileRows = kTileRowsOf, kGroup = kGroupOf;
    static constexpr uint32_t kThreads = (kWarps + 1) * kWarpSize;
    static constexpr uint32_t kTileSlots = kTileRows / kGroup;
    static constexpr uint32_t kMaxK = kWarps * kSteps * 32;
    // A warp's part of a row is one vector a lane: few enough registers to normalise it there.
    static constexpr bool kNormalises = kSteps * 4 == kWarpSize;
    static_assert(kTileRows / 2 % kGroup == 0, "a group is gate rows or up rows");
    static_assert(kRingBytes / (kGroup * 2 * kMaxK) >= 2 * kTileSlots, "a tile is read while the next one lands");

    unsigned char rows[kRingBytes];
    union {
        // Sums of the warps for element (row of b, row of a). Tiles take turns, so that the next may be written while
        // this one is being read.
        float partial[2][kTileRows * 8][kWarps | 1];
        uint4 staged[kWarps][kWarpSize];
    };
    float squares[kWarps][8];
    // A slot has two barriers: `full` ends a phase when the bytes that were announced have landed, `empty` when every
    // consuming warp has released the slot.
    uint64_t full[kMaxSlots], empty[kMaxSlots];
};
using Ring4k = Ring<16, 8, 8, 4>;    // k <= 4096, with or without norm
using Ring8k = Ring<16, 16, 4, 2>;   // k <= 8192, without
using Ring11k = Ring<15, 24, 4, 1>;  // k <= 11520, without
static_assert(sizeof(Ring4k) == 231424 && sizeof(Ring8k) == 230912 && sizeof(Ring11k) == 230368,
              "src/ops/gemv.rs asks for these sizes");

// Among the consuming warps.
template <typename R>
__device__ __forceinline__ void sync_consumers() {
    asm volatile("bar.sync 1, %0;" : : "n"(R::kWarps * kWarpSize) : "memory");
}

// What a block does: its rows of b as units, which are pairs of gate and up with kSwiGlu, else rows; and its ring.
template <typename R>
struct Share {
    uint32_t first, end, per_tile, slot_bytes, slots;

    __device__ __forceinline__ Share(const GemvParams& p) {
        const bool pairs = p.epilogue == kSwiGlu;
        const uint32_t units = pairs ? p.n / 2 : p.n, each = units / gridDim.x, more = units % gridDim.x;
        first = each * blockIdx.x + min(blockIdx.x, more);
        end = first + each + (blockIdx.x < more);
        per_tile = pairs ? R::kTileRows / 2 : R::kTileRows;
        slot_bytes = R::kGroup * 2 * p.k;
        slots = min(kRingBytes / slot_bytes, kMaxSlots);
    }
};

// A place in the ring: the slot, and the parity of its use.
struct Place {
    uint32_t slot, parity;

    __device__ __forceinline__ Place after(uint32_t n, uint32_t slots) const {
        return slot + n < slots ? Place{slot + n, parity} : Place{slot + n - slots, parity ^ 1};
    }
};

// The producing thread.
template <typename T, typename R>
__device__ __forceinline__ void fill_ring(const GemvParams& p, const Share<R>& share, R& smem) {
    const uint64_t policy = evict_first_policy();
    const uint32_t full = smem_address(smem.full), empty = smem_address(smem.empty), slots = smem_address(smem.rows);
    // Not more than the ring: the parity of a slot two laps behind says nothing.
    const uint32_t window = min((kWindow + share.slot_bytes / 2) / share.slot_bytes, share.slots);
    Place next{0, 1}, oldest{0, 0};
    uint32_t n = 0;
    for (uint32_t unit = share.first; unit < share.end; unit += share.per_tile) {
        const uint32_t units = min(share.per_tile, share.end - unit);
        for (uint32_t r = 0; r < R::kTileRows; r += R::kGroup, ++n) {
            const bool up = r >= share.per_tile;
            const uint32_t in_tile = up ? r - share.per_tile : r;
            // A group that a partial tile lacks is announced as no bytes.
            const uint32_t rows = in_tile < units ? min(R::kGroup, units - in_tile) : 0, bytes = rows * 2 * p.k;
            barrier_wait(empty + 8 * next.slot, next.parity);
            if (n >= window) {
                barrier_wait(full + 8 * oldest.slot, oldest.parity);
                oldest = oldest.after(1, share.slots);
            }
            const uint32_t barrier = full + 8 * next.slot;
            const T* src = static_cast<const T*>(p.b) + size_t((up ? p.n / 2 : 0) + unit + in_tile) * p.k;
            barrier_expect(barrier, bytes);
            if (bytes > 0) bulk_copy(slots + next.slot * share.slot_bytes, src, bytes, barrier, policy);
            next = next.after(1, share.slots);
        }
    }
}

// What a consuming warp multiplies with: its part of a, normalised. Lane (g, t): k 8t .. 8t+7 of every step of row g,
// zeros past m and k.
template <typename T, typename R>
struct PartOfA {
    uint4 x[R::kSteps];

    const GemvParams& p;
    const uint32_t warp, lane;
    uint4 weight;  // of the normalisation, for this lane's vector of every row

    // Where eight elements of the warp's part of a row begin: the t-th of step s. There are none from p.k on.
    __device__ __forceinline__ uint32_t k_of(uint32_t s, uint32_t t) const {
        return (s * R::kWarps + warp) * 32 + 8 * t;
    }
    // This lane's, when the lanes of a warp share a row instead.
    __device__ __forceinline__ uint32_t k_of_lane() const { return k_of(lane / 4, lane % 4); }

    // What may be read before the kernel before this one has ended.
    __device__ __forceinline__ PartOfA(const GemvParams& p, uint32_t warp, uint32_t lane)
        : p(p), warp(warp), lane(lane), weight(make_uint4(0, 0, 0, 0)) {
        if (R::kNormalises && p.norm && k_of_lane() < p.k) {
            weight = load_before_wait(static_cast<const T*>(p.norm) + k_of_lane());
        }
    }

    __device__ __forceinline__ void load(R& smem) {
        if (R::kNormalises && p.norm) {
            load_normalised(smem);
        } else {
            load_as_is();
        }
    }

    __device__ __forceinline__ void load_as_is() {
        const uint32_t g = lane / 4, t = lane % 4;
        const T* a = static_cast<const T*>(p.a) + size_t(g) * p.k;
#pragma unroll
        for (uint32_t s = 0; s < R::kSteps; ++s) {
            const uint32_t k = k_of(s, t);
            x[s] = make_uint4(0, 0, 0, 0);
            if (g < p.m && k < p.k) x[s] = __ldcg(reinterpret_cast<const uint4*>(a + k));
        }
    }

    // The lanes share a row, and then exchange it by way of shared memory.
    __device__ __forceinline__ void load_normalised(R& smem) {
        const uint32_t g = lane / 4, t = lane % 4, k = k_of_lane();
        const T* a = static_cast<const T*>(p.a);
        uint4 rows[8];
#pragma unroll
        for (uint32_t r = 0; r < 8; ++r) {
            rows[r] = make_uint4(0, 0, 0, 0);
            if (r < p.m && k < p.k) rows[r] = __ldcg(reinterpret_cast<const uint4*>(a + size_t(r) * p.k + k));
        }
#pragma unroll
        for (uint32_t r = 0; r < 8; ++r) {
            if (r >= p.m) break;
            const float squares = warp_sum(sum_of_squares<T>(rows[r]));
            if (lane == 0) smem.squares[warp][r] = squares;
        }
        sync_consumers<R>();
        float squares = 0.0f;
#pragma unroll
        for (uint32_t w = 0; w < R::kWarps; ++w) squares += smem.squares[w][g];
        const float scale = rsqrtf(squares / p.k + p.eps);
#pragma unroll
        for (uint32_t r = 0; r < 8; ++r) {
            if (r > 0 && r >= p.m) break;
            // Forget the f32 values that went into the squares: they would take more registers than there are.
            asm volatile("" : "+r"(rows[r].x), "+r"(rows[r].y), "+r"(rows[r].z), "+r"(rows[r].w));
            smem.staged[warp][lane] = normalised<T>(rows[r], weight, __shfl_sync(0xffffffffu, scale, 4 * r));
            __syncwarp();
#pragma unroll
            for (uint32_t s = 0; s < R::kSteps; ++s) {
                if (r == 0) x[s] = make_uint4(0, 0, 0, 0);
                if (g == r) x[s] = smem.staged[warp][4 * s + t];
            }
            __syncwarp();
        }
        // What was staged lies where the partial sums will.
        sync_consumers<R>();
    }
};

template <typename T, typename R>
__device__ __forceinline__ void ring(const GemvParams& p) {
    extern __shared__ __align__(128) unsigned char dynamic_smem[];
    R& smem = *reinterpret_cast<R*>(dynamic_smem);
    const uint32_t lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize, g = lane / 4, t = lane % 4;
    const Share<R> share(p);
    pdl_launch_dependents();
    if (warp == R::kWarps) {
        if (lane == 0) {
            for (uint32_t i = 0; i < share.slots; ++i) {
                barrier_init(smem_address(&smem.full[i]), 1);
                barrier_init(smem_address(&smem.empty[i]), R::kWarps);
            }
            barrier_init_fence();
        }
        __syncwarp();
        // The others may use the barriers from here on; this warp does not wait for them.
        asm volatile("bar.arrive 2, %0;" : : "n"(R::kThreads) : "memory");
        if (lane == 0) fill_ring<T, R>(p, share, smem);
        return;
    }
    PartOfA<T, R> a(p, warp, lane);
    asm volatile("bar.sync 2, %0;" : : "n"(R::kThreads) : "memory");
    pdl_wait();
    a.load(smem);

    // The element that this thread finishes of every tile: (row, i) of b and a.
    const uint32_t row = threadIdx.x / 8, i = threadIdx.x % 8, cols = p.epilogue == kSwiGlu ? p.n / 2 : p.n;
    const auto finishes = [&](uint32_t unit) { return row < share.per_tile && unit + row < share.end && i < p.m; };
    const auto load_residual = [&](uint32_t unit) {
        return p.epilogue == kAddResidual && finishes(unit) ? load_c<T>(p, size_t(i) * cols + unit + row) : 0.0f;
    };
    const uint32_t full = smem_address(smem.full), empty = smem_address(smem.empty);
    // This lane's part of a tile: row g, where tiles have one.
    const uint32_t slot = g / R::kGroup;
    const uint32_t src = smem_address(smem.rows) + g % R::kGroup * 2 * p.k + 64 * warp + 16 * t;
    Place next{0, 0};
    uint32_t turn = 0;
    float residual = load_residual(share.first);
    for (uint32_t unit = share.first; unit < share.end; unit += share.per_tile, turn ^= 1) {
        const float residual_of_next = load_residual(unit + share.per_tile);
        const Place polled = next.after(lane % R::kTileSlots, share.slots);
        if (lane < R::kTileSlots) barrier_wait(full + 8 * polled.slot, polled.parity);
        __syncwarp();
        // A row that a partial tile lacks is whatever the slot held: its sums are never read.
        const uint32_t row_of_b = src + next.after(slot, share.slots).slot * share.slot_bytes;
        float even[4] = {}, odd[4] = {};
#pragma unroll
        for (uint32_t s = 0; s < R::kSteps; ++s) {
            if ((s * R::kWarps + warp) * 32 < p.k) {
                uint4 b = make_uint4(0, 0, 0, 0);
                if (g < R::kTileRows) b = load_shared(row_of_b + s * R::kWarps * 64);
                mma<T>(even, b.x, b.y, b.z, b.w, a.x[s].x, a.x[s].z);
                mma<T>(odd, b.x, b.y, b.z, b.w, a.x[s].y, a.x[s].w);
            }
        }
        fence_reads_before_copies();
        __syncwarp();
        if (lane < R::kTileSlots) barrier_arrive(empty + 8 * polled.slot);
        next = next.after(R::kTileSlots, share.slots);
        if (g < R::kTileRows) {
            smem.partial[turn][g * 8 + 2 * t][warp] = even[0] + odd[2];
            smem.partial[turn][g * 8 + 2 * t + 1][warp] = even[1] + odd[3];
        }
        sync_consumers<R>();
        if (finishes(unit)) {
            const auto total = [&](uint32_t row) {
                const float* parts = smem.partial[turn][row * 8 + i];
                float sum[4] = {};
#pragma unroll
                for (uint32_t w = 0; w < R::kWarps; ++w) sum[w % 4] += parts[w];
                return (sum[0] + sum[1]) + (sum[2] + sum[3]);
            };
            const float up = p.epilogue == kSwiGlu ? total(row + R::kTileRows / 2) : 0.0f;
            store_c<T>(p, size_t(i) * cols + unit + row, total(row), up, residual);
        }
        residual = residual_of_next;
    }
}
