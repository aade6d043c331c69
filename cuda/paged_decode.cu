// What:   attention of one token a sequence, the last of seq_len, over its cache; zeros where seq_len is 0.
// Layout: qkv (rows, heads + 2 kv_heads, head_dim), of which only q is read; cache (block, kv_head, 16, head_dim);
//         o (rows, heads, head_dim). Row s is that of sequence s.
// Grid:   x = part of the keys, y = kv_head and 8 of its query heads, z = sequence; four warps. The blocks along x are
//         one cluster: warp w of part r takes the cache blocks 4 r + w, + 4 * parts, ..., and what the warps found is
//         put together in shared memory, first that of a block, then that of the cluster. Without clusters (PTX for
//         compute_80) the blocks of x > 0 end at once and the first does it all.
// Limits: head_dim 32, 64, 96 or 128; buffers 16-byte aligned.
// Order:  depends on seq_len and the cluster size alone, so a row gives the same bits in any batch. They are not the
//         bits of paged_prefill, which adds up in another order.
// Bound:  memory: 8 sequences of 4096 tokens with 32 key heads of 128 read 4.1 TB/s (131 us), of 645 tokens 2.7 TB/s
//         (32 us). One sequence is bound by latency: 4.4 us for 1 token, 7.7 us for 645, 26 us for 4096. With 8 key
//         heads for 32 queries: 6.9 us for 645, 16 us for 4096, 38 us for 8 of 4096. (bf16, launches in a row, H200,
//         driver 580.159, 2026-11-22.)

#include "flash.cuh"
#include "params.cuh"

constexpr int kKvBlock = 16, kWarps = 4, kThreads = kWarps * kWarpSize;
constexpr int kQueries = 8;  // columns of a tensor core product; query heads that share a key head fill them

// Blocks of a multiprocessor for which the compiler must leave registers: as many as fit without spilling.
template <int kHeadDim>
constexpr int kResident = kHeadDim == 128 ? 3 : 4;

// An 8x8 matrix of 2-byte elements, spread over a warp like a quarter of an operand, transposed.
__device__ __forceinline__ uint32_t transposed(uint32_t m) {
    uint32_t r;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(m));
    return r;
}

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t r;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return r;
}
__device__ __forceinline__ uint32_t cluster_size() {
    uint32_t n;
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(n));
    return n;
}
// A barrier of all threads of the cluster; what they wrote before to shared memory can be read after.
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// The value of a shared variable in block `rank` of the cluster.
__device__ __forceinline__ float cluster_load(const float* p, uint32_t rank) {
    uint32_t at;
    float v;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(smem_address(p)), "r"(rank));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(at) : "memory");
    return v;
}
#else
__device__ __forceinline__ uint32_t cluster_rank() { return blockIdx.x; }
__device__ __forceinline__ uint32_t cluster_size() { return 1; }
__device__ __forceinline__ void cluster_sync() { __syncthreads(); }
__device__ __forceinline__ float cluster_load(const float* p, uint32_t) { return *p; }
#endif

// What some of the keys contribute to the queries of a block: the largest score, the sum of the weights relative to
// it, and the values weighted so. Nothing seen is (-infinity, 0, 0).
template <int kHeadDim>
struct Partial {
    float top[kQueries], sum[kQueries], o[kQueries][kHeadDim];
};

// Scales from one maximum to a larger one.
__device__ __forceinline__ float weight(float top, float largest, float scale_log2) {
    return top == -INFINITY ? 0.0f : exp2_approx((top - largest) * scale_log2);
}

// Words of a lane's share of 8 rows of values, 64 bytes a row where a row is a multiple of 128 bytes or 32 else.
template <int kHeadDim>
struct ValueWords {
    using type = uint4;
};
template <>
struct ValueWords<32> {
    using type = uint2;
};
template <>
struct ValueWords<96> {
    using type = uint2;
};

// One warp's walk over its cache blocks. Both products have the keys or values as their first operand, so that 16
// tokens are the rows of the one and the sum of the other, and they go from the cache to registers without a detour:
// the order of the head's elements within a product is free, so a lane takes 16 consecutive bytes for what the layout
// of the instruction calls elements 2t, 2t+1, 2t+8, 2t+9 of two steps.
template <typename T, int kHeadDim>
struct Walk {
    using Words = typename ValueWords<kHeadDim>::type;
    static constexpr int kKeyLoads = kHeadDim / 32;                         // 16 bytes by 4 lanes
    static constexpr int kWords = sizeof(Words) / 4;                        // two elements each
    static constexpr int kValueLoads = kHeadDim / (8 * int(sizeof(Words) / 2));  // by 8 lanes
    static_assert(kValueLoads * 8 * kWords * 2 == kHeadDim, "the loads of a row of values cover it");

