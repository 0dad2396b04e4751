"""Every image source becomes upright 8-bit RGB, or an ImageError that names it."""

import io
import os
import random
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from ved_core import images as ved_images
from ved_core.errors import ImageError
from ved_core.images import FORMATS, load_image

ROOT = Path(__file__).parents[1]
WHITE, RED, GREY = (255, 255, 255), (255, 0, 0), (128, 128, 128)


def first_pixel(source: object) -> tuple[int, ...]:
    image = load_image(source)  # type: ignore[arg-type]
    assert image.mode == "RGB"
    pixel = image.getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return pixel


def png(width: int, height: int, depth: int, colour: int, rows: bytes, transparent: bytes = b"") -> bytes:
    """A PNG file written by hand, for what Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    key = chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + header + key + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, WHITE),
        ("L", 128, GREY),
        ("LA", (0, 255), (0, 0, 0)),
        ("LA", (0, 0), WHITE),
        ("La", (0, 0), WHITE),
        ("La", (128, 255), GREY),
        ("PA", (0, 0), WHITE),
        ("RGB", RED, RED),
        ("RGBA", (*RED, 255), RED),
        ("RGBA", (*RED, 0), WHITE),
        ("RGBA", (0, 0, 0, 127), GREY),
        ("RGBa", (0, 0, 0, 0), WHITE),
        ("RGBX", (*RED, 0), RED),
        ("CMYK", (0, 255, 255, 0), RED),
        ("YCbCr", (128, 128, 128), GREY),
        ("HSV", (0, 255, 255), RED),
        ("I", 128, GREY),
        ("I", 65535, WHITE),
        ("I;16", 32896, GREY),
        ("I;16", 100, (0, 0, 0)),
        ("I;16B", 32896, GREY),
        ("I;16L", 65535, WHITE),
        ("F", 0.5, GREY),
        ("F", 128.0, GREY),
    ],
)
def test_modes(mode: str, colour: object, expected: tuple[int, ...]) -> None:
    image = Image.new(mode, (3, 2), colour)  # type: ignore[arg-type]
    assert first_pixel(image) == expected
    assert (image.mode, image.size) == (mode, (3, 2))


@pytest.mark.parametrize("mode", ["RGBA", "La", "F", "I;16"])
def test_large_images_are_worked_on_in_bands(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = NOISE.convert("RGBA" if mode in ("RGBA", "La") else "L")
    image.putalpha(NOISE.convert("L")) if mode in ("RGBA", "La") else None
    image = image.convert("LA").convert(mode) if mode == "La" else image.convert(mode)
    whole = np.asarray(load_image(image))
    monkeypatch.setattr(ved_images, "_BAND", 3 * image.width + 1)
    np.testing.assert_array_equal(np.asarray(load_image(image)), whole)
    assert whole.std() > 1 or mode == "I;16"


def test_lab() -> None:
    assert min(first_pixel(Image.new("LAB", (1, 1), (255, 128, 128)))) > 250


@pytest.mark.parametrize(("transparency", "expected"), [(None, RED), (0, WHITE), (1, RED), (b"\x00\xff", WHITE)])
def test_palette(tmp_path: Path, transparency: int | bytes | None, expected: tuple[int, ...]) -> None:
    image = Image.new("P", (2, 2), 0)
    image.putpalette([*RED, 0, 0, 255])
    options = {} if transparency is None else {"transparency": transparency}
    path = tmp_path / "x.png"
    path.write_bytes(encoded(image, "PNG", **options))
    assert first_pixel(path) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png(1, 1, 16, 0, b"\0" + struct.pack(">H", 32896)), GREY),
        (png(1, 1, 16, 0, b"\0" + struct.pack(">H", 200)), (1, 1, 1)),
        (png(1, 1, 16, 0, b"\0" + struct.pack(">H", 9), struct.pack(">H", 9)), WHITE),
        (png(1, 1, 16, 4, b"\0" + struct.pack(">HH", 0, 0)), WHITE),
        (png(1, 1, 16, 2, b"\0" + struct.pack(">HHH", 65535, 0, 0)), RED),
        (png(1, 1, 8, 0, b"\0\x64", struct.pack(">H", 100)), WHITE),
        (png(8, 1, 1, 0, b"\0\x00"), (0, 0, 0)),
        (b"P5 1 1 65535\n" + struct.pack(">H", 32896), GREY),
        (b"P5 1 1 65535\n" + struct.pack(">H", 200), (1, 1, 1)),
        (encoded(Image.new("F", (1, 1), 0.5), "TIFF"), GREY),
        (encoded(Image.new("I;16", (1, 1), 32896), "TIFF"), GREY),
    ],
)
def test_depths_in_files(tmp_path: Path, data: bytes, expected: tuple[int, ...]) -> None:
    (tmp_path / "x").write_bytes(data)
    assert first_pixel(tmp_path / "x") == expected


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_exif_orientation(tmp_path: Path, orientation: int, kind: str) -> None:
    upright = np.zeros((16, 32), np.uint8)
    upright[:8, :8] = 255  # one white corner, at the top left
    stored = {
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }.get(orientation, upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "x"
    path.write_bytes(encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif))
    for source in (path, str(path), Image.open(io.BytesIO(path.read_bytes()))):
        image = load_image(source)
        assert image.size == (32, 16)
        assert np.abs(np.asarray(image.convert("L")).astype(int) - upright).max() < 40


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, WHITE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    (tmp_path / "x").write_bytes(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert first_pixel(tmp_path / "x") == RED


@pytest.mark.parametrize("extension", ["png", "jpg", "txt", "eps", ""])
def test_the_extension_is_not_believed(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"x.{extension}"
    path.write_bytes(encoded(Image.new("RGB", (2, 2), RED), "BMP"))
    assert first_pixel(path) == RED


def test_formats_leave_out_what_runs_programs() -> None:
    assert not {"EPS", "WMF", "PDF", "PSD"} & set(FORMATS)


HALF_GREY = np.full((5, 6), 128, np.uint8)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (HALF_GREY, GREY),
        (HALF_GREY[..., None], GREY),
        (HALF_GREY[None], GREY),
        (np.stack([HALF_GREY] * 3), GREY),
        (np.stack([HALF_GREY] * 3, -1), GREY),
        (np.stack([HALF_GREY, HALF_GREY * 0]), WHITE),
        (np.stack([HALF_GREY] * 3 + [HALF_GREY * 0], -1), WHITE),
        (np.full((3, 7, 3), RED, np.uint8), RED),  # both ends could be channels: the last is
        (HALF_GREY.astype(np.int64), GREY),
        (HALF_GREY.astype(np.uint16) * 257, GREY),
        (HALF_GREY / 255, GREY),
        ((HALF_GREY / 255).astype(np.float16), GREY),
        ((HALF_GREY / 255).astype(ml_dtypes.bfloat16), GREY),
        (HALF_GREY.tolist(), GREY),
        (np.asfortranarray(np.full((4, 5, 3), RED, np.uint8)), RED),
    ],
)
def test_arrays(array: object, expected: tuple[int, ...]) -> None:
    assert first_pixel(array) == expected


def test_array_axes() -> None:
    values = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3)
    assert np.array_equal(np.asarray(load_image(values)), values)
    assert np.array_equal(np.asarray(load_image(np.moveaxis(values, -1, 0))), values)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((4, 4), bool), "booleans"),
        (np.full((4, 4), 1.5), r"0\.\.1; divide by 255"),
        (np.full((4, 4), -0.1), r"0\.\.1"),
        (np.full((4, 4), np.nan), "nan"),
        (np.full((4, 4), np.inf), "inf"),
        (np.full((4, 4), 256), r"outside of 0\.\.255"),
        (np.full((4, 4), -1), r"outside of 0\.\.255"),
        (np.zeros(4), r"\(H, W\)"),
        (np.zeros((1, 4, 4, 3)), r"one image as \(H, W\)"),
        (np.zeros((5, 4, 5)), "channels"),
        (np.zeros((0, 4)), "no pixels"),
        (np.zeros((4, 4), complex), "array of numbers"),
        (None, "not a path"),
        ([[1, 2], [3]], "does not convert"),
    ],
)
def test_arrays_refused(array: object, reason: str) -> None:
    with pytest.raises(ImageError, match=f"image array.*{reason}"):
        load_image(array)  # type: ignore[arg-type]


def test_a_files_content() -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    content = encoded(Image.fromarray(pixels), "PNG")
    assert np.array_equal(np.asarray(load_image(content)), pixels)
    for damaged, reason in ((b"", "empty"), (b"raw bytes", "not in a format"), (content[:45], "damaged")):
        with pytest.raises(ImageError, match=f"image of {len(damaged)} bytes: .*{reason}"):
            load_image(damaged)


@pytest.mark.parametrize(("mode", "colour"), [("F", 300.0), ("F", -1.0), ("F", float("nan")), ("I", 70000), ("I", -1)])
def test_samples_out_of_range(mode: str, colour: float) -> None:
    with pytest.raises(ImageError, match="scale them"):
        load_image(Image.new(mode, (2, 2), colour))


def test_a_pil_image_without_pixels() -> None:
    with pytest.raises(ImageError, match="no pixels"):
        load_image(Image.new("RGB", (0, 3)))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("data", [EPS, b"%PDF-1.7\n", b"hello", b"<svg/>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
@pytest.mark.parametrize("extension", ["png", "eps"])
def test_not_an_image(tmp_path: Path, data: bytes, extension: str) -> None:
    path = tmp_path / f"x.{extension}"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=rf"x\.{extension}.*not in a format that is read"):
        load_image(path)


def test_no_file(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    cases: list[tuple[str | Path, str]] = [
        (tmp_path, "is a folder"),
        (tmp_path / "no.png", "no such file"),
        (tmp_path / "empty.png", "empty"),
        (tmp_path / "empty.png" / "x.png", "no such file"),
        ("https://example.org/x.png", "URLs are not fetched"),
        ("nul\0byte", "image"),
    ]
    for path, reason in cases:
        with pytest.raises(ImageError, match=reason) as caught:
            load_image(path)
        assert repr(str(path)) in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="not a regular file"):
        load_image(tmp_path / "pipe")


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.png").write_bytes(encoded(Image.new("L", (2, 2)), "PNG"))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # chmod would not stop root
    with pytest.raises(ImageError, match="permissions"):
        load_image(tmp_path / "x.png")


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
ENCODED = {kind: encoded(NOISE, kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM")}


@pytest.mark.parametrize("kind", ENCODED)
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_truncated(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / "cut.bin"
    path.write_bytes(ENCODED[kind][: int(len(ENCODED[kind]) * share)])
    with pytest.raises(ImageError, match=r"cut\.bin.*(truncated|damaged)"):
        load_image(path)
    if share == 0.9 and kind != "WEBP":  # which Pillow does not even open
        with pytest.raises(ImageError, match=r"^image: "), Image.open(path) as lazy:
            load_image(lazy)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ENCODED)
def test_damaged_data_never_raises_anything_else(tmp_path: Path, kind: str) -> None:
    chance = random.Random(kind)
    refused = 0
    for _ in range(60):
        data = bytearray(ENCODED[kind])
        for _ in range(8):  # headers are where decoders trip
            data[chance.randrange(min(len(data), 200))] = chance.randrange(256)
        (tmp_path / "x").write_bytes(data)
        try:
            load_image(tmp_path / "x")
        except ImageError:
            refused += 1
    assert refused


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png(100_000, 100_000, 8, 2, b""))
    with pytest.raises(ImageError, match=r"bomb\.png.*MAX_IMAGE_PIXELS"):
        load_image(tmp_path / "bomb.png")


@pytest.mark.parametrize(("limit", "allowed"), [(11, False), (12, True), (None, True)])
def test_just_above_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None, allowed: bool
) -> None:
    image = Image.new("RGB", (4, 3), RED)
    path = tmp_path / "x.png"
    image.save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for source in (path, image):
            if allowed:
                assert first_pixel(source) == RED
            else:
                with pytest.raises(ImageError, match="more than 11 pixels"):
                    load_image(source)


def test_files_are_closed_and_warnings_stay_inside(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(ENCODED["PNG"])
    bad.write_bytes(ENCODED["PNG"][:500])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a ResourceWarning would tell of a file left open
        load_image(good)
        with pytest.raises(ImageError):
            load_image(bad)


def test_threads_leave_the_warning_filters_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(ENCODED["PNG"])
    before = list(warnings.filters)
    threads = [threading.Thread(target=load_image, args=(path,)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


def test_a_users_image_stays_as_it_was() -> None:
    image = Image.new("RGBA", (2, 2), (*RED, 0))
    exif = image.getexif()
    exif[0x0112] = 6
    load_image(image)
    assert (image.mode, image.getpixel((0, 0)), image.getexif()[0x0112]) == ("RGBA", (*RED, 0), 6)


def test_import_is_cheap() -> None:
    code = "import sys, ved_core.images; print(sorted({'PIL', 'transformers', 'torch', 'jax'} & set(sys.modules)))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
