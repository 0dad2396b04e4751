"""What every image encoder's config has, and what those of one width throughout share."""

import dataclasses
from typing import ClassVar

from ved_core.configs.base import Config
from ved_core.configs.fields import (
    activation,
    as_pair,
    depth,
    non_negative,
    positive,
    probability,
    size,
    size_or_pair,
)


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class EncoderConfig(Config):
    """An encoder of patches."""

    image_size: int | list[int] = size_or_pair(224)
    patch_size: int | list[int] = size_or_pair(16)
    num_channels: int = size(3)
    hidden_act: str = activation("gelu")
    hidden_dropout_prob: float = probability(0.0)
    attention_probs_dropout_prob: float = probability(0.0)
    initializer_range: float = non_negative(0.02)
    layer_norm_eps: float = positive(1e-12)

    def check(self) -> None:
        super().check()
        if not all(self.grid):
            raise self.error("patch_size", self.patch_size, f"is larger than image_size = {self.image_size}")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and per row of an image of `image_size`."""
        (height, width), (patch_height, patch_width) = as_pair(self.image_size), as_pair(self.patch_size)
        return height // patch_height, width // patch_width

    # What the output's tokens show ------------------------------------------------------------------------------------

    fills_cells: ClassVar[bool] = False
    """Whether a last cell that the image does not fill has a token."""

    @property
    def leading_tokens(self) -> int:
        """Tokens of the output, before those of cells, that have no place in the image."""
        return 0

    @property
    def cell(self) -> tuple[int, int]:
        """Height and width in pixels of what one token of the output stands for."""
        height, width = as_pair(self.patch_size)
        return height, width


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class PlainEncoderConfig(EncoderConfig):
    """Pre-norm blocks of one width. What an architecture's blocks have and have not, its properties say."""

    extra_tokens: ClassVar[int] = 1
    """Tokens before the patches that have positions."""
    any_size: ClassVar[bool] = False
    """Whether positions follow every image's size unasked."""
    antialias: ClassVar[bool] = False
    """Whether resized positions are low-pass filtered."""

    hidden_size: int = size(768)
    num_hidden_layers: int = depth(12)
    num_attention_heads: int = size(12)

    def check(self) -> None:
        super().check()
        if self.hidden_size % self.num_attention_heads:
            raise self.error(
                "num_attention_heads", self.num_attention_heads, f"does not divide hidden_size = {self.hidden_size}"
            )

    @property
    def leading_tokens(self) -> int:
        return self.extra_tokens

    @property
    def has_positions(self) -> bool:
        return True

    @property
    def positions(self) -> int:
        """Tokens that have positions, of an image of `image_size`."""
        rows, columns = self.grid
        return self.extra_tokens + rows * columns

    @property
    def has_last_norm(self) -> bool:
        """Whether the last block's output is normalised."""
        return True

    @property
    def query_bias(self) -> bool:
        """Whether queries and values have a bias."""
        return True

    @property
    def key_bias(self) -> bool:
        return self.query_bias

    @property
    def mlp_size(self) -> int:
        """Width of the feed-forward layers."""
        return 4 * self.hidden_size

    @property
    def gated_mlp(self) -> bool:
        return False

    @property
    def block_dropout(self) -> float:
        """Dropout of what each half of a block adds."""
        return self.hidden_dropout_prob

    @property
    def layer_scale(self) -> float | None:
        """Initial value of the factors on what each half of a block adds; None without such factors."""
        return None

    @property
    def drop_paths(self) -> list[float]:
        """Per block, the probability of skipping each of its halves."""
        return [0.0] * self.num_hidden_layers


def ramp(last: float, blocks: int) -> list[float]:
    """Probabilities that rise evenly from 0 in the first block to `last` in the last."""
    return [last * i / max(blocks - 1, 1) for i in range(blocks)]
