"""Compiled steps: jit, and pmap over eight simulated devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import inputs
from tests.flax_models import decode, encode, perturbed
from ved_core.generation import DecodingPlan

pytest.importorskip("flax")
from ved_flax import compiled

PLAN = DecodingPlan(max_length=9, start=2, pad=1, eos=(2,))
PAIRS = [("vit", "gpt2"), pytest.param(("vit-rectangular", "trocr"), marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=PAIRS, ids=str)
def case(request):
    model = perturbed(*request.param)
    return model, inputs(model.config.to_dict(), batch=8).pixel_values


def test_steps_equal_the_model(case):
    model, pixels = case
    steps, params = compiled.jit_steps(model), compiled.parameters(model)
    encoded = steps.encode(params, pixels)
    np.testing.assert_allclose(encoded, encode(model, pixels).last_hidden_state, atol=1e-5)
    cache = steps.init_cache(params, encoded, 8)
    ids, scores = np.full((8, 1), 2), []
    for _ in range(8):
        score, cache = steps.decode_step(params, ids[:, -1], cache)
        scores.append(score)
        ids = np.concatenate([ids, np.argmax(score, axis=-1)[:, None]], axis=1)
    np.testing.assert_allclose(np.stack(scores, axis=1), decode(model, ids[:, :-1], encoded).logits, atol=1e-5)
    generated = steps.generate(params, pixels, PLAN)
    free = np.asarray(steps.generate(params, pixels, PLAN._replace(eos=())).ids_BL)
    np.testing.assert_array_equal(free, ids)
    for row, whole in zip(np.asarray(generated.ids_BL), ids, strict=True):
        end = next((t for t in range(1, 9) if whole[t] == 2), 8)
        assert row.tolist() == [*whole[: end + 1], *[1] * (8 - end)]


def test_the_cache_is_reused_in_place(case):
    model, pixels = case
    steps, params = compiled.jit_steps(model), compiled.parameters(model)
    cache = steps.init_cache(params, steps.encode(params, pixels), 8)
    _, after = steps.decode_step(params, jnp.full(8, 2), cache)
    assert cache.self_kv[0].k.is_deleted()
    assert not after.self_kv[0].k.is_deleted()


def test_pmap_equals_jit(case):
    assert jax.local_device_count() == 8
    model, pixels = case
    params = compiled.parameters(model)
    jitted, mapped = compiled.jit_steps(model), compiled.pmap_steps(model)
    shards = compiled.shard(pixels)
    encoded = mapped.encode(params, shards)
    np.testing.assert_allclose(compiled.unshard(encoded), jitted.encode(params, pixels), atol=1e-5)
    cache = mapped.init_cache(params, encoded, 8)
    scores, cache = mapped.decode_step(params, compiled.shard(jnp.full(8, 2)), cache)
    one = jitted.init_cache(params, jitted.encode(params, pixels), 8)
    expected, one = jitted.decode_step(params, jnp.full(8, 2), one)
    np.testing.assert_allclose(compiled.unshard(scores), expected, atol=1e-5)
    assert cache.index.tolist() == [1] * 8
    here, there = jitted.generate(params, pixels, PLAN), mapped.generate(params, shards, PLAN)
    np.testing.assert_array_equal(compiled.unshard(there.ids_BL), here.ids_BL)
    np.testing.assert_allclose(compiled.unshard(there.log_probs_BL), here.log_probs_BL, atol=1e-5)
    assert int(np.max(there.length)) == int(here.length)


def test_jit_follows_the_sharding_of_its_arguments(case):
    model, pixels = case
    params = compiled.parameters(model)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(pixels, jax.NamedSharding(mesh, jax.P("data")))
    everywhere = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
    steps = compiled.jit_steps(model)
    generated = steps.generate(everywhere, spread, PLAN)
    np.testing.assert_array_equal(generated.ids_BL, steps.generate(params, pixels, PLAN).ids_BL)


def test_a_plan_is_compiled_once_for_each_shape(case):
    model, pixels = case
    calls = 0
    original = type(model).encode

    def counted(self, *args, **kwargs):
        nonlocal calls
        calls += 1
        return original(self, *args, **kwargs)

    type(model).encode = counted
    try:
        for _ in range(3):
            model.generate(pixels, max_new_tokens=4)
            model.generate(pixels[:2], max_new_tokens=4)
    finally:
        type(model).encode = original
    assert calls == 2


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="a batch of 6 does not divide over 8 devices"):
        compiled.shard(np.zeros((6, 3)))


def test_steps_lower_for_tpu(case):
    model, pixels = case
    steps, params = compiled.jit_steps(model), compiled.parameters(model)
    exported = jax.export.export(steps.generate, platforms=["tpu"])(params, pixels, PLAN)
    assert exported.platforms == ("tpu",)
