"""`Request`: one call's decoding, resolved: what is compiled, what may change freely, and what each row brings."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ved_core.configs.base import shorten
from ved_core.configs.model import VisionEncoderDecoderConfig
from ved_core.errors import GenerationError
from ved_core.generation.config import GenerationConfig
from ved_core.generation.options import DEFAULT_MAX_LENGTH, Options
from ved_core.generation.prompts import Prompt
from ved_core.stop_strings import StopStrings, stop_strings

DEFAULT_TOP_K = 50
"""transformers' own default, where sampling is asked for."""

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


def plan_decoding(
    options: Options,
    config: VisionEncoderDecoderConfig,
    batch: int,
    *,
    longest: int | None,
    prompt: Any = None,
    mask: Any = None,
    prepend_start: bool | None = None,
    tokenizer: Any = None,
    logits_processor: Any = None,
    prefix_allowed_tokens_fn: Callable[[int, Any], Sequence[int]] | None = None,
    batch_buckets: Sequence[int] | None = None,
) -> Request:
    """Resolve a call for `batch` images. `longest`: positions that the decoder has, None where it has no end.

    Raises GenerationError for an unsupported or contradicting option, a missing start token, ids outside the vocabulary
    or a length beyond the decoder's positions; ConfigError for values of a wrong type.
    """
    options.refuse_unsupported()
    values = options.config()
    vocabulary = config.decoder.vocab_size
    _check_ids(values, vocabulary)
    _check_forced(values)
    ends = ids_of(values.eos_token_id)
    pad = values.pad_token_id
    if pad is None:
        # As transformers does. Without an end token no row is ever padded.
        pad = ends[0] if ends else 0
    given = Prompt.of(prompt, mask, batch, vocabulary, pad)
    given = given.begun(_start(values, given), "donut" in config.encoder.model_type, prepend_start)
    columns = given.ids_BT.shape[1]
    limit_B = _limits(values, given.lengths, columns, longest)
    steps = int((limit_B - given.lengths).max())

    beams = (values.num_beams or 1) > 1
    sample = bool(values.do_sample)
    returned = values.num_return_sequences or 1
    streams = values.num_beams if beams else returned
    assert streams is not None
    if returned > 1 and not beams and not sample:
        raise GenerationError(
            f"num_return_sequences = {returned}: greedy decoding has one result; set do_sample=True or num_beams"
        )
    if returned > streams:
        raise GenerationError(f"num_return_sequences = {returned} is more than num_beams = {streams}")
    plan = Plan(
        columns,
        steps,
        streams,
        returned,
        sample,
        beams,
        len(ends),
        bool(values.early_stopping) if values.early_stopping != "never" else "never",
        kept=max(2, len(ends) + 1) if beams else 1,
        masked=given.masked,
        scores=bool(values.output_scores),
        logits=bool(values.output_logits),
    )
    if beams and plan.candidates > streams * vocabulary:
        raise GenerationError(f"num_beams = {streams} needs more than a vocabulary of {vocabulary} tokens")
    # transformers fills beams with its first end token where the padding id is 0.
    fill = ends[0] if beams and ends and pad == 0 else pad
    numbers: Numbers = {
        "pad": np.int32(fill),
        "eos": np.array(ends, np.int32),
        "length_penalty": np.float32(1.0 if values.length_penalty is None else values.length_penalty),
    }
    plan = _with_processors(plan, values, numbers, vocabulary, given, logits_processor, prefix_allowed_tokens_fn)
    stop_B = np.zeros(batch, np.int32)
    if values.stop_strings:
        table = _stop_table(values, tokenizer, vocabulary)
        numbers["stop_next"], numbers["stop_hit"] = table.next_state, table.stops
        stop_B = table.follow(given.ids_BT, given.mask_BT)
        plan = plan._replace(stops=True)
    rows = Rows(
        given.ids_BT.astype(np.int32),
        given.mask_BT,
        np.arange(batch, dtype=np.int32),
        np.ones(batch, bool),
        limit_B.astype(np.int32),
        stop_B,
    )
    return Request(plan, numbers, filled(rows, batch_buckets), values, given.given_BT)


def check_streamable(plan: Plan, chunk_size: int) -> None:
    """Raise GenerationError where there is nothing to give before the end, or ValueError for no tokens at a time."""
    if plan.beams:
        raise GenerationError("a stream needs num_beams=1: beam search decides on its tokens only at the end")
    if chunk_size < 1:
        raise ValueError(f"chunk_size = {chunk_size} should be at least 1")


