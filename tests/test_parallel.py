"""Meshes, and how parameters lie on them."""

import functools
import math
import re

import jax
import numpy as np
import pytest

pytest.importorskip("flax")
from tests.cases import DECODERS, ENCODERS, model_config
from ved_core.configs import VisionEncoderDecoderConfig
from ved_core.errors import ConfigError
from ved_flax import FlaxVisionEncoderDecoderModel, parallel, state
from ved_flax.parallel import RULES, P


@functools.cache
def shapes(encoder, decoder):
    config = VisionEncoderDecoderConfig.from_dict(model_config(encoder, decoder))
    return state.shapes(state.abstract(lambda: FlaxVisionEncoderDecoderModel(config)))


ALL = [(encoder, "gpt2") for encoder in ENCODERS] + [("vit", decoder) for decoder in DECODERS]


def test_every_rule_cuts_a_parameter_of_some_architecture():
    names = {name: shape for pair in ALL for name, shape in shapes(*pair).items()}
    for pattern, spec in RULES:
        found = [name for name in names if re.search(pattern, name)]
        assert found, pattern
        assert all(len(spec) == len(names[name]) for name in found), pattern


def test_heads_hidden_width_and_vocabulary_are_cut_along_model():
    mesh = parallel.make_mesh(data=4, model=2)
    cut = {
        "encoder.blocks.0.attn.q.kernel": P(None, "model"),
        "encoder.blocks.0.attn.out.kernel": P("model", None),
        "encoder.blocks.0.mlp.up.bias": P("model"),
        "encoder.blocks.0.mlp.down.bias": P(None),
        "decoder.blocks.1.cross_attn.k.kernel": P(None, "model"),
        "decoder.norm.scale": P(None),
    }
    found = shapes("vit", "gpt2")
    for name, spec in cut.items():
        assert parallel.layout(name, found[name], mesh).spec == spec, name
    # 61 tokens do not divide.
    assert parallel.layout("decoder.tokens.embedding", found["decoder.tokens.embedding"], mesh).spec == P(None, None)


@pytest.mark.parametrize("pair", ALL, ids="-".join)
def test_fsdp_leaves_each_device_its_share(pair):
    mesh = parallel.make_mesh(fsdp=8)
    held = total = 0
    for name, shape in shapes(*pair).items():
        layout = parallel.layout(name, shape, mesh)
        sharding = jax.NamedSharding(mesh, layout.spec)
        held += math.prod(sharding.shard_shape(layout.stored_shape))
        total += math.prod(shape)
    assert held <= total / 8 * 1.05


def test_flat_arrays_come_back():
    mesh = parallel.make_mesh(fsdp=8)
    layout = parallel.layout("a", (5, 7), mesh)
    array = np.arange(35, dtype=np.float32).reshape(5, 7)
    assert layout.stored_shape == (40,)
    np.testing.assert_array_equal(layout.unpack(layout.pack(array)), array)
    placed = parallel.place(array, layout, jax.NamedSharding(mesh, layout.spec))
    assert parallel.bytes_per_device(placed) == 5 * array.dtype.itemsize
    np.testing.assert_array_equal(layout.unpack(placed), array)
    # Too short to be cut, and cut along both axes where only one is long.
    assert parallel.layout("a", (7,), mesh) == parallel.Layout((7,), P(None))
    both = parallel.make_mesh(data=1, fsdp=4, model=2)
    assert parallel.layout("decoder.head_bias", (64,), both).spec == P(("model", "fsdp"))


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"fsdp": 3}, r"fsdp \* model should divide the 8 devices"),
        ({"data": 4, "fsdp": 4}, "their product should be the number of devices, 8"),
    ],
)
def test_meshes_that_do_not_fit_are_refused(axes, message):
    with pytest.raises(ConfigError, match=message):
        parallel.make_mesh(**axes)
    with pytest.raises(ConfigError, match="together, or none"):
        parallel.initialise(coordinator="127.0.0.1:1")
