#!/usr/bin/env python3
"""Make the fixtures under tests/goldens: tiny random LLaVA checkpoints and what transformers computes with them.

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
import golden_pictures
import golden_text

DEFAULT_OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "goldens"

# Greedy tokens are well defined in f32 when the two largest logits never come nearer than this: some hundred times
# the difference between an f32 and an f64 run of these models (at most 4e-6).
MIN_MARGIN = 1e-3
# A case that repeats one token tests little.
MIN_DISTINCT_TOKENS = 12


def shortcomings(checkpoint, tensors):
    """What makes a seed unfit, one line each."""
    lines = []
    who = f"{checkpoint.name} seed {checkpoint.seed}"
    for name in sorted(tensors):
        if name.endswith("/greedy_margins") and (margin := tensors[name].min().item()) < MIN_MARGIN:
            lines.append(f"{who}: {name} fall to {margin:.2g}, below {MIN_MARGIN}")
        if name.endswith("/greedy_ids") and (distinct := tensors[name].unique().numel()) < MIN_DISTINCT_TOKENS:
            lines.append(f"{who}: {name} has only {distinct} distinct tokens")
    return lines


def make(folder, checkpoint, pictures):
    """Write one checkpoint's folder; return what is wrong with its seed."""
    golden_models.write(folder, checkpoint)
    tensors, described = golden_cases.record(folder, checkpoint, pictures)
    note = golden_files.provenance(checkpoint.seed)
    metadata = {"provenance": json.dumps(note, sort_keys=True), "cases": json.dumps(described, sort_keys=True)}
    golden_files.write_safetensors(folder / "golden.safetensors", tensors, metadata)
    golden_files.write_json(folder / "cases.json", {"provenance": note, **described})
    return shortcomings(checkpoint, tensors)


def find_seed(weights, limit=1000):
    """The first seed with which every checkpoint of a family of weights is fit."""
    family = [c for c in golden_models.CHECKPOINTS if c.weights == weights]
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        pictures = golden_pictures.write(scratch / "pictures")
        for seed in range(limit):
            for checkpoint in family:
                checkpoint = dataclasses.replace(checkpoint, seed=seed)
                if make(scratch / checkpoint.name, checkpoint, pictures):
                    break
            else:
                return seed
    raise SystemExit(f"make_goldens: no seed below {limit} suits {weights}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=DEFAULT_OUT, help="folder to write")
    parser.add_argument("--find-seed", metavar="WEIGHTS", choices=["mha", "gqa"], help="print the first fit seed")
    args = parser.parse_args()

    golden_files.check_versions()
    transformers.utils.logging.disable_progress_bar()
    # One thread: the split of a sum over threads changes its last bits.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    if args.find_seed:
        print(find_seed(args.find_seed))
        return
    pictures = golden_pictures.write(args.out / "pictures")
    wrong = []
    for checkpoint in golden_models.CHECKPOINTS:
        wrong += make(args.out / checkpoint.name, checkpoint, pictures)
        print(f"wrote {args.out / checkpoint.name}")
    text = golden_text.record(args.out / golden_models.CHECKPOINTS[0].name)
    golden_files.write_json(args.out / "text.json", {"provenance": golden_files.provenance(), **text})
    if wrong:
        raise SystemExit("make_goldens: change the seed in tools/golden_models.py (--find-seed):\n" + "\n".join(wrong))


if __name__ == "__main__":
    main()
