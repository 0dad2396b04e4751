"""Heads of vectors: by way of columns they are the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ved_flax.layers import heads


def numbers(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("columns", [False, True])
def test_splitting_and_joining_and_their_gradients(columns):
    split = heads._split_columns if columns else heads._split
    join = heads._join_columns if columns else heads._join
    x_BTD, weight_BNTH = numbers(2, 20, 12), numbers(2, 3, 20, 4)
    found, back = jax.vjp(lambda x: split(x, 3), x_BTD)
    for head in range(3):
        np.testing.assert_array_equal(found[:, head], x_BTD[..., 4 * head : 4 * head + 4])
    np.testing.assert_array_equal(back(weight_BNTH)[0], join(weight_BNTH))
    joined, back = jax.vjp(join, found)
    np.testing.assert_array_equal(joined, x_BTD)
    np.testing.assert_array_equal(back(x_BTD)[0], found)


@pytest.mark.parametrize("shape", [(2, 2, 128), (2, 64, 128), (2, 64, 64), (2, 3, 64, 128)])
def test_tpus_go_by_columns_for_squares_only(shape, monkeypatch):
    """Not for a decoding step's tokens, nor for other heads, nor for windows."""
    taken = []
    monkeypatch.setattr(heads.platforms, "choose", lambda *arrays, tpu, default: taken.append(tpu) or default(*arrays))
    x = numbers(*shape)
    np.testing.assert_array_equal(heads.join_heads(heads.split_heads(x, 2)), x)
    assert len(taken) == (2 if shape == (2, 64, 128) else 0)
