#!/usr/bin/env python3
"""Trains the demo model from scratch on synthetic pictures and writes it in Hugging Face layout.

    python3 tools/train_demo.py --out demo/llava-shapes --minutes 9

Worker processes draw new pictures all the time; the GPU trains on the growing pool. The learning rate follows the
clock, so a run of any length ends annealed. One H200 with 16 cores reaches the committed model's accuracy; without a
GPU the script runs too (`--batch 8 --minutes 2 --workers 1 --validation 64 --no-compile` shows that every part
works), but learns next to nothing. Needs torch, transformers >= 5.17, tokenizers, safetensors, Pillow and numpy. Check
the result with tools/eval_demo.py.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import threading
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import torch.multiprocessing as mp
import torch.nn.functional as F

from demo_batches import IGNORE, NO_PICTURE, ROWS_PER_PICTURE, SLOT_STRIDE, RowMaker, Rows, empty_rows
from demo_model import IMAGE_SIZE, PATCH_SIZE, PackedLlava, build_model, save_hub
from demo_questions import KINDS
from demo_scene import COLORS, SHAPES
from demo_tokenizer import CLIP_MEAN, CLIP_STD, IMAGE, PAD, build_tokenizer, save_processor

CHUNK = 64
GRID = IMAGE_SIZE // PATCH_SIZE
OWNERS = 1 + len(SHAPES) + 26 + 10
FIELDS = tuple(Rows.__dataclass_fields__)
# Validation pictures are held out, and far from the numbers that tools/eval_demo.py uses.
VALIDATION_START = 1_000_000


def shared_rows() -> Rows:
    rows = empty_rows(CHUNK, IMAGE_SIZE, GRID)
    return Rows(**{field: torch.from_numpy(getattr(rows, field)).share_memory_() for field in FIELDS})


def draw_forever(
    slots: list[Rows], free: mp.Queue, full: mp.Queue, worker: int, workers: int, validation: int, first: int
) -> None:
    """A worker: fills free slots with its share of the validation pictures, then with training pictures for ever."""
    os.nice(5)
    torch.set_num_threads(1)
    maker = RowMaker(build_tokenizer(), IMAGE_SIZE, PATCH_SIZE)
    views = [Rows(**{field: getattr(slot, field).numpy() for field in FIELDS}) for slot in slots]

    def draw(split: str, start: int) -> None:
        slot = free.get()
        for at in range(CHUNK):
            maker.fill(views[slot], at, split, start + at)
        full.put((slot, split))

    for chunk in range(worker, validation // CHUNK, workers):
        draw("heldout", VALIDATION_START + chunk * CHUNK)
    for chunk in itertools.count(worker, workers):
        draw("train", first + chunk * CHUNK)


class Workers:
    """The drawing processes and the slots of shared memory that they fill."""

    def __init__(self, count: int, validation: int, first: int):
        # Forked before CUDA starts: the workers never touch the GPU.
        context = mp.get_context("fork")
        self.free, self.full = context.Queue(), context.Queue()
        self.slots = [shared_rows() for _ in range(2 * count)]
        for slot in range(len(self.slots)):
            self.free.put(slot)
        self.processes = [
            context.Process(
                target=draw_forever,
                args=(self.slots, self.free, self.full, worker, count, validation, first),
                daemon=True,
            )
            for worker in range(count)
        ]
        for process in self.processes:
            process.start()

    def feed(self, pools: dict[str, Pool]) -> None:
        """Copies every finished chunk into its pool; runs in a thread of its own."""
        while True:
            slot, split = self.full.get()
            pools[split].add(self.slots[slot])
            self.free.put(slot)

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()


class Pool:
    """Pictures and rows on the training device; a thread copies finished chunks in while training reads."""

    def __init__(self, capacity: int, device: torch.device):
        self.device = device
        self.capacity = capacity
        self.drawn = 0
        self.stream = torch.cuda.Stream() if device.type == "cuda" else None
        blank = empty_rows(1, IMAGE_SIZE, GRID)
        self.rows = Rows(**{
            field: torch.empty((capacity, *array.shape[1:]), dtype=torch.from_numpy(array).dtype, device=device)
            for field, array in vars(blank).items()
        })

    @property
    def size(self) -> int:
        return min(self.drawn, self.capacity)

    def add(self, chunk: Rows) -> None:
        at = self.drawn % self.capacity
        with torch.cuda.stream(self.stream):
            for field in FIELDS:
                getattr(self.rows, field)[at : at + CHUNK].copy_(getattr(chunk, field))
        if self.stream:
            self.stream.synchronize()
        self.drawn += CHUNK

    def batch(self, n: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        index = torch.randint(self.size, (n,), device=self.device, generator=generator)
        row = torch.randint(ROWS_PER_PICTURE, (n,), device=self.device, generator=generator)
        return self.take(index, row)

    def take(self, index: torch.Tensor, row: torch.Tensor) -> dict[str, torch.Tensor]:
        rows = self.rows
        batch = {"pixels": rows.pixels[index], "patch_labels": rows.patch_labels[index].long()}
        for field in ("ids", "targets", "segments", "positions"):
            batch[field] = getattr(rows, field)[index, row].long()
        return batch


def jitter(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A shift of up to five pixels, a little gain, tint and noise; u8 [n, 3, s, s] -> f32 in 0..255."""
    n, _, side, _ = pixels.shape
    device = pixels.device
    steps = torch.arange(side, device=device)
    shift = torch.randint(-5, 6, (2, n, 1), device=device, generator=generator)
    y, x = (steps[None] + shift).clamp(0, side - 1)
    moved = pixels[torch.arange(n, device=device)[:, None, None], :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)
    gain = 1 + 0.06 * (2 * torch.rand(n, 1, 1, 1, device=device, generator=generator) - 1)
    gain = gain + 0.03 * (2 * torch.rand(n, 3, 1, 1, device=device, generator=generator) - 1)
    noise = torch.randn(moved.shape, device=device, generator=generator)
    return (moved * gain + 1.5 * noise).clamp(0, 255)


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    mean = torch.tensor(CLIP_MEAN, device=pixels.device).view(1, 3, 1, 1)
    std = torch.tensor(CLIP_STD, device=pixels.device).view(1, 3, 1, 1)
    return (pixels / 255 - mean) / std


