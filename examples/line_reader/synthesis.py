"""Printed lines of text, each with what it says, drawn the same from the same seed; as a program, the data files."""

import argparse
import io
import itertools
import math
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from faces import HELD_OUT, SEEN, Face, load
from PIL import Image, ImageDraw, ImageFilter
from texts import Texts

WIDEST = 10.5
"""Width over height of a line; the processor's canvas is 10 high to 1 wide."""


class Part(NamedTuple):
    """A data file: how many lines, drawn from which seed, in which fonts and words."""

    lines: int
    seed: int
    held_out_fonts: bool
    held_out_words: bool
    letters: bool = False
    """A few characters by chance instead of text: no language helps to guess them, so that looking is learned."""


PARTS = {
    "letters": Part(30_000, 5, False, False, True),
    "train": Part(100_000, 1, False, False),
    "more": Part(150_000, 6, False, False),
    "validation": Part(256, 2, False, True),
    "seen": Part(1000, 3, False, True),
    "held_out": Part(1000, 4, True, True),
}


def line(part: Part, index: int) -> tuple[Image.Image, str, str]:
    """The image (grey), text and family of a part's line of this number."""
    rng = np.random.default_rng((part.seed, index))
    texts = _texts(part.held_out_words)
    text = texts.noise(rng, 4) if part.letters else texts(rng)
    families = HELD_OUT if part.held_out_fonts else SEEN
    family = list(families)[rng.integers(len(families))]
    faces = families[family]
    image, text = draw(text, faces[rng.integers(len(faces))], rng)
    return image, text, family


def draw(text: str, face: Face, rng: np.random.Generator) -> tuple[Image.Image, str]:
    """A line in a face, with size, margins, slant, turn, blur, ink, background and noise drawn from the generator; and
    its text, cut where the line would be wider than `WIDEST`."""
    size = int(rng.integers(18, 45))
    font = load(face, size)
    ascent, descent = font.getmetrics()
    tight = rng.random() < 0.3
    above, below, left, right = (size * rng.uniform((0.02, 0.02, 0.1, 0.1), (0.25, 0.25, 0.8, 0.8))).tolist()

    while True:
        x0, y0, x1, y1 = font.getbbox(text)
        if not tight:
            y0, y1 = min(y0, round(0.2 * ascent)), max(y1, ascent + round(0.8 * descent))
        spare = max(0.0, 0.95 * size - (y1 - y0)) / 2  # a line of commas is no larger than one of letters
        height = math.ceil(y1 - y0 + above + below + 2 * spare)
        width = math.ceil(x1 - x0 + left + right)
        if width <= WIDEST * height or len(text) == 1:
            break
        text = text[: max(1, min(len(text) - 1, int(len(text) * WIDEST * height / width)))].rstrip()

    mask = Image.new("L", (width, height), 0)
    ImageDraw.Draw(mask).text((left - x0, above + spare - y0), text, font=font, fill=255)
    mask = _deformed(mask, rng, size)
    if rng.random() < 0.6:
        mask = mask.filter(ImageFilter.GaussianBlur(size / 32 * rng.uniform(0.2, 1.0)))
    return _printed(np.asarray(mask, np.float32) / 255, rng), text


def _deformed(mask: Image.Image, rng: np.random.Generator, size: int) -> Image.Image:
    """Slanted, and turned by what a line's length allows: its ends rise and fall by a sixth of the size at most."""
    slant = float(np.clip(rng.normal(0, 0.06), -0.15, 0.15))
    turn = rng.uniform(-1, 1) * min(math.radians(2), size / 3 / mask.width)
    grow = math.ceil(abs(turn) * mask.width / 2 + 1), math.ceil(abs(slant) * mask.height / 2 + 1)
    width, height = mask.width + 2 * grow[1], mask.height + 2 * grow[0] - 2
    x, y = width / 2, height / 2
    x_in, y_in = mask.width / 2, mask.height / 2
    back = (1, slant, x_in - x - slant * y, turn, 1, y_in - y - turn * x)
    return mask.transform((width, height), Image.Transform.AFFINE, back, resample=Image.Resampling.BILINEAR)


def _printed(mask: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Ink on a background: plain, shaded or stained; one line in eight is light on dark."""
    height, width = mask.shape
    paper, ink = rng.uniform(150, 255), rng.uniform(0, 90)
    ground = np.full(mask.shape, paper, np.float32)
    chance = rng.random()
    if chance < 0.3:
        ground += np.linspace(*rng.uniform(-30, 30, 2), width, dtype=np.float32)
    elif chance < 0.5:
        stains = rng.normal(0, rng.uniform(4, 18), (3, max(2, width // 24))).astype(np.float32)
        ground += np.asarray(Image.fromarray(stains).resize((width, height), Image.Resampling.BICUBIC))
    pixels = ground + (np.float32(ink) - ground) * mask
    if rng.random() < 0.125:
        pixels = 255 - pixels
    pixels += np.float32(rng.uniform(0, 12) * (rng.random() < 0.7)) * rng.standard_normal(mask.shape, np.float32)
    return Image.fromarray(np.rint(pixels.clip(0, 255)).astype(np.uint8))


_CACHED: dict[bool, Texts] = {}


def _texts(held_out: bool) -> Texts:
    if held_out not in _CACHED:
        _CACHED[held_out] = Texts(held_out)
    return _CACHED[held_out]


def sample(part: Part, index: int) -> tuple[str, bytes, str]:
    """A line as `write_array_record` takes it: its id names the number and the family."""
    image, text, family = line(part, index)
    content = io.BytesIO()
    image.save(content, "PNG", compress_level=3)
    return f"{index} {family}", content.getvalue(), text


def samples(part: Part, workers: int) -> Iterator[tuple[str, bytes, str]]:
    """All lines of a part, in order, whatever the number of worker processes."""
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(_sample, zip(itertools.repeat(part), range(part.lines), strict=False), chunksize=200)


def _sample(place: tuple[Part, int]) -> tuple[str, bytes, str]:
    return sample(*place)


def sheet(part: Part, rows: int = 16, columns: int = 3) -> Image.Image:
    """A part's first lines, beside and below one another."""
    whole = Image.new("L", (columns * 440, rows * 44), 255)
    for index in range(rows * columns):
        image, _, _ = line(part, index)
        image.thumbnail((430, 40))
        whole.paste(image, (index % columns * 440 + 5, index // columns * 44 + 2))
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the ArrayRecord files are written")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw")
    parser.add_argument("--sheet", type=Path, help="only draw this picture of the first lines held out")
    arguments = parser.parse_args()
    if arguments.sheet:
        sheet(PARTS["held_out"]).quantize(32).save(arguments.sheet, optimize=True)
        return
    from ved_flax.train.data.array_record import write_array_record

    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name, part in PARTS.items():
        path = arguments.folder / f"{name}.array_record"
        if not path.exists():
            print(f"{path}: {write_array_record(samples(part, arguments.workers), path)} lines", flush=True)


if __name__ == "__main__":
    main()
