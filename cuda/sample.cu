// What:   logits -> token. The row's list (biases, forbidden tokens, only these tokens), penalties, then the most likely
//         token at temperature 0 (lowest id among equals), else temperature, top-k, top-p, min-p and a draw by the
//         Gumbel-max trick. Reports log-probabilities of the raw logits for the token, or for a given one, and up to 20
//         alternatives, hashes the raw logits, and counts the token.
// Layout: logits (rows, vocab) f32; params (rows); biases (any), a row's entries in ascending order of tokens, each once;
//         counts (sequences, vocab); token (rows); logprobs (rows, 1 + 20); top (rows, 20); hash (rows).
// Grid:   x = row; one block of 1024 threads a row. With 4 * vocab bytes of dynamic shared memory, vocab rounded up to a
//         multiple of 4, it keeps the scores there; without any it computes them again in every pass.
// Limits: 1 <= vocab < 2^24 (counts are added up in f32). Two rows of a launch never share a row of counts.
// Lists:  every group of four tokens finds its place in the row's list by bisection, in the pass that fills the cache, or
//         in every pass without one. Rows without a list run code that knows of none.
// Exact:  biases, penalties, temperature, top-k (ties kept) and the random words are the bits of the reference. A sum may cut
//         top-p elsewhere only if the cumulative probability at the cut is within its rounding of 1 - p: at most 60
//         roundings here, one for every dropped token in the reference. expf and logf are within 2 units in the last
//         place, so min-p may differ for a probability that close to its limit, and a draw where the two largest
//         perturbed scores are that close. A row gives the same bits in any batch.
// Bound:  instructions of one multiprocessor a row. With 32064 tokens a row takes 11 us greedy, 39 us with 20
//         alternatives, and from a normal distribution, which cannot be pruned as a model's can, 34 us at temperature
//         1, 46 us with top-k 50, 83 us with top-p 0.9, 125 us with everything; 256 rows take 23, 90, 81, 106, 229 and
//         315 us (H200, driver 580.159, 2026-11-22), all without the hash, which adds 4.3 us; 16 biases add 3.6 us.
// Tried:  one token a load, and every pass of a search over all tokens, not only until 1024 are left: 21 us greedy,
//         top-p 141 us.

#include "common.cuh"
#include "params.cuh"
#include "philox.cuh"

constexpr uint32_t kThreads = 1024, kMaxTop = 20;
constexpr float kGreedyBelow = 1e-5f;
constexpr int32_t kInPrompt = 1 << 30;
constexpr float kNegInf = -__builtin_huge_valf();
constexpr float kMinNoise = -2.9f, kMaxNoise = 16.7f;  // of u in 2^-24 .. 1 - 2^-24: -2.81 and 16.64

// Order-preserving image of a float: -inf < ... < -0 < +0 < ... < inf.
__device__ __forceinline__ uint32_t key_of(float v) {
    const uint32_t bits = __float_as_uint(v);
    return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}
__device__ __forceinline__ float from_key(uint32_t key) {
    return __uint_as_float(key >> 31 ? key ^ 0x80000000u : ~key);
}

// A value and its token, so that the largest is the largest value with the lowest id.
__device__ __forceinline__ uint64_t candidate(uint32_t key, uint32_t id) { return uint64_t(key) << 32 | uint32_t(~id); }
__device__ __forceinline__ uint32_t id_of(uint64_t candidate) { return ~uint32_t(candidate); }
__device__ __forceinline__ float value_of(uint64_t candidate) { return from_key(uint32_t(candidate >> 32)); }
// Both zeros are one value where scores are compared as numbers.
__device__ __forceinline__ uint32_t number_key(float v) { return key_of(v + 0.0f); }

__device__ __forceinline__ uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

// Largest over the block, in every thread. Safe to call again at once.
__device__ __forceinline__ uint64_t block_max(uint64_t v) {
    __shared__ uint64_t partial_smem[kMaxWarps];
    const int lane = threadIdx.x % kWarpSize;
#pragma unroll
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) v = larger(v, __shfl_xor_sync(0xffffffffu, v, offset));
    if (lane == 0) partial_smem[threadIdx.x / kWarpSize] = v;
    __syncthreads();
    v = partial_smem[lane];
