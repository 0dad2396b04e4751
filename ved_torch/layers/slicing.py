"""How many rows a CPU works on at a time: many, and many images, in slices; some numbers of them filled up."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ved_core.slicing import slice_size
from ved_torch.layers.linear import Linear, reordered_for_now, suits

LARGE = 32 * 2**20
"""Bytes from which on the C library asks for new pages whenever a tensor is made: to write them for the first time then
takes longer than to multiply what is written."""
SLICE = 4 * 2**20
"""Bytes that stay in the caches from one operation to the next."""
FEW = 256
"""Rows up to which oneDNN was found to multiply any number of them equally fast."""


def sliceable(x: Tensor, linears: Sequence[Linear]) -> bool:
    """Whether products of x are oneDNN's, which may be computed slice by slice: of float32 on a CPU, where nothing is
    learned or traced. Other modules may have been put in their place."""
    return all(isinstance(part, Linear) and suits(x, part.weight) for part in linears)


def in_slices(run: Callable[[slice], Tensor], rows: int, numbers: int, linears: Sequence[Linear]) -> Tensor:
    """run(slice(0, rows)) or, where that makes a large tensor, slice by slice, put together along the first axis.

    `run`: computes those of `rows` rows, each by itself; `numbers`: of the largest tensor on the way, for each row;
    `linears`: the `sliceable` products that it takes, whose weights are reordered once for all slices.
    """
    if rows * numbers * 4 <= LARGE:
        return run(slice(0, rows))
    size = max(1, SLICE // (numbers * 4))
    with reordered_for_now(linears):
        first = run(slice(0, size))
        whole = first.new_empty(rows, *first.shape[1:])
        whole[:size] = first
        for start in range(size, rows, size):
            some = slice(start, start + size)
            whole[some] = run(some)
    return whole


def by_images(encode: Callable[[Tensor], Tensor], pixels_BCHW: Tensor) -> Tensor:
    """encode(pixels), on CPUs a few images at a time, where nothing is learned: they do not see each other."""
    if not suits(pixels_BCHW, pixels_BCHW) or len(pixels_BCHW) <= (size := slice_size(pixels_BCHW.shape[1:])):
        return encode(pixels_BCHW)
    return torch.cat([encode(some) for some in pixels_BCHW.split(size)])


def filled_up(x_BTD: Tensor) -> Tensor:
    """x, whose products are `sliceable`, with up to three tokens of zeros behind its own.

    oneDNN cuts rows into blocks of one size, and finds bad ones for some numbers: 577, an image of 384 x 384, take a
    fifth longer than 580. Multiples of four seldom are among them.
    """
    batch, tokens, _ = x_BTD.shape
    if batch * tokens <= FEW or batch * tokens % 4 == 0:
        return x_BTD
    return F.pad(x_BTD, (0, 0, 0, -tokens % 4))
