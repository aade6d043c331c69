// The parameter record of every op. A kernel takes exactly one, by value, as `const __grid_constant__ XParams p`.
//
// Each struct has a twin in src/ops/<op>.rs with the same fields in the same order (`#[repr(C)]`, no implicit padding:
// an explicit `pad` field fills the tail). Two guards keep the twins together: the size asserted here is read by
// people who change one side, and `EXPORT_PARAMS` below puts the size into the compiled image, where the loader
// compares it with the Rust struct and refuses to run on a difference.
//
// Pointers are device addresses (`u64` in Rust). Values that change from step to step are never in here but behind a
// pointer, so that a captured graph stays valid.

#pragma once

#include <stdint.h>

struct RmsNormParams {
    void* y;             // (rows, cols), dtype of the symbol
    const void* x;       // (rows, cols)
    const void* weight;  // (cols)
    uint32_t rows;
    uint32_t cols;
    float eps;
    uint32_t pad;
};
static_assert(sizeof(RmsNormParams) == 40, "RmsNormParams: change src/ops/rmsnorm.rs with it");

struct GemmParams {
    void* c;           // (m, n), or (m, n / 2) with SwiGlu; dtype of the symbol, or f32 with c_is_f32
    const void* a;     // (m, k)
    const void* b;     // (n, k)
    const void* bias;  // (n), or null
    uint32_t m;
    uint32_t n;
    uint32_t k;
    uint32_t epilogue;  // GemmEpilogue
    uint32_t c_is_f32;
    uint32_t vectors;    // whether every row of a and b starts at a multiple of 16 bytes
    uint32_t c_vectors;  // the same for c, with a length that is a multiple of 8 elements
    uint32_t pad;
};
static_assert(sizeof(GemmParams) == 64, "GemmParams: change src/ops/gemm.rs with it");

// What becomes of p = a * b^T + bias; the numbers are those of Epilogue::code in src/ops/gemm.rs.
enum GemmEpilogue : uint32_t { kStore = 0, kAddResidual = 1, kQuickGelu = 2, kGelu = 3, kSwiGlu = 4 };

struct GemvParams {
    void* c;           // (m, n), or (m, n / 2) with kSwiGlu; dtype of the symbol, or f32 with c_is_f32
    const void* a;     // (m, k)
    const void* b;     // (n, k)
    const void* norm;  // (k), or null
    uint32_t m;
    uint32_t n;
    uint32_t k;
    uint32_t epilogue;  // kStore, kAddResidual or kSwiGlu of GemmEpilogue
    float eps;
    uint32_t c_is_f32;
    uint32_t vectors;  // whether every row of a, b and norm starts at a multiple of 16 bytes
    uint32_t pad;
};
static_assert(sizeof(GemvParams) == 64, "GemvParams: change src/ops/gemv.rs with it");

struct DenseAttentionParams {
    void* o;           // (tiles, tokens, heads, head_dim), dtype of the symbol
    const void* qkv;   // (tiles, tokens, 3, heads, head_dim)
    uint32_t tokens;
    uint32_t heads;
    float scale_log2;  // log2(e) / sqrt(head_dim)
    uint32_t pad;
};
static_assert(sizeof(DenseAttentionParams) == 32, "DenseAttentionParams: change src/ops/dense_attention.rs with it");

struct PagedPrefillParams {
    void* o;                     // (rows, heads, head_dim), dtype of the symbol
    const void* qkv;             // (rows, heads + 2 kv_heads, head_dim)
    const void* k;               // (blocks, kv_heads, 16, head_dim)
    const void* v;               // as k
    const int32_t* block_table;  // (seqs, max_blocks)
    const int32_t* seq_lens;     // (seqs)
    const int32_t* query_start;  // (seqs + 1)
    uint32_t seqs;
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t max_blocks;
    float scale_log2;  // log2(e) / sqrt(head_dim)
    uint32_t pad;
};
static_assert(sizeof(PagedPrefillParams) == 80, "PagedPrefillParams: change src/ops/paged_prefill.rs with it");

struct PagedDecodeParams {
    void* o;                      // (rows, heads, head_dim), dtype of the symbol
    const void* qkv;              // (rows, heads + 2 kv_heads, head_dim), heads = group * kv_heads
    void* k;                      // (blocks, kv_heads, 16, head_dim)
    void* v;                      // as k
    const float* table;           // (positions, head_dim): cosines, then sines
    const int32_t* positions;     // (seqs)
    const int32_t* slot_mapping;  // (seqs)
    const int32_t* block_table;   // (seqs, max_blocks)
    const int32_t* seq_lens;      // (seqs)
    uint32_t group;  // query heads of a key head
    uint32_t kv_heads;
    uint32_t max_blocks;
    float scale_log2;  // log2(e) / sqrt(head_dim)
};
static_assert(sizeof(PagedDecodeParams) == 88, "PagedDecodeParams: change src/ops/paged_decode.rs with it");

struct LayerNormParams {
    void* y;             // (rows, cols), dtype of the symbol
    const void* x;       // (rows, cols)
    const void* weight;  // (cols)
    const void* bias;    // (cols)
    uint32_t rows;
    uint32_t cols;
    float eps;
    uint32_t pad;
};
static_assert(sizeof(LayerNormParams) == 48, "LayerNormParams: change src/ops/layer_norm.rs with it");

