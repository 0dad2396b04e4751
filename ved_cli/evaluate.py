"""`ved eval`: how near a model's texts are to what is right."""

import argparse
import importlib
import json
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ved_cli import decoding, read
from ved_cli.needs import needed
from ved_core.errors import ImageError, SampleError, VedError

if TYPE_CHECKING:
    from ved_core.pipeline import ImageToText
    from ved_flax.train.data.samples import Sample, Source
    from ved_flax.train.evaluation import Evaluation

METRICS = "exact_match,cer,wer"
COLUMNS = {
    "image_column": "where the image is (default: image or file_name)",
    "text_column": "where the text is (default: text)",
    "id_column": "what names a sample (default: the image's path, or the row's number)",
    "image_folder": "what a manifest's image paths start from (default: the manifest's folder)",
    "split": "of a Hugging Face dataset",
    "subset": "configuration of a dataset on the hub that has several",
}


def add_parser(commands: Any) -> None:
    """Add `eval` to the subcommands."""
    parser = commands.add_parser(
        "eval",
        help="measure a model on images with texts",
        description="Read every image of a data set, and measure how near the texts are to what is right. SOURCE is "
        "what data.source of ved train may be: a manifest (.csv, .tsv, .jsonl) or a folder with one, tar shards, "
        "ArrayRecord files, a saved dataset, or hub:NAME.",
    )
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder or hub name")
    parser.add_argument("source", metavar="SOURCE", help="images with their texts")
    parser.add_argument(
        "--metrics",
        default=METRICS,
        metavar="M,M",
        help=f"out of exact_match, cer, wer, bleu, chrf, rouge_l, cider (default: {METRICS})",
    )
    parser.add_argument("--limit", type=read.positive, metavar="N", help="only the first N samples")
    parser.add_argument("--batch-size", type=read.positive, default=8, metavar="N", help="images at a time")
    parser.add_argument("--framework", choices=read.FRAMEWORKS, help="what computes (default: flax)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--output", metavar="FILE", help="write each sample's prediction, a JSON object a line")
    parser.add_argument(
        "--save",
        action="store_true",
        help="add the results to eval_results.json in the model's folder, which its model card shows",
    )
    group = parser.add_argument_group("data", "As in the settings of ved train.")
    for name, text in COLUMNS.items():
        group.add_argument(decoding.flag(name), metavar="NAME", help=text)
    decoding.add_arguments(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure; the exit status is 1 where samples could not be read. Raises VedError."""
    needed(("flax", "jiwer"), "train")
    if options.save and not Path(options.model).is_dir():
        raise VedError(f"--save writes into the model's folder, and {options.model} is none: leave it out")
    from ved_core import cards
    from ved_flax.train.data import DataConfig
    from ved_flax.train.data.sources import open_source
    from ved_flax.train.evaluation import write_predictions
    from ved_flax.train.metrics import check_names

    metrics = [name.strip() for name in options.metrics.split(",")]
    check_names(metrics)
    results = cards.read_results(Path(options.model)) if options.save else []
    given = {name: getattr(options, name) for name in COLUMNS}
    source = open_source(DataConfig(source=options.source, **given))
    framework = read.framework(options)
    pipeline = importlib.import_module(f"ved_{framework}").ImageToText.from_pretrained(options.model)
    arguments = decoding.given(options)
    shown = dict(arguments)
    if arguments.get("do_sample"):
        arguments |= pipeline.seeded(options.seed)
    found = evaluate(pipeline, source, metrics, options.batch_size, options.limit, arguments)
    if not found.predictions:
        raise VedError(f"{options.source}: has no sample that could be read")
    result = {
        "model": options.model,
        "dataset": Path(options.source).name,
        "framework": framework,
        "samples": len(found.predictions),
        "bad_samples": found.bad,
        "options": shown,
        "metrics": found.metrics,
    }
    if options.output:
        write_predictions(options.output, found.predictions)
    if options.save:
        own = {name: value for name, value in result.items() if name != "model"}
        write_json(Path(options.model, cards.RESULTS), cards.with_result(results, own))
    print(json.dumps(result, ensure_ascii=False) if options.json else table(found))
    return 1 if found.bad else 0


def evaluate(
    pipeline: "ImageToText",
    source: "Source",
    metrics: list[str],
    batch_size: int,
    limit: int | None,
    options: dict[str, Any],
) -> "Evaluation":
    """Read a source's samples, each once, and measure. Samples that cannot be read are named on stderr and counted."""
    from ved_flax.train.evaluation import Evaluation, Prediction
    from ved_flax.train.metrics import measure

    count = len(source) if limit is None else min(limit, len(source))
    waiting: deque[Sample] = deque()
    bad = 0

    def images() -> Iterator[Any]:
        nonlocal bad
        for sample in samples(source, count):
            if isinstance(sample, SampleError):
                bad += 1
                read.say(f"ved: {sample}", sys.stderr)
            else:
                waiting.append(sample)
                yield sample.image

    predictions = []
    for reading in pipeline.stream(images(), batch_size=max(1, min(batch_size, count)), **options):
        sample = waiting.popleft()
        if isinstance(reading, ImageError):
            bad += 1
            read.say(f"ved: {sample.id}: {reading}", sys.stderr)
        else:
            predictions.append(Prediction(sample.id, sample.texts, reading.text, reading.confidence))
    measured = measure(metrics, [each.prediction for each in predictions], [each.references for each in predictions])
    return Evaluation(measured, predictions, bad)


def samples(source: "Source", count: int) -> "Iterator[Sample | SampleError]":
    """The first samples of a source, or why they cannot be had."""
    for place in read.progress([str(place) for place in range(count)]):
        try:
            yield source[int(place)]
        except SampleError as error:
            yield error


def table(found: "Evaluation") -> str:
    """Metrics, a line each."""
    from ved_core.cards import shown

    lines = {name: shown(name, value) for name, value in found.metrics.items()}
    lines |= {"samples": str(len(found.predictions))} | ({"bad samples": str(found.bad)} if found.bad else {})
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value:>8}" for name, value in lines.items())


def write_json(path: Path, value: Any) -> None:
    """A file that appears when it is whole."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
