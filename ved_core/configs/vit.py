"""ViT (arXiv:2010.11929) and DeiT (arXiv:2012.12877)."""

import dataclasses
from typing import ClassVar

from ved_core.configs.encoder import PlainEncoderConfig
from ved_core.configs.fields import flag, size


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class ViTConfig(PlainEncoderConfig):
    """A plain vision Transformer with a CLS token and learned positions."""

    model_type: ClassVar[str] = "vit"
    architecture: ClassVar[str] = "ViTModel"

    intermediate_size: int = size(3072)
    qkv_bias: bool = flag(True)

    @property
    def query_bias(self) -> bool:
        return self.qkv_bias

    @property
    def mlp_size(self) -> int:
        return self.intermediate_size


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class DeiTConfig(ViTConfig):
    """ViT with a second extra token, the distillation token, behind CLS."""

    model_type: ClassVar[str] = "deit"
    architecture: ClassVar[str] = "DeiTModel"
    extra_tokens: ClassVar[int] = 2
