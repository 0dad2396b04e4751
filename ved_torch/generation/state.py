"""The state of a decoding loop: one typed value. K streams (hypotheses) run for each of B images."""

from typing import NamedTuple

import torch
from torch import Tensor

from ved_core.generation.plan import Numbers, Plan, Rows
from ved_torch.layers.cache import Cache


class Sequences(NamedTuple):
    """What is kept of hypotheses: `ids_BKL` int64; `log_probs_BKS` float32, the model's of each new token, 0 behind the
    end; `path_BKS` int64, the stream that each new token was chosen in, -1 behind the end."""

    ids_BKL: Tensor
    log_probs_BKS: Tensor
    path_BKS: Tensor

    def take(self, places_BM: Tensor) -> "Sequences":
        """Those at places (B, M), in memory of their own."""
        return Sequences(*(take(array, places_BM) for array in self))

    def extend(self, column: int, new: int, token_BK: Tensor, log_prob_BK: Tensor, path_BK: Tensor) -> None:
        """Write one more token each, at `column` of the ids, the one of number `new` that was generated."""
        self.ids_BKL[:, :, column] = token_BK
        self.log_probs_BKS[:, :, new] = log_prob_BK
        self.path_BKS[:, :, new] = path_BK


class Finished(NamedTuple):
    """Beam search's best hypotheses that ended: `scores_BK` and which places are taken, best first."""

    sequences: Sequences
    scores_BK: Tensor
    taken_BK: Tensor


class Records(NamedTuple):
    """What was asked for of every step: a list of (B * K, V) float32, or None."""

    scores: list[Tensor] | None
    logits: list[Tensor] | None


class State(NamedTuple):
    """Between two steps."""

    new: int
    """Tokens generated so far."""
    sequences: Sequences
    done_BK: Tensor
    """Streams that have ended; in beam search, all of an image together."""
    visible_BKC: Tensor | None
    """Slots of the cache that each stream may attend to: the prompt's, and those of the tokens that it came by. None
    where it is all that are filled."""
    stop_BK: Tensor
    """The stop strings' automaton."""
    cache: Cache
    records: Records
    running_BK: Tensor
    """Beam search's sum of the scores of each running hypothesis."""
    finished: Finished | None
    """Beam search's results so far."""


WORST = -1e9
"""Below any hypothesis that is one."""


def take(array: Tensor, places_BM: Tensor) -> Tensor:
    """Entries (B, M) or (B, M, ...) at places of the second axis."""
    places = places_BM if array.ndim == 2 else places_BM[..., None].expand(-1, -1, array.shape[2])
    return array.gather(1, places)


def initial(cache: Cache, rows: Rows, numbers: Numbers, plan: Plan) -> State:
    """Before the first step; the cache holds all of the prompt but its last token. `rows` and `numbers`: tensors."""
    prompt_BT, mask_BT = torch.as_tensor(rows.prompt_BT), torch.as_tensor(rows.mask_BT)
    device = prompt_BT.device
    shape = (len(prompt_BT), plan.streams)
    ids = torch.full((*shape, plan.length), int(numbers["pad"]), device=device)
    ids[:, :, : plan.prompt] = prompt_BT[:, None]
    new_tokens = (*shape, plan.steps)
    sequences = Sequences(
        ids, torch.zeros(new_tokens, device=device), torch.full(new_tokens, -1, dtype=torch.int64, device=device)
    )
    visible = None
    if plan.streams > 1 or plan.masked:
        visible = torch.zeros(*shape, plan.slots, dtype=torch.bool, device=device)
        visible[:, :, : plan.prompt - 1] = mask_BT[:, None, :-1]
    # Only the first hypothesis counts at the first step: the others are the same.
    running = torch.full(shape, WORST, device=device)
    running[:, 0] = 0
    finished = None
    if plan.beams:
        kept = Sequences(*(array.clone() for array in sequences))
        finished = Finished(kept, torch.full_like(running, WORST), torch.zeros_like(running, dtype=torch.bool))
    return State(
        0,
        sequences,
        ~torch.as_tensor(rows.live_B)[:, None].expand(shape),
        visible,
        torch.as_tensor(rows.stop_B)[:, None].expand(shape),
        cache,
        Records([] if plan.scores else None, [] if plan.logits else None),
        running,
        finished,
    )
