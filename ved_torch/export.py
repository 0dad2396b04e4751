"""A model as programs of `torch.export`, which run without this library, and as what ONNX is made of.

Three programs: `encoder`, pixels to image tokens; `memory`, image tokens to every layer's keys and values of them, once
an image; `decoder`, tokens behind those of a cache, which may be empty, to scores and the longer cache.
"""

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ved_core.configs import VisionEncoderDecoderConfig
from ved_core.configs.fields import as_pair
from ved_core.errors import CheckpointError
from ved_core.exported import DESCRIPTION, described, greedy
from ved_core.generation.config import GenerationConfig
from ved_torch.decoders.blocks import DecoderBlock
from ved_torch.layers.attention import Attention
from ved_torch.layers.cache import Appended, KeyValue
from ved_torch.model import VisionEncoderDecoderModel, evaluating

FORMAT, VERSION = "ved-torch-export", 1
SUFFIX = ".pt2"
BATCH, TOKENS, PAST, IMAGE = "batch_size", "decoder_sequence_length", "past_sequence_length", "encoder_sequence_length"
"""Names of the sizes that are free."""


class Encoder(nn.Module):
    """pixel_values (B, C, H, W) to image tokens (B, P, D)."""

    def __init__(self, model: VisionEncoderDecoderModel) -> None:
        super().__init__()
        self.encoder = model.encoder

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.encoder(pixel_values).last_hidden_state


class Memory(nn.Module):
    """Image tokens (B, P, D) to keys and values of every layer's cross-attention, key and value by turns."""

    def __init__(self, model: VisionEncoderDecoderModel) -> None:
        super().__init__()
        self.projection = model.enc_to_dec_proj
        self.attentions = nn.ModuleList(cast("DecoderBlock", block).cross_attn for block in model.decoder.blocks)

    def forward(self, encoder_hidden_states: Tensor) -> tuple[Tensor, ...]:
        hidden = encoder_hidden_states if self.projection is None else self.projection(encoder_hidden_states)
        attentions = cast("Iterable[Attention]", self.attentions)
        return tuple(tensor for attention in attentions for tensor in attention.keys_values(hidden))


class Decoder(nn.Module):
    """Tokens (B, T) behind a cache (B, N, S, H) and the images' memory (B, N, P, H), keys and values by turns, to
    scores (B, T, V) float32 and the cache with them in it (B, N, S + T, H)."""

    def __init__(self, model: VisionEncoderDecoderModel) -> None:
        super().__init__()
        self.decoder = model.decoder

    def forward(self, input_ids: Tensor, past: list[Tensor], memory: list[Tensor]) -> tuple[Tensor, ...]:
        index, tokens = past[0].shape[2], input_ids.shape[1]
        cache = Appended(_pairs(past), _pairs(memory), None, index)
        positions = self.decoder.count_positions(input_ids, tokens, index, input_ids.device)
        out = self.decoder(input_ids, cache=cache, positions=positions)
        return (out.logits, *(tensor for pair in out.cache.self_kv for tensor in pair))


def _pairs(tensors: Sequence[Tensor]) -> tuple[KeyValue, ...]:
    return tuple(KeyValue(k, v) for k, v in zip(tensors[::2], tensors[1::2], strict=True))