    uint4 q[kKeyLoads];
    uint4 k[2][kKeyLoads];                // of the tokens g and g + 8
    Words v[4][kValueLoads];              // of the tokens 2t, 2t + 1, 2t + 8, 2t + 9
    float o[kValueLoads][kWords][4] = {};  // elements 2i, 2i, 2i + 1, 2i + 1 of the queries 2t, 2t + 1, 2t, 2t + 1
    // Of the queries 2t and 2t + 1; the sums are of this lane's keys.
    float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};

    __device__ __forceinline__ static uint32_t g() { return threadIdx.x % kWarpSize / 4; }
    __device__ __forceinline__ static uint32_t t() { return threadIdx.x % 4; }

    // Tokens from `left` on are not there, and what lies in their place may be a NaN: they count as zeros.
    __device__ __forceinline__ void fetch_keys(const T* block, uint32_t left) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t token = g() + half * 8;
            const uint4* row = reinterpret_cast<const uint4*>(block + token * kHeadDim) + t();
#pragma unroll
            for (int i = 0; i < kKeyLoads; ++i) k[half][i] = token < left ? row[i * 4] : uint4{};
        }
    }
    __device__ __forceinline__ void fetch_values(const T* block, uint32_t left) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const uint32_t token = t() * 2 + j % 2 + j / 2 * 8;
            const Words* row = reinterpret_cast<const Words*>(block + token * kHeadDim) + g();
#pragma unroll
            for (int i = 0; i < kValueLoads; ++i) v[j][i] = token < left ? row[i * 8] : Words{};
        }
    }

    // Scores of the tokens g (0, 1) and g + 8 (2, 3) for the queries 2t and 2t + 1.
    __device__ __forceinline__ void score(float (&s)[4], uint32_t left) const {
#pragma unroll
        for (int i = 0; i < kKeyLoads; ++i) {
            mma<T>(s, {k[0][i].x, k[1][i].x, k[0][i].y, k[1][i].y}, q[i].x, q[i].y);
            mma<T>(s, {k[0][i].z, k[1][i].z, k[0][i].w, k[1][i].w}, q[i].z, q[i].w);
        }
        if (g() >= left) s[0] = s[1] = -INFINITY;
        if (g() + 8 >= left) s[2] = s[3] = -INFINITY;
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
            for (int n = 0; n < kValueLoads * kWords; ++n) {
                o[n / kWords][n % kWords][i] *= shrink;
                o[n / kWords][n % kWords][i + 2] *= shrink;
            }
        }
    }

    __device__ __forceinline__ void accumulate(const float (&p)[4]) {
        const uint32_t p0 = transposed(pack2<T>(p[0], p[1])), p1 = transposed(pack2<T>(p[2], p[3]));
#pragma unroll
        for (int i = 0; i < kValueLoads; ++i) {
            const auto word = [&](int j, int n) { return reinterpret_cast<const uint32_t*>(&v[j][i])[n]; };
#pragma unroll
            for (int n = 0; n < kWords; ++n) {
                // Two tokens' elements 2n, then their elements 2n + 1.
                mma<T>(o[i][n],
                       {__byte_perm(word(0, n), word(1, n), 0x5410), __byte_perm(word(0, n), word(1, n), 0x7632),
                        __byte_perm(word(2, n), word(3, n), 0x5410), __byte_perm(word(2, n), word(3, n), 0x7632)},
                       p0, p1);
            }
        }
    }

    __device__ __forceinline__ void store(Partial<kHeadDim>& to, uint32_t queries) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
            for (int offset = 4; offset < kWarpSize; offset *= 2) {
                sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], offset);
            }
            const uint32_t query = t() * 2 + i;
            if (query >= queries) continue;
            if (g() == 0) {
                to.top[query] = top[i];
                to.sum[query] = sum[i];
            }
#pragma unroll
            for (int n = 0; n < kValueLoads * kWords; ++n) {
                const float* pair = o[n / kWords][n % kWords];
                const uint32_t at = ((n / kWords * 8 + g()) * kWords + n % kWords) * 2;
                *reinterpret_cast<float2*>(&to.o[query][at]) = float2{pair[i], pair[i + 2]};
            }
        }
    }
};

// What the warps of a block found, in one.
template <int kHeadDim>
__device__ __forceinline__ void join_warps(const Partial<kHeadDim> (&of_warp)[kWarps], Partial<kHeadDim>& of_block,
                                           uint32_t queries, float scale_log2) {
    for (uint32_t i = threadIdx.x; i < queries * kHeadDim; i += kThreads) {
        const uint32_t query = i / kHeadDim, d = i % kHeadDim;
        float top = -INFINITY, sum = 0.0f, value = 0.0f;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) top = fmaxf(top, of_warp[w].top[query]);
#pragma unroll
        for (int w = 0; w < kWarps; ++w) {
            const float share = weight(of_warp[w].top[query], top, scale_log2);
            sum += share * of_warp[w].sum[query];
            value += share * of_warp[w].o[query][d];
        }
        of_block.o[query][d] = value;
        if (d == 0) {
            of_block.top[query] = top;
            of_block.sum[query] = sum;
        }
    }
}

