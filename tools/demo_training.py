"""What the training scripts of both demo models share: drawing processes, the pool on the device, and the loop.

Worker processes draw new pictures all the time; the GPU trains on the growing pool. The learning rate follows the
clock, so a run of any length ends annealed.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import threading
import time
from pathlib import Path
from typing import Any, Callable, Protocol

import torch
import torch.multiprocessing as mp

from demo_batches import IGNORE
from demo_tokenizer import CLIP_MEAN, CLIP_STD

CHUNK = 64
# Validation pictures are held out, and far from the numbers that the evaluation uses.
VALIDATION_START = 1_000_000
SECONDS_BETWEEN_STATES = 100
# Arrays of a number of examples by name; `blank(n)` makes them, a filler writes one example of them.
Arrays = dict[str, Any]
Filler = Callable[[Arrays, int, str, int], None]


class Task(Protocol):
    """What differs between the models."""

    def blank(self, n: int) -> Arrays:
        """Empty numpy arrays for n examples."""

    def filler(self) -> Filler:
        """A function (arrays, place, split, index) that draws one example; made once per worker process."""

    def batch(self, pool: Pool, n: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """A random training batch."""

    def losses(self, net: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean cross-entropy of the answer tokens, and of the patch labels."""

    def validate(self, net: torch.nn.Module, pool: Pool, batch_size: int) -> dict[str, tuple[int, int]]:
        """Right and asked per kind of question."""


