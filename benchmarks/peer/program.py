"""Run in an environment with transformers 4.48, the last that had Flax classes: compile one program of ViT-GPT2 for a
v5e chip that is not there.

    python program.py {encode,decode,train} BATCH TOKENS FOLDER

Writes `program.txt` (optimised HLO) and `memory.json` (bytes) into FOLDER.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from transformers import FlaxVisionEncoderDecoderModel, GPT2Config, VisionEncoderDecoderConfig, ViTConfig

RATE = 0.05


def build():
    """The model without arrays, and the shapes of its parameters."""
    tokens = {"decoder_start_token_id": 50256, "pad_token_id": 50256, "eos_token_id": 50256}
    decoder = GPT2Config(is_decoder=True, add_cross_attention=True)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(), decoder, **tokens)
    made = []

    def make():
        made.append(FlaxVisionEncoderDecoderModel(config, dtype=jnp.bfloat16))
        return made[0].params

    params = jax.eval_shape(make)
    return made[0], params


def half(tree):
    """Shapes of float32 as bfloat16."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16 if x.dtype == jnp.float32 else x.dtype), tree
    )


def encode(batch, tokens):
    model, params = build()

    def run(params, pixels):
        return model.encode(pixels, params=params).last_hidden_state

    return jax.jit(run), (half(params), jax.ShapeDtypeStruct((batch, 3, 224, 224), jnp.float32))


def decode(batch, tokens):
    """One token behind a cache for `tokens`; the class keeps no keys and values of image tokens."""
    model, params = build()
    encoded = jax.ShapeDtypeStruct((batch, 197, 768), jnp.bfloat16)
    params = half(params)
    cache = jax.eval_shape(lambda encoded: model.init_cache(batch, tokens, (encoded,)), encoded)

    def run(params, ids, encoded, cache, place):
        out = model.decode(
            ids,
            (encoded,),
            decoder_attention_mask=jnp.ones((batch, tokens), jnp.int32),
            decoder_position_ids=jnp.broadcast_to(place, (batch, 1)),
            past_key_values=cache,
            params=params,
        )
        return out.logits, out.past_key_values

    ids, place = jax.ShapeDtypeStruct((batch, 1), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    return jax.jit(run, donate_argnums=3), (params, ids, encoded, cache, place)


def train(batch, tokens):
    """SGD on float32 parameters, computing in bfloat16, without dropout."""
    model, params = build()

    def loss(params, pixels, ids, labels):
        logits = model(pixels, ids, params=params).logits.astype(jnp.float32)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)[..., 0]
        return -jnp.mean(chosen)

    def run(params, pixels, ids, labels):
        value, gradient = jax.value_and_grad(loss)(params, pixels, ids, labels)
        return value, jax.tree.map(lambda p, g: p - RATE * g, params, gradient)

    pixels = jax.ShapeDtypeStruct((batch, 3, 224, 224), jnp.float32)
    ids = jax.ShapeDtypeStruct((batch, tokens), jnp.int32)
    return jax.jit(run, donate_argnums=0), (params, pixels, ids, ids)


def main(program, batch, tokens, folder):
    function, arguments = {"encode": encode, "decode": decode, "train": train}[program](int(batch), int(tokens))
    chip = topologies.get_topology_desc("v5e:1x1", platform="tpu", chips_per_host_bounds=(1, 1, 1)).devices[0]
    there = SingleDeviceSharding(chip)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there), arguments)
    compiled = function.trace(*shapes).lower(lowering_platforms=("tpu",)).compile()
    used = compiled.memory_analysis()
    numbers = {
        "arguments": used.argument_size_in_bytes,
        "outputs": used.output_size_in_bytes - used.alias_size_in_bytes,
        "temporaries": used.temp_size_in_bytes,
        "code": used.generated_code_size_in_bytes,
        "flops": (compiled.cost_analysis() or {}).get("flops", 0.0),
    }
    Path(folder, "memory.json").write_text(json.dumps(numbers), encoding="utf-8")
    Path(folder, "program.txt").write_text(compiled.as_text(), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