#pragma unroll
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) v = larger(v, __shfl_xor_sync(0xffffffffu, v, offset));
    __syncthreads();
    return v;
}

// Four sums over the block, in every thread. Safe to call again at once.
__device__ __forceinline__ float4 block_sum4(float4 v) {
    __shared__ float4 partial_smem[kMaxWarps];
    const int lane = threadIdx.x % kWarpSize;
    v = make_float4(warp_sum(v.x), warp_sum(v.y), warp_sum(v.z), warp_sum(v.w));
    if (lane == 0) partial_smem[threadIdx.x / kWarpSize] = v;
    __syncthreads();
    v = partial_smem[lane];
    v = make_float4(warp_sum(v.x), warp_sum(v.y), warp_sum(v.z), warp_sum(v.w));
    __syncthreads();
    return v;
}
__device__ __forceinline__ float block_total(float v) { return block_sum4(make_float4(v, 0.0f, 0.0f, 0.0f)).x; }

// Sum over the block, modulo 2^64, in every thread. Safe to call again at once.
__device__ __forceinline__ uint64_t block_sum(uint64_t v) {
    __shared__ uint64_t partial_smem[kMaxWarps];
    const int lane = threadIdx.x % kWarpSize;
#pragma unroll
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
    if (lane == 0) partial_smem[threadIdx.x / kWarpSize] = v;
    __syncthreads();
    v = partial_smem[lane];
#pragma unroll
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
    __syncthreads();
    return v;
}

// How much the threads before this one have together, and all of them. Safe to call again at once.
__device__ __forceinline__ uint2 block_scan(uint32_t mine) {
    __shared__ uint32_t partial_smem[kMaxWarps];
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    uint32_t up_to = mine;
#pragma unroll
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
        const uint32_t other = __shfl_up_sync(0xffffffffu, up_to, offset);
        if (lane >= offset) up_to += other;
    }
    if (lane == kWarpSize - 1) partial_smem[warp] = up_to;
    __syncthreads();
    const uint32_t total = __reduce_add_sync(0xffffffffu, partial_smem[lane]);
    const uint32_t before = __reduce_add_sync(0xffffffffu, lane < warp ? partial_smem[lane] : 0);
    __syncthreads();
    return make_uint2(before + up_to - mine, total);
}

// Four of something, indexed.
template <typename T>
struct Four {
    T v[4];
};

// One row of logits, in groups of four from a multiple of four on; minus infinity behind the end.
struct Logits {
    const float* raw;
    uint32_t vocab;
    bool aligned;

    __device__ __forceinline__ Logits(const float* raw, uint32_t vocab)
        : raw(raw), vocab(vocab), aligned(vocab % 4 == 0 && is_aligned16(raw)) {}

    __device__ __forceinline__ Four<float> four(uint32_t i) const {
        Four<float> x;
        if (aligned) {
            const float4 raws = *reinterpret_cast<const float4*>(raw + i);
            x = {raws.x, raws.y, raws.z, raws.w};
        } else {
#pragma unroll
            for (int j = 0; j < 4; ++j) x.v[j] = i + j < vocab ? raw[i + j] : kNegInf;
        }
        return x;
    }
};

// Tokens whose scores a row's list changes.
struct Biases {
    const TokenBias* list;
    uint32_t count;
    bool only;  // what is not listed is forbidden

