"""`plan_decoding`: one call's options, resolved and checked, as a `Request`."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ved_core.configs.base import shorten
from ved_core.configs.model import VisionEncoderDecoderConfig
from ved_core.errors import GenerationError
from ved_core.generation.config import GenerationConfig
from ved_core.generation.options import DEFAULT_MAX_LENGTH, Options
from ved_core.generation.plan import Numbers, Plan, Request, Rows
from ved_core.generation.processors import biases, ids_of, with_processors
from ved_core.generation.prompts import Prompt
from ved_core.stop_strings import StopStrings, stop_strings


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

    plan = _searching(values, Plan(columns, steps, ends=len(ends), masked=given.masked), vocabulary)
    # transformers fills beams with its first end token where the padding id is 0.
    fill = ends[0] if plan.beams and ends and pad == 0 else pad
    numbers: Numbers = {
        "pad": np.int32(fill),
        "eos": np.array([token for token in ends if token < vocabulary], np.int32),
        "length_penalty": np.float32(1.0 if values.length_penalty is None else values.length_penalty),
    }
    plan = with_processors(plan, values, numbers, vocabulary, logits_processor, prefix_allowed_tokens_fn)
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


def _searching(values: GenerationConfig, plan: Plan, vocabulary: int) -> Plan:
    """The plan with its strategy, and with what is kept of every step."""
    beams = (values.num_beams or 1) > 1
    returned = values.num_return_sequences or 1
    streams = values.num_beams if beams else returned
    assert streams is not None
    if returned > 1 and not beams and not values.do_sample:
        raise GenerationError(
            f"num_return_sequences = {returned}: greedy decoding has one result; set do_sample=True or num_beams"
        )
    if returned > streams:
        raise GenerationError(f"num_return_sequences = {returned} is more than num_beams = {streams}")
    plan = plan._replace(
        streams=streams,
        returned=returned,
        do_sample=bool(values.do_sample),
        beams=beams,
        early_stopping="never" if values.early_stopping == "never" else bool(values.early_stopping),
        kept=max(2, plan.ends + 1) if beams else 1,
        scores=bool(values.output_scores),
        logits=bool(values.output_logits),
    )
    if beams and plan.candidates > streams * vocabulary:
        raise GenerationError(f"num_beams = {streams} needs more than a vocabulary of {vocabulary} tokens")
    return plan


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


def _stop_table(values: GenerationConfig, tokenizer: Any, vocabulary: int) -> StopStrings:
    if tokenizer is None:
        raise GenerationError(
            f"stop_strings = {shorten(values.stop_strings)} needs the text of tokens: pass tokenizer=... to generate()"
        )
    assert values.stop_strings is not None
    return stop_strings(tokenizer, values.stop_strings, vocabulary)
