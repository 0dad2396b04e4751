"""What training takes in: batches, and what yields them."""

from typing import Any, Protocol, TypedDict

import numpy as np


class Batch(TypedDict):
    """One process's share of a step's rows."""

    pixel_values: np.ndarray
    """(B, C, H, W) float32."""
    labels: np.ndarray
    """(B, T) int32, -100 at positions that do not count."""
    weight: np.ndarray
    """(B,) float32: 1 for an example, 0 for a row that only fills the batch up."""
    ids: list[str]
    """B names of examples, which stay on the host."""


class Batches(Protocol):
    """An endless or finite iterator of batches that can be taken up again where it was."""

    def __next__(self) -> Batch:
        """The next batch. Raises StopIteration behind the last."""
        ...

    def get_state(self) -> Any:
        """Where it stands, as JSON-ready values or bytes."""
        ...

    def set_state(self, state: Any) -> None:
        """Go to where `get_state` was."""
        ...
