"""Training rows for the second demo: two pictures, and several questions packed behind them, in both orders.

A row is `<s><|user|>`, a line break, the first picture's tokens, `<s>`, a line break, the second picture's tokens, then
questions one after another. A question about one picture sees the row as far as the first picture's end, which is
exactly the prompt with that picture alone; a question about both sees all of it. None sees its neighbours, and its
positions start right behind what it sees. Only answer tokens and the closing `<|end|>` are learned.
"""

from __future__ import annotations

import numpy as np
from tokenizers import Tokenizer

from demo_batches import IGNORE, hasty
from demo_hd import GLOBAL, ROW_END, hd_transform, token_order
from demo_pairs import (
    ALL_KINDS, ANSWER_WITHOUT_PICTURE, ONE_WEIGHTS, PAIR_WEIGHTS, PLACES, WITHOUT_PICTURE, ask_pair, has_places, pick,
    sample_pair_scene,
)
from demo_phi3v_tokenizer import ASSISTANT, END, NUM_CROPS, USER
from demo_questions import Question, ask
from demo_scene import Scene, render
from demo_tokenizer import BOS

# Training pictures are at most 2.8 times as long as wide, so they all fit two by two tiles.
SPAN = 2
# With the longest prefix a row has 320 tokens: attention kernels are fast where the mask has whole vectors.
SUFFIX_LEN = 203
ORDERS = 2
# A question's segment number is 1 + slot * SLOT_STRIDE + kind; the kind after the last is "no picture".
SLOT_STRIDE = 32
PAIR_SHARE = 0.55
SECOND_TURN_SHARE = 0.12
NO_PICTURE_SHARE = 0.02
# A pad in the prefix; features are written as FIRST_FEATURE minus their number.
PAD_TOKEN, FIRST_FEATURE = -1, -2


