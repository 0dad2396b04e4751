"""DistilBERT (arXiv:1910.01108) as a decoder: BERT's layer, cross-attention included, around DistilBERT's weights."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import normal

from ved_core.configs import DistilBertConfig
from ved_flax.decoders.base import Decoder
from ved_flax.decoders.bert import Transform
from ved_flax.decoders.blocks import BlockSpec, PostNormBlock
from ved_flax.layers.blocks import Blocks
from ved_flax.layers.build import Builder
from ved_flax.layers.positions import interleaved_sinusoids

EPSILON = 1e-12
"""Of every norm; the config has no field for it."""


def block_spec(cfg: DistilBertConfig) -> BlockSpec:
    """Any layer of a DistilBERT."""
    return BlockSpec(
        cfg.dim,
        cfg.n_heads,
        cfg.hidden_dim,
        cfg.activation,
        EPSILON,
        dropout=cfg.dropout,
        attention_dropout=cfg.attention_dropout,
    )


def sinusoidal(key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
    """An initialiser that makes a table of positions of sines."""
    return jnp.asarray(interleaved_sinusoids(*shape), dtype)


class DistilBertDecoder(Decoder):
    """Learned positions, post-norm blocks, a transformed head with a bias."""

    def __init__(self, cfg: DistilBertConfig, make: Builder) -> None:
        make = make.initialised(normal(cfg.initializer_range))
        super().__init__(cfg, make.init)
        self.max_positions = cfg.max_position_embeddings
        self.tokens = make.embedding(cfg.vocab_size, cfg.dim, padding=cfg.pad_token_id)
        positions = make.initialised(sinusoidal if cfg.sinusoidal_pos_embds else None)
        self.positions = positions.embedding(cfg.max_position_embeddings, cfg.dim)
        self.norm_embedding = make.norm(cfg.dim, EPSILON)
        self.dropout = make.dropout(cfg.dropout)
        self.blocks = Blocks([PostNormBlock(block_spec(cfg), make) for _ in range(cfg.n_layers)])
        self.transform = Transform(cfg.dim, cfg.dim, cfg.activation, EPSILON, make)
        self.head = self.make_head(cfg.dim, cfg.vocab_size, cfg.tie_word_embeddings, make)
        self.head_bias = make.parameter(cfg.vocab_size)

    def embed(
        self, input_ids: jax.Array | None, embeds_BTD: jax.Array, positions: jax.Array, rngs: nnx.Rngs | None
    ) -> jax.Array:
        return self.dropout(self.norm_embedding(embeds_BTD + self.positions(positions)), rngs=rngs)
