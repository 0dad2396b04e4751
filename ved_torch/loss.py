"""Labels to decoder inputs and to the loss."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ved_core.inputs import IGNORED


def shift_right(labels_BT: Tensor, start: int, pad: int) -> Tensor:
    """Decoder inputs for labels: one token later, behind the start token; ignored labels become padding."""
    shifted = F.pad(labels_BT[:, :-1], (1, 0), value=start)
    return torch.where(shifted == IGNORED, pad, shifted)


def cross_entropy(logits_BTV: Tensor, labels_BT: Tensor, items: Tensor | int | None = None) -> Tensor:
    """Mean negative log-likelihood over the labels that are not IGNORED, float32; 0 where all are.

    `items`: divides the sum instead of their number, so that the losses of a batch's parts add up to the batch's.
    """
    total = F.cross_entropy(logits_BTV.float().flatten(0, 1), labels_BT.long().flatten(), reduction="sum")
    return total / ((labels_BT != IGNORED).sum().clamp(min=1) if items is None else items)
