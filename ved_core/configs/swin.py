"""Swin (arXiv:2103.14030), its Donut variant (arXiv:2111.15664) and Swin V2 (arXiv:2111.09883)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from ved_core.configs.encoder import EncoderConfig, ramp
from ved_core.configs.fields import (
    LARGEST_SIZE,
    MOST_LAYERS,
    as_pair,
    flag,
    positive,
    probability,
    size,
    size_or_pair,
    sizes,
)


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class SwinConfig(EncoderConfig):
    """Stages of attention within shifted windows; between stages, four neighbours become one token twice as wide."""

    model_type: ClassVar[str] = "swin"
    architecture: ClassVar[str] = "SwinModel"
    aliases: ClassVar[dict[str, str]] = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}
    derived: ClassVar[tuple[str, ...]] = ("hidden_size", "num_layers")
    """What files state beside the fields that determine it."""
    fills_cells: ClassVar[bool] = True
    has_last_norm: ClassVar[bool] = True

    patch_size: int | list[int] = size_or_pair(4)
    embed_dim: int = size(96)
    depths: list[int] = sizes([2, 2, 6, 2])
    num_heads: list[int] = sizes([3, 6, 12, 24])
    window_size: int = size(7)
    mlp_ratio: float = positive(4.0)
    qkv_bias: bool = flag(True)
    drop_path_rate: float = probability(0.1)
    use_absolute_embeddings: bool = flag(False)
    layer_norm_eps: float = positive(1e-5)

    def check(self) -> None:
        super().check()
        if sum(self.depths) > MOST_LAYERS:
            raise self.error("depths", self.depths, f"more than {MOST_LAYERS} blocks")
        if len(self.num_heads) != len(self.depths):
            raise self.error("num_heads", self.num_heads, f"should have one entry for each of depths = {self.depths}")
        if self.hidden_size > LARGEST_SIZE:
            raise self.error("depths", self.depths, "doubles the width too often")
        for width, heads in zip(self.widths, self.num_heads, strict=True):
            if width % heads:
                raise self.error("num_heads", self.num_heads, f"{heads} does not divide its stage's width {width}")
        if int(self.mlp_ratio * self.embed_dim) < 1:
            raise self.error("mlp_ratio", self.mlp_ratio, f"leaves no feed-forward of embed_dim = {self.embed_dim}")

    @property
    def num_layers(self) -> int:
        """How many stages there are."""
        return len(self.depths)

    @property
    def widths(self) -> list[int]:
        """Each stage's width."""
        return [self.embed_dim * 2**stage for stage in range(self.num_layers)]

    @property
    def hidden_size(self) -> int:
        """Width of the output."""
        return self.widths[-1]

    @property
    def cell(self) -> tuple[int, int]:
        """A square of patches, each merged out of four of the stage before."""
        height, width = as_pair(self.patch_size)
        merged = 2 ** (self.num_layers - 1)
        return height * merged, width * merged

    @property
    def key_bias(self) -> bool:
        return self.qkv_bias

    @property
    def drop_paths(self) -> list[list[float]]:
        """Per stage and block, the probability of skipping what it adds."""
        rates = iter(ramp(self.drop_path_rate, sum(self.depths)))
        return [[next(rates) for _ in range(blocks)] for blocks in self.depths]

    @property
    def window_sides(self) -> list[int | None]:
        """Per stage, the length that windows must not exceed; None: the shorter side of what each image has there."""
        return [None] * self.num_layers

    # Derived values --------------------------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        if self.aliases.get(name, name) in self.derived:
            self.check_derived(name, value)
        else:
            super().__setattr__(name, value)

    def check_derived(self, name: str, value: Any) -> None:
        """Raise ConfigError unless `value` is what the fields give."""
        if value is not None and value != getattr(self, name):
            raise self.error(name, value, f"embed_dim = {self.embed_dim} and depths = {self.depths} give another value")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        stated = {name: values[name] for name in values if cls.aliases.get(name, name) in cls.derived}
        self = super().from_dict({name: value for name, value in values.items() if name not in stated})
        for name, value in stated.items():
            self.check_derived(name, value)
        return self

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {name: getattr(self, name) for name in self.derived}


def check_no_absolute(cfg: SwinConfig) -> None:
    """Raise ConfigError where a variant that never had working absolute positions asks for them."""
    if cfg.use_absolute_embeddings:
        raise cfg.error("use_absolute_embeddings", True, f"is not defined for {cfg.model_type}; set it to false")


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class DonutSwinConfig(SwinConfig):
    """Swin without the last normalisation."""

    model_type: ClassVar[str] = "donut-swin"
    architecture: ClassVar[str] = "DonutSwinModel"
    has_last_norm: ClassVar[bool] = False

    def check(self) -> None:
        super().check()
        check_no_absolute(self)


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class Swinv2Config(SwinConfig):
    """Swin with cosine attention, positions from a network, and normalisation behind each layer."""

    model_type: ClassVar[str] = "swinv2"
    architecture: ClassVar[str] = "Swinv2Model"

    pretrained_window_sizes: list[int] = sizes([0, 0, 0, 0], least=0)
    """Per stage, the windows that positions are counted in; 0: its own. 1 would divide by zero."""

    def check(self) -> None:
        super().check()
        check_no_absolute(self)
        pretrained = self.pretrained_window_sizes
        if len(pretrained) < self.num_layers or 1 in pretrained:
            raise self.error(
                "pretrained_window_sizes", pretrained, f"should have {self.num_layers} entries, each 0 or at least 2"
            )
        if not all(self.window_sides):
            raise self.error("image_size", self.image_size, f"leaves nothing for the last of {self.num_layers} stages")

    @property
    def key_bias(self) -> bool:
        return False

    @property
    def window_sides(self) -> list[int | None]:
        # The height alone counts, of images of `image_size`, whichever image comes: checkpoints were trained so.
        return [self.grid[0] // 2**stage for stage in range(self.num_layers)]
