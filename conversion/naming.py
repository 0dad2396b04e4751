"""Names and layouts of Hugging Face's Flax and TensorFlow classes, to and from those of its PyTorch classes.

Towards PyTorch no table is needed: the leaf and the rank of an array tell (`kernel`, `scale`, `gamma` ...), so that
heads and other parts that no table of ours knows are named too. The way back is told by each row's rule.
"""

import re
from collections.abc import Mapping

import numpy as np

from conversion.rules import PARAMETER, Carried, Dialect, Row
from conversion.tables import Table
from conversion.tensors import Tensor, equal, mapped
from ved_core.configs import Config, EncoderConfig, VisionEncoderDecoderConfig
from ved_core.errors import CheckpointError

TF_SCOPE = "tf_vision_encoder_decoder_model"
"""What TensorFlow's classes put before every name; readers pass over it, whatever it is."""
TF_BASES = {"donut-swin": "swin"}
"""What an encoder's class calls its main layer, where that is not the model_type."""
HEADS_BIAS = re.compile(r"(.*\b(?:cls\.predictions|lm_head))\.decoder\.bias")
"""PyTorch's classes keep a vocabulary head's bias twice, and compute with `decoder.bias`; these others have `bias`."""


def to_torch(tensors: Mapping[str, Tensor], dialect: Dialect) -> dict[str, Tensor]:
    """A Flax or TensorFlow file's tensors under PyTorch's names and in its layouts, as views.

    Raises CheckpointError where two become one.
    """
    read = _from_flax if dialect == "hf_flax" else _from_tf
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stored, tensor = read(name, tensor)
        if stored in found:
            raise CheckpointError(f"{stored} is stored twice, the second time as {name}")
        found[stored] = tensor
    return _heads_turned(found)


def _from_flax(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    *parents, leaf = name.split("/")
    if leaf == "kernel" and tensor.ndim in (2, 4):
        leaf, tensor = "weight", mapped(_kernel, tensor)
    elif leaf in ("scale", "embedding"):
        leaf = "weight"
    return ".".join([*parents, leaf]), tensor


def _from_tf(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    # "a___b" stands for b alone, "layer_._0" for the two "layer" and "0".
    name = re.sub(r"[^/]*___", "", name.removesuffix(":0")).replace("_._", "/")
    *parents, leaf = name.split("/")[1:] or [name]
    if leaf == "kernel" and tensor.ndim in (2, 4):
        leaf, tensor = "weight", mapped(_kernel, tensor)
    elif leaf in ("gamma", "embeddings"):
        leaf = "weight"
    elif leaf == "beta":
        leaf = "bias"
    elif leaf == "bias" and tensor.ndim == 2 and tensor.shape[0] == 1:
        tensor = mapped(lambda bias: bias[0], tensor)
    return ".".join([*parents, leaf]), tensor


def _kernel(array: np.ndarray) -> np.ndarray:
    """A linear map's (in, out) or a convolution's (h, w, C, D), in PyTorch's order of axes."""
    return array.T if array.ndim == 2 else array.transpose(3, 2, 0, 1)


def from_torch(tensors: Mapping[str, Tensor], table: Table, config: Config, dialect: Dialect) -> dict[str, Tensor]:
    """Tensors under canonical names (those of `config`'s `table`) as a Flax or TensorFlow file keeps them, as views."""
    rules = {row.stored: row.rule for row in table.rows if isinstance(row, Row | Carried)}
    scope = _tf_scope(config)
    named: dict[str, Tensor] = {}
    for stored, tensor in _heads_turned(tensors).items():
        layout = rules.get(stored, PARAMETER).dialect(dialect)  # computed buffers have no rule
        *parents, leaf = stored.split(".")
        leaf = layout.leaf or leaf
        name = "/".join([*parents, leaf]) if dialect == "hf_flax" else _tf_name(parents, leaf, scope)
        named[name] = mapped(layout.load, tensor)
    return named


def _tf_scope(config: Config) -> tuple[str, str]:
    """What stands before every name, and before those of the encoder."""
    encoder = config.encoder if isinstance(config, VisionEncoderDecoderConfig) else config
    base = f"{TF_BASES.get(encoder.model_type, encoder.model_type)}/" if isinstance(encoder, EncoderConfig) else ""
    if isinstance(config, VisionEncoderDecoderConfig):
        return f"{TF_SCOPE}/", base
    return f"tf_{config.model_type.replace('-', '_')}_model/{base}", ""


def _tf_name(parents: list[str], leaf: str, scope: tuple[str, str]) -> str:
    name = scope[0]
    for i, part in enumerate(parents):
        if part.isdigit():
            # Swin's and BART's lists keep the dot.
            name = name.removesuffix("/") + ("." if parents[i - 1] in ("layers", "blocks") else "_._")
        name += ("mlm___cls" if part == "cls" else part) + "/"
        if i == 0 and part == "encoder":
            name += scope[1]
    return f"{name}{leaf}:0"


def _heads_turned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with the two biases of a vocabulary head exchanged, or the one that is there under the other name where
    that is `decoder.bias`. Two that are equal become one, which stands for both when it is read."""
    turned = dict(tensors)
    for name in tensors:
        if (match := HEADS_BIAS.fullmatch(name)) is None:
            continue
        computed, spare = turned.pop(name), turned.pop(f"{match[1]}.bias", None)
        turned[f"{match[1]}.bias"] = computed
        if spare is not None and not equal(computed, spare):
            turned[name] = spare
    return turned
