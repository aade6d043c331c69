//! What ops say they cost, against sums written out by hand: every input and output once.

use ocelli::kernel::Cost;
use ocelli::mem::{Act, Buf, DType, Layout, Region};
use ocelli::ops::{
    DenseAttention, EmbedSplice, Epilogue, Gather, Gemm, Gemv, LayerNorm, Norm, Op, PagedDecode, PagedKv, PagedPrefill,
    PatchEmbed, RandomFill, Resize, ResizeAxis, RmsNorm, RopeKv,
};

fn costs(op: impl Into<Op>) -> Cost {
    op.into().cost()
}

/// Buffers of f16 activations.
fn layout() -> Layout {
    Layout::new(Region::Scratch, DType::F16)
}

#[test]
fn norms_read_and_write_each_row_once() {
    let mut l = layout();
    let (x, y, weight, bias) = (l.take::<Act>(6 * 10), l.take::<Act>(6 * 10), l.take::<Act>(10), l.take::<Act>(10));
    let bytes = costs(LayerNorm { y, x, weight, bias, rows: 6, cols: 10, eps: 0.0 }).bytes;
    assert_eq!(bytes, 2 * (60 + 60 + 10 + 10));
    assert_eq!(costs(RmsNorm { y, x, weight, rows: 6, cols: 10, eps: 0.0 }).bytes, 2 * (60 + 60 + 10));
}

#[test]
fn a_gemm_moves_its_matrices_once_and_a_residual_twice() {
    let mut l = layout();
    let (m, n, k) = (3, 10, 7);
    let (a, b, bias): (Buf<Act>, Buf<Act>, Buf<Act>) = (l.take(m * k), l.take(n * k), l.take(n));
    let (c, half, logits) = (l.take::<Act>(m * n), l.take::<Act>(m * n / 2), l.take::<f32>(m * n));
    let gemm = |c: Buf<Act>, bias, epilogue| costs(Gemm { c, a, b, m, n, k, bias, epilogue });
    let inputs = 2 * (21 + 70);
    let cases = [
        (gemm(c, None, Epilogue::Store), inputs + 2 * 30),
        (gemm(c, None, Epilogue::Gelu), inputs + 2 * 30),
        (gemm(c, None, Epilogue::AddResidual), inputs + 2 * (30 + 30)),
        (gemm(c, Some(bias), Epilogue::Store), inputs + 2 * (10 + 30)),
        (gemm(c, Some(bias), Epilogue::Gelu), inputs + 2 * (10 + 30)),
        (gemm(c, Some(bias), Epilogue::QuickGelu), inputs + 2 * (10 + 30)),
        (gemm(c, Some(bias), Epilogue::AddResidual), inputs + 2 * (10 + 30 + 30)),
        (gemm(half, None, Epilogue::SwiGlu), inputs + 2 * 15),
        (gemm(logits.into(), None, Epilogue::Store), inputs + 4 * 30),
    ];
    for (i, (cost, bytes)) in cases.into_iter().enumerate() {
        assert_eq!((cost.bytes, cost.flops), (bytes, 2 * 3 * 10 * 7), "case {i}");
    }
}

#[test]
fn a_gemv_reads_the_weight_of_its_norm_and_not_what_it_normalises_twice() {
    let mut l = layout();
    let (m, n, k) = (3, 10, 7);
    let (a, b, weight): (Buf<Act>, Buf<Act>, Buf<Act>) = (l.take(m * k), l.take(n * k), l.take(k));
    let (c, half, logits) = (l.take::<Act>(m * n), l.take::<Act>(m * n / 2), l.take::<f32>(m * n));
    let norm = Some(Norm { weight, eps: 0.0 });
    let gemv = |c: Buf<Act>, norm, epilogue| costs(Gemv { c, a, b, m, n, k, norm, epilogue });
    let (inputs, product) = (2 * (21 + 70), 2 * 3 * 10 * 7);
    let cases = [
        (gemv(c, None, Epilogue::Store), inputs + 2 * 30, product),
        (gemv(c, None, Epilogue::AddResidual), inputs + 2 * (30 + 30), product),
        (gemv(half, norm, Epilogue::SwiGlu), inputs + 2 * (7 + 15), product + 4 * 21),
        (gemv(logits.into(), norm, Epilogue::Store), inputs + 2 * 7 + 4 * 30, product + 4 * 21),
    ];
    for (i, (cost, bytes, flops)) in cases.into_iter().enumerate() {
        assert_eq!((cost.bytes, cost.flops), (bytes, flops), "case {i}");
    }
}