def programs(model: VisionEncoderDecoderModel) -> dict[str, ExportedProgram]:
    """The three, for any batch size, any number of tokens and any cache, and images of the config's size."""
    height, width = as_pair(model.config.encoder.image_size)
    batch, tokens, past, image = (Dim(name, min=0) for name in (BATCH, TOKENS, PAST, IMAGE))
    with torch.no_grad(), evaluating(model), plain(model):
        # Sizes above 1 and all different: the tracer takes those of 1 for fixed.
        pixels = torch.zeros(2, model.config.encoder.num_channels, height, width).to(model.device, model.dtype)
        hidden = model.encoder(pixels).last_hidden_state
        memory = list(Memory(model)(hidden))
        layers, heads, head_width = len(memory) // 2, memory[0].shape[1], memory[0].shape[3]
        cache = [hidden.new_zeros(2, heads, 5, head_width) for _ in range(2 * layers)]
        ids = torch.zeros(2, 3, dtype=torch.int64, device=model.device)
        kv = [{0: batch, 2: past}] * (2 * layers), [{0: batch, 2: image}] * (2 * layers)
        return {
            "encoder": _exported(Encoder(model), (pixels,), ({0: batch},)),
            "memory": _exported(Memory(model), (hidden,), ({0: batch, 1: image},)),
            "decoder": _exported(Decoder(model), (ids, cache, memory), ({0: batch, 1: tokens}, *kv)),
        }


def _exported(module: nn.Module, arguments: tuple[Any, ...], shapes: tuple[Any, ...]) -> ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about itself
        return torch.export.export(module.eval(), arguments, dynamic_shapes=shapes, strict=False)


@contextmanager
def plain(model: VisionEncoderDecoderModel) -> Iterator[None]:
    """Attention in plain operations for a while, which every runtime has."""
    parts = [part for part in model.modules() if getattr(part, "implementation", None) is not None]
    before = [part.implementation for part in parts]
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        for part, implementation in zip(parts, before, strict=True):
            part.implementation = implementation


def write(model: VisionEncoderDecoderModel, folder: Path) -> None:
    """Write the three programs into a folder that exists, and export.json, which describes them."""
    described = {}
    for name, program in programs(model).items():
        torch.export.save(program, folder / (name + SUFFIX))
        inputs = program.graph_signature.user_inputs
        values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
        described[name] = {"inputs": [f"{values[i].dtype} {list(map(str, values[i].shape))}" for i in inputs]}
    description = {
        "format": FORMAT,
        "version": VERSION,
        "torch": torch.__version__,
        "image_size": list(as_pair(model.config.encoder.image_size)),
        "max_positions": model.decoder.max_positions,
        "layers": len(model.decoder.blocks),
        "heads": model.decoder.cross_heads,
        "programs": described,
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


class ExportedModel:
    """The programs of a folder that `write` wrote, beside its config.json and generation_config.json."""

    def __init__(self, folder: str | Path) -> None:
        """Raises CheckpointError naming the file, ConfigError."""
        self.folder = Path(folder)
        self.description = described(self.folder, FORMAT, VERSION)
        self.config = VisionEncoderDecoderConfig.from_pretrained(self.folder)
        self.generation_config = GenerationConfig.from_folder(self.folder)
        self.encoder, self.memory, self.decoder = map(self._loaded, ("encoder", "memory", "decoder"))

    def _loaded(self, name: str) -> nn.Module:
        path = self.folder / (name + SUFFIX)
        try:
            return torch.export.load(path).module()
        except Exception as error:  # a zip file's, a pickle's or torch's own
            raise CheckpointError(f"{path}: is no exported program ({type(error).__name__}: {error})") from None

    @torch.no_grad()
    def greedy(self, pixel_values: Tensor | np.ndarray, max_new_tokens: int | None = None) -> np.ndarray:
        """Images (B, C, H, W) to ids (B, L) by the likeliest tokens, the start token first, padded behind the end.
        Raises ConfigError where a token for it is not set."""
        hidden = self.encoder(torch.as_tensor(pixel_values))
        memory = list(self.memory(hidden))
        batch, heads, _, head_width = memory[0].shape
        past = [memory[0].new_zeros(batch, heads, 0, head_width) for _ in memory]

        def step(ids_BT: np.ndarray) -> np.ndarray:
            nonlocal past
            logits, *past = self.decoder(torch.as_tensor(ids_BT), past, memory)
            return logits[:, -1].numpy()

        return greedy(step, batch, self.config, self.generation_config, max_new_tokens)
