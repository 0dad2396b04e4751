"""`ved read --show`: a sheet of where the decoder looked for every word."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ved_core.errors import ImageError, VedError

if TYPE_CHECKING:
    from ved_core.attention_maps import Look
    from ved_core.pipeline import ImageToText, Reading

OPTIONS = ("show_by", "show_layers", "show_heads")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags, in a group of their own."""
    group = parser.add_argument_group("looking")
    group.add_argument(
        "--show",
        metavar="FILE",
        help="draw where the decoder looked for each word, into a .png, .pdf or .svg; --json then tells each word's "
        "confidence",
    )
    group.add_argument("--show-by", choices=("word", "token"), help="what is drawn (default: word)")
    for part in ("layers", "heads"):
        group.add_argument(
            f"--show-{part}",
            type=places,
            metavar="N,N",
            help=f"the decoder's {part} that are averaged, from 0, negative from the last (default: all)",
        )


def places(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between, for argparse."""
    return tuple(int(part) for part in text.split(","))


def check(options: argparse.Namespace) -> None:
    """Raise VedError, before anything is loaded, for options that do not go together or a file that cannot be."""
    if options.show is None:
        if given := [name for name in OPTIONS if getattr(options, name) is not None]:
            raise VedError(f"--{given[0].replace('_', '-')} says how --show draws: give --show FILE too")
        return
    if options.stream:
        raise VedError("--show draws what has been read: leave --stream out")
    if options.output:
        raise VedError("--show draws what fits on one sheet, --output is for more: leave one of them out")
    from ved_core.drawing import check_format

    check_format(options.show)


class Sheet:
    """The picture of what is read, where one was asked for."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.file = options.show
        self.options = {"by": options.show_by or "word", "layers": options.show_layers, "heads": options.show_heads}
        self.looks: list[tuple[str, Look]] = []

    def readings(self, pipeline: "ImageToText", paths: list[str], **options: Any) -> Iterator["Reading | ImageError"]:
        """The pipeline's results; what was looked at is kept."""
        if self.file is None:
            yield from pipeline.stream(paths, **options)
            return
        for path, result in zip(paths, pipeline.stream_looks(paths, **self.options, **options), strict=True):
            if isinstance(result, ImageError):
                yield result
            else:
                self.looks.append((path, result))
                yield result.reading

    def fields(self) -> dict[str, Any]:
        """The last image's words as JSON-ready values."""
        if self.file is None:
            return {}
        words = self.looks[-1][1].words
        return {"words": [{"text": word.text, "confidence": round(word.confidence, 6)} for word in words]}

    def save(self) -> None:
        """Write the picture, unless no image could be read."""
        if self.file is None or not self.looks:
            return
        from ved_core.drawing import draw, save

        paths, looks = zip(*self.looks, strict=True)
        save(draw(looks, names=paths), self.file)