#[test]
fn patch_embed_moves_pixels_parameters_and_hidden_states() {
    let mut l = layout();
    let op = PatchEmbed {
        y: l.take(2 * 5 * 6),
        pixels: l.take(7 * 8 * 8 * 3),
        values: l.take(7 * 8 * 8 * 3),
        source: l.take(2),
        table: l.take(3 * 256),
        weight: l.take(6 * 3 * 4 * 4),
        class: l.take(6),
        position: l.take(5 * 6),
        norm_weight: l.take(6),
        norm_bias: l.take(6),
        tiles: 2,
        image_size: 8,
        patch_size: 4,
        hidden: 6,
        eps: 0.0,
    };
    assert_eq!(costs(op).bytes, 384 + 4 * 2 + 4 * 768 + 2 * (288 + 6 + 30 + 6 + 6) + 2 * 60);
}

#[test]
fn copies_move_their_rows_twice_and_their_indices_once() {
    let mut l = layout();
    let (y, x, index) = (l.take(4 * 30), l.take(9 * 10), l.take(4));
    let gather = Gather { y, x, index, rows: 4, cols: 10, y_cols: 30, first_col: 10 };
    assert_eq!(costs(gather).bytes, 2 * (40 + 40) + 4 * 4);
    let splice = EmbedSplice { y, table: x, image_rows: x, ids: index, sampled: index, rows: 4, cols: 10 };
    assert_eq!(costs(splice).bytes, 2 * (40 + 40) + 4 * 4);
}

#[test]
fn a_fill_writes_and_reads_nothing() {
    let y = layout().take(30);
    assert_eq!(costs(RandomFill { y, seed: 1, mean: 0.0, spread: 1.0 }).bytes, 2 * 30);
}

#[test]
fn resizing_moves_picture_tile_and_tables() {
    let mut l = layout();
    let mut axis = |picture, kept, taps| {
        let table = l.take((1 + taps) * kept);
        ResizeAxis { table, taps, picture, offset: 0, tile: kept, first: 0, kept }
    };
    let (columns, rows) = (axis(20, 8, 5), axis(30, 10, 6));
    let (y, x) = (l.take(10 * 8 * 3), l.take(30 * 20 * 3));
    let cost = costs(Resize { y, x, columns, rows, colour: [0; 3], reach: 30 });
    assert_eq!(cost.bytes, 10 * 8 * 3 + 30 * 20 * 3 + 4 * (6 * 8 + 7 * 10));
    // Thirty rows of eight sums of five, and eighty sums of six, by channel.
    assert_eq!(cost.flops, 2 * 3 * (30 * 8 * 5 + 80 * 6));
}

#[test]
fn attention_moves_queries_outputs_and_the_cache_of_the_stated_context() {
    let mut l = layout();
    let (heads, head_dim) = (4, 8);
    let (o, qkv) = (l.take(2 * 5 * 32), l.take(2 * 5 * 96));
    let dense = DenseAttention { o, qkv, tiles: 2, tokens: 5, heads, head_dim };
    assert_eq!(costs(dense).bytes, 2 * (960 + 320));

    let kv = PagedKv { k: l.take(4096), v: l.take(4096), kv_heads: 2, head_dim };
    let (block_table, seq_lens, query_start, positions) = (l.take(6), l.take(2), l.take(3), l.take(5));
    // Two sequences of 20 cached tokens: queries and outputs of 32 values, 2 * 20 * 16 of the cache,
    let (seqs, max_blocks, context) = (2, 3, 20);
    let (table, slot_mapping) = (l.take(64 * 8), positions);
    let decode = PagedDecode {
        o,
        qkv,
        kv,
        table,
        positions,
        slot_mapping,
        block_table,
        seq_lens,
        seqs,
        heads,
        max_blocks,
        context,
    };
    // and the new keys and values once more, from qkv; a row of 8 angles, a position, a slot, a length and two blocks of
    // the table, each of 4 bytes.
    assert_eq!(costs(decode).bytes, 2 * (2 * (32 + 32 + 2 * 16 + 2 * 20 * 16) + 4 * (8 + 3 + 2)));
    let prefill =
        PagedPrefill { o, qkv, kv, block_table, seq_lens, query_start, seqs, heads, tokens: 10, max_blocks, context };
    // Here also where each sequence starts and the last ends. Ten queries of the last five of 20 see 16 to 20 keys.
    assert_eq!(costs(prefill).bytes, 2 * (10 * (32 + 32) + 2 * 2 * 20 * 16) + 4 * (2 * 3 + 3));
    assert_eq!(costs(prefill).flops, 4 * 2 * (16 + 17 + 18 + 19 + 20) * (4 * 8 + 4));

    // Five tokens: q, k and v are read; q, and k and v in the cache, are written; a row of f32 angles and two integers.
    let rope = RopeKv { qkv, kv, table, positions, slot_mapping, tokens: 5, heads };
    assert_eq!(costs(rope).bytes, 5 * (2 * (32 + 16 + 16) + 2 * (32 + 16 + 16) + 4 * 8 + 4 + 4));
}
