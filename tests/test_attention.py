"""Attention kernels: which is chosen, that each computes what plain attention does, and that they compile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

nnx = pytest.importorskip("flax.nnx")

from jax.experimental.pallas import tpu as pltpu  # noqa: E402

from tests.cases import inputs, model_config  # noqa: E402
from tests.flax_models import forward, perturbed  # noqa: E402
from ved_flax import FlaxVisionEncoderDecoderModel, state  # noqa: E402
from ved_flax.layers import kernels  # noqa: E402
from ved_flax.layers.attention import attend, causal_bias  # noqa: E402
from ved_flax.layers.cache import KeyValue  # noqa: E402

OFF = nnx.Dropout(0.5, deterministic=True)
BFLOAT16 = jnp.bfloat16


def arrays(tokens, attended, *, batch=2, heads=2, head_width=16, dtype=np.float32):
    rng = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(rng.standard_normal((batch, heads, n, head_width)), dtype) for n in (tokens, attended, attended)
    )
    return q, KeyValue(k, v)


def shapes(tokens, attended, *, heads=12, head_width=64, dtype=jnp.float32, windows=()):
    q, kv = (jax.ShapeDtypeStruct((2, *windows, heads, n, head_width), dtype) for n in (tokens, attended))
    return q, KeyValue(kv, kv)


def fused(implementation, scale=0.25):
    return lambda q, kv, bias=None: attend(q, kv, bias, scale, implementation=implementation, dropout=OFF, rngs=None)[0]


# Choice ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "tokens", "attended", "options", "expected"),
    [
        ("flash", 577, 577, {}, "flash"),
        ("flash", 197, 197, {"dtype": BFLOAT16}, "flash"),
        ("flash", 128, 577, {"head_width": 256}, "flash"),
        ("flash", 1, 577, {}, "xla"),
        ("flash", 577, 100, {}, "xla"),
        ("flash", 577, 577, {"head_width": 192}, "xla"),
        ("flash", 577, 577, {"dtype": jnp.float16}, "xla"),
        ("flash", 144, 144, {"windows": (9,)}, "xla"),
        ("cudnn", 577, 577, {"dtype": BFLOAT16}, "cudnn"),
        ("cudnn", 9, 577, {"dtype": jnp.float16}, "cudnn"),
        ("cudnn", 577, 577, {}, "xla"),
        ("cudnn", 1, 577, {"dtype": BFLOAT16}, "xla"),
        ("cudnn", 9, 577, {"dtype": BFLOAT16, "head_width": 20}, "xla"),
        ("cudnn", 9, 577, {"dtype": BFLOAT16, "head_width": 136}, "xla"),
        ("cudnn", 144, 144, {"dtype": BFLOAT16, "windows": (9,)}, "xla"),
        ("xla", 577, 577, {"dtype": BFLOAT16}, "xla"),
        ("auto", 577, 577, {"dtype": BFLOAT16}, "xla"),
    ],
)
def test_a_kernel_is_chosen_where_it_fits(asked, tokens, attended, options, expected):
    assert kernels.choose(asked, *shapes(tokens, attended, **options), None) == expected


def test_cudnn_takes_a_bias_of_even_sides_only():
    bias = jnp.zeros((1, 1, 1, 1))
    for tokens, expected in ((8, "cudnn"), (9, "xla")):
        assert kernels.choose("cudnn", *shapes(tokens, tokens, dtype=BFLOAT16), bias) == expected


def test_auto_takes_cudnn_on_recent_gpus_for_long_attention_without_bias(monkeypatch):
    monkeypatch.setattr(kernels, "_ampere", lambda: True)
    assert kernels.choose("auto", *shapes(577, 577, dtype=BFLOAT16), None) == "cudnn"
    assert kernels.choose("auto", *shapes(577, 577), None) == "xla"
    assert kernels.choose("auto", *shapes(64, 577, dtype=BFLOAT16), None) == "xla"
    assert kernels.choose("auto", *shapes(576, 576, dtype=BFLOAT16), jnp.zeros((12, 576, 576))) == "xla"


@pytest.mark.parametrize("case", ["weights", "dropout"])
def test_weights_and_dropout_on_them_are_computed_plainly(case):
    q, kv = arrays(128, 128)
    dropout = OFF if case == "weights" else nnx.Dropout(0.5, deterministic=False)
    both = [
        attend(
            q, kv, None, 0.25, implementation=name, dropout=dropout, rngs=nnx.Rngs(0), need_weights=case == "weights"
        )
        for name in ("xla", "flash")  # flash would fail here, on a CPU
    ]
    np.testing.assert_array_equal(both[0][0], both[1][0])
    assert (both[0][1] is not None) == (case == "weights")


# Numbers --------------------------------------------------------------------------------------------------------------


def biases(kind, tokens, attended):
    if kind == "learned":  # as BEiT's
        return jnp.asarray(np.random.default_rng(1).standard_normal((2, tokens, attended)), jnp.float32)
    if kind == "causal":  # as a decoder's, with padding
        mask = jnp.ones((2, attended), bool).at[0, :3].set(False)
        return causal_bias(0, tokens, mask)
    return None


@pytest.mark.parametrize(
    ("kind", "tokens", "attended"),
    [("none", 197, 197), ("none", 130, 256), ("causal", 150, 150), ("learned", 128, 200)],
)
def test_the_tpu_kernel_computes_what_plain_attention_does(kind, tokens, attended):
    (q, kv), bias = arrays(tokens, attended), biases(kind, tokens, attended)
    learned = kind == "learned"

    def value(name):
        def total(q, kv, bias):
            out = fused(name)(q, kv, bias)
            return jnp.sum(jnp.sin(3 * out)), out

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2) if learned else (0, 1), has_aux=True))

    (_, expected), gradients = value("xla")(q, kv, bias)
    with pltpu.force_tpu_interpret_mode():
        (_, found), others = value("flash")(q, kv, bias)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    for gradient, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(other, gradient, rtol=0, atol=2e-5)


# Compiling ------------------------------------------------------------------------------------------------------------


def exported(function, *arguments, platform, unchecked=()):
    checks = [jax.export.DisabledSafetyCheck.custom_call(name) for name in unchecked]
    return jax.export.export(jax.jit(function), platforms=[platform], disabled_checks=checks)(*arguments).mlir_module()


@pytest.mark.parametrize("dtype", [jnp.float32, BFLOAT16])
def test_the_tpu_kernel_lowers_for_vit_and_decoder_shapes(dtype):
    call = fused("flash")
    backward = jax.grad(lambda q, kv: call(q, kv).astype(jnp.float32).sum(), argnums=(0, 1))
    image = shapes(577, 577, dtype=dtype)
    assert exported(call, *image, platform="tpu").count("tpu_custom_call") == 1
    assert exported(backward, *image, platform="tpu").count("tpu_custom_call") == 3
    text = jax.ShapeDtypeStruct((2, 1, 256, 256), jnp.float32)
    assert exported(call, *shapes(256, 256, dtype=dtype), text, platform="tpu").count("tpu_custom_call") == 1
    assert exported(call, *shapes(256, 577, dtype=dtype), platform="tpu").count("tpu_custom_call") == 1


def test_cudnn_lowers_for_vit_and_decoder_shapes(monkeypatch):
    fused_attention = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    # All that is asked of a GPU's libraries before they are called.
    monkeypatch.setattr(fused_attention, "check_cudnn_version", lambda: 91100)
    names = ("__cudnn$fmhaSoftmax", "__cudnn$fmhaScaleBiasSoftmax")
    call = fused("cudnn")
    assert names[0] in exported(call, *shapes(577, 577, dtype=BFLOAT16), platform="cuda", unchecked=names)
    text = jax.ShapeDtypeStruct((2, 1, 64, 64), jnp.float32)
    assert names[1] in exported(call, *shapes(64, 64, dtype=BFLOAT16), text, platform="cuda", unchecked=names)


def test_a_whole_model_lowers_with_the_tpu_kernel():
    config = model_config("vit", "gpt2")
    config["encoder"] = config["encoder"] | {"image_size": 96}
    model = state.abstract(lambda: FlaxVisionEncoderDecoderModel(config, attn_implementation="flash"))
    graphdef, parameters = nnx.split(model)
    batch = inputs(config)
    call = lambda parameters, pixels, ids: nnx.merge(graphdef, parameters)(pixels, ids).logits  # noqa: E731
    arguments = (parameters, batch.pixel_values, batch.decoder_input_ids)
    lowered = jax.jit(call).trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in lowered


# The setting ----------------------------------------------------------------------------------------------------------


def test_the_setting_reaches_every_attention_and_changes_no_parameter(tmp_path):
    model = perturbed("vit", "gpt2")
    batch = inputs(model.config.to_dict())
    names, before = state.shapes(model), nnx.graphdef(model)
    expected = forward(model, batch.pixel_values, batch.decoder_input_ids).logits
    model.set_attn_implementation("flash")
    assert state.shapes(model) == names
    assert nnx.graphdef(model) != before
    # No tiny shape fits the kernel.
    np.testing.assert_array_equal(forward(model, batch.pixel_values, batch.decoder_input_ids).logits, expected)
    model.save_pretrained(tmp_path)
    again = FlaxVisionEncoderDecoderModel.from_pretrained(tmp_path, attn_implementation="flash")
    assert {block.attn.implementation for block in again.encoder.blocks} == {"flash"}
    assert {block.cross_attn.implementation for block in again.decoder.blocks} == {"flash"}
    with pytest.raises(ValueError, match="attn_implementation = 'sdpa' should be one of auto, xla, cudnn, flash"):
        model.set_attn_implementation("sdpa")


def test_the_setting_in_torch(tmp_path):
    torch = pytest.importorskip("torch")
    from ved_torch import VisionEncoderDecoderModel

    config = model_config("vit", "trocr")
    model = VisionEncoderDecoderModel(config, generator=torch.Generator().manual_seed(0)).eval()
    batch = inputs(config)
    with torch.no_grad():
        expected = model(batch.pixel_values, batch.decoder_input_ids, batch.decoder_attention_mask)
        model.set_attn_implementation("eager")
        found = model(batch.pixel_values, batch.decoder_input_ids, batch.decoder_attention_mask)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-5)
    assert found.decoder_attentions is None
    model.save_pretrained(tmp_path)
    again = VisionEncoderDecoderModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert {block.attn.implementation for block in again.encoder.blocks} == {"eager"}
    with pytest.raises(ValueError, match="attn_implementation = 'xla' should be one of sdpa, eager"):
        VisionEncoderDecoderModel(config, attn_implementation="xla")
