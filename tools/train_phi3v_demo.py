#!/usr/bin/env python3
"""Trains the second demo model, a very small Phi-3-vision, and writes it in the layout of the files on the hub.

    python3 tools/train_phi3v_demo.py --out demo/phi3v-shapes --minutes 8.2

It answers questions about one picture and compares two. The way of training is tools/demo_training.py's; one H200 with
16 cores reaches the committed model's accuracy. Without a GPU the script runs too (`--batch 4 --minutes 2 --workers 1
--pool 512 --validation 64 --no-compile --evaluate 8` shows that every part works), but learns next to nothing. Needs
torch, transformers >= 5.17, tokenizers, safetensors, Pillow and numpy. At the end it loads the written files again and
answers held-out questions with them.
"""

from __future__ import annotations

import functools
import os
import time

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import torch.nn.functional as F

from demo_batches import IGNORE
from demo_hd import cut
from demo_pairs import ALL_KINDS
from demo_phi3v_batches import SLOT_STRIDE, SPAN, RowMaker
from demo_phi3v_items import accuracy
from demo_phi3v_model import PATCH, TEXT, TILE, TILE_TOKENS, PackedPhi3V, Phi3V, VISION, save_hub, text_config
from demo_phi3v_reference import Reference
from demo_phi3v_tokenizer import END_OF_TEXT, build_tokenizer, save_processor
from demo_scene import COLORS, SHAPES
from demo_tokenizer import BOS, EOS
from demo_training import Arrays, Filler, Pool, Tally, jitter, normalise, parser_of, run

OWNERS = 1 + len(SHAPES)
TEXT_FIELDS = ("prefix", "ids", "segments", "visible", "positions")


@functools.lru_cache(maxsize=1)
def bicubic_squashing(device: torch.device) -> torch.Tensor:
    """[SPAN, TILE, SPAN * TILE]: the overview's interpolation along one axis, of the first tile alone or of more."""
    matrices = []
    for used in range(TILE, (SPAN + 1) * TILE, TILE):
        unit = torch.eye(used)[None, None]
        matrix = F.interpolate(unit, size=(used, TILE), mode="bicubic", align_corners=False)[0, 0].T
        matrices.append(F.pad(matrix, (0, SPAN * TILE - used)))
    return torch.stack(matrices).to(device)


def tiles_of(pixels: torch.Tensor, canvas: torch.Tensor) -> torch.Tensor:
    """Normalised [m, 3, s, s] and its tile counts [m, 2] to the overview and the tiles, [m, 5, 3, TILE, TILE]."""
    matrices = bicubic_squashing(pixels.device)
    down, across = matrices[canvas[:, 0] - 1], matrices[canvas[:, 1] - 1]
    small = torch.einsum("mys,mcst,mxt->mcyx", down, pixels, across)
    return torch.cat([small[:, None], cut(pixels, TILE)], dim=1)


class Phi3VTask:
    """Two pictures and questions about them; see demo_training.Task."""

    def __init__(self):
        self.tokenizer = build_tokenizer()
        self.maker = RowMaker(self.tokenizer, TILE, PATCH)

    def blank(self, n: int) -> Arrays:
        return self.maker.blank(n)

    def filler(self) -> Filler:
        return self.maker.fill

    def batch(self, pool: Pool, n: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        index = torch.randint(pool.size, (n,), device=pool.device, generator=generator)
        return self._take(pool, index, lambda pixels: jitter(pixels, generator))

    def _take(self, pool: Pool, index: torch.Tensor, alter) -> dict[str, torch.Tensor]:
        rows = pool.arrays
        batch = {name: rows[name][index].long() for name in (*TEXT_FIELDS, "targets", "patch_labels")}
        pixels = normalise(alter(rows["pixels"][index].flatten(0, 1)))
        tiles = tiles_of(pixels, rows["canvas"][index].long().flatten(0, 1))
        batch["tiles"] = tiles.view(len(index), 2, *tiles.shape[1:])
        return batch

    def losses(self, net: PackedPhi3V, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        logits, owner, color = net(batch["tiles"], *(batch[name] for name in TEXT_FIELDS))
        answers = F.cross_entropy(logits.flatten(0, 2).float(), batch["targets"].flatten(), ignore_index=IGNORE)
        labels = batch["patch_labels"]
        patches = F.cross_entropy(owner.flatten(0, 3).float(), labels[:, :, 0].flatten())
        patches = patches + F.cross_entropy(color.flatten(0, 3).float(), labels[:, :, 1].flatten())
        return answers, patches

    @torch.no_grad()
    def validate(self, net: PackedPhi3V, pool: Pool, batch_size: int) -> dict[str, tuple[int, int]]:
        """Right and asked per kind, in both orders of every pair."""
        tally = Tally((*ALL_KINDS, "no picture"))
        for start in range(0, pool.size, batch_size):
            index = torch.arange(start, min(start + batch_size, pool.size), device=pool.device)
            batch = self._take(pool, index, torch.Tensor.float)
            with torch.autocast(pool.device.type, dtype=torch.bfloat16):
                logits = net(batch["tiles"], *(batch[name] for name in TEXT_FIELDS))[0]
            tally.add(logits, batch["targets"], batch["segments"], (batch["segments"] - 1) % SLOT_STRIDE)
        return tally.counts()


def main() -> None:
    began = time.time()
    parser = parser_of(__doc__, batch=256, pool=520_000)
    parser.add_argument("--evaluate", type=int, default=200, help="held-out questions for the written files")
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="bfloat16", help="dtype of the weight file")
    args = parser.parse_args()
    task = Phi3VTask()
    ids = [task.tokenizer.token_to_id(token) for token in (BOS, EOS, END_OF_TEXT)]

    def build() -> tuple[PackedPhi3V, list[torch.nn.Module]]:
        model = Phi3V(VISION, text_config(task.tokenizer.get_vocab_size(), *ids))
        print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
        return PackedPhi3V(model, OWNERS, 1 + len(COLORS)), model.untrained()

    net = run(task, args, began, build)
    args.out.mkdir(parents=True, exist_ok=True)
    save_hub(args.out, net.model, getattr(torch, args.dtype))
    save_processor(args.out, task.tokenizer, TILE_TOKENS, TEXT["max_position_embeddings"])
    print(f"written at {time.time() - began:.0f} s", flush=True)
    torch.set_float32_matmul_precision("highest")
    accuracy(Reference(args.out, next(net.parameters()).device), args.evaluate)
    print(f"done at {time.time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
