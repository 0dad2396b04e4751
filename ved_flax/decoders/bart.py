"""Decoders in BART's manner (arXiv:1910.13461): TrOCR's (arXiv:2109.10282)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import normal

from ved_core.configs import TrOCRConfig
from ved_flax.decoders.base import Decoder
from ved_flax.decoders.blocks import BlockSpec, PostNormBlock
from ved_flax.layers.build import Builder
from ved_flax.layers.positions import sinusoids

EPSILON = 1e-5
"""Of every norm; these configs have no field for it."""
OFFSET = 2
"""Learned positions start here; the entries before it were fairseq's padding."""


def block_spec(cfg: TrOCRConfig) -> BlockSpec:
    """Any layer of a decoder in BART's manner."""
    return BlockSpec(
        cfg.d_model,
        cfg.decoder_attention_heads,
        cfg.decoder_ffn_dim,
        cfg.activation_function,
        EPSILON,
        dropout=cfg.dropout,
        attention_dropout=cfg.attention_dropout,
        activation_dropout=cfg.activation_dropout,
        kv_width=cfg.cross_attention_hidden_size,
    )


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
        self.blocks = nnx.List([PostNormBlock(block_spec(cfg), make) for _ in range(cfg.decoder_layers)])
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

    def position_vectors(self, input_ids: jax.Array | None, embeds_BTD: jax.Array, index: jax.Array | int) -> jax.Array:
        """(T, D) or (B, T, D). Sinusoidal positions count from behind the padding id and skip padding, as fairseq's."""
        tokens = embeds_BTD.shape[1]
        if self.max_positions is not None:
            return self.positions(index + jnp.arange(tokens) + OFFSET)
        assert self.pad is not None
        real = jnp.ones((1, tokens), bool) if input_ids is None else jnp.not_equal(input_ids, self.pad)
        positions = (jnp.cumsum(real, axis=1) + index) * real + self.pad
        vectors = sinusoids(positions, embeds_BTD.shape[2]) * real[..., None]
        return vectors.astype(embeds_BTD.dtype)

    def finish(self, x_BTD: jax.Array) -> jax.Array:
        return x_BTD