def filled(rows: Rows, buckets: Sequence[int] | None) -> Rows:
    """`rows` repeated up to the smallest bucket that they fit into, the added ones not live."""
    if buckets is None:
        return rows
    batch = len(rows.row_B)
    size = min((size for size in buckets if size >= batch), default=None)
    if size is None:
        raise GenerationError(f"batch_buckets = {shorten(list(buckets))}: none holds a batch of {batch}; add a larger")
    picked = Rows(*(array[np.minimum(np.arange(size), batch - 1)] for array in rows))
    places = np.arange(size, dtype=np.int32)
    return picked._replace(row_B=places, live_B=places < batch)


def ids_of(value: int | Sequence[int] | None) -> tuple[int, ...]:
    """A field that holds one id, several or none."""
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def _start(values: GenerationConfig, given: Prompt) -> int | None:
    start = values.decoder_start_token_id
    start = values.bos_token_id if start is None else start
    if start is None and given.ids_BT.shape[1] == 0:
        raise GenerationError(
            "decoder_start_token_id is not set: decoding needs a first token. Set it with "
            "model.config.decoder_start_token_id = ... (often the tokenizer's cls_token_id or bos_token_id)"
        )
    return start


def _limits(values: GenerationConfig, lengths: np.ndarray, columns: int, longest: int | None) -> np.ndarray:
    """How long each row may become, its own prompt included."""
    if values.max_new_tokens is not None:
        limit_B = lengths + values.max_new_tokens
    elif values.max_length is not None:
        limit_B = np.full_like(lengths, values.max_length)
    else:
        limit_B = lengths + DEFAULT_MAX_LENGTH
        if longest is not None:
            limit_B = np.minimum(limit_B, max(longest, lengths.max() + 1))
    if (limit_B <= lengths).any():
        raise GenerationError(
            f"max_length = {values.max_length} leaves no room behind a prompt of {lengths.max()} tokens, the start "
            f"token included; {lengths.max() + 1} is the least"
        )
    # The last token is never fed back, so it needs no position.
    most = int(limit_B.max())
    if longest is not None and most > longest + 1:
        raise GenerationError(
            f"max_length = {most} (the start token included) is more than the decoder's {longest} positions allow; "
            f"the most is {longest + 1}, or max_new_tokens = {longest + 1 - int(lengths.max())}"
        )
    return limit_B


def _check_ids(values: GenerationConfig, vocabulary: int) -> None:
    """Raise GenerationError for an id that is no token."""
    single = ("decoder_start_token_id", "pad_token_id", "forced_bos_token_id", "forced_eos_token_id")
    named = [(name, ids_of(getattr(values, name))) for name in (*single, "suppress_tokens", "begin_suppress_tokens")]
    named += [("bad_words_ids", tuple(ids)) for ids in values.bad_words_ids or ()]
    named += [("sequence_bias", ids) for ids, _ in biases(values.sequence_bias)]
    for name, ids in named:
        for value in ids:
            if value >= vocabulary:
                raise GenerationError(f"{name} = {value} is outside the vocabulary of {vocabulary} tokens")


def _check_forced(values: GenerationConfig) -> None:
    """Raise GenerationError where a token is forced that is forbidden: no token would be left."""
    suppressed = set(values.suppress_tokens or ())
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        ids = ids_of(getattr(values, name))
        if ids and suppressed.issuperset(ids):
            raise GenerationError(f"{name} = {ids[0]} is suppressed by suppress_tokens: take it out of one of them")


def biases(value: Any) -> list[tuple[tuple[int, ...], float]]:
    """sequence_bias, a dict or a list of pairs, as pairs; the last one of equal ids counts."""
    pairs = value.items() if isinstance(value, dict) else value or ()
    return list({tuple(ids): float(bias) for ids, bias in pairs}.items())


def _stop_table(values: GenerationConfig, tokenizer: Any, vocabulary: int) -> StopStrings:
    if tokenizer is None:
        raise GenerationError(
            f"stop_strings = {shorten(values.stop_strings)} needs the text of tokens: pass tokenizer=... to generate()"
        )
    assert values.stop_strings is not None
    return stop_strings(tokenizer, values.stop_strings, vocabulary)


