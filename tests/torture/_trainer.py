"""A training run's checkpoints without the training: `python -m tests.torture._trainer` forks for each folder on stdin.

A child restores the latest checkpoint, compares it with what that step's state is, and goes on from it, saving as the
trainer does, until it is killed. It says on its stdout what it found and how far it is. JAX begins in the children: the
parent has only imported it.
"""

import dataclasses
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.torture.orbax_kills import EVERY
from tests.training import tiny
from ved_flax.train.checkpoint import Checkpoints, named
from ved_flax.train.config import CheckpointConfig, EvaluationConfig, OptimizerConfig, ParallelConfig
from ved_flax.train.optimizer import make_optimizer
from ved_flax.train.placement import Placement
from ved_flax.train.step import split_parameters

KEPT = ("decoder.norm", "tokens", "mlp.up.kernel")
"""Parameters of the state, some of a model's."""


def state_at(step: int, first: Any) -> Any:
    """The state behind a step: all of its numbers differ from those of every other step."""
    return jax.tree.map(lambda x: x if x.dtype == jnp.bool_ else x + jnp.asarray(step, x.dtype), first)


def train(folder: Path) -> None:
    """Restore, compare, go on."""
    placement = Placement(ParallelConfig(data=1))
    params, _ = split_parameters(tiny())
    params = {name: value for name, value in params.items() if any(part in name for part in KEPT)}
    update = make_optimizer(OptimizerConfig(), lambda step: 0.1, params)
    first = placement.initial(params, {}, update, 0, average=True)
    checkpoints = Checkpoints(folder, CheckpointConfig(every=EVERY, keep=2), EvaluationConfig())
    restored = checkpoints.restore(first, placement)
    step = 0
    if restored is not None:
        step = restored.step
        expected, found = named(state_at(step, first)), named(restored.state)
        wrong = [name for name, x in expected.items() if not np.array_equal(np.asarray(found[name]), np.asarray(x))]
        if wrong or restored.data != {"number": step} or not dataclasses.is_dataclass(restored.state):
            say(f"wrong {step} {wrong} {restored.data}")
            return
    say(f"restored {step}")
    while True:
        step += 1
        if step % EVERY == 0:
            say(f"saves {step}")
            checkpoints.save(step, state_at(step, first), placement.layouts, {"number": step})
            say(f"begun {step}")
        time.sleep(0.004)


def say(line: str) -> None:
    """In one piece, whatever is killed."""
    os.write(1, f"{line}\n".encode())


def serve() -> None:
    """Fork for every folder on stdin."""
    say("ready")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                say(f"process {os.getpid()}")
                train(Path(line.rstrip("\n")))
            except BaseException:
                traceback.print_exc()
            say("ended")
            os._exit(1)
        os.waitpid(child, 0)
        say("gone")


if __name__ == "__main__":
    serve()
