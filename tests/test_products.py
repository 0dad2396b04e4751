"""Products with kernels: values and gradients are JAX's own, whatever the number of axes that are summed."""

import numpy as np
import pytest

pytest.importorskip("flax")
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from ved_flax.layers import products
from ved_flax.parallel import ROWS, make_mesh


@pytest.fixture
def draw():
    rng = np.random.default_rng(0)
    return lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("inner", [(6,), (2, 3)], ids=["one-axis", "two-axes"])
def test_values_and_gradients_are_those_of_einsum(draw, inner):
    x, kernel, weight = draw(4, 5, *inner), draw(*inner, 7), draw(4, 5, 7)
    letters = "xy"[: len(inner)]

    def loss(product):
        return lambda x, kernel: jnp.sum(jnp.sin(product(x, kernel)) * weight)

    mine = jax.value_and_grad(loss(products.dense), argnums=(0, 1))(x, kernel)
    other = jax.value_and_grad(
        loss(lambda x, kernel: jnp.einsum(f"ab{letters},{letters}o->abo", x, kernel)), argnums=(0, 1)
    )(x, kernel)
    for one, two in zip(jax.tree.leaves(mine), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


def test_a_narrowing_kernels_gradient_is_summed_image_by_image(draw):
    """On a CPU whose batch is its own; elsewhere, of other kernels and of narrow numbers, in one product."""

    def loops(columns, platform, *spread, dtype=jnp.float32):
        x, kernel = jax.device_put(jnp.round(draw(8, 5, 6)).astype(dtype), *spread), draw(6, columns).astype(dtype)
        gradient = jax.jit(jax.grad(lambda kernel, x: products.dense(x, kernel).sum()))
        expected = jnp.broadcast_to(x.sum(axis=(0, 1))[:, None], kernel.shape)
        np.testing.assert_allclose(gradient(kernel, x), expected, rtol=1e-5, atol=1e-5)
        return gradient.trace(kernel, x).lower(lowering_platforms=(platform,)).as_text().count("stablehlo.while")

    assert loops(4, "cpu") == 1
    assert loops(7, "cpu") == loops(4, "tpu") == loops(4, "cpu", NamedSharding(make_mesh(), ROWS)) == 0
    assert loops(4, "cpu", dtype=jnp.bfloat16) == 0


@pytest.mark.parametrize(
    ("rows", "columns", "parts"), [(256, 256, 8), (768, 256, 16), (256, 257, 1), (264, 8, 1), (64, 8, 1)]
)
def test_a_single_vectors_kernel_is_read_in_parts(draw, rows, columns, parts):
    assert products.parts_of(rows, columns) == parts
    x, kernel = draw(1, 1, rows), draw(rows, columns)
    alone = jax.jit(products.dense)
    np.testing.assert_allclose(alone(x, kernel), x @ kernel, rtol=1e-4, atol=1e-4)
    assert (f"[{parts},{rows // parts},{columns}]" in alone.lower(x, kernel).compile().as_text()) == (parts > 1)
    gradients = jax.grad(lambda x, kernel: products.dense(x, kernel).sum(), argnums=(0, 1))(x, kernel)
    np.testing.assert_allclose(gradients[0][0, 0], kernel.sum(axis=1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gradients[1], jnp.broadcast_to(x[0, 0, :, None], kernel.shape))


def test_narrow_numbers_are_rounded_once(draw):
    """Whatever precision XLA adds by itself."""
    x, kernel = draw(1, 768).astype(jnp.bfloat16), draw(768, 64).astype(jnp.bfloat16)
    alone = jax.jit(products.dense)
    assert alone(x, kernel).dtype == jnp.bfloat16
    assert "tensor<16x1x64xbf16>" not in alone.lower(x, kernel).as_text()


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (8, 1), (9, 8)])
def test_scores_are_products_with_a_tables_rows(draw, shape):
    x, table, weight = draw(*shape, 6), draw(50, 6), draw(*shape, 50)

    def loss(product):
        return lambda x, table: jnp.sum(jnp.sin(product(x, table)) * weight)

    mine = jax.value_and_grad(loss(products.against), argnums=(0, 1))(x, table)
    other = jax.value_and_grad(loss(lambda x, table: x @ table.T), argnums=(0, 1))(x, table)
    for one, two in zip(jax.tree.leaves(mine), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-4)
    turned = "optimization_barrier" in jax.jit(products.against).lower(x, table).as_text()
    assert turned == (shape[0] * shape[1] in products.FEW)


def test_gradients_of_single_images(draw):
    x, kernel = draw(3, 5, 6), draw(6, 7)
    each = jax.vmap(jax.grad(lambda kernel, x: jnp.sum(products.dense(x, kernel) ** 2)), in_axes=(None, 0))(kernel, x)
    for image, gradient in zip(x, each, strict=True):
        np.testing.assert_allclose(gradient, 2 * image.T @ (image @ kernel), rtol=1e-5, atol=1e-5)


def test_a_kernels_gradient_is_made_from_the_inputs_side(draw):
    """(I, O) at once, and no transpose of it."""
    program = jax.make_jaxpr(jax.grad(lambda kernel, x: products.dense(x, kernel).sum()))(draw(6, 7), draw(3, 5, 6))
    assert "transpose" not in str(program)


def test_options_are_not_passed_over(draw):
    x, kernel, dimensions = draw(5, 6).astype(jnp.bfloat16), draw(6, 7).astype(jnp.bfloat16), (((1,), (0,)), ((), ()))
    assert products.dot(x, kernel, dimensions, precision=None).dtype == jnp.bfloat16
    assert products.dot(x, kernel, dimensions, preferred_element_type=jnp.float32).dtype == jnp.float32
