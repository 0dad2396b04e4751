"""Decoders in BART's manner (arXiv:1910.13461): TrOCR's (arXiv:2109.10282)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import normal

from ved_core.configs import TrOCRConfig
from ved_flax.decoders.base import Decoder, DecoderBlock
from ved_flax.layers.attention import Attention
from ved_flax.layers.build import Builder
from ved_flax.layers.cache import KeyValue
from ved_flax.layers.mlp import Mlp
from ved_flax.layers.positions import sinusoids

EPSILON = 1e-5
"""Of every norm; these configs have no field for it."""
OFFSET = 2
"""Learned positions start here; the entries before it were fairseq's padding."""


class BartBlock(DecoderBlock):
    """Post-norm self-attention, cross-attention and feed-forward."""

    def __init__(self, cfg: TrOCRConfig, make: Builder) -> None:
        width, heads = cfg.d_model, cfg.decoder_attention_heads
        self.attn = Attention(width, heads, make, dropout=cfg.attention_dropout)
        self.norm1 = make.norm(width, EPSILON)
        self.cross_attn = Attention(
            width, heads, make, kv_width=cfg.cross_attention_hidden_size, dropout=cfg.attention_dropout
        )
        self.norm_cross = make.norm(width, EPSILON)
        self.mlp = Mlp(width, cfg.decoder_ffn_dim, cfg.activation_function, make, dropout=cfg.activation_dropout)
        self.norm2 = make.norm(width, EPSILON)
        self.dropout = make.dropout(cfg.dropout)

    def __call__(
        self,
        x_BTD: jax.Array,
        memory: KeyValue | None,
        cross_kv: KeyValue,
        index: jax.Array | int,
        bias: jax.Array,
        rngs: nnx.Rngs | None,
    ) -> tuple[jax.Array, KeyValue, jax.Array, jax.Array]:
        attended, kv, weights = self.attend_self(x_BTD, memory, index, bias, rngs)
        x_BTD = self.norm1(x_BTD + self.dropout(attended, rngs=rngs))
        attended, cross_weights = self.cross_attn(x_BTD, cross_kv, rngs=rngs)
        x_BTD = self.norm_cross(x_BTD + self.dropout(attended, rngs=rngs))
        x_BTD = self.norm2(x_BTD + self.dropout(self.mlp(x_BTD, rngs), rngs=rngs))
        return x_BTD, kv, weights, cross_weights


class TrOCRDecoder(Decoder):
    """Learned or sinusoidal positions, post-norm blocks."""

    def __init__(self, cfg: TrOCRConfig, make: Builder) -> None:
        make = make.initialised(normal(cfg.init_std))
        self.scale = cfg.d_model**0.5 if cfg.scale_embedding else 1.0
        self.pad = cfg.pad_token_id
        self.layerdrop = cfg.decoder_layerdrop
        self.max_positions = cfg.max_position_embeddings if cfg.use_learned_position_embeddings else None
        self.tokens = make.embedding(cfg.vocab_size, cfg.d_model)
        if cfg.use_learned_position_embeddings:
            self.positions = make.embedding(cfg.max_position_embeddings + OFFSET, cfg.d_model)
        self.norm_embedding = make.norm(cfg.d_model, EPSILON) if cfg.layernorm_embedding else None
        self.dropout = make.dropout(cfg.dropout)
        self.blocks = nnx.List([BartBlock(cfg, make) for _ in range(cfg.decoder_layers)])
        self.head = self.make_head(cfg.d_model, cfg.vocab_size, cfg.tie_word_embeddings, make)

    def embed(
        self, input_ids: jax.Array | None, embeds_BTD: jax.Array, index: jax.Array | int, rngs: nnx.Rngs | None
    ) -> jax.Array:
        if input_ids is not None:
            embeds_BTD = embeds_BTD * self.scale
        x = embeds_BTD + self.position_vectors(input_ids, embeds_BTD, index)
        if self.norm_embedding is not None:
            x = self.norm_embedding(x)
        return self.dropout(x, rngs=rngs)

    def position_vectors(
        self, input_ids: jax.Array | None, embeds_BTD: jax.Array, index: jax.Array | int
    ) -> jax.Array:
        """(T, D) or (B, T, D). Sinusoidal positions count from behind the padding id and skip padding, as fairseq's."""
        tokens = embeds_BTD.shape[1]
        if self.max_positions is not None:
            return self.positions(index + jnp.arange(tokens) + OFFSET)
        real = jnp.ones((1, tokens), bool) if input_ids is None else input_ids != self.pad
        positions = (jnp.cumsum(real, axis=1) + index) * real + self.pad
        vectors = sinusoids(positions, embeds_BTD.shape[2]) * real[..., None]
        return vectors.astype(embeds_BTD.dtype)

    def finish(self, x_BTD: jax.Array) -> jax.Array:
        return x_BTD
