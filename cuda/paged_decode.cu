// What:   attention of one new token a sequence. Its q and k are rotated, its k and v written to their slot of the paged
//         cache, and it attends to the seq_len tokens of its sequence, of which it is the last. Zeros, and no write,
//         where the slot is -1.
// Layout: qkv (rows, heads + 2 kv_heads, head_dim), left as it is; cache (block, kv_head, 16, head_dim);
//         o (rows, heads, head_dim). Row s is that of sequence s.
// Grid:   x = 8 query heads of a key head, and part of the keys, y = key head, z = sequence; four warps. The blocks with
//         the parts of the same keys are a cluster: warp w of part r takes the cache blocks kCluster * w + r,
//         + 4 * kCluster, ... What a warp found it sends to the shared memory of the others, where each block puts a part
//         of the head together. Without clusters (PTX for compute_80) one block does it all.
// Limits: head_dim 32, 64, 96 or 128; buffers 16-byte aligned.
// Order:  depends on seq_len and the cluster size alone, so a row gives the same bits in any batch. They are not the
//         bits of paged_prefill, which adds up in another order.
// Start:  keys and values of earlier steps are on their way before the preceding kernel has ended, a warp's first cache
//         blocks each to a stage of shared memory; how many stages there are is the launch's choice and changes no bit.
// Bound:  memory, for many sequences, and latency for few. 32 heads of 128, bf16, in a graph of programmatic dependent
//         launches over 8 layers of cache: 1 x 645 tokens 5.5 us, 8 x 645 23.0 (3.7 TB/s), 64 x 645 154 (4.4 TB/s),
//         1 x 4096 23.9, 8 x 4096 130; 1 x 645 between two GEMVs adds 4.8 (H200, driver 580.159, 2026-11-22).

#include "cluster.cuh"
#include "flash.cuh"
#include "params.cuh"
#include "rope.cuh"

constexpr uint32_t kKvBlock = 16;  // tokens of a cache block: KV_BLOCK in src/ops/attention.rs
constexpr uint32_t kWarps = 4, kThreads = kWarps * kWarpSize;
constexpr uint32_t kQueries = 8;   // columns of a tensor core product; query heads that share a key head fill them
constexpr int kResident = 5;       // blocks of a multiprocessor for which the compiler must leave registers
#if __CUDA_ARCH__ >= 900
constexpr uint32_t kCluster = 4;  // CLUSTER in src/ops/paged_decode.rs
#else
constexpr uint32_t kCluster = 1;
#endif
constexpr uint32_t kSources = kCluster * kWarps;  // warps that divide the blocks of a sequence among them

// An 8x8 matrix of 2-byte elements, spread over a warp like a quarter of an operand, transposed.
__device__ __forceinline__ uint32_t transposed(uint32_t m) {
    uint32_t r;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(m));
    return r;
}

// What a block answers: the heads `head` to `head + queries - 1` of one sequence, which share a key head.
struct Task {
    uint32_t seq, kv_head, heads, head, queries;
    bool writes;  // of the blocks with this key head and this part of the keys, the one that writes k and v

    __device__ __forceinline__ Task(const PagedDecodeParams& p, uint32_t first_query) {
        seq = blockIdx.z, kv_head = blockIdx.y, heads = p.group * p.kv_heads, head = kv_head * p.group + first_query;
        queries = min(p.group - first_query, kQueries), writes = first_query == 0;
    }
};

// Shared memory of a block: the stages of each warp, what the warps of the cluster found for this block's part of the
// head (the largest score, and the sum of the weights relative to that; the values weighted so), the new token, and the
// mailbox. Blocks of a cluster have the same queries and so the same layout. Others write to what the warps found at any
// time after cluster_wait, so that it shares its place with nothing.
template <typename T, int kHeadDim>
struct Shared {
    static constexpr uint32_t kPart = kHeadDim / kCluster, kTile = kKvBlock * kHeadDim * sizeof(T);
    uint32_t tiles;       // (kWarps, stages, keys then values, 16, kHeadDim), swizzled
    uint32_t stages;      // as many as there is room for
    float* o;             // (kSources, queries, kPart)
    float2* top_and_sum;  // (kSources, queries)
    T* q;                 // (queries, kHeadDim)
    T *k, *v;             // (kHeadDim)
    Mailbox* box;         // of what the warps found

