"""BEiT (arXiv:2106.08254)."""

import dataclasses
from typing import ClassVar

from ved_core.configs.encoder import PlainEncoderConfig, ramp
from ved_core.configs.fields import flag, non_negative, probability, size


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class BeitConfig(PlainEncoderConfig):
    """A ViT with relative positions and scaled layers, for images of any size."""

    model_type: ClassVar[str] = "beit"
    architecture: ClassVar[str] = "BeitModel"
    any_size: ClassVar[bool] = True

    vocab_size: int = size(8192)
    intermediate_size: int = size(3072)
    use_mask_token: bool = flag(False)
    use_absolute_position_embeddings: bool = flag(False)
    use_relative_position_bias: bool = flag(False)
    use_shared_relative_position_bias: bool = flag(False)
    layer_scale_init_value: float = non_negative(0.1)
    drop_path_rate: float = probability(0.1)
    use_mean_pooling: bool = flag(True)
    """Pooling the mean goes with normalising it in place of the tokens."""

    @property
    def has_positions(self) -> bool:
        return self.use_absolute_position_embeddings

    @property
    def has_last_norm(self) -> bool:
        return not self.use_mean_pooling

    @property
    def key_bias(self) -> bool:
        return False

    @property
    def mlp_size(self) -> int:
        return self.intermediate_size

    @property
    def layer_scale(self) -> float | None:
        return self.layer_scale_init_value or None

    @property
    def drop_paths(self) -> list[float]:
        return ramp(self.drop_path_rate, self.num_hidden_layers)

    @property
    def distances(self) -> int:
        """Entries of a relative position table: every offset between two patches, and three for CLS."""
        rows, columns = self.grid
        return (2 * rows - 1) * (2 * columns - 1) + 3
