"""Text decoders in PyTorch: what only some of them have, and that Flax computes the same."""

from pathlib import Path

import numpy as np
import pytest

from tests import cases

torch = pytest.importorskip("torch")

from tests.reference import perturbed  # noqa: E402
from tests.torch_models import tensors  # noqa: E402
from ved_torch import VisionEncoderDecoderModel  # noqa: E402

EVERYTHING = {"output_attentions": True, "output_hidden_states": True}
FROM_PADDING = ("roberta", "xlm-roberta", "camembert")


def new(decoder: str, noise: bool = False, **fields: object) -> VisionEncoderDecoderModel:
    config = cases.model_config("vit", decoder)
    config["decoder"] |= fields
    model = VisionEncoderDecoderModel(config, generator=torch.Generator().manual_seed(0))
    return (perturbed(model) if noise else model).eval()


def pixels(decoder: str) -> torch.Tensor:
    return tensors(cases.model_config("vit", decoder))["pixel_values"]


@pytest.mark.parametrize("decoder", ["camembert", "distilbert", "electra"])
def test_padding_inside_agrees_with_flax(decoder: str, tmp_path: Path) -> None:
    pytest.importorskip("flax")
    from tests.flax_models import forward
    from ved_flax import FlaxVisionEncoderDecoderModel

    model = new(decoder, noise=True)
    model.save_pretrained(tmp_path)
    flax = FlaxVisionEncoderDecoderModel.from_pretrained(tmp_path)
    batch = cases.inputs(cases.model_config("vit", decoder))
    ids = batch.decoder_input_ids
    ids[1, 3] = model.config.decoder.pad_token_id
    wanted = forward(flax, batch.pixel_values, ids, batch.decoder_attention_mask, **EVERYTHING)
    with torch.no_grad():
        found = model(
            torch.from_numpy(batch.pixel_values),
            torch.from_numpy(ids),
            torch.from_numpy(batch.decoder_attention_mask),
            **EVERYTHING,
        )
    real = batch.decoder_attention_mask == 1
    np.testing.assert_allclose(found.logits.numpy()[real], np.asarray(wanted.logits)[real], rtol=0, atol=2e-5)
    for mine, other in zip(found.decoder_hidden_states, wanted.decoder_hidden_states, strict=True):
        np.testing.assert_allclose(mine.numpy()[real], np.asarray(other)[real], rtol=0, atol=2e-5)
    for key in ("decoder_attentions", "cross_attentions"):
        for mine, other in zip(getattr(found, key), getattr(wanted, key), strict=True):
            rows = np.broadcast_to(real[:, None], mine.shape[:3])
            np.testing.assert_allclose(mine.numpy()[rows], np.asarray(other)[rows], rtol=0, atol=2e-5)
    options = {"max_length": 10, "eos_token_id": 60, "forced_bos_token_id": 7, "forced_eos_token_id": [9, 5]}
    mine, other = (m.generate(batch.pixel_values, return_dict_in_generate=True, **options) for m in (model, flax))
    np.testing.assert_array_equal(mine.sequences.numpy(), np.asarray(other.sequences))
    np.testing.assert_allclose(mine.token_log_probs.numpy(), np.asarray(other.token_log_probs), rtol=0, atol=2e-5)


def test_forced_tokens() -> None:
    model, images = new("bart"), pixels("bart")
    options = {"max_length": 6, "eos_token_id": 60, "decoder_start_token_id": 5}
    # BART's own config asks for its end token at the last place.
    assert model.generate(images, **options)[:, -1].tolist() == [2, 2, 2]
    assert model.generate(images, forced_eos_token_id=None, **options)[:, -1].tolist() != [2, 2, 2]
    options |= {"forced_bos_token_id": 9, "forced_eos_token_id": 4}
    out = model.generate(images, return_dict_in_generate=True, **options)
    assert out.sequences[:, 1].tolist() == [9, 9, 9]
    assert out.sequences[:, -1].tolist() == [4, 4, 4]
    assert not out.token_log_probs[:, [0, -1]].any()
    assert (out.token_log_probs[:, 1:-1] < 0).all()


@pytest.mark.parametrize("decoder", [name for name in cases.DECODERS if cases.model_type(name) != "gpt2"])
def test_the_padding_row_begins_as_zeros_and_look_ups_leave_it_alone(decoder: str) -> None:
    model = new(decoder)
    pad = model.config.decoder.pad_token_id
    tables = [model.decoder.tokens] + ([model.decoder.positions] if cases.model_type(decoder) in FROM_PADDING else [])
    for table in tables:
        assert not table.weight[pad].any()
        assert table.weight[[row for row in range(len(table.weight)) if row != pad]].any(dim=1).all()
        table(torch.tensor([[pad, 9]])).sum().backward()
        assert not table.weight.grad[pad].any()
        assert table.weight.grad[9].all()


def test_distilbert_positions_begin_as_sines() -> None:
    table = new("distilbert", sinusoidal_pos_embds=True).decoder.positions.weight
    angle = 7 / 10000 ** (4 / 24)
    np.testing.assert_allclose(table.detach()[7, 4:6], [np.sin(angle), np.cos(angle)], atol=1e-6)
    assert table.requires_grad


@pytest.mark.parametrize("decoder", ["bert", "bert-untied-relu", "distilbert", "electra-untied"])
@pytest.mark.parametrize("entries", [50, 70])
def test_the_heads_bias_follows_the_vocabulary(decoder: str, entries: int, tmp_path: Path) -> None:
    model, images = new(decoder, noise=True), pixels(decoder)
    ids = torch.tensor([[2, 5, 9]] * len(images))
    with torch.no_grad():
        before = model(images, ids).logits
        model.resize_token_embeddings(entries)
        after = model(images, ids).logits
    assert after.shape[-1] == entries
    torch.testing.assert_close(after[..., :50], before[..., :50])
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        again = VisionEncoderDecoderModel.from_pretrained(tmp_path)(images, ids).logits
    torch.testing.assert_close(again, after)
