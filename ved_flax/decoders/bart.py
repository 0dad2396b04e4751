"""BART (arXiv:1910.13461), and decoders in its manner: mBART (arXiv:2001.08210), TrOCR (arXiv:2109.10282)."""

import jax
from flax import nnx
from jax.nn.initializers import normal

from ved_core.configs import BartConfig, MBartConfig, TrOCRConfig
from ved_flax.decoders.base import Decoder
from ved_flax.decoders.blocks import BlockSpec, DecoderBlock, PostNormBlock, PreNormBlock
from ved_flax.layers.blocks import Blocks
from ved_flax.layers.build import Builder
from ved_flax.layers.positions import positions_beside_padding, rows_behind_padding, sinusoids

EPSILON = 1e-5
"""Of every norm; these configs have no field for it."""
OFFSET = 2
"""Learned positions start here; the entries before it were fairseq's padding."""


def block_spec(cfg: BartConfig | TrOCRConfig) -> BlockSpec:
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


class BartDecoder(Decoder):
    """Learned positions, a norm behind them, post-norm blocks."""

    block: type[DecoderBlock] = PostNormBlock

    def __init__(self, cfg: BartConfig | TrOCRConfig, make: Builder) -> None:
        make = make.initialised(normal(cfg.init_std))
        super().__init__(cfg, make.init)
        self.scale = cfg.d_model**0.5 if cfg.scale_embedding else 1.0
        self.layerdrop = cfg.decoder_layerdrop
        self.max_positions = cfg.max_position_embeddings if cfg.use_learned_position_embeddings else None
        self.tokens = make.embedding(cfg.vocab_size, cfg.d_model, padding=cfg.pad_token_id)
        if cfg.use_learned_position_embeddings:
            self.positions = make.embedding(cfg.max_position_embeddings + OFFSET, cfg.d_model)
        self.norm_embedding = make.norm(cfg.d_model, EPSILON) if cfg.layernorm_embedding else None
        self.dropout = make.dropout(cfg.dropout)
        self.blocks = Blocks([self.block(block_spec(cfg), make) for _ in range(cfg.decoder_layers)])
        self.head = self.make_head(cfg.d_model, cfg.vocab_size, cfg.tie_word_embeddings, make)

    def embed(
        self, input_ids: jax.Array | None, embeds_BTD: jax.Array, positions: jax.Array, rngs: nnx.Rngs | None
    ) -> jax.Array:
        if input_ids is not None:
            embeds_BTD = embeds_BTD * self.scale
        x = embeds_BTD + self.position_vectors(input_ids, embeds_BTD, positions)
        if self.norm_embedding is not None:
            x = self.norm_embedding(x)
        return self.dropout(x, rngs=rngs)

    def position_vectors(self, input_ids: jax.Array | None, embeds_BTD: jax.Array, positions: jax.Array) -> jax.Array:
        """(T, D) or (B, T, D)."""
        return self.positions(positions + OFFSET)


class MBartDecoder(BartDecoder):
    """BART with pre-norm blocks and a last norm."""

    block = PreNormBlock

    def __init__(self, cfg: MBartConfig, make: Builder) -> None:
        super().__init__(cfg, make)
        self.norm = make.norm(cfg.d_model, EPSILON)

    def finish(self, x_BTD: jax.Array) -> jax.Array:
        return self.norm(x_BTD)


class TrOCRDecoder(BartDecoder):
    """BART whose positions may be sinusoidal: counted from behind the padding id, and 0 for padding itself."""

    def __init__(self, cfg: TrOCRConfig, make: Builder) -> None:
        super().__init__(cfg, make)
        self.pad = cfg.pad_token_id

    def count_positions(self, input_ids: jax.Array | None, tokens: int, index: jax.Array | int) -> jax.Array:
        if self.max_positions is not None:
            return super().count_positions(input_ids, tokens, index)
        assert self.pad is not None
        return positions_beside_padding(input_ids, tokens, index, self.pad)

    def position_vectors(self, input_ids: jax.Array | None, embeds_BTD: jax.Array, positions: jax.Array) -> jax.Array:
        if self.max_positions is not None:
            return super().position_vectors(input_ids, embeds_BTD, positions)
        assert self.pad is not None
        rows = rows_behind_padding(input_ids, positions, self.pad)
        vectors = sinusoids(rows, embeds_BTD.shape[2]) * (rows != self.pad)[..., None]
        return vectors.astype(embeds_BTD.dtype)
