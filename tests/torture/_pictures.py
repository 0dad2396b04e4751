"""Files of images, good and bad, made by hand where no library would write them."""

import io
import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

KINDS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000")
Colour = tuple[int, int, int]


def noise(rng: random.Random, width: int, height: int) -> Image.Image:
    """An image of random pixels."""
    return Image.fromarray(np.frombuffer(rng.randbytes(width * height * 3), np.uint8).reshape(height, width, 3))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """A file's content."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """Of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes, *others: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG file of already compressed rows; `others`: chunks before them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(others) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def tiff(width: int, height: int, entries: dict[int, tuple[int, int, int]], data: bytes = b"") -> bytes:
    """A TIFF file of one directory; `entries`: tag -> (type, count, value)."""
    tags = {256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 277: (3, 1, 1)}
    tags |= {273: (4, 1, 8), 278: (4, 1, height), 279: (4, 1, len(data))} | entries
    directory = struct.pack("<H", len(tags))
    for tag, (kind, count, value) in sorted(tags.items()):
        directory += struct.pack("<HHI", tag, kind, count) + struct.pack(
            "<HH" if kind == 3 else "<I", value, *[0] * (kind == 3)
        )
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + struct.pack("<I", 8 + len(data))


def zeros(megabytes: int) -> bytes:
    """Compressed."""
    deflate = zlib.compressobj(9)
    return b"".join(deflate.compress(bytes(2**20)) for _ in range(megabytes)) + deflate.flush()


def bombs() -> Iterator[tuple[str, bytes]]:
    """Small files that would fill the memory, or keep a processor busy."""
    side = 2**16 - 1
    yield "PNG of 10 billion pixels", png(100_000, 100_000, zeros(1))
    yield "PNG of 2**31 - 1 squared", png(2**31 - 1, 2**31 - 1, b"")
    yield "PNG of the most pixels", png(9459, 9459, zeros(342), colour=6)
    yield "PNG with 400 MB behind its one pixel", png(1, 1, zeros(400))
    yield "PNG with a text of 400 MB", png(1, 1, zlib.compress(b"\0\0\0\0"), chunk(b"zTXt", b"a\0\0" + zeros(400)))
    yield "PNG with a profile of 400 MB", png(1, 1, zlib.compress(b"\0\0\0\0"), chunk(b"iCCP", b"a\0\0" + zeros(400)))
    yield "PNG with 50,000 texts", png(1, 1, zlib.compress(b"\0\0\0\0"), chunk(b"tEXt", b"a\0" + b"b" * 900) * 50_000)
    yield "GIF of 65,535 squared", b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(6) + b";"
    frame = b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02L\x01\0"
    yield (
        "GIF whose frame is larger than it",
        b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6) + frame + b";",
    )
    small = encoded(Image.new("RGB", (8, 8)), "JPEG")
    place = small.index(b"\xff\xc0") + 5
    yield "JPEG of 65,535 squared", small[:place] + b"\xff\xff\xff\xff" + small[place + 4 :]
    yield (
        "BMP of 2 billion columns",
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**31 - 1, 1, 1, 24, *[0] * 6),
    )
    yield (
        "BMP of 100,000 squared",
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 10**5, -(10**5), 1, 24, *[0] * 6),
    )
    yield "PPM of 100,000 squared", b"P6 100000 100000 255\n"
    yield "PPM of a size with 20 digits", b"P6 99999999999999999999 1 255\n"
    yield "TIFF of 100,000 squared", tiff(10**5, 10**5, {})
    yield "TIFF of 65,000 samples", tiff(9000, 9000, {277: (3, 1, 65000)})
    yield "TIFF whose strips are elsewhere", tiff(8, 8, {273: (4, 2**28, 8)})
    yield "TIFF whose directory follows itself", tiff(2, 2, {}, bytes(4))
    webp = encoded(Image.new("RGB", (8, 8)), "WEBP", lossless=True)
    yield "WEBP of 16,384 squared", webp[:21] + struct.pack("<I", 0x0FFFFFFF) + webp[25:]
    j2k = encoded(Image.new("RGB", (8, 8)), "JPEG2000")
    place = j2k.index(b"\xff\x51") + 6
    yield "JPEG 2000 of 4 billion squared", j2k[:place] + b"\xff" * 8 + j2k[place + 8 :]


SOLID: list[tuple[str, object, Colour]] = [
    ("1", 1, (255, 255, 255)),
    ("L", 128, (128, 128, 128)),
    ("LA", (77, 255), (77, 77, 77)),
    ("LA", (0, 0), (255, 255, 255)),
    ("La", (0, 0), (255, 255, 255)),
    ("PA", (0, 0), (255, 255, 255)),
    ("RGB", (1, 200, 30), (1, 200, 30)),
    ("RGBA", (1, 200, 30, 255), (1, 200, 30)),
    ("RGBA", (1, 200, 30, 0), (255, 255, 255)),
    ("RGBa", (0, 0, 0, 0), (255, 255, 255)),
    ("RGBX", (1, 200, 30, 7), (1, 200, 30)),
    ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
    ("YCbCr", (128, 128, 128), (128, 128, 128)),
    ("HSV", (0, 255, 255), (255, 0, 0)),
    ("LAB", (255, 128, 128), (255, 255, 255)),
    ("I", 128, (128, 128, 128)),
    ("I", 65535, (255, 255, 255)),
    ("I;16", 32896, (128, 128, 128)),
    ("I;16B", 32896, (128, 128, 128)),
    ("I;16L", 257, (1, 1, 1)),
    ("F", 0.5, (128, 128, 128)),
    ("F", 128.0, (128, 128, 128)),
]
"""Every mode: a colour in it, and what that is in RGB."""
STORED = {"PNG": ("1", "L", "LA", "RGB", "RGBA", "I;16"), "TIFF": ("1", "L", "RGB", "RGBA", "CMYK", "LAB", "I;16", "F")}
STORED |= {"BMP": ("1", "L", "RGB"), "GIF": ("L", "RGB"), "WEBP": ("RGB", "RGBA"), "PPM": ("1", "L", "RGB")}
STORED |= {"JPEG2000": ("L", "LA", "RGB", "RGBA")}
"""The modes that a format keeps exactly."""


def turned(upright: np.ndarray, orientation: int) -> np.ndarray:
    """How a camera of that EXIF orientation stores an upright grey image."""
    turn = {
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.T,
        6: lambda x: x.T[::-1],
        7: lambda x: x.T[::-1, ::-1],
        8: lambda x: x.T[:, ::-1],
    }.get(orientation, lambda x: x)
    return np.ascontiguousarray(turn(upright))
