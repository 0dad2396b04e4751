"""What generate() keeps of a model, and what makes it look again."""

import pytest

pytest.importorskip("flax")
import jax
import numpy as np
from flax import nnx

from tests.cases import inputs
from tests.flax_models import perturbed
from ved_flax import compiled
from ved_flax.snapshot import Snapshot

OPTIONS = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}


@pytest.fixture
def model():
    return perturbed("vit", "gpt2")


def scaled(variable):
    variable.set_value(variable.get_value() * 1.5)


def another_mlp(model):
    block = model.decoder.blocks[0]
    block.mlp = nnx.clone(block.mlp)
    scaled(block.mlp.up.kernel)


CHANGES = {
    "a value": lambda model: scaled(model.decoder.norm.scale),
    "a variable": lambda model: setattr(
        model.decoder.norm, "scale", nnx.Param(model.decoder.norm.scale.get_value() * 1.5)
    ),
    "a part": another_mlp,
    "a layer less": lambda model: model.decoder.blocks.pop(),
    "the head": lambda model: (model.decoder.untie(), scaled(model.decoder.head.kernel)),
    "a setting": lambda model: setattr(model.decoder.blocks[0].attn, "scale", 0.1),
}


def logits(model):
    """Of greedy decoding, from the compiled steps."""
    pixels = inputs(model.config.to_dict()).pixel_values
    return np.asarray(model.generate(pixels, **OPTIONS, return_dict_in_generate=True, output_logits=True).logits)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_of_the_model_is_seen(model, change):
    before = logits(model)
    change(model)
    after = logits(model)
    model.attached.compiled = None
    np.testing.assert_array_equal(after, logits(model))
    assert not np.array_equal(before, after)


def test_what_is_compiled_stays_as_long_as_it_fits(model):
    first = logits(model)
    kept = model.attached.compiled
    logits(model)
    assert model.attached.compiled is kept
    model.train()
    np.testing.assert_array_equal(logits(model), first)
    model.eval()
    logits(model)
    assert model.attached.compiled.steps is kept.steps, "compiled in evaluation mode, whatever mode the model is in"
    model.decoder.blocks.pop()
    logits(model)
    assert model.attached.compiled.steps is not kept.steps


def test_a_clone_has_its_own_parameters(model):
    first = logits(model)
    other = nnx.clone(model)
    scaled(other.decoder.norm.scale)
    assert not np.array_equal(logits(other), first)
    np.testing.assert_array_equal(logits(model), first)


def test_parameters_are_those_of_a_walk(model):
    jax.tree.map(np.testing.assert_array_equal, Snapshot(model).parameters(), compiled.parameters(model))
