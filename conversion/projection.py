"""The projection between encoder and decoder, kept beside a decoder that was taken out of its model."""

from pathlib import Path

from conversion.formats import FORMATS
from conversion.names import listed
from conversion.rules import Row, linear
from conversion.tensors import Tensor
from ved_core.configs import VisionEncoderDecoderConfig
from ved_core.errors import CheckpointError

PROJECTION_FILE = "enc_to_dec_proj.safetensors"
"""No other library's decoder has a place for it in its weights."""


def read_projection(folder: Path, config: VisionEncoderDecoderConfig | None = None) -> dict[str, Tensor]:
    """Weight and bias of enc_to_dec_proj by their stored names, where the folder has them and they fit the `config`;
    else nothing. Raises CheckpointError where the file is damaged."""
    path = folder / PROJECTION_FILE
    if not path.is_file():
        return {}
    kept = FORMATS["safetensors"].read(path)
    names = {row.stored for row in linear("enc_to_dec_proj", "") if isinstance(row, Row)}
    if kept.keys() != names:
        raise CheckpointError(f"{path}: should hold {listed(sorted(names))}, and holds {listed(sorted(kept))}")
    fits = config is None or kept["enc_to_dec_proj.weight"].shape == projection_shape(config)
    return kept if fits else {}


def projection_shape(config: VisionEncoderDecoderConfig) -> tuple[int, int]:
    """The shape of its weight as it is stored, (decoder's width, encoder's width)."""
    return config.decoder.hidden_size, config.encoder.hidden_size
