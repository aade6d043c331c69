"""What every checkpoint that cuts pictures into tiles records of a prompt."""

from golden_cases import difference

# Logits of all positions of a prompt up to this, of the last few positions of a longer one.
ALL_ROWS = 63
LAST_ROWS = 16


def case(name, ids, models, logits, greedy):
    """(tensors, description) of a prompt.

    `models` are the f32, the f64 and the native model. `logits(model)` gives [L, V] for the `ids` of the prompt,
    `greedy(model)` the ids, log-probabilities and margins of the greedy tokens after it.
    """
    truth, exact, native = models
    first = 0 if len(ids) <= ALL_ROWS else len(ids) - LAST_ROWS
    rows = logits(truth)[first:]
    tokens, logprobs, margins = greedy(truth)
    native_tokens, _, _ = greedy(native)
    tensors = {
        f"case/{name}/input_ids": ids.int(),
        f"case/{name}/logits": rows,
        f"case/{name}/greedy_ids": tokens.int(),
        f"case/{name}/greedy_logprobs": logprobs,
        f"case/{name}/greedy_margins": margins,
    }
    described = {
        "tokens": len(ids),
        "logits_from": first,
        "min_margin": float(f"{margins.min():.6g}"),
        "f32_against_f64": difference(rows, logits(exact)[first:]),
        "native_against_f32": difference(logits(native)[first:], rows),
        "native_greedy_prefix": (native_tokens == tokens).int().cumprod(0).sum().item(),
    }
    return tensors, described


def spans(ids, image_token, lengths):
    """[start, length] of every picture's rows: in order, and touching where the token does."""
    positions = (ids == image_token).nonzero()[:, 0].tolist()
    if len(positions) != sum(lengths):
        raise SystemExit(f"make_goldens: {len(positions)} image tokens for pictures of {lengths} rows")
    found = []
    for length in lengths:
        here, positions = positions[:length], positions[length:]
        if here[-1] - here[0] != length - 1:
            raise SystemExit(f"make_goldens: the rows of a picture are not in one piece: {here}")
        found.append([here[0], length])
    return found
