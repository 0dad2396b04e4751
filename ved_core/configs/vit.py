"""ViT (arXiv:2010.11929) and DeiT (arXiv:2012.12877)."""

import dataclasses
from typing import ClassVar

from ved_core.configs.base import Config
from ved_core.configs.fields import (
    activation,
    as_pair,
    depth,
    flag,
    non_negative,
    positive,
    probability,
    size,
    size_or_pair,
)


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class ViTConfig(Config):
    """A plain vision Transformer with a CLS token and learned positions."""

    model_type: ClassVar[str] = "vit"
    extra_tokens: ClassVar[int] = 1

    hidden_size: int = size(768)
    num_hidden_layers: int = depth(12)
    num_attention_heads: int = size(12)
    intermediate_size: int = size(3072)
    hidden_act: str = activation("gelu")
    hidden_dropout_prob: float = probability(0.0)
    attention_probs_dropout_prob: float = probability(0.0)
    initializer_range: float = non_negative(0.02)
    layer_norm_eps: float = positive(1e-12)
    image_size: int | list[int] = size_or_pair(224)
    patch_size: int | list[int] = size_or_pair(16)
    num_channels: int = size(3)
    qkv_bias: bool = flag(True)

    def check(self) -> None:
        super().check()
        if self.hidden_size % self.num_attention_heads:
            raise self.error(
                "num_attention_heads", self.num_attention_heads, f"does not divide hidden_size = {self.hidden_size}"
            )
        if not all(self.grid):
            raise self.error("patch_size", self.patch_size, f"is larger than image_size = {self.image_size}")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and per row of an image of `image_size`."""
        (height, width), (patch_height, patch_width) = as_pair(self.image_size), as_pair(self.patch_size)
        return height // patch_height, width // patch_width


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class DeiTConfig(ViTConfig):
    """ViT with a second extra token, the distillation token, behind CLS."""

    model_type: ClassVar[str] = "deit"
    extra_tokens: ClassVar[int] = 2
