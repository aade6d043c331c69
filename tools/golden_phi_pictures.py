"""Phi-3-vision's HD transform: Microsoft's steps on Pillow and torch, for tiles of any size.

transformers has no class for it. With tiles of 336 pixels `check` holds this file to checksums of Microsoft's own code.
"""

import math

import numpy
import torch
from PIL import Image

import golden_files

MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]

# (width, height, num_crops) -> CRC-32 of the tiles that Microsoft's processor makes of `pattern`, and the green value
# at row 100, column 200 of its view of everything.
KNOWN = {
    (640, 480, 4): (0xE6232702, 0.35842893),
    (480, 640, 4): (0xC11F625E, 0.6608706),
    (1000, 200, 4): (0x68ECF76A, 1.0749912),
    (640, 480, 16): (0x508FE55F, 1.1115726),
    (480, 640, 16): (0x4CE955A7, 1.7071935),
    (1000, 200, 16): (0x314D981F, 0.8695432),
}


def shape(width, height, num_crops, tile):
    """(transposed, resized (h, w), canvas (h, w)) of a picture; a height of 0 means that it is refused.

    `resized` is the size of the picture as it is wider than tall, the canvas that of the result.
    """
    transposed = width < height
    if transposed:
        width, height = height, width
    ratio = width / height
    scale = 1
    while scale * math.ceil(scale / ratio) <= num_crops:
        scale += 1
    scale -= 1
    new_width = int(scale * tile)
    new_height = int(new_width / ratio)
    canvas = (math.ceil(new_height / tile) * tile, new_width)
    return transposed, (new_height, new_width), canvas[::-1] if transposed else canvas


def view(width, height, num_crops, tile, side):
    """The numbers of a picture whose tiles have `side` x `side` patches; None where the original fails."""
    transposed, resized, canvas = shape(width, height, num_crops, tile)
    if resized[0] == 0:
        return None
    down, across = canvas[0] // tile, canvas[1] // tile
    merged = side // 2
    return {
        "transposed": transposed,
        "resized": list(resized),
        "canvas": list(canvas),
        "tokens": (down * across + 1) * merged**2 + 1 + (down + 1) * merged,
    }


def transform(image, num_crops, tile):
    """Pixels [1 + tiles, 3, tile, tile] of an RGB picture: the view of everything, then the tiles row by row."""
    transposed, resized, (down, across) = shape(*image.size, num_crops, tile)
    if transposed:
        image = image.transpose(Image.TRANSPOSE)
    image = image.resize(resized[::-1], Image.BILINEAR)
    full = across if transposed else down
    canvas = Image.new("RGB", (resized[1], full), (255, 255, 255))
    canvas.paste(image, (0, (full - resized[0]) // 2))
    if transposed:
        canvas = canvas.transpose(Image.TRANSPOSE)

    pixels = torch.from_numpy(numpy.asarray(canvas).copy()).permute(2, 0, 1).float() / 255
    pixels = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    overview = torch.nn.functional.interpolate(pixels[None], size=(tile, tile), mode="bicubic", align_corners=False)
    tiles = pixels.reshape(3, down // tile, tile, across // tile, tile).permute(1, 3, 0, 2, 4)
    return torch.cat([overview, tiles.reshape(-1, 3, tile, tile)])


def pattern(width, height):
    y, x, c = numpy.mgrid[0:height, 0:width, 0:3].astype(numpy.int64)
    return Image.fromarray(((37 * y + 101 * x + 53 * c + 7 * ((x * y) % 251)) % 256).astype(numpy.uint8))


def check():
    """Stop when this file does not do what Microsoft's code does."""
    for (width, height, num_crops), (crc, spot) in KNOWN.items():
        pixels = transform(pattern(width, height), num_crops, 336)
        found = golden_files.crc32(pixels[1:])
        if found != crc:
            raise SystemExit(f"make_goldens: {width}x{height}, {num_crops} crops: tiles {found:08x}, not {crc:08x}")
        value = pixels[0, 1, 100, 200].item()
        if abs(value - spot) > 2e-6:
            raise SystemExit(f"make_goldens: {width}x{height}, {num_crops} crops: overview {value}, not {spot}")
