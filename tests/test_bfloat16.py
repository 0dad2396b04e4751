"""What is computed in another way in bfloat16, for TPUs: no further from the truth than what it stands for."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

nnx = pytest.importorskip("flax.nnx")

from tests.cases import model_config  # noqa: E402
from ved_core.configs import VisionEncoderDecoderConfig  # noqa: E402
from ved_flax import FlaxVisionEncoderDecoderModel, state  # noqa: E402
from ved_flax.layers import recomputed  # noqa: E402
from ved_flax.layers.activations import gelu  # noqa: E402
from ved_flax.layers.attention import MASKED, attend, causal_bias  # noqa: E402
from ved_flax.layers.build import Builder  # noqa: E402
from ved_flax.layers.cache import KeyValue  # noqa: E402

OFF = nnx.Dropout(0.5, deterministic=True)


def exact_gelu(x):
    return jax.nn.gelu(x, approximate=False)


def test_gelu_is_exact_but_for_bfloat16s_rounding():
    bits = np.arange(2**16, dtype=np.uint16)
    x = jax.lax.bitcast_convert_type(jnp.asarray(bits), jnp.bfloat16)
    x = x[jnp.isfinite(x)]
    found = np.asarray(gelu(x), np.float64)
    expected = np.asarray(exact_gelu(x.astype(jnp.float32)), np.float64)
    step = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(expected), 2.0**-126))) - 7)
    assert (np.abs(found - expected) <= step / 2 + 3e-5).all()
    slope = np.asarray(jax.vmap(jax.grad(gelu))(x), np.float64)
    expected = np.asarray(jax.vmap(jax.grad(exact_gelu))(x.astype(jnp.float32)), np.float64)
    np.testing.assert_allclose(slope, expected, atol=2.0**-8 + 1e-4)


def test_gelu_errs_by_less_than_torchs_own():
    """In float32, where that errs by up to three of these units: both come by way of erf."""
    x = np.concatenate([np.linspace(-20, 20, 40001), np.geomspace(2.0**-125, 2.0**127, 999)]).astype(np.float32)
    exact = [0.5 * value * math.erfc(-value / math.sqrt(2)) for value in x.astype(np.float64)]
    for function in (gelu, jax.jit(gelu)):
        error = np.abs(np.asarray(function(x), np.float64) - exact)
        assert (error <= 2 * 2.0**-23 * np.abs(x) + 2.0**-126).all()


def test_norms_are_those_of_two_passes():
    rng = np.random.default_rng(0)
    for mean in (0.0, 3.0, 100.0):
        x = jnp.asarray(rng.normal(mean, 1.0, (64, 256)), jnp.bfloat16)
        make = Builder(nnx.Rngs(0), dtype=jnp.dtype(jnp.bfloat16))
        found = make.norm(256, 1e-6)(x)
        wide = dataclasses.replace(make, dtype=jnp.dtype(jnp.float32)).norm(256, 1e-6)
        assert not wide.use_fast_variance
        # One step of bfloat16 at the largest numbers there are, about 4.
        np.testing.assert_allclose(found.astype(jnp.float32), wide(x.astype(jnp.float32)), atol=2.0**-6)


def attention(name):
    """Queries, keys and values and a bias, in float32, of numbers that bfloat16 has."""
    rng = np.random.default_rng(1)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.bfloat16).astype(jnp.float32)

    if name == "windows":
        q, k, v = (normal(2, 3, 2, 36, 16) for _ in range(3))
        return q, k, v, normal(2, 36, 36)
    tokens, attended = {"causal": (80, 80), "cross": (65, 100), "nothing": (65, 65)}[name]
    q, k, v = (normal(2, 3, n, 16) for n in (tokens, attended, attended))
    bias = None
    if name == "causal":
        bias = causal_bias(0, tokens, jnp.arange(attended)[None] < jnp.array([[80], [50]]))
    if name == "nothing":  # a row that may attend to nothing gets a mean
        bias = jnp.full((1, 1, tokens, attended), MASKED)
    return q, k, v, bias


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("name", ["causal", "cross", "windows", "nothing"])
def test_attention_and_its_gradients_are_exact_but_for_bfloat16s_rounding(name, kept, monkeypatch):
    """In the worst place by a step of bfloat16 at the largest number, and by half a step of its own over all, whether
    exponentials are kept or computed again."""
    monkeypatch.setattr(recomputed, "KEPT", 10**9 if kept else 0)
    *qkv, bias = attention(name)
    weight = jnp.asarray(np.random.default_rng(2).normal(size=qkv[0].shape), jnp.bfloat16)

    def results(dtype):
        def loss(q, k, v, bias):
            out, _ = attend(q, KeyValue(k, v), bias, 0.25, dropout=OFF, rngs=None)
            return jnp.sum(out.astype(jnp.float32) * weight.astype(jnp.float32)), out

        which = (0, 1, 2) if bias is None else (0, 1, 2, 3)
        given = *(x.astype(dtype) for x in qkv), bias
        gradients, out = jax.grad(loss, argnums=which, has_aux=True)(*given)
        alone = loss(*given)[1]
        return [np.asarray(x, np.float32) for x in (out, alone, *gradients)]

    for exact, found in zip(results(jnp.float32), results(jnp.bfloat16), strict=True):
        assert np.abs(found - exact).max() <= 2.0**-7 * np.abs(exact).max()
        assert np.linalg.norm(found - exact) <= 2.0**-8 * np.linalg.norm(exact)


def test_models_compute_so(monkeypatch):
    """Every attention of a model in bfloat16, where there are queries enough."""
    seen = []
    original = recomputed.recomputed
    monkeypatch.setattr(recomputed, "recomputed", lambda q, *rest: seen.append(q.shape) or original(q, *rest))
    monkeypatch.setattr(recomputed, "LEAST", 2)
    config = VisionEncoderDecoderConfig.from_dict(model_config("vit", "gpt2"))
    model = state.abstract(lambda: FlaxVisionEncoderDecoderModel(config, dtype=jnp.bfloat16))
    graphdef, params = nnx.split(model)
    pixels, ids = jnp.zeros((1, 3, 32, 32)), jnp.zeros((1, 8), int)
    jax.eval_shape(lambda params: nnx.merge(graphdef, params)(pixels, ids).logits, params)
    assert len(seen) == config.encoder.num_hidden_layers + 2 * config.decoder.n_layer
