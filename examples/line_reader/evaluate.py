"""How often a model misreads which character: error rates of each font, and the confusion table."""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from rapidfuzz.distance import Levenshtein
from texts import ALPHABET

from ved_core.processing import Processor
from ved_flax import FlaxVisionEncoderDecoderModel
from ved_flax.train.data import DataConfig
from ved_flax.train.data.batches import evaluation_batches
from ved_flax.train.evaluation import Prediction, evaluate, write_predictions
from ved_flax.train.metrics import measure

NOTHING = "∅"
"""Stands for the character that is not there: read as nothing, or read where nothing is."""
KINDS = {
    "digits": "0123456789",
    "lower case": "abcdefghijklmnopqrstuvwxyz",
    "upper case": "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "space": " ",
}


def pairs(reference: str, prediction: str) -> Iterator[tuple[str, str]]:
    """Characters printed and read, side by side along the shortest way from one text to the other."""
    for edit in Levenshtein.opcodes(reference, prediction):
        printed = list(reference[edit.src_start : edit.src_end])
        read = list(prediction[edit.dest_start : edit.dest_end])
        longest = max(len(printed), len(read))
        printed += [NOTHING] * (longest - len(printed))
        read += [NOTHING] * (longest - len(read))
        yield from zip(printed, read, strict=True)


def confusion(predictions: Iterable[Prediction]) -> Counter[tuple[str, str]]:
    """(printed, read) -> how often."""
    return Counter(pair for each in predictions for pair in pairs(each.references[0], each.prediction))


def rates(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Error rate of characters, share of lines that are right, and how many lines there are."""
    read, references = [each.prediction for each in predictions], [each.references for each in predictions]
    return measure(["cer", "exact_match"], read, references) | {"lines": len(predictions)}


def by_family(predictions: Iterable[Prediction]) -> dict[str, dict[str, float]]:
    """Rates of each family of fonts, which a line's id ends with."""
    families: dict[str, list[Prediction]] = defaultdict(list)
    for each in predictions:
        families[each.id.partition(" ")[2]].append(each)
    return {family: rates(found) for family, found in sorted(families.items())}


def report(results: dict[str, list[Prediction]], title: str) -> str:
    """All of it in Markdown."""
    lines = [f"# {title}", "", "| fonts | lines | character error rate | lines without an error |", "|---|---|---|---|"]
    for name, predictions in results.items():
        lines.append(_row(f"**{name}**", rates(predictions)))
        lines += [_row(family, found) for family, found in by_family(predictions).items()]
    table = confusion(each for predictions in results.values() for each in predictions)
    lines += ["", "| kind of character | printed | misread |", "|---|---|---|"]
    others = "".join(c for c in ALPHABET if not any(c in kind for kind in KINDS.values()))
    for kind, characters in (KINDS | {"punctuation": others}).items():
        printed = sum(count for (left, _), count in table.items() if left in characters)
        wrong = sum(count for (left, right), count in table.items() if left in characters and left != right)
        lines.append(f"| {kind} | {printed} | {wrong / max(1, printed):.1%} |")
    lines += ["", f"The 40 most frequent errors; {NOTHING}: no character.", ""]
    lines += ["| printed | read | times |", "|---|---|---|"]
    errors = Counter({pair: count for pair, count in table.items() if pair[0] != pair[1]})
    for (printed, read), count in sorted(errors.items(), key=lambda item: (-item[1], item[0]))[:40]:
        lines.append(f"| {_code(printed)} | {_code(read)} | {count} |")
    return "\n".join(lines) + "\n"


def _row(name: str, found: dict[str, float]) -> str:
    return f"| {name} | {found['lines']} | {found['cer']:.2%} | {found['exact_match']:.1%} |"


def _code(character: str) -> str:
    """A character as Markdown shows it in a table."""
    spelled = {" ": "space", "|": "&#124;", "`": "&#96;"}.get(character)
    return spelled or f"`{character}`"


def picture(table: Counter[tuple[str, str]], path: Path) -> None:
    """The table as a map: a row for each character printed, a column for each read, darker for a larger share."""
    from matplotlib.figure import Figure

    names = [*ALPHABET, NOTHING]
    place = {name: number for number, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)))
    for (printed, read), count in table.items():
        if printed in place and read in place:
            counts[place[printed], place[read]] = count
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    figure = Figure(figsize=(12, 12), layout="constrained")
    axes = figure.subplots()
    axes.imshow(np.sqrt(shares), cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
    shown = ["␣" if name == " " else name for name in names]
    for ticks in (axes.set_xticks, axes.set_yticks):
        ticks(range(len(names)), [name.replace("$", r"\$") for name in shown], fontsize=6, family="DejaVu Sans Mono")
    axes.tick_params(top=True, labeltop=True)
    axes.set(xlabel="read", ylabel="printed", title="Share of a character's places where it is read so")
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="checkpoint folder, as a run's model or exports/STEP")
    parser.add_argument("data", type=Path, help="folder of seen.array_record and held_out.array_record")
    parser.add_argument("output", type=Path, help="folder to write confusion.md, confusion.png and rates.json to")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--title", default="What is read, and what is misread")
    arguments = parser.parse_args()
    model = FlaxVisionEncoderDecoderModel.from_pretrained(arguments.model)
    processor = Processor.from_pretrained(arguments.model)
    results = {}
    for name, part in {"fonts seen": "seen", "fonts held out": "held_out"}.items():
        config = DataConfig(evaluation_source=str(arguments.data / f"{part}.array_record"), id_column="id")
        with evaluation_batches(config, processor, batch_size=arguments.batch) as batches:
            found = evaluate(model, None, batches, processor, pictures=0, options={"max_new_tokens": 40})
        results[name] = found.predictions
        write_predictions(arguments.output / f"{part}.jsonl", found.predictions)
    (arguments.output / "confusion.md").write_text(report(results, arguments.title), encoding="utf-8")
    picture(confusion(each for found in results.values() for each in found), arguments.output / "confusion.png")
    numbers = {name: rates(found) | {"families": by_family(found)} for name, found in results.items()}
    (arguments.output / "rates.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    for name, found in results.items():
        print(name, json.dumps(rates(found)))


if __name__ == "__main__":
    main()
