"""What frameworks are given: `Plan`, which is compiled, `Rows`, what each image brings, and `Request`, with both."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ved_core.errors import GenerationError
from ved_core.generation.config import GenerationConfig

Numbers = dict[str, Any]
"""Arrays by name: what options are worth. Another value needs no other compilation, another shape does."""


class Plan(NamedTuple):
    """What a compiled loop depends on: hashable, and part of the key of its compilation."""

    prompt: int
    """Columns of the prompt, the start token included."""
    steps: int
    """Most tokens that may follow it."""
    streams: int = 1
    """Hypotheses that run for each image."""
    returned: int = 1
    """Sequences that come back for each image."""
    do_sample: bool = False
    beams: bool = False
    """Whether the streams of an image compete."""
    ends: int = 1
    """How many end tokens there are."""
    early_stopping: bool | str = False
    processors: tuple[str, ...] = ()
    """What changes the scores, in this order."""
    ngram: int = 0
    """no_repeat_ngram_size."""
    most_top_k: int = 0
    """A power of two that top_k is not above."""
    kept: int = 1
    """How many of the best tokens no filter of sampling takes away."""
    stops: bool = False
    """Whether there are stop strings."""
    masked: bool = False
    """Whether prompts have padding."""
    scores: bool = False
    logits: bool = False
    """Whether each step's scores, after and before processing, are wanted."""
    custom: tuple[Callable[..., Any], ...] = ()
    """logits_processor."""
    allowed: Callable[[int, Any], Sequence[int]] | None = None
    """prefix_allowed_tokens_fn."""

    @property
    def length(self) -> int:
        """Columns of the longest sequence."""
        return self.prompt + self.steps

    @property
    def slots(self) -> int:
        """Places in an image's cache: one for each token of the prompt but its last, and one for each token that a
        stream feeds."""
        return self.prompt - 1 + self.steps * self.streams

    @property
    def candidates(self) -> int:
        """Continuations that beam search looks at: enough that the running hypotheses go on when all the best end."""
        return max(2, 1 + self.ends) * self.streams


class Rows(NamedTuple):
    """What each image of a batch brings: arrays whose first axis is the batch, sharded as the images are."""

    prompt_BT: np.ndarray
    """int32, padding on the left."""
    mask_BT: np.ndarray
    """bool, False for padding."""
    row_B: np.ndarray
    """int32, its place in the whole batch: what its random numbers depend on."""
    live_B: np.ndarray
    """bool, False for a row that only fills the batch up."""
    limit_B: np.ndarray
    """int32, how long it may become, its own prompt included and padding not."""
    stop_B: np.ndarray
    """int32, the stop strings' automaton behind the prompt."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A call of generate(), resolved."""

    plan: Plan
    numbers: Numbers
    rows: Rows
    config: GenerationConfig
    """The options' values."""
    prompt: np.ndarray
    """(B, T), as it was given, padding where the caller has it."""


def check_request(request: Request, batch: int, options: Mapping[str, Any]) -> Request:
    """The request, where it is for so many images and no option stands beside it. Raises GenerationError."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise GenerationError(f"{' and '.join(given)} cannot go with a request, which has all options: leave out one")
    if len(request.prompt) != batch:
        raise GenerationError(f"the request is for {len(request.prompt)} images, not for {batch}: make another")
    return request


def check_streamable(plan: Plan, chunk_size: int) -> None:
    """Raise GenerationError where there is nothing to give before the end, or ValueError for no tokens at a time."""
    if plan.beams:
        raise GenerationError("a stream needs num_beams=1: beam search decides on its tokens only at the end")
    if chunk_size < 1:
        raise ValueError(f"chunk_size = {chunk_size} should be at least 1")
