"""Calls of generate() that arrive apart, computed together: which can be, and as what."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ved_core.configs.base import shorten
from ved_core.errors import GenerationError
from ved_core.generation.plan import Numbers, Request, Rows

LENGTHS = ("max_length", "max_new_tokens")
KEY = "key"
"""The entry of a request's numbers that sampling draws from. It is each batch's own."""


def like(request: Request, served: Request) -> Request:
    """`request` as a call of the program that was compiled for `served`: of one plan, and numbers of the same shapes. A
    smaller length is a limit of its rows. Raises GenerationError where it would take another program.
    """
    plan = request.plan
    if plan.steps > served.plan.steps:
        raise GenerationError(
            f"{plan.steps} new tokens are more than the {served.plan.steps} that are compiled here: ask for fewer"
        )
    plan = plan._replace(steps=served.plan.steps)
    if plan != served.plan or _shapes(request.numbers) != _shapes(served.numbers):
        raise GenerationError(f"{_difference(request, served)} would take another compiled program: leave it out")
    return dataclasses.replace(request, plan=plan)


def signature(request: Request) -> tuple[Any, ...]:
    """Equal for requests that can be one batch: of one plan, with the same numbers."""
    return request.plan, tuple(
        (name, tuple(part.tobytes() for part in _parts(value)))
        for name, value in sorted(request.numbers.items())
        if name != KEY
    )


def joined(requests: Sequence[Request], size: int) -> Request:
    """One request for a batch of `size` out of several of one signature, filled up by rows that are not live. Each row
    keeps its number, which its random draws depend on. Raises GenerationError where they are more."""
    columns = zip(*(request.rows for request in requests), strict=True)
    rows = Rows(*(np.concatenate(arrays) for arrays in columns))
    prompt = np.concatenate([request.prompt for request in requests])
    if len(prompt) > size:
        raise GenerationError(f"{len(prompt)} images do not fit into a batch of {size}")
    picked = np.minimum(np.arange(size), len(prompt) - 1)
    live = rows.live_B[picked] & (np.arange(size) < len(prompt))
    rows = Rows(*(array[picked] for array in rows))._replace(live_B=live)
    return dataclasses.replace(requests[0], rows=rows, prompt=prompt[picked])


def numbered(request: Request, first: int) -> Request:
    """With its rows counted from `first`."""
    row_B = np.arange(first, first + len(request.prompt), dtype=np.int32)
    return dataclasses.replace(request, rows=request.rows._replace(row_B=row_B))


def _difference(request: Request, served: Request) -> str:
    """The options that are not the same, by name and value."""
    if request.plan.prompt != served.plan.prompt:
        return f"a prompt of {request.plan.prompt} tokens in place of {served.plan.prompt}, the start token included,"
    names = request.config.field_names()
    values = {name: request.config.get(name) for name in names}
    other = [name for name in names if name not in LENGTHS and values[name] != served.config.get(name)]
    return " and ".join(f"{name} = {shorten(values[name])}" for name in other) or "this combination of options"


def _shapes(numbers: Numbers) -> dict[str, Any]:
    return {
        name: tuple((part.shape, part.dtype) for part in _parts(value))
        for name, value in numbers.items()
        if name != KEY
    }


def _parts(value: Any) -> list[np.ndarray]:
    return [np.asarray(part) for part in (value if isinstance(value, tuple) else (value,))]
