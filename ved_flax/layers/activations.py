"""Activation functions under transformers' names, with torch's numerics."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Activation = Callable[[jax.Array], jax.Array]


def gelu(x: jax.Array) -> jax.Array:
    """Exact gelu, by erf."""
    return jax.nn.gelu(x, approximate=False)


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