    // Where the tokens from i on start.
    __device__ __forceinline__ uint32_t place(uint32_t i) const {
        uint32_t low = 0, high = count;
        while (low < high) {
            const uint32_t middle = (low + high) / 2;
            if (list[middle].token < i) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        return low;
    }
    // The scores of tokens i to i + 3. No entry lies behind the end of the row.
    __device__ __forceinline__ Four<float> four(const Four<float>& raw, uint32_t i) const {
        Four<float> s;
#pragma unroll
        for (int j = 0; j < 4; ++j) s.v[j] = only ? kNegInf : raw.v[j];
        for (uint32_t at = place(i); at < count; ++at) {
            const TokenBias entry = list[at];
            if (entry.token > i + 3) break;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                if (entry.token == i + j) s.v[j] = __fadd_rn(raw.v[j], entry.bias);
            }
        }
        return s;
    }
};

// Scores of one row as keys: out of shared memory, or from the logits each time.
template <bool kCached, bool kListed>
struct Scores {
    Logits logits;
    Biases biases;
    const int32_t* counts;  // (vocab), or null: no penalties
    uint4* cache;           // (vocab / 4, rounded up)
    SamplingRow row;

    // After the row's list.
    __device__ __forceinline__ Four<float> biased(const Four<float>& raw, uint32_t i) const {
        if constexpr (kListed) return biases.four(raw, i);
        return raw;
    }

    // After the penalties. Every step is rounded by itself, as in the reference, and not fused into a multiply-add.
    __device__ __forceinline__ float penalised(float biased, uint32_t i) const {
        if (counts == nullptr || i >= logits.vocab) return biased;
        const int32_t count = counts[i], generated = count & (kInPrompt - 1);
        float s = biased;
        if (count != 0) s = s < 0.0f ? __fmul_rn(s, row.repetition_penalty) : __fdiv_rn(s, row.repetition_penalty);
        if (generated > 0) {
            const float frequency = __fmul_rn(row.frequency_penalty, float(generated));
            s = __fsub_rn(s, __fadd_rn(frequency, row.presence_penalty));
        }
        return s;
    }
    __device__ __forceinline__ uint32_t tempered(float penalised) const {
        return key_of(__fdiv_rn(penalised, row.temperature));
    }
    __device__ __forceinline__ Four<uint32_t> four(uint32_t i) const {
        if constexpr (kCached) {
            const uint4 k = cache[i / 4];
            return {k.x, k.y, k.z, k.w};
        }
        const Four<float> scores = biased(logits.four(i), i);
        Four<uint32_t> keys;
#pragma unroll
        for (int j = 0; j < 4; ++j) keys.v[j] = tempered(penalised(scores.v[j], i + j));
        return keys;
    }
    // f(key, token) for every token of this thread, and up to three behind the end with the key of minus infinity.
    template <typename F>
    __device__ __forceinline__ void each(const F& f) const {
        for (uint32_t i = 4 * threadIdx.x; i < logits.vocab; i += 4 * kThreads) {
            const Four<uint32_t> keys = four(i);
#pragma unroll
            for (int j = 0; j < 4; ++j) f(keys.v[j], i + j);
        }
    }
    // Gumbel noise of token i.
    __device__ __forceinline__ float noise(uint32_t i) const {
        const uint2 seed = make_uint2(row.seed[0], row.seed[1]);
        return -logf(-logf(uniform(philox4x32_10(make_uint4(i, row.step, 0, 0), seed).x)));
    }
};

// A range of keys that holds the one sought, and the weight of the tokens under the range. Three pivots quarter it.
struct Range {
    uint32_t low, high;
    float below;

    __device__ __forceinline__ uint32_t pivot(uint32_t j) const {
        const uint64_t width = high - low;
        return low + uint32_t(j < 3 ? width * j / 4 : width - width / 4 - 1);
    }
    // Given the weights of the keys in the range up to each pivot.
    __device__ __forceinline__ void narrow(const float4& up_to, float target) {
        const uint32_t p1 = pivot(1), p2 = pivot(2), p3 = pivot(3);
        if (below + up_to.x > target) {
            high = p1;
        } else if (below + up_to.y > target) {
            below += up_to.x, low = p1 + 1, high = p2;
        } else if (below + up_to.z > target) {
            below += up_to.y, low = p2 + 1, high = p3;
        } else {
            below += up_to.z, low = p3 + 1;
        }
    }
};

