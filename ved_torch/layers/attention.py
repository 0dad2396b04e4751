"""Multi-head attention (arXiv:1706.03762): one `attend`, and the module around it."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ved_torch.layers.build import Builder, Init, constant
from ved_torch.layers.cache import KeyValue
from ved_torch.layers.linear import suits

IMPLEMENTATIONS = ("sdpa", "eager")
"""torch's fused kernels, which choose among themselves, or plain operations."""
FEW_QUERIES = 4
"""Of a step's: one for each beam."""
MANY_NUMBERS = 2**20
"""Of all keys, from which on two operations cost less than they gain."""


def attend(
    q_BNTH: Tensor, kv: KeyValue, bias: Tensor | None, scale: float, *, dropout: float = 0.0, need_weights: bool = False
) -> tuple[Tensor, Tensor | None]:
    """softmax(q k^T * scale + bias) v, in torch's fused kernels unless the weights are wanted or products are faster.

    `bias`: broadcastable to (B, N, T, S), finite, or None. Returns the output (B, N, T, H) and, if wanted, the weights
    (B, N, T, S) before dropout, both in q's dtype.
    """
    if bias is not None and bias.dtype != q_BNTH.dtype:
        # A mask's value may be below what a narrower dtype holds: infinite, it would make NaN of a row without keys.
        bias = bias.to(q_BNTH.dtype).clamp(min=torch.finfo(q_BNTH.dtype).min)
    if not (need_weights or by_products(q_BNTH, kv.k)):
        return F.scaled_dot_product_attention(q_BNTH, *kv, attn_mask=bias, dropout_p=dropout, scale=scale), None
    scores = torch.matmul(q_BNTH * scale, kv.k.transpose(2, 3)).float()
    if bias is not None:
        scores = scores + bias
    weights = scores.softmax(dim=-1).to(q_BNTH.dtype)
    out = torch.matmul(F.dropout(weights, dropout, training=dropout > 0), kv.v)
    return out, weights if need_weights else None


def by_products(q_BNTH: Tensor, k_BNSH: Tensor) -> bool:
    """Whether a CPU does little but read the keys, for so few queries: as two plain products it reads them faster,
    where each head's lie together."""
    few = q_BNTH.shape[2] <= FEW_QUERIES and k_BNSH.numel() >= MANY_NUMBERS
    return few and k_BNSH.stride(2) == k_BNSH.shape[3] and suits(q_BNTH, k_BNSH)


class Attention(nn.Module):
    """Projections to heads and back around `attend`; self-attention and cross-attention alike."""

    implementation = "sdpa"
    """One of `IMPLEMENTATIONS`."""

    def __init__(
        self,
        width: int,
        heads: int,
        make: Builder,
        *,
        kv_width: int | None = None,
        qkv_bias: bool = True,
        k_bias: bool | None = None,
        scale: float | None = None,
        dropout: float = 0.0,
        residual_init: Init | None = None,
    ) -> None:
        """`kv_width`: width of what is attended to, if not `width`. `k_bias`: whether keys have a bias, if not as
        queries and values. `scale`: of the scores, 1/sqrt(H) by default. `residual_init`: of the output projection, if
        not the builder's."""
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5 if scale is None else scale
        self.q = make.linear(width, width, bias=qkv_bias)
        self.k = make.linear(kv_width or width, width, bias=qkv_bias if k_bias is None else k_bias)
        self.v = make.linear(kv_width or width, width, bias=qkv_bias)
        self.out = make.initialised(residual_init).linear(width, width)
        self.dropout = make.dropout(dropout)

    def split_heads(self, x_BTD: Tensor) -> Tensor:
        """(B, T, N * H) to (B, N, T, H)."""
        return x_BTD.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def queries(self, x_BTD: Tensor) -> Tensor:
        """What attends."""
        return self.split_heads(self.q(x_BTD))

    def keys_values(self, x_BSD: Tensor) -> KeyValue:
        """Keys and values of what will be attended to."""
        return KeyValue(self.split_heads(self.k(x_BSD)), self.split_heads(self.v(x_BSD)))

    def forward(
        self, x_BTD: Tensor, kv: KeyValue, bias: Tensor | None = None, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the output (B, T, D) and, if wanted, the attention weights (B, N, T, S)."""
        dropout = self.dropout.p if self.dropout.training else 0.0
        plain = need_weights or self.implementation == "eager"
        out_BNTH, weights = attend(self.queries(x_BTD), kv, bias, self.scale, dropout=dropout, need_weights=plain)
        return self.out(out_BNTH.transpose(1, 2).flatten(2)), weights if need_weights else None


def set_implementation(module: nn.Module, name: str) -> None:
    """How every attention inside `module` computes. Raises ValueError for a name that is none."""
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"attn_implementation = {name!r} should be one of {', '.join(IMPLEMENTATIONS)}")
    for part in module.modules():
        if isinstance(part, Attention):
            part.implementation = name


class CosineAttention(Attention):
    """Scores are cosines times each head's learned factor, at most 100 (arXiv:2111.09883, 3.2). Keys have no bias."""

    def __init__(self, width: int, heads: int, make: Builder, *, qkv_bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__(width, heads, make, qkv_bias=qkv_bias, k_bias=False, scale=1.0, dropout=dropout)
        self.logit_scale = make.parameter(heads, 1, 1, init=constant(math.log(10)))

    def queries(self, x_BTD: Tensor) -> Tensor:
        """Unit vectors, times their head's factor."""
        q_BNTH = super().queries(x_BTD)
        factor_N11 = self.logit_scale.float().clamp(max=math.log(100)).exp()
        return (F.normalize(q_BNTH.float(), dim=-1) * factor_N11).to(q_BNTH.dtype)

    def keys_values(self, x_BSD: Tensor) -> KeyValue:
        k, v = super().keys_values(x_BSD)
        return KeyValue(F.normalize(k.float(), dim=-1).to(k.dtype), v)


def causal_bias(
    index: int, tokens: int, mask_BS: Tensor | None, *, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    """Bias (B or 1, 1, T, S) that lets token t of T, the first at position `index`, see unmasked positions up to its
    own; None where all of them may be seen."""
    if tokens == 1 and mask_BS is None:
        return None
    positions_T1 = torch.arange(index, index + tokens, device=device)[:, None]
    seen = (torch.arange(index + tokens, device=device)[None, :] <= positions_T1)[None]
    return visible_bias(seen if mask_BS is None else seen & mask_BS[:, None, :], dtype)


def visible_bias(visible_BTS: Tensor, dtype: torch.dtype) -> Tensor:
    """Bias (B, 1, T, S) that hides what is not visible."""
    visible = visible_BTS[:, None]
    # Finite, so that a row that may attend to nothing gets a mean instead of NaN.
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, torch.finfo(dtype).min)
