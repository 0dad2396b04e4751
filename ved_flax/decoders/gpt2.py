"""GPT-2 (Radford et al., 2019) with cross-attention."""

import jax
from flax import nnx
from jax.nn.initializers import normal

from ved_core.configs import GPT2Config
from ved_flax.decoders.base import Decoder
from ved_flax.decoders.blocks import BlockSpec, PreNormBlock
from ved_flax.layers.blocks import Blocks
from ved_flax.layers.build import Builder


def block_spec(cfg: GPT2Config, layer: int) -> BlockSpec:
    """Layer `layer` of a GPT-2."""
    scale = (cfg.n_embd // cfg.n_head) ** -0.5 if cfg.scale_attn_weights else 1.0
    return BlockSpec(
        cfg.n_embd,
        cfg.n_head,
        cfg.mlp_size,
        cfg.activation_function,
        cfg.layer_norm_epsilon,
        dropout=cfg.resid_pdrop,
        attention_dropout=cfg.attn_pdrop,
        scale=scale / (layer + 1) if cfg.scale_attn_by_inverse_layer_idx else scale,
        # What is added to the residual stream starts smaller, by the number of additions.
        residual_init=normal(cfg.initializer_range / (2 * cfg.n_layer) ** 0.5),
    )


class GPT2Decoder(Decoder):
    """Learned positions, pre-norm blocks, a last norm."""

    def __init__(self, cfg: GPT2Config, make: Builder) -> None:
        make = make.initialised(normal(cfg.initializer_range))
        super().__init__(cfg, make.init)
        self.max_positions = cfg.n_positions
        self.tokens = make.embedding(cfg.vocab_size, cfg.n_embd)
        self.positions = make.embedding(cfg.n_positions, cfg.n_embd)
        self.dropout = make.dropout(cfg.embd_pdrop)
        self.blocks = Blocks([PreNormBlock(block_spec(cfg, layer), make) for layer in range(cfg.n_layer)])
        self.norm = make.norm(cfg.n_embd, cfg.layer_norm_epsilon)
        self.head = self.make_head(cfg.n_embd, cfg.vocab_size, cfg.tie_word_embeddings, make)

    def embed(
        self, input_ids: jax.Array | None, embeds_BTD: jax.Array, positions: jax.Array, rngs: nnx.Rngs | None
    ) -> jax.Array:
        return self.dropout(embeds_BTD + self.positions(positions), rngs=rngs)

    def finish(self, x_BTD: jax.Array) -> jax.Array:
        return self.norm(x_BTD)
