"""Encoders that work slice by slice: what comes out is the same."""

import pytest

torch = pytest.importorskip("torch")

from tests.cases import inputs, model_config  # noqa: E402
from tests.reference import perturbed  # noqa: E402
from ved_core import slicing as images  # noqa: E402
from ved_torch import VisionEncoderDecoderModel  # noqa: E402
from ved_torch.layers import linear, slicing  # noqa: E402

pytestmark = pytest.mark.skipif(not linear.AVAILABLE, reason="this build of torch has not oneDNN's products")


@pytest.fixture(params=["vit", "donut", "swinv2", "dinov2-swiglu"])
def case(request):
    config = model_config(request.param, "gpt2")
    return perturbed(VisionEncoderDecoderModel(config)).eval(), torch.from_numpy(inputs(config).pixel_values)


@pytest.fixture
def calls(monkeypatch):
    """What oneDNN was given: rows of each product."""
    found = []
    product = linear.product
    monkeypatch.setattr(linear, "product", lambda x, *rest: found.append(x.shape[:-1].numel()) or product(x, *rest))
    return found


def test_rows_in_slices(case, calls, monkeypatch):
    """Windows and their masks, and hidden activations; the last slice is smaller."""
    model, pixels = case
    with torch.no_grad():
        whole = model.encode(pixels).last_hidden_state
        most, _ = max(calls), calls.clear()
        monkeypatch.setattr(slicing, "LARGE", 0)
        monkeypatch.setattr(slicing, "SLICE", 1200)
        torch.testing.assert_close(model.encode(pixels).last_hidden_state, whole, atol=1e-5, rtol=1e-5)
    assert min(calls) < most
    assert all(part.blocked is None for part in model.modules() if isinstance(part, linear.Linear))


@pytest.mark.parametrize("case", ["vit", "donut"], indirect=True)
def test_gradients_want_the_whole(case, calls, monkeypatch):
    model, pixels = case
    model.encode(pixels)
    whole = calls.copy()
    calls.clear()
    monkeypatch.setattr(slicing, "LARGE", 0)
    monkeypatch.setattr(slicing, "SLICE", 1200)
    model.encode(pixels).last_hidden_state.sum().backward()
    assert calls == whole


@pytest.mark.parametrize("case", ["donut"], indirect=True)
def test_a_traced_program_takes_any_batch(case):
    model, pixels = case

    class Tokens(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = model.encoder

        def forward(self, pixels):
            return self.encoder(pixels).last_hidden_state

    with torch.no_grad():
        shapes = {"pixels": {0: torch.export.Dim("batch", min=1)}}
        program = torch.export.export(Tokens(), (pixels,), dynamic_shapes=shapes).module()
        torch.testing.assert_close(program(pixels[:2]), Tokens()(pixels[:2]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", ["vit", "dinov2-swiglu"], indirect=True)
def test_no_images_at_all(case):
    model, _ = case
    with torch.no_grad():
        assert len(model.decoder.blocks[0].mlp(torch.zeros(0, 3, model.config.decoder.hidden_size))) == 0


@pytest.mark.parametrize("case", ["vit"], indirect=True)
@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_images_in_slices(case, monkeypatch, at_once):
    model, pixels = case
    sizes = []
    encoder = model.encoder.forward
    with torch.no_grad():
        whole = model.encode(pixels).last_hidden_state
        monkeypatch.setattr(images, "AT_ONCE", at_once * pixels[0].numel())
        monkeypatch.setattr(model.encoder, "forward", lambda x, **rest: sizes.append(len(x)) or encoder(x, **rest))
        torch.testing.assert_close(model.encode(pixels).last_hidden_state, whole, atol=1e-5, rtol=1e-5)
    assert sizes == {1: [1, 1, 1], 2: [2, 1], 3: [3]}[at_once]
    model.encode(pixels)
    assert sizes[-1] == 3, "gradients are of the whole batch"
