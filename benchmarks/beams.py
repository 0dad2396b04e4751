"""Beam search's cache: which tokens a hypothesis came by as a mask over one cache an image (what `ved_flax` does),
against a cache for each hypothesis that is reordered by a copy at every step. Median of alternating runs."""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ved_core.configs import VisionEncoderDecoderConfig
from ved_flax import FlaxVisionEncoderDecoderModel
from ved_flax.layers.cache import Cache, KeyValue

ROUNDS = 7
BATCH, BEAMS = 4, 4
CONFIG = {
    "model_type": "vision-encoder-decoder",
    "encoder": {"model_type": "vit", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    | {"intermediate_size": 64, "image_size": 224, "patch_size": 16},
    "decoder": {"model_type": "trocr", "d_model": 512, "decoder_layers": 4, "decoder_attention_heads": 8}
    | {"decoder_ffn_dim": 2048, "vocab_size": 8000, "max_position_embeddings": 1024, "cross_attention_hidden_size": 64},
}


def masked(model: FlaxVisionEncoderDecoderModel, encoded: jax.Array, source: jax.Array) -> jax.Array:
    """Every step feeds BEAMS tokens of each image and moves rows of the mask."""
    steps = source.shape[0]
    cache = model.init_cache(BATCH, steps * BEAMS, encoded)
    visible = jnp.zeros((BATCH, BEAMS, steps * BEAMS), bool)

    def step(place: jax.Array, state: tuple[Cache, jax.Array, jax.Array]) -> tuple[Cache, jax.Array, jax.Array]:
        cache, visible, ids = state
        beams = jnp.arange(BEAMS)
        visible = visible.at[:, beams, place * BEAMS + beams].set(True)
        position = jnp.full((BATCH, 1), place)
        out = model.decoder(ids, cache=cache, visible=visible, positions=position)
        chosen = source[place]
        ids = jnp.take_along_axis(jnp.argmax(out.logits, axis=-1), chosen, axis=1)
        return out.cache, jnp.take_along_axis(visible, chosen[..., None], axis=1), ids

    return jax.lax.fori_loop(0, steps, step, (cache, visible, jnp.zeros((BATCH, BEAMS), int)))[2]


def copied(model: FlaxVisionEncoderDecoderModel, encoded: jax.Array, source: jax.Array) -> jax.Array:
    """Every step feeds BATCH * BEAMS rows and copies their caches in the order of the survivors."""
    steps = source.shape[0]
    cache = model.init_cache(BATCH * BEAMS, steps, encoded.repeat(BEAMS, axis=0))

    def step(place: jax.Array, state: tuple[Cache, jax.Array]) -> tuple[Cache, jax.Array]:
        cache, ids = state
        out = model.decoder(ids[:, None], cache=cache)
        assert out.cache is not None
        rows = (source[place] + jnp.arange(BATCH)[:, None] * BEAMS).reshape(-1)
        kept = tuple(KeyValue(*(jnp.take(x, rows, axis=0) for x in pair)) for pair in out.cache.self_kv)
        cache = Cache(kept, out.cache.cross_kv, out.cache.mask_BL, out.cache.index)
        return cache, jnp.argmax(out.logits[:, 0], axis=-1)[rows]

    return jax.lax.fori_loop(0, steps, step, (cache, jnp.zeros(BATCH * BEAMS, int)))[1].reshape(BATCH, BEAMS)


def seconds(run: Callable[..., jax.Array], *arguments: object) -> float:
    """Wall time of a compiled call."""
    start = time.perf_counter()
    jax.block_until_ready(run(*arguments))
    return time.perf_counter() - start


def main() -> None:
    """Print the time of a step of both, and their ratio with its spread, for several lengths."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 128, 512])
    lengths = parser.parse_args().lengths
    model = nnx.jit(lambda: FlaxVisionEncoderDecoderModel(VisionEncoderDecoderConfig.from_dict(CONFIG)))()
    graphdef, state = nnx.split(model)
    rng = np.random.default_rng(0)
    encoded = jnp.asarray(rng.standard_normal((BATCH, 197, 64)), jnp.float32)
    print("length  masked (ms a step)  copied (ms a step)  copied / masked (spread)")
    for length in lengths:
        source = jnp.asarray(rng.integers(0, BEAMS, (length, BATCH, BEAMS)))
        ours, theirs = (
            jax.jit(lambda state, encoded, source, run=run: run(nnx.merge(graphdef, state), encoded, source))
            for run in (masked, copied)
        )
        arguments = (state, encoded, source)
        np.testing.assert_array_equal(ours(*arguments), theirs(*arguments))
        pairs = [(seconds(ours, *arguments), seconds(theirs, *arguments)) for _ in range(ROUNDS)]
        mine, other = (statistics.median(times) * 1000 / length for times in zip(*pairs, strict=True))
        ratios = sorted(other / mine for mine, other in pairs)
        middle = statistics.median(ratios)
        print(f"{length:6}  {mine:18.2f}  {other:18.2f}  {middle:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
