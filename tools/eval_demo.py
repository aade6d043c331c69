#!/usr/bin/env python3
"""Checks the demo model under transformers, and makes the committed example pictures.

    python3 tools/eval_demo.py accuracy                 # 200 held-out pictures, exact answers, overall and per kind
    python3 tools/eval_demo.py pictures                 # rewrites demo/images and demo/images/expected.json

Both load the committed weights as float32 on the CPU, use the ordinary processor with its Pillow backend, and decode
greedily. `pictures` keeps only pictures that are answered with a comfortable margin and whose answer survives the few
levels by which JPEG decoders differ. Needs torch, transformers >= 5.17, tokenizers, safetensors, Pillow <= 12.1 (later
versions may resize in another order) and numpy.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from demo_examples import LONGEST_NAME, MIN_MARGIN, ROOT, require_committed, slug, steady, write_examples
from demo_questions import KINDS, Question, ask, summary
from demo_scene import Scene, encode, sample_scene

MODEL = ROOT / "demo" / "llava-shapes"
IMAGES = ROOT / "demo" / "images"
QUESTION_SEED = 7
# Numbers of held-out scenes: accuracy uses 0.., the example pictures 10_000.., training's progress lines 1_000_000...
FIRST_EXAMPLE = 10_000
MAX_NEW_TOKENS = 64
README_QUESTION = "What is in this picture?"
# Example pictures of each kind; the first is shapes.jpg, the README's.
EXAMPLES = {
    "summary": 13, "count": 5, "color": 3, "where": 4, "read": 5, "presence": 4, "shape": 2, "what_at": 2, "detail": 2,
}
PNG_EXAMPLES = 6
MAX_FILE_BYTES = 24_000


@dataclass
class Answer:
    text: str
    token_ids: list[int]
    min_margin: float


class Model:
    """A checkpoint under transformers."""

    def __init__(self, folder: Path, dtype: torch.dtype):
        self.processor = AutoProcessor.from_pretrained(folder, backend="pil")
        self.model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()

    def prompt(self, question: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    @torch.no_grad()
    def answer(self, picture: Image.Image, question: str) -> Answer:
        inputs = self.processor(images=picture, text=self.prompt(question), return_tensors="pt")
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        out = self.model.generate(
            **inputs,
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        ids = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        top = torch.cat(out.logits).float().topk(2).values
        text = self.processor.tokenizer.decode(ids, skip_special_tokens=True)
        return Answer(text, ids, (top[:, 0] - top[:, 1]).min().item())


def heldout_case(index: int, kind: str) -> tuple[Scene, Question | None]:
    scene = sample_scene("heldout", index)
    assert scene.split() == "heldout"
    return scene, ask(scene, kind, np.random.default_rng([QUESTION_SEED, index]))


def accuracy(args: argparse.Namespace) -> int:
    model = Model(args.model, torch.float32)
    right: dict[str, int] = defaultdict(int)
    asked: dict[str, int] = defaultdict(int)
    for index in range(args.pictures):
        # The kinds in turn; a scene that has no question of its kind passes to the next kind.
        for turn in range(len(KINDS)):
            scene, question = heldout_case(index, KINDS[(index + turn) % len(KINDS)])
            if question:
                break
        picture = Image.open(io.BytesIO(encode(scene)[0])).convert("RGB")
        got = model.answer(picture, question.question).text
        asked[question.kind] += 1
        right[question.kind] += got == question.answer
        if got != question.answer:
            print(f"picture {index}: {question.question}\n  right: {question.answer}\n  model: {got}")
    for kind in KINDS:
        print(f"{kind:9} {right[kind]:3} of {asked[kind]:3}")
    share = 100 * sum(right.values()) / sum(asked.values())
    print(f"exact answers: {sum(right.values())} of {sum(asked.values())} ({share:.1f} %), wanted {args.wanted:.1f} %")
    return 0 if share >= args.wanted else 1


def examples(readme_scene: int):
    """(scene number, kind, wants PNG) of the example pictures to try, endlessly; the README's comes first."""
    yield readme_scene, "summary", False
    kinds = [kind for kind, count in EXAMPLES.items() for _ in range(count)][1:]
    order = np.random.default_rng(QUESTION_SEED).permutation(len(kinds))
    index = FIRST_EXAMPLE
    for place, at in enumerate(order):
        wants_png = place % (len(kinds) // PNG_EXAMPLES) == 1
        accepted = False
        while not accepted:
            accepted = yield index, kinds[at], wants_png
            index += 1


def make_example(models: dict[str, Model], index: int, kind: str, wants_png: bool, first: bool, taken: set[str]):
    """An entry of expected.json and the picture's bytes, or None when the scene is not fit to be an example."""
    scene, question = heldout_case(index, kind)
    if question is None:
        return None
    if first:
        question = Question(kind, README_QUESTION, summary(scene))
    data, suffix = encode(scene)
    name = "shapes.jpg" if first else slug(scene) + suffix
    if len(data) > MAX_FILE_BYTES or (suffix == ".png") != wants_png or name in taken or len(name) > LONGEST_NAME:
        return None
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    answer = models["float32"].answer(picture, question.question)
    if answer.text != question.answer or answer.min_margin < MIN_MARGIN:
        return None
    if not steady(
        lambda moved: models["float32"].answer(moved[0], question.question).text, [picture], answer.text, index
    ):
        return None
    entry = {
        "file": name,
        "scene": index,
        "kind": kind,
        "question": question.question,
        "answer": question.answer,
        "text": answer.text,
        "token_ids": answer.token_ids,
        "min_margin": round(answer.min_margin, 3),
    }
    for dtype in ("float16", "bfloat16"):
        other = models[dtype].answer(picture, question.question)
        if other.text != answer.text:
            entry[f"text_{dtype}"] = other.text
    return entry, data


def pictures(args: argparse.Namespace) -> int:
    require_committed(args.model)
    models = {name: Model(args.model, getattr(torch, name)) for name in ("float32", "float16", "bfloat16")}
    entries: list[dict] = []
    files: dict[str, bytes] = {}
    candidates = examples(args.readme_scene)
    candidate = next(candidates)
    while True:
        made = make_example(models, *candidate, first=not entries, taken=set(files))
        if made:
            entries.append(made[0])
            files[made[0]["file"]] = made[1]
        elif not entries:
            sys.exit(f"scene {args.readme_scene} is not fit to be the README's picture; choose another --readme-scene")
        try:
            candidate = candidates.send(bool(made))
        except StopIteration:
            break
    head = {
        "about": "Held-out pictures, their true answers, and the text transformers generated greedily in float32.",
        "made_by": "tools/eval_demo.py pictures",
    }
    settings = {"question_seed": QUESTION_SEED, "max_new_tokens": MAX_NEW_TOKENS}
    write_examples(IMAGES, args.model, head, settings, entries, files)
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL, help="checkpoint folder")
    commands = parser.add_subparsers(required=True)
    check = commands.add_parser("accuracy", help="exact answers about held-out pictures")
    check.add_argument("--pictures", type=int, default=200)
    check.add_argument("--wanted", type=float, default=95.0, help="per cent below which the exit code is 1")
    check.set_defaults(run=accuracy)
    make = commands.add_parser("pictures", help="rewrite demo/images")
    make.add_argument("--readme-scene", type=int, default=22_937, help="held-out scene that becomes shapes.jpg")
    make.set_defaults(run=pictures)
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    sys.exit(args.run(args))


if __name__ == "__main__":
    main()
