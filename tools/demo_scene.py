"""Synthetic pictures for the demo model: what is in a scene, and how it is drawn.

A scene is a plain description (shapes, an optional printed word or number, a background and the faults of the
camera). `sample_scene` draws one from a seed, `render` turns it into a Pillow picture. Everything a question can ask
about lies inside the central square, because CLIP preprocessing keeps only that.

Every scene belongs to exactly one split, decided by a hash of its whole description: one in sixteen is "heldout", the
rest is "train". `sample_scene` discards scenes of the other split, so no held-out picture can be a training picture,
whatever the seeds are.

Needs only Pillow and numpy, and only the font that ships with Pillow.
"""

from __future__ import annotations

import colorsys
import functools
import hashlib
import io
import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "moon", "ring")
# Hue range in degrees, saturation range, value range. The ranges leave gaps, so that a person would never hesitate.
COLORS = {
    "red": ((-8, 6), (0.80, 1.00), (0.72, 0.95)),
    "orange": ((25, 34), (0.88, 1.00), (0.92, 1.00)),
    "yellow": ((51, 58), (0.75, 1.00), (0.92, 1.00)),
    "green": ((105, 145), (0.60, 1.00), (0.45, 0.78)),
    "blue": ((212, 234), (0.70, 1.00), (0.65, 1.00)),
    "purple": ((274, 292), (0.55, 0.90), (0.50, 0.80)),
    "black": ((0, 360), (0.00, 0.20), (0.00, 0.10)),
    "white": ((0, 360), (0.00, 0.03), (0.96, 1.00)),
}
WORDS = tuple(
    "STOP GO OPEN EXIT HELLO SALE CAFE TAXI BUS HOTEL PARK SCHOOL MILK TEA COFFEE BREAD "
    "FISH CAT DOG BIRD HORSE TREE SUN RAIN SNOW WIND FIRE WATER EARTH LOVE PEACE HOME "
    "ROAD TRAIN PLANE SHIP BOAT BOOK MUSIC ART GAME PLAY WORK TIME DAY NIGHT YES NO "
    "HOT COLD NEW OLD BIG SMALL LEFT RIGHT UP DOWN RED BLUE NORTH SOUTH EAST WEST".split()
)
# The central square is a 3 x 3 grid; a shape's cell is its answer to "where".
CELLS = (
    "at the top left", "at the top", "at the top right",
    "on the left", "in the center", "on the right",
    "at the bottom left", "at the bottom", "at the bottom right",
)
TEXT_ROWS = ("at the top", "in the center", "at the bottom")
BACKGROUNDS = ("plain", "gradient", "stripes", "blotches", "checks")

SPLITS = {"train": 1, "heldout": 2}
HELDOUT_SHARE = 16
MIN_RADIUS, MAX_RADIUS, MAX_LONE_RADIUS = 0.065, 0.15, 0.30
MARGIN = 0.015
MIN_CONTRAST = 170.0
SUPERSAMPLE = 3


@dataclass(frozen=True)
class Variety:
    """What the scenes of one model may be like.

    `longest` is the largest ratio of a picture's sides, `smallest` the least radius as a share of the long side.
    """

    text_share: float = 0.42
    most_shapes: int = 6
    longest: float = 1.8
    smallest: float = 0.0


@dataclass(frozen=True)
class Shape:
    """One shape; lengths are fractions of the central square's side."""

    kind: str
    color: str
    rgb: tuple[int, int, int]
    cell: int
    x: float
    y: float
    radius: float
    degrees: float
    outlined: bool


@dataclass(frozen=True)
class Text:
    """A printed word or number; `height` is the height of a capital letter as a fraction of the square's side."""

    string: str
    color: str
    rgb: tuple[int, int, int]
    row: int
    x: float
    y: float
    height: float
    degrees: float
    shear: float
    stroke: float

    @property
    def is_number(self) -> bool:
        return self.string.isdigit()


@dataclass(frozen=True)
class Background:
    kind: str
    rgb: tuple[tuple[int, int, int], tuple[int, int, int]]
    degrees: float
    period: float
    seed: int


