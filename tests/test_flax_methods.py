"""The Flax model's methods beside computing: halves, vocabulary, freezing, checkpointing, settings."""

import jax
import numpy as np
import pytest

nnx = pytest.importorskip("flax.nnx")
optax = pytest.importorskip("optax")

from tests.cases import inputs, model_config  # noqa: E402
from tests.flax_models import forward, perturbed  # noqa: E402
from ved_core.configs import VisionEncoderDecoderConfig  # noqa: E402
from ved_core.errors import ConfigError  # noqa: E402
from ved_flax import FlaxVisionEncoderDecoderModel, compiled, state  # noqa: E402
from ved_flax.decoders import build_decoder  # noqa: E402
from ved_flax.encoders import build_encoder  # noqa: E402

SAME = {"rtol": 0, "atol": 1e-5}


def batch_of(model, **kwargs):
    return inputs(model.config.to_dict(), **kwargs)


def loss(model, pixel_values, labels, rngs=None):
    return model(pixel_values, labels=labels, rngs=rngs).loss


def slow(*values):
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


gradients = nnx.jit(nnx.grad(loss))


# Halves ---------------------------------------------------------------------------------------------------------------


def test_two_built_halves(tmp_path):
    config = VisionEncoderDecoderConfig.from_dict(model_config("vit", "gpt2"))
    config.decoder.is_decoder = config.decoder.add_cross_attention = False
    encoder, decoder = build_encoder(config.encoder), build_decoder(config.decoder)
    model = FlaxVisionEncoderDecoderModel(encoder=encoder, decoder=decoder, rngs=nnx.Rngs(3))
    assert model.encoder is encoder
    assert model.decoder is decoder
    assert encoder.config is model.config.encoder
    assert decoder.config is model.config.decoder
    assert model.config.decoder.is_decoder
    assert model.config.decoder.add_cross_attention
    assert model.enc_to_dec_proj.kernel.shape == (32, 24)
    hash(nnx.graphdef(model))
    model.config.decoder_start_token_id, model.config.pad_token_id = 2, 1
    batch = batch_of(model)
    assert np.isfinite(forward(model, batch.pixel_values, labels=batch.labels).loss)
    model.save_pretrained(tmp_path)
    again = FlaxVisionEncoderDecoderModel.from_pretrained(tmp_path)
    assert all(np.array_equal(value, state.arrays(again)[name]) for name, value in state.arrays(model).items())
    assert again.config.decoder.add_cross_attention


def test_halves_of_other_models_and_of_a_config():
    first, second = perturbed("deit", "gpt2"), perturbed("vit", "trocr")
    model = FlaxVisionEncoderDecoderModel(encoder=first.encoder, decoder=second.decoder)
    batch = batch_of(second)
    assert forward(model, batch.pixel_values, batch.decoder_input_ids).logits.shape == (3, 9, 61)
    assert FlaxVisionEncoderDecoderModel(first.config, encoder=first.encoder).encoder is first.encoder
    with pytest.raises(ConfigError, match="encoder was built from another config"):
        FlaxVisionEncoderDecoderModel(second.config, encoder=first.encoder)
    with pytest.raises(ConfigError, match="give a config"):
        FlaxVisionEncoderDecoderModel(encoder=first.encoder)


def test_a_model_of_a_dict_is_marked_as_decoder_with_cross_attention():
    values = model_config("vit", "gpt2")
    del values["decoder"]["is_decoder"], values["decoder"]["add_cross_attention"]
    model = state.abstract(lambda: FlaxVisionEncoderDecoderModel(values))
    assert model.config.decoder.is_decoder
    assert model.config.decoder.add_cross_attention


# The vocabulary -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "decoder",
    ["gpt2", pytest.param("gpt2-untied-scaled", marks=pytest.mark.slow), pytest.param("bert", marks=pytest.mark.slow)],
)
def test_resize_token_embeddings(decoder, tmp_path):
    model = perturbed("vit", decoder)
    batch = batch_of(model)
    before = forward(model, batch.pixel_values, batch.decoder_input_ids).logits
    model.generate(batch.pixel_values, max_new_tokens=2)
    table = model.resize_token_embeddings(65, pad_to_multiple_of=4)
    assert table is model.get_input_embeddings()
    assert table.embedding.shape[0] == 68 == table.num_embeddings
    assert model.config.decoder.vocab_size == 68
    after = forward(model, batch.pixel_values, batch.decoder_input_ids).logits
    np.testing.assert_allclose(after[..., :61], before, **SAME)
    assert after.shape[2] == 68
    assert 0 < np.std(table.embedding[61:]) < 0.04
    assert model.generate(batch.pixel_values, max_new_tokens=2).shape == (3, 3)
    model.save_pretrained(tmp_path)
    again = FlaxVisionEncoderDecoderModel.from_pretrained(tmp_path)
    np.testing.assert_array_equal(forward(again, batch.pixel_values, batch.decoder_input_ids).logits, after)
    assert model.resize_token_embeddings(60).embedding.shape[0] == 60
    assert model.resize_token_embeddings().embedding.shape[0] == 60


