"""Text decoders in Flax: what only some of them have."""

import numpy as np
import pytest

from conversion import checkpoint
from conversion.tables import model_table
from tests.cases import DECODERS, FIXTURES, inputs, model_config
from ved_core.configs import DECODERS as CONFIGS
from ved_core.configs import VisionEncoderDecoderConfig
from ved_core.errors import ConfigError, GenerationError

nnx = pytest.importorskip("flax.nnx")
jnp = pytest.importorskip("jax.numpy")

from tests.flax_models import forward  # noqa: E402
from ved_flax import FlaxVisionEncoderDecoderModel, state  # noqa: E402

FIRST = {values["model_type"]: name for name, values in reversed(DECODERS.items())}
"""One case of each architecture."""


def tiny(decoder, **fields):
    config = model_config("vit", decoder)
    config["decoder"] |= fields
    return nnx.jit(lambda: FlaxVisionEncoderDecoderModel(VisionEncoderDecoderConfig.from_dict(config)))()


@pytest.mark.slow
@pytest.mark.parametrize("sinusoidal", [False, True])
def test_distilbert_is_a_bert_without_token_types(sinusoidal):
    config = model_config("vit", "distilbert")
    config["decoder"]["sinusoidal_pos_embds"] = sinusoidal
    config = VisionEncoderDecoderConfig.from_dict(config)
    ours = nnx.jit(lambda: FlaxVisionEncoderDecoderModel(config, rngs=nnx.Rngs(3)))()
    bert = tiny("bert", layer_norm_eps=1e-12)
    nnx.update(bert.encoder, nnx.state(ours.encoder))
    nnx.update(bert.enc_to_dec_proj, nnx.state(ours.enc_to_dec_proj))
    nnx.update(bert.decoder, nnx.state(ours.decoder))
    bert.decoder.token_types.embedding[...] = jnp.zeros_like(bert.decoder.token_types.embedding[...])
    batch = inputs(config.to_dict())
    arguments = (batch.pixel_values, batch.decoder_input_ids, batch.decoder_attention_mask)
    np.testing.assert_allclose(forward(ours, *arguments).logits, forward(bert, *arguments).logits, atol=1e-6, rtol=0)


def test_distilbert_positions_begin_as_sines():
    table = np.asarray(tiny("distilbert", sinusoidal_pos_embds=True).decoder.positions.embedding[...])
    assert table.shape == (40, 24)
    angle = 7 / 10000 ** (4 / 24)
    np.testing.assert_allclose(table[7, 4:6], [np.sin(angle), np.cos(angle)], atol=1e-6)


@pytest.mark.parametrize(
    "decoder",
    [
        pytest.param(name, marks=[] if kind in ("roberta", "trocr") else [pytest.mark.slow])
        for kind, name in FIRST.items()
        if kind != "gpt2"
    ],
)
def test_the_padding_row_begins_as_zeros(decoder):
    model = tiny(decoder)
    table = np.asarray(model.decoder.tokens.embedding[...])
    pad = model.config.decoder.pad_token_id
    assert not table[pad].any()
    assert table[[row for row in range(len(table)) if row != pad]].any(axis=1).all()
    if model.config.decoder.model_type in ("roberta", "xlm-roberta", "camembert"):
        assert not np.asarray(model.decoder.positions.embedding[...])[pad].any()


def test_positions_leave_out_padding():
    decoder = tiny("roberta-untied-pad5").decoder
    ids = jnp.array([[7, 8, 5, 9], [5, 5, 7, 8]])

    def rows(ids, tokens, index):
        return decoder.position_rows(ids, decoder.count_positions(ids, tokens, index))

    np.testing.assert_array_equal(rows(ids, 4, 0), [[6, 7, 5, 8], [5, 5, 6, 7]])
    # transformers takes the padding before for a token.
    np.testing.assert_array_equal(rows(ids[:, :1], 1, 3), [[9], [5]])
    np.testing.assert_array_equal(rows(None, 3, 2), [[8, 9, 10]])
    assert decoder.max_positions == 40 - 5 - 1