@dataclass(frozen=True)
class Camera:
    """Photo-like faults. `jpeg` is the quality of a JPEG round trip, None for none."""

    gain: float
    light: float
    light_degrees: float
    blur: float
    noise: float
    noise_x: int
    noise_y: int
    grey_noise: bool
    jpeg: int | None


@dataclass(frozen=True)
class Scene:
    width: int
    height: int
    background: Background
    shapes: tuple[Shape, ...]
    text: Text | None
    camera: Camera

    def split(self) -> str:
        share = hashlib.sha256(repr(self).encode()).digest()[0] % HELDOUT_SHARE
        return "heldout" if share == 0 else "train"


def sample_scene(split: str, index: int, variety: Variety = Variety()) -> Scene:
    """The scene number `index` of a split; the same on every machine with the same numpy."""
    rng = np.random.default_rng([SPLITS[split], index])
    while True:
        scene = _try_scene(rng, variety)
        if scene is not None and scene.split() == split:
            return scene


# ------------------------------------------------------------------------------------------------ sampling


def _try_scene(rng: np.random.Generator, variety: Variety) -> Scene | None:
    text = _sample_text(rng) if rng.random() < variety.text_share else None
    groups = _sample_groups(rng, text, variety.most_shapes)
    shapes = _place(rng, groups, text)
    if shapes is None:
        return None
    inks = [shape.rgb for shape in shapes] + ([text.rgb] if text else [])
    background = _sample_background(rng, inks)
    if background is None:
        return None
    width, height = _sample_size(rng, variety.longest)
    share = min(width, height) / max(width, height)
    if any(shape.radius * share < variety.smallest for shape in shapes):
        return None
    return Scene(width, height, background, shapes, text, _sample_camera(rng))


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    # Rounded, so that the description (and with it the split) does not hang on the last bit of a float.
    return round(float(rng.uniform(low, high)), 4)


def _ink(rng: np.random.Generator, color: str) -> tuple[int, int, int]:
    (h0, h1), (s0, s1), (v0, v1) = COLORS[color]
    hue = rng.uniform(h0, h1) % 360 / 360
    r, g, b = colorsys.hsv_to_rgb(hue, rng.uniform(s0, s1), rng.uniform(v0, v1))
    return round(r * 255), round(g * 255), round(b * 255)


def _sample_text(rng: np.random.Generator) -> Text:
    number = rng.random() < 0.35
    string = str(rng.integers(100)) if number else WORDS[rng.integers(len(WORDS))]
    color = list(COLORS)[rng.integers(len(COLORS))]
    height = _uniform(rng, 0.10, 0.19)
    row = int(rng.integers(3))
    half_width = 0.5 * height * _width_per_height(string)
    if half_width > 0.43:
        height = round(height * 0.43 / half_width, 4)
        half_width = 0.43
    slack = max(0.0, 0.46 - half_width)
    return Text(
        string=string,
        color=color,
        rgb=_ink(rng, color),
        row=row,
        x=_uniform(rng, 0.5 - min(slack, 0.25), 0.5 + min(slack, 0.25)),
        y=_uniform(rng, *((0.16, 0.21), (0.46, 0.54), (0.79, 0.84))[row]),
        height=height,
        degrees=_uniform(rng, -7, 7) if rng.random() < 0.5 else 0.0,
        shear=_uniform(rng, -0.2, 0.2) if rng.random() < 0.4 else 0.0,
        stroke=_uniform(rng, 0.0, 0.10) if rng.random() < 0.6 else 0.0,
    )


