"""A model as ONNX, in the layout of Hugging Face's optimum, which transformers.js reads too: onnx/encoder_model.onnx
and onnx/decoder_model_merged.onnx, whose input `use_cache_branch` says whether there is a cache.

The decoder is one graph for both cases. Only what stands before it depends on the case: with a cache, its keys and
values are taken as they come; without one, empty ones and the image's are made.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from ved_core.errors import ConfigError, VedError
from ved_core.exported import DECODER, ENCODER
from ved_torch.export import BATCH, IMAGE, PAST, TOKENS, programs
from ved_torch.model import VisionEncoderDecoderModel

CAUSAL = frozenset({"gpt2"})
"""Decoders whose cache, in that layout, has no part for the image: it is made anew at each step."""
PAST_IMAGE = "past_image_length"
"""0 without a cache, where `encoder_hidden_states` is looked at instead."""
LARGEST = 2**31 - 2**20
"""Bytes of a file: beyond, parameters lie in a file of their own beside it."""


def write(model: VisionEncoderDecoderModel, folder: Path) -> None:
    """Write both graphs into `folder`/onnx. Raises VedError where onnx or onnxscript is missing, ConfigError for a
    model that is not in float32."""
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise VedError(f'{error.name} is not installed: pip install "ved[export]"') from error
    if model.dtype != torch.float32:
        raise ConfigError(f"dtype = {model.dtype}: ONNX runtimes compute on CPUs in float32; leave dtype out")
    layers, kind = len(model.decoder.blocks), model.config.decoder.model_type
    made = programs(model)
    cache, memory = _names("cache", layers), _names("memory", layers)
    encoder = _converted(made["encoder"], ["pixel_values"], ["last_hidden_state"])
    projected = _converted(made["memory"], ["encoder_hidden_states"], memory)
    decoder = _converted(
        made["decoder"], ["input_ids", *cache, *memory], ["logits", *(f"new_{name}" for name in cache)]
    )
    (folder / ENCODER).parent.mkdir(exist_ok=True)
    merged = merge(decoder, projected, layers, causal=kind in CAUSAL)
    for graph, path in ((encoder, folder / ENCODER), (merged, folder / DECODER)):
        onnx.save_model(
            graph,
            path,
            save_as_external_data=graph.ByteSize() > LARGEST,
            location=f"{path.name}_data",
        )
        onnx.checker.check_model(path)


def merge(decoder: Any, memory: Any, layers: int, *, causal: bool) -> Any:
    """The graph with `use_cache_branch`, out of that of a decoder behind any cache and that which makes the image's
    part of it. `causal`: the cache has no such part."""
    from onnx import TensorProto, compose, helper

    memory = compose.add_prefix(
        memory, "memory/", rename_inputs=False, rename_outputs=True, rename_initializers=True, rename_nodes=True
    )
    head = _type(decoder.graph.input, "cache.0.key")
    dtype, heads, width = head.elem_type, head.shape.dim[1].dim_value, head.shape.dim[3].dim_value
    encoder_width = _type(memory.graph.input, "encoder_hidden_states").shape.dim[2].dim_value
    vocabulary = _type(decoder.graph.output, "logits").shape.dim[2].dim_value
    cache, images = _names("cache", layers), _names("memory", layers)

    def given(name: str) -> str:
        part, rest = name.split(".", 1)
        layer, which = rest.split(".")
        inner = "" if causal else {"cache": "decoder.", "memory": "encoder."}[part]
        return f"past_key_values.{layer}.{inner}{which}"

    def value(name: str, length: str) -> Any:
        return helper.make_tensor_value_info(name, dtype, [BATCH, heads, length, width])

    switched = cache if causal else [*cache, *images]
    bounds = [helper.make_tensor(f"none/{end}", TensorProto.INT64, [1], [at]) for end, at in (("0", 0), ("axis", 2))]
    kept = [helper.make_node("Identity", [given(name)], [f"kept/{name}"]) for name in switched]
    made = [
        helper.make_node("Slice", [given(name), "none/0", "none/0", "none/axis"], [f"made/{name}"]) for name in cache
    ]
    made += [] if causal else memory.graph.node
    outputs = [f"made/{name}" for name in cache] + ([] if causal else [f"memory/{name}" for name in images])
    lengths = {name: PAST if name.startswith("cache") else IMAGE for name in switched}
    branches = {
        "then_branch": helper.make_graph(
            kept, "with_cache", [], [value(f"kept/{name}", lengths[name]) for name in switched]
        ),
        "else_branch": helper.make_graph(
            made,
            "without_cache",
            [],
            [value(output, lengths[name]) for output, name in zip(outputs, switched, strict=True)],
            [*bounds, *([] if causal else memory.graph.initializer)],
        ),
    }
    nodes = [helper.make_node("If", ["use_cache_branch"], switched, **branches)]
    initializers = list(decoder.graph.initializer)
    if causal:
        nodes += [
            *memory.graph.node,
            *(helper.make_node("Identity", [f"memory/{name}"], [name]) for name in images),
        ]
        initializers += memory.graph.initializer
    nodes += decoder.graph.node
    present = [(f"new_{name}", given(name).replace("past_key_values", "present")) for name in cache]
    if not causal:
        present += [(name, given(name).replace("past_key_values", "present")) for name in images]
    nodes += [helper.make_node("Identity", [inside], [outside]) for inside, outside in present]
    graph = helper.make_graph(
        nodes,
        "decoder",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, [BATCH, TOKENS]),
            helper.make_tensor_value_info("encoder_hidden_states", dtype, [BATCH, IMAGE, encoder_width]),
            *(value(given(name), PAST_IMAGE if name in images else PAST) for name in switched),
            helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1]),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [BATCH, TOKENS, vocabulary]),
            *(value(outside, IMAGE if ".encoder." in outside else "total_sequence_length") for _, outside in present),
        ],
        initializers,
    )
    merged = helper.make_model(
        graph, opset_imports=decoder.opset_import, functions=[*decoder.functions, *memory.functions]
    )
    merged.ir_version = decoder.ir_version
    return merged


def _names(kind: str, layers: int) -> list[str]:
    return [f"{kind}.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


def _type(values: Iterable[Any], name: str) -> Any:
    return next(value.type.tensor_type for value in values if value.name == name)


def _converted(program: ExportedProgram, inputs: list[str], outputs: list[str]) -> Any:
    """A program of torch.export as an onnx.ModelProto."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # of torch, about its own parts
            made = torch.onnx.export(
                program, input_names=inputs, output_names=outputs, dynamo=True, verbose=False, external_data=False
            )
    finally:
        logger.setLevel(level)
    assert made is not None
    return made.model_proto
