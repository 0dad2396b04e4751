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
    paper, ink = rng.integers(200, 256), rng.integers(0, 90)
    if rng.random() < 0.25:
        paper, ink = ink, paper
    # Drawn four times as large and made smaller, so that turns and edges are smooth.
    image = Image.new("L", (192, 192), int(paper))
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{rng.choice(part.faces)}.ttf")
    font = ImageFont.truetype(str(path), int(rng.integers(72, 100)))
    text = "".join(map(str, digits))
    left = rng.uniform(4, max(5, 188 - font.getlength(text)))
    ImageDraw.Draw(image).text((left, rng.uniform(70, 122)), text, int(ink), font, anchor="lm")
    image = image.rotate(rng.uniform(-6, 6), Image.Resampling.BICUBIC, fillcolor=int(paper))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 3))).resize((48, 48), Image.Resampling.BOX)
    noisy = np.asarray(image, np.float64) + rng.normal(0, rng.uniform(0, 10), (48, 48))
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
