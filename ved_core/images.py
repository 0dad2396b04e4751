"""Any image source -> an 8-bit RGB PIL image: every mode, depth and orientation, and nothing that is not an image."""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ved_core.errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | Image | ArrayLike"

# Named one by one, because Pillow would otherwise run Ghostscript on whatever begins like an EPS file.
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF")

_EXIF_ORIENTATION = 0x0112
_CHANNELS = (1, 2, 3, 4)  # grey, grey + alpha, RGB, RGB + alpha
_BAND = 2**22  # pixels
_warning_filters = threading.Lock()


def load_image(source: ImageSource) -> Image:
    """Return `source` upright, as 8-bit RGB, with transparency laid over white.

    `source` is a path, a file's content as bytes, a PIL image of any mode, or an array of shape (H, W), (H, W, C) or
    (C, H, W) with C from 1 to 4: integers from 0 to 255, uint16 from 0 to 65535, or floats from 0 to 1. A file with
    several frames gives its first.
    Raises ImageError, naming the source and the reason.
    """
    from PIL import Image

    if isinstance(source, (str, os.PathLike)):
        return _load_file(source)
    if isinstance(source, bytes):
        return _load_bytes(source)
    if isinstance(source, Image.Image):
        return _decode(source, "image")
    return _to_rgb(_from_array(source))


def _load_file(source: str | os.PathLike[str]) -> Image:
    name = f"image {os.fspath(source)!r}"
    try:
        path = Path(source)
        if path.is_dir():
            raise ImageError(f"{name}: is a folder; give the path of one image file")
        if not path.exists():
            hint = "URLs are not fetched: download it and give its path" if "://" in str(source) else "check its path"
            raise ImageError(f"{name}: no such file; {hint}")
        if not path.is_file():
            raise ImageError(f"{name}: is not a regular file")
        if path.stat().st_size == 0:
            raise ImageError(f"{name}: the file is empty (0 bytes); copy or download it again")
        # Not opened by name: Pillow would map an uncompressed TIFF, and scramble one that EXIF turns by 90 degrees.
        with path.open("rb") as file, _open(file, name) as image:
            return _decode(image, name)
    except ImageError:
        raise
    except PermissionError as error:
        raise ImageError(f"{name}: not readable by this user; change its permissions") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"{name}: cannot be read: {error}") from error


def _load_bytes(source: bytes) -> Image:
    name = f"image of {len(source)} bytes"
    if not source:
        raise ImageError(f"{name}: is empty")
    with _open(io.BytesIO(source), name) as image:
        return _decode(image, name)


def _open(file: Any, name: str) -> Image:
    """Read the header only; no pixel is decoded before the size is known to be allowed."""
    from PIL import Image, UnidentifiedImageError

    Image.init()
    formats = tuple(name for name in FORMATS if name in Image.OPEN)  # AVIF came with Pillow 11.3
    try:
        # Warning filters belong to the whole process: two threads must not swap them at once.
        with _warning_filters, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the size, which _decode checks, and of formats that do not fit
            return Image.open(file, formats=formats)
    except Image.DecompressionBombError as error:
        raise _too_large(name) from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name}: damaged, or not in a format that is read ({', '.join(formats)}); convert it to PNG"
        ) from error
    except Exception as error:  # decoders raise almost anything on damaged data
        raise _damaged(name, error) from error


def _decode(image: Image, name: str) -> Image:
    from PIL import Image

    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise _too_large(name)
    if image.width * image.height == 0:
        raise ImageError(f"{name}: has no pixels (size {image.width}x{image.height})")
    try:
        image.load()
        return _to_rgb(_upright(image), name)
    except ImageError:
        raise
    except Exception as error:  # decoders raise almost anything on damaged data
        raise _damaged(name, error) from error


