"""Held-out questions of the second demo model, about one picture or two, and exact accuracy on them."""

from __future__ import annotations

import io
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from PIL import Image

from demo_pairs import ALL_KINDS, ONE_WEIGHTS, PLACES, ask_pair, has_places, sample_pair_scene
from demo_phi3v_reference import Reference
from demo_questions import Question, ask
from demo_scene import Scene, encode

QUESTION_SEED = 11


@dataclass
class Item:
    scenes: list[Scene]
    question: Question


def heldout_item(index: int, kind: str) -> Item | None:
    """Item number `index`: the held-out scene 2 * index and, for a kind about two pictures, the next one."""
    rng = np.random.default_rng([QUESTION_SEED, index])
    first = sample_pair_scene("heldout", 2 * index)
    assert first.split() == "heldout"
    if kind in ONE_WEIGHTS:
        question = None if kind in PLACES and not has_places(first) else ask(first, kind, rng)
        return Item([first], question) if question else None
    second = sample_pair_scene("heldout", 2 * index + 1)
    question = ask_pair((first, second), kind, rng)
    return Item([first, second], question) if question else None


def item_of_turn(index: int) -> Item:
    """The kinds in turn; scenes that have no question of their kind pass to the next kind."""
    for turn in range(len(ALL_KINDS)):
        item = heldout_item(index, ALL_KINDS[(index + turn) % len(ALL_KINDS)])
        if item:
            return item
    raise ValueError(f"item {index} has no question of any kind")


def decoded(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def accuracy(reference: Reference, items: int) -> float:
    """Prints wrong answers and the accuracy by kind; returns the share of exact answers in per cent."""
    right: dict[str, int] = defaultdict(int)
    asked: dict[str, int] = defaultdict(int)
    for index in range(items):
        item = item_of_turn(index)
        question = item.question
        got = reference.answer([decoded(encode(scene)[0]) for scene in item.scenes], question.question).text
        asked[question.kind] += 1
        right[question.kind] += got == question.answer
        if got != question.answer:
            print(f"item {index}: {question.question}\n  right: {question.answer}\n  model: {got}", flush=True)
    for kind in ALL_KINDS:
        print(f"{kind:10} {right[kind]:3} of {asked[kind]:3}")
    share = 100 * sum(right.values()) / sum(asked.values())
    print(f"exact answers: {sum(right.values())} of {sum(asked.values())} ({share:.1f} %)", flush=True)
    return share
