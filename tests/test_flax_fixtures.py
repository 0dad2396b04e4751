"""The Flax model against what an independent implementation computed on the reference checkpoints."""

import numpy as np
import pytest

from tests.cases import PAIRS, fixture
from tests.flax_models import forward, stored_gradients
from ved_flax import FlaxVisionEncoderDecoderModel

flax_nnx = pytest.importorskip("flax.nnx")
TOLERANCE = 1e-4
AGAIN = ("swin-bert",)
"""Pairs of which both halves are in other pairs too: left to the full run."""
TRAINED = ("donutswin-mbart", "vit-gpt2")
"""Pairs whose gradients are looked at in the short run."""
every_pair = pytest.mark.parametrize(
    "pair", [pytest.param(pair, marks=pytest.mark.slow if pair in AGAIN else ()) for pair in PAIRS]
)


def close(ours, reference, tolerance=TOLERANCE):
    np.testing.assert_allclose(np.asarray(ours), reference, atol=tolerance, rtol=0)


@every_pair
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


@pytest.mark.parametrize(
    "pair", [pytest.param(pair, marks=() if pair in TRAINED else pytest.mark.slow) for pair in PAIRS]
)
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
