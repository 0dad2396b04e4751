"""The frame of ViT, DeiT, BEiT and DINOv2: one width throughout, CLS before the patches."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from ved_core.configs import PlainEncoderConfig
from ved_core.configs.fields import as_pair
from ved_core.errors import InputError
from ved_torch.encoders.base import Encoder
from ved_torch.encoders.blocks import EncoderBlock
from ved_torch.layers.blocks import Blocks
from ved_torch.layers.build import Builder, Init, normal
from ved_torch.layers.patches import Patches
from ved_torch.layers.positions import resize_grid
from ved_torch.layers.slicing import filled_up, sliceable
from ved_torch.outputs import EncoderOutput, Record


class PlainEncoder(Encoder):
    """Image to tokens; subclasses add tokens of their own, or attention biases."""

    def __init__(self, cfg: PlainEncoderConfig, make: Builder, *, token_init: Init | None = None) -> None:
        """`token_init`: of CLS and the positions, if not that of the kernels."""
        super().__init__(cfg)
        # transformers cuts the normal off at ±2, many deviations away.
        make = make.initialised(normal(cfg.initializer_range))
        width = cfg.hidden_size
        self.image_size = as_pair(cfg.image_size)
        self.grid = cfg.grid
        self.extra_tokens = cfg.extra_tokens
        self.any_size = cfg.any_size
        self.antialias = cfg.antialias
        self.patches = Patches.build(cfg.num_channels, as_pair(cfg.patch_size), width, make)
        token_init = token_init or make.init
        self.cls_token = make.parameter(1, 1, width, init=token_init)
        positions = cfg.extra_tokens + self.grid[0] * self.grid[1]
        self.positions = make.parameter(1, positions, width, init=token_init) if cfg.has_positions else None
        self.dropout = make.dropout(cfg.hidden_dropout_prob)
        self.blocks = Blocks([EncoderBlock(cfg, i, make) for i in range(cfg.num_hidden_layers)])
        self.norm = make.norm(width, cfg.layer_norm_eps) if cfg.has_last_norm else None

    def tokens(self) -> list[Tensor]:
        """What stands before the patches and has positions, (1, 1, D) each."""
        return [self.cls_token]

    def biases(self, grid: tuple[int, int]) -> Sequence[Tensor | None]:
        """Each block's attention bias."""
        return [None] * len(self.blocks)

    def check_size(self, height: int, width: int, interpolate_pos_encoding: bool) -> None:
        if (height, width) != self.image_size and not (interpolate_pos_encoding or self.any_size):
            raise InputError(
                f"pixel_values are {height} x {width}, the checkpoint's positions are for {self.image_size[0]} x "
                f"{self.image_size[1]}: resize the images, or pass interpolate_pos_encoding=True"
            )
        if 0 in self.patches.grid(height, width):
            high, wide = self.patches.size
            raise InputError(f"pixel_values are {height} x {width}, smaller than a patch of {high} x {wide}")

    def embed(self, pixels_BCHW: Tensor, interpolate_pos_encoding: bool) -> Tensor:
        """Patches with extra tokens and positions. Raises InputError as check_size does."""
        x = self.patches(pixels_BCHW)
        height, width = pixels_BCHW.shape[2:]
        self.check_size(height, width, interpolate_pos_encoding)
        x = torch.cat([*(token.expand(x.shape[0], -1, -1) for token in self.tokens()), x], dim=1)
        if self.positions is None:
            return x
        table = self.positions[0]
        extra, grid = table[: self.extra_tokens], table[self.extra_tokens :]
        grid = resize_grid(grid, self.grid, self.patches.grid(height, width), antialias=self.antialias)
        return x + torch.cat([extra, grid])

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
        height, width = pixels_BCHW.shape[2:]
        biases = self.biases(self.patches.grid(height, width))
        tokens = None
        # What is seen of each block has the image's tokens alone, as biases do; dropout draws for no others.
        seen = output_hidden_states or output_attentions or self.training or any(bias is not None for bias in biases)
        blocks = cast(list[EncoderBlock], list(self.blocks))
        if not seen and sliceable(x, [linear for block in blocks for linear in block.linears()]):
            tokens, x = x.shape[1], filled_up(x)
        for block, bias in zip(self.blocks, biases, strict=True):
            x, weights = self.blocks.run(block, x, bias, record.need_weights, tokens)
            record.state(x)
            record.weights(weights)
        x = x if tokens is None else x[:, :tokens].contiguous()
        x = x if self.norm is None else self.norm(x)
        return EncoderOutput(x, record.hidden_states, record.attentions())
