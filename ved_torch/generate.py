"""Greedy decoding as one loop over preallocated caches."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ved_core.generation import DecodingPlan
from ved_torch.layers.cache import Cache


class DecodeStep(Protocol):
    """Scores (B, V) of what follows ids (B,), and the cache with them in it."""

    def __call__(self, ids_B: Tensor, cache: Cache) -> tuple[Tensor, Cache]: ...


class Generated(NamedTuple):
    """`ids_BL` int64, up to the longest row's last token; `log_probs_BL` float32, of each token, 0 at the start token
    and at padding."""

    ids_BL: Tensor
    log_probs_BL: Tensor


def force(scores_BV: Tensor, position: int, plan: DecodingPlan) -> Tensor:
    """Scores of the token at `position` (the start token's is 0), with no choice left where the plan forces one."""
    if plan.forced_bos is not None and position == 1:
        scores_BV = only(scores_BV, (plan.forced_bos,))
    if plan.forced_eos and position == plan.max_length - 1:
        scores_BV = only(scores_BV, plan.forced_eos)
    return scores_BV


def only(scores_BV: Tensor, ids: tuple[int, ...]) -> Tensor:
    """0 for `ids`, minus infinity for all others."""
    forced = torch.full_like(scores_BV, -torch.inf)
    forced[:, list(ids)] = 0
    return forced


def greedy(step: DecodeStep, cache: Cache, plan: DecodingPlan) -> Generated:
    """The likeliest token at each step, until every row has ended or is `plan.max_length` long."""
    device = cache.cross_kv[0].k.device
    ids = torch.full((cache.batch, plan.max_length), plan.pad, device=device)
    ids[:, 0] = plan.start
    log_probs = torch.zeros(ids.shape, device=device)
    finished_B = torch.zeros(cache.batch, dtype=torch.bool, device=device)
    ends = torch.tensor(plan.eos, dtype=torch.int64, device=device)
    position = 0
    while position < plan.max_length - 1 and not finished_B.all():
        scores_BV, cache = step(ids[:, position], cache)
        position += 1
        scores_BV = force(scores_BV, position, plan)
        best_B, chosen_B = scores_BV.max(dim=-1)
        ids[:, position] = torch.where(finished_B, plan.pad, chosen_B)
        log_probs[:, position] = torch.where(finished_B, 0, best_B - scores_BV.logsumexp(dim=-1))
        # Only generated tokens end a row: the start token is often the end token too.
        finished_B = finished_B | torch.isin(ids[:, position], ends)
    return Generated(ids[:, : position + 1], log_probs[:, : position + 1])


def lengths(ids_BL: Tensor, eos: tuple[int, ...]) -> Tensor:
    """Generated tokens of each row (B,), its end token included and the start token not."""
    ended = torch.isin(ids_BL[:, 1:], torch.tensor(eos, dtype=torch.int64, device=ids_BL.device))
    return torch.where(ended.any(dim=1), ended.int().argmax(dim=1) + 1, ended.shape[1])
