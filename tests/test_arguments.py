"""What a model's methods are given, checked before anything is computed; all odd arguments are in `tests.torture`."""

import numpy as np
import pytest

from tests.torture.arguments import IDS, PIXELS, cases, model, tried


@pytest.mark.parametrize("framework", ["flax", "torch"])
def test_odd_arguments_are_refused_before_anything_is_compiled(framework):
    pytest.importorskip(framework)
    refused = [case for case in cases(framework) if case[2]]
    assert len(refused) > 80
    assert [outcome for case in refused if (outcome := tried(framework, case)).verdict != "refused"] == []


def test_compiled_flax_functions_give_nan_for_what_is_no_token():
    jax = pytest.importorskip("jax")
    m = model("flax")
    loss = jax.jit(lambda ids, labels: m(PIXELS, ids, labels=labels).loss)
    ids = IDS.astype(np.int32)
    assert np.isfinite(loss(ids, ids))
    for value in (-1, 61):
        wrong = np.where(ids == 11, value, ids)
        assert np.isnan(loss(ids, wrong))
        assert np.isnan(loss(wrong, ids))


def test_torch_looks_at_no_values_where_there_are_none():
    torch = pytest.importorskip("torch")
    m = model("torch")
    pixels, ids = torch.as_tensor(PIXELS), torch.as_tensor(IDS)
    whole = m(pixels, ids).logits
    compiled = torch.compile(m, backend="eager")(pixels, ids).logits
    torch.testing.assert_close(compiled, whole)
    mapped = torch.func.vmap(lambda pixels: m(pixels[None], ids[:1]).logits[0], randomness="same")(pixels)
    torch.testing.assert_close(mapped[0], whole[0], rtol=1e-4, atol=1e-4)
