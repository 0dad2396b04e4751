"""What the lines say: English words, numbers, dates, codes, any printable ASCII characters."""

import string
import zlib
from collections.abc import Sequence
from functools import cache
from typing import TypeVar

import numpy as np

T = TypeVar("T")

ALPHABET = "".join(sorted(string.ascii_letters + string.digits + string.punctuation + " "))
LONGEST = 28
"""Characters of a line."""
_SHARED = 200
"""So many of the commonest words are in both halves of the vocabulary: no English is written without them."""
_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October")


@cache
def vocabulary(held_out: bool) -> tuple[list[str], np.ndarray]:
    """Words, and how often each is drawn. One word in twenty is held out: no training line has it."""
    from wordfreq import top_n_list, word_frequency

    words = [word for word in top_n_list("en", 30_000) if word.isascii() and word.replace("'", "").isalpha()]
    kept = [
        word for rank, word in enumerate(words) if rank < _SHARED or (zlib.crc32(word.encode()) % 20 == 0) == held_out
    ]
    # The root: rare words are seen more often than in a book, for they are what reading is needed for.
    chances = np.array([word_frequency(word, "en") for word in kept]) ** 0.4
    return kept, chances.cumsum() / chances.sum()


class Texts:
    """An endless supply of texts, drawn from a generator's state alone."""

    def __init__(self, held_out: bool) -> None:
        self.words, self.cumulated = vocabulary(held_out)

    def __call__(self, rng: np.random.Generator) -> str:
        """One to `LONGEST` characters of `ALPHABET`, no space at either end and no two together."""
        kinds = (self.phrase, self.number, self.mixture, self.code, self.noise)
        kind = kinds[rng.choice(len(kinds), p=(0.58, 0.14, 0.12, 0.1, 0.06))]
        text = " ".join(kind(rng).split())
        longest = LONGEST if rng.random() < 0.6 else int(rng.integers(2, LONGEST))
        if len(text) > longest:
            whole = text[: longest + 1].rpartition(" ")[0]
            text = (whole or text[:longest]).rstrip()
        return text

    def word(self, rng: np.random.Generator) -> str:
        return self.words[int(np.searchsorted(self.cumulated, rng.random(), side="right"))]

    def phrase(self, rng: np.random.Generator) -> str:
        words = [self.word(rng) for _ in range(rng.integers(1, 7))]
        match rng.choice(4, p=(0.4, 0.3, 0.15, 0.15)):
            case 1:
                words[0] = words[0].capitalize()
            case 2:
                words = [word.capitalize() for word in words]
            case 3:
                words = [word.upper() for word in words]
        for place in range(len(words) - 1):
            chance = rng.random()
            words[place] += "," if chance < 0.08 else " -" if chance < 0.1 else ";" if chance < 0.11 else ""
        if len(words) > 2 and rng.random() < 0.08:
            words[1:3] = [f"{words[1]}{_one(rng, '-/&+')}{words[2]}"]
        text = " ".join(words)
        chance = rng.random()
        if chance < 0.4:
            return text + _one(rng, "....,,:;!?")
        if chance < 0.48:
            opening, closing = _one(rng, ("()", "[]", '""', "''", "{}", "<>"))
            return f"{opening}{text}{closing}"
        return text

    def number(self, rng: np.random.Generator) -> str:
        value = int(10 ** rng.uniform(0, 6))
        day, month, year = int(rng.integers(1, 29)), int(rng.integers(1, 13)), int(rng.integers(1900, 2100))
        forms = (
            f"{value}",
            f"{value:,}",
            f"{value / 100:.2f}",
            f"{_one(rng, '$#+-')}{value / 100:,.2f}",
            f"{value % 100}.{value % 7}%",
            f"{year}-{month:02}-{day:02}",
            f"{day:02}/{month:02}/{year}",
            f"{day:02}.{month:02}.{year % 100:02}",
            f"{day} {_one(rng, _MONTHS)} {year}",
            f"{day % 24:02}:{value % 60:02}",
            f"({value % 900 + 100}) {value % 700 + 200}-{value % 9000 + 1000}",
            f"{value % 50} {_one(rng, '+-*/=x')} {day}",
        )
        return str(_one(rng, forms))

    def mixture(self, rng: np.random.Generator) -> str:
        first, second = self.word(rng), self.word(rng)
        forms = (
            f"{first.capitalize()} {rng.integers(1, 1000)}",
            f"{first} {second}: {self.number(rng)}",
            f"{self.number(rng)} {first} {second}",
            f"{first.upper()} {self.code(rng)}",
            f"{first}@{second}.{_one(rng, ('com', 'org', 'net', 'io'))}",
            f"www.{first}.{_one(rng, ('com', 'org', 'net'))}/{second}",
            f"{first}_{second} = {rng.integers(100)}",
            f"{rng.integers(1, 100)}. {first.capitalize()} {second}",
        )
        return str(_one(rng, forms)).replace("'", "")

    def code(self, rng: np.random.Generator) -> str:
        letters = _one(rng, (string.ascii_uppercase, string.ascii_letters, string.digits)) + string.digits
        parts = ["".join(_one(rng, letters) for _ in range(rng.integers(1, 7))) for _ in range(rng.integers(1, 4))]
        return str(_one(rng, "-- /.")).join(parts)

    def noise(self, rng: np.random.Generator, most: int = 12) -> str:
        length = rng.integers(1, most + 1)
        words = "".join(_one(rng, ALPHABET) for _ in range(length)).split()
        return " ".join(words) or "?"


def _one(rng: np.random.Generator, items: Sequence[T]) -> T:
    return items[int(rng.integers(len(items)))]
