#!/usr/bin/env python3
"""Make the picture fixtures of tests/images.rs and tests/image_preprocessing.rs.

Pillow (with libjpeg-turbo and libwebp) decodes and resizes, Hugging Face's PIL image processors preprocess; what they
answer is what the tests expect. The pictures are made here, from seeds.

    pip install Pillow==11.3.0 numpy transformers==5.17.0 torch
    python tools/make_image_fixtures.py        # writes tests/fixtures/images

A case of manifest.json names its file, size, and the CRC-32 of the RGB bytes under both rules for transparency: `white`
(composited on white) and `drop` (Pillow's convert("RGB")). Where Pillow rounds otherwise, `reference` is a PNG of its RGB
bytes.
"""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageCms, ImageOps

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "images"
CASES = []


def photo(width, height, seed=1):
    """Waves, discs and grain: smooth, sharp and noisy parts."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(float)
    a = np.stack([128 + 100 * np.sin(x / 17 + y / 31), 128 + 90 * np.cos(x / 23 - y / 11), 128 + 110 * np.sin((x + y) / 41)], -1)
    for _ in range(6):
        cx, cy, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(1, 1 + min(width, height) / 3)
        a[(x - cx) ** 2 + (y - cy) ** 2 < r * r] = rng.uniform(0, 255, 3)
    a += rng.normal(0, 4, a.shape)
    return Image.fromarray(np.clip(a, 0, 255).astype(np.uint8))


def half_clear(width, height):
    """A photo under a sky in which hardly anything is to be seen."""
    img = photo(width, height)
    img.paste(Image.linear_gradient("L").resize((width, height // 2)).convert("RGB"))
    return img


def ramp(width, height):
    """An alpha channel with every kind of value."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(((x * 7 + y * 5) % 256).astype(np.uint8))


def encoded(img, fmt, **options):
    out = io.BytesIO()
    img.save(out, fmt, **options)
    return out.getvalue()


def rgb_white(img):
    """Transparency of any kind composited on white."""
    if img.mode in ("RGBA", "LA", "PA") or "transparency" in img.info:
        img = img.convert("RGBA")
        page = Image.new("RGB", img.size, (255, 255, 255))
        page.paste(img, mask=img.getchannel("A"))
        return page
    return img.convert("RGB")


def case(name, data, rounded=False, oracle=None):
    """Writes a file and what Pillow makes of it. `oracle` replaces Pillow where a rule here departs from it."""
    (OUT / name).write_bytes(data)
    img = Image.open(io.BytesIO(data))
    img.seek(0)
    img.load()
    img = ImageOps.exif_transpose(img)
    white, drop = rgb_white(img), img.convert("RGB")
    if oracle is not None:
        white = drop = oracle
    entry = {"file": name, "width": white.width, "height": white.height}
    entry["white"] = zlib.crc32(white.tobytes())
    entry["drop"] = zlib.crc32(drop.tobytes())
    if rounded:
        entry["reference"] = name + ".expected.png"
        (OUT / entry["reference"]).write_bytes(encoded(white, "PNG", optimize=True))
    CASES.append(entry)


# PNG by hand: what Pillow cannot write.


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(array, bits, colour, interlace=False, extra=b""):
    """array: [height, width, channels] of samples of `bits` bits (8 or 16)."""
    height, width = array.shape[:2]
    dtype = ">u2" if bits == 16 else "u1"

    def rows(part):
        return b"".join(b"\0" + row.astype(dtype).tobytes() for row in part) if part.size else b""

    if interlace:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
        raw = b"".join(rows(array[y::dy, x::dx]) for x, y, dx, dy in passes)
    else:
        raw = rows(array)
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlace))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")


def sub_byte_grey(bits, width=21, height=9):
    """A grey PNG of 2 or 4 bits a sample."""
    samples = (np.add.outer(np.arange(height) * 3, np.arange(width)) % (1 << bits)).astype(np.uint8)
    packed = []
    for row in samples:
        value = "".join(format(s, f"0{bits}b") for s in row)
        value += "0" * (-len(value) % 8)
        packed.append(b"\0" + bytes(int(value[i : i + 8], 2) for i in range(0, len(value), 8)))
    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"".join(packed))) + chunk(b"IEND", b"")