// Room for one key a thread, one for all searches.
__device__ __forceinline__ uint32_t* held_keys() {
    __shared__ uint32_t keys_smem[kThreads];
    return keys_smem;
}

// The smallest key of the range with `weight of the tokens up to it > target`, and its end if there is none; below it is
// then exact. Passes over all tokens narrow the range until a block can hold its keys, one a thread.
template <typename Scores, typename Weight>
__device__ __forceinline__ Range search(const Scores& scores, Range range, float target, const Weight& weight) {
    uint32_t* const keys_smem = held_keys();
    float held = float(kThreads) + 1.0f;
    while (range.low < range.high && held > float(kThreads)) {
        const uint32_t low = range.low, high = range.high;
        const uint32_t p1 = range.pivot(1), p2 = range.pivot(2), p3 = range.pivot(3);
        float4 sums = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        scores.each([&](uint32_t key, uint32_t) {
            if (key < low || key > high) return;
            const float w = weight(key);
            sums.x += key <= p1 ? w : 0.0f;
            sums.y += key <= p2 ? w : 0.0f;
            sums.z += key <= p3 ? w : 0.0f;
            sums.w += 1.0f;
        });
        sums = block_sum4(sums);
        held = sums.w;
        range.narrow(sums, target);
    }
    if (range.low == range.high) return range;

    uint32_t mine = 0;
    scores.each([&](uint32_t key, uint32_t) { mine += key >= range.low && key <= range.high; });
    const uint2 scan = block_scan(mine);
    uint32_t at = scan.x;
    scores.each([&](uint32_t key, uint32_t) {
        if (key >= range.low && key <= range.high) keys_smem[at++] = key;
    });
    __syncthreads();
    const bool has = threadIdx.x < scan.y;
    const uint32_t key = has ? keys_smem[threadIdx.x] : 0;
    const float w = has ? weight(key) : 0.0f;
    while (range.low < range.high) {
        const float mass = key >= range.low ? w : 0.0f;
        range.narrow(block_sum4(make_float4(key <= range.pivot(1) ? mass : 0.0f, key <= range.pivot(2) ? mass : 0.0f,
                                            key <= range.pivot(3) ? mass : 0.0f, 0.0f)),
                     target);
    }
    return range;
}

// What top-k and top-p leave: tokens whose key is above `key`, and of those with this key the ids up to `id`.
struct Kept {
    uint32_t key, id;
};

