"""The loop: feed the last tokens, process the scores, let the strategy choose, until every row has ended."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ved_core.generation.plan import Numbers, Plan, Rows
from ved_torch.generation.processors import Context, forced, process
from ved_torch.generation.state import Records, State
from ved_torch.generation.strategies import Step, beams, independent
from ved_torch.layers.cache import Cache


class DecodeStep(Protocol):
    """Scores (B, K, V) float32 of what follows ids (B, K), one token of each stream, all of a row at one position
    (B, 1); and the cache with them in it. `visible_BKC`: the slots of the cache that each may attend to, None where it
    is all that are filled."""

    def __call__(
        self, ids_BK: Tensor, cache: Cache, visible_BKC: Tensor | None, position_B1: Tensor
    ) -> tuple[Tensor, Cache]: ...


class Generated(NamedTuple):
    """Rows are `plan.returned` for each image. `ids_RL` int64, padded; `log_probs_RS` float32, the model's, of each new
    token, 0 behind the end and where it had no choice; `path_RS` int64, the stream that each was chosen in, -1 behind
    the end; `scores_R`: of beam search's sequences; `records`: of every step; `steps`: how many there were."""

    ids_RL: Tensor
    log_probs_RS: Tensor
    path_RS: Tensor
    scores_R: Tensor | None
    records: Records
    steps: int


def running(state: State, plan: Plan) -> bool:
    """Whether there is anything left to do."""
    return state.new < plan.steps and not bool(state.done_BK.all())


def advance(
    step: DecodeStep,
    state: State,
    first_B: Tensor,
    rows: Rows,
    numbers: Numbers,
    plan: Plan,
    generators: list[torch.Generator],
    until: int,
) -> State:
    """Steps until `until` tokens were generated or all have ended. `first_B`: the position of the prompt's last
    token."""
    length_B = torch.as_tensor(rows.mask_BT).sum(dim=1)
    limit_R = torch.as_tensor(rows.limit_B).repeat_interleave(plan.streams)
    row_R = torch.as_tensor(rows.row_B).repeat_interleave(plan.streams)
    while state.new < until and running(state, plan):
        new = state.new
        column = plan.prompt + new
        own_B = length_B + new
        ids_BKL = state.sequences.ids_BKL
        visible, slot = state.visible_BKC, plan.prompt - 1 + new * plan.streams
        if visible is not None:
            streams = torch.arange(plan.streams, device=visible.device)
            visible[:, streams, slot + streams] = True
            visible = visible[:, :, : slot + plan.streams]
        position = first_B if new == 0 else own_B - 1
        logits_BKV, cache = step(ids_BKL[:, :, column - 1], state.cache, visible, position[:, None])
        log_probs_BKV = logits_BKV.log_softmax(dim=-1)

        context = Context(
            ids_BKL.flatten(0, 1),
            column,
            own_B.repeat_interleave(plan.streams),
            new,
            limit_R,
            row_R,
            state.done_BK.flatten(),
            numbers,
            plan,
        )
        scores = process((log_probs_BKV if plan.beams else logits_BKV).flatten(0, 1), context)
        for record, values in zip(state.records, (scores, logits_BKV.flatten(0, 1)), strict=True):
            if record is not None:
                record.append(values)
        choice = Step(
            scores.view_as(logits_BKV),
            log_probs_BKV,
            column,
            own_B,
            forced(context).view(state.done_BK.shape),
            rows,
            numbers,
            plan,
            generators,
        )
        state = state._replace(cache=cache)
        state = beams(state, choice) if plan.beams else independent(state, choice)
    return state


def result(state: State, plan: Plan) -> Generated:
    """What comes back of a loop that has ended."""
    sequences = state.sequences if state.finished is None else state.finished.sequences
    scores = None if state.finished is None else state.finished.scores_BK[:, : plan.returned].flatten()
    ids, log_probs, path = (array[:, : plan.returned].flatten(0, 1) for array in sequences)
    return Generated(ids, log_probs, path, scores, state.records, state.new)
