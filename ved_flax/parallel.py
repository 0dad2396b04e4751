"""Many devices: a mesh with the axes data, fsdp and model, and which axis each parameter is cut along.

`data` and `fsdp` share the rows of a batch; `fsdp` shares the storage of parameters and optimizer besides; `model`
shares the matrix products. The models know nothing of it: XLA's partitioner follows the arrays.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ved_core.errors import ConfigError

AXES = ("data", "fsdp", "model")
ROWS = P(("data", "fsdp"))
"""How the rows of a batch are spread."""

RULES: tuple[tuple[str, P], ...] = (
    # Heads: queries, keys and values by column, what joins them by row.
    (r"attn\.[qkv]\.kernel$", P(None, "model")),
    (r"attn\.[qkv]\.bias$", P("model")),
    (r"attn\.out\.kernel$", P("model", None)),
    (r"attn\.logit_scale$", P("model", None, None)),
    (r"bias(es\.\d+)?\.table$", P(None, "model")),
    (r"\.bias\.down\.kernel$", P(None, "model")),
    # The hidden width of feed-forward layers.
    (r"mlp\.(up|gate)\.kernel$", P(None, "model")),
    (r"mlp\.(up|gate)\.bias$", P("model")),
    (r"mlp\.down\.kernel$", P("model", None)),
    # The vocabulary.
    (r"decoder\.tokens\.embedding$", P("model", None)),
    (r"decoder\.head\.kernel$", P(None, "model")),
    (r"decoder\.head_bias$", P("model")),
)
"""Pattern in a parameter's name -> its axes on the mesh, of the first that is found. What has no row is not cut along
`model`; nor is an axis that does not divide."""

CAST = re.compile(r"(?<!\.bias\.up)(?<!\.bias\.down)\.kernel$|decoder\.tokens\.embedding$")
"""In the names of parameters that layers cast to what they compute in before all else, and which may travel so."""


def initialise(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Join the other processes, before JAX is used: those at `coordinator` (host:port of process 0), or those that
    JAX finds by itself on Cloud TPU, under SLURM and the like; where it finds none, this is the only one.

    Raises ConfigError for an incomplete description.
    """
    given = [coordinator is not None, processes is not None, process is not None]
    if any(given) and not all(given):
        raise ConfigError("give parallel.coordinator, parallel.processes and parallel.process together, or none")
    if jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (ValueError, RuntimeError) as error:
        # Nothing was found; or JAX is in use already, by a program that has decided for itself.
        if coordinator is None and ("coordinator_address" in str(error) or "before" in str(error)):
            return
        raise ConfigError(f"parallel: {error}") from error


