"""Training rows for the demo model: one picture, and several questions about it packed behind it.

A row is `<s> USER: ` and the picture's tokens, seen by every question, then the questions one after another. Each
question sees the picture and itself but not its neighbours, and its positions start right behind the picture, so to
the model every question is the first one. The picture is encoded once for about six answers. Only answer tokens and
the closing `</s>` are learned.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from demo_questions import ANSWER_WITHOUT_PICTURE, KINDS, WEIGHTS, WITHOUT_PICTURE, Question, ask
from demo_scene import Scene, render, sample_scene
from demo_tokenizer import BOS, EOS

IGNORE = -100
PREFIX_TEXT = "USER: "
SUFFIX_LEN = 172
ROWS_PER_PICTURE = 2
# A question's segment number is 1 + slot * SLOT_STRIDE + kind; one that has no picture is shifted by NO_PICTURE.
SLOT_STRIDE = 16
NO_PICTURE = 1024
KIND_ODDS = np.cumsum([WEIGHTS[kind] for kind in KINDS])
SECOND_TURN_SHARE = 0.12
NO_PICTURE_SHARE = 0.02


@dataclass
class Rows:
    """Arrays of n pictures with r rows each; see `empty_rows` for shapes."""

    pixels: np.ndarray
    patch_labels: np.ndarray
    ids: np.ndarray
    targets: np.ndarray
    segments: np.ndarray
    positions: np.ndarray


def empty_rows(n: int, image_size: int, grid: int) -> Rows:
    r = ROWS_PER_PICTURE
    return Rows(
        pixels=np.zeros((n, 3, image_size, image_size), np.uint8),
        patch_labels=np.zeros((n, 2, grid * grid), np.uint8),
        ids=np.zeros((n, r, SUFFIX_LEN), np.int16),
        targets=np.full((n, r, SUFFIX_LEN), IGNORE, np.int16),
        segments=np.zeros((n, r, SUFFIX_LEN), np.int16),
        positions=np.zeros((n, r, SUFFIX_LEN), np.int16),
    )


def fit_to_clip(picture: Image.Image, size: int) -> Image.Image:
    """CLIP's geometry: shortest edge to `size`, bicubic, then the central square."""
    width, height = picture.size
    short = min(width, height)
    picture = picture.resize((size * width // short, size * height // short), Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return picture.crop((left, top, left + size, top + size))


class RowMaker:
    """Turns scenes into rows; one per worker process."""

    def __init__(self, tokenizer: Tokenizer, image_size: int, patch_size: int):
        self.tokenizer = tokenizer
        self.seen: dict[str, list[int]] = {}
        self.image_size = image_size
        self.grid = image_size // patch_size
        self.prefix_ids = [tokenizer.token_to_id(BOS), *self._encode(PREFIX_TEXT)]
        self.prefix_len = len(self.prefix_ids) + self.grid * self.grid
        self.eos = tokenizer.token_to_id(EOS)

    def fill(self, rows: Rows, at: int, split: str, index: int) -> None:
        scene = sample_scene(split, index)
        rendering = render(scene, want_labels=True)
        picture = fit_to_clip(rendering.picture, self.image_size)
        rows.pixels[at] = np.asarray(picture).transpose(2, 0, 1)
        # A patch is labelled with what lies at its middle.
        side = min(scene.width, scene.height)
        middle = ((np.arange(self.grid) + 0.5) * side / self.grid).astype(int)
        at_patch = np.ix_(middle + (scene.height - side) // 2, middle + (scene.width - side) // 2)
        for channel, labels in enumerate((rendering.owner, rendering.color)):
            rows.patch_labels[at, channel] = np.asarray(labels)[at_patch].reshape(-1)
        rng = np.random.default_rng([4, index])
        for row in range(ROWS_PER_PICTURE):
            self._pack(rows, at, row, scene, rng)

    def _encode(self, text: str) -> list[int]:
        ids = self.seen.get(text)
        if ids is None:
            ids = self.seen[text] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _pack(self, rows: Rows, at: int, row: int, scene: Scene, rng: np.random.Generator) -> None:
        used, slot = 0, 0
        target = rows.ids[at, row], rows.targets[at, row], rows.segments[at, row], rows.positions[at, row]
        target[0][:], target[1][:], target[2][:], target[3][:] = 0, IGNORE, 0, 0
        while True:
            prompt, answer, kind, with_picture = self._dialogue(scene, rng)
            end = used + len(prompt) + len(answer)
            if end > SUFFIX_LEN:
                return
            ids, targets, segments, positions = (array[used:end] for array in target)
            ids[:] = prompt + answer
            targets[len(prompt) - 1 : -1] = answer
            segments[:] = 1 + slot * SLOT_STRIDE + kind + (0 if with_picture else NO_PICTURE)
            positions[:] = np.arange(end - used) + (self.prefix_len if with_picture else 0)
            used, slot = end, slot + 1

    def _dialogue(self, scene: Scene, rng: np.random.Generator) -> tuple[list[int], list[int], int, bool]:
        if rng.random() < NO_PICTURE_SHARE:
            text = WITHOUT_PICTURE[rng.integers(len(WITHOUT_PICTURE))]
            prompt = [self.prefix_ids[0], *self._encode(f"USER: {text} ASSISTANT:")]
            return prompt, [*self._encode(ANSWER_WITHOUT_PICTURE), self.eos], len(KINDS), False
        question = self._question(scene, rng)
        text = hasty(question.question, rng)
        prompt = self._encode(f"\n{text} ASSISTANT:")
        if rng.random() < SECOND_TURN_SHARE:
            earlier = self._question(scene, rng)
            # Encoding word by word gives what encoding the whole gives: no piece reaches over a space.
            before = self._encode(f"\n{earlier.question} ASSISTANT:") + self._encode(earlier.answer)
            prompt = before + self._encode(f"USER: {text} ASSISTANT:")
        return prompt, [*self._encode(question.answer), self.eos], KINDS.index(question.kind), True

    def _question(self, scene: Scene, rng: np.random.Generator) -> Question:
        while True:
            question = ask(scene, KINDS[np.searchsorted(KIND_ODDS, rng.random() * KIND_ODDS[-1])], rng)
            if question:
                return question


def hasty(text: str, rng: np.random.Generator) -> str:
    """Now and then the question of someone in a hurry: no capital, no question mark."""
    if rng.random() < 0.08:
        text = text[0].lower() + text[1:]
    return text.rstrip("?.") if rng.random() < 0.08 else text
