"""What changes the scores of the next token: pure functions, by the name of the option that asks for them.

Each takes scores (R, V) float32 of R hypotheses, where the step stands, and the option's numbers. They follow
transformers' processors, in transformers' order.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ved_core.errors import GenerationError
from ved_core.generation.plan import Numbers, Plan


class Context(NamedTuple):
    """Where a step stands; padding of the prompt is on the left."""

    ids_RL: Tensor
    """Tokens so far."""
    columns: int
    """How many columns of `ids_RL` are filled."""
    own_R: Tensor
    """Tokens of each row's own, padding left out."""
    new: int
    """How many of them were generated."""
    limit_R: Tensor
    """How long each row may become."""
    row_R: Tensor
    """The image's place in the batch."""
    done_R: Tensor
    """Rows that have ended, whose scores nobody reads."""
    numbers: Numbers
    plan: Plan

    def recent(self, count: int) -> tuple[Tensor, Tensor]:
        """The last `count` ids (R, count), and which of them are a row's own."""
        back = torch.arange(count, 0, -1, device=self.ids_RL.device)
        return self.ids_RL[:, (self.columns - back).clamp(min=0)], back <= self.own_R[:, None]


Processor = Callable[[Tensor, Context, Any], Tensor]


def process(scores_RV: Tensor, context: Context) -> Tensor:
    """The scores after every processor of the plan."""
    for name in context.plan.processors:
        scores_RV = PROCESSORS[name](scores_RV, context, context.numbers.get(name))
    return scores_RV


def forced(context: Context) -> Tensor:
    """Rows (R,) whose next token is not the model's to choose."""
    forced_R = torch.zeros_like(context.done_R)
    if "forced_bos_token_id" in context.plan.processors:
        forced_R = forced_R | (context.own_R == 1)
    if "forced_eos_token_id" in context.plan.processors:
        forced_R = forced_R | (context.own_R == context.limit_R - 1)
    return forced_R


# Changes of single tokens ---------------------------------------------------------------------------------------------


def sequence_bias(scores_RV: Tensor, context: Context, biases: tuple[Tensor, Tensor]) -> Tensor:
    """Add to the score of a sequence's last token where the tokens before it are the last ones."""
    ids_SW, bias_S = biases
    prefix = ids_SW[:, :-1]
    recent, own = context.recent(prefix.shape[1])
    same = ((recent[:, None] == prefix) & own[:, None] | (prefix < 0)).all(dim=-1)
    return scores_RV.index_add(1, ids_SW[:, -1], torch.where(same, bias_S, 0.0))


def repetition_penalty(scores_RV: Tensor, context: Context, penalty: Tensor) -> Tensor:
    """Make tokens that were there before less likely (arXiv:1909.05858)."""
    columns = torch.arange(context.columns, device=scores_RV.device)
    own = columns >= (context.columns - context.own_R)[:, None]
    seen = _marked(scores_RV, context.ids_RL[:, : context.columns], own)
    return torch.where(seen, torch.where(scores_RV < 0, scores_RV * penalty, scores_RV / penalty), scores_RV)


def no_repeat_ngram_size(scores_RV: Tensor, context: Context, _: None) -> Tensor:
    """Forbid to complete a run of n tokens that was there before."""
    size, ids = context.plan.ngram, context.ids_RL[:, : context.columns]
    windows = ids.shape[1] - size + 1
    if windows < 1:
        return scores_RV
    recent, own = context.recent(size - 1)
    first = torch.arange(windows, device=ids.device)
    same = (first >= (context.columns - context.own_R)[:, None]) & own.all(dim=1)[:, None]
    for place in range(size - 1):
        same = same & (ids[:, place : place + windows] == recent[:, place, None])
    return scores_RV.masked_fill(_marked(scores_RV, ids[:, size - 1 :], same), -torch.inf)


def no_end_before(own_or_new: Callable[[Context], Tensor]) -> Processor:
    """Forbid the end tokens while a count is below the option's number."""

    def processor(scores_RV: Tensor, context: Context, least: Tensor) -> Tensor:
        without = scores_RV.index_fill(1, context.numbers["eos"], -torch.inf)
        return torch.where((own_or_new(context) < least)[..., None], without, scores_RV)

    return processor


