"""One bit flipped in a saved checkpoint: its digests notice, wherever it is."""

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from conversion import checkpoint
from conversion.convert import convert
from conversion.formats import FORMATS
from tests.cases import FIXTURES, READER
from tests.damage import files
from tests.torture import Attack, Outcome
from ved_core.errors import CheckpointError, ConfigError, ProcessorError
from ved_core.processing import Processor

TEXTS = ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def run(seed: int, count: int) -> Iterator[Outcome]:
    """The formats in turn; one flip in four is in another file than the weights."""
    with tempfile.TemporaryDirectory() as place:
        source = Path(place, "source")
        shutil.copytree(FIXTURES / "vit-gpt2", source)
        for name in TEXTS:
            shutil.copy(READER / name, source)
        folders = {name: Path(place, name) for name in FORMATS}
        for name, folder in folders.items():
            convert(source, folder, name, shard_size=None if name == "orbax" else "150KB")
        for number in range(count):
            name = list(FORMATS)[number % len(FORMATS)]
            rng = random.Random(seed * 1_000_003 + number)
            weights = files(folders[name])
            others = [path for path in folders[name].iterdir() if path.is_file() and path not in weights]
            filled = [path for path in (weights if rng.random() < 0.75 else others) if path.stat().st_size]
            yield flip(name, rng.choice(filled), folders[name], rng)


def flip(name: str, path: Path, folder: Path, rng: random.Random) -> Outcome:
    """Flip a bit of a file, load the folder, and flip it back."""
    whole = path.read_bytes()
    place, bit = rng.randrange(len(whole)), rng.randrange(8)
    data = bytearray(whole)
    data[place] ^= 1 << bit
    case = f"{name}: bit {bit} of byte {place} of {path.relative_to(folder)}"
    path.write_bytes(data)
    try:
        checkpoint.read(folder)
        processor = Processor.from_pretrained(folder)
        _ = processor.image_processor, processor.tokenizer
    except (CheckpointError, ConfigError, ProcessorError) as error:
        named = path.name in str(error) or path.name.endswith(".json")
        return Outcome(case, "refused" if named else "failed", str(error))
    finally:
        path.write_bytes(whole)
    return Outcome(case, "failed", "is not noticed")


ATTACK = Attack("single-bit flips, digests on (200 per format)", 200 * len(FORMATS), run, short=15)