def pngs():
    img, alpha = photo(37, 29), ramp(37, 29)
    grey, wide = img.convert("L"), np.random.default_rng(7).integers(0, 65536, (11, 13, 4))
    rgba = img.copy()
    rgba.putalpha(alpha)
    case("rgb.png", encoded(img, "PNG"))
    case("rgba.png", encoded(rgba, "PNG"))
    case("grey_alpha.png", encoded(Image.merge("LA", (grey, alpha)), "PNG"))
    case("grey.png", encoded(grey, "PNG"))
    case("grey_1bit.png", encoded(img.convert("1"), "PNG"))
    case("grey_2bit.png", sub_byte_grey(2))
    case("grey_4bit.png", sub_byte_grey(4))
    for colours, bits in ((2, 1), (4, 2), (16, 4), (200, 8)):
        case(f"palette_{bits}bit.png", encoded(img.quantize(colours), "PNG", bits=bits))
    palette = img.quantize(16)
    case("palette_one_transparent.png", encoded(palette, "PNG", transparency=3))
    case("palette_translucent.png", encoded(palette, "PNG", transparency=bytes(range(0, 256, 16))))
    case("grey_transparent.png", encoded(grey, "PNG", transparency=grey.getpixel((5, 5))))
    case("rgb_transparent.png", encoded(img, "PNG", transparency=img.getpixel((5, 5))))
    case("red_fully_transparent.png", encoded(Image.new("RGBA", (8, 6), (255, 0, 0, 0)), "PNG"))
    case("rgb_16bit.png", png(wide[..., :3], 16, 2))
    case("rgba_16bit.png", png(wide, 16, 6))
    case("grey_alpha_16bit.png", png(wide[..., :2], 16, 4))
    high = Image.fromarray((wide[..., 0] >> 8).astype(np.uint8)).convert("RGB")
    case("grey_16bit.png", png(wide[..., :1], 16, 0), oracle=high)
    case("interlaced.png", png(np.asarray(photo(13, 11)), 8, 2, interlace=True))
    gamma = chunk(b"gAMA", struct.pack(">I", 100000)) + chunk(b"cHRM", struct.pack(">8I", *[31270, 32900, 70000, 29000, 20000, 75000, 13000, 5000]))
    case("gamma.png", png(np.asarray(img), 8, 2, extra=gamma))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    # Without the date of making.
    case("icc.png", encoded(img, "PNG", icc_profile=profile[:24] + bytes(12) + profile[36:]))
    frames = [photo(16, 12, s) for s in (1, 2, 3)]
    case("animated.png", encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]))
    case("one_pixel.png", encoded(photo(1, 1), "PNG"))
    case("two_by_two.png", encoded(photo(2, 2), "PNG"))


def adobe_transform(data, transform):
    """A JPEG with another colour transform in its Adobe marker, or (None) without the marker."""
    at = data.index(b"\xff\xee\x00\x0eAdobe")
    if transform is None:
        return data[:at] + data[at + 16 :]
    return data[: at + 15] + bytes([transform]) + data[at + 16 :]


def segments(data):
    """Marker -> segment bodies, and the entropy-coded data, of a JPEG with one scan."""
    at, found = 2, {}
    while data[at + 1] != 0xDA:
        size = struct.unpack(">H", data[at + 2 : at + 4])[0]
        found.setdefault(data[at + 1], []).append(data[at + 4 : at + 2 + size])
        at += 2 + size
    size = struct.unpack(">H", data[at + 2 : at + 4])[0]
    return found, data[at + 2 + size : -2]