def make_mesh(data: int = -1, fsdp: int = 1, model: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices, or those that are given, as a mesh; -1: as many as are left. One process may leave some unused.

    Raises ConfigError where the sizes do not fit.
    """
    found = list(jax.devices() if devices is None else devices)
    asked = f"parallel.data = {data}, parallel.fsdp = {fsdp}, parallel.model = {model}"
    if data == -1:
        data, left = divmod(len(found), fsdp * model)
        if left:
            raise ConfigError(f"{asked}: fsdp * model should divide the {len(found)} devices")
    count = data * fsdp * model
    if count > len(found) or (count < len(found) and jax.process_count() > 1):
        raise ConfigError(f"{asked}: their product should be the number of devices, {len(found)}")
    return jax.make_mesh((data, fsdp, model), AXES, axis_types=(AxisType.Auto,) * 3, devices=found[:count])


def share_of_rows(mesh: Mesh) -> tuple[int, int]:
    """(index, count): which of how many equal shares of each batch this process reads. Processes that `model` joins
    read the same one. Raises ConfigError for a mesh that cuts shares across processes."""
    owners: dict[int, set[int]] = {}
    for row, devices in enumerate(mesh.devices.reshape(-1, mesh.shape["model"])):
        for device in devices:
            owners.setdefault(device.process_index, set()).add(row)
    shares = sorted({tuple(sorted(rows)) for rows in owners.values()})
    if sum(map(len, shares)) != mesh.shape["data"] * mesh.shape["fsdp"] or len({len(rows) for rows in shares}) > 1:
        raise ConfigError("parallel.model cuts the devices of a process in uneven parts: choose a power of 2")
    return shares.index(tuple(sorted(owners[jax.process_index()]))), len(shares)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an array lies on the devices: its own shape, and its axes on the mesh; or, where no axis divides, as a flat
    array of `padded` numbers, cut along fsdp."""

    shape: tuple[int, ...]
    spec: P
    padded: int | None = None

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """As it lies on the devices."""
        return self.shape if self.padded is None else (self.padded,)

    def pack(self, array: Any) -> Any:
        """To the stored shape; numpy stays numpy."""
        if self.padded is None:
            return array
        flat = array.reshape(-1)
        pad = np.pad if isinstance(array, np.ndarray) else jnp.pad
        return pad(flat, (0, self.padded - flat.shape[0]))

    def unpack(self, array: Any) -> Any:
        """Back to its own shape."""
        return array if self.padded is None else array[: math.prod(self.shape)].reshape(self.shape)

    @property
    def gathered(self) -> P:
        """The axes, in its own shape, of what is whole on all devices of fsdp."""
        if self.padded is not None:
            return P(*[None] * len(self.shape))
        return P(*({"fsdp": None, ("model", "fsdp"): "model"}.get(axis, axis) for axis in self.spec))


def layout(name: str, shape: tuple[int, ...], mesh: Mesh) -> Layout:
    """Of the array of a parameter: its row in RULES, and fsdp along the longest axis that is left and divides."""
    model, fsdp = mesh.shape["model"], mesh.shape["fsdp"]
    axes: list[Any] = [None] * len(shape)
    row = next((spec for pattern, spec in RULES if re.search(pattern, name)), P())
    for i, axis in enumerate(row):
        if axis is not None and model > 1 and shape[i] % model == 0:
            axes[i] = axis
    if fsdp == 1:
        return Layout(shape, P(*axes))
    free = [i for i, axis in enumerate(axes) if axis is None and shape[i] % fsdp == 0]
    both = [i for i, axis in enumerate(axes) if axis is not None and shape[i] % (model * fsdp) == 0]
    if free:
        axes[max(free, key=lambda i: shape[i])] = "fsdp"
    elif both:
        axes[both[0]] = ("model", "fsdp")
    elif not any(axes) and math.prod(shape) >= fsdp:
        numbers = math.prod(shape)
        return Layout(shape, P("fsdp"), numbers + -numbers % fsdp)
    return Layout(shape, P(*axes))


def layouts(tree: Any, parameters: Mapping[str, Any], mesh: Mesh) -> Any:
    """The layout of every array (or shape) in a tree. An array that lies under a parameter's name and has its shape,
    as an optimizer's moments have, lies as the parameter does."""

    def one(path: Sequence[Any], leaf: Any) -> Layout:
        names = [getattr(key, "key", None) for key in path]
        name = next((name for name in reversed(names) if name in parameters), "")
        return layout(name if name and parameters[name].shape == leaf.shape else "", leaf.shape, mesh)

    return jax.tree_util.tree_map_with_path(one, tree)


def pack(tree: Any, layouts: Any) -> Any:
    """Every array in its stored shape."""
    return jax.tree.map(lambda layout, array: layout.pack(array), layouts, tree)


def unpack(tree: Any, layouts: Any) -> Any:
    """Every array in its own shape."""
    return jax.tree.map(lambda layout, array: layout.unpack(array), layouts, tree)


def shardings(layouts: Any, mesh: Mesh) -> Any:
    """Of every stored array."""
    return jax.tree.map(lambda layout: NamedSharding(mesh, layout.spec), layouts)


def gather(
    arrays: Mapping[str, jax.Array], layouts: Mapping[str, Layout], mesh: Mesh, dtype: Any
) -> dict[str, jax.Array]:
    """Parameters in their own shapes as a step that computes in `dtype` reads them, whole along fsdp; their gradients'
    sums are cut as they are. Without being told, XLA cuts activations along what parameters are cut along, which moves
    far more."""
    if mesh.shape["fsdp"] == 1:
        return dict(arrays)
    return {
        name: _gather(array, layouts[name], mesh, dtype if CAST.search(name) else array.dtype)
        for name, array in arrays.items()
    }


def _gather(array: jax.Array, layout: Layout, mesh: Mesh, dtype: Any) -> jax.Array:
    whole = NamedSharding(mesh, layout.gathered)
    own = whole if layout.padded is not None else NamedSharding(mesh, layout.spec)
    given = array.dtype

    @jax.custom_vjp
    def gathered(array: jax.Array) -> jax.Array:
        here = jax.lax.with_sharding_constraint(array.astype(dtype), own)
        return jax.lax.with_sharding_constraint(here, whole)

    def forward(array: jax.Array) -> tuple[jax.Array, None]:
        return gathered(array), None

    def backward(_: None, gradient: jax.Array) -> tuple[jax.Array]:
        summed = jax.lax.with_sharding_constraint(gradient.astype(given), whole)
        return (jax.lax.with_sharding_constraint(summed, own),)

    gathered.defvjp(forward, backward)
    return gathered(array)


def place(array: np.ndarray, layout: Layout, sharding: NamedSharding) -> jax.Array:
    """An array that every process holds, on the devices: each gets its part."""
    stored = layout.pack(array)
    return jax.make_array_from_callback(stored.shape, sharding, lambda index: stored[index])


def bytes_per_device(tree: Any) -> int:
    """The most that one device of this process holds of a tree."""
    held: dict[jax.Device, int] = {}
    arrays: Iterable[jax.Array] = jax.tree.leaves(tree)
    for array in arrays:
        for shard in array.addressable_shards:
            held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    return max(held.values(), default=0)