def test_forced_tokens():
    model = tiny("bart")
    pixels = inputs(model.config.to_dict()).pixel_values
    options = {"max_length": 6, "eos_token_id": 60, "decoder_start_token_id": 5}
    # BART's own config asks for its end token at the last place.
    assert np.asarray(model.generate(pixels, **options))[:, -1].tolist() == [2, 2, 2]
    free = model.generate(pixels, forced_eos_token_id=None, **options)
    assert np.asarray(free)[:, -1].tolist() != [2, 2, 2]
    options |= {"forced_bos_token_id": 9, "forced_eos_token_id": 4}
    out = model.generate(pixels, return_dict_in_generate=True, **options)
    ids, log_probs = np.asarray(out.sequences), np.asarray(out.token_log_probs)
    assert ids[:, 1].tolist() == [9, 9, 9]
    assert ids[:, -1].tolist() == [4, 4, 4]
    assert (log_probs[:, [0, -1]] == 0).all()
    assert (log_probs[:, 1:-1] < 0).all()
    with pytest.raises(GenerationError, match="forced_eos_token_id = 61 is outside"):
        model.generate(pixels, forced_eos_token_id=[3, 61])


@pytest.mark.parametrize(
    ("decoder", "stored", "older"),
    [
        ("bert-untied-relu", "decoder.cls.predictions.decoder.bias", "decoder.cls.predictions.bias"),
        ("roberta-untied-pad5", "decoder.lm_head.decoder.bias", "decoder.lm_head.bias"),
    ],
)
def test_an_untied_head_has_a_bias_that_is_left_over(decoder, stored, older):
    model = tiny(decoder)
    table = model_table(model.config)
    tensors = checkpoint.to_stored(checkpoint.Weights(state.arrays(model), model.carried), table, "flax")
    tensors[stored] = tensors[stored] + 1
    weights = checkpoint.from_stored(tensors, table, "flax", "here")
    assert (weights.parameters["decoder.head_bias"] == 1).all()
    assert not weights.carried[older].any()
    # Releases before 5 stored one bias, under the older name.
    tensors[older] = tensors.pop(stored)
    weights = checkpoint.from_stored(tensors, table, "flax", "here")
    assert (weights.parameters["decoder.head_bias"] == 1).all()


def test_names_of_tensorflow_conversions_and_other_prefixes():
    folder = FIXTURES / "vit-bert"
    config = VisionEncoderDecoderConfig.from_pretrained(folder)
    tensors, table = checkpoint.read(folder), model_table(config)
    plain = checkpoint.from_stored(tensors, table, "flax", "here").parameters
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma")
        .replace("LayerNorm.bias", "LayerNorm.beta")
        .replace("decoder.bert.", "decoder."): x
        for name, x in tensors.items()
    }
    for name, x in checkpoint.from_stored(renamed, table, "flax", "here").parameters.items():
        np.testing.assert_array_equal(x, plain[name])


@pytest.mark.parametrize(
    ("model_type", "fields", "message"),
    [
        ("bert", {"position_embedding_type": "relative_key"}, "BertConfig.position_embedding_type = 'relative_key'"),
        ("electra", {"position_embedding_type": "relative_key_query"}, "ElectraConfig.position_embedding_type"),
        ("camembert", {"position_embedding_type": "relative_key"}, "CamembertConfig.position_embedding_type"),
        ("bert", {"num_attention_heads": 7}, "BertConfig.num_attention_heads = 7"),
        ("distilbert", {"n_heads": 7}, "DistilBertConfig.n_heads = 7"),
        ("mbart", {"decoder_attention_heads": 7}, "MBartConfig.decoder_attention_heads = 7"),
        ("bart", {"cross_attention_hidden_size": 5}, "BartConfig.cross_attention_hidden_size = 5"),
        ("bert", {"pad_token_id": 40000}, "BertConfig.pad_token_id = 40000"),
        ("roberta", {"pad_token_id": None}, "RobertaConfig.pad_token_id = None"),
        ("xlm-roberta", {"max_position_embeddings": 2}, "XLMRobertaConfig.max_position_embeddings = 2"),
        ("bart", {"num_hidden_layers": 3, "encoder_layers": 4}, "contradicts"),
    ],
)
def test_configs_refuse_what_is_not_implemented(model_type, fields, message):
    with pytest.raises(ConfigError, match=message):
        CONFIGS[model_type].from_dict(fields)
