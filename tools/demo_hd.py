"""Phi-3-vision's picture transform and the order of its image tokens, for tiles of any side."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image

WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Canvas:
    """A picture on its white canvas of `rows` x `columns` tiles, and the box (left, top, width, height) it fills."""

    picture: Image.Image
    rows: int
    columns: int
    box: tuple[int, int, int, int]


def hd_transform(picture: Image.Image, side: int, num_crops: int) -> Canvas:
    """The largest canvas of at most `num_crops` tiles: resized bilinearly, padded with white above and below.

    A picture taller than wide is transposed (mirrored about the main diagonal) before and after.
    """
    tall = picture.width < picture.height
    if tall:
        picture = picture.transpose(Image.Transpose.TRANSPOSE)
    ratio = picture.width / picture.height
    scale = 1
    while scale * math.ceil(scale / ratio) <= num_crops:
        scale += 1
    width = side * (scale - 1)
    height = int(width / ratio)
    padded = side * math.ceil(height / side)
    top = (padded - height) // 2
    canvas = Image.new("RGB", (width, padded), WHITE)
    canvas.paste(picture.resize((width, height), Image.Resampling.BILINEAR), (0, top))
    if tall:
        canvas = canvas.transpose(Image.Transpose.TRANSPOSE)
        return Canvas(canvas, width // side, padded // side, (top, 0, height, width))
    return Canvas(canvas, padded // side, width // side, (0, top, width, height))


def overview(pixels: torch.Tensor, side: int) -> torch.Tensor:
    """Normalised pixels [n, 3, h, w] squashed to [n, 3, side, side]: bicubic (a = -0.75), not antialiased."""
    return F.interpolate(pixels, size=(side, side), mode="bicubic", align_corners=False)


def cut(pixels: torch.Tensor, side: int) -> torch.Tensor:
    """[n, 3, h, w] to tiles [n, h/side * w/side, 3, side, side], row by row."""
    n, channels, height, width = pixels.shape
    tiles = pixels.view(n, channels, height // side, side, width // side, side).permute(0, 2, 4, 1, 3, 5)
    return tiles.reshape(n, -1, channels, side, side)


def merge(features: torch.Tensor) -> torch.Tensor:
    """Patches [..., g * g, c] to cells [..., g/2 * g/2, 4c]: top left, top right, bottom left, bottom right."""
    *lead, patches, c = features.shape
    half = math.isqrt(patches) // 2
    cells = features.view(-1, half, 2, half, 2, c).permute(0, 1, 3, 2, 4, 5)
    return cells.reshape(*lead, half * half, 4 * c)


# Image tokens that are no cell of a tile.
ROW_END, GLOBAL = -1, -2


def token_order(rows: int, columns: int, cells: int, stride: int) -> list[int]:
    """Which row of the features stands at each image token: the tiles' map, GLOBAL, then the overview's map.

    A map's line ends with ROW_END. The overview is tile 0, the tile at (r, c) is 1 + r * stride + c; a tile has `cells`
    x `cells` features.
    """

    def line(first: int, count: int, y: int) -> list[int]:
        across = [(first + tile) * cells * cells + y * cells + x for tile in range(count) for x in range(cells)]
        return [*across, ROW_END]

    local = [row for r in range(rows) for y in range(cells) for row in line(1 + r * stride, columns, y)]
    return [*local, GLOBAL, *(row for y in range(cells) for row in line(0, 1, y))]