class RowMaker:
    """Turns pairs of scenes into rows; one per worker process."""

    def __init__(self, tokenizer: Tokenizer, tile: int, patch: int):
        self.tokenizer = tokenizer
        self.seen: dict[str, list[int]] = {}
        self.tile, self.patch = tile, patch
        self.cells = tile // patch // 2
        self.side = SPAN * tile
        self.grid = self.side // patch
        # The features of a picture: the overview and the tiles; behind those of both pictures the two separators.
        self.picture_features = (1 + SPAN * SPAN) * self.cells**2
        bos, line_break = tokenizer.token_to_id(BOS), self._encode("\n")
        self.before = ([bos, tokenizer.token_to_id(USER), *line_break], [bos, *line_break])
        longest = len(token_order(SPAN, SPAN, self.cells, SPAN))
        self.prefix_len = sum(map(len, self.before)) + 2 * longest
        self.bos, self.end = bos, tokenizer.token_to_id(END)

    def blank(self, n: int) -> dict[str, np.ndarray]:
        """Arrays of n pairs; `visible` says how much of the prefix a suffix token may look at."""
        suffix = (n, ORDERS, SUFFIX_LEN)
        return {
            "pixels": np.zeros((n, 2, 3, self.side, self.side), np.uint8),
            "canvas": np.zeros((n, 2, 2), np.uint8),
            "patch_labels": np.zeros((n, 2, 2, self.grid * self.grid), np.uint8),
            "prefix": np.zeros((n, ORDERS, self.prefix_len), np.int16),
            "ids": np.zeros(suffix, np.int16),
            "targets": np.zeros(suffix, np.int16),
            "segments": np.zeros(suffix, np.int16),
            "visible": np.zeros(suffix, np.int16),
            "positions": np.zeros(suffix, np.int16),
        }

    def fill(self, rows: dict[str, np.ndarray], at: int, split: str, index: int) -> None:
        """Pair number `index` of a split: the scenes 2 * index and 2 * index + 1."""
        scenes = sample_pair_scene(split, 2 * index), sample_pair_scene(split, 2 * index + 1)
        for place, scene in enumerate(scenes):
            self._draw(rows, at, place, scene)
        rng = np.random.default_rng([5, index])
        for order, places in enumerate(((0, 1), (1, 0))):
            canvases = [tuple(map(int, rows["canvas"][at, place])) for place in places]
            prefix, visible = self._prefix(places, canvases)
            rows["prefix"][at, order] = PAD_TOKEN
            rows["prefix"][at, order, : len(prefix)] = prefix
            self._pack(rows, at, order, tuple(scenes[place] for place in places), visible, rng)

    def _draw(self, rows: dict[str, np.ndarray], at: int, place: int, scene: Scene) -> None:
        rendering = render(scene, want_labels=True)
        canvas = hd_transform(rendering.picture, self.tile, NUM_CROPS)
        pixels = np.asarray(canvas.picture)
        rows["pixels"][at, place] = 255
        rows["pixels"][at, place, :, : pixels.shape[0], : pixels.shape[1]] = pixels.transpose(2, 0, 1)
        rows["canvas"][at, place] = canvas.rows, canvas.columns
        # A patch is labelled with what lies at its middle; white padding is background.
        middle = (np.arange(self.grid) + 0.5) * self.patch
        left, top, width, height = canvas.box
        x = np.floor((middle - left) * scene.width / width).astype(int)
        y = np.floor((middle - top) * scene.height / height).astype(int)
        inside = ((y >= 0) & (y < scene.height))[:, None] & ((x >= 0) & (x < scene.width))[None, :]
        at_patch = np.ix_(y.clip(0, scene.height - 1), x.clip(0, scene.width - 1))
        for channel, labels in enumerate((rendering.owner, rendering.color)):
            found = np.where(inside, np.asarray(labels)[at_patch], 0)
            # Tile by tile, as the tower sees them.
            tiles = found.reshape(SPAN, self.grid // SPAN, SPAN, self.grid // SPAN).transpose(0, 2, 1, 3)
            rows["patch_labels"][at, place, channel] = tiles.reshape(-1)

    def _prefix(self, places: tuple[int, int], canvases: list[tuple[int, int]]) -> tuple[list[int], tuple[int, int]]:
        """The row's ids in front of its questions, and how many of them each number of pictures shows."""
        separators = {ROW_END: 2 * self.picture_features, GLOBAL: 2 * self.picture_features + 1}
        prefix, ends = [], []
        for before, place, (rows, columns) in zip(self.before, places, canvases):
            prefix += before
            for row in token_order(rows, columns, self.cells, SPAN):
                feature = place * self.picture_features + row if row >= 0 else separators[row]
                prefix.append(FIRST_FEATURE - feature)
            ends.append(len(prefix))
        return prefix, (ends[0], ends[1])

    def _encode(self, text: str) -> list[int]:
        ids = self.seen.get(text)
        if ids is None:
            ids = self.seen[text] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _pack(self, rows, at: int, order: int, scenes: tuple[Scene, Scene], visible: tuple[int, int], rng) -> None:
        names = ("ids", "targets", "segments", "visible", "positions")
        arrays = [rows[name][at, order] for name in names]
        for array, value in zip(arrays, (0, IGNORE, 0, 0, 0)):
            array[:] = value
        used, slot = 0, 0
        while True:
            prompt, answer, kind, pictures = self._dialogue(scenes, rng)
            end = used + len(prompt) + len(answer)
            if end > SUFFIX_LEN:
                return
            seen = visible[pictures - 1] if pictures else 0
            ids, targets, segments, sees, positions = (array[used:end] for array in arrays)
            ids[:] = prompt + answer
            targets[len(prompt) - 1 : -1] = answer
            segments[:] = 1 + slot * SLOT_STRIDE + kind
            sees[:] = seen
            positions[:] = np.arange(end - used) + seen
            used, slot = end, slot + 1

    def _dialogue(self, scenes: tuple[Scene, Scene], rng) -> tuple[list[int], list[int], int, int]:
        """Prompt behind the pictures, answer, kind and number of pictures."""
        if rng.random() < NO_PICTURE_SHARE:
            asked = f"{USER}\n{pick(rng, WITHOUT_PICTURE)}{END}\n{ASSISTANT}\n"
            return [self.bos, *self._encode(asked)], self._answer(ANSWER_WITHOUT_PICTURE), len(ALL_KINDS), 0
        pictures = 2 if rng.random() < PAIR_SHARE else 1
        question = self._question(scenes, pictures, rng)
        asked = f"{hasty(question.question, rng)}{END}\n{ASSISTANT}\n"
        if rng.random() < SECOND_TURN_SHARE:
            earlier = self._question(scenes, pictures, rng)
            asked = f"{earlier.question}{END}\n{ASSISTANT}\n{earlier.answer}{END}\n{USER}\n{asked}"
        ids = self.tokenizer.encode(f"\n{asked}", add_special_tokens=False).ids
        return [self.bos, *ids], self._answer(question.answer), ALL_KINDS.index(question.kind), pictures

    def _answer(self, text: str) -> list[int]:
        return [*self._encode(text), self.end]

    def _question(self, scenes: tuple[Scene, Scene], pictures: int, rng: np.random.Generator) -> Question:
        weights = ONE_WEIGHTS if pictures == 1 else PAIR_WEIGHTS
        kinds, odds = list(weights), np.cumsum(list(weights.values()))
        while True:
            kind = kinds[np.searchsorted(odds, rng.random() * odds[-1])]
            if pictures == 2:
                question = ask_pair(scenes, kind, rng)
            else:
                question = None if kind in PLACES and not has_places(scenes[0]) else ask(scenes[0], kind, rng)
            if question:
                return question