def one_scan_a_component(img, sampling):
    """A baseline JPEG whose three components have a scan each: three grey JPEGs put together."""
    h_max, v_max = max(h for h, _ in sampling), max(v for _, v in sampling)
    planes = []
    for band, (h, v) in zip(img.convert("YCbCr").split(), sampling):
        size = (-(-img.width * h // h_max), -(-img.height * v // v_max))
        planes.append(segments(encoded(band.resize(size, Image.BOX), "JPEG", quality=90)))

    def segment(marker, body):
        return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body

    head = planes[0][0]
    out = b"\xff\xd8" + segment(0xE0, head[0xE0][0]) + b"".join(segment(0xDB, t) for t in head[0xDB])
    frame = struct.pack(">BHHB", 8, img.height, img.width, 3)
    out += segment(0xC0, frame + b"".join(bytes([i + 1, h << 4 | v, 0]) for i, (h, v) in enumerate(sampling)))
    for i, (found, coded) in enumerate(planes):
        out += b"".join(segment(0xC4, t) for t in found[0xC4])
        out += segment(0xDA, bytes([1, i + 1, 0, 0, 63, 0])) + coded
    return out + b"\xff\xd9"


def jpegs():
    img = photo(61, 47)

    def save(name, picture=img, **options):
        case(name + ".jpg", encoded(picture, "JPEG", **{"quality": 90, **options}))

    for name, subsampling in (("444", 0), ("422", 1), ("420", 2)):
        save(f"baseline_{name}", subsampling=subsampling)
        save(f"progressive_{name}", subsampling=subsampling, progressive=True)
    save("grey", img.convert("L"))
    save("progressive_grey", img.convert("L"), progressive=True)
    save("restarts", restart_marker_blocks=3)
    save("progressive_restarts", restart_marker_blocks=3, progressive=True)
    save("low_quality", quality=10)
    save("tall", photo(9, 70))
    save("one_pixel", photo(1, 1))
    save("rgb", keep_rgb=True, subsampling=0)
    cmyk = encoded(img.convert("CMYK"), "JPEG", quality=90)
    case("cmyk_adobe.jpg", cmyk)
    case("cmyk_plain.jpg", adobe_transform(cmyk, None))
    case("ycck.jpg", adobe_transform(cmyk, 2))
    case("scan_a_component_444.jpg", one_scan_a_component(img, [(1, 1)] * 3))
    case("scan_a_component_422.jpg", one_scan_a_component(img, [(2, 1), (1, 1), (1, 1)]))
    case("scan_a_component_411.jpg", one_scan_a_component(img, [(4, 1), (1, 1), (1, 1)]))
    case("scan_a_component_420.jpg", one_scan_a_component(img, [(2, 2), (1, 1), (1, 1)]))
    case("scan_a_component_440.jpg", one_scan_a_component(img, [(1, 2), (1, 1), (1, 1)]))
    for width in (1, 2, 3, 4, 5, 6):
        save(f"narrow_{width}", photo(width, 9), subsampling=2)
    # So large that several threads read one, with codes that are dense in some places and sparse in others.
    for name, subsampling in (("444", 0), ("422", 1), ("420", 2)):
        save(f"large_{name}", half_clear(400, 300), subsampling=subsampling, quality=80)
    save("large_grey", half_clear(400, 300).convert("L"), quality=80)
    save("large_restarts", half_clear(400, 300), restart_marker_rows=2, quality=80)


def webps():
    img = photo(61, 47)
    rgba = img.copy()
    rgba.putalpha(ramp(61, 47))
    case("lossy.webp", encoded(img, "WEBP", quality=80))
    case("lossless.webp", encoded(img, "WEBP", lossless=True))
    case("lossy_alpha.webp", encoded(rgba, "WEBP", quality=80))
    case("lossless_alpha.webp", encoded(rgba, "WEBP", lossless=True, exact=True))
    frames = [photo(32, 24, s) for s in (1, 2, 3)]
    case("animated.webp", encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True))


def gifs():
    img = photo(20, 14).quantize(16)
    plain, clear = encoded(img, "GIF"), encoded(img, "GIF", transparency=img.getpixel((3, 3)))
    frames = [photo(20, 14, s).quantize(16) for s in (1, 2, 3)]
    case("plain.gif", plain)
    case("transparent.gif", clear)
    case("interlaced.gif", encoded(photo(20, 33).quantize(16), "GIF", interlace=1))
    case("animated.gif", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))

    def moved(data, screen, left, top):
        at = data.index(b"\x2c\0\0\0\0" + struct.pack("<HH", 20, 14))
        data = data[:6] + struct.pack("<HH", *screen) + data[10:]
        return data[: at + 1] + struct.pack("<HH", left, top) + data[at + 5 :]

    # Uncovered canvas is transparent here, hence white; Pillow shows the first palette colour under both rules.
    case("partial_transparent.gif", moved(clear, (32, 24), 5, 6))
    page = Image.new("RGB", (32, 24), (255, 255, 255))
    page.paste(img.convert("RGB"), (5, 6))
    case("partial.gif", moved(plain, (32, 24), 5, 6))
    CASES[-1]["white"] = zlib.crc32(page.tobytes())
    case("canvas_too_small.gif", moved(clear, (10, 10), 3, 2))