    __device__ __forceinline__ Shared(float4* smem, uint32_t queries) {
        const uint32_t others =
            bytes_found(kSources, queries) + (queries + 2) * kHeadDim * sizeof(T) + sizeof(Mailbox);
        tiles = smem_address(smem);
        stages = (dynamic_smem_bytes() - others) / (kWarps * 2 * kTile);
        o = reinterpret_cast<float*>(smem) + kWarps * stages * 2 * kTile / sizeof(float);
        top_and_sum = reinterpret_cast<float2*>(o + kSources * queries * kPart);
        q = reinterpret_cast<T*>(top_and_sum + kSources * queries);
        k = q + queries * kHeadDim;
        v = k + kHeadDim;
        box = reinterpret_cast<Mailbox*>(v + kHeadDim);
    }

    // Of this warp.
    __device__ __forceinline__ uint32_t stage(uint32_t i) const {
        return tiles + (threadIdx.x / kWarpSize * stages + i) * 2 * kTile;
    }
    __device__ __forceinline__ void advance(uint32_t& i) const { i = i + 1 == stages ? 0 : i + 1; }

    __device__ __forceinline__ static uint32_t bytes_found(uint32_t sources, uint32_t queries) {
        return sources * queries * (kPart * sizeof(float) + sizeof(float2));
    }
};

// One warp's walk over its cache blocks. Both products have the keys or values as their first operand, so that 16
// tokens are the rows of the one and the sum of the other. With g = lane / 4 and t = lane % 4:
template <typename T, int kHeadDim>
struct Walk {
    static constexpr uint32_t kChunks = kHeadDim / 8, kTile = Shared<T, kHeadDim>::kTile;

    uint32_t q[kHeadDim / 16][2];      // of query g, elements 2t, 2t + 1 and 2t + 8, 2t + 9 of each 16
    float o[kHeadDim / 16][4] = {};    // elements g, g, g + 8, g + 8 of each 16, of the queries 2t, 2t + 1, 2t, 2t + 1
    // Of the queries 2t and 2t + 1; the sums are of this lane's keys.
    float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};

    // A block of keys and one of values to a stage. Tokens from `left` on are not there, and what lies in their place may
    // be a NaN: they become zeros.
    __device__ __forceinline__ static void fetch(uint32_t stage, const T* k, const T* v, uint32_t left) {
        const uint32_t lane = threadIdx.x % kWarpSize;
#pragma unroll
        for (uint32_t i = lane; i < kKvBlock * kChunks; i += kWarpSize) {
            const uint32_t at = swizzled<kHeadDim>(i / kChunks, i % kChunks);
            cp_async16(stage + at, k + i * 8, i / kChunks < left);
            cp_async16(stage + kTile + at, v + i * 8, i / kChunks < left);
        }
    }

    // The new token becomes row `row` of a stage.
    __device__ __forceinline__ static void put(uint32_t stage, const Shared<T, kHeadDim>& smem, uint32_t row) {
        const uint32_t lane = threadIdx.x % kWarpSize, chunk = lane % 16;
        if (chunk < kChunks) {
            const uint4 v = reinterpret_cast<const uint4*>(lane < 16 ? smem.k : smem.v)[chunk];
            const uint32_t at = stage + (lane < 16 ? 0 : kTile) + swizzled<kHeadDim>(row, chunk);
            asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                         : "memory");
        }
        __syncwarp();
    }

    __device__ __forceinline__ void take_queries(const Shared<T, kHeadDim>& smem, uint32_t queries) {
        const uint32_t lane = threadIdx.x % kWarpSize, query = min(lane % 8, queries - 1);
#pragma unroll
        for (int i = 0; i < kHeadDim / 16; i += 2) {
            uint32_t r[4];
            ldmatrix_x4(r, smem_address(smem.q + query * kHeadDim + i * 16 + lane / 8 * 8));
            q[i][0] = r[0], q[i][1] = r[1], q[i + 1][0] = r[2], q[i + 1][1] = r[3];
        }
    }

    // Scores of the tokens g (0, 1) and g + 8 (2, 3) for the queries 2t and 2t + 1; `left` tokens are there.
    __device__ __forceinline__ void score(float (&s)[4], uint32_t stage, uint32_t left) const {
        const uint32_t lane = threadIdx.x % kWarpSize;
        float even[4] = {}, odd[4] = {};
#pragma unroll
        for (int i = 0; i < kHeadDim / 16; ++i) {
            uint32_t k[4];
            ldmatrix_x4(k, stage + swizzled<kHeadDim>(lane % 16, i * 2 + lane / 16));
            mma<T>(i % 2 ? odd : even, k, q[i][0], q[i][1]);
        }
#pragma unroll
        for (int c = 0; c < 4; ++c) s[c] = lane / 4 + c / 2 * 8 < left ? even[c] + odd[c] : -INFINITY;
    }

    // Scores to weights relative to the new maximum; what was summed so far is scaled to it.
    __device__ __forceinline__ void soften(float (&s)[4], float scale_log2) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float high = fmaxf(top[i], fmaxf(s[i], s[i + 2]));
