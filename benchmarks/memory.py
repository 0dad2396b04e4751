"""This process's memory: RssAnon, which leaves out pages of mapped files."""

import ctypes
import threading
import time
from pathlib import Path
from typing import Self


def anonymous() -> int:
    """Bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def give_back() -> None:
    """Let the C library give back what it keeps of freed memory."""
    ctypes.CDLL(None).malloc_trim(0)


def spare() -> None:
    """`give_back`, where other workers may come to need it: where less than three quarters of the machine's is free."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    sizes = {name: int(size) for name, size, *_ in lines}
    if sizes["MemAvailable:"] < 0.75 * sizes["MemTotal:"]:
        give_back()


class Peak:
    """The most bytes above `before`, or above those at its beginning, that are in use inside this context."""

    def __init__(self, before: int | None = None) -> None:
        self.before = anonymous() if before is None else before
        self.bytes = 0

    def __enter__(self) -> Self:
        self.running = True
        self.watcher = threading.Thread(target=self.watch)
        self.watcher.start()
        return self

    def watch(self) -> None:
        while self.running:
            self.look()
            time.sleep(0.005)

    def look(self) -> None:
        self.bytes = max(self.bytes, anonymous() - self.before)

    def __exit__(self, *_: object) -> None:
        self.running = False
        self.watcher.join()
        self.look()
