"""Compiled programs, kept for the next process."""

import os
from pathlib import Path

import jax

LEAST = 0.1
"""Seconds of compiling from which on a program is kept; JAX's own default is 1."""


def keep_compiled(folder: str | Path | None = None) -> None:
    """Keep compiled programs in a folder, if JAX has not been given one already (JAX_COMPILATION_CACHE_DIR): by
    default ved/jax in $XDG_CACHE_HOME or ~/.cache."""
    if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    place = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "ved" / "jax" if folder is None else Path(folder)
    jax.config.update("jax_compilation_cache_dir", str(place.expanduser()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST)
