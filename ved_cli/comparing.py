"""Two checkpoints on the same random image, compared layer by layer: `ved verify`, `ved convert --verify`."""

import dataclasses
import importlib
import importlib.util
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from conversion.formats import Format
from conversion.source import find
from conversion.tensors import FLOATS
from ved_core.configs import VisionEncoderDecoderConfig
from ved_core.configs.fields import as_pair
from ved_core.errors import VedError
from ved_core.hub import resolve

TOKENS = 8
"""How long the random text is that the decoders score."""
CLASSES = {"flax": ("ved_flax", "FlaxVisionEncoderDecoderModel"), "torch": ("ved_torch", "VisionEncoderDecoderModel")}
HOME = {"flax": "flax", "orbax": "flax"}
"""The framework whose format it is; the others are PyTorch's."""
EXACT = 1e-4
"""Departures relative to a layer's largest value that two ways of computing in float32 may have."""
ROUNDED = {2: 5e-2, 1: 0.5}
"""The same where weights were rounded: by the bytes of the narrower dtype."""


@dataclasses.dataclass(frozen=True)
class Side:
    """One checkpoint, and what computes it."""

    place: str
    format: Format
    framework: str
    itemsize: int
    """Bytes of a number of its widest floating-point dtype."""
    outputs: dict[str, np.ndarray]


def verify(source: str, target: str, *, as_json: bool = False) -> int:
    """Compare two checkpoints and print a table, or one JSON object; returns 1 where a layer departs.

    Each is computed by the framework whose format it is, where that is installed. Raises VedError where one cannot be
    loaded, or the two are not of one architecture.
    """
    one = side(source, None)
    other = side(target, one)
    if one.outputs.keys() != other.outputs.keys():
        raise VedError(f"{source} and {target} are not of one architecture: they have not the same layers")
    narrow = min(one.itemsize, other.itemsize)
    allowed = EXACT if one.itemsize == other.itemsize else ROUNDED.get(narrow, EXACT)
    rows = list(compared(one, other))
    first = next((name for name, _, relative in rows if not relative <= allowed), None)
    if as_json:
        print(json.dumps(report(one, other, rows, allowed, first)))
        return 0 if first is None else 1
    for each in (one, other):
        print(f"{each.place}: {each.format.title}, computed by {CLASSES[each.framework][0]}")
    width = max(len(name) for name, _, _ in rows)
    print(f"\n{'layer':<{width}}  {'difference':>10}  {'relative':>10}")
    for name, difference, relative in rows:
        mark = "  <- departs first" if name == first else ""
        print(f"{name:<{width}}  {difference:>10.3g}  {relative:>10.3g}{mark}")
    verdict = (
        f"the same within {allowed:g}" if first is None else f"NOT the same: {first} departs by more than {allowed:g}"
    )
    print(f"\n{verdict}")
    return 0 if first is None else 1


def report(
    one: Side, other: Side, rows: list[tuple[str, float, float]], allowed: float, first: str | None
) -> dict[str, Any]:
    """What the table says, JSON-ready: a difference between layers of other shapes, or of no number, is null."""
    sides = [
        {"checkpoint": each.place, "format": each.format.name, "framework": each.framework} for each in (one, other)
    ]
    layers = [
        {"layer": name}
        | {kind: x if math.isfinite(x) else None for kind, x in (("difference", difference), ("relative", relative))}
        for name, difference, relative in rows
    ]
    return {"same": first is None, "allowed": allowed, "departs_first": first, "checkpoints": sides, "layers": layers}


def compared(one: Side, other: Side) -> Iterator[tuple[str, float, float]]:
    """Layer, largest difference, and that relative to the layer's largest value."""
    for name, array in one.outputs.items():
        if array.shape != other.outputs[name].shape:
            yield name, float("inf"), float("inf")
            continue
        difference = float(np.abs(array - other.outputs[name]).max())
        yield name, difference, difference / max(float(np.abs(array).max()), 1e-12)


def side(name: str, like: Side | None) -> Side:
    """Load a checkpoint and compute it."""
    folder = resolve(name)
    found = find(folder)
    framework = HOME.get(found.format.name, "torch")
    if not importlib.util.find_spec(framework):
        framework = "torch" if framework == "flax" else "flax"
    if not importlib.util.find_spec(framework):
        raise VedError('neither flax nor torch is installed; pip install "ved[flax]" or "ved[torch]"')
    floats = [x.dtype.itemsize for x in found.stored().values() if x.ndim > 1 and x.dtype in FLOATS]
    config = VisionEncoderDecoderConfig.from_pretrained(folder)
    return Side(name, found.format, framework, max(floats, default=4), outputs(framework, folder, config))


def outputs(framework: str, folder: Path, config: VisionEncoderDecoderConfig) -> dict[str, np.ndarray]:
    """Every layer's output for a random image and text, in order, as float32."""
    module, name = CLASSES[framework]
    model = getattr(importlib.import_module(module), name).from_pretrained(folder)
    rng = np.random.default_rng(0)
    height, width = as_pair(config.encoder.image_size)
    pixels = rng.standard_normal((1, config.encoder.num_channels, height, width)).astype(np.float32)
    ids = rng.integers(0, config.decoder.vocab_size, (1, TOKENS))
    found = model(pixels, decoder_input_ids=ids, output_hidden_states=True)
    layers: dict[str, Any] = {}
    for part, states in (("encoder", found.encoder_hidden_states), ("decoder", found.decoder_hidden_states)):
        layers |= {f"{part} layer {i}" if i else f"{part} embeddings": state for i, state in enumerate(states)}
        if part == "encoder":
            layers["encoder output"] = found.encoder_last_hidden_state
    layers["logits"] = found.logits
    return {layer: to_float32(state) for layer, state in layers.items()}


def to_float32(state: Any) -> np.ndarray:
    """An array of either framework on the host."""
    return np.asarray(state.detach().float().cpu() if hasattr(state, "detach") else state, np.float32)