#pragma unroll
            for (int offset = 4; offset < kWarpSize; offset *= 2) {
                high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, offset));
            }
            const float shrink = exp2_approx((top[i] - high) * scale_log2), shift = high * scale_log2;
            s[i] = exp2_approx(fmaf(s[i], scale_log2, -shift));
            s[i + 2] = exp2_approx(fmaf(s[i + 2], scale_log2, -shift));
            top[i] = high;
            sum[i] = fmaf(sum[i], shrink, s[i] + s[i + 2]);
#pragma unroll
            for (int n = 0; n < kHeadDim / 16; ++n) {
                o[n][i] *= shrink;
                o[n][i + 2] *= shrink;
            }
        }
    }

    __device__ __forceinline__ void accumulate(const float (&p)[4], uint32_t stage) {
        const uint32_t lane = threadIdx.x % kWarpSize;
        const uint32_t p0 = transposed(pack2<T>(p[0], p[1])), p1 = transposed(pack2<T>(p[2], p[3]));
#pragma unroll
        for (int n = 0; n < kHeadDim / 16; ++n) {
            uint32_t v[4];
            const uint32_t token = lane % 8 + lane / 16 * 8, chunk = n * 2 + lane / 8 % 2;
            ldmatrix_x4_transposed(v, stage + kTile + swizzled<kHeadDim>(token, chunk));
            mma<T>(o[n], v, p0, p1);
        }
    }

    // To the blocks of the cluster, each its part of the head, as what warp `source` found.
    __device__ __forceinline__ void send_found(const Shared<T, kHeadDim>& smem, uint32_t source, uint32_t queries) {
        constexpr uint32_t kPart = Shared<T, kHeadDim>::kPart;
        static_assert(kPart % 8 == 0, "eight neighbouring elements of a head go to the same block");
        const uint32_t g = threadIdx.x % kWarpSize / 4;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
            for (int offset = 4; offset < kWarpSize; offset *= 2) {
                sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], offset);
            }
            const uint32_t query = threadIdx.x % 4 * 2 + i, row = source * queries + query;
            if (query >= queries) continue;
            if (g < kCluster) send(&smem.top_and_sum[row], float2{top[i], sum[i]}, smem.box, g);
#pragma unroll
            for (int n = 0; n < kHeadDim / 8; ++n) {
                float* to = &smem.o[row * kPart + n * 8 % kPart + g];
                send(to, o[n / 2][n % 2 * 2 + i], smem.box, n * 8 / kPart);
            }
        }
    }
};

// Until the oldest of a warp's `stages` groups of copies has arrived, for all lanes to read.
__device__ __forceinline__ void wait_for_oldest(uint32_t stages) {
    switch (stages) {
        case 1: cp_async_wait<0>(); break;
        case 2: cp_async_wait<1>(); break;
        case 3: cp_async_wait<2>(); break;
        default: cp_async_wait<3>(); break;  // kMaxStages
    }
    __syncwarp();
}

// A thread's share of the new token: eight pairs of a row of q or of k, or eight elements of v.
template <typename T, int kHeadDim>
struct NewToken {
    static constexpr uint32_t kPieces = kHeadDim / 16;
    static_assert((kQueries + 1) * kPieces + kHeadDim / 8 <= kThreads, "every thread has one piece");
    Pack<float, 8> cosines, sines;

    __device__ __forceinline__ static uint32_t piece() { return threadIdx.x % kPieces * 8; }

    __device__ __forceinline__ void fetch_angles(const float* angles) {
        cosines = pack<float, 8>(angles + piece());
        sines = pack<float, 8>(angles + kHeadDim / 2 + piece());
    }

