"""What a running job is asked for: to stop, by a signal, and to export its model, by a file."""

import enum
import logging
import time
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger("ved")

LOOK = 5.0
"""Seconds between two looks for the file, which may lie on a network's disk."""


class Asked(enum.IntEnum):
    """What a process tells the others with a step. The highest of all processes' numbers is heard by all at the same
    step, so that what is lower must be asked again."""

    NOTHING = 0
    EXPORT = 1
    STOP = 2


class ExportRequest:
    """A file in the run's folder that asks for the model as it is. It stays until it is answered: where the run stops
    first, the next one answers it."""

    def __init__(self, file: Path, *, every: float = LOOK, clock: Callable[[], float] = time.monotonic) -> None:
        self.file, self.every, self.clock = file, every, clock
        self._next = clock()
        self._told = False

    def made(self) -> bool:
        """Whether there is one that this has not told of."""
        if self._told or self.clock() < self._next:
            return False
        self._next = self.clock() + self.every
        self._told = self.file.is_file()
        return self._told

    def answered(self) -> None:
        """The model is exported: take the file away, and look for another."""
        try:
            self.file.unlink(missing_ok=True)
        except OSError as error:  # no reason to end the run
            log.warning("%s: cannot be removed, and no other request will be seen (%s)", self.file, error)
        else:
            self._told = False
