"""What this machine can do: how fast it reads memory, and how fast it multiplies matrices."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import torch

READ = 256 * 2**20
"""Bytes, many times what fits a cache."""
MATRIX = 2048


class Side:
    """Takes the best of what either framework reaches: nobody's kernels are the ceiling of the others'."""

    def __init__(self, model: str, folder: Path, variant: str = "") -> None:
        torch.set_grad_enabled(False)

    def measure(self) -> dict[str, float]:
        """`bandwidth` in bytes and `matrix` in operations a second, float32; `kernels`: of which product."""
        memory = torch.ones(READ // 4)
        columns = 1024
        table = torch.ops.mkldnn._reorder_linear_weight(memory.view(-1, columns))
        row = torch.ones(1, columns)
        reads: dict[str, Callable[[], Any]] = {
            "sum": memory.sum,
            "one row times a matrix (oneDNN)": lambda: torch.ops.mkldnn._linear_pointwise(
                row, table, None, "none", [], ""
            ),
        }
        a, b = torch.randn(MATRIX, MATRIX), torch.randn(MATRIX, MATRIX)
        packed = torch.ops.mkldnn._reorder_linear_weight(b)
        c, d = jnp.asarray(a.numpy()), jnp.asarray(b.numpy())
        product = jax.jit(jnp.dot)
        products: dict[str, Callable[[], Any]] = {
            "MKL": lambda: torch.mm(a, b),
            "oneDNN": lambda: torch.ops.mkldnn._linear_pointwise(a, packed, None, "none", [], ""),
            "XLA": lambda: product(c, d).block_until_ready(),
        }
        bandwidths = {name: READ / fastest(run) for name, run in reads.items()}
        rates = {name: 2 * MATRIX**3 / fastest(run) for name, run in products.items()}
        return {
            "bandwidth": max(bandwidths.values()),
            "matrix": max(rates.values()),
            "bandwidths": bandwidths,
            "rates": rates,
        }


def fastest(run: Callable[[], Any], times: int = 10) -> float:
    """Seconds of the fastest of several runs."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)