def loss_terms(net: PackedLlava, pixel_values, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy of the answer tokens, and of the patch labels."""
    logits, owner, color = net(pixel_values, batch["ids"], batch["segments"], batch["positions"], NO_PICTURE)
    answers = F.cross_entropy(logits.flatten(0, 1).float(), batch["targets"].flatten(), ignore_index=IGNORE)
    labels = batch["patch_labels"]
    patches = F.cross_entropy(owner.flatten(0, 1).float(), labels[:, 0].flatten())
    patches = patches + F.cross_entropy(color.flatten(0, 1).float(), labels[:, 1].flatten())
    return answers, patches


@torch.no_grad()
def validate(net: PackedLlava, pool: Pool, batch_size: int) -> dict[str, tuple[int, int]]:
    """Right and asked per kind. An answer is right when every token is the likeliest, as greedy decoding needs."""
    tally = {kind: [0, 0] for kind in (*KINDS, "no picture")}
    for start in range(0, pool.size, batch_size):
        index = torch.arange(start, min(start + batch_size, pool.size), device=pool.device)
        batch = pool.take(index, torch.zeros_like(index))
        with torch.autocast(pool.device.type, dtype=torch.bfloat16):
            logits = net(
                normalise(batch["pixels"].float()), batch["ids"], batch["segments"], batch["positions"], NO_PICTURE
            )[0]
        wrong = (logits.argmax(-1) != batch["targets"]) & (batch["targets"] != IGNORE)
        for row_wrong, row_segments in zip(wrong.cpu(), batch["segments"].cpu()):
            for segment in row_segments[row_segments > 0].unique().tolist():
                kind = list(tally)[(segment - 1) % NO_PICTURE % SLOT_STRIDE]
                tally[kind][0] += int(not row_wrong[row_segments == segment].any())
                tally[kind][1] += 1
    return {kind: (right, asked) for kind, (right, asked) in tally.items() if asked}


def accuracy_line(tally: dict[str, tuple[int, int]]) -> str:
    right, asked = (sum(column) for column in zip(*tally.values()))
    kinds = " ".join(f"{kind} {100 * r / a:.1f}" for kind, (r, a) in tally.items())
    return f"held-out answers right {100 * right / asked:.2f} % of {asked}: {kinds}"


def learning_rate(step: int, progress: float, peak: float, warmup: int) -> float:
    return peak * min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def optimizer_for(net: torch.nn.Module, peak: float, weight_decay: float, fused: bool) -> torch.optim.AdamW:
    unused = {id(p) for p in net.llava.model.vision_tower.encoder.layers[-1].parameters()}
    unused |= {id(p) for p in net.llava.model.vision_tower.post_layernorm.parameters()}
    used = [p for p in net.parameters() if id(p) not in unused]
    matrices = [p for p in used if p.ndim >= 2]
    vectors = [p for p in used if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=fused)


def wait_for(pool: Pool, pictures: int) -> None:
    began = time.time()
    while pool.drawn < pictures:
        time.sleep(0.1)
    print(f"{pool.drawn} pictures drawn in {time.time() - began:.1f} s more", flush=True)


def train(
    net: PackedLlava, pools: dict[str, Pool], args: argparse.Namespace, device: torch.device, began: float
) -> int:
    """Trains until the time is up; the number of steps taken."""
    fast = torch.compile(net) if args.compile else net
    optimizer = optimizer_for(net, args.lr, args.weight_decay, fused=device.type == "cuda")
    generator = torch.Generator(device).manual_seed(args.seed)
    pool, step, deadline = pools["train"], 0, began + 60 * args.minutes
    start = report = time.time()
    while time.time() < deadline:
        progress = (time.time() - start) / (deadline - start)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, progress, args.lr, args.warmup)
        batch = pool.batch(args.batch, generator)
        pixel_values = normalise(jitter(batch["pixels"], generator))
        with torch.autocast(device.type, dtype=torch.bfloat16):
            answers, patches = loss_terms(fast, pixel_values, batch)
        (answers + args.patch_weight * (1 - progress) * patches).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        # Reading a loss waits for the GPU; doing it rarely also keeps the clock that steers the schedule honest.
        if step % 20 == 0 or device.type == "cpu":
            answers.item()
        if step % args.report == 0:
            rate = args.report * args.batch / (time.time() - report)
            print(
                f"step {step} at {time.time() - start:.0f} s: "
                f"answers {answers.item():.4f} patches {patches.item():.4f} "
                f"drawn {pool.drawn} trained {rate:.0f} pictures/s",
                flush=True,
            )
            report = time.time()
        if step % (5 * args.report) == 0:
            print(accuracy_line(validate(net, pools["heldout"], args.batch)), flush=True)
            report = time.time()
    return step


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished checkpoint")
    parser.add_argument("--minutes", type=float, default=9.0, help="wall-clock minutes of drawing and training")
    parser.add_argument("--batch", type=int, default=512, help="pictures a step, each with about seven questions")
    parser.add_argument("--lr", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--warmup", type=int, default=300, help="steps of linear warm-up")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--patch-weight", type=float, default=0.5, help="weight of the patch labels, falling to 0")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="drawing processes")
    parser.add_argument("--pool", type=int, default=800_000, help="pictures kept on the device (84 KB each)")
    parser.add_argument("--validation", type=int, default=1024, help="held-out pictures for the progress lines")
    parser.add_argument("--first", type=int, default=0, help="number of the first training picture")
    parser.add_argument("--seed", type=int, default=0, help="seed of the initial weights and of the batches")
    parser.add_argument("--report", type=int, default=200, help="steps between progress lines")
    parser.add_argument("--state", type=Path, help="file for the f32 training weights")
    parser.add_argument("--resume", type=Path, help="start from a file that --state wrote")
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="float16", help="dtype of the weight file")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="do not use torch.compile")
    args = parser.parse_args()
    args.pool, args.validation = (-(-pictures // CHUNK) * CHUNK for pictures in (args.pool, args.validation))
    return args


def main() -> None:
    began = time.time()
    args = parse_args()
    workers = Workers(args.workers, args.validation, args.first)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    tokenizer = build_tokenizer()
    model = build_model(tokenizer.get_vocab_size(), tokenizer.token_to_id(IMAGE), tokenizer.token_to_id(PAD))
    prefix_ids = RowMaker(tokenizer, IMAGE_SIZE, PATCH_SIZE).prefix_ids
    net = PackedLlava(model, prefix_ids, OWNERS, 1 + len(COLORS)).to(device).train()
    if args.resume:
        net.load_state_dict(torch.load(args.resume, map_location=device, weights_only=True))
    print(f"{sum(p.numel() for p in model.parameters())} parameters on {device}, torch {torch.__version__}", flush=True)
    pools = {"train": Pool(args.pool, device), "heldout": Pool(args.validation, device)}
    threading.Thread(target=workers.feed, args=(pools,), daemon=True).start()
    wait_for(pools["heldout"], args.validation)
    wait_for(pools["train"], 8 * args.batch)
    steps = train(net, pools, args, device, began)
    workers.stop()
    tally = validate(net, pools["heldout"], args.batch)
    print(f"{steps} steps, {pools['train'].drawn} pictures, {time.time() - began:.0f} s", flush=True)
    print(accuracy_line(tally), flush=True)
    if args.state:
        torch.save(net.state_dict(), args.state)
    args.out.mkdir(parents=True, exist_ok=True)
    save_hub(args.out, model, getattr(torch, args.dtype))
    save_processor(args.out, tokenizer, IMAGE_SIZE, PATCH_SIZE)


if __name__ == "__main__":
    main()
