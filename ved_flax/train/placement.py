"""States and batches on the devices, and the step compiled for them: by jit over a mesh, or by pmap."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ved_core.errors import ConfigError
from ved_flax import parallel
from ved_flax.platforms import traced_for
from ved_flax.train.batches import Batch
from ved_flax.train.config import ParallelConfig
from ved_flax.train.step import Arrays, DeviceBatch, Gather, Metrics, Step, TrainState, initial_state

DEVICES = "devices"
"""The axis that pmap maps over."""


class MakeStep(Protocol):
    """Makes the step for a mapped axis of that name, or for none, with `gather` as `step.make_step` takes it."""

    def __call__(self, axis: str | None = None, gather: Gather = ...) -> Step: ...


Compiled = Callable[[TrainState, DeviceBatch, jax.Array], tuple[TrainState, Metrics, jax.Array]]
"""(state, batch, signals) -> the state behind the step, its metrics, and the highest of all processes' signals. The
given state's memory is reused: do not read it again."""


class Placement:
    """Where a training run's arrays lie. A state is kept as `parallel.Layout`s say: `logical` undoes that."""

    def __init__(self, config: ParallelConfig, devices: Sequence[jax.Device] | None = None) -> None:
        """On all devices, or those that are given. Raises ConfigError where they do not suffice."""
        self.mapped = config.mode == "pmap"
        if self.mapped and (config.fsdp > 1 or config.model > 1):
            raise ConfigError("parallel.mode = 'pmap' has no fsdp and no model axis: leave them at 1, or use jit")
        self.mesh: Mesh = parallel.make_mesh(config.data, config.fsdp, config.model, devices)
        self.rows = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        self.share = parallel.share_of_rows(self.mesh)
        # What pmap compiles for looks so; arrays that lie otherwise would have it compile twice.
        self._flat_mesh = Mesh(self.mesh.devices.reshape(-1), (DEVICES,), axis_types=(AxisType.Auto,))
        mesh = self._flat_mesh if self.mapped else self.mesh
        self._rows = NamedSharding(mesh, P(DEVICES) if self.mapped else parallel.ROWS)
        self._everywhere = NamedSharding(mesh, P())
        self.layouts: Any = None

    def check_batch(self, size: int, accumulation: int) -> None:
        """Raises ConfigError where a batch cannot be spread evenly."""
        if size % (self.rows * accumulation):
            raise ConfigError(
                f"batch_size = {size} should be a multiple of {self.rows * accumulation}: "
                f"{self.rows} devices share its rows, each in {accumulation} parts (accumulation)"
            )

    # States -----------------------------------------------------------------------------------------------------------

    def initial(
        self,
        params: Mapping[str, Any],
        frozen: Mapping[str, Any],
        optimizer: optax.GradientTransformation,
        seed: int,
        *,
        average: bool = False,
    ) -> TrainState:
        """The state before the first step; each device is given, and computes, its part only."""

        def make(params: dict[str, Any], frozen: dict[str, Any]) -> TrainState:
            return initial_state(params, frozen, optimizer, seed, average=average)

        self.lay_out(params, frozen, optimizer, average=average)
        halves = (self.layouts.params, self.layouts.frozen)
        host = jax.tree.map(np.asarray, (dict(params), dict(frozen)))
        shardings = self.shardings()
        placed = jax.tree.map(parallel.place, host, halves, (shardings.params, shardings.frozen))

        def packed(params: Any, frozen: Any) -> TrainState:
            return parallel.pack(make(*parallel.unpack((params, frozen), halves)), self.layouts)

        return jax.jit(packed, out_shardings=shardings)(*placed)

    def lay_out(
        self,
        params: Mapping[str, Any],
        frozen: Mapping[str, Any],
        optimizer: optax.GradientTransformation,
        *,
        average: bool = False,
    ) -> TrainState:
        """Choose how a state lies, from shapes alone: that of `initial`, with shapes for arrays."""
        make = functools.partial(initial_state, optimizer=optimizer, seed=0, average=average)
        abstract = jax.eval_shape(make, dict(params), dict(frozen))
        self.layouts = parallel.layouts(abstract, abstract.params | abstract.frozen, self.mesh)

        def stored(layout: parallel.Layout, array: jax.ShapeDtypeStruct, sharding: NamedSharding) -> Any:
            return jax.ShapeDtypeStruct(layout.stored_shape, array.dtype, sharding=sharding)

        return jax.tree.map(stored, self.layouts, abstract, self.shardings())

    def shardings(self) -> Any:
        """Of a state's arrays."""
        if self.mapped:
            return jax.tree.map(lambda _: self._everywhere, self.layouts)
        return parallel.shardings(self.layouts, self.mesh)

    def fetch(self, arrays: Mapping[str, jax.Array], layouts: Mapping[str, parallel.Layout]) -> dict[str, np.ndarray]:
        """Parameters on the host of every process, in their own shapes, one after another."""
        return {name: layouts[name].unpack(on_host(array)) for name, array in arrays.items()}

    # Batches and the step ---------------------------------------------------------------------------------------------

    def batch(self, batch: Batch) -> DeviceBatch:
        """This process's share of a batch, on its devices."""
        names = ("pixel_values", "labels", "weight")
        return DeviceBatch(*(self._spread(np.asarray(batch[name])) for name in names))  # type: ignore[literal-required]

    def signals(self, signal: int) -> jax.Array:
        """A number from each process, for the step to find the highest of."""
        return self._spread(np.full(self.rows // self.share[1], signal, np.int32))

    def _spread(self, rows: np.ndarray) -> jax.Array:
        if self.mapped:
            rows = rows.reshape(self.rows // self.share[1], -1, *rows.shape[1:])
        return jax.make_array_from_process_local_data(self._rows, rows)

    def batch_shapes(self, pixel_values: Sequence[int], labels: Sequence[int]) -> tuple[DeviceBatch, Any]:
        """Of a whole batch and of the signals, from the shapes of images (B, C, H, W) and labels (B, T)."""

        def spread(dtype: Any, rows: int, *shape: int) -> jax.ShapeDtypeStruct:
            first = (self.rows, rows // self.rows) if self.mapped else (rows,)
            return jax.ShapeDtypeStruct((*first, *shape), dtype, sharding=self._rows)

        batch = DeviceBatch(
            spread(np.float32, *pixel_values),  # type: ignore[arg-type]
            spread(np.int32, *labels),  # type: ignore[arg-type]
            spread(np.float32, labels[0]),  # type: ignore[arg-type]
        )
        return batch, spread(np.int32, self.rows)

    def compile(self, make_step: MakeStep) -> Compiled:
        """The step for this placement, compiled at its first call."""
        step = make_step(DEVICES) if self.mapped else make_step(gather=self._gather)
        step = traced_for(self.mesh.devices.flat[0].platform, step)
        return self._pmap(step) if self.mapped else self._jit(step)

    def _gather(self, params: Arrays, frozen: Arrays, dtype: Any) -> tuple[Arrays, Arrays]:
        """Parameters as the step computes with them."""
        return (
            parallel.gather(params, self.layouts.params, self.mesh, dtype),
            parallel.gather(frozen, self.layouts.frozen, self.mesh, dtype),
        )

    def _jit(self, step: Step) -> Compiled:
        layouts, shardings = self.layouts, self.shardings()

        @functools.partial(
            jax.jit,
            donate_argnums=0,
            in_shardings=(shardings, self._rows, self._rows),
            out_shardings=(shardings, self._everywhere, self._everywhere),
        )
        def run(state: TrainState, batch: DeviceBatch, signals: jax.Array) -> tuple[TrainState, Metrics, jax.Array]:
            after, metrics = step(parallel.unpack(state, layouts), batch)
            return parallel.pack(after, layouts), metrics, jnp.max(signals)

        return run

    def _pmap(self, step: Step) -> Compiled:
        def run(state: TrainState, batch: DeviceBatch, signals: jax.Array) -> tuple[TrainState, Metrics, jax.Array]:
            return *step(state, batch), jax.lax.pmax(jnp.max(signals), DEVICES)

        mapped: Compiled = jax.pmap(
            run,
            DEVICES,
            in_axes=(None, 0, 0),
            out_axes=(None, None, None),
            donate_argnums=0,
            devices=list(self.mesh.devices.flat),
        )
        return mapped if jax.process_count() == 1 else self._across(mapped)

    def _across(self, mapped: Compiled) -> Compiled:
        """pmap takes and gives each process's own arrays; all else here deals in those of all processes."""
        mesh = self._flat_mesh

        def run(state: TrainState, batch: DeviceBatch, signals: jax.Array) -> tuple[TrainState, Metrics, jax.Array]:
            specs = (P(), P(DEVICES), P(DEVICES))
            own = multihost_utils.global_array_to_host_local_array((state, batch, signals), mesh, specs)
            return multihost_utils.host_local_array_to_global_array(mapped(*own), mesh, P())

        return run


def on_host(array: jax.Array) -> np.ndarray:
    """A whole array, wherever its parts lie; a collective operation where they lie with several processes."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
