"""How pictures of many sizes are cut into tiles, and how many rows of a sequence they take: numbers, no pixels."""

import json

import numpy
import torch
from transformers import LlavaNextProcessor
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_utils import ChannelDimension
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches, unpad_image

import golden_files
import golden_phi_pictures

TILE = 336
SIDE = 24  # patches in a row of a tile
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]

# (width, height): common ones, those where f64 and exact fractions differ, primes, squares, and extremes.
SIZES = [
    (1, 1), (1, 2), (2, 1), (2, 2), (3, 5), (7, 9), (17, 13), (41, 56), (55, 88), (56, 41), (61, 47), (88, 55),
    (97, 89), (100, 80), (101, 103), (127, 251), (151, 149), (168, 672), (224, 224), (300, 300), (333, 777),
    (335, 337), (336, 335), (336, 336), (336, 337), (337, 336), (336, 672), (672, 336), (448, 336), (400, 300),
    (480, 640), (499, 751), (512, 512), (640, 480), (641, 479), (671, 673), (672, 672), (800, 200), (200, 800),
    (800, 600), (997, 331), (331, 997), (1000, 200), (200, 1000), (1000, 1000), (1008, 336), (336, 1008), (1009, 337),
    (1024, 899), (1080, 1920), (1100, 808), (1344, 1344), (1920, 1080), (2039, 1021), (2048, 1536), (3000, 2000),
    (3000, 100), (100, 3000), (3000, 11), (11, 3000), (3000, 1), (1, 3000), (5000, 2), (2, 5000), (4096, 4096),
]  # fmt: skip


def next_view(width, height, tile, side, pinpoints):
    """LLaVA-NeXT's numbers by transformers' own functions. Sizes are (height, width); `kept` and `tokens` in patches.

    The model and the processor count for themselves: both must say the same.
    """
    target = select_best_resolution((height, width), pinpoints)
    pixels = numpy.broadcast_to(numpy.uint8(0), (3, height, width))
    resized = get_patch_output_size(pixels, target, input_data_format=ChannelDimension.FIRST)
    down, across = target[0] // tile, target[1] // tile
    kept = unpad_image(torch.zeros(1, down * side, across * side), (height, width)).shape[1:]
    counted = LlavaNextProcessor._get_unpadded_features(None, height, width, side, side, down, across)
    if counted != (kept[0] * kept[1], kept[0]):
        raise SystemExit(f"make_goldens: {width}x{height}: processor and model of transformers count {counted}, {kept}")
    if image_size_to_num_patches((height, width), pinpoints, tile) != 1 + down * across:
        raise SystemExit(f"make_goldens: {width}x{height}: transformers makes other tiles than {down} x {across}")
    return {
        "resolution": list(target),
        "resized": [int(n) for n in resized],
        "kept": list(kept),
        "tokens": side * side + sum(counted),
    }


def write(path):
    """Write views.json, a size a line; `null` where the original has no answer."""
    lines = []
    for width, height in SIZES:
        phi = {f"phi_{n}": golden_phi_pictures.view(width, height, n, TILE, SIDE) for n in (4, 16)}
        view = {"size": [width, height], "next": next_view(width, height, TILE, SIDE, PINPOINTS), **phi}
        lines.append("  " + json.dumps(view))
    about = {"provenance": golden_files.provenance(), "tile": TILE, "side": SIDE, "pinpoints": PINPOINTS}
    head = json.dumps(about)[:-1]
    path.write_text(head + ', "views": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")