struct GatherParams {
    void* y;               // (rows, y_cols), dtype of the symbol
    const void* x;         // (any, cols)
    const int32_t* index;  // (rows)
    uint32_t rows;
    uint32_t cols;
    uint32_t y_cols;
    uint32_t first_col;
};
static_assert(sizeof(GatherParams) == 40, "GatherParams: change src/ops/gather.rs with it");

struct EmbedSpliceParams {
    void* y;                 // (rows, cols), dtype of the symbol
    const void* table;       // (vocab, cols)
    const void* image_rows;  // (any, cols)
    const int32_t* ids;      // (rows)
    const int32_t* sampled;  // (any)
    uint32_t rows;
    uint32_t cols;
};
static_assert(sizeof(EmbedSpliceParams) == 48, "EmbedSpliceParams: change src/ops/embed_splice.rs with it");

struct RopeKvParams {
    void* qkv;                    // (tokens, (heads + 2 * kv_heads) * head_dim), dtype of the symbol
    void* k;                      // (blocks, kv_heads, 16, head_dim)
    void* v;                      // (blocks, kv_heads, 16, head_dim)
    const float* table;           // (positions, head_dim): cosines, then sines
    const int32_t* positions;     // (tokens)
    const int32_t* slot_mapping;  // (tokens)
    uint32_t tokens;
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t head_dim;
};
static_assert(sizeof(RopeKvParams) == 64, "RopeKvParams: change src/ops/rope_kv.rs with it");

// How one row is sampled: twin of `SamplingRow` in src/ops/sample.rs, which says what the fields mean.
struct SamplingRow {
    uint32_t seed[2];
    uint32_t step;
    int32_t state;
    float temperature;
    float top_p;
    float min_p;
    uint32_t top_k;
    float repetition_penalty;
    float presence_penalty;
    float frequency_penalty;
    uint32_t top_logprobs;
    uint32_t first_bias;
    uint32_t biases;
    uint32_t flags;  // SamplingFlags
    uint32_t given;
};
static_assert(sizeof(SamplingRow) == 64, "SamplingRow: change src/ops/sample.rs with it");

// The numbers are those of src/ops/sample.rs.
enum SamplingFlags : uint32_t { kOnlyListed = 1, kReportGiven = 2 };

// An entry of a row's list: twin of `TokenBias` in src/ops/sample.rs.
struct TokenBias {
    uint32_t token;
    float bias;
};
static_assert(sizeof(TokenBias) == 8, "TokenBias: change src/ops/sample.rs with it");

struct SampleParams {
    int32_t* token;            // (rows)
    float* logprobs;           // (rows, 1 + 20)
    int32_t* top;              // (rows, 20)
    uint64_t* hash;            // (rows)
    const float* logits;       // (rows, vocab)
    const SamplingRow* params;  // (rows)
    const TokenBias* biases;   // the lists of all rows
    int32_t* counts;           // (sequences, vocab)
    uint32_t rows;
    uint32_t vocab;
};
static_assert(sizeof(SampleParams) == 72, "SampleParams: change src/ops/sample.rs with it");

struct PatchEmbedParams {
    void* y;                  // (tiles, 1 + grid^2, hidden), dtype of the symbol
    const uint8_t* pixels;    // (any, image_size, image_size, 3)
    const float* values;      // (any, 3, image_size, image_size)
    const int32_t* source;    // (tiles): n is tile n of the pixels, -1 - n tile n of the values
    const float* table;       // (3, 256)
    const void* weight;       // (hidden, 3 * patch_size^2)
    const void* class_token;  // (hidden)
    const void* position;     // (1 + grid^2, hidden)
    const void* norm_weight;  // (hidden)
    const void* norm_bias;    // (hidden)
    uint32_t tiles;
    uint32_t image_size;
    uint32_t patch_size;
    uint32_t hidden;
    float eps;
    uint32_t pad;
};
static_assert(sizeof(PatchEmbedParams) == 104, "PatchEmbedParams: change src/ops/patch_embed.rs with it");

struct RandomFillParams {
    void* y;  // (n), dtype of the symbol
    uint64_t n;
    uint32_t key[2];
    float mean;
    float spread;
};
static_assert(sizeof(RandomFillParams) == 32, "RandomFillParams: change src/ops/random_fill.rs with it");

// One axis of a resizing: twin of `ResizeAxis` in src/ops/resize.rs, which says what the fields mean.
struct ResizeAxisParams {
    const int32_t* table;  // (1 + taps, kept)
    uint32_t taps;
    uint32_t picture;
    uint32_t offset;
    uint32_t tile;
    uint32_t first;
    uint32_t kept;
};
static_assert(sizeof(ResizeAxisParams) == 32, "ResizeAxisParams: change src/ops/resize.rs with it");

struct ResizeParams {
    uint8_t* y;        // (rows.tile, columns.tile, 3)
    const uint8_t* x;  // (rows.picture, columns.picture, 3)
    ResizeAxisParams columns;
    ResizeAxisParams rows;
    uint32_t colour;  // of the canvas: red in the lowest byte
    uint32_t pad;
};
static_assert(sizeof(ResizeParams) == 88, "ResizeParams: change src/ops/resize.rs with it");

struct CeilingParams {
    const void* data;  // as many vectors of 16 bytes as the grid covers
    void* sink;        // (1) of u32
};
static_assert(sizeof(CeilingParams) == 16, "CeilingParams: change src/workbench/ceiling.rs with it");

// Once in every cuda/<op>.cu, with op = the file's name.
#define EXPORT_PARAMS(op, Params) \
    extern "C" { __constant__ uint32_t op##_params_size = sizeof(Params); }
