"""GPT-2 (Radford et al., 2019)."""

import dataclasses
from typing import ClassVar

from ved_core.configs.decoder import DecoderConfig
from ved_core.configs.fields import activation, depth, flag, non_negative, positive, probability, size, token, tokens


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class GPT2Config(DecoderConfig):
    """GPT-2 as a decoder with cross-attention."""

    model_type: ClassVar[str] = "gpt2"
    architecture: ClassVar[str] = "GPT2LMHeadModel"
    aliases: ClassVar[dict[str, str]] = DecoderConfig.aliases | {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    vocab_size: int = size(50257)
    n_positions: int = size(1024)
    n_embd: int = size(768)
    n_layer: int = depth(12)
    n_head: int = size(12)
    n_inner: int | None = size(None, optional=True)
    activation_function: str = activation("gelu_new")
    resid_pdrop: float = probability(0.1)
    embd_pdrop: float = probability(0.1)
    attn_pdrop: float = probability(0.1)
    layer_norm_epsilon: float = positive(1e-5)
    initializer_range: float = non_negative(0.02)
    scale_attn_weights: bool = flag(True)
    scale_attn_by_inverse_layer_idx: bool = flag(False)
    reorder_and_upcast_attn: bool = flag(False)
    """Attention scores and softmax are float32 with either value; read for completeness."""
    bos_token_id: int | None = token(50256)
    eos_token_id: int | list[int] | None = tokens(50256)

    def check(self) -> None:
        super().check()
        self.check_heads("n_head", "n_embd")
        self.check_cross_width("n_embd")

    @property
    def mlp_size(self) -> int:
        return self.n_inner or 4 * self.n_embd