def _sample_groups(rng: np.random.Generator, text: Text | None, most_shapes: int) -> list[tuple[str, str]]:
    """A (kind, colour) pair per shape; equal pairs form the groups that a description names."""
    kinds, colors = list(SHAPES), list(COLORS)

    def pair() -> tuple[str, str]:
        return kinds[rng.integers(len(kinds))], colors[rng.integers(len(colors))]

    mode = rng.random()
    if text is not None and mode < 0.30:
        return []
    most = most_shapes - 1 if text else most_shapes
    if mode < 0.45:
        return [pair()]
    if mode < 0.60:
        return [pair()] * int(rng.integers(2, most + 1))
    if mode < 0.80:
        return [pair() for _ in range(rng.integers(2, 5))]
    groups = [pair() for _ in range(rng.integers(2, 4))]
    repeats = rng.integers(1, most - len(groups) + 1)
    return groups + [groups[rng.integers(len(groups))] for _ in range(repeats)]


def _place(rng: np.random.Generator, groups: list[tuple[str, str]], text: Text | None) -> tuple[Shape, ...] | None:
    """Puts the shapes into distinct cells without overlaps; None when the dice fall badly."""
    free = [cell for cell in range(9) if text is None or cell // 3 != text.row]
    cells = rng.permutation(free)
    text_box = _text_box(text) if text else None
    lone = len(groups) == 1 and text is None
    placed: list[Shape] = []
    for (kind, color), cell in zip(groups, cells):
        for _ in range(8):
            x = _uniform(rng, -0.065, 0.065) + (2 * (cell % 3) + 1) / 6
            y = _uniform(rng, -0.065, 0.065) + (2 * (cell // 3) + 1) / 6
            room = min(x, y, 1 - x, 1 - y) - MARGIN
            largest = min(room, MAX_LONE_RADIUS if lone else MAX_RADIUS)
            if largest < MIN_RADIUS:
                continue
            radius = _uniform(rng, MIN_RADIUS, largest)
            if _is_free(x, y, radius, placed, text_box):
                break
        else:
            return None
        placed.append(
            Shape(
                kind=kind,
                color=color,
                rgb=_ink(rng, color),
                cell=int(cell),
                x=round(x, 4),
                y=round(y, 4),
                radius=radius,
                # A square or cross turned much further would be a diamond or an X.
                degrees=_uniform(rng, -12, 12) if kind in ("square", "cross", "heart") else _uniform(rng, -180, 180),
                outlined=bool(rng.random() < 0.15),
            )
        )
    return tuple(placed)


def _is_free(x: float, y: float, radius: float, placed: list[Shape], text_box) -> bool:
    if any(math.hypot(x - s.x, y - s.y) < 1.05 * (radius + s.radius) + 0.01 for s in placed):
        return False
    if text_box is None:
        return True
    left, top, right, bottom = text_box
    return x + radius < left or x - radius > right or y + radius < top or y - radius > bottom


def _distance(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
    """The "redmean" colour distance, a cheap stand-in for how different two colours look (0 to about 765)."""
    mean = (a[0] + b[0]) / 2
    dr, dg, db = a[0] - b[0], a[1] - b[1], a[2] - b[2]
    return math.sqrt((2 + mean / 256) * dr * dr + 4 * dg * dg + (2 + (255 - mean) / 256) * db * db)


def _sample_background(rng: np.random.Generator, inks: list[tuple[int, int, int]]) -> Background | None:
    kind = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    for _ in range(12):
        saturation, value = (((0, 0.30), (0.78, 1.0)), ((0, 0.30), (0.40, 0.70)), ((0, 0.45), (0.08, 0.30)))[
            rng.choice(3, p=(0.5, 0.25, 0.25))
        ]
        hue, s, v = rng.uniform(), rng.uniform(*saturation), rng.uniform(*value)
        other = (hue + rng.uniform(-0.06, 0.06)) % 1, np.clip(s + rng.uniform(-0.1, 0.1), 0, 0.5)
        first = colorsys.hsv_to_rgb(hue, s, v)
        second = colorsys.hsv_to_rgb(other[0], float(other[1]), float(np.clip(v + rng.uniform(-0.15, 0.15), 0, 1)))
        pair = tuple(tuple(round(255 * c) for c in color) for color in (first, second))
        if all(_distance(ink, color) >= MIN_CONTRAST for ink in inks for color in pair):
            return Background(kind, pair, _uniform(rng, 0, 360), _uniform(rng, 0.05, 0.25), int(rng.integers(2**31)))
    return None


def _sample_size(rng: np.random.Generator, longest: float) -> tuple[int, int]:
    short = round(math.exp(rng.uniform(math.log(120), math.log(420))))
    aspect = 1.0 if rng.random() < 0.25 else math.exp(rng.uniform(0, math.log(longest)))
    long = min(640, int(short * aspect))
    return (long, short) if rng.random() < 0.6 else (short, long)


def _sample_camera(rng: np.random.Generator) -> Camera:
    return Camera(
        gain=_uniform(rng, 0.88, 1.08),
        light=_uniform(rng, 0.0, 0.18) if rng.random() < 0.5 else 0.0,
        light_degrees=_uniform(rng, 0, 360),
        blur=_uniform(rng, 0.0, 0.009) if rng.random() < 0.5 else 0.0,
        noise=_uniform(rng, 0.0, 14.0) if rng.random() < 0.6 else 0.0,
        noise_x=int(rng.integers(NOISE_SLACK)),
        noise_y=int(rng.integers(NOISE_SLACK)),
        grey_noise=bool(rng.random() < 0.3),
        jpeg=int(rng.integers(35, 96)) if rng.random() < 0.85 else None,
    )


# ------------------------------------------------------------------------------------------------ drawing

NOISE_SLACK = 160


@dataclass
class Rendering:
    """A finished picture; with `want_labels`, `owner` says for each pixel which thing covers it.

    0 is background, 1..8 a shape (its index in SHAPES, plus 1), 9..34 the letters A..Z, 35..44 the digits;
    `color` is 0 or the index in COLORS plus 1. Training uses both to tell the vision tower what it is looking at.
    """

    picture: Image.Image
    owner: Image.Image | None
    color: Image.Image | None


def render(scene: Scene, want_labels: bool = False) -> Rendering:
    canvas = _draw_background(scene)
    owner = Image.new("L", canvas.size) if want_labels else None
    color = Image.new("L", canvas.size) if want_labels else None
    side = min(scene.width, scene.height)
    origin = (scene.width - side) / 2, (scene.height - side) / 2
    for shape in scene.shapes:
        _draw_shape(canvas, owner, color, shape, side, origin)
    if scene.text:
        _draw_text(canvas, owner, color, scene.text, side, origin)
    return Rendering(_photograph(canvas, scene), owner, color)


def _ramp(scene: Scene, degrees: float) -> np.ndarray:
    """A field that grows from -0.5 to 0.5 across the central square in the given direction, [height, width]."""
    side = min(scene.width, scene.height)
    x = (np.arange(scene.width, dtype=np.float32) + 0.5 - scene.width / 2) / side
    y = (np.arange(scene.height, dtype=np.float32) + 0.5 - scene.height / 2) / side
    angle = math.radians(degrees)
    return x[None, :] * math.cos(angle) + y[:, None] * math.sin(angle)


def _draw_background(scene: Scene) -> Image.Image:
    look, size = scene.background, (scene.width, scene.height)
    first, second = (Image.new("RGB", size, rgb) for rgb in look.rgb)
    if look.kind == "plain":
        return first
    if look.kind == "gradient":
        mix = np.clip(255 * (_ramp(scene, look.degrees) + 0.5), 0, 255)
    elif look.kind == "stripes":
        mix = 255 * (np.floor(_ramp(scene, look.degrees) / look.period) % 2)
    elif look.kind == "checks":
        across, down = _ramp(scene, look.degrees), _ramp(scene, look.degrees + 90)
        mix = 255 * ((np.floor(across / look.period) + np.floor(down / look.period)) % 2)
    else:
        coarse = np.random.default_rng(look.seed).integers(0, 256, (6, 8), dtype=np.uint8)
        return Image.composite(second, first, Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
    return Image.composite(second, first, Image.fromarray(mix.astype(np.uint8)))


def _outline_points(kind: str) -> list[tuple[float, float]]:
    """Corners of a polygonal shape in the unit circle, y down."""
    if kind == "square":
        return [(0.8 * x, 0.8 * y) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    if kind == "triangle":
        return [(math.sin(a), -math.cos(a)) for a in (math.radians(120 * k) for k in range(3))]
    if kind == "star":
        tips = [((1.0, 0.42)[k % 2], k * math.pi / 5) for k in range(10)]
        return [(reach * math.sin(angle), -reach * math.cos(angle)) for reach, angle in tips]
    if kind == "cross":
        w, r = 0.3, 0.92
        return [
            (-w, -r), (w, -r), (w, -w), (r, -w), (r, w), (w, w),
            (w, r), (-w, r), (-w, w), (-r, w), (-r, -w), (-w, -w),
        ]
    turns = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    if kind == "heart":
        x = 16 * np.sin(turns) ** 3
        y = -(13 * np.cos(turns) - 5 * np.cos(2 * turns) - 2 * np.cos(3 * turns) - np.cos(4 * turns))
        return list(zip((x / 17).tolist(), ((y - 2.5) / 17).tolist()))
    raise ValueError(f"{kind} is not a polygon")


def _shape_mask(shape: Shape, radius: float, offset: tuple[float, float], size: int) -> Image.Image:
    """Coverage of a `size` x `size` box by the shape, whose centre lies `offset` from the box's centre."""
    k = SUPERSAMPLE
    mask = Image.new("L", (size * k, size * k))
    draw = ImageDraw.Draw(mask)
    cx, cy, r = (size / 2 + offset[0]) * k, (size / 2 + offset[1]) * k, radius * k
    angle = math.radians(shape.degrees)
    cos, sin = math.cos(angle), math.sin(angle)

    def disc(x: float, y: float, radius: float, fill: int) -> None:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)

    if shape.kind in ("circle", "ring", "moon"):
        disc(cx, cy, r, 255)
        if shape.kind == "ring":
            disc(cx, cy, 0.58 * r, 0)
        elif shape.kind == "moon":
            disc(cx + 0.5 * r * cos, cy + 0.5 * r * sin, 0.8 * r, 0)
    else:
        corners = _outline_points(shape.kind)
        draw.polygon([(cx + r * (x * cos - y * sin), cy + r * (x * sin + y * cos)) for x, y in corners], fill=255)
    return mask.resize((size, size), Image.Resampling.BOX)


def _draw_shape(canvas, owner, color, shape: Shape, side: int, origin: tuple[float, float]) -> None:
    radius = shape.radius * side
    x, y = origin[0] + shape.x * side, origin[1] + shape.y * side
    size = 2 * math.ceil(radius) + 4
    corner = round(x - size / 2), round(y - size / 2)
    offset = x - corner[0] - size / 2, y - corner[1] - size / 2
    mask = _shape_mask(shape, radius, offset, size)
    ink = shape.rgb
    if shape.outlined:
        canvas.paste(tuple(round(0.6 * c) for c in ink), corner, mask)
        inner = _shape_mask(shape, 0.86 * radius, offset, size)
        canvas.paste(ink, corner, inner)
    else:
        canvas.paste(ink, corner, mask)
    if owner is not None:
        solid = mask.point(lambda v: 255 if v >= 128 else 0)
        owner.paste(SHAPES.index(shape.kind) + 1, corner, solid)
        color.paste(list(COLORS).index(shape.color) + 1, corner, solid)


REFERENCE_FONT_SIZE = 100


@functools.lru_cache(maxsize=256)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


@functools.lru_cache(maxsize=1)
def _capital_height() -> float:
    _, top, _, bottom = _font(REFERENCE_FONT_SIZE).getbbox("H")
    return (bottom - top) / REFERENCE_FONT_SIZE


@functools.lru_cache(maxsize=512)
def _width_per_height(string: str) -> float:
    return _font(REFERENCE_FONT_SIZE).getlength(string) / REFERENCE_FONT_SIZE / _capital_height()


def _text_box(text: Text) -> tuple[float, float, float, float]:
    """A box that surely holds the turned and slanted text, in fractions of the square."""
    w = 0.5 * text.height * (_width_per_height(text.string) + abs(text.shear) + 0.3)
    h = 0.5 * text.height * 1.2
    tilt = abs(math.radians(text.degrees))
    half_w, half_h = w + h * math.sin(tilt), h + w * math.sin(tilt)
    return text.x - half_w, text.y - half_h, text.x + half_w, text.y + half_h


def _glyph_code(glyph: str) -> int:
    first = 1 + len(SHAPES)
    return first + ord(glyph) - ord("A") if glyph.isalpha() else first + 26 + int(glyph)


def _draw_text(canvas, owner, color, text: Text, side: int, origin: tuple[float, float]) -> None:
    capital = text.height * side
    font = _font(max(6, round(capital / _capital_height())))
    stroke = round(text.stroke * capital)
    left, top, right, bottom = font.getbbox(text.string, stroke_width=stroke)
    # The tile is square-ish around the middle of the string and wide enough to be turned inside.
    half = math.ceil(0.5 * math.hypot(right - left, bottom - top) + abs(text.shear) * capital) + 2
    anchor = half - (left + right) / 2, half - (top + bottom) / 2
    tile = Image.new("L", (2 * half, 2 * half))
    ImageDraw.Draw(tile).text(anchor, text.string, fill=255, font=font, stroke_width=stroke)
    angle = math.radians(text.degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    # Inverse map, as Pillow wants it: output pixel -> input pixel, about the tile's middle.
    a, b, d, e = cos + text.shear * -sin, sin + text.shear * cos, -sin, cos
    matrix = (a, b, half - a * half - b * half, d, e, half - d * half - e * half)
    mask = tile.transform(tile.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    corner = round(origin[0] + text.x * side - half), round(origin[1] + text.y * side - half)
    canvas.paste(text.rgb, corner, mask)
    if owner is None:
        return
    glyphs = Image.new("L", tile.size)
    draw = ImageDraw.Draw(glyphs)
    for i, glyph in enumerate(text.string):
        x0 = anchor[0] + font.getlength(text.string[:i])
        x1 = anchor[0] + font.getlength(text.string[: i + 1])
        box = round(x0), round(anchor[1] + top), round(x1), round(anchor[1] + bottom)
        draw.rectangle(box, fill=_glyph_code(glyph))
    turned = glyphs.transform(tile.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)
    solid = turned.point(lambda v: 255 if v else 0)
    owner.paste(turned, corner, solid)
    color.paste(list(COLORS).index(text.color) + 1, corner, solid)


@functools.lru_cache(maxsize=1)
def _noise_bank() -> np.ndarray:
    side = 640 + NOISE_SLACK
    return np.random.default_rng(20).standard_normal((side, side, 3), dtype=np.float32)


def _photograph(canvas: Image.Image, scene: Scene) -> Image.Image:
    camera = scene.camera
    if camera.blur > 0:
        canvas = canvas.filter(ImageFilter.BoxBlur(camera.blur * min(canvas.size)))
    gain = np.float32(camera.gain)
    if camera.light > 0:
        gain = gain * (1 + camera.light * np.clip(_ramp(scene, camera.light_degrees), -0.7, 0.7))[..., None]
    pixels = np.asarray(canvas) * gain
    if camera.noise > 0:
        noise = _noise_bank()[camera.noise_y :, camera.noise_x :][: scene.height, : scene.width]
        pixels += camera.noise * (noise[..., :1] if camera.grey_noise else noise)
    photo = Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))
    if camera.jpeg is None:
        return photo
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=camera.jpeg)
    return Image.open(buffer).convert("RGB")


def encode(scene: Scene) -> tuple[bytes, str]:
    """The picture as a file's bytes and its suffix: JPEG at the camera's quality, else PNG."""
    quality = scene.camera.jpeg
    uncompressed = replace(scene, camera=replace(scene.camera, jpeg=None))
    picture = render(uncompressed).picture
    buffer = io.BytesIO()
    if quality is None:
        picture.save(buffer, "PNG", optimize=True)
        return buffer.getvalue(), ".png"
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue(), ".jpg"
