"""Which processors change the scores, in transformers' order, and the numbers that they take."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ved_core.configs.base import shorten
from ved_core.errors import GenerationError
from ved_core.generation.config import GenerationConfig
from ved_core.generation.plan import Numbers, Plan

DEFAULT_TOP_K = 50
"""transformers' own default, where sampling is asked for."""


def ids_of(value: int | Sequence[int] | None) -> tuple[int, ...]:
    """A field that holds one id, several or none."""
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def biases(value: Any) -> list[tuple[tuple[int, ...], float]]:
    """sequence_bias, a dict or a list of pairs, as pairs; the last one of equal ids counts."""
    pairs = value.items() if isinstance(value, dict) else value or ()
    return list({tuple(ids): float(bias) for ids, bias in pairs}.items())


def with_processors(
    plan: Plan,
    values: GenerationConfig,
    numbers: Numbers,
    vocabulary: int,
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