def bmps():
    img = photo(19, 13)
    case("rgb.bmp", encoded(img, "BMP"))
    case("palette.bmp", encoded(img.quantize(16), "BMP"))
    case("grey.bmp", encoded(img.convert("L"), "BMP"))
    case("one_bit.bmp", encoded(img.convert("1"), "BMP"))
    case("rgbx.bmp", encoded(img.convert("RGBA"), "BMP"))
    rows = np.asarray(img)[..., ::-1]
    stride = -(-19 * 3 // 4) * 4
    body = b"".join(r.tobytes().ljust(stride, b"\0") for r in rows)
    info = struct.pack("<IiiHHIIiiII", 40, 19, -13, 1, 24, 0, len(body), 0, 0, 0, 0)
    case("top_down.bmp", b"BM" + struct.pack("<IHHI", 54 + len(body), 0, 0, 54) + info + body)
    r, g, b = (np.asarray(img)[..., i].astype(np.uint16) for i in range(3))
    pixels = ((r >> 3) << 11) | ((g >> 2) << 5) | (b >> 3)
    body = b"".join(row.astype("<u2").tobytes().ljust(40, b"\0") for row in pixels[::-1])
    info = struct.pack("<IiiHHIIiiII", 40, 19, 13, 1, 16, 3, len(body), 0, 0, 0, 0) + struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    case("rgb_565.bmp", b"BM" + struct.pack("<IHHI", 66 + len(body), 0, 0, 66) + info + body, rounded=True)


def orientations():
    img = photo(18, 11)
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        for fmt, name, options in (("PNG", "png", {}), ("JPEG", "jpg", {"quality": 95, "subsampling": 0}), ("WEBP", "webp", {"lossless": True})):
            case(f"orientation_{turn}.{name}", encoded(img, fmt, exif=exif, **options))
    broken = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0" + b"\xff" * 40
    case("broken_exif.jpg", encoded(img, "JPEG", quality=95, subsampling=0, exif=broken))


def pattern(width, height):
    """The test picture of the resizing and preprocessing tests, which make it themselves."""
    y, x, c = np.mgrid[0:height, 0:width, 0:3].astype(np.int64)
    return Image.fromarray(((37 * y + 101 * x + 53 * c + 7 * ((x * y) % 251)) % 256).astype(np.uint8))


RESIZES = [
    (8, 6, 5, 4), (8, 6, 13, 9), (8, 6, 8, 6), (8, 6, 8, 3), (8, 6, 3, 6), (8, 6, 8, 13), (8, 6, 17, 6), (1, 1, 1, 1), (1, 1, 7, 5),
    (2, 2, 336, 336), (3, 5, 336, 560), (5, 3, 2, 1), (1, 200, 3, 600), (200, 1, 50, 1), (200, 1, 1, 1), (1, 200, 1, 7), (999, 3, 10, 4), (3, 999, 4, 10),
    (335, 337, 336, 338), (337, 335, 336, 336), (336, 336, 336, 336), (337, 337, 336, 336), (640, 480, 448, 336), (480, 640, 336, 448), (480, 640, 336, 336),
    (1000, 700, 336, 336), (100, 80, 420, 336), (640, 480, 1344, 1008), (1920, 1080, 672, 378), (1200, 37, 300, 9), (61, 1300, 15, 336), (2000, 1500, 11, 7),
]
SIZES = [(336, 336), (640, 480), (480, 640), (1000, 700), (100, 80), (335, 337), (337, 336), (1, 1), (2, 2), (3, 5), (50, 1000), (1000, 50), (400, 3)]


def preprocessing():
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    base = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    variants = {
        "llava": base,
        "pad": {**base, "do_pad": True},
        "bilinear": {**base, "resample": 2},
        "exact": {**base, "size": {"height": 70, "width": 90}, "crop_size": {"height": 70, "width": 90}},
        "exact_then_cut": {**base, "size": {"height": 70, "width": 91}, "crop_size": {"height": 33, "width": 44}},
        "exact_then_widened": {**base, "size": {"height": 33, "width": 91}, "crop_size": {"height": 40, "width": 44}},
        "small": {**base, "size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}},
        "no_resize": {**base, "do_resize": False, "crop_size": {"height": 101, "width": 64}},
        "no_crop": {**base, "size": {"shortest_edge": 24}, "do_center_crop": False},
        "no_rescale": {**base, "size": {"shortest_edge": 24}, "do_rescale": False},
        "no_normalize": {**base, "size": {"shortest_edge": 24}, "do_normalize": False},
        "half_range": {**base, "size": {"shortest_edge": 24}, "rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0]},
    }
    answers = []
    for name, settings in variants.items():
        kind = LlavaImageProcessorPil if settings.get("do_pad") else CLIPImageProcessorPil
        processor = kind(**settings)
        for width, height in SIZES:
            values = np.asarray(processor(pattern(width, height), return_tensors="np")["pixel_values"])
            assert values.dtype == np.float32 and values.shape[:2] == (1, 3)
            answers.append([name, width, height, values.shape[3], values.shape[2], zlib.crc32(values.astype("<f4").tobytes())])
    return answers


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for old in OUT.iterdir():
        old.unlink()
    for make in (pngs, jpegs, webps, gifs, bmps, orientations):
        make()
    filters = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}
    resizes = [
        [*r, name, zlib.crc32(pattern(*r[:2]).resize(r[2:], f).tobytes())] for r in RESIZES for name, f in filters.items()
    ]
    import transformers

    made_by = f"tools/make_image_fixtures.py, Pillow {PIL.__version__}, numpy {np.__version__}, transformers {transformers.__version__}"
    groups = {"decode": CASES, "resize": resizes, "clip": preprocessing()}
    lines = [f' "made_by": {json.dumps(made_by)}']
    lines += [f' "{k}": [\n  ' + ",\n  ".join(json.dumps(x) for x in v) + "\n ]" for k, v in groups.items()]
    (OUT / "manifest.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{len(CASES)} pictures, {sum(f.stat().st_size for f in OUT.iterdir())} bytes in {OUT}")


if __name__ == "__main__":
    main()
