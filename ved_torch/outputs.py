"""What encoders, decoders and the whole model return; what was not asked for is None."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ved_torch.layers.cache import Cache

Tensors = tuple[Tensor, ...]


class Output:
    """A dataclass that can be read like transformers' ModelOutput: by attribute, by name, or by place among the fields
    that are not None. Iterating gives these fields' names; `to_tuple` their values."""

    def keys(self) -> list[str]:
        """Names of the fields that are not None."""
        names = [field.name for field in dataclasses.fields(self)]  # type: ignore[arg-type]
        return [name for name in names if getattr(self, name) is not None]

    def values(self) -> list[Any]:
        return [getattr(self, name) for name in self.keys()]

    def items(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self.keys()]

    def to_tuple(self) -> tuple[Any, ...]:
        """Values of the fields that are not None."""
        return tuple(self.values())

    def get(self, name: str, default: Any = None) -> Any:
        return getattr(self, name) if name in self else default

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self:
            raise KeyError(key)
        return getattr(self, key)

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())


@dataclasses.dataclass(frozen=True)
class EncoderOutput(Output):
    """`last_hidden_state` (B, P, D); `hidden_states`: the embeddings and every layer's output; `attentions`: per layer
    (B, N, P, P)."""

    last_hidden_state: Tensor
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclasses.dataclass(frozen=True)
class DecoderOutput(Output):
    """`logits` (B, T, V) float32; `hidden_states` (B, T, D) each; `attentions` (B, N, T, S); `cross_attentions`
    (B, N, T, P)."""

    logits: Tensor
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None
    cache: Cache | None = None


@dataclasses.dataclass(frozen=True)
class VisionEncoderDecoderOutput(Output):
    """The fields of transformers' Seq2SeqLMOutput; `past_key_values` where a cache was given or asked for."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    decoder_hidden_states: Tensors | None = None
    decoder_attentions: Tensors | None = None
    cross_attentions: Tensors | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: Tensors | None = None
    encoder_attentions: Tensors | None = None


@dataclasses.dataclass(frozen=True)
class GenerateOutput(Output):
    """What generate() returns of B images with R sequences in all, K hypotheses of each image running, over S steps.

    `sequences` (R, L) int64: the prompt first, padded behind the end token. Of its N = L - prompt generated
    tokens: `token_log_probs` (R, N) float32, the model's own, before any processing, 0 behind the end and for a token
    that an option forced; `confidences` (R,), the geometric mean of their probabilities, end token included;
    `beam_indices` (R, N), the running hypothesis, of B * K, that each was chosen in, -1 behind the end;
    `decoder_attentions` (R, heads, N, L - 1), `cross_attentions` (R, heads, N, P) and `decoder_hidden_states` (R, N,
    D), per layer, at the step that chose each. `sequences_scores` (R,): beam search's; `scores`, `logits`: tuples of S
    tensors (B * K, V), after and before processing.
    """

    sequences: Tensor
    token_log_probs: Tensor
    confidences: Tensor
    sequences_scores: Tensor | None = None
    scores: Tensors | None = None
    logits: Tensors | None = None
    beam_indices: Tensor | None = None
    decoder_attentions: Tensors | None = None
    cross_attentions: Tensors | None = None
    decoder_hidden_states: Tensors | None = None
    encoder_attentions: Tensors | None = None
    encoder_hidden_states: Tensors | None = None


class Record:
    """Collects per-layer results where they were asked for."""

    def __init__(self, hidden_states: bool, attentions: bool) -> None:
        self.need_weights = attentions
        self._hidden_states: list[Tensor] | None = [] if hidden_states else None
        self._attentions: list[tuple[Any, ...]] | None = [] if attentions else None

    def state(self, x: Tensor) -> None:
        """One hidden state."""
        if self._hidden_states is not None:
            self._hidden_states.append(x)

    def weights(self, *kinds: Tensor | None) -> None:
        """One layer's attention weights, one tensor for each kind of attention that it has."""
        if self._attentions is not None:
            self._attentions.append(kinds)

    @property
    def hidden_states(self) -> Tensors | None:
        return None if self._hidden_states is None else tuple(self._hidden_states)

    def attentions(self, kind: int = 0) -> Tensors | None:
        """All layers' weights of one kind."""
        return None if self._attentions is None else tuple(layer[kind] for layer in self._attentions)
