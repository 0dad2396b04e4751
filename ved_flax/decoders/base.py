"""`Decoder`: what all text decoders share: caches, masks, the vocabulary head."""

import abc
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer

from ved_core.configs import DecoderConfig
from ved_flax import platforms
from ved_flax.decoders.blocks import DecoderBlock
from ved_flax.half import Half
from ved_flax.layers import cache as caches
from ved_flax.layers import products
from ved_flax.layers.attention import causal_bias, visible_bias
from ved_flax.layers.blocks import Blocks
from ved_flax.layers.build import Builder
from ved_flax.layers.cache import Cache, KeyValue
from ved_flax.outputs import DecoderOutput, Record


class Decoder(Half):
    """Token ids and image tokens to vocabulary scores.

    A subclass sets `tokens` (the embedding), `blocks`, `head` (None where it is tied to `tokens`) and
    `max_positions` (None where there is no last position), and defines `embed`. It may set `transform`, `head_bias`
    and `layerdrop`, and define `finish`.
    """

    tokens: nnx.Embed
    blocks: Blocks[DecoderBlock]
    dropout: nnx.Dropout
    head: nnx.Linear | None
    max_positions: int | None
    transform: nnx.Module | None = None
    """Between the last hidden state and the head."""
    head_bias: nnx.Param[jax.Array] | None = None
    """(V,), added to the scores."""
    layerdrop: float = 0.0
    scans = True

    def __init__(self, cfg: DecoderConfig, init: Initializer) -> None:
        """`init`: of entries that are added to the vocabulary later."""
        super().__init__(cfg)
        self.init = init

    def make_head(self, width: int, vocab_size: int, tied: bool, make: Builder) -> nnx.Linear | None:
        """The vocabulary head, or None where the token embedding serves as one."""
        return None if tied else make.linear(width, vocab_size, bias=False)

    @abc.abstractmethod
    def embed(
        self, input_ids: jax.Array | None, embeds_BTD: jax.Array, positions: jax.Array, rngs: nnx.Rngs | None
    ) -> jax.Array:
        """Token embeddings with their positions, (T,) or (B, T), counted from 0."""

    def count_positions(self, input_ids: jax.Array | None, tokens: int, index: jax.Array | int) -> jax.Array:
        """Positions of new tokens behind `index` others, (T,) or (B, T)."""
        return index + jnp.arange(tokens)

    def finish(self, x_BTD: jax.Array) -> jax.Array:
        """The last block's output to the last hidden state."""
        return x_BTD

    def scores(self, x_BTD: jax.Array) -> jax.Array:
        """The last hidden state to scores (B, T, V), float32."""
        if self.transform is not None:
            x_BTD = self.transform(x_BTD)
        if self.head is None:
            logits = products.against(x_BTD, self.tokens.embedding[...].astype(x_BTD.dtype))
        else:
            kernel_DV = self.head.kernel[...].astype(x_BTD.dtype)
            logits = jnp.einsum("btd,dv->btv", x_BTD, kernel_DV, preferred_element_type=jnp.float32)
        return logits if self.head_bias is None else logits + self.head_bias[...].astype(jnp.float32)

    def resize_token_embeddings(self, entries: int, rngs: nnx.Rngs) -> nnx.Embed:
        """Cut the vocabulary, or add newly initialised entries; an untied head follows, and the config."""
        self.config.vocab_size = entries
        self.tokens.embedding.set_value(self._resized(self.tokens.embedding[...], entries, rngs))
        self.tokens.num_embeddings = entries
        if self.head is not None:
            self.head.kernel.set_value(self._resized(self.head.kernel[...].T, entries, rngs).T)
            self.head.out_features = entries
        if self.head_bias is not None:
            bias = self.head_bias[...][:entries]
            self.head_bias.set_value(jnp.pad(bias, (0, entries - len(bias))))
        return self.tokens

    def _resized(self, table_VD: jax.Array, entries: int, rngs: nnx.Rngs) -> jax.Array:
        added = max(entries - len(table_VD), 0), table_VD.shape[1]
        return jnp.concatenate([table_VD[:entries], self.init(rngs.params(), added, table_VD.dtype)])

    def tie(self) -> None:
        """Let the token embedding serve as the vocabulary head."""
        self.head = None

    def untie(self) -> None:
        """Give the vocabulary head a kernel of its own, a copy of the token embedding; the config follows."""
        self.config.tie_word_embeddings = False
        if self.head is None:
            table = self.tokens.embedding
            entries, width = table.shape
            make = partial(Builder, dtype=jnp.dtype(self.tokens.dtype), param_dtype=jnp.dtype(table.dtype))
            head = nnx.eval_shape(lambda: make(nnx.Rngs(0)).linear(width, entries, bias=False))
            head.kernel = type(table)(table[...].T, **table.get_metadata())
            self.head = nnx.data(head)

    @property
    def cross_heads(self) -> int:
        """Heads of each cross-attention."""
        return self.blocks[0].cross_attn.heads

    def cross_kv(self, encoder_hidden_states: jax.Array) -> tuple[KeyValue, ...]:
        """Every layer's keys and values of the image tokens (B, P, width)."""
        return tuple(block.cross_attn.keys_values(encoder_hidden_states) for block in self.blocks)

    def init_cache(self, encoder_hidden_states: jax.Array, length: int) -> Cache:
        """A cache for `length` tokens, cross-attention's part filled."""
        return caches.empty(self.cross_kv(encoder_hidden_states), length)

    def __call__(
        self,
        input_ids: jax.Array | None = None,
        *,
        inputs_embeds: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        encoder_hidden_states: jax.Array | None = None,
        cache: Cache | None = None,
        positions: jax.Array | None = None,
        visible: jax.Array | None = None,
        copies: int = 1,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> DecoderOutput:
        """Score the tokens (B, T), or continue behind those in `cache`.

        Image tokens come from `encoder_hidden_states` or, with their keys and values made, from `cache`.
        `positions` (B, T or 1) and `visible` (B, T, L), which of the cache's places each token sees, take the place of
        counting and of causality: tokens may be branches of a tree. `copies`: as what one token behind a cache is
        computed, see `step`.
        Raises ValueError where both or neither of ids and embeddings are given, too many tokens, or what does not fit
        them.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either decoder_input_ids or decoder_inputs_embeds")
        embeds = inputs_embeds if input_ids is None else self.tokens(input_ids)
        assert embeds is not None
        batch, tokens, _ = embeds.shape
        if positions is None:
            self._check_length(tokens if cache is None else cache.length)
        if attention_mask is not None and attention_mask.shape not in ((batch, tokens), (1, tokens)):
            raise ValueError(f"decoder_attention_mask is {attention_mask.shape} for new tokens {(batch, tokens)}")
        mask_BT = jnp.ones((batch, tokens), bool) if attention_mask is None else attention_mask.astype(bool)
        index: jax.Array | int = 0
        memories: tuple[KeyValue | None, ...] = (None,) * len(self.blocks)
        if cache is None:
            if encoder_hidden_states is None:
                raise ValueError("give encoder_hidden_states or a cache")
            if len(encoder_hidden_states) not in (1, batch):
                raise ValueError(f"{batch} rows of decoder inputs do not fit {len(encoder_hidden_states)} images")
            cross_kv, mask_BS = self.cross_kv(encoder_hidden_states), mask_BT
        else:
            index, memories, cross_kv = cache.index, cache.self_kv, cache.cross_kv
            mask_BS = jax.lax.dynamic_update_slice_in_dim(cache.mask_BL, mask_BT, index, axis=1)
        bias = causal_bias(index, tokens, mask_BS) if visible is None else visible_bias(visible)
        if positions is None:
            positions = self.count_positions(input_ids, tokens, index)

        record = Record(output_hidden_states, output_attentions)
        if copies > 1:  # of ids, not of vectors: XLA sees through those
            assert input_ids is not None
            input_ids = input_ids.repeat(copies, axis=1)
            embeds = self.tokens(input_ids)
        x = self.embed(input_ids, embeds, positions, rngs)
        if self.blocks.scanned and cache is None and not record.wanted:
            x = self.finish(self._scan(x, cross_kv, bias, rngs))
            return DecoderOutput(self.scores(x))
        written = []
        for block, memory, cross in zip(self.blocks, memories, cross_kv, strict=True):
            record.state(x)
            before = x
            x, kv, weights, cross_weights = self.blocks.run(
                block, x, memory, cross, index, bias, rngs, need_weights=record.need_weights, tokens=tokens
            )
            x = self._drop_layer(before, x, rngs)
            written.append(kv)
            record.weights(weights, cross_weights)
        x = self.finish(x)
        record.state(x)
        return DecoderOutput(
            self.scores(x)[:, :tokens],
            record.hidden_states,
            record.attentions(0),
            record.attentions(1),
            None if cache is None else Cache(tuple(written), cross_kv, mask_BS, cache.index + tokens),
        )

    def step(
        self, ids_BT: jax.Array, cache: Cache, *, positions: jax.Array | None = None, visible: jax.Array | None = None
    ) -> tuple[jax.Array, Cache]:
        """Scores (B, T, V) of what follows the newest tokens, and the next cache: `__call__`, as fast as it goes.

        On TPUs a single token is computed twice. Products of one row, and attention from one query, do not reach the
        matrix units there, and take several times as long as those of two.
        """

        def run(copies: int) -> tuple[jax.Array, Cache]:
            output = self(ids_BT, cache=cache, positions=positions, visible=visible, copies=copies)
            assert output.cache is not None
            return output.logits, output.cache

        if ids_BT.shape[1] > 1:
            return run(1)
        return platforms.choose(tpu=partial(run, 2), default=partial(run, 1))

    def _scan(
        self, x_BTD: jax.Array, cross_kv: tuple[KeyValue, ...], bias: jax.Array, rngs: nnx.Rngs | None
    ) -> jax.Array:
        """All blocks at once, without a cache."""

        def call(block: DecoderBlock, x: jax.Array, rngs: nnx.Rngs | None, cross: KeyValue) -> jax.Array:
            return self._drop_layer(x, block(x, None, cross, 0, bias, rngs)[0], rngs)

        return self.blocks.scan(call, x_BTD, rngs, cross_kv)

    def _check_length(self, tokens: int) -> None:
        if self.max_positions is not None and tokens > self.max_positions:
            raise ValueError(f"{tokens} decoder tokens are more than the {self.max_positions} positions of the model")

    def _drop_layer(self, before: jax.Array, after: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        """LayerDrop (arXiv:1909.11556): in training, a whole layer is skipped at random."""
        if self.layerdrop == 0 or self.dropout.deterministic or rngs is None:
            return after
        return jnp.where(jax.random.bernoulli(rngs.dropout(), self.layerdrop), before, after)
