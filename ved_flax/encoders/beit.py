"""BEiT (arXiv:2106.08254)."""

import jax
from flax import nnx
from jax.nn.initializers import zeros

from ved_core.configs import BeitConfig
from ved_flax.encoders.plain import PlainEncoder
from ved_flax.layers.build import Builder
from ved_flax.layers.relative import GridBias


class BeitEncoder(PlainEncoder):
    """Image to tokens, with a relative position bias in every block, one for all, or both."""

    def __init__(self, cfg: BeitConfig, make: Builder) -> None:
        super().__init__(cfg, make, token_init=zeros)
        heads = cfg.num_attention_heads
        self.shared_bias = GridBias(cfg.grid, heads, make) if cfg.use_shared_relative_position_bias else None
        own = self.blocks if cfg.use_relative_position_bias else ()
        self.block_biases = nnx.List([GridBias(cfg.grid, heads, make) for _ in own])

    def biases(self, grid: tuple[int, int]) -> list[jax.Array | None]:
        shared = None if self.shared_bias is None else self.shared_bias(grid)
        if not self.block_biases:
            return [shared] * len(self.blocks)
        own = [bias(grid) for bias in self.block_biases]
        return [bias if shared is None else bias + shared for bias in own]
