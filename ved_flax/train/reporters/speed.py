"""How fast training is: images and tokens per second, and the share of the device's peak that is used (MFU)."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

PEAK_FLOPS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v4 lite": 138e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "Tesla V100-SXM2": 125e12,
    "Tesla V100-PCIE": 112e12,
    "Tesla T4": 65e12,
}
"""Dense 16-bit operations per second of one device, by the words that its `device_kind` begins with; of data sheets
that count sparse ones, half.

TPUs: "peak compute per chip" in bf16 of docs.cloud.google.com/tpu/docs/v3, /v4, /v5e, /v5p, /v6e and /tpu7x; of a v2
45e12, of a v4i (lite) the ISCA paper's 138e12. Of a v2, v3 and 7x a device is one of a chip's two cores. JAX's own
figures (`jax._src.pallas.mosaic.tpu_info`) are within 3 % of these but for v3's, which is 14 % higher. GPUs: NVIDIA's
data sheets, BF16 tensor cores (V100 and T4: FP16)."""
_WINDOW = 20


def peak_flops(device: Any) -> float | None:
    """Operations per second that a JAX device can do at most; None where that is not known."""
    name: str = device.device_kind
    kinds = [kind for kind in PEAK_FLOPS if name == kind or name.startswith((f"{kind} ", f"{kind}-"))]
    return PEAK_FLOPS[max(kinds, key=len)] if kinds else None


def step_flops(step: Any) -> float | None:
    """Operations of one device in one call of a compiled step (`jax.jit(...).lower(...).compile()`), or of all devices
    of one that is only lowered, by the compiler's count, which takes a loop's body (scanned layers, accumulation) once;
    None where it does not tell."""
    costs = step.cost_analysis()
    costs = costs[0] if isinstance(costs, list | tuple) and costs else costs
    flops = costs.get("flops") if costs else None
    return flops if flops is not None and flops > 0 else None


class Speed:
    """Tells other reporters how fast the last steps were: images_per_second, tokens_per_second and mfu, beside all
    other metrics. Needs images and tokens since the last call among them.

    The first steps are left out, in which the program is compiled, and evaluations.
    """

    def __init__(
        self,
        reporters: Sequence[Any],
        flops: float | Callable[[], float | None] | None = None,
        peak: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`flops` of a step, or a function that is asked for it behind the first one, and `peak` operations per second,
        both of one device or both of all; without them there is no mfu."""
        self.reporters, self.flops, self.peak, self.clock = reporters, flops, peak, clock
        self._last: tuple[int, float] | None = None
        """Step and time from which the next steps are measured."""
        self._measured: deque[tuple[float, ...]] = deque(maxlen=_WINDOW)
        """Seconds, steps, images, tokens."""

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tell the reporters, with the rates."""
        now = self.clock()
        counted = [metrics.get(name) for name in ("images", "tokens")]
        if self._last is not None and None not in counted:
            self._measured.append((now - self._last[1], step - self._last[0], *map(float, counted)))  # type: ignore[arg-type]
        self._last = step, now
        metrics = {**metrics, **self.rates()}
        for reporter in self.reporters:
            reporter.on_step(step, metrics)

    def on_evaluation(self, step: int, results: Mapping[str, Any]) -> None:
        """Tell the reporters, and leave out the time that it took."""
        for reporter in self.reporters:
            reporter.on_evaluation(step, results)
        between = self._last is None or self._last[0] != step  # steps before and behind it will come as one
        self._last = None if between else (step, self.clock())

    def rates(self) -> dict[str, float]:
        """Of the last calls together; nothing behind the first one."""
        if not self._measured:
            return {}
        seconds, steps, images, tokens = (sum(column) for column in zip(*self._measured, strict=True))
        seconds = max(seconds, 1e-9)
        rates = {"images_per_second": images / seconds, "tokens_per_second": tokens / seconds}
        if callable(self.flops) and self.peak:
            self.flops = self.flops()
        if self.flops and self.peak:
            rates["mfu"] = self.flops * steps / seconds / self.peak
        return rates

    def close(self) -> None:
        """Close the reporters."""
        for reporter in self.reporters:
            reporter.close()
