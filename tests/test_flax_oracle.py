"""The Flax model against transformers' PyTorch classes, live, on every architecture's odd corners."""

import numpy as np
import pytest

from tests import reference
from tests.cases import REFERENCE_FAILS, inputs, model_config, models
from tests.flax_models import encode, forward
from ved_core.configs import fields

torch = pytest.importorskip("torch")
pytest.importorskip("flax")
from ved_flax import FlaxVisionEncoderDecoderModel  # noqa: E402
from ved_torch import VisionEncoderDecoderModel  # noqa: E402

pytestmark = pytest.mark.oracle


def close(ours, theirs, tolerance, real=None):
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == theirs.shape
    if real is not None:
        # Rows of padded queries are not meaningful.
        axis = 2 if ours.ndim == 4 else 1
        ours, theirs = (np.moveaxis(x, axis, 1)[real] for x in (ours, theirs))
    np.testing.assert_allclose(ours, theirs, atol=tolerance, rtol=0)


LAYERS = ("encoder_hidden_states", "encoder_attentions", "decoder_hidden_states", "decoder_attentions")
LAYERS += ("cross_attentions",)


@pytest.mark.parametrize(("encoder", "decoder"), models())
def test_agrees_with_torch_and_transformers(encoder, decoder, tmp_path):
    folder = tmp_path / "theirs"
    theirs = None
    if {encoder, decoder} & REFERENCE_FAILS.keys():
        reference.perturbed(VisionEncoderDecoderModel(model_config(encoder, decoder))).save_pretrained(folder)
    else:
        theirs = reference.build(encoder, decoder, folder)
    batch = inputs(model_config(encoder, decoder))
    model = FlaxVisionEncoderDecoderModel.from_pretrained(folder)
    on_torch = VisionEncoderDecoderModel.from_pretrained(folder)
    wanted = {"output_hidden_states": True, "output_attentions": True}
    arguments = (batch.pixel_values, batch.decoder_input_ids, batch.decoder_attention_mask, batch.labels)
    out = forward(model, *arguments, **wanted)
    with torch.no_grad():
        other = on_torch(*arguments, **wanted)
    real = batch.decoder_attention_mask.astype(bool)
    for expected, tolerance in [(other, 2e-5)] + ([(reference.outputs(theirs, batch), 1e-4)] if theirs else []):
        close(out.encoder_last_hidden_state, expected.encoder_last_hidden_state, tolerance)
        close(out.logits, expected.logits, tolerance, real)
        close(out.loss, expected.loss, tolerance)
        for name in LAYERS:
            mask = None if name.startswith("encoder") else real
            pairs = list(zip(getattr(out, name), getattr(expected, name), strict=True))
            assert pairs
            for mine, one in pairs:
                close(mine, one, tolerance, mask)

    if decoder != "gpt2" or encoder == "vit":
        found = model.generate(batch.pixel_values, max_new_tokens=12)
        np.testing.assert_array_equal(found, on_torch.generate(batch.pixel_values, max_new_tokens=12))
        if theirs is not None:
            np.testing.assert_array_equal(found, reference.greedy(theirs, batch, max_new_tokens=12))
    if theirs is None:
        return

    model.save_pretrained(tmp_path / "ours")
    again, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    before, after = theirs.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("encoder", ["vit", "deit"])
def test_interpolated_positions(encoder, tmp_path):
    theirs = reference.build(encoder, "gpt2", tmp_path)
    model = FlaxVisionEncoderDecoderModel.from_pretrained(tmp_path)
    for size in ((48, 48), (40, 16), (24, 72)):
        pixels = np.random.default_rng(0).standard_normal((2, 3, *size)).astype(np.float32)
        with torch.no_grad():
            expected = theirs.encoder(torch.tensor(pixels), interpolate_pos_encoding=True).last_hidden_state
        close(encode(model, pixels, interpolate_pos_encoding=True).last_hidden_state, expected, 1e-4)
    options = {"interpolate_pos_encoding": True, "max_new_tokens": 3}
    expected = theirs.generate(torch.tensor(pixels), do_sample=False, **options)
    np.testing.assert_array_equal(model.generate(pixels, **options), expected)


@pytest.mark.parametrize("name", fields.ACTIVATIONS)
def test_activations(name):
    from transformers.activations import ACT2FN

    from ved_flax.layers.activations import ACTIVATIONS

    x = np.linspace(-12, 12, 1001, dtype=np.float32)
    np.testing.assert_allclose(ACTIVATIONS[name](x), ACT2FN[name](torch.tensor(x)).numpy(), atol=1e-6, rtol=1e-6)
