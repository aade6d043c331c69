"""Small synthetic pictures: every shape that the resize-and-crop path treats differently."""

import numpy
from PIL import Image

# name -> (width, height). CLIP preprocessing scales the short side to image_size and crops the long one.
SIZES = {
    "square": (42, 42),  # already image_size of llava-tiny-gqa: the resize is the identity there
    "wide": (90, 40),  # odd crop margins left and right
    "tall": (33, 71),  # odd crop margins top and bottom, upscaled
    "tiny": (9, 7),  # far below image_size
    "large": (200, 150),  # far above it: the filter spans several source pixels
    "photo": (60, 50),  # LLaVA-NeXT keeps a row more than the picture covers, in either folder
    "strip": (100, 13),  # so thin that LLaVA-NeXT keeps no row of its grid, or one
    "column": (13, 100),  # so thin that it keeps rows without columns, or one column
}


def draw(width, height):
    """A colour gradient under a hard-edged disc and stripes: smooth parts and bicubic overshoot in one picture."""
    y, x = numpy.mgrid[0:height, 0:width]
    red = 255 * x // max(width - 1, 1)
    green = 255 * y // max(height - 1, 1)
    blue = 255 - (red + green) // 2
    rgb = numpy.stack([red, green, blue], axis=-1)
    # Integer geometry only, so the picture is the same on every machine.
    disc = (2 * x - width) ** 2 + (2 * y - height) ** 2 <= (min(width, height) * 2 // 3) ** 2
    rgb[disc] = (250, 240, 10)
    stripes = (x + 2 * y) % 11 == 0
    rgb[stripes] = (0, 20, 90)
    return Image.fromarray(rgb.astype(numpy.uint8), "RGB")


def write(folder):
    """Write `folder`/<name>.png for every size; return name -> path."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.png" for name in SIZES}
    for name, size in SIZES.items():
        draw(*size).save(paths[name], optimize=True)
    return paths