def draw_forever(
    task: Task, slots: list[Arrays], free: mp.Queue, full: mp.Queue, worker: int, workers: int, validation: int,
    first: int,
) -> None:
    """A worker: fills free slots with its share of the validation examples, then with training examples for ever."""
    os.nice(5)
    torch.set_num_threads(1)
    fill = task.filler()
    views = [{name: tensor.numpy() for name, tensor in slot.items()} for slot in slots]

    def draw(split: str, start: int) -> None:
        slot = free.get()
        for at in range(CHUNK):
            fill(views[slot], at, split, start + at)
        full.put((slot, split))

    for chunk in range(worker, validation // CHUNK, workers):
        draw("heldout", VALIDATION_START + chunk * CHUNK)
    for chunk in itertools.count(worker, workers):
        draw("train", first + chunk * CHUNK)


class Workers:
    """The drawing processes and the slots of shared memory that they fill."""

    def __init__(self, task: Task, count: int, validation: int, first: int):
        # Forked before CUDA starts: the workers never touch the GPU.
        context = mp.get_context("fork")
        self.free, self.full = context.Queue(), context.Queue()
        self.slots = [
            {name: torch.from_numpy(array).share_memory_() for name, array in task.blank(CHUNK).items()}
            for _ in range(2 * count)
        ]
        for slot in range(len(self.slots)):
            self.free.put(slot)
        self.processes = [
            context.Process(
                target=draw_forever,
                args=(task, self.slots, self.free, self.full, worker, count, validation, first),
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
    """Examples on the training device; a thread copies finished chunks in while training reads."""

    def __init__(self, task: Task, capacity: int, device: torch.device):
        self.device = device
        self.capacity = capacity
        self.drawn = 0
        self.stream = torch.cuda.Stream() if device.type == "cuda" else None
        self.arrays = {
            name: torch.empty((capacity, *array.shape[1:]), dtype=torch.from_numpy(array).dtype, device=device)
            for name, array in task.blank(1).items()
        }

    @property
    def size(self) -> int:
        return min(self.drawn, self.capacity)

    def add(self, chunk: Arrays) -> None:
        at = self.drawn % self.capacity
        with torch.cuda.stream(self.stream):
            for name, array in self.arrays.items():
                array[at : at + CHUNK].copy_(chunk[name])
        if self.stream:
            self.stream.synchronize()
        self.drawn += CHUNK


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


class Tally:
    """Right and asked per kind. An answer is right when every token is the likeliest, as greedy decoding needs."""

    def __init__(self, kinds: tuple[str, ...]):
        self.kinds = kinds
        self.right_and_asked = {kind: [0, 0] for kind in kinds}

    def add(self, logits: torch.Tensor, targets: torch.Tensor, segments: torch.Tensor, kinds: torch.Tensor) -> None:
        """Rows [..., t] of logits, targets, question numbers (0 is none) and kinds of question."""
        wrong = (logits.argmax(-1) != targets) & (targets != IGNORE)
        columns = (tensor.flatten(0, -2).cpu() for tensor in (wrong, segments, kinds))
        for row_wrong, row_segments, row_kinds in zip(*columns):
            for segment in row_segments[row_segments > 0].unique():
                mine = row_segments == segment
                count = self.right_and_asked[self.kinds[row_kinds[mine][0]]]
                count[0] += int(not row_wrong[mine].any())
                count[1] += 1

    def counts(self) -> dict[str, tuple[int, int]]:
        """(right, asked) of every kind that was asked."""
        return {kind: (right, asked) for kind, (right, asked) in self.right_and_asked.items() if asked}


def accuracy_line(tally: dict[str, tuple[int, int]]) -> str:
    right, asked = (sum(column) for column in zip(*tally.values()))
    kinds = " ".join(f"{kind} {100 * r / a:.1f}" for kind, (r, a) in tally.items())
    return f"held-out answers right {100 * right / asked:.2f} % of {asked}: {kinds}"


def learning_rate(step: int, progress: float, peak: float, warmup: int) -> float:
    return peak * min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def optimizer_for(
    net: torch.nn.Module, unused: list[torch.nn.Module], peak: float, weight_decay: float, fused: bool
) -> torch.optim.AdamW:
    skipped = {id(p) for module in unused for p in module.parameters()}
    used = [p for p in net.parameters() if id(p) not in skipped]
    matrices = [p for p in used if p.ndim >= 2]
    vectors = [p for p in used if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=fused)


def wait_for(pool: Pool, examples: int) -> None:
    began = time.time()
    while pool.drawn < examples:
        time.sleep(0.1)
    print(f"{pool.drawn} examples drawn in {time.time() - began:.1f} s more", flush=True)


def train(
    task: Task, net: torch.nn.Module, unused: list[torch.nn.Module], pools: dict[str, Pool], args: argparse.Namespace,
    began: float,
) -> int:
    """Trains until the time is up; the number of steps taken. The `unused` modules keep their initial weights."""
    pool = pools["train"]
    device = pool.device
    fast = torch.compile(net) if args.compile else net
    optimizer = optimizer_for(net, unused, args.lr, args.weight_decay, fused=device.type == "cuda")
    generator = torch.Generator(device).manual_seed(args.seed)
    step, deadline = 0, began + 60 * args.minutes
    start = report = saved = time.time()
    while time.time() < deadline:
        progress = (time.time() - start) / (deadline - start)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, progress, args.lr, args.warmup)
        batch = task.batch(pool, args.batch, generator)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            answers, patches = task.losses(fast, batch)
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
                f"drawn {pool.drawn} trained {rate:.0f} examples/s",
                flush=True,
            )
            report = time.time()
        if step % (5 * args.report) == 0:
            print(accuracy_line(task.validate(net, pools["heldout"], args.batch)), flush=True)
            report = time.time()
        if args.state and time.time() - saved > SECONDS_BETWEEN_STATES:
            torch.save(net.state_dict(), args.state)
            saved = time.time()
    return step


def parser_of(description: str, batch: int, pool: int) -> argparse.ArgumentParser:
    """The command line that both scripts have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished checkpoint")
    parser.add_argument("--minutes", type=float, default=9.0, help="wall-clock minutes of drawing and training")
    parser.add_argument("--batch", type=int, default=batch, help="examples a step")
    parser.add_argument("--lr", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--warmup", type=int, default=300, help="steps of linear warm-up")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--patch-weight", type=float, default=0.5, help="weight of the patch labels, falling to 0")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="drawing processes")
    parser.add_argument("--pool", type=int, default=pool, help="examples kept on the device (84 KB a picture)")
    parser.add_argument("--validation", type=int, default=1024, help="held-out examples for the progress lines")
    parser.add_argument("--first", type=int, default=0, help="number of the first training example")
    parser.add_argument("--seed", type=int, default=0, help="seed of the initial weights and of the batches")
    parser.add_argument("--report", type=int, default=200, help="steps between progress lines")
    parser.add_argument("--state", type=Path, help="file for the f32 training weights, written now and then")
    parser.add_argument("--resume", type=Path, help="start from a file that --state wrote")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="do not use torch.compile")
    return parser


def run(
    task: Task, args: argparse.Namespace, began: float,
    build: Callable[[], tuple[torch.nn.Module, list[torch.nn.Module]]],
) -> torch.nn.Module:
    """Draws and trains for `args.minutes`; the trained net.

    `build` makes the net and says which of its modules are not trained; it is called after the workers have forked.
    """
    args.pool, args.validation = (-(-examples // CHUNK) * CHUNK for examples in (args.pool, args.validation))
    workers = Workers(task, args.workers, args.validation, args.first)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    net, unused = build()
    net.to(device).train()
    if args.resume:
        net.load_state_dict(torch.load(args.resume, map_location=device, weights_only=True))
    print(f"training on {device}, torch {torch.__version__}", flush=True)
    pools = {"train": Pool(task, args.pool, device), "heldout": Pool(task, args.validation, device)}
    threading.Thread(target=workers.feed, args=(pools,), daemon=True).start()
    wait_for(pools["heldout"], args.validation)
    wait_for(pools["train"], 8 * args.batch)
    steps = train(task, net, unused, pools, args, began)
    workers.stop()
    if args.state:
        torch.save(net.state_dict(), args.state)
    print(f"{steps} steps, {pools['train'].drawn} examples, {time.time() - began:.0f} s", flush=True)
    print(accuracy_line(task.validate(net, pools["heldout"], args.batch)), flush=True)
    return net
