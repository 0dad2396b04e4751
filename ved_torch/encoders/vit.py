"""ViT (arXiv:2010.11929) and DeiT (arXiv:2012.12877)."""

from torch import Tensor

from ved_core.configs import ViTConfig
from ved_torch.encoders.plain import PlainEncoder
from ved_torch.layers.build import Builder


class ViTEncoder(PlainEncoder):
    """Image to tokens: CLS (and DeiT's distillation token) before the patches."""

    def __init__(self, cfg: ViTConfig, make: Builder) -> None:
        super().__init__(cfg, make)
        if cfg.extra_tokens == 2:
            self.distillation_token = make.parameter(1, 1, cfg.hidden_size)

    def tokens(self) -> list[Tensor]:
        return [self.cls_token, self.distillation_token] if self.extra_tokens == 2 else [self.cls_token]