// The id of token number `n`, from 1 on, among those with this key.
template <typename Scores>
__device__ __forceinline__ uint32_t id_of_tie(const Scores& scores, uint32_t tie, float n) {
    uint32_t low = 0, high = scores.logits.vocab - 1;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        float up_to = 0.0f;
        scores.each([&](uint32_t key, uint32_t i) { up_to += key == tie && i <= middle ? 1.0f : 0.0f; });
        if (block_total(up_to) >= n) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

template <typename Scores>
__device__ __forceinline__ Kept keep(const Scores& scores, float max) {
    const uint32_t vocab = scores.logits.vocab, top_k = scores.row.top_k, max_key = key_of(max);
    Kept kept{0, vocab};

    if (top_k > 0 && top_k < vocab) {
        // The k-th largest is the smallest with more than all but k up to it; what lies behind the end is in `all`.
        const float all = float((vocab + 3) / 4 * 4);
        kept.key = search(scores, {0, max_key, 0.0f}, all - float(top_k), [](uint32_t) { return 1.0f; }).low;
        if (from_key(kept.key) == 0.0f) kept.key = key_of(-0.0f);
    }
    if (scores.row.top_p >= 1.0f) return kept;

    // Weights are relative to the largest, so what is compared with 1 - p is multiplied by their sum. What lies under
    // `floor` cannot reach 1 - p even if every token lay there.
    const float drop = __fsub_rn(1.0f, scores.row.top_p);
    const uint32_t floor = min(max_key, key_of(max + logf(drop / float(vocab)) - 0.1f));
    const uint32_t first = kept.key, low = floor > first ? floor : first;
    const auto weight = [&](uint32_t key) { return expf(from_key(key) - max); };
    float4 sums = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    scores.each([&](uint32_t key, uint32_t) {
        if (key < first) return;
        const float w = weight(key);
        sums.x += w;
        sums.y += key < low ? w : 0.0f;
    });
    sums = block_sum4(sums);
    const float target = drop * sums.x;
    const Range cut = search(scores, {low, max_key, sums.y}, target, weight);
    kept.key = cut.low;

    // Of the tokens at the cut, the highest ids go while there is room for them; one stays.
    float ties = 0.0f;
    scores.each([&](uint32_t key, uint32_t) { ties += key == cut.low ? 1.0f : 0.0f; });
    ties = block_total(ties);
    const float room = floorf((target - cut.below) / weight(cut.low));
    const float dropped = fminf(fmaxf(room, 0.0f), ties - 1.0f);
    if (dropped > 0.0f) kept.id = id_of_tie(scores, cut.low, ties - dropped);
    return kept;
}

// The token with the largest score plus noise. `best` has the largest score, and is taken if scores overflowed.
template <typename Scores>
__device__ __forceinline__ uint32_t draw(const Scores& scores, uint32_t best) {
    const float max = from_key(scores.four(best / 4 * 4).v[best % 4]), min_p = scores.row.min_p;
    const Kept kept = keep(scores, max);
    // Below, not even the largest noise lifts a score to the largest one with the smallest noise.
    const uint32_t hopeless = key_of(max + kMinNoise - kMaxNoise);
    uint64_t winner = 0;
    scores.each([&](uint32_t key, uint32_t i) {
        if (key < hopeless || key < kept.key || (key == kept.key && i > kept.id)) return;
        const float s = from_key(key);
        if (min_p > 0.0f && expf(s - max) < min_p) return;
        winner = larger(winner, candidate(number_key(s + scores.noise(i)), i));
    });
    winner = block_max(winner);
    return winner == 0 ? best : id_of(winner);
}

// The thread's largest candidate below `bound`.
__device__ __forceinline__ uint64_t next_candidate(const Logits& logits, uint64_t bound) {
    uint64_t next = 0;
#pragma unroll 4
    for (uint32_t i = 4 * threadIdx.x; i < logits.vocab; i += 4 * kThreads) {
        const Four<float> x = logits.four(i);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const uint64_t c = candidate(key_of(x.v[j]), i + j);
            if (c < bound && i + j < logits.vocab) next = larger(next, c);
        }
    }
    return next;
}

// The n most likely tokens. Each thread offers its best; only the one whose offer was taken looks for another.
__device__ __forceinline__ void most_likely(const Logits& logits, uint32_t n, float normaliser, int32_t* top,
                                            float* logprobs) {
    if (n == 0) return;
    uint64_t offer = next_candidate(logits, ~uint64_t(0));
    for (uint32_t j = 0; j < n; ++j) {
        const uint64_t taken = block_max(offer);
        if (offer != taken) continue;
        top[j] = int32_t(id_of(taken));
        logprobs[j] = value_of(taken) - normaliser;
        offer = next_candidate(logits, taken);
    }
}

// A token and its logit in the hash of its row: the output function of SplitMix64, as in src/ops/sample.rs.
__device__ __forceinline__ uint64_t mix(uint32_t token, float logit) {
    uint64_t word = uint64_t(token) << 32 | __float_as_uint(logit);
    word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9ull;
    word = (word ^ (word >> 27)) * 0x94d049bb133111ebull;
    return word ^ (word >> 31);
}

// What a pass over the logits yields once their largest is known.
struct Totals {
    float log_sum_exp;
    uint64_t hash;
};

__device__ __forceinline__ Totals totals(const Logits& logits, float max) {
    float sum = 0.0f;
    uint64_t hash = 0;
#pragma unroll 4
    for (uint32_t i = 4 * threadIdx.x; i < logits.vocab; i += 4 * kThreads) {
        const Four<float> x = logits.four(i);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            sum += expf(x.v[j] - max);
            hash += i + j < logits.vocab ? mix(i + j, x.v[j]) : 0;
        }
    }
    return {max + logf(block_total(sum)), block_sum(hash)};
}

