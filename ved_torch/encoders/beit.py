"""BEiT (arXiv:2106.08254)."""

from torch import Tensor, nn

from ved_core.configs import BeitConfig
from ved_torch.encoders.plain import PlainEncoder
from ved_torch.layers.build import Builder, zeros
from ved_torch.layers.relative import GridBias


class BeitEncoder(PlainEncoder):
    """Image to tokens, with a relative position bias in every block, one for all, or both."""

    def __init__(self, cfg: BeitConfig, make: Builder) -> None:
        super().__init__(cfg, make, token_init=zeros)
        heads = cfg.num_attention_heads
        self.shared_bias = GridBias(cfg.grid, heads, make) if cfg.use_shared_relative_position_bias else None
        own = self.blocks if cfg.use_relative_position_bias else ()
        self.block_biases = nn.ModuleList([GridBias(cfg.grid, heads, make) for _ in own])

    def biases(self, grid: tuple[int, int]) -> list[Tensor | None]:
        shared = None if self.shared_bias is None else self.shared_bias(grid)
        if not self.block_biases:
            return [shared] * len(self.blocks)
        own = [bias(grid) for bias in self.block_biases]
        return [bias if shared is None else bias + shared for bias in own]
