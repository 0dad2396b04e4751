"""How fast training is: images and tokens per second, and the share of the device's peak that is used (MFU)."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

PEAK_FLOPS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA A10G": 70e12,
    "Tesla V100": 125e12,
    "Tesla T4": 65e12,
}
"""Dense 16-bit operations per second of one device (of v2 and v3: a core), by what its `device_kind` begins with; from
the makers' data sheets."""
_WINDOW = 20


def peak_flops(device: Any) -> float | None:
    """Operations per second that a JAX device can do at most; None where that is not known."""
    kinds = [kind for kind in PEAK_FLOPS if device.device_kind.startswith(kind)]
    return PEAK_FLOPS[max(kinds, key=len)] if kinds else None


def step_flops(compiled: Any) -> float | None:
    """Operations of one device in one call of a compiled step (`jax.jit(...).lower(...).compile()`), by the compiler's
    count, which takes a loop's body (scanned layers, accumulation) once; None where it does not tell."""
    costs = compiled.cost_analysis()
    costs = costs[0] if isinstance(costs, list | tuple) and costs else costs
    flops = costs.get("flops") if costs else None
    return flops if flops is not None and flops > 0 else None


class Speed:
    """Rates over the last steps."""

    def __init__(
        self,
        flops: float | None = None,
        peak: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`flops` of a step and `peak` of a device: both of one device; without them there is no MFU."""
        self.flops, self.peak, self.clock = flops, peak, clock
        self._last: float | None = None
        self._steps: deque[tuple[float, float, float]] = deque(maxlen=_WINDOW)

    def pause(self) -> None:
        """Leave out the time until the next step: it is an evaluation's, a checkpoint's or the compiler's."""
        self._last = None

    def step(self, images: float, tokens: float) -> dict[str, float]:
        """A step has ended that had so many images and label tokens, on all devices. Gives images_per_second,
        tokens_per_second and, where both numbers are known, mfu; nothing behind the first step and a pause."""
        now, last = self.clock(), self._last
        self._last = now
        if last is not None:
            self._steps.append((now - last, images, tokens))
        if not self._steps:
            return {}
        seconds, images, tokens = (sum(column) for column in zip(*self._steps, strict=True))
        seconds = max(seconds, 1e-9)
        rates = {"images_per_second": images / seconds, "tokens_per_second": tokens / seconds}
        if self.flops and self.peak:
            rates["mfu"] = self.flops * len(self._steps) / seconds / self.peak
        return rates
