#!/usr/bin/env python3
"""Checks the second demo model with transformers' parts, and makes its committed example pictures.

    python3 tools/eval_phi3v_demo.py accuracy           # 200 held-out questions, exact answers, overall and per kind
    python3 tools/eval_phi3v_demo.py pictures           # rewrites demo/pairs and demo/pairs/expected.json

Both load the committed weights as float32 on the CPU and decode greedily; see demo_phi3v_reference. `pictures` keeps
only questions that are answered with a comfortable margin, and whose answer survives the few levels by which JPEG
decoders differ. Needs what tools/eval_demo.py needs.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

import numpy as np
import torch
import transformers

from demo_examples import LONGEST_NAME, MIN_MARGIN, ROOT, require_committed, slug, steady, write_examples
from demo_pairs import PLACES
from demo_phi3v_items import QUESTION_SEED, accuracy, decoded, heldout_item
from demo_phi3v_reference import MAX_NEW_TOKENS, Reference
from demo_phi3v_tokenizer import user_prompt
from demo_scene import Scene, encode

MODEL = ROOT / "demo" / "phi3v-shapes"
PAIRS = ROOT / "demo" / "pairs"
# Items have numbers: accuracy uses 0.., the example pictures 10_000.., training's progress lines 1_000_000...
FIRST_EXAMPLE = 10_000
README_NAMES = ("first.jpg", "second.jpg")
EXAMPLES = {
    "more": 6, "both": 4, "which": 4, "total": 3, "summary_in": 3, "count_in": 2, "color_in": 2,
    "summary": 3, "count": 3, "presence": 3, "color": 2, "what_at": 2, "where": 1, "shape": 1, "detail": 1,
}
# What one picture of an item shall be, in turn; a long one is cut into two tiles instead of four.
WISHES = ("any", "wide", "png", "tall")
LONG = 2.0
MAX_FILE_BYTES = 14_000


@dataclass
class Made:
    """An entry of expected.json and its pictures by name."""

    entry: dict
    files: dict[str, bytes]


def fulfils(wish: str, scene: Scene) -> bool:
    match wish:
        case "wide":
            return scene.width >= LONG * scene.height
        case "tall":
            return scene.height >= LONG * scene.width
        case "png":
            return scene.camera.jpeg is None
    return True


def named(scenes: list[Scene], names: tuple[str, ...] | None, taken: set[str]) -> dict[str, bytes] | None:
    """The pictures by file name, or None when a file is too large or has a name that is taken or long."""
    files: dict[str, bytes] = {}
    for place, scene in enumerate(scenes):
        data, suffix = encode(scene)
        name = names[place] if names else slug(scene) + suffix
        if len(data) > MAX_FILE_BYTES or name in taken or name in files or len(name) > LONGEST_NAME:
            return None
        files[name] = data
    return files


def make_example(
    references: dict[str, Reference], index: int, kind: str, wish: str, names: tuple[str, ...] | None, taken: set[str]
) -> Made | None:
    """The item as an example, or None when it is not fit to be one."""
    item = heldout_item(index, kind)
    if item is None or not any(fulfils(wish, scene) for scene in item.scenes):
        return None
    files = named(item.scenes, names, taken)
    if files is None:
        return None
    question, right = item.question.question, item.question.answer
    pictures = [decoded(data) for data in files.values()]
    answer = references["float32"].answer(pictures, question)
    if answer.text != right or answer.min_margin < MIN_MARGIN:
        return None
    if not steady(lambda moved: references["float32"].answer(moved, question).text, pictures, right, index):
        return None
    entry = {
        "pictures": list(files),
        "item": index,
        "kind": kind,
        "question": question,
        "prompt": user_prompt(question, len(files)),
        "prompt_tokens": answer.prompt_tokens,
        "answer": right,
        "text": answer.text,
        "token_ids": answer.token_ids,
        "min_margin": round(answer.min_margin, 3),
    }
    for dtype in ("float16", "bfloat16"):
        other = references[dtype].answer(pictures, question)
        if other.text != answer.text:
            entry[f"text_{dtype}"] = other.text
    return Made(entry, files)


def wanted_examples() -> Iterator[tuple[str, str]]:
    """(kind, wish) of the examples behind the README's, mixed."""
    kinds = [kind for kind, count in EXAMPLES.items() for _ in range(count)][1:]
    for place, at in enumerate(np.random.default_rng(QUESTION_SEED).permutation(len(kinds))):
        wish = WISHES[place % len(WISHES)]
        # Long pictures have no questions about places.
        yield kinds[at], "any" if kinds[at] in PLACES and wish in ("wide", "tall") else wish


def pictures(args: argparse.Namespace) -> int:
    require_committed(args.model)
    references = {
        name: Reference(args.model, torch.device("cpu"), getattr(torch, name))
        for name in ("float32", "float16", "bfloat16")
    }
    made = [make_example(references, args.readme_item, next(iter(EXAMPLES)), "any", README_NAMES, set())]
    if made[0] is None:
        sys.exit(f"item {args.readme_item} is not fit to be the README's; choose another --readme-item")
    files = dict(made[0].files)
    index = FIRST_EXAMPLE
    for kind, wish in wanted_examples():
        example = None
        while example is None:
            if index != args.readme_item:
                example = make_example(references, index, kind, wish, None, set(files))
            index += 1
        made.append(example)
        files |= example.files
    head = {
        "about": "Held-out questions about one or two pictures, their true answers, and the text generated greedily in "
        "float32 by transformers' Phi-3 and CLIP put together.",
        "made_by": "tools/eval_phi3v_demo.py pictures",
    }
    settings = {"question_seed": QUESTION_SEED, "max_new_tokens": MAX_NEW_TOKENS}
    write_examples(PAIRS, args.model, head, settings, [example.entry for example in made], files)
    return 0


def check_accuracy(args: argparse.Namespace) -> int:
    share = accuracy(Reference(args.model, torch.device("cpu")), args.items)
    print(f"wanted {args.wanted:.1f} %")
    return 0 if share >= args.wanted else 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL, help="checkpoint folder")
    commands = parser.add_subparsers(required=True)
    check = commands.add_parser("accuracy", help="exact answers to held-out questions")
    check.add_argument("--items", type=int, default=200)
    check.add_argument("--wanted", type=float, default=95.0, help="per cent below which the exit code is 1")
    check.set_defaults(run=check_accuracy)
    make = commands.add_parser("pictures", help="rewrite demo/pairs")
    make.add_argument("--readme-item", type=int, default=10_156, help="held-out item: first.jpg and second.jpg")
    make.set_defaults(run=pictures)
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    sys.exit(args.run(args))


if __name__ == "__main__":
    main()
