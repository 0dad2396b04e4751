"""`FlaxVisionEncoderDecoderModel.from_encoder_decoder_pretrained`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import jax.numpy as jnp
from flax import nnx

from conversion.checkpoint import new_carried, of_part
from conversion.parts import Part, PartWeights
from conversion.tables import part_table
from conversion.tensors import Tensor
from conversion.warm_start import WarmStart, plan, report
from ved_flax import state

if TYPE_CHECKING:
    from ved_flax.pretrained import FlaxPreTrainedModel

M = TypeVar("M", bound="FlaxPreTrainedModel")


class Described(NamedTuple, Generic[M]):
    """A model that is to be joined, without arrays, and what they are to be taken from."""

    model: M
    """Abstract; `model.attached.new` names what neither half has."""
    make: Callable[[nnx.Rngs], M]
    warm: WarmStart
    halves: Mapping[Part, PartWeights]
    projection: Mapping[str, Tensor]


def load(
    cls: Callable[..., M],
    encoder: str | Path | None,
    decoder: str | Path | None,
    options: Mapping[str, Any],
    *,
    rngs: nnx.Rngs,
    dtype: jnp.dtype,
    param_dtype: jnp.dtype,
) -> M:
    """`from_encoder_decoder_pretrained`, which says the rest: only what no checkpoint has is computed."""
    model, make, warm, halves, projection = describe(cls, encoder, decoder, options, dtype, param_dtype)
    new = state.initialised(make, model.attached.new, rngs)
    for part, half in halves.items():
        module = getattr(model, part)
        state.fill(module, {**half.weights.parameters, **of_part(new, part)}, param_dtype)
        module.carry({**new_carried(part_table(module.config), seed=0), **half.weights.carried})
    if model.enc_to_dec_proj is not None:
        state.fill(model.enc_to_dec_proj, of_part({**new, **projection}, "enc_to_dec_proj"), param_dtype)
    for part, built in warm.built.items():
        built.config = getattr(warm.config, part)
        setattr(model, part, built)
    report(warm, halves)
    return model


def describe(
    cls: Callable[..., M],
    encoder: str | Path | None,
    decoder: str | Path | None,
    options: Mapping[str, Any],
    dtype: jnp.dtype,
    param_dtype: jnp.dtype,
) -> Described[M]:
    """The model that `load` makes, before it has arrays. Raises as `load` does."""
    warm = plan(encoder, decoder, options)

    def make(rngs: nnx.Rngs | None = None) -> M:
        return cls(warm.config, rngs=rngs, dtype=dtype, param_dtype=param_dtype)

    model = state.abstract(make)
    halves: dict[Part, PartWeights] = {part: warm.read(part, "flax") for part in warm.sources}
    projection = warm.projection("flax")
    known = set(projection) | {f"{part}.{name}" for part, half in halves.items() for name in half.weights.parameters}
    missing = {name for name in state.shapes(model) if name not in known and name.split(".")[0] not in warm.built}
    model.attached.new = frozenset(missing)
    return Described(model, make, warm, halves, projection)