// What the blocks of a cluster found, in one, and divided by the sum of the weights; each block stores a part of `o`.
template <typename T, int kHeadDim>
__device__ __forceinline__ void join_blocks(T* o, const Partial<kHeadDim>& of_block, uint32_t queries, uint32_t rank,
                                            uint32_t parts, uint32_t seq_len, float scale_log2) {
    for (uint32_t i = rank * kThreads + threadIdx.x; i < queries * kHeadDim; i += parts * kThreads) {
        const uint32_t query = i / kHeadDim, d = i % kHeadDim;
        float top = -INFINITY, sum = 0.0f, value = 0.0f;
        for (uint32_t r = 0; r < parts; ++r) top = fmaxf(top, cluster_load(&of_block.top[query], r));
        for (uint32_t r = 0; r < parts; ++r) {
            const float share = weight(cluster_load(&of_block.top[query], r), top, scale_log2);
            sum += share * cluster_load(&of_block.sum[query], r);
            value += share * cluster_load(&of_block.o[query][d], r);
        }
        o[i] = from_f32<T>(seq_len == 0 ? 0.0f : value / sum);
    }
}

template <typename T, int kHeadDim>
__device__ __forceinline__ void paged_decode(const PagedDecodeParams& p) {
    __shared__ Partial<kHeadDim> of_warp_smem[kWarps], of_block_smem;
    pdl_wait();
    pdl_launch_dependents();
    const uint32_t warp = threadIdx.x / kWarpSize, rank = cluster_rank();
    const uint32_t seq = blockIdx.z, group = p.heads / p.kv_heads, tiles = (group + kQueries - 1) / kQueries;
    const uint32_t kv_head = blockIdx.y / tiles, first_query = blockIdx.y % tiles * kQueries;
    const uint32_t queries = min(group - first_query, uint32_t(kQueries)), head = kv_head * group + first_query;
    const int32_t* block_table = p.block_table + size_t(seq) * p.max_blocks;
    uint32_t block = rank * kWarps + warp;
    // Read beside the length, not after it; it may be no block of the sequence.
    const int32_t first_block = block < p.max_blocks ? block_table[block] : 0;
    const uint32_t seq_len = p.seq_lens[seq], blocks = (seq_len + kKvBlock - 1) / kKvBlock;
    // A short sequence is left to some of the cluster, the rest would have nothing; a barrier does not wait for them.
    const uint32_t parts = min(cluster_size(), max(1u, (blocks + kWarps - 1) / kWarps));
    if (rank >= parts) return;

    const T* q = static_cast<const T*>(p.qkv) + (size_t(seq) * (p.heads + 2 * p.kv_heads) + head) * kHeadDim;
    T* o = static_cast<T*>(p.o) + (size_t(seq) * p.heads + head) * kHeadDim;
    const uint32_t stride = kWarps * parts;
    const auto offset = [&](int32_t cache_block) {
        return (size_t(cache_block) * p.kv_heads + kv_head) * kKvBlock * kHeadDim;
    };

    Walk<T, kHeadDim> walk;
#pragma unroll
    for (int i = 0; i < walk.kKeyLoads; ++i) {
        walk.q[i] = walk.g() < queries ? reinterpret_cast<const uint4*>(q + walk.g() * kHeadDim)[i * 4 + walk.t()]
                                       : uint4{};
    }
    const T *k = static_cast<const T*>(p.k), *v = static_cast<const T*>(p.v);
    if (block < blocks) {
        const size_t at = offset(first_block);
        walk.fetch_keys(k + at, seq_len - block * kKvBlock);
        walk.fetch_values(v + at, seq_len - block * kKvBlock);
    }
    // The registers of the keys, then those of the values, are filled for the next block as soon as they are free.
    for (; block < blocks; block += stride) {
        const uint32_t next = block + stride;
        const size_t at = next < blocks ? offset(block_table[next]) : 0;
        float s[4] = {};
        walk.score(s, seq_len - block * kKvBlock);
        if (next < blocks) walk.fetch_keys(k + at, seq_len - next * kKvBlock);
        walk.soften(s, p.scale_log2);
        walk.accumulate(s);
        if (next < blocks) walk.fetch_values(v + at, seq_len - next * kKvBlock);
    }
    walk.store(of_warp_smem[warp], queries);
    __syncthreads();

    join_warps(of_warp_smem, of_block_smem, queries, p.scale_log2);
    cluster_sync();
    join_blocks(o, of_block_smem, queries, rank, parts, seq_len, p.scale_log2);
    // Nobody leaves while others may still read what it has.
    cluster_sync();
}

#define ENTRY(name, T, kHeadDim)                                               \
    extern "C" __global__ void __launch_bounds__(kThreads, kResident<kHeadDim>) \
        name(const __grid_constant__ PagedDecodeParams p) {                    \
        paged_decode<T, kHeadDim>(p);                                          \
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

// Tried, on the shapes above: blocks of eight warps, of which one fits a multiprocessor at head_dim 128, and the whole
// cluster for any length: 11 us for one sequence of 645 tokens and 56 us for eight. Registers for two such blocks: 52
// bytes of spills, and 10 and 47 us.
