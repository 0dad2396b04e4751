"""Activation functions under transformers' names, with torch's numerics."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

Activation = Callable[[jax.Array], jax.Array]


def gelu(x: jax.Array) -> jax.Array:
    """Exact gelu, by erf; in bfloat16, by what cannot be told from it there."""
    if x.dtype == jnp.bfloat16:
        return _gelu_bfloat16(x)
    return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


def _gelu_bfloat16(x: jax.Array) -> jax.Array:
    """x (1 + tanh(x p(x²))) / 2 in float32, p fitted to the normal distribution: its errors, below 3e-5, are less than
    what bfloat16 rounds off of any number that a layer adds them to. TPUs have tanh in hardware, and no erf."""
    wide = x.astype(jnp.float32)
    square = jnp.minimum(wide * wide, 30.0)  # p has a maximum behind it, where tanh is 1 already
    p = 0.79750784 + square * (0.03700568 - 0.00035152185 * square)
    return (0.5 * wide * (1.0 + jnp.tanh(wide * p))).astype(x.dtype)


def gelu_tanh(x: jax.Array) -> jax.Array:
    """The tanh approximation of gelu."""
    return jax.nn.gelu(x, approximate=True)


def gelu_10(x: jax.Array) -> jax.Array:
    """Exact gelu, clipped to [-10, 10]."""
    return jnp.clip(gelu(x), -10, 10)


def quick_gelu(x: jax.Array) -> jax.Array:
    """x * sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


def leaky_relu(x: jax.Array) -> jax.Array:
    return jax.nn.leaky_relu(x, 0.01)


def relu2(x: jax.Array) -> jax.Array:
    return jnp.square(jax.nn.relu(x))


def linear(x: jax.Array) -> jax.Array:
    return x


ACTIVATIONS: dict[str, Activation] = {
    "gelu": gelu,
    "gelu_10": gelu_10,
    "gelu_fast": gelu_tanh,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "leaky_relu": leaky_relu,
    "linear": linear,
    "mish": jax.nn.mish,
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "relu2": relu2,
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}