    // q to shared memory; for the block whose part of the keys it belongs to (`owner`), k and v too, and to the cache.
    // One path for all threads: no load waits for another's.
    __device__ __forceinline__ void take(const PagedDecodeParams& p, const Task& task, uint32_t slot, bool owner,
                                         const Shared<T, kHeadDim>& smem) const {
        const uint32_t query = threadIdx.x / kPieces, chunk = threadIdx.x - (task.queries + 1) * kPieces;
        const bool is_q = query < task.queries, is_k = query == task.queries, is_v = chunk < kHeadDim / 8;
        if (!is_q && !(owner && (is_k || is_v))) return;
        const uint32_t at = is_v ? chunk * 8 : piece(), half = is_v ? 0 : kHeadDim / 2;

        const T* row = static_cast<const T*>(p.qkv) + size_t(task.seq) * (task.heads + 2 * p.kv_heads) * kHeadDim;
        const uint32_t kv_head = task.heads + task.kv_head + (is_v ? p.kv_heads : 0);
        const T* from = row + (is_q ? task.head + query : kv_head) * kHeadDim + at;
        Pack<T, 8> low = pack<T, 8>(from), high = pack<T, 8>(from + half);
        if (!is_v) rotate(low, high, cosines, sines);

        T* to = (is_q ? smem.q + query * kHeadDim : is_k ? smem.k : smem.v) + at;
        pack<T, 8>(to) = low, pack<T, 8>(to + half) = high;
        if (is_q || !task.writes) return;
        const size_t place = (size_t(slot / kKvBlock) * p.kv_heads + task.kv_head) * kKvBlock + slot % kKvBlock;
        T* cached = static_cast<T*>(is_k ? p.k : p.v) + place * kHeadDim + at;
        pack<T, 8>(cached) = low, pack<T, 8>(cached + half) = high;
    }
};

// This block's part of the head, from what all warps found of it, divided by the sum of the weights; a warp a query.
template <typename T, int kHeadDim>
__device__ __forceinline__ void join(T* o, const Shared<T, kHeadDim>& smem, uint32_t sources, uint32_t queries,
                                     float scale_log2) {
    constexpr uint32_t kPart = Shared<T, kHeadDim>::kPart;
    static_assert(kSources <= kWarpSize, "a lane a source");
    const uint32_t lane = threadIdx.x % kWarpSize;
    for (uint32_t query = threadIdx.x / kWarpSize; query < queries; query += kWarps) {
        const float2 found = lane < sources ? smem.top_and_sum[lane * queries + query] : float2{-INFINITY, 0.0f};
        float top = found.x;
#pragma unroll
        for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, offset));
        }
        float share = exp2_approx((found.x - top) * scale_log2);
        share /= warp_sum(share * found.y);
#pragma unroll
        for (uint32_t first = 0; first < kPart; first += kWarpSize) {
            const uint32_t d = first + lane;
            float value = 0.0f;
#pragma unroll 8
            for (uint32_t s = 0; s < sources; ++s) {
                const float of_source = __shfl_sync(0xffffffffu, share, s);
                if (d < kPart) value = fmaf(of_source, smem.o[(s * queries + query) * kPart + d], value);
            }
            if (d < kPart) o[query * kHeadDim + d] = from_f32<T>(value);
        }
    }
}

