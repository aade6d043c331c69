#!/usr/bin/env python3
"""Trains the demo model from scratch on synthetic pictures and writes it in Hugging Face layout.

    python3 tools/train_demo.py --out demo/llava-shapes --minutes 9

The way of training is tools/demo_training.py's. One H200 with 16 cores reaches the committed model's accuracy; without
a GPU the script runs too (`--batch 8 --minutes 2 --workers 1 --pool 512 --validation 64 --no-compile` shows that every
part works), but learns next to nothing. Needs torch, transformers >= 5.17, tokenizers, safetensors, Pillow and numpy.
Check the result with tools/eval_demo.py.
"""

from __future__ import annotations

import os
import time

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import torch.nn.functional as F

from demo_batches import IGNORE, NO_PICTURE, ROWS_PER_PICTURE, SLOT_STRIDE, RowMaker, Rows, empty_rows
from demo_model import IMAGE_SIZE, PATCH_SIZE, PackedLlava, build_model, save_hub
from demo_questions import KINDS
from demo_scene import COLORS, SHAPES
from demo_tokenizer import IMAGE, PAD, build_tokenizer, save_processor
from demo_training import Arrays, Filler, Pool, Tally, jitter, normalise, parser_of, run

GRID = IMAGE_SIZE // PATCH_SIZE
OWNERS = 1 + len(SHAPES) + 26 + 10


class LlavaTask:
    """One picture and questions about it; see demo_training.Task."""

    def __init__(self):
        self.tokenizer = build_tokenizer()

    def blank(self, n: int) -> Arrays:
        return vars(empty_rows(n, IMAGE_SIZE, GRID))

    def filler(self) -> Filler:
        maker = RowMaker(self.tokenizer, IMAGE_SIZE, PATCH_SIZE)
        return lambda arrays, at, split, index: maker.fill(Rows(**arrays), at, split, index)

    def batch(self, pool: Pool, n: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        index = torch.randint(pool.size, (n,), device=pool.device, generator=generator)
        row = torch.randint(ROWS_PER_PICTURE, (n,), device=pool.device, generator=generator)
        batch = self._take(pool, index, row)
        return {**batch, "pixels": jitter(batch["pixels"], generator)}

    def _take(self, pool: Pool, index: torch.Tensor, row: torch.Tensor) -> dict[str, torch.Tensor]:
        rows = pool.arrays
        batch = {"pixels": rows["pixels"][index], "patch_labels": rows["patch_labels"][index].long()}
        for field in ("ids", "targets", "segments", "positions"):
            batch[field] = rows[field][index, row].long()
        return batch

    def losses(self, net: PackedLlava, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        pixel_values = normalise(batch["pixels"])
        logits, owner, color = net(pixel_values, batch["ids"], batch["segments"], batch["positions"], NO_PICTURE)
        answers = F.cross_entropy(logits.flatten(0, 1).float(), batch["targets"].flatten(), ignore_index=IGNORE)
        labels = batch["patch_labels"]
        patches = F.cross_entropy(owner.flatten(0, 1).float(), labels[:, 0].flatten())
        patches = patches + F.cross_entropy(color.flatten(0, 1).float(), labels[:, 1].flatten())
        return answers, patches

    @torch.no_grad()
    def validate(self, net: PackedLlava, pool: Pool, batch_size: int) -> dict[str, tuple[int, int]]:
        """Right and asked per kind, each picture's first row."""
        tally = Tally((*KINDS, "no picture"))
        for start in range(0, pool.size, batch_size):
            index = torch.arange(start, min(start + batch_size, pool.size), device=pool.device)
            batch = self._take(pool, index, torch.zeros_like(index))
            with torch.autocast(pool.device.type, dtype=torch.bfloat16):
                logits = net(
                    normalise(batch["pixels"].float()), batch["ids"], batch["segments"], batch["positions"], NO_PICTURE
                )[0]
            kinds = (batch["segments"] - 1) % NO_PICTURE % SLOT_STRIDE
            tally.add(logits, batch["targets"], batch["segments"], kinds)
        return tally.counts()


def main() -> None:
    began = time.time()
    parser = parser_of(__doc__, batch=512, pool=800_000)
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="float16", help="dtype of the weight file")
    args = parser.parse_args()
    task = LlavaTask()
    tokenizer = task.tokenizer

    def build() -> tuple[PackedLlava, list[torch.nn.Module]]:
        model = build_model(tokenizer.get_vocab_size(), tokenizer.token_to_id(IMAGE), tokenizer.token_to_id(PAD))
        print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
        prefix_ids = RowMaker(tokenizer, IMAGE_SIZE, PATCH_SIZE).prefix_ids
        tower = model.model.vision_tower
        unused = [tower.encoder.layers[-1], tower.post_layernorm]
        return PackedLlava(model, prefix_ids, OWNERS, 1 + len(COLORS)), unused

    net = run(task, args, began, build)
    args.out.mkdir(parents=True, exist_ok=True)
    save_hub(args.out, net.llava, getattr(torch, args.dtype))
    save_processor(args.out, tokenizer, IMAGE_SIZE, PATCH_SIZE)


if __name__ == "__main__":
    main()
