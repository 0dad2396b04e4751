"""Draw printed numbers of three digits, and list them with what they say in words: data to fine-tune a reader on."""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FACES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Bold", "cmr10", "cmss10")
HELD_OUT = ("STIXGeneral", "STIXGeneralBol", "cmtt10")


class Part(NamedTuple):
    """A folder of images: how many, from which seed, in which of matplotlib's faces."""

    images: int
    seed: int
    faces: tuple[str, ...]


PARTS = {"train": Part(4000, 1, FACES), "test": Part(500, 2, HELD_OUT)}


def number(part: Part, index: int) -> tuple[Image.Image, str]:
    """A grey image of 48 by 48 pixels, and its text. The same for the same part and index."""
    rng = np.random.default_rng((part.seed, index))
    digits = rng.integers(0, 10, 3)
    paper = int(rng.integers(225, 256))
    # Drawn four times as large and made smaller, so that turns and edges are smooth.
    image = Image.new("L", (192, 192), paper)
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{rng.choice(part.faces)}.ttf")
    font = ImageFont.truetype(str(path), int(rng.integers(68, 96)))
    for place, digit in enumerate(digits):
        middle = 32 + 64 * place + rng.uniform(-6, 6), 96 + rng.uniform(-20, 20)
        ImageDraw.Draw(image).text(middle, str(digit), int(rng.integers(0, 60)), font, anchor="mm")
    image = image.rotate(rng.uniform(-6, 6), Image.Resampling.BICUBIC, fillcolor=paper)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(1, 4))).resize((48, 48), Image.Resampling.BOX)
    noisy = np.asarray(image, np.float64) + rng.normal(0, rng.uniform(0, 6), (48, 48))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), " ".join(WORDS[digit] for digit in digits)


def write(part: Part, folder: Path) -> None:
    """All images of a part, and metadata.csv beside them."""
    folder.mkdir(parents=True, exist_ok=True)

    def rows() -> Iterator[tuple[str, str]]:
        for index in range(part.images):
            image, text = number(part, index)
            name = f"{index:04d}.png"
            image.save(folder / name)
            yield name, text

    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "text"), *rows()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="is given a folder for each part: train and test")
    folder = parser.parse_args().folder
    for name, part in PARTS.items():
        write(part, folder / name)


if __name__ == "__main__":
    main()