def _upright(image: Image) -> Image:
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    turn = turns.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image, name: str = "image array") -> Image:
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":  # Pillow would clip these at 255
        return Image.fromarray(_deep_to_bytes(image, name)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    page = Image.new("RGB", image.size)
    for rows in _bands(image.height, image.width):
        band = image.crop((0, rows.start, image.width, rows.stop))
        if band.mode == "La":  # Pillow knows no direct way from it to RGBA
            band = band.convert("LA")
        white = Image.new("RGBA", band.size, "white")
        page.paste(Image.alpha_composite(white, band.convert("RGBA")).convert("RGB"), (0, rows.start))
    return page


def _deep_to_bytes(image: Image, name: str) -> NDArray[np.uint8]:
    """Samples of more than 8 bits -> (H, W) uint8.

    I;16 spans 0 to 65535. I and F have no range of their own: I is 16 bits deep in a file, and in memory as soon as a
    sample exceeds 255; F spans 0 to 1 unless a sample exceeds 1, then 0 to 255.
    """
    samples = np.asarray(image)
    low, high = samples.min(), samples.max()
    if image.mode == "F":
        top = 1 if high <= 1 else 255
    else:
        top = 65535 if image.mode != "I" or image.format is not None or high > 255 else 255
    if not (low >= 0 and high <= top):  # written so that NaN fails too
        raise ImageError(f"{name}: mode {image.mode} holds samples from {low} to {high}; scale them to 0..{top}")
    scaled = _scale(samples, top)
    if "transparency" in image.info:  # the one sample value of a 16-bit PNG that means "nothing here"
        scaled[samples == image.info["transparency"]] = 255
    return scaled


def _from_array(source: Any) -> Image:
    from PIL import Image

    try:
        array = np.asarray(source)
    except Exception as error:  # each array library has its own errors: a GPU tensor, one that needs gradients, ...
        raise ImageError(f"image array: {type(source).__name__} does not convert to numpy: {error}") from error
    name = f"image array of shape {array.shape} and dtype {array.dtype}"
    if array.dtype.kind == "b":
        raise ImageError(f"{name}: booleans are ambiguous; give `255 * array.astype('uint8')`")
    if array.dtype.kind not in "uif" and array.dtype.name != "bfloat16":
        raise ImageError(f"{name}: {type(source).__name__} is not a path, a PIL image or an array of numbers")
    if array.ndim not in (2, 3):
        raise ImageError(f"{name}: give one image as (H, W), (H, W, C) or (C, H, W)")
    if array.size == 0:
        raise ImageError(f"{name}: has no pixels")
    if array.ndim == 3 and array.shape[-1] not in _CHANNELS:
        if array.shape[0] not in _CHANNELS:
            raise ImageError(f"{name}: neither the first nor the last axis has 1, 2, 3 or 4 channels")
        array = np.moveaxis(array, 0, -1)
    if array.shape[2:] == (1,):
        array = array[..., 0]

    top = 255 if array.dtype.kind in "ui" else 1
    if array.dtype == np.uint16:
        top = 65535
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= top):  # written so that NaN fails too
        hint = "; divide by 255, or give uint8" if top == 1 else ""
        raise ImageError(f"{name}: values from {low} to {high} are outside of 0..{top}{hint}")
    return Image.fromarray(np.ascontiguousarray(_scale(array, top)))


def _scale(array: NDArray[Any], top: int) -> NDArray[np.uint8]:
    """0..top -> 0..255, rounded to nearest."""
    if top == 255 and array.dtype.kind in "ui":
        return array.astype(np.uint8)
    scaled = np.empty(array.shape, np.uint8)
    for rows in _bands(*array.shape[:2]):
        scaled[rows] = np.rint(array[rows].astype(np.float32) * np.float32(255 / top))
    return scaled


def _bands(height: int, width: int) -> Iterator[slice]:
    """Rows to work on at a time, so that the largest images need no second copy in a wider mode."""
    high = max(1, _BAND // width)
    return (slice(top, min(top + high, height)) for top in range(0, height, high))


def _too_large(name: str) -> ImageError:
    from PIL import Image

    return ImageError(
        f"{name}: has more than {Image.MAX_IMAGE_PIXELS} pixels, the limit that guards against decompression bombs; "
        "scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
    )


def _damaged(name: str, error: Exception) -> ImageError:
    return ImageError(f"{name}: truncated or damaged ({type(error).__name__}: {error}); copy or download it again")
