"""ViT (arXiv:2010.11929) and DeiT (arXiv:2012.12877)."""

import torch
from torch import Tensor, nn

from ved_core.configs import ViTConfig
from ved_core.configs.fields import as_pair
from ved_torch.encoders.base import Encoder
from ved_torch.layers.attention import Attention
from ved_torch.layers.blocks import Blocks
from ved_torch.layers.build import Builder, truncated_normal
from ved_torch.layers.mlp import Mlp
from ved_torch.layers.patches import Patches
from ved_torch.layers.positions import resize_grid
from ved_torch.outputs import EncoderOutput, Record


class ViTBlock(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, cfg: ViTConfig, make: Builder) -> None:
        super().__init__()
        self.norm1 = make.norm(cfg.hidden_size, cfg.layer_norm_eps)
        self.attn = Attention(
            cfg.hidden_size,
            cfg.num_attention_heads,
            make,
            qkv_bias=cfg.qkv_bias,
            dropout=cfg.attention_probs_dropout_prob,
        )
        self.norm2 = make.norm(cfg.hidden_size, cfg.layer_norm_eps)
        self.mlp = Mlp(cfg.hidden_size, cfg.intermediate_size, cfg.hidden_act, make)
        self.dropout = make.dropout(cfg.hidden_dropout_prob)

    def forward(self, x_BPD: Tensor, need_weights: bool) -> tuple[Tensor, Tensor | None]:
        y = self.norm1(x_BPD)
        attended, weights = self.attn(y, self.attn.keys_values(y), need_weights=need_weights)
        x_BPD = x_BPD + self.dropout(attended)
        return x_BPD + self.dropout(self.mlp(self.norm2(x_BPD))), weights


class ViTEncoder(Encoder):
    """Image to tokens: CLS (and DeiT's distillation token) before the patches."""

    def __init__(self, cfg: ViTConfig, make: Builder) -> None:
        super().__init__(cfg)
        make = make.initialised(truncated_normal(cfg.initializer_range))
        width = cfg.hidden_size
        self.image_size = as_pair(cfg.image_size)
        self.grid = cfg.grid
        self.extra_tokens = cfg.extra_tokens
        self.patches = Patches.build(cfg.num_channels, as_pair(cfg.patch_size), width, make)
        self.cls_token = make.parameter(1, 1, width, init=make.init)
        if cfg.extra_tokens == 2:
            self.distillation_token = make.parameter(1, 1, width)
        positions = cfg.extra_tokens + self.grid[0] * self.grid[1]
        self.positions = make.parameter(1, positions, width, init=make.init)
        self.dropout = make.dropout(cfg.hidden_dropout_prob)
        self.blocks = Blocks([ViTBlock(cfg, make) for _ in range(cfg.num_hidden_layers)])
        self.norm = make.norm(width, cfg.layer_norm_eps)

    def embed(self, pixels_BCHW: Tensor, interpolate_pos_encoding: bool) -> Tensor:
        """Patches with extra tokens and positions. Raises ValueError for a size that the positions do not cover."""
        x = self.patches(pixels_BCHW)
        height, width = pixels_BCHW.shape[2:]
        if (height, width) != self.image_size and not interpolate_pos_encoding:
            raise ValueError(
                f"pixel_values are {height} x {width}, the checkpoint's positions are for {self.image_size[0]} x "
                f"{self.image_size[1]}: resize the images, or pass interpolate_pos_encoding=True"
            )
        tokens = [self.cls_token] + ([self.distillation_token] if self.extra_tokens == 2 else [])
        table = self.positions[0]
        extra, grid = table[: self.extra_tokens], table[self.extra_tokens :]
        grid = resize_grid(grid, self.grid, self.patches.grid(height, width))
        return torch.cat([*(t.expand(len(x), -1, -1) for t in tokens), x], dim=1) + torch.cat([extra, grid])

    def forward(
        self,
        pixels_BCHW: Tensor,
        *,
        interpolate_pos_encoding: bool = False,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> EncoderOutput:
        record = Record(output_hidden_states, output_attentions)
        x = self.dropout(self.embed(pixels_BCHW, interpolate_pos_encoding))
        record.state(x)
        for block in self.blocks:
            x, weights = self.blocks.run(block, x, record.need_weights)
            record.state(x)
            record.weights(weights)
        return EncoderOutput(self.norm(x), record.hidden_states, record.attentions())