template <bool kCached, bool kListed>
__device__ __forceinline__ void sample(const SampleParams& p, uint4* cache_smem) {
    const uint32_t r = blockIdx.x, vocab = p.vocab;
    const Logits logits(p.logits + size_t(r) * vocab, vocab);
    Scores<kCached, kListed> scores{logits, {}, nullptr, cache_smem, p.params[r]};
    const SamplingRow& row = scores.row;
    if constexpr (kListed) scores.biases = {p.biases + row.first_bias, row.biases, (row.flags & kOnlyListed) != 0};
    const bool given = row.flags & kReportGiven;
    int32_t* counts = given || row.state < 0 ? nullptr : p.counts + size_t(row.state) * vocab;
    scores.counts = counts;
    const bool greedy = given || row.temperature < kGreedyBelow;

    // One pass over the logits: the largest raw and penalised ones, a NaN, and the scores for the passes to come.
    uint64_t best = 0;
    float max_raw = kNegInf;
    bool is_nan = false;
#pragma unroll 4
    for (uint32_t i = 4 * threadIdx.x; i < vocab; i += 4 * kThreads) {
        const Four<float> raw = logits.four(i), biased = scores.biased(raw, i);
        Four<uint32_t> keys;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float s = scores.penalised(biased.v[j], i + j);
            is_nan |= isnan(s);
            if constexpr (kListed) is_nan |= isnan(raw.v[j]);
            max_raw = fmaxf(max_raw, raw.v[j]);
            best = larger(best, candidate(number_key(s), i + j));
            keys.v[j] = kCached && !greedy ? scores.tempered(s) : 0;
        }
        if (kCached && !greedy) cache_smem[i / 4] = make_uint4(keys.v[0], keys.v[1], keys.v[2], keys.v[3]);
    }
    best = block_max(best);
    max_raw = value_of(block_max(candidate(key_of(max_raw), 0)));
    // A list may hide an infinite logit; the log-probabilities would still be of it.
    const bool bad = __syncthreads_or(is_nan) || !isfinite(value_of(best)) || !isfinite(max_raw);
    if (bad) {
        if (threadIdx.x == 0) p.token[r] = -1;
        return;
    }

    const uint32_t token = given ? row.given : greedy ? id_of(best) : draw(scores, id_of(best));
    const Totals all = totals(logits, max_raw);
    const float normaliser = all.log_sum_exp;
    float* logprobs = p.logprobs + size_t(r) * (1 + kMaxTop);
    const uint32_t alternatives = min(min(row.top_logprobs, kMaxTop), vocab);
    most_likely(logits, alternatives, normaliser, p.top + size_t(r) * kMaxTop, logprobs + 1);
    if (threadIdx.x == 0) {
        p.token[r] = int32_t(token);
        p.hash[r] = all.hash;
        logprobs[0] = logits.raw[token] - normaliser;
        if (counts != nullptr) counts[token] += 1;
    }
}

extern "C" __global__ void __launch_bounds__(kThreads) sample_f32(const __grid_constant__ SampleParams p) {
    extern __shared__ uint4 cache_smem[];
    pdl_launch_dependents();
    pdl_wait();
    const SamplingRow& row = p.params[blockIdx.x];
    const bool listed = (row.biases > 0 || (row.flags & kOnlyListed)) && !(row.flags & kReportGiven);
    const bool cached = dynamic_smem_bytes() >= (p.vocab + 3) / 4 * sizeof(uint4);
    if (cached) {
        listed ? sample<true, true>(p, cache_smem) : sample<true, false>(p, cache_smem);
    } else {
        listed ? sample<false, true>(p, nullptr) : sample<false, false>(p, nullptr);
    }
}
EXPORT_PARAMS(sample, SampleParams)
