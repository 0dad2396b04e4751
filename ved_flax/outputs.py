"""What encoders, decoders and the whole model return: pytree dataclasses; what was not asked for is None."""

import dataclasses
from typing import Any

import jax

from ved_flax.layers.cache import Cache

Arrays = tuple[jax.Array, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EncoderOutput:
    """`last_hidden_state` (B, P, D); `hidden_states`: the embeddings and every layer's output; `attentions`: per layer
    (B, N, P, P)."""

    last_hidden_state: jax.Array
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecoderOutput:
    """`logits` (B, T, V) float32; `hidden_states` (B, T, D) each; `attentions` (B, N, T, T or L); `cross_attentions`
    (B, N, T, P)."""

    logits: jax.Array
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None
    cross_attentions: Arrays | None = None
    cache: Cache | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VisionEncoderDecoderOutput:
    """The fields of transformers' Seq2SeqLMOutput; `cache` where one was given."""

    loss: jax.Array | None
    logits: jax.Array
    decoder_hidden_states: Arrays | None
    decoder_attentions: Arrays | None
    cross_attentions: Arrays | None
    encoder_last_hidden_state: jax.Array
    encoder_hidden_states: Arrays | None
    encoder_attentions: Arrays | None
    cache: Cache | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GenerateOutput:
    """What generate() returns of B images with R sequences in all, K hypotheses of each image running, over S steps.

    `sequences` (R, L) int32: the prompt first, padded behind the end token. Of its N = L - prompt generated
    tokens: `token_log_probs` (R, N) float32, the model's own, before any processing, 0 behind the end and for a token
    that an option forced; `confidences` (R,), the geometric mean of their probabilities, end token included;
    `beam_indices` (R, N), the running hypothesis, of B * K, that each was chosen in, -1 behind the end;
    `decoder_attentions` (R, heads, N, L - 1), `cross_attentions` (R, heads, N, P) and `decoder_hidden_states` (R, N,
    D), per layer, at the step that chose each. `sequences_scores` (R,): beam search's; `scores`, `logits`: tuples of S
    arrays (B * K, V), after and before processing.
    """

    sequences: jax.Array
    token_log_probs: jax.Array
    confidences: jax.Array
    sequences_scores: jax.Array | None = None
    scores: Arrays | None = None
    logits: Arrays | None = None
    beam_indices: jax.Array | None = None
    decoder_attentions: Arrays | None = None
    cross_attentions: Arrays | None = None
    decoder_hidden_states: Arrays | None = None
    encoder_attentions: Arrays | None = None
    encoder_hidden_states: Arrays | None = None


class Record:
    """Collects per-layer results where they were asked for."""

    def __init__(self, hidden_states: bool, attentions: bool) -> None:
        self.need_weights = attentions
        self._hidden_states: list[jax.Array] | None = [] if hidden_states else None
        self._attentions: list[tuple[Any, ...]] | None = [] if attentions else None

    @property
    def wanted(self) -> bool:
        """Whether anything is collected."""
        return self._hidden_states is not None or self.need_weights

    def state(self, x: jax.Array) -> None:
        """One hidden state."""
        if self._hidden_states is not None:
            self._hidden_states.append(x)

    def weights(self, *kinds: jax.Array | None) -> None:
        """One layer's attention weights, one array for each kind of attention that it has."""
        if self._attentions is not None:
            self._attentions.append(kinds)

    @property
    def hidden_states(self) -> Arrays | None:
        return None if self._hidden_states is None else tuple(self._hidden_states)

    def attentions(self, kind: int = 0) -> Arrays | None:
        """All layers' weights of one kind."""
        return None if self._attentions is None else tuple(layer[kind] for layer in self._attentions)
