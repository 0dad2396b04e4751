"""The Flax model against what an independent implementation computed on the reference checkpoints."""

import numpy as np
import pytest

from conversion import checkpoint
from conversion.tables import part_table
from tests.cases import ENCODER_PAIRS, FIXTURES, PAIRS, fixture
from tests.flax_models import forward, stored_gradients
from ved_core.configs.base import read_json
from ved_core.configs.model import ENCODERS
from ved_flax import FlaxVisionEncoderDecoderModel, state
from ved_flax.encoders import build_encoder
from ved_flax.layers.build import Builder

flax_nnx = pytest.importorskip("flax.nnx")
TOLERANCE = 1e-4


def close(ours, reference, tolerance=TOLERANCE):
    np.testing.assert_allclose(np.asarray(ours), reference, atol=tolerance, rtol=0)


@pytest.mark.parametrize("pair", PAIRS)
def test_outputs(pair):
    folder, expected, _ = fixture(pair)
    model = FlaxVisionEncoderDecoderModel.from_pretrained(folder)
    out = forward(
        model,
        expected["pixel_values"],
        expected["decoder_input_ids"],
        expected["decoder_attention_mask"],
        output_attentions=True,
        output_hidden_states=True,
    )
    real = expected["decoder_attention_mask"].astype(bool)
    close(out.encoder_last_hidden_state, expected["encoder_last_hidden_state"])
    close(np.asarray(out.logits)[real], expected["logits"][real])
    close(np.asarray(out.decoder_hidden_states[-1])[real], expected["decoder_hidden_last"][real])
    queries = np.broadcast_to(real[:, None], expected["cross_attention_last"].shape[:3])
    close(np.asarray(out.cross_attentions[-1])[queries], expected["cross_attention_last"][queries])
    close(np.asarray(out.decoder_attentions[-1])[queries], expected["decoder_attention_last"][queries])


@pytest.mark.parametrize("pair", PAIRS)
def test_loss_and_gradients(pair):
    folder, expected, norms = fixture(pair)
    model = FlaxVisionEncoderDecoderModel.from_pretrained(folder)
    out = forward(model, expected["pixel_values"], labels=expected["labels"])
    close(out.loss, expected["loss"])
    close(out.logits, expected["label_logits"])
    gradients = stored_gradients(model, expected["pixel_values"], expected["labels"])
    assert gradients.keys() == {name for name, norm in norms.items() if norm >= 0}
    for name, gradient in gradients.items():
        # A key bias shifts all scores of a row alike: its true gradient is 0, and what is computed is rounding.
        np.testing.assert_allclose(np.linalg.norm(gradient), norms[name], rtol=1e-4, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("pair", PAIRS)
def test_greedy_ids(pair):
    folder, expected, _ = fixture(pair)
    model = FlaxVisionEncoderDecoderModel.from_pretrained(folder)
    np.testing.assert_array_equal(model.generate(expected["pixel_values"], max_new_tokens=15), expected["greedy"])


@pytest.mark.parametrize("pair", ENCODER_PAIRS)
def test_encoder_alone(pair):
    folder, expected, _ = fixture(pair)
    values = read_json(folder / "config.json")["encoder"]
    cfg = ENCODERS[values["model_type"]].from_dict(values)
    table = part_table(cfg, "encoder")
    tensors = {name: x for name, x in checkpoint.read(folder).items() if name.startswith("encoder.")}
    holder = state.abstract(lambda: flax_nnx.Dict(encoder=build_encoder(cfg, Builder(flax_nnx.Rngs(0)))))
    weights = checkpoint.from_stored(tensors, table, state.shapes(holder), "flax", str(folder))
    encoder = state.fill(holder, weights.parameters, np.dtype(np.float32))["encoder"]
    close(encoder(expected["pixel_values"]).last_hidden_state, expected["encoder_last_hidden_state"])


def test_every_fixture_is_listed():
    assert {folder.name for folder in FIXTURES.iterdir() if folder.is_dir()} == {*PAIRS, *ENCODER_PAIRS}