def suppress_tokens(scores_RV: Tensor, context: Context, ids: Tensor) -> Tensor:
    """Forbid tokens."""
    return scores_RV.index_fill(1, ids, -torch.inf)


def begin_suppress_tokens(scores_RV: Tensor, context: Context, values: tuple[Tensor, Tensor]) -> Tensor:
    """Forbid tokens as the first that is generated, or behind a forced one."""
    ids, begin = values
    return suppress_tokens(scores_RV, context, ids) if context.new == begin else scores_RV


def forced_bos_token_id(scores_RV: Tensor, context: Context, ids: Tensor) -> Tensor:
    """One token behind the start token."""
    return torch.where((context.own_R == 1)[:, None], only(scores_RV, ids), scores_RV)


def forced_eos_token_id(scores_RV: Tensor, context: Context, ids: Tensor) -> Tensor:
    """One of these tokens at a row's last place."""
    return torch.where((context.own_R == context.limit_R - 1)[:, None], only(scores_RV, ids), scores_RV)


def only(scores_RV: Tensor, ids: Tensor) -> Tensor:
    """0 for `ids`, minus infinity for all others."""
    return torch.full_like(scores_RV, -torch.inf).index_fill(1, ids, 0)


def _marked(scores_RV: Tensor, ids_RL: Tensor, mask_RL: Tensor) -> Tensor:
    """Which tokens (R, V) stand in `ids_RL` where the mask says so."""
    rows, vocabulary = scores_RV.shape
    marked = torch.zeros(rows, vocabulary + 1, dtype=torch.bool, device=scores_RV.device)
    return marked.scatter(1, torch.where(mask_RL, ids_RL, vocabulary), True)[:, :-1]


# Functions of the caller's --------------------------------------------------------------------------------------------


def prefix_allowed_tokens_fn(scores_RV: Tensor, context: Context, _: None) -> Tensor:
    """Only what the caller's function allows behind a row's tokens."""
    assert context.plan.allowed is not None
    mask = torch.zeros(scores_RV.shape, dtype=torch.bool)
    columns, ids_RL = context.columns, context.ids_RL.cpu()
    rows = zip(context.own_R.tolist(), context.row_R.tolist(), context.done_R.tolist(), strict=True)
    for place, (own, row, done) in enumerate(rows):
        if done:
            mask[place] = True
            continue
        allowed = context.plan.allowed(row, ids_RL[place, columns - own : columns])
        if len(allowed) == 0:
            raise GenerationError(f"prefix_allowed_tokens_fn allows no token in row {row}")
        mask[place, torch.as_tensor(allowed)] = True
    mask = mask.to(scores_RV.device)
    left = scores_RV.masked_fill(~mask, -torch.inf)
    # Where all that is allowed was forbidden before, in every hypothesis of an image, what is allowed wins.
    streams = context.plan.streams
    none = (left.amax(dim=1) == -torch.inf).unflatten(0, (-1, streams)).all(dim=1).repeat_interleave(streams)
    return torch.where(none[:, None], torch.where(mask, 0.0, -torch.inf), left)


def logits_processor(scores_RV: Tensor, context: Context, _: None) -> Tensor:
    """The caller's functions of ids (R, T) and scores (R, V), transformers' processors among them."""
    for function in context.plan.custom:
        scores_RV = function(context.ids_RL[:, : context.columns], scores_RV)
    return scores_RV


# Sampling -------------------------------------------------------------------------------------------------------------


def temperature(scores_RV: Tensor, context: Context, value: Tensor) -> Tensor:
    """Flatten (above 1) or sharpen (below 1)."""
    return scores_RV / value


def top_k(scores_RV: Tensor, context: Context, value: Tensor) -> Tensor:
    """The k best (arXiv:1805.04833)."""
    return _at_least(scores_RV, scores_RV.topk(int(value), dim=1)[0][:, -1:])


