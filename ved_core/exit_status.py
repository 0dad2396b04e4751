"""The exit statuses of every command: the one place where they are said."""

import enum


class Exit(enum.IntEnum):
    """What a command's end says to the shell."""

    DONE = 0
    SOME_FAILED = 1
    NOTHING_DONE = 2
    INTERNAL = 70
    SAVED = 75
    INTERRUPTED = 130


MEANING = {
    Exit.DONE: "all done; of serve and demo: stopped as asked, nothing lost",
    Exit.SOME_FAILED: "done, but some of it failed, each named on stderr; of verify: the two differ; of info: no "
    "model can be loaded from it, or it is not what its digests say; of train: the run "
    "failed, and the last good checkpoint is named",
    Exit.NOTHING_DONE: "nothing done: wrong usage, a missing package, or something that cannot be loaded",
    Exit.INTERNAL: "an error of ved itself: --debug shows where",
    Exit.SAVED: "of train: interrupted, and all is saved; the same command goes on",
    Exit.INTERRUPTED: "interrupted",
}
"""70 and 75 are sysexits.h's EX_SOFTWARE and EX_TEMPFAIL, 130 is a shell's own for SIGINT."""
