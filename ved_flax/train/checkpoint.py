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
from orbax.checkpoint import checkpoint_managers as policies

from conversion.names import listed
from ved_core.digests import of_values
from ved_core.errors import CheckpointError
from ved_flax import parallel
from ved_flax.train.config import CheckpointConfig, EvaluationConfig
from ved_flax.train.digests import digests
from ved_flax.train.placement import Placement
from ved_flax.train.processes import agreed, gathered
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
        smaller = evaluation.smaller_is_better
        self.worst = math.inf if smaller else -math.inf
        kept: list[Any] = [policies.LatestN(config.keep)]
        if config.keep_period is not None:
            kept.append(policies.EveryNSteps(config.keep_period))
        if self.metric is not None:
            best = policies.BestN(
                get_metric_fn=self._quality,
                reverse=smaller,
                n=1,
                keep_checkpoints_without_metrics=False,
            )
            kept.append(best)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept),
            best_fn=None if self.metric is None else self._quality,
            best_mode="min" if smaller else "max",
            cleanup_tmp_directories=True,
            enable_async_checkpointing=config.asynchronous,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            self._leave_out_damaged_metrics()
        agreed(True)  # the others read them as well
        self.manager = ocp.CheckpointManager(self.folder, options=options, item_names=ITEMS)

    def _leave_out_damaged_metrics(self) -> None:
        """Remove what orbax would fail at, reading all metrics at once: the checkpoints are as good without."""
        for file in self.folder.glob("*/metrics/metrics"):
            try:
                fine = all(isinstance(value, int | float) for value in json.loads(file.read_bytes()).values())
            except (ValueError, AttributeError):
                fine = False
            if not fine:
                log.warning("%s: damaged, and removed: its checkpoint is not compared with others", file)
                file.unlink()

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

    def last_good(self) -> str:
        """What an error says of the latest that is complete by now, whether or not another could be written."""
        steps = [int(entry.name) for entry in self.folder.iterdir() if entry.name.isdigit()]
        return f"the last good checkpoint is {self.folder / str(max(steps))}" if steps else "there is no checkpoint yet"

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
        about = {"step": step, "leaves": leaves, "digests": digests(arrays), "data": gathered(stored(data))}
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
        self.wait()
        # The first process's list: one that does not see all of it must not go on from elsewhere than the others.
        steps = gathered(sorted(self.manager.all_steps(), reverse=True))[0]
        damaged: list[str] = []
        for step in steps:
            try:
                restored = self._restore(step, like, placement)
            except DamageError as error:
                damaged.append(f"{self.folder / str(step)}: {error}")
                if self.strict:
                    raise CheckpointError(f"{damaged[-1]}. Remove it to go on from the one before") from error
                log.warning("%s: damaged, and left aside", damaged[-1])
                continue
            if damaged:
                self._set_aside(steps[: len(damaged)])
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
        handler = ocp.StandardCheckpointHandler()
        found = attempt(
            lambda: handler.restore(self._part(step, "state"), args=ocp.args.StandardRestore(wanted)),
            "its arrays cannot be read",
        )
        for name, array in found.items():
            if isinstance(array, np.ndarray):
                whole = dataclasses.replace(laid[name], padded=array.size).unpack(array)
                found[name] = parallel.place(whole, laid[name], shardings[name])
        wrong = [name for name, digest in digests(found).items() if digest != about["digests"][name]]
        check(not wrong, f"not what was written: {listed(wrong)}")
        structure = jax.tree.structure(like)
        state = jax.tree.unflatten(structure, [found[name] for name in arrays])
        return Restored(step, state, of_this_process(about["data"]))

    def _part(self, step: int, item: str) -> Any:
        """Where one of the ITEMS lies. It is read by its handler: the manager waits for all processes behind each
        read that succeeds, and would wait for ever where it fails in one."""
        return self.folder / str(step) / item

    def _about(self, step: int) -> dict[str, Any]:
        handler = ocp.JsonCheckpointHandler()
        read: Any = attempt(lambda: handler.restore(self._part(step, "about")), "its description cannot be read")
        whole = isinstance(read, dict) and read.get("digest") == of_values(read.get("about"))
        check(whole, "its description is not what was written")
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

    def _set_aside(self, steps: list[int]) -> None:
        """Move damaged checkpoints to where they are none: their steps will be saved again. Raises CheckpointError, in
        all processes, where the first one cannot."""
        aside = self.folder.parent / f"{self.folder.name}-damaged"
        failure = None
        if jax.process_index() == 0:
            try:
                aside.mkdir(exist_ok=True)
                for step in steps:
                    number = sum(entry.name.split(".")[0] == str(step) for entry in aside.iterdir())
                    os.replace(self.folder / str(step), aside / f"{step}.{number}")
            except OSError as error:
                failure = error
        if not agreed(failure is None):
            reason = "" if failure is None else f" ({failure})"
            raise CheckpointError(
                f"{self.folder}: damaged checkpoints cannot be moved to {aside.name} beside it{reason}. "
                f"Remove {listed([str(step) for step in steps])}"
            ) from failure
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
    reason = "" if failure is None else " ".join(f"{type(failure).__name__}: {failure}".split())
    try:
        check(failure is None, f"{problem} ({reason[:300]})")
    except DamageError as error:
        raise error from failure
    return found


def check(fine: bool, problem: str) -> None:
    """Raises DamageError, in all processes, where something is not fine in one: each sees its own part of the arrays,
    and they must go back to the same checkpoint."""
    if not agreed(fine):
        raise DamageError(problem if not fine else "another process found it damaged, and says why")


def stored(data: Any) -> dict[str, Any]:
    """The batches' state of this process, JSON-ready."""
    return {"base64": base64.b64encode(data).decode()} if isinstance(data, bytes) else {"json": data}


def of_this_process(states: list[Any]) -> Any:
    """This process's state; with another number of processes than there were, the first one's."""
    own = states[jax.process_index() if len(states) == jax.process_count() else 0]
    return base64.b64decode(own["base64"]) if "base64" in own else own["json"]