template <typename T, int kHeadDim>
__device__ __forceinline__ void paged_decode(const PagedDecodeParams& p) {
    extern __shared__ float4 all_smem[];
    pdl_launch_dependents();
    const uint32_t rank = cluster_rank(), first_query = blockIdx.x / kCluster * kQueries;
    // PTX for compute_80 on a device with clusters is launched with blocks for them.
    if (first_query >= p.group) return;

    const Task task(p, first_query);
    const Shared<T, kHeadDim> smem(all_smem, task.queries);
    const uint32_t source = threadIdx.x / kWarpSize * kCluster + rank, lane = threadIdx.x % kWarpSize;
    // A lane each for the blocks of the warp's next 32 steps, read beside the length, not after it; they may be no blocks
    // of the sequence. What the host wrote before the plan may be read before the wait.
    const int32_t* block_table = p.block_table + size_t(task.seq) * p.max_blocks;
    const auto entry = [&](uint32_t block) { return block < p.max_blocks ? block_table[block] : 0; };
    int32_t entries = entry(source + lane * kSources);
    const int32_t slot = p.slot_mapping[task.seq], position = p.positions[task.seq];
    const uint32_t seq_len = p.seq_lens[task.seq];
    T* o = static_cast<T*>(p.o) + (size_t(task.seq) * task.heads + task.head) * kHeadDim + rank * smem.kPart;
    if (slot < 0 || seq_len == 0) {
        pdl_wait();
        for (uint32_t i = threadIdx.x; i < task.queries * smem.kPart; i += kThreads) {
            o[i / smem.kPart * kHeadDim + i % smem.kPart] = from_f32<T>(0.0f);
        }
        return;
    }
    const uint32_t old = seq_len - 1, last = old / kKvBlock;  // tokens before the new one; the block of that
    const uint32_t sources = min(last + 1, kSources);
    uint32_t filled = 0, taken = 0;  // stages, in turn
    // One step of the walk, all lanes together, and one group of copies: block `source + step * kSources`.
    const auto fetch = [&](uint32_t step) {
        const uint32_t block = source + step * kSources;
        if (step > 0 && step % kWarpSize == 0) entries = entry(block + lane * kSources);
        const size_t cache_block = __shfl_sync(0xffffffffu, entries, step % kWarpSize);
        if (block <= last) {
            const size_t at = (cache_block * p.kv_heads + task.kv_head) * kKvBlock * kHeadDim;
            Walk<T, kHeadDim>::fetch(smem.stage(filled), static_cast<const T*>(p.k) + at, static_cast<const T*>(p.v) + at,
                                     old - block * kKvBlock);
        }
        cp_async_commit();
        smem.advance(filled);
    };
    for (uint32_t step = 0; step < smem.stages; ++step) fetch(step);
    NewToken<T, kHeadDim> token;
    token.fetch_angles(p.table + size_t(position) * kHeadDim);
    // What `sources` warps will send to this block: all that anyone ever writes to it, so that it may end after it.
    if (threadIdx.x < kWarpSize) make_mailbox(smem.box, smem.bytes_found(sources, task.queries));
    cluster_arrive();

    pdl_wait();
    token.take(p, task, slot, last % kSources % kCluster == rank, smem);
    __syncthreads();

    Walk<T, kHeadDim> walk;
    walk.take_queries(smem, task.queries);
    for (uint32_t step = 0, block = source; block <= last; ++step, block += kSources) {
        const uint32_t stage = smem.stage(taken);
        wait_for_oldest(smem.stages);
        if (block == last) walk.put(stage, smem, old % kKvBlock);
        float s[4];
        walk.score(s, stage, seq_len - block * kKvBlock);
        walk.soften(s, p.scale_log2);
        walk.accumulate(s, stage);
        __syncwarp();
        fetch(step + smem.stages);
        smem.advance(taken);
    }
    cluster_wait();
    if (source <= last) walk.send_found(smem, source, task.queries);
    wait_for(smem.box);
    join(o, smem, sources, task.queries, p.scale_log2);
}

#define ENTRY(name, T, kHeadDim)                                      \
    extern "C" __global__ void __launch_bounds__(kThreads, kResident) \
        name(const __grid_constant__ PagedDecodeParams p) {           \
        paged_decode<T, kHeadDim>(p);                                 \
    }
ENTRY(paged_decode_f16_d32, __half, 32)
ENTRY(paged_decode_f16_d64, __half, 64)
ENTRY(paged_decode_f16_d96, __half, 96)
ENTRY(paged_decode_f16_d128, __half, 128)
ENTRY(paged_decode_bf16_d32, __nv_bfloat16, 32)
ENTRY(paged_decode_bf16_d64, __nv_bfloat16, 64)
ENTRY(paged_decode_bf16_d96, __nv_bfloat16, 96)
ENTRY(paged_decode_bf16_d128, __nv_bfloat16, 128)
EXPORT_PARAMS(paged_decode, PagedDecodeParams)

// Tried, for one sequence of 645 tokens (32 key heads of 128) between two kernels that stream weights, against 6.3 us:
// keys and values straight to registers, which leaves so little shared memory that the block runs beside a GEMV with 216
// KB of it: 7.9 us, and 8.8 us with the later blocks prefetched to the L2 cache. Clusters of 8: 5.8 us, but 39 us instead
// of 27 for 8 sequences. Blocks of 6 warps: 5.7 us, but 187 instead of 164 us for 64. Blocks that stay and fetch the next
// sequence while they put one together: 7.5 us and 38 us for 8, for want of registers.
