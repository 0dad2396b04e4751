"""Which tokens are chosen: the likeliest, drawn ones, or those of the best hypotheses (beam search)."""

from typing import NamedTuple

import torch
from torch import Tensor

from ved_core.generation.plan import Numbers, Plan, Rows
from ved_torch.generation.state import WORST, Finished, Sequences, State, take


class Step(NamedTuple):
    """What a strategy reads: the processed scores, the model's log-probabilities, both (B, K, V); `column`: of the ids,
    where the new token goes; `own_B`: tokens of each row so far."""

    scores_BKV: Tensor
    log_probs_BKV: Tensor
    column: int
    own_B: Tensor
    forced_BK: Tensor
    rows: Rows
    numbers: Numbers
    plan: Plan
    generators: list[torch.Generator]
    """One of each row: its draws are the same whatever the rows around it."""

    def log_probs(self, stream_BM: Tensor, token_BM: Tensor) -> Tensor:
        """The model's, of tokens in streams; 0 where it had no choice."""
        vocabulary = self.log_probs_BKV.shape[2]
        picked = self.log_probs_BKV.flatten(1).gather(1, stream_BM * vocabulary + token_BM)
        return picked.masked_fill(take(self.forced_BK, stream_BM), 0)

    def ends(self, token_BM: Tensor, state_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Which tokens end their sequences, and the stop strings' automaton behind them."""
        limit_B = torch.as_tensor(self.rows.limit_B)
        ends = torch.isin(token_BM, self.numbers["eos"]) | (self.own_B + 1 >= limit_B)[:, None]
        if self.plan.stops:
            ends = ends | self.numbers["stop_hit"][state_BM, token_BM]
            state_BM = self.numbers["stop_next"][state_BM, token_BM].long()
        return ends, state_BM

    def noise(self) -> Tensor:
        """Gumbel noise like the scores: the largest of log-probabilities with it added is a draw from them, the next
        largest a draw from what is left (arXiv:1903.06059)."""
        like = self.scores_BKV[0]
        draws = [torch.empty_like(like).exponential_(generator=generator) for generator in self.generators]
        return -torch.stack(draws).log()


def independent(state: State, step: Step) -> State:
    """Every stream takes its likeliest token, or draws one."""
    scores = step.scores_BKV + step.noise() if step.plan.do_sample else step.scores_BKV
    token = scores.argmax(dim=-1)
    stream = torch.arange(step.plan.streams, device=token.device).expand(token.shape)
    ends, stop = step.ends(token, state.stop_BK)
    log_prob = step.log_probs(stream, token).masked_fill(state.done_BK, 0)
    path = stream.masked_fill(state.done_BK, -1)
    token = torch.where(state.done_BK, step.numbers["pad"], token)
    state.sequences.extend(step.column, state.new, token, log_prob, path)
    return state._replace(done_BK=state.done_BK | ends, stop_BK=stop, new=state.new + 1)


def beams(state: State, step: Step) -> State:
    """Beam search as transformers does it: each image's best continuations go on, those that end are kept aside."""
    plan, streams = step.plan, step.plan.streams
    score, stream, token = _continuations(step.scores_BKV + state.running_BK[..., None], step)
    candidates = state.sequences.take(stream)
    candidates.extend(step.column, state.new, token, step.log_probs(stream, token), stream)
    ends, stop = step.ends(token, take(state.stop_BK, stream))

    running, going = (score + ends * WORST).topk(streams)
    finished = _finish(state, step, score, ends, candidates)
    going_on = take(stream, going)
    new = state.new + 1
    done = state.done_BK[:, :1] | ~_can_improve(finished, running, new, step) | ends.all(dim=1, keepdim=True)
    if plan.early_stopping is True:
        done = done | finished.taken_BK.all(dim=1, keepdim=True)
    assert state.visible_BKC is not None
    return state._replace(
        new=new,
        sequences=candidates.take(going),
        done_BK=done.expand(state.done_BK.shape),
        visible_BKC=take(state.visible_BKC, going_on),
        stop_BK=take(stop, going),
        running_BK=running,
        finished=finished,
    )


def _continuations(totals_BKV: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
    """Each image's best continuations, or drawn ones: their scores, streams and tokens (B, M)."""
    ranked = totals_BKV + step.noise() if step.plan.do_sample else totals_BKV
    places = ranked.flatten(1).topk(step.plan.candidates)[1]
    vocabulary = totals_BKV.shape[2]
    return totals_BKV.flatten(1).gather(1, places), places // vocabulary, places % vocabulary


def _finish(state: State, step: Step, score_BM: Tensor, ends_BM: Tensor, candidates: Sequences) -> Finished:
    """The best that ended, now or before. Of the continuations, only the first K may: the others are there so that the
    search can go on."""
    before = state.finished
    assert before is not None
    streams = step.plan.streams
    ended = ends_BM.clone()
    ended[:, streams:] = False
    score = score_BM / float(state.new + 1) ** step.numbers["length_penalty"] + ~ended * WORST
    scores = torch.cat([before.scores_BK, score], dim=1)
    taken = torch.cat([before.taken_BK, ended], dim=1)
    merged = Sequences(*(torch.cat(pair, dim=1) for pair in zip(before.sequences, candidates, strict=True)))
    best, places = scores.topk(streams)
    after = Finished(merged.take(places), best, take(taken, places))
    # An image that is done keeps what it has.
    done = state.done_BK[:, :1]
    kept = zip(before.sequences, after.sequences, strict=True)
    return Finished(
        Sequences(*(torch.where(done[..., None], old, new) for old, new in kept)),
        torch.where(done, before.scores_BK, after.scores_BK),
        torch.where(done, before.taken_BK, after.taken_BK),
    )


def _can_improve(finished: Finished, running_BK: Tensor, new: int, step: Step) -> Tensor:
    """Whether an image's best running hypothesis could still come before its worst finished one (B, 1)."""
    penalty = step.numbers["length_penalty"]
    length_B1 = torch.full_like(running_BK[:, :1], new)
    if step.plan.early_stopping == "never" and penalty > 0:
        length_B1 = (torch.as_tensor(step.rows.limit_B) - step.own_B + new - 1)[:, None].float()
    best = running_BK[:, :1] / length_B1**penalty
    worst = finished.scores_BK.amin(dim=1, keepdim=True).expand(running_BK.shape)
    return (best > worst.masked_fill(~finished.taken_BK, WORST)).any(dim=1, keepdim=True)
