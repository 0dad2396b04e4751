"""GPT-2 (Radford et al., 2019) with cross-attention."""

import jax
from flax import nnx
from jax.nn.initializers import normal

from ved_core.configs import GPT2Config
from ved_flax.decoders.base import Decoder, DecoderBlock
from ved_flax.layers.attention import Attention
from ved_flax.layers.build import Builder
from ved_flax.layers.cache import KeyValue
from ved_flax.layers.mlp import Mlp


class GPT2Block(DecoderBlock):
    """Pre-norm self-attention, cross-attention and feed-forward."""

    def __init__(self, cfg: GPT2Config, layer: int, make: Builder) -> None:
        width, epsilon = cfg.n_embd, cfg.layer_norm_epsilon
        # Projections into the residual stream start smaller, by the number of additions to it.
        residual = make.initialised(normal(cfg.initializer_range / (2 * cfg.n_layer) ** 0.5))
        scale = (width // cfg.n_head) ** -0.5 if cfg.scale_attn_weights else 1.0
        if cfg.scale_attn_by_inverse_layer_idx:
            scale /= layer + 1

        def attention() -> Attention:
            out = residual.linear(width, width)
            return Attention(width, cfg.n_head, make, scale=scale, dropout=cfg.attn_pdrop, out=out)

        self.norm1 = make.norm(width, epsilon)
        self.attn = attention()
        self.norm_cross = make.norm(width, epsilon)
        self.cross_attn = attention()
        self.norm2 = make.norm(width, epsilon)
        down = residual.linear(cfg.mlp_size, width)
        self.mlp = Mlp(width, cfg.mlp_size, cfg.activation_function, make, down=down)
        self.dropout = make.dropout(cfg.resid_pdrop)

    def __call__(
        self,
        x_BTD: jax.Array,
        memory: KeyValue | None,
        cross_kv: KeyValue,
        index: jax.Array | int,
        bias: jax.Array,
        rngs: nnx.Rngs | None,
    ) -> tuple[jax.Array, KeyValue, jax.Array, jax.Array]:
        attended, kv, weights = self.attend_self(self.norm1(x_BTD), memory, index, bias, rngs)
        x_BTD = x_BTD + self.dropout(attended, rngs=rngs)
        attended, cross_weights = self.cross_attn(self.norm_cross(x_BTD), cross_kv, rngs=rngs)
        x_BTD = x_BTD + self.dropout(attended, rngs=rngs)
        x_BTD = x_BTD + self.dropout(self.mlp(self.norm2(x_BTD), rngs), rngs=rngs)
        return x_BTD, kv, weights, cross_weights


class GPT2Decoder(Decoder):
    """Learned positions, pre-norm blocks, a last norm."""

    def __init__(self, cfg: GPT2Config, make: Builder) -> None:
        make = make.initialised(normal(cfg.initializer_range))
        self.max_positions = cfg.n_positions
        self.tokens = make.embedding(cfg.vocab_size, cfg.n_embd)
        self.positions = make.embedding(cfg.n_positions, cfg.n_embd)
        self.dropout = make.dropout(cfg.embd_pdrop)
        self.blocks = nnx.List([GPT2Block(cfg, layer, make) for layer in range(cfg.n_layer)])
        self.norm = make.norm(cfg.n_embd, cfg.layer_norm_epsilon)
        self.head = self.make_head(cfg.n_embd, cfg.vocab_size, cfg.tie_word_embeddings, make)

    def embed(
        self, input_ids: jax.Array | None, embeds_BTD: jax.Array, index: jax.Array | int, rngs: nnx.Rngs | None
    ) -> jax.Array:
        positions = index + jax.numpy.arange(embeds_BTD.shape[1])
        return self.dropout(embeds_BTD + self.positions(positions), rngs=rngs)

    def finish(self, x_BTD: jax.Array) -> jax.Array:
        return self.norm(x_BTD)
