"""Encoders that take images of any size, in both frameworks, and what their configs refuse."""

import numpy as np
import pytest

from ved_core.configs import BeitConfig, DonutSwinConfig, EncoderConfig, SwinConfig, Swinv2Config
from ved_core.errors import ConfigError


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("encoder", "size"),
    [
        ("beit", (40, 24)),
        ("beit-shared-rectangular", (32, 48)),
        ("swin-positions-1stage", (52, 28)),
        ("donut", (61, 47)),
        ("swinv2", (50, 37)),
        ("dinov2", (40, 24)),
        ("registers", (64, 32)),
    ],
)
def test_other_sizes(encoder, size, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("flax")
    from tests import reference
    from tests.flax_models import encode
    from ved_flax import FlaxVisionEncoderDecoderModel
    from ved_torch import VisionEncoderDecoderModel

    theirs = reference.build(encoder, "gpt2", tmp_path)
    channels = theirs.config.encoder.num_channels
    pixels = np.random.default_rng(0).standard_normal((2, channels, *size)).astype(np.float32)
    asked = {"interpolate_pos_encoding": True} if "positions" in encoder else {}
    with torch.no_grad():
        expected = theirs.encoder(torch.tensor(pixels), **asked).last_hidden_state.numpy()
        on_torch = VisionEncoderDecoderModel.from_pretrained(tmp_path).encode(pixels, **asked).last_hidden_state
    on_flax = encode(FlaxVisionEncoderDecoderModel.from_pretrained(tmp_path), pixels, **asked).last_hidden_state
    np.testing.assert_allclose(on_torch.numpy(), expected, atol=1e-4, rtol=0)
    np.testing.assert_allclose(np.asarray(on_flax), on_torch.numpy(), atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("cls", "fields", "name"),
    [
        (SwinConfig, {"depths": [2, 2]}, "num_heads"),
        (SwinConfig, {"depths": [2, 0, 6, 2]}, "depths"),
        (SwinConfig, {"num_heads": [3, 6, 12, 25]}, "num_heads"),
        (SwinConfig, {"hidden_size": 96}, "hidden_size"),
        (SwinConfig, {"window_size": 0}, "window_size"),
        (DonutSwinConfig, {"use_absolute_embeddings": True}, "use_absolute_embeddings"),
        (Swinv2Config, {"pretrained_window_sizes": [1, 0, 0, 0]}, "pretrained_window_sizes"),
        (Swinv2Config, {"pretrained_window_sizes": [12]}, "pretrained_window_sizes"),
        (Swinv2Config, {"image_size": 16}, "image_size"),
        (BeitConfig, {"layer_scale_init_value": -1.0}, "layer_scale_init_value"),
    ],
)
def test_refused(cls: type[EncoderConfig], fields, name):
    with pytest.raises(ConfigError, match=rf"{cls.__name__}\.{name}"):
        cls.from_dict(fields)


def test_derived_fields_follow_their_sources():
    config = SwinConfig.from_dict({"hidden_size": 768, "num_layers": 4, "num_hidden_layers": 4})
    config.embed_dim = 48
    assert config.hidden_size == config.to_dict()["hidden_size"] == 384
    with pytest.raises(ConfigError, match="hidden_size"):
        config.hidden_size = 768
