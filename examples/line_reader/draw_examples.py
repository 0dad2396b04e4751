"""Draw the images of `examples/`: lines in fonts held out, and `lines.csv`, which says what they say."""

import csv
from pathlib import Path

import numpy as np
from faces import HELD_OUT
from synthesis import draw

FOLDER = Path(__file__).parents[1]
TEXTS = (
    "Images to text",
    "Invoice No. 20417",
    "Total: $1,284.50",
    "How do you do?",
    "14 March 1879",
    "221B Baker Street",
    "Open 9:00-17:30",
    "ready@example.org",
    "ISBN 0-306-40615-2",
    "Handle with care!",
    "(see page 42)",
    "THE END",
)


def main() -> None:
    faces = [face for family in HELD_OUT.values() for face in family]
    rows = []
    for number, text in enumerate(TEXTS):
        image, drawn = draw(text, faces[number % len(faces)], np.random.default_rng(number))
        assert drawn == text
        image.save(FOLDER / f"{number:02}.png", optimize=True)
        rows.append((f"{number:02}.png", text))
    with (FOLDER / "lines.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("image", "text"), *rows])


if __name__ == "__main__":
    main()