def _with_processors(
    plan: Plan,
    values: GenerationConfig,
    numbers: Numbers,
    vocabulary: int,
    given: Prompt,
    logits_processor: Any,
    allowed: Callable[[int, Any], Sequence[int]] | None,
) -> Plan:
    """The plan with what changes the scores, in transformers' order; its numbers are added to `numbers`."""
    names: list[str] = []

    def use(name: str, *values: Any) -> None:
        names.append(name)
        if values:
            numbers[name] = values if len(values) > 1 else values[0]

    if values.sequence_bias:
        use("sequence_bias", *_bias_table(biases(values.sequence_bias)))
    if values.repetition_penalty not in (None, 1.0):
        use("repetition_penalty", np.float32(_ranged(values, "repetition_penalty", above=0)))
    if values.no_repeat_ngram_size:
        use("no_repeat_ngram_size")
        plan = plan._replace(ngram=values.no_repeat_ngram_size)
    words = [tuple(ids) for ids in values.bad_words_ids or () if len(ids) > 1 or ids[0] not in numbers["eos"]]
    if words:
        use("bad_words_ids", *_bias_table([(ids, -np.inf) for ids in dict.fromkeys(words)]))
    # Lengths are counted in a row's own tokens, padding left out.
    if plan.ends and values.min_new_tokens:
        use("min_new_tokens", np.int32(values.min_new_tokens))
    elif plan.ends and values.min_length:
        use("min_length", np.int32(values.min_length))
    if allowed is not None:
        use("prefix_allowed_tokens_fn")
    if values.forced_bos_token_id is not None:
        use("forced_bos_token_id", np.array([values.forced_bos_token_id], np.int32))
    if values.forced_eos_token_id is not None:
        use("forced_eos_token_id", np.array(ids_of(values.forced_eos_token_id), np.int32))
    if values.suppress_tokens:
        use("suppress_tokens", np.array(values.suppress_tokens, np.int32))
    if values.begin_suppress_tokens:
        begin = int(plan.prompt == 1 and values.forced_bos_token_id is not None)
        use("begin_suppress_tokens", np.array(values.begin_suppress_tokens, np.int32), np.int32(begin))
    custom = _callables(logits_processor)
    if custom:
        use("logits_processor")
    if plan.do_sample:
        plan = _with_filters(plan, values, use, vocabulary)
    if values.renormalize_logits:
        use("renormalize_logits")
    return plan._replace(processors=tuple(names), custom=custom, allowed=allowed)


def _with_filters(plan: Plan, values: GenerationConfig, use: Callable[..., None], vocabulary: int) -> Plan:
    """What only sampling applies: temperature, and filters that each leave the likelier tokens."""
    if values.temperature not in (None, 1.0):
        use(
            "temperature",
            np.float32(_ranged(values, "temperature", above=0, hint="; or do_sample=False")),
        )
    top_k = DEFAULT_TOP_K if values.top_k is None else values.top_k
    if top_k:
        top_k = min(max(top_k, plan.kept), vocabulary)
        use("top_k", np.int32(top_k))
        plan = plan._replace(most_top_k=min(1 << (top_k - 1).bit_length(), vocabulary))
    if values.top_p is not None and values.top_p != 1:
        use("top_p", np.float32(_ranged(values, "top_p", least=0, most=1)))
    if values.min_p is not None:
        use("min_p", np.float32(_ranged(values, "min_p", least=0, most=1)))
    if values.typical_p is not None and values.typical_p != 1:
        use("typical_p", np.float32(_ranged(values, "typical_p", above=0, most=1)))
    for name in ("epsilon_cutoff", "eta_cutoff"):
        if getattr(values, name):
            use(name, np.float32(_ranged(values, name, above=0, below=1)))
    return plan._replace(kept=min(plan.kept, vocabulary))


def _ranged(
    values: GenerationConfig,
    name: str,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    hint: str = "",
) -> float:
    value = getattr(values, name)
    bounds = [
        ("above", above, lambda bound: value > bound),
        ("at least", least, lambda bound: value >= bound),
        ("below", below, lambda bound: value < bound),
        ("at most", most, lambda bound: value <= bound),
    ]
    for words, bound, holds in bounds:
        if bound is not None and not holds(bound):
            raise GenerationError(f"{name} = {value} should be {words} {bound}{hint}")
    return value


def _bias_table(biases: list[tuple[tuple[int, ...], float]]) -> tuple[np.ndarray, np.ndarray]:
    """Sequences (S, W) int32, filled with -1 on the left, and what is added to the score of each one's last token."""
    width = max(len(ids) for ids, _ in biases)
    table = np.full((len(biases), width), -1, np.int32)
    for row, (ids, _) in zip(table, biases, strict=True):
        row[width - len(ids) :] = ids
    return table, np.array([bias for _, bias in biases], np.float32)


def _callables(logits_processor: Any) -> tuple[Callable[..., Any], ...]:
    if logits_processor is None:
        return ()
    several = tuple(logits_processor) if isinstance(logits_processor, list | tuple) else (logits_processor,)
    if not all(callable(one) for one in several):
        raise GenerationError(f"logits_processor = {shorten(logits_processor)} should be a function or a list of them")
    return several
