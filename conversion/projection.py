"""The projection between encoder and decoder, kept beside a decoder that was taken out of its model."""

from pathlib import Path

from conversion.formats import FORMATS
from conversion.names import listed
from conversion.rules import Row
from conversion.tables import projection_rows
from conversion.tensors import Tensor
from ved_core.configs import VisionEncoderDecoderConfig
from ved_core.errors import CheckpointError

PROJECTION_FILE = "enc_to_dec_proj.safetensors"
"""No other library's decoder has a place for it in its weights."""
NAMES = {"enc_to_dec_proj.weight", "enc_to_dec_proj.bias"}


def read_projection(folder: Path) -> dict[str, Tensor]:
    """Weight and bias of enc_to_dec_proj by their stored names, where the folder has them; else nothing. Raises
    CheckpointError where the file is damaged."""
    path = folder / PROJECTION_FILE
    if not path.is_file():
        return {}
    kept = FORMATS["safetensors"].read(path)
    if kept.keys() != NAMES:
        raise CheckpointError(f"{path}: should hold {listed(sorted(NAMES))}, and holds {listed(sorted(kept))}")
    return kept


def fitting(kept: dict[str, Tensor], config: VisionEncoderDecoderConfig) -> dict[str, Tensor]:
    """What was kept, where it is of the widths of `config`; else nothing."""
    rows = [row for row in projection_rows(config) if isinstance(row, Row)]
    return kept if kept and all(kept[row.stored].shape == row.shape for row in rows) else {}
