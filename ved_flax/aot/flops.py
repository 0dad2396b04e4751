"""How many operations a program's matrix products take, loops counted in full."""

import functools
import math
import re

from ved_flax.aot.hlo import Operation


def flops(operation: Operation) -> float:
    """Of one time; 0 for what is no matrix product. TPUs compute all of them as convolutions, a batch of products as
    one whose window meets a number in one place only: places that are padding, or between numbers, are not counted."""
    if operation.code == "dot":
        contracted = operation.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
        sizes = [operation.operands[0].shape[int(axis)] for axis in contracted.split(",") if axis]
        return 2.0 * math.prod(operation.results[0].shape) * math.prod(sizes)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", operation.text)
    if operation.code != "convolution" or labels is None or len(operation.operands) < 2:
        return 0.0
    left, right = operation.operands[:2]
    sizes_left, sizes_right, sizes_out = (
        dict(zip(names, array.shape, strict=True))
        for names, array in zip(labels.groups(), (left, right, operation.results[0]), strict=True)
    )
    window = {name: values.split("x") for name, values in re.findall(r"(\w+)=([\dx_-]+)", _window(operation))}
    pairs = 1
    for i in range(len(labels[3]) - 2):
        axis = str(i)

        def of(name: str, default: str, i: int = i) -> str:
            return window[name][i] if name in window else default

        pairs *= _met(
            sizes_out[axis],
            sizes_right[axis],
            sizes_left[axis],
            int(of("stride", "1")),
            int(of("pad", "0_0").split("_")[0]),
            int(of("lhs_dilate", "1")),
            int(of("rhs_dilate", "1")),
        )
    groups = int(operation.attribute(r"batch_group_count=(\d+)") or 1)
    return 2.0 * pairs * sizes_out["b"] * sizes_out["f"] * sizes_right["i"] / groups


def _window(operation: Operation) -> str:
    return operation.attribute(r"window=\{([^}]*)\}") or ""


@functools.cache
def _met(out: int, size: int, given: int, stride: int, before: int, spread: int, apart: int) -> int:
    """In how many of the window's places along one axis a number is met, over all positions of the window."""
    places = (step * stride + place * apart - before for step in range(out) for place in range(size))
    return sum(0 <= place <= (given - 1) * spread and place % spread == 0 for place in places)
