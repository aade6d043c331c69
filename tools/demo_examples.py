"""What the commands that write example pictures share: file names, what makes a picture fit, and expected.json."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Callable

import numpy as np
import PIL
import torch
import transformers
from PIL import Image

from demo_questions import summary
from demo_scene import Scene

ROOT = Path(__file__).resolve().parent.parent
MIN_MARGIN = 0.5
NOISE_LEVELS, NOISE_DRAWS = 2, 4
LONGEST_NAME = 60


def require_committed(model: Path) -> None:
    if not model.resolve().is_relative_to(ROOT):
        sys.exit(f"{model} is outside the repository: example pictures belong to the committed model")


def slug(scene: Scene) -> str:
    words = summary(scene).lower().replace("the word", "").replace("the number", "")
    words = re.sub(r"\b(a|an|and)\b", "", words)
    return "-".join(re.findall(r"[a-z0-9]+", words))


def steady(text_of: Callable[[list[Image.Image]], str], pictures: list[Image.Image], text: str, seed: int) -> bool:
    """Whether the text stays the same when every channel of every pixel moves by up to NOISE_LEVELS."""
    rng = np.random.default_rng(seed)
    for _ in range(NOISE_DRAWS):
        moved = []
        for picture in pictures:
            pixels = np.asarray(picture, np.int16)
            noise = rng.integers(-NOISE_LEVELS, NOISE_LEVELS, pixels.shape, endpoint=True)
            moved.append(Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)))
        if text_of(moved) != text:
            return False
    return True


def write_examples(
    folder: Path, model: Path, head: dict, settings: dict, entries: list[dict], files: dict[str, bytes]
) -> None:
    """Replaces the pictures and expected.json of a folder. `head` opens the file, `settings` says how it was made."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.jpg"), *folder.glob("*.png")):
        old.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    document = {
        **head,
        "model": str(model.resolve().relative_to(ROOT)),
        "model_safetensors_sha256": hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest(),
        "versions": {
            "transformers": transformers.__version__, "torch": torch.__version__, "pillow": PIL.__version__,
        },
        **settings,
        "min_margin_wanted": MIN_MARGIN,
        "pixel_noise_levels_survived": NOISE_LEVELS,
        "items": entries,
    }
    text = json.dumps(document, indent=2, ensure_ascii=False)
    # One line per token list, not one per token.
    text = re.sub(r"\[\s+([\d,\s]+?)\s+\]", lambda m: "[" + " ".join(m.group(1).split()) + "]", text)
    (folder / "expected.json").write_text(text + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{len(files)} pictures, {size} bytes, smallest margin {min(e['min_margin'] for e in entries)}")
