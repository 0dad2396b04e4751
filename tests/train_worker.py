"""`ved train` with batches made up by `tests.training`: `python -m tests.train_worker SECONDS --config ...`."""

import sys
import time
from typing import Any

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


if __name__ == "__main__":
    Slow.seconds = float(sys.argv[1])
    run.training_batches = batches  # type: ignore[assignment]
    sys.exit(command.main(sys.argv[2:]))
