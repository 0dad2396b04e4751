"""Layers of the encoders of one width throughout."""

from torch import Tensor, nn

from ved_core.configs import PlainEncoderConfig
from ved_torch.layers.attention import Attention
from ved_torch.layers.build import Builder, constant
from ved_torch.layers.linear import Linear
from ved_torch.layers.mlp import GatedMlp, Mlp


class EncoderBlock(nn.Module):
    """Pre-norm attention and feed-forward; what each adds may be scaled, and skipped for whole images in training."""

    def __init__(self, cfg: PlainEncoderConfig, index: int, make: Builder) -> None:
        super().__init__()
        width = cfg.hidden_size
        self.norm1 = make.norm(width, cfg.layer_norm_eps)
        self.attn = Attention(
            width,
            cfg.num_attention_heads,
            make,
            qkv_bias=cfg.query_bias,
            k_bias=cfg.key_bias,
            dropout=cfg.attention_probs_dropout_prob,
        )
        self.norm2 = make.norm(width, cfg.layer_norm_eps)
        self.mlp: Mlp | GatedMlp
        if cfg.gated_mlp:
            self.mlp = GatedMlp(width, cfg.mlp_size, "silu", make)
        else:
            self.mlp = Mlp(width, cfg.mlp_size, cfg.hidden_act, make)
        self.dropout = make.dropout(cfg.block_dropout)
        self.drop_path = make.drop_path(cfg.drop_paths[index])
        scale = cfg.layer_scale
        self.scale1 = None if scale is None else make.parameter(width, init=constant(scale))
        self.scale2 = None if scale is None else make.parameter(width, init=constant(scale))

    def linears(self) -> list[Linear]:
        """What its tokens are multiplied by, as it was built."""
        return [self.attn.q, self.attn.k, self.attn.v, self.attn.out, self.mlp.up, self.mlp.down]

    def added(self, x_BPD: Tensor, scale: Tensor | None) -> Tensor:
        """What one half adds to the residual, from what it computed."""
        x = self.dropout(x_BPD)
        return self.drop_path(x if scale is None else x * scale)

    def forward(
        self, x_BPD: Tensor, bias: Tensor | None, need_weights: bool, tokens: int | None
    ) -> tuple[Tensor, Tensor | None]:
        """`tokens`: how many are attended to, the first ones, where others only fill up rows; None for all."""
        y = self.norm1(x_BPD)
        kv = self.attn.keys_values(y)
        attended, weights = self.attn(y, kv if tokens is None else kv.first(tokens), bias, need_weights)
        x_BPD = x_BPD + self.added(attended, self.scale1)
        return x_BPD + self.added(self.mlp(self.norm2(x_BPD)), self.scale2), weights
