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
    uint32_t rows;
    uint32_t cols;
};
static_assert(sizeof(EmbedSpliceParams) == 40, "EmbedSpliceParams: change src/ops/embed_splice.rs with it");

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
};
static_assert(sizeof(SamplingRow) == 48, "SamplingRow: change src/ops/sample.rs with it");

struct SampleParams {
    int32_t* token;            // (rows)
    float* logprobs;           // (rows, 1 + 20)
    int32_t* top;              // (rows, 20)
    const float* logits;       // (rows, vocab)
    const SamplingRow* params;  // (rows)
    int32_t* counts;           // (sequences, vocab)
    uint32_t rows;
    uint32_t vocab;
};
static_assert(sizeof(SampleParams) == 56, "SampleParams: change src/ops/sample.rs with it");

struct PatchEmbedParams {
    void* y;                  // (tiles, 1 + grid^2, hidden), dtype of the symbol
    const uint8_t* pixels;    // (tiles, image_size, image_size, 3)
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
static_assert(sizeof(PatchEmbedParams) == 88, "PatchEmbedParams: change src/ops/patch_embed.rs with it");

// Once in every cuda/<op>.cu, with op = the file's name.
#define EXPORT_PARAMS(op, Params) \
    extern "C" { __constant__ uint32_t op##_params_size = sizeof(Params); }
