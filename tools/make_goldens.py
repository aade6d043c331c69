#!/usr/bin/env python3
"""Make the fixtures under tests/goldens: tiny random checkpoints and what transformers computes with them.

    python -m pip install -r tools/requirements-goldens.txt
    python tools/make_goldens.py

Everything is seeded and nothing depends on the date: on one machine two runs write the same bytes. On another CPU
floating-point results may differ in their last bits. See tests/goldens/README.md for what the files hold.
"""

import argparse
import dataclasses
import json
import pathlib
import tempfile

import torch
import transformers

import golden_cases
import golden_files
import golden_models
import golden_next_cases
import golden_next_models
import golden_phi_cases
import golden_phi_models
import golden_phi_pictures
import golden_pictures
import golden_text
import golden_views

DEFAULT_OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "goldens"

# What writes checkpoints, and what records what they compute.
FAMILIES = [
    (golden_models, golden_cases),
    (golden_next_models, golden_next_cases),
    (golden_phi_models, golden_phi_cases),
]
WEIGHTS = sorted({checkpoint.weights for models, _ in FAMILIES for checkpoint in models.CHECKPOINTS})

# Greedy tokens are well defined in f32 when the two largest logits never come nearer than this: some hundred times
# the difference between an f32 and an f64 run of these models (at most 7e-6).
MIN_MARGIN = 1e-3
# A case that repeats one token tests little.
MIN_DISTINCT_TOKENS = 12
# In half precision the first token must be beyond doubt: another correct order of roundings may err by twice what
# transformers' own run errs by, in either logit.
DECIDED = 4


def shortcomings(checkpoint, tensors, cases):
    """What makes a seed unfit, one line each."""
    lines = []
    who = f"{checkpoint.name} seed {checkpoint.seed}"
    for name, case in cases.items():
        margins = tensors[f"case/{name}/greedy_margins"]
        if (margin := margins.min().item()) < MIN_MARGIN:
            lines.append(f"{who}: {name}: margins fall to {margin:.2g}, below {MIN_MARGIN}")
        if (distinct := tensors[f"case/{name}/greedy_ids"].unique().numel()) < MIN_DISTINCT_TOKENS:
            lines.append(f"{who}: {name}: only {distinct} distinct tokens")
        if "native_against_f32" not in case:
            continue
        if (first := margins[0].item()) < (least := DECIDED * case["native_against_f32"]["max_abs"]):
            lines.append(f"{who}: {name}: the first margin is {first:.2g}, below {least:.2g}")
    return lines


def make(folder, checkpoint, pictures, models, cases):
    """Write one checkpoint's folder; return what is wrong with its seed."""
    models.write(folder, checkpoint)
    tensors, described = cases.record(folder, checkpoint, pictures)
    note = golden_files.provenance(checkpoint.seed)
    metadata = {"provenance": json.dumps(note, sort_keys=True), "cases": json.dumps(described, sort_keys=True)}
    golden_files.write_safetensors(folder / "golden.safetensors", tensors, metadata)
    golden_files.write_json(folder / "cases.json", {"provenance": note, **described})
    return shortcomings(checkpoint, tensors, described["cases"])


def find_seed(weights, limit=1000):
    """The first seed with which every checkpoint that holds these weights is fit."""
    fitted = [(c, *family) for family in FAMILIES for c in family[0].CHECKPOINTS if c.weights == weights]
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        pictures = golden_pictures.write(scratch / "pictures")
        for seed in range(limit):
            for checkpoint, models, cases in fitted:
                checkpoint = dataclasses.replace(checkpoint, seed=seed)
                if make(scratch / checkpoint.name, checkpoint, pictures, models, cases):
                    break
            else:
                return seed
    raise SystemExit(f"make_goldens: no seed below {limit} suits {weights}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=DEFAULT_OUT, help="folder to write")
    parser.add_argument("--find-seed", metavar="WEIGHTS", choices=WEIGHTS, help="print the first fit seed")
    args = parser.parse_args()

    golden_files.check_versions()
    transformers.utils.logging.disable_progress_bar()
    # One thread: the split of a sum over threads changes its last bits.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    golden_phi_pictures.check()

    if args.find_seed:
        print(find_seed(args.find_seed))
        return
    pictures = golden_pictures.write(args.out / "pictures")
    wrong = []
    for models, cases in FAMILIES:
        for checkpoint in models.CHECKPOINTS:
            wrong += make(args.out / checkpoint.name, checkpoint, pictures, models, cases)
            print(f"wrote {args.out / checkpoint.name}")
    text = golden_text.record(args.out / golden_models.CHECKPOINTS[0].name)
    golden_files.write_json(args.out / "text.json", {"provenance": golden_files.provenance(), **text})
    golden_views.write(args.out / "views.json")
    if wrong:
        raise SystemExit("make_goldens: change the seed in tools/golden_*models.py (--find-seed):\n" + "\n".join(wrong))


if __name__ == "__main__":
    main()