def top_p(scores_RV: Tensor, context: Context, value: Tensor) -> Tensor:
    """The best that together have a probability of at least p (arXiv:1904.09751)."""
    ascending = scores_RV.sort(dim=1)[0]
    removed = ascending.softmax(dim=1).cumsum(dim=1) <= 1 - value
    removed[:, -context.plan.kept :] = False
    return _at_least(scores_RV, ascending.gather(1, removed.sum(dim=1, keepdim=True)))


def min_p(scores_RV: Tensor, context: Context, value: Tensor) -> Tensor:
    """Those that have at least this share of the best one's probability (arXiv:2407.01082)."""
    probs = scores_RV.softmax(dim=1)
    return _filtered(scores_RV, probs >= value * probs.amax(dim=1, keepdim=True), context)


def typical_p(scores_RV: Tensor, context: Context, value: Tensor) -> Tensor:
    """Those whose information is nearest to the expected one, up to a probability of p (arXiv:2202.00666)."""
    log_probs = scores_RV.log_softmax(dim=1)
    distance = (-log_probs - _entropy(log_probs)).abs()
    nearest, order = distance.sort(dim=1)
    mass = scores_RV.gather(1, order).softmax(dim=1).cumsum(dim=1)
    last = (mass < value).sum(dim=1, keepdim=True).clamp(context.plan.kept - 1, scores_RV.shape[1] - 1)
    return scores_RV.masked_fill(distance > nearest.gather(1, last), -torch.inf)


def epsilon_cutoff(scores_RV: Tensor, context: Context, value: Tensor) -> Tensor:
    """Those that have at least this probability (arXiv:2210.15191)."""
    return _filtered(scores_RV, scores_RV.softmax(dim=1) >= value, context)


def eta_cutoff(scores_RV: Tensor, context: Context, value: Tensor) -> Tensor:
    """As epsilon_cutoff, with a bound that falls as the distribution flattens (arXiv:2210.15191)."""
    log_probs = scores_RV.log_softmax(dim=1)
    bound = torch.minimum(value, value.sqrt() * (-_entropy(log_probs)).exp())
    return _filtered(scores_RV, log_probs.exp() >= bound, context)


def renormalize_logits(scores_RV: Tensor, context: Context, _: None) -> Tensor:
    """Log-probabilities again."""
    return scores_RV.log_softmax(dim=1)


def _entropy(log_probs_RV: Tensor) -> Tensor:
    """(R, 1)."""
    probs = log_probs_RV.exp()
    return -torch.where(probs > 0, log_probs_RV * probs, 0).sum(dim=1, keepdim=True)


def _at_least(scores_RV: Tensor, least_R1: Tensor) -> Tensor:
    return scores_RV.masked_fill(scores_RV < least_R1, -torch.inf)


def _filtered(scores_RV: Tensor, keep_RV: Tensor, context: Context) -> Tensor:
    """Scores that are to be kept, and the few best in any case."""
    best = scores_RV.topk(context.plan.kept, dim=1)[0][:, -1:]
    return scores_RV.masked_fill(~keep_RV & (scores_RV < best), -torch.inf)


PROCESSORS: dict[str, Processor] = {
    "sequence_bias": sequence_bias,
    "repetition_penalty": repetition_penalty,
    "no_repeat_ngram_size": no_repeat_ngram_size,
    "bad_words_ids": sequence_bias,
    "min_length": no_end_before(lambda context: context.own_R),
    "min_new_tokens": no_end_before(lambda context: torch.tensor([context.new], device=context.own_R.device)),
    "prefix_allowed_tokens_fn": prefix_allowed_tokens_fn,
    "forced_bos_token_id": forced_bos_token_id,
    "forced_eos_token_id": forced_eos_token_id,
    "suppress_tokens": suppress_tokens,
    "begin_suppress_tokens": begin_suppress_tokens,
    "logits_processor": logits_processor,
    "temperature": temperature,
    "top_k": top_k,
    "top_p": top_p,
    "min_p": min_p,
    "typical_p": typical_p,
    "epsilon_cutoff": epsilon_cutoff,
    "eta_cutoff": eta_cutoff,
    "renormalize_logits": renormalize_logits,
}
