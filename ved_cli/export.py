"""`ved export`: a model as programs that run without this library."""

import argparse
import importlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ved_cli import decoding
from ved_core.errors import VedError

FORMATS = {"stablehlo": "flax", "onnx": "torch", "torch-export": "torch"}
"""Format -> the framework that writes it."""
DTYPES = ("float32", "bfloat16", "float16")
SUFFIXES = (".stablehlo", ".pt2")
OURS = ("export.json", "params.safetensors", "onnx")
"""What an earlier export leaves in a folder."""


def add_parser(commands: Any) -> None:
    """Add `export` to the subcommands."""
    parser = commands.add_parser(
        "export",
        help="write a model as programs for other runtimes",
        description="Write a model as programs that run without this library, beside its config, image processor and "
        "tokenizer. stablehlo: for JAX on CPUs, NVIDIA GPUs and TPUs, any batch size, the decoding loop included; "
        "ved_flax.export.ExportedModel loads it. onnx: in the layout of optimum and transformers.js; "
        "ved_core.exported.OnnxModel runs it. torch-export: for PyTorch; ved_torch.export.ExportedModel loads it.",
    )
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder or hub name")
    parser.add_argument("target", metavar="OUT", type=Path, help="folder to write to; an earlier export in it goes")
    parser.add_argument("--to", required=True, choices=FORMATS, help="what to write")
    parser.add_argument(
        "--platforms", metavar="P,P", help="of stablehlo: out of cpu, cuda and tpu (default: cpu,cuda,tpu)"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="what it computes in (default: float32); not of onnx")
    parser.add_argument("--image-size", metavar="H,W", help="of stablehlo: another size than the config's")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    decoding.add_arguments(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Export. Raises VedError where a package is missing or options do not go together."""
    framework = FORMATS[options.to]
    if not importlib.util.find_spec(framework):
        raise VedError(f'--to {options.to} needs {framework}: pip install "ved[{framework},export]"')
    if options.seed:
        raise VedError("--seed: what is exported takes the seed with each call; leave it out")
    given = decoding.given(options)
    if options.to != "stablehlo":
        refused = [decoding.flag(name) for name in given]
        refused += [f"--{name.replace('_', '-')}" for name in ("platforms", "image_size") if getattr(options, name)]
        if refused:
            raise VedError(f"{', '.join(refused)}: of --to stablehlo, whose program decodes; leave it out")
    from conversion.folder import write_folder
    from conversion.saving import texts_beside
    from ved_core.hub import resolve

    folder = resolve(options.model)
    write = writer(options, folder, given)

    def fill(part: Path) -> None:
        for name, content in texts_beside(folder).items():
            (part / name).write_bytes(content)
        write(part)

    write_folder(options.target, fill, lambda name: name in OURS or name.endswith(SUFFIXES))
    told = {"target": str(options.target), "format": options.to}
    print(json.dumps(told) if options.json else f"{options.target}: {options.to}")
    return 0


def writer(options: argparse.Namespace, folder: Path, given: dict[str, Any]) -> Callable[[Path], None]:
    """The model, loaded, and how it is written into a folder."""
    loading = {} if options.dtype is None else {"dtype": options.dtype}
    if options.to == "stablehlo":
        from ved_core.processing import Processor
        from ved_flax import FlaxVisionEncoderDecoderModel, export

        platforms = tuple(options.platforms.split(",")) if options.platforms else export.PLATFORMS
        if unknown := [name for name in platforms if name not in export.PLATFORMS]:
            raise VedError(f"--platforms {unknown[0]}: there are {', '.join(export.PLATFORMS)}")
        size = sizes(options.image_size)
        prompt = given.pop("prompt", None)
        if prompt is not None:
            given["decoder_input_ids"] = Processor.from_pretrained(folder).encode(prompt)
        if given.get("stop_strings"):
            given["tokenizer"] = Processor.from_pretrained(folder).tokenizer
        ours = FlaxVisionEncoderDecoderModel.from_pretrained(folder, **loading)
        return lambda part: export.write(ours, part, platforms=platforms, image_size=size, **given)
    from ved_torch import VisionEncoderDecoderModel

    module = importlib.import_module("ved_torch.onnx" if options.to == "onnx" else "ved_torch.export")
    theirs = VisionEncoderDecoderModel.from_pretrained(folder, **loading)
    return lambda part: module.write(theirs, part)


def sizes(text: str | None) -> tuple[int, int] | None:
    """Height and width. Raises VedError."""
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() and int(part) for part in parts):
        raise VedError(f"--image-size {text} should be height and width, as 384,384")
    return int(parts[0]), int(parts[1])
