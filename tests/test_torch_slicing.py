"""What CPUs compute in other ways, slice by slice and filled up: what comes out is the same."""

import pytest

torch = pytest.importorskip("torch")

from tests.cases import inputs, model_config  # noqa: E402
from tests.reference import perturbed  # noqa: E402
from ved_core import slicing as images  # noqa: E402
from ved_torch import VisionEncoderDecoderModel  # noqa: E402
from ved_torch.layers import attention, linear, slicing  # noqa: E402
from ved_torch.layers.cache import KeyValue  # noqa: E402

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


@pytest.mark.parametrize("case", ["vit", "dinov2-swiglu"], indirect=True)
@pytest.mark.parametrize("number", [1, 3])
def test_rows_are_filled_up(case, calls, monkeypatch, number):
    """Of images of 17 tokens; where nothing else is asked for, and no dropout would draw for more of them."""
    model, pixels = case

    def rests():
        found = {rows % 4 for rows in calls}
        calls.clear()
        return found

    with torch.no_grad():
        states = torch.randn(number, 17, model.decoder.blocks[0].cross_attn.k.in_features)
        plain = model.encode(pixels[:number]).last_hidden_state, model.decoder.cross_kv(states)
        assert rests() == {17 * number % 4}
        monkeypatch.setattr(slicing, "FEW", 16)
        filled = model.encode(pixels[:number]).last_hidden_state, model.decoder.cross_kv(states)
        assert rests() == {0}
        assert filled[0].is_contiguous()
        torch.testing.assert_close(filled, plain, atol=1e-5, rtol=1e-5)
        model.encode(pixels[:1], output_hidden_states=True)
        assert rests() == {1}
        model.encode(pixels[:1], output_attentions=True)
        assert rests() == {1}
        model.encode(torch.cat([pixels, pixels])[:4])
        assert set(calls) == {4 * 17}
        calls.clear()
        model.encoder.blocks[1].mlp.down = torch.nn.Sequential(model.encoder.blocks[1].mlp.down)
        model.encode(pixels[:1])
        assert rests() == {1}, "what stands in for a product may not be one of rows"
        model.train().encode(pixels[:1])
        assert rests() == {1}


@pytest.mark.parametrize("case", ["beit", "beit-bare-1layer"], indirect=True)
def test_rows_beside_a_bias_and_without_a_last_norm(case, monkeypatch):
    model, pixels = case
    with torch.no_grad():
        plain = model.encode(pixels).last_hidden_state
        monkeypatch.setattr(slicing, "FEW", 0)
        found = model.encode(pixels).last_hidden_state
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)
    assert found.is_contiguous()


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


@pytest.mark.parametrize(("queries", "fused"), [(1, 0), (4, 0), (5, 1)])
@pytest.mark.parametrize("biased", [False, True])
def test_few_queries_of_many_keys(monkeypatch, queries, fused, biased):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, queries, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    bias = torch.randn(2, 1, queries, 7) if biased else None
    calls = []
    kernel = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", lambda *a, **k: calls.append(a) or kernel(*a, **k))
    with torch.no_grad():
        expected = attention.attend(q, KeyValue(k, v), bias, 0.25)
        assert len(calls) == 1
        monkeypatch.setattr(attention, "MANY_NUMBERS", k.numel())
        found = attention.attend(q, KeyValue(k, v), bias, 0.25)
        assert len(calls) == 1 + fused
        assert found[1] is None
        torch.testing.assert_close(found, expected)
        apart = k.transpose(1, 2).contiguous().transpose(1, 2)
        attention.attend(q, KeyValue(apart, v), bias, 0.25)
        assert len(calls) == 2 + fused, "keys of a head that do not lie together are the kernel's"
    attention.attend(q, KeyValue(k, v), bias, 0.25)
    assert len(calls) == 3 + fused, "gradients are the kernel's"


@pytest.mark.parametrize("case", ["vit"], indirect=True)
def test_every_heads_keys_of_an_image_lie_together(case):
    """For the steps to come; not where gradients are wanted, which would be copied, too."""
    model, _ = case
    states = torch.randn(2, 17, model.decoder.blocks[0].cross_attn.k.in_features)
    expected = model.decoder.cross_kv(states)
    with torch.no_grad():
        found = model.decoder.cross_kv(states)
    torch.testing.assert_close(found, expected)
    assert all(x.is_contiguous() for kv in found for x in kv)
    assert not any(x.is_contiguous() for kv in expected for x in kv)
