"""`ved train` with batches made up by `tests.training`: `python -m tests.train_worker SECONDS --config ...`.

DAMAGED_VIEW=arrays or description: what this process reads of its first checkpoint is not what the others read.
"""

import os
import sys
import time
from typing import Any

import jax
import orbax.checkpoint as ocp

from tests.cases import model_config
from tests.training import SMALL, Synthetic
from ved_core.configs import VisionEncoderDecoderConfig
from ved_flax.train import command, run


class Slow(Synthetic):
    """Takes its time for every batch."""

    seconds = 0.0

    def __next__(self) -> Any:
        time.sleep(self.seconds)
        return super().__next__()


def batches(config: Any, processor: Any, **options: Any) -> Slow:
    """In place of the data pipeline."""
    model = VisionEncoderDecoderConfig.from_dict(model_config(*SMALL))
    return Slow(model, options["batch_size"], (options["process_index"], options["process_count"]))


CHANGED = "params/decoder.norm.scale"


def damage(what: str) -> None:
    """Have the first read of `what` come back changed, in this process alone."""
    read = ocp.CheckpointManager.restore

    def changed(manager: Any, step: int, *, args: Any) -> Any:
        found = read(manager, step, args=args)
        if what == "description" and "about" in found:
            found["about"]["about"]["step"] += 1
        elif what == "arrays" and "state" in found:
            array = found["state"][CHANGED]
            parts = [jax.device_put(1.001 * shard.data, shard.device) for shard in array.addressable_shards]
            found["state"][CHANGED] = jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts)
        else:
            return found
        ocp.CheckpointManager.restore = read
        return found

    ocp.CheckpointManager.restore = changed


if __name__ == "__main__":
    if os.environ.get("DAMAGED_VIEW"):
        damage(os.environ["DAMAGED_VIEW"])
    Slow.seconds = float(sys.argv[1])
    run.training_batches = batches  # type: ignore[assignment]
    sys.exit(command.main(sys.argv[2:]))
