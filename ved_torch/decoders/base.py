"""`Decoder`: what all text decoders share: caches, masks, the vocabulary head."""

import abc
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ved_core.configs import DecoderConfig
from ved_torch.decoders.blocks import DecoderBlock
from ved_torch.half import Half
from ved_torch.layers import cache as caches
from ved_torch.layers.attention import causal_bias, visible_bias
from ved_torch.layers.blocks import Blocks
from ved_torch.layers.build import Builder, Init
from ved_torch.layers.cache import Cache, KeyValue
from ved_torch.layers.linear import Linear, product, suits
from ved_torch.layers.packing import Packing
from ved_torch.layers.slicing import filled_up, sliceable
from ved_torch.outputs import DecoderOutput, Record


class Decoder(Half):
    """Token ids and image tokens to vocabulary scores.

    A subclass sets `tokens` (the embedding), `blocks`, `head` (None where it is tied to `tokens`) and
    `max_positions` (None where there is no last position), and defines `embed`. It may set `transform`, `head_bias`
    and `layerdrop`, and define `finish`.
    """

    tokens: nn.Embedding
    blocks: Blocks
    head: nn.Linear | None
    max_positions: int | None
    transform: nn.Module | None
    """Between the last hidden state and the head."""
    head_bias: nn.Parameter | None
    """(V,), added to the scores."""
    layerdrop: float = 0.0
    blocked: Tensor | None = None
    """`table` in the order in which oneDNN reads it, while `packing` lends it."""

    def __init__(self, cfg: DecoderConfig, init: Init) -> None:
        """`init`: of entries that are added to the vocabulary later."""
        super().__init__(cfg)
        self.init = init
        self.transform = None
        self.head_bias = None
        self.packing = Packing()

    def make_head(self, width: int, vocab_size: int, tied: bool, make: Builder) -> nn.Linear | None:
        """The vocabulary head, or None where the token embedding serves as one."""
        return None if tied else make.linear(width, vocab_size, bias=False)

    @abc.abstractmethod
    def embed(self, input_ids: Tensor | None, embeds_BTD: Tensor, positions: Tensor) -> Tensor:
        """Token embeddings with their positions, (T,) or (B, T), counted from 0."""

    def count_positions(self, input_ids: Tensor | None, tokens: int, index: int, device: torch.device) -> Tensor:
        """Positions of new tokens behind `index` others, (T,) or (B, T)."""
        return torch.arange(index, index + tokens, device=device)

    def finish(self, x_BTD: Tensor) -> Tensor:
        """The last block's output to the last hidden state."""
        return x_BTD

    def scores(self, x_BTD: Tensor) -> Tensor:
        """The last hidden state to scores (B, T, V), float32."""
        if self.transform is not None:
            x_BTD = self.transform(x_BTD)
        table_VD = self.table()
        if suits(x_BTD, table_VD):
            logits = product(x_BTD, table_VD, blocked=self.blocked)
        elif x_BTD.shape[1] == 1 and x_BTD.device.type == "cpu" and not torch.is_grad_enabled():
            # A decoding step on CPU: with the table on the left, the product of its few rows took a half to a quarter
            # of the time.
            logits = torch.mm(table_VD, x_BTD[:, 0].T).T.contiguous()[:, None].float()
        else:
            logits = F.linear(x_BTD, table_VD).float()
        return logits if self.head_bias is None else logits + self.head_bias.float()

    @property
    def cross_heads(self) -> int:
        """Heads of each cross-attention."""
        return cast("DecoderBlock", self.blocks[0]).cross_attn.heads

    def table(self) -> Tensor:
        """(V, D), whose product with the last hidden state is the scores."""
        return self.tokens.weight if self.head is None else self.head.weight

    def pack(self) -> None:
        """Reorder the matrices that every step reads, on a CPU, where that is not done or they have changed since.
        `packing.lent()` lets the steps inside it use them."""
        blocks = cast("Iterable[DecoderBlock]", self.blocks)
        once = {id(linear) for block in blocks for linear in (block.cross_attn.k, block.cross_attn.v)}
        every = (part for part in self.modules() if isinstance(part, Linear) and id(part) not in once)
        weights: dict[Any, Tensor] = {linear: linear.weight for linear in every if linear is not self.head}
        self.packing.renew(weights | {self: self.table()})

    def cross_kv(self, encoder_hidden_states: Tensor) -> tuple[KeyValue, ...]:
        """Every layer's keys and values of the image tokens (B, P, width)."""
        attentions = [block.cross_attn for block in cast("Iterable[DecoderBlock]", self.blocks)]
        linears = [linear for attention in attentions for linear in (attention.k, attention.v)]
        if not sliceable(encoder_hidden_states, linears):
            return tuple(attention.keys_values(encoder_hidden_states) for attention in attentions)
        tokens, filled_BPD = encoder_hidden_states.shape[1], filled_up(encoder_hidden_states)
        return tuple(attention.keys_values(filled_BPD).first(tokens).by_heads() for attention in attentions)

    def init_cache(self, encoder_hidden_states: Tensor, length: int) -> Cache:
        """A cache for `length` tokens, cross-attention's part filled."""
        return caches.empty(self.cross_kv(encoder_hidden_states), length)

    def resize_token_embeddings(self, entries: int) -> nn.Embedding:
        """Cut the vocabulary, or add newly initialised entries; an untied head follows, and the config."""
        self.config.vocab_size = entries
        self.tokens.weight = self._resized(self.tokens.weight, entries)
        self.tokens.num_embeddings = entries
        if self.head is not None:
            self.head.weight = self._resized(self.head.weight, entries)
            self.head.out_features = entries
        if self.head_bias is not None:
            bias = F.pad(self.head_bias.detach()[:entries], (0, max(entries - len(self.head_bias), 0)))
            self.head_bias = nn.Parameter(bias, requires_grad=self.head_bias.requires_grad)
        return self.tokens

    def tie(self) -> None:
        """Let the token embedding serve as the vocabulary head."""
        self.head = None

    def untie(self) -> None:
        """Give the vocabulary head a weight of its own, a copy of the token embedding; the config follows."""
        self.config.tie_word_embeddings = False
        if self.head is None:
            table = self.tokens.weight
            self.head = Linear(table.shape[1], table.shape[0], bias=False, device="meta", dtype=table.dtype)
            self.head.weight = nn.Parameter(table.detach().clone(), requires_grad=table.requires_grad)

    def _resized(self, table_VD: Tensor, entries: int) -> nn.Parameter:
        added = table_VD.new_zeros(max(entries - len(table_VD), 0), table_VD.shape[1])
        with torch.no_grad():
            self.init(added)
            rows = torch.cat([table_VD[:entries], added])
        return nn.Parameter(rows, requires_grad=table_VD.requires_grad)

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        cache: Cache | None = None,
        positions: Tensor | None = None,
        visible: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> DecoderOutput:
        """Score the tokens (B, T), or continue behind those in `cache`, whose buffers are written and grow as needed.

        Image tokens come from `encoder_hidden_states` or, with their keys and values made, from `cache`.
        `attention_mask`: of the new tokens (B, T), or of those in the cache too (B, index + T). `positions` (B, T or 1)
        and `visible` (B, T, index + T), which of the cache's places each token sees, take the place of counting and of
        causality: tokens may be branches of a tree.
        Raises ValueError where both or neither of ids and embeddings are given, or too many tokens.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either decoder_input_ids or decoder_inputs_embeds")
        embeds = inputs_embeds if input_ids is None else self.tokens(input_ids)
        assert embeds is not None
        tokens = embeds.shape[1]
        index = 0 if cache is None else cache.index
        if positions is None:
            self._check_length(index + tokens)
            positions = self.count_positions(input_ids, tokens, index, embeds.device)
        mask_BS = _new_mask(attention_mask, index, tokens)
        memories: tuple[KeyValue | None, ...] = (None,) * len(self.blocks)
        if cache is None:
            if encoder_hidden_states is None:
                raise ValueError("give encoder_hidden_states or a cache")
            cross_kv = self.cross_kv(encoder_hidden_states)
        else:
            cache = cache.reserve(index + tokens)
            memories, cross_kv = cache.self_kv, cache.cross_kv
            mask_BL = cache.with_mask(mask_BS, tokens)
            mask_BS = None if mask_BL is None else mask_BL[:, : index + tokens]
        if visible is None:
            bias = causal_bias(index, tokens, mask_BS, dtype=embeds.dtype, device=embeds.device)
        else:
            bias = visible_bias(visible, embeds.dtype)

        record = Record(output_hidden_states, output_attentions)
        x = self.embed(input_ids, embeds, positions)
        written = []
        for block, memory, cross in zip(self.blocks, memories, cross_kv, strict=True):
            record.state(x)
            before = x
            x, kv, weights, cross_weights = self.blocks.run(block, x, memory, cross, index, bias, record.need_weights)
            x = self._drop_layer(before, x)
            written.append(kv)
            record.weights(weights, cross_weights)
        x = self.finish(x)
        record.state(x)
        return DecoderOutput(
            self.scores(x),
            record.hidden_states,
            record.attentions(0),
            record.attentions(1),
            None if cache is None else Cache(tuple(written), cross_kv, mask_BL, index + tokens),
        )

    def _check_length(self, tokens: int) -> None:
        if self.max_positions is not None and tokens > self.max_positions:
            raise ValueError(f"{tokens} decoder tokens are more than the {self.max_positions} positions of the model")

    def _drop_layer(self, before: Tensor, after: Tensor) -> Tensor:
        """LayerDrop (arXiv:1909.11556): in training, a whole layer is skipped at random."""
        if self.layerdrop == 0 or not self.training:
            return after
        return torch.where(torch.rand((), device=after.device) < self.layerdrop, before, after)


def _new_mask(attention_mask: Tensor | None, index: int, tokens: int) -> Tensor | None:
    """The new tokens' mask (B, T), bool. Raises ValueError for a mask of another length."""
    if attention_mask is None:
        return None
    length = attention_mask.shape[1]
    if length != tokens and length != index + tokens:  # not `in`, which torch.compile cannot ask of dynamic sizes
        raise ValueError(f"decoder_attention_mask has {length} columns for {tokens} new tokens behind {index}")
    return attention_mask[:, -tokens:].bool()
