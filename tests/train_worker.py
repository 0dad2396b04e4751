"""`ved train` with batches made up by `tests.training`: `python -m tests.train_worker SECONDS --config ...`.

DAMAGED_VIEW=arrays, description or missing: what this process reads of its first checkpoint is not what the others
read, or is not there.
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
    """Have the first read of `what` come back changed, in this process alone; of missing, fail."""
    handler: Any = ocp.StandardCheckpointHandler if what == "arrays" else ocp.JsonCheckpointHandler
    read = handler.restore

    def changed(self: Any, directory: Any, *arguments: Any, **options: Any) -> Any:
        found = read(self, directory, *arguments, **options)
        if directory.name not in ("state", "about"):
            return found
        handler.restore = read
        if what == "missing":
            raise FileNotFoundError(directory)
        if what == "description":
            found["about"]["step"] += 1
        else:
            array = found[CHANGED]
            parts = [jax.device_put(1.001 * shard.data, shard.device) for shard in array.addressable_shards]
            found[CHANGED] = jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts)
        return found

    handler.restore = changed


if __name__ == "__main__":
    if os.environ.get("DAMAGED_VIEW"):
        damage(os.environ["DAMAGED_VIEW"])
    Slow.seconds = float(sys.argv[1])
    run.training_batches = batches  # type: ignore[assignment]
    sys.exit(command.main(sys.argv[2:]))
