"""Checkpoints of a run: orbax writes and keeps them; digests inside tell whether one is still what was written."""

import base64
import dataclasses
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from conversion.names import listed
from ved_core.digests import of_values
from ved_core.errors import CheckpointError
from ved_flax import parallel
from ved_flax.train.config import CheckpointConfig, EvaluationConfig
from ved_flax.train.digests import digests
from ved_flax.train.placement import Placement
from ved_flax.train.step import TrainState

log = logging.getLogger("ved")

ITEMS = ("state", "about")
"""A checkpoint's parts: arrays, and a JSON text about them."""


class DamageError(Exception):
    """A checkpoint that is not what was written: says what is wrong."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a run goes on from."""

    step: int
    state: TrainState
    data: Any
    """This process's state of the batches."""


class Checkpoints:
    """The checkpoints in a folder. All processes call every method, at the same steps."""

    def __init__(self, folder: Path, config: CheckpointConfig, evaluation: EvaluationConfig) -> None:
        self.folder = folder.absolute()
        self.strict = config.strict
        self.metric = evaluation.metric
        self.worst = math.inf if evaluation.mode == "min" else -math.inf
        kept: list[Any] = [policies.LatestN(config.keep)]
        if config.keep_period is not None:
            kept.append(policies.EveryNSteps(config.keep_period))
        if self.metric is not None:
            best = policies.BestN(
                get_metric_fn=self._quality,
                reverse=evaluation.mode == "min",
                n=1,
                keep_checkpoints_without_metrics=False,
            )
            kept.append(best)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept),
            best_fn=None if self.metric is None else self._quality,
            best_mode=evaluation.mode,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=config.asynchronous,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        self.manager = ocp.CheckpointManager(self.folder, options=options, item_names=ITEMS)

    def _quality(self, metrics: Mapping[str, float]) -> float:
        value = metrics.get(self.metric or "")
        return self.worst if value is None or math.isnan(value) else value

    def wait(self) -> None:
        """Until all that was begun is written. Raises CheckpointError where it cannot be."""
        try:
            self.manager.wait_until_finished()
        except Exception as error:  # whatever went wrong in the background, which orbax hands on
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise CheckpointError(f"{self.folder}: a checkpoint could not be written ({reason[:300]})") from error

    def latest(self) -> Path | None:
        """The latest that is complete, when all are written."""
        self.wait()
        step = self.manager.latest_step()
        return None if step is None else self.folder / str(step)

    def best(self) -> Path | None:
        """The best by the chosen metric, when all are written."""
        self.wait()
        step = self.manager.best_step() if self.metric is not None else None
        return None if step is None else self.folder / str(step)

    def save(
        self, step: int, state: TrainState, layouts: Any, data: Any, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Begin to write a checkpoint, if there is none of this step; `data`: this process's state of the batches.

        The state may be given away as soon as this returns.
        """
        if step in self.manager.all_steps():
            return
        self.wait()
        arrays, laid = named(state), named(layouts)
        leaves = {
            name: {"shape": list(laid[name].shape), "dtype": str(array.dtype), "stored": list(array.shape)}
            for name, array in arrays.items()
        }
        about = {"step": step, "leaves": leaves, "digests": digests(arrays), "data": gathered(data)}
        self.manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(arrays),
                about=ocp.args.JsonSave({"about": about, "digest": of_values(about)}),
            ),
            metrics=None if self.metric is None else dict(metrics or {}),
            force=True,
        )

    def restore(self, like: TrainState, placement: Placement) -> Restored | None:
        """The latest undamaged checkpoint, as arrays that lie as those of `like` do; None where there is none at all.

        Raises CheckpointError where none is undamaged (or, if strict, the latest is not), or where it is of another
        model or optimizer.
        """
        steps = sorted(self.manager.all_steps(), reverse=True)
        damaged = []
        for step in steps:
            try:
                restored = self._restore(step, like, placement)
            except DamageError as error:
                damaged.append(f"{self.folder / str(step)}: {error}")
                if self.strict:
                    raise CheckpointError(f"{damaged[-1]}. Remove it to go on from the one before") from error
                log.warning("%s: damaged, and left aside", damaged[-1])
                continue
            for step in steps[: len(damaged)]:
                self._set_aside(step)
            return restored
        if damaged:
            raise CheckpointError(f"no checkpoint is undamaged: {'; '.join(damaged)}. Remove them to begin again")
        return None

    def _restore(self, step: int, like: TrainState, placement: Placement) -> Restored:
        about = self._about(step)
        arrays, laid, shardings = named(like), named(placement.layouts), named(placement.shardings())
        self._check_leaves(about["leaves"], arrays, laid)
        wanted: dict[str, Any] = {}
        for name, array in arrays.items():
            if tuple(about["leaves"][name]["stored"]) == array.shape:
                wanted[name] = jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=shardings[name])
            else:  # it was flat, or is to be: by way of the host
                wanted[name] = np.empty(about["leaves"][name]["stored"], array.dtype)
        found = attempt(
            lambda: self.manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(wanted)))[
                "state"
            ],
            "its arrays cannot be read",
        )
        for name, array in found.items():
            if isinstance(array, np.ndarray):
                whole = dataclasses.replace(laid[name], padded=array.size).unpack(array)
                found[name] = parallel.place(whole, laid[name], shardings[name])
        wrong = [name for name, digest in digests(found).items() if digest != about["digests"][name]]
        if wrong:
            raise DamageError(f"not what was written: {listed(wrong)}")
        structure = jax.tree.structure(like)
        state = jax.tree.unflatten(structure, [found[name] for name in arrays])
        return Restored(step, state, of_this_process(about["data"]))

    def _about(self, step: int) -> dict[str, Any]:
        read = attempt(
            lambda: self.manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"],
            "its description cannot be read",
        )
        if not isinstance(read, dict) or read.get("digest") != of_values(read.get("about")):
            raise DamageError("its description is not what was written")
        return read["about"]

    def _check_leaves(
        self, stored: Mapping[str, Any], arrays: Mapping[str, jax.Array], laid: Mapping[str, parallel.Layout]
    ) -> None:
        other = sorted(stored.keys() ^ arrays.keys()) or [
            name for name in arrays
            if tuple(stored[name]["shape"]) != laid[name].shape or stored[name]["dtype"] != str(arrays[name].dtype)
        ]  # fmt: skip
        if other:
            raise CheckpointError(
                f"{self.folder}: its checkpoints are of another model or optimizer: they differ in {listed(other)}. "
                "Give the run another output folder, or the config that it began with"
            )

    def _set_aside(self, step: int) -> None:
        """Move a damaged checkpoint to where it is none: its step will be saved again."""
        if jax.process_index() == 0:
            aside = self.folder.parent / f"{self.folder.name}-damaged"
            aside.mkdir(exist_ok=True)
            number = sum(entry.name.split(".")[0] == str(step) for entry in aside.iterdir())
            os.replace(self.folder / str(step), aside / f"{step}.{number}")
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set aside {step}")
        self.manager.reload()

    def close(self) -> None:
        """Wait until all is written."""
        self.wait()
        self.manager.close()


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their path, as params/decoder.norm.scale."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


def attempt(read: Any, problem: str) -> Any:
    """What `read` returns. Raises DamageError, in all processes, where it fails in one."""
    found, failure = None, None
    try:
        found = read()
    except Exception as error:  # orbax, tensorstore and json have no common error for what they cannot read
        failure = error
    failed = failure is not None
    if jax.process_count() > 1:
        failed = bool(np.any(multihost_utils.process_allgather(np.array(failed))))
    if failed:
        reason = (
            "see the other processes" if failure is None else " ".join(f"{type(failure).__name__}: {failure}".split())
        )
        raise DamageError(f"{problem} ({reason[:300]})") from failure
    return found


def gathered(data: Any) -> list[Any]:
    """The batches' states of all processes, as JSON-ready values."""
    own = {"base64": base64.b64encode(data).decode()} if isinstance(data, bytes) else {"json": data}
    if jax.process_count() == 1:
        return [own]
    text = np.frombuffer(json.dumps(own).encode(), np.uint8)
    longest = int(np.max(multihost_utils.process_allgather(np.array(len(text)))))
    texts = multihost_utils.process_allgather(np.pad(text, (0, longest - len(text)), constant_values=ord(" ")))
    return [json.loads(bytes(text)) for text in texts]


def of_this_process(states: list[Any]) -> Any:
    """This process's state; with another number of processes than there were, the first one's."""
    own = states[jax.process_index() if len(states) == jax.process_count() else 0]
    return base64.b64decode(own["base64"]) if "base64" in own else own["json"]
