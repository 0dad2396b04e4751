"""DINOv2 (arXiv:2304.07193), without and with registers (arXiv:2309.16588)."""

import dataclasses
from typing import ClassVar

from ved_core.configs.encoder import PlainEncoderConfig
from ved_core.configs.fields import flag, non_negative, positive, probability, size, size_or_pair


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class Dinov2Config(PlainEncoderConfig):
    """A ViT with scaled layers, for images of any size."""

    model_type: ClassVar[str] = "dinov2"
    architecture: ClassVar[str] = "Dinov2Model"
    any_size: ClassVar[bool] = True

    mlp_ratio: float = positive(4)
    layer_norm_eps: float = positive(1e-6)
    patch_size: int | list[int] = size_or_pair(14)
    qkv_bias: bool = flag(True)
    layerscale_value: float = non_negative(1.0)
    drop_path_rate: float = probability(0.0)
    use_swiglu_ffn: bool = flag(False)
    use_mask_token: bool = flag(True)

    def check(self) -> None:
        super().check()
        if self.mlp_size < 1:
            raise self.error("mlp_ratio", self.mlp_ratio, f"leaves no feed-forward of hidden_size = {self.hidden_size}")

    @property
    def registers(self) -> int:
        """How many tokens without a place follow CLS."""
        return 0

    @property
    def leading_tokens(self) -> int:
        return self.extra_tokens + self.registers

    @property
    def query_bias(self) -> bool:
        return self.qkv_bias

    @property
    def mlp_size(self) -> int:
        full = int(self.hidden_size * self.mlp_ratio)
        # With a gate there are three matrices for two: a third less width keeps their size, in steps of 8.
        return (int(full * 2 / 3) + 7) // 8 * 8 if self.use_swiglu_ffn else full

    @property
    def gated_mlp(self) -> bool:
        return self.use_swiglu_ffn

    @property
    def block_dropout(self) -> float:
        return 0.0

    @property
    def layer_scale(self) -> float | None:
        return self.layerscale_value

    @property
    def drop_paths(self) -> list[float]:
        return [self.drop_path_rate] * self.num_hidden_layers


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class Dinov2WithRegistersConfig(Dinov2Config):
    """DINOv2 with registers, tokens without a place, behind CLS."""

    model_type: ClassVar[str] = "dinov2_with_registers"
    architecture: ClassVar[str] = "Dinov2WithRegistersModel"
    antialias: ClassVar[bool] = True

    patch_size: int | list[int] = size_or_pair(16)
    num_register_tokens: int = size(4)

    @property
    def registers(self) -> int:
        return self.num_register_tokens
