"""Products on oneDNN's kernels, and the decoder's matrices that are reordered for them."""

import copy
import pickle
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from tests import cases, torch_models  # noqa: E402, F401  (which sets the threads)
from ved_torch import VisionEncoderDecoderModel  # noqa: E402
from ved_torch.layers import linear  # noqa: E402
from ved_torch.layers.linear import Linear, product  # noqa: E402

pytestmark = pytest.mark.skipif(not linear.AVAILABLE, reason="this build of torch has not oneDNN's products")


@pytest.fixture
def model() -> VisionEncoderDecoderModel:
    return VisionEncoderDecoderModel.from_pretrained(cases.READER)


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))


def outputs(model: VisionEncoderDecoderModel, pixels: torch.Tensor, **options: int) -> torch.Tensor:
    """The model's own probabilities of what it generates."""
    return model.generate(pixels, max_new_tokens=6, return_dict_in_generate=True, **options).token_log_probs


@pytest.mark.parametrize("shape", [(1, 40), (3, 1, 40), (2, 5, 40), (0, 4, 40)])
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_those_of_torch(shape: tuple[int, ...], bias: bool) -> None:
    module = torch.nn.Linear(40, 24, bias=bias)
    x = torch.randn(shape)
    with torch.no_grad():
        expected = F.linear(x, module.weight, module.bias)
        for blocked in (None, linear.reordered(module.weight)):
            torch.testing.assert_close(product(x, module.weight, module.bias, blocked), expected, atol=1e-5, rtol=1e-5)
        swapped = product(x.transpose(0, -1).contiguous().transpose(0, -1), module.weight, module.bias)
        torch.testing.assert_close(swapped, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_is_the_same_without_them(
    model: VisionEncoderDecoderModel, pixels: torch.Tensor, beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = outputs(model, pixels, num_beams=beams)
    monkeypatch.setattr(linear, "AVAILABLE", False)
    torch.testing.assert_close(outputs(model, pixels, num_beams=beams), found, atol=1e-5, rtol=1e-5)


def through_data(weight: torch.Tensor) -> None:
    weight.data.mul_(-1)


def in_place(weight: torch.Tensor) -> None:
    with torch.no_grad():
        weight.mul_(-1)


def assigned(weight: torch.Tensor) -> None:
    weight.data = -weight.data


@pytest.mark.parametrize("change", [through_data, in_place, assigned])
def test_weights_that_change_are_reordered_again(
    model: VisionEncoderDecoderModel, pixels: torch.Tensor, change: Callable[[torch.Tensor], None]
) -> None:
    before = outputs(model, pixels)
    for part in (model.decoder.blocks[0].mlp.up, model.decoder.tokens):
        change(part.weight)
    found = outputs(model, pixels)
    model.decoder.packing.clear()
    assert not torch.equal(found, before)
    torch.testing.assert_close(found, outputs(model, pixels))


def test_reordered_weights_are_no_state(model: VisionEncoderDecoderModel, pixels: torch.Tensor) -> None:
    names, found = set(model.state_dict()), outputs(model, pixels)
    assert set(model.state_dict()) == names
    assert all(part.blocked is None for part in model.modules() if isinstance(part, Linear))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(outputs(other, pixels), found)


def test_a_single_image_is_read_without_them_at_first(
    model: VisionEncoderDecoderModel, pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    packing, pack = model.decoder.packing, model.decoder.pack
    reordered: list[int] = []
    monkeypatch.setattr(model.decoder, "pack", lambda: (reordered.append(packing.patience), pack()))
    packing.patience = 9
    found = outputs(model, pixels[:1], min_new_tokens=6)
    assert (len(packing), packing.patience) == (0, 3)
    torch.testing.assert_close(outputs(model, pixels[:1], min_new_tokens=6), found)
    assert len(packing)
    assert reordered == [0], "once, in the middle of the call"
    assert len(list(model.stream(pixels[:1], max_new_tokens=6, min_new_tokens=6))) == 6
    assert reordered == [0, 0], "once a call, however many its chunks"


def test_a_half_precision_model_has_none(pixels: torch.Tensor) -> None:
    model = VisionEncoderDecoderModel.from_pretrained(cases.READER, dtype="bfloat16")
    model.generate(pixels.bfloat16(), max_new_tokens=3)
    assert not len(model.decoder.packing)
    model.float().generate(pixels, max_new_tokens=3)
    assert len(model.decoder.packing)
    model.bfloat16().generate(pixels.bfloat16(), max_new_tokens=3)
    assert not len(model.decoder.packing)


def test_autocast_keeps_its_dtype(model: VisionEncoderDecoderModel, pixels: torch.Tensor) -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert (
            model.decoder.blocks[0].mlp.up(torch.randn(1, 1, model.config.decoder.hidden_size)).dtype is torch.bfloat16
        )
        model.generate(pixels, max_new_tokens=3)
