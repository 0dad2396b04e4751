"""mBART's decoder and its vocabulary head."""

from conversion.rules import Rows, norm
from conversion.tables import bart
from ved_core.configs import MBartConfig

PREFIXES = bart.PREFIXES


def rows(cfg: MBartConfig) -> Rows:
    """The decoder's tensors, layer by layer."""
    yield from bart.rows(cfg)
    yield from norm("model.decoder.layer_norm", "norm", cfg.d_model)