@pytest.mark.parametrize("decoder", ["gpt2", *slow("bert")])
def test_tied_heads_are_untied_and_tied_again(decoder, tmp_path):
    model = perturbed("vit", decoder)
    batch = batch_of(model)
    assert model.get_output_embeddings() is model.get_input_embeddings()
    count = model.num_parameters()
    before = forward(model, batch.pixel_values, batch.decoder_input_ids).logits
    model.untie_weights()
    assert not model.config.decoder.tie_word_embeddings
    head = model.get_output_embeddings()
    assert head is model.decoder.head
    assert model.num_parameters() == count + head.kernel.size
    head.kernel[...] *= 2
    model.save_pretrained(tmp_path)
    again = FlaxVisionEncoderDecoderModel.from_pretrained(tmp_path)
    np.testing.assert_array_equal(again.decoder.head.kernel[...], head.kernel[...])
    np.testing.assert_array_equal(2 * again.decoder.tokens.embedding[...].T, head.kernel[...])
    model.tie_weights()
    assert model.decoder.head is head
    model.config.decoder.tie_word_embeddings = True
    model.tie_weights()
    np.testing.assert_array_equal(forward(model, batch.pixel_values, batch.decoder_input_ids).logits, before)
    assert model.num_parameters() == count


# Training -------------------------------------------------------------------------------------------------------------


def test_a_frozen_encoder_does_not_train_and_is_still_there(tmp_path):
    model = perturbed("vit", "gpt2")
    batch = batch_of(model)
    names = state.shapes(model)
    ids = np.asarray(model.generate(batch.pixel_values, max_new_tokens=5))
    model.freeze_encoder()
    assert state.shapes(model) == names
    assert state.arrays(model).keys() == names.keys()
    np.testing.assert_array_equal(model.generate(batch.pixel_values, max_new_tokens=5), ids)
    trained = gradients(model, batch.pixel_values, batch.labels)
    assert "encoder" not in trained
    encoder, decoder = state.arrays(model.encoder), state.arrays(model.decoder)
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    optimizer.update(model, trained)
    assert all(np.array_equal(value, encoder[name]) for name, value in state.arrays(model.encoder).items())
    after = state.arrays(model.decoder)
    assert not any(np.array_equal(after[name], decoder[name]) for name in decoder if name.endswith("kernel"))
    assert model.num_parameters(only_trainable=True) == model.num_parameters() - state.parameter_count(model.encoder)
    assert len(jax.tree.leaves(compiled.parameters(model))) == len(names)
    model.save_pretrained(tmp_path)
    again = FlaxVisionEncoderDecoderModel.from_pretrained(tmp_path)
    assert all(np.array_equal(value, state.arrays(again)[name]) for name, value in state.arrays(model).items())
    state.unfreeze(model)
    assert model.num_parameters(only_trainable=True) == model.num_parameters()


def test_counts_leave_out_embedding_tables():
    model = perturbed("vit", "gpt2")
    tables = model.decoder.tokens.embedding.size + model.decoder.positions.embedding.size
    assert model.num_parameters() == sum(x.size for x in jax.tree.leaves(nnx.state(model)))
    assert model.num_parameters(exclude_embeddings=True) == model.num_parameters() - tables


@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [
        ("vit-nobias-1layer", "gpt2-unscaled-1layer"),
        pytest.param("swin", "trocr", marks=pytest.mark.slow),
        pytest.param("swinv2", "bert", marks=pytest.mark.slow),
    ],
)
def test_checkpointing_changes_no_gradient(encoder, decoder):
    model = perturbed(encoder, decoder)
    model.train()
    batch = batch_of(model)
    plain = gradients(model, batch.pixel_values, batch.labels, nnx.Rngs(1))
    model.gradient_checkpointing_enable()
    again = gradients(model, batch.pixel_values, batch.labels, nnx.Rngs(1))
    for (path, value), other in zip(nnx.to_flat_state(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(other, value[...], rtol=1e-5, atol=1e-6, err_msg=str(path))


@pytest.mark.slow
def test_checkpointing_changes_no_output():
    model = perturbed("vit-nobias-1layer", "gpt2-unscaled-1layer")
    batch = batch_of(model)
    ids = np.asarray(model.generate(batch.pixel_values, max_new_tokens=4))
    model.gradient_checkpointing_enable()
    np.testing.assert_array_equal(model.generate(batch.pixel_values, max_new_tokens=4), ids)
    out = forward(model, batch.pixel_values, batch.decoder_input_ids, output_attentions=True)
    assert all(weights is not None for weights in (*out.encoder_attentions, *out.decoder_attentions))


def test_checkpointing_keeps_less():
    config = model_config("vit", "gpt2")
    config["encoder"] = config["encoder"] | {"num_hidden_layers": 6}
    config["decoder"] = config["decoder"] | {"n_layer": 6}
    model = state.abstract(lambda: FlaxVisionEncoderDecoderModel(config))
    batch = inputs(config, batch=8, tokens=32)

    def kept_bytes():
        """What the backward pass is handed, parameters included. XLA's compiler for CPU joins what is computed twice
        again, so that its own count of memory says nothing here."""
        graphdef, parameters = nnx.split(model)
        step = lambda p: jax.vjp(lambda p: loss(nnx.merge(graphdef, p), batch.pixel_values, batch.labels), p)[1]  # noqa: E731
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(step, parameters)))

    everything = kept_bytes()
    model.gradient_checkpointing_enable(jax.checkpoint_policies.dots_saveable)
    some = kept_bytes()
    model.gradient_checkpointing_enable()
    assert kept_bytes() < everything / 3
    assert kept_bytes() < some < everything


def test_dtypes():
    config = model_config("vit", "gpt2")
    model = state.abstract(lambda: FlaxVisionEncoderDecoderModel(config, dtype="bfloat16", param_dtype="float16"))
    assert (model.dtype, model.param_dtype) == ("bfloat16", "float16")
