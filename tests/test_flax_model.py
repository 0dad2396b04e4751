"""What holds for every architecture in Flax, without a reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import fixture, inputs, models
from tests.flax_models import decode, encode, forward, perturbed, stored_gradients
from ved_core.configs import VisionEncoderDecoderConfig
from ved_core.errors import ConfigError
from ved_flax import FlaxVisionEncoderDecoderModel

nnx = pytest.importorskip("flax.nnx")
some_decoders = pytest.mark.parametrize(
    ("encoder", "decoder"), models(("vit", "gpt2"), ("vit", "roberta"), ("vit", "trocr-sinusoidal"))
)
some_models = pytest.mark.parametrize(
    ("encoder", "decoder"), models(("vit", "gpt2"), ("swin", "gpt2"), ("vit", "bart"))
)


@some_decoders
def test_cached_decoding_equals_the_full_forward(encoder, decoder):
    model = perturbed(encoder, decoder)
    batch = inputs(model.config.to_dict())
    # Positions that leave out padding know only that of the new tokens, in transformers too.
    padding = batch.decoder_input_ids == model.config.decoder.pad_token_id
    ids = np.where(padding | (batch.decoder_attention_mask == 0), 9, batch.decoder_input_ids)
    encoded = encode(model, batch.pixel_values)
    full = decode(model, ids, encoded).logits
    cache = model.init_cache(len(ids), 12, encoded)
    pieces = []
    for start, end in ((0, 4), (4, 5), (5, 6), (6, 7), (7, 8), (8, 9)):
        out = decode(model, ids[:, start:end], encoded, cache=cache)
        cache = out.cache
        pieces.append(out.logits)
    np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), full, atol=1e-5, rtol=0)
    assert int(cache.index) == 9


@some_models
def test_every_parameter_gets_a_gradient(encoder, decoder):
    model = perturbed(encoder, decoder)
    batch = inputs(model.config.to_dict())
    for name, gradient in stored_gradients(model, batch.pixel_values, batch.labels).items():
        assert np.linalg.norm(gradient) > 0, name


@some_models
def test_rows_do_not_depend_on_each_other(encoder, decoder):
    model = perturbed(encoder, decoder)
    batch = inputs(model.config.to_dict())
    whole = forward(model, batch.pixel_values, batch.decoder_input_ids, batch.decoder_attention_mask).logits
    for row in range(len(batch.pixel_values)):
        one = slice(row, row + 1)
        arguments = (batch.pixel_values, batch.decoder_input_ids, batch.decoder_attention_mask)
        alone = forward(model, *(x[one] for x in arguments)).logits
        real = batch.decoder_attention_mask[row] == 1
        np.testing.assert_allclose(alone[0][real], whole[row][real], atol=1e-5, rtol=0)


def test_padding_behind_a_row_changes_nothing_before_it():
    model = perturbed("vit", "gpt2")
    batch = inputs(model.config.to_dict())
    short = forward(model, batch.pixel_values, batch.decoder_input_ids[:, :6]).logits
    long = forward(model, batch.pixel_values, batch.decoder_input_ids, batch.decoder_attention_mask).logits
    np.testing.assert_allclose(long[:, :6], short, atol=1e-5, rtol=0)


def test_labels_make_the_decoder_inputs_and_the_loss_leaves_out_what_is_ignored():
    model = perturbed("vit", "trocr")
    batch = inputs(model.config.to_dict())
    labels = batch.labels
    shifted = np.concatenate([np.full((3, 1), 2), labels[:, :-1]], axis=1)
    shifted[shifted == -100] = 1
    by_hand = forward(model, batch.pixel_values, shifted, labels=labels)
    out = forward(model, batch.pixel_values, labels=labels)
    np.testing.assert_array_equal(out.logits, by_hand.logits)
    log_probs = jax.nn.log_softmax(out.logits)
    chosen = [log_probs[b, t, labels[b, t]] for b, t in zip(*np.nonzero(labels != -100), strict=True)]
    np.testing.assert_allclose(out.loss, -np.mean(chosen), rtol=1e-5)
    assert forward(model, batch.pixel_values, labels=np.full_like(labels, -100)).loss == 0


def test_encoder_outputs_stand_in_for_pixels():
    model = perturbed("vit", "gpt2")
    batch = inputs(model.config.to_dict())
    whole = forward(model, batch.pixel_values, batch.decoder_input_ids).logits
    encoded = encode(model, batch.pixel_values)
    for form in (encoded, (encoded.last_hidden_state,), encoded.last_hidden_state):
        np.testing.assert_array_equal(forward(model, None, batch.decoder_input_ids, encoder_outputs=form).logits, whole)


def test_embeddings_stand_in_for_ids():
    model = perturbed("vit", "gpt2")
    batch = inputs(model.config.to_dict())
    embeds = model.decoder.tokens(batch.decoder_input_ids)
    np.testing.assert_array_equal(
        forward(model, batch.pixel_values, decoder_inputs_embeds=embeds).logits,
        forward(model, batch.pixel_values, batch.decoder_input_ids).logits,
    )


def test_dropout_needs_training_mode_and_keys():
    model = perturbed("vit", "gpt2")
    batch = inputs(model.config.to_dict())
    calm = forward(model, batch.pixel_values, batch.decoder_input_ids).logits
    np.testing.assert_array_equal(
        forward(model, batch.pixel_values, batch.decoder_input_ids, rngs=nnx.Rngs(1)).logits, calm
    )
    model.train()
    first, second = (
        forward(model, batch.pixel_values, batch.decoder_input_ids, rngs=nnx.Rngs(k)).logits for k in (1, 2)
    )
    assert not np.array_equal(first, second)
    same = forward(model, batch.pixel_values, batch.decoder_input_ids, rngs=nnx.Rngs(1)).logits
    np.testing.assert_array_equal(first, same)
    # Decoding is always done in evaluation mode.
    assert model.generate(batch.pixel_values, max_new_tokens=3).shape == (3, 4)
    model.eval()
    np.testing.assert_array_equal(forward(model, batch.pixel_values, batch.decoder_input_ids).logits, calm)


def test_layerdrop_skips_whole_layers_in_training_only():
    model = perturbed("vit", "trocr")
    batch = inputs(model.config.to_dict())
    without = forward(model, batch.pixel_values, batch.decoder_input_ids).logits
    model.decoder.layerdrop = 1.0
    np.testing.assert_array_equal(forward(model, batch.pixel_values, batch.decoder_input_ids).logits, without)
    for module in (model.decoder.dropout, *(block.dropout for block in model.decoder.blocks)):
        module.rate = 0.0
    model.train()
    out = forward(model, batch.pixel_values, batch.decoder_input_ids, output_hidden_states=True, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(out.decoder_hidden_states[0], out.decoder_hidden_states[-1])


def test_bfloat16_computes_and_keeps_float32_parameters():
    config = VisionEncoderDecoderConfig.from_pretrained(fixture("vit-gpt2")[0])
    folder, expected, _ = fixture("vit-gpt2")
    model = FlaxVisionEncoderDecoderModel.from_pretrained(folder, dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(nnx.state(model))} == {np.dtype(np.float32)}
    logits = forward(model, expected["pixel_values"], expected["decoder_input_ids"]).logits
    reference = FlaxVisionEncoderDecoderModel.from_pretrained(folder)(
        expected["pixel_values"], expected["decoder_input_ids"]
    ).logits
    difference = np.abs(np.asarray(logits) - np.asarray(reference)).max()
    assert 0 < difference < 0.1
    small = FlaxVisionEncoderDecoderModel.from_pretrained(folder, config=config, param_dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(nnx.state(small))} == {jnp.dtype(jnp.bfloat16)}


def test_new_models_are_reproducible_and_initialised_like_transformers():
    config = VisionEncoderDecoderConfig.from_dict(
        {
            "encoder": {"model_type": "vit", "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
            "decoder": {"model_type": "gpt2", "n_embd": 128, "n_layer": 8, "n_head": 4, "vocab_size": 300},
        }
    )
    model, again = (FlaxVisionEncoderDecoderModel(config, rngs=nnx.Rngs(7)) for _ in range(2))
    assert all(map(np.array_equal, jax.tree.leaves(nnx.state(model)), jax.tree.leaves(nnx.state(again))))
    block = model.decoder.blocks[3]
    assert float(jnp.std(block.attn.q.kernel[...])) == pytest.approx(0.02, rel=0.05)
    assert float(jnp.std(block.attn.out.kernel[...])) == pytest.approx(0.02 / 4, rel=0.05)
    assert float(jnp.std(block.mlp.down.kernel[...])) == pytest.approx(0.02 / 4, rel=0.05)
    assert not np.any(block.attn.q.bias[...])
    assert float(jnp.std(model.encoder.patches.kernel[...])) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values": np.zeros((1, 3, 40, 32), np.float32)}, "interpolate_pos_encoding=True"),
        ({"pixel_values": np.zeros((1, 4, 32, 32), np.float32)}, r"\(B, 3, H, W\)"),
        ({"pixel_values": np.zeros((3, 32, 32), np.float32)}, r"\(B, 3, H, W\)"),
        ({"pixel_values": None}, "pixel_values or encoder_outputs"),
        ({"decoder_input_ids": None}, "decoder_input_ids or decoder_inputs_embeds"),
        ({"decoder_input_ids": np.ones((1, 41), int)}, "41 decoder tokens are more than the 40 positions"),
        ({"decoder_attention_mask": np.ones((1, 1), int)}, r"decoder_attention_mask is \(1, 1\) for .* \(1, 2\)"),
        ({"pixel_values": np.zeros((3, 3, 32, 32), np.float32)}, "1 rows of decoder inputs do not fit 3 images"),
    ],
)
def test_bad_inputs_say_what_was_expected(change, message):
    model = perturbed("vit", "gpt2")
    arguments = {"pixel_values": np.zeros((1, 3, 32, 32), np.float32), "decoder_input_ids": np.ones((1, 2), int)}
    with pytest.raises(ValueError, match=message):
        model(**(arguments | change))


def test_tokens_that_labels_need_can_be_assigned_later():
    model = perturbed("vit", "gpt2", decoder_start_token_id=None, pad_token_id=None)
    model.config.decoder.pad_token_id = None
    batch = inputs(model.config.to_dict())
    with pytest.raises(ConfigError, match=r"model.config.decoder_start_token_id = "):
        forward(model, batch.pixel_values, labels=batch.labels)
    model.config.decoder_start_token_id = 2
    with pytest.raises(ConfigError, match=r"model.config.pad_token_id = "):
        forward(model, batch.pixel_values, labels=batch.labels)
    model.config.pad_token_id = 1
    assert np.isfinite(forward(model, batch.pixel_values, labels=batch.labels).loss)


def test_a_model_goes_through_nnx_transforms():
    model = perturbed("vit", "gpt2")
    batch = inputs(model.config.to_dict())
    plain = model(batch.pixel_values, batch.decoder_input_ids).logits
    np.testing.assert_allclose(forward(model, batch.pixel_values, batch.decoder_input_ids).logits, plain, atol=1e-5)
    copy = nnx.clone(model)
    np.testing.assert_array_equal(copy(batch.pixel_values, batch.decoder_input_ids).logits, plain)
