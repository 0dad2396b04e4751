"""Our JAX side."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks import training
from benchmarks.sides.base import Base, Timed, seconds_of
from ved_flax import FlaxVisionEncoderDecoderModel
from ved_flax.compiled import jit_steps, parameters
from ved_flax.train.step import DeviceBatch, StepOptions, initial_state, make_step, split_parameters


class Side(Base):
    """FlaxVisionEncoderDecoderModel."""

    step: Any = None

    def __init__(self, *arguments: Any) -> None:
        jax.block_until_ready(jnp.zeros(3))  # the backend is no part of what a model takes
        super().__init__(*arguments)

    def load(self) -> Any:
        model = FlaxVisionEncoderDecoderModel.from_pretrained(self.place)
        jax.block_until_ready(jax.tree.leaves(parameters(model)))
        self.steps, self.params = jit_steps(model), parameters(model)
        return model

    def run(self, pixels: np.ndarray, beams: int, new: int) -> np.ndarray:
        ids = self.model.generate(pixels, num_beams=beams, do_sample=False, min_new_tokens=new, max_new_tokens=new)
        return np.asarray(ids)

    def encoded(self, pixels: np.ndarray) -> Any:
        return jax.block_until_ready(self.steps.encode(self.params, pixels))

    def train(self) -> Timed:
        """One step with AdamW, the state's memory used again."""
        self.ready()
        if self.step is None:
            optimizer = optax.adamw(training.LEARNING_RATE, weight_decay=training.WEIGHT_DECAY)
            state = initial_state(*split_parameters(self.model), optimizer, 0)
            self.state = jax.tree.map(jnp.copy, state)
            step = make_step(self.model, optimizer, optax.constant_schedule(training.LEARNING_RATE), StepOptions())
            self.step = jax.jit(step, donate_argnums=0)
        pixels, labels = map(jnp.asarray, training.batch())
        batch = DeviceBatch(pixels, labels.astype(jnp.int32), jnp.ones(len(labels)))

        def run() -> None:
            self.state, metrics = self.step(self.state, batch)
            jax.block_until_ready((self.state, metrics))

        return {"seconds": seconds_of(run), "ids": []}

    def dispatch(self, leaves: int, calls: int) -> float:
        """What one call of a compiled step on a model of so many leaves, as `ved_flax.compiled` makes them, takes of
        the calling thread, in seconds of CPU: the program does next to nothing."""
        module = nnx.List([nnx.LayerNorm(4, rngs=nnx.Rngs(0)) for _ in range(leaves // 2)])
        graphdef, params = nnx.graphdef(module), nnx.to_pure_dict(nnx.state(module))
        step = jax.jit(lambda params, x: nnx.merge(graphdef, params)[0](x), keep_unused=True)
        x = jnp.zeros((1, 4))
        jax.block_until_ready(step(params, x))
        start = time.thread_time()
        for _ in range(calls):
            x = step(params, x)
        seconds = time.thread_time() - start
        jax.block_until_ready(x)
        return seconds / calls
