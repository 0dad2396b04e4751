"""The optimizer: any of optax, with a schedule, decay for matrices only, and learning rates by part."""

import difflib
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import optax

from ved_core.errors import ConfigError
from ved_flax.train.config import OptimizerConfig, ScheduleConfig

Names = Mapping[str, Any]
"""Dotted parameter name -> its array or shape."""

DECAY = 0.01
"""AdamW's weight decay where none is given: torch's; optax's own is a hundredth of it."""
NO_DECAY = re.compile(r"bias")
"""Matrices that are biases all the same: tables of attention biases, and the small networks that compute them."""
MASKS = ("mask", "weight_decay_mask")
"""optax's names of what says where decay applies."""
AMOUNTS = ("weight_decay", "weight_decay_rate")
"""optax's names of how much."""


def make_schedule(config: ScheduleConfig, highest: float, steps: int) -> optax.Schedule:
    """Learning rate of each update, counted from 0. Raises ConfigError where the warm-up leaves no step, and for a last
    value of a schedule that does not fall."""
    left = steps - config.warmup_steps
    if left <= 0:
        raise ConfigError(f"schedule.warmup_steps = {config.warmup_steps} should be less than steps = {steps}")
    match config.kind:
        case "cosine":
            behind = optax.cosine_decay_schedule(highest, left, config.final)
        case "linear":
            behind = optax.linear_schedule(highest, highest * config.final, left)
        case "constant":
            if config.final not in (0.0, 1.0):
                raise ConfigError(
                    f"schedule.final = {config.final}: a constant schedule does not fall; leave it out, or set "
                    "schedule.kind to cosine or linear"
                )
            behind = optax.constant_schedule(highest)
    if config.warmup_steps == 0:
        return behind
    rise = optax.linear_schedule(0.0, highest, config.warmup_steps)
    return optax.join_schedules([rise, behind], [config.warmup_steps])


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule, parameters: Names, new: Collection[str] = ()
) -> optax.GradientTransformation:
    """The optimizer of `parameters`, of which `new` were newly initialised beside loaded ones.

    Raises ConfigError for a name or an argument that optax has not got, or an optimizer that needs more than gradients.
    """
    parts = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    parts.append(_named(config, schedule))
    multipliers = {name: multiplier(config, name, new) for name in parameters}
    for factor in sorted(set(multipliers.values()) - {1.0}):
        parts.append(optax.masked(optax.scale(factor), {name: f == factor for name, f in multipliers.items()}))
    optimizer = optax.chain(*parts)
    try:
        jax.eval_shape(lambda params: optimizer.update(params, optimizer.init(params), params), dict(parameters))
    except Exception as error:  # each optimizer has its own way to say that it wants a loss, a Hessian, ...
        reason = " ".join(str(error).split())
        raise ConfigError(f"optimizer.name = {config.name!r} cannot be used with gradients alone: {reason}") from error
    return optimizer


def _named(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    make = getattr(optax, config.name, None)
    if not callable(make) or "learning_rate" not in (known := inspect.signature(make).parameters):
        close = difflib.get_close_matches(config.name, optimizers(), 1)
        advice = f"did you mean {close[0]}?" if close else f"it has {', '.join(optimizers())}"
        raise ConfigError(f"optimizer.name = {config.name!r} is no optimizer of optax: {advice}")
    for name in config.arguments:
        if name not in known or name == "learning_rate":
            raise ConfigError(f"optimizer.arguments: {config.name} has no {name}; it takes {', '.join(known)}")
    arguments = dict(config.arguments)
    mask, amount = (next((name for name in names if name in known), None) for names in (MASKS, AMOUNTS))
    decay = config.weight_decay
    if decay is None and config.name == "adamw":
        decay = DECAY
    if mask is not None:
        if amount in arguments:
            raise ConfigError(f"optimizer.arguments: give {amount} as optimizer.weight_decay")
        arguments.setdefault(mask, lambda params: {name: decays(name, value.shape) for name, value in params.items()})
    if decay is not None:
        if amount is None:
            raise ConfigError(f"optimizer.weight_decay = {decay}: {config.name} has none; leave it out")
        if mask is None:
            raise ConfigError(
                f"optimizer.weight_decay = {decay}: {config.name} lets biases and norms decay too; give {amount} in "
                "optimizer.arguments, or leave it out"
            )
        arguments[amount] = decay
    try:
        return make(learning_rate=schedule, **arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer.arguments = {config.arguments}: {error}") from error


def optimizers() -> list[str]:
    """The optimizers of optax."""
    found = []
    for name in dir(optax):
        made = getattr(optax, name)
        if inspect.isfunction(made) and "learning_rate" in inspect.signature(made).parameters:
            found.append(name)
    return found


def decays(name: str, shape: tuple[int, ...]) -> bool:
    """Whether weight decay applies: not to biases, norms, single tokens and whatever else has but one long axis."""
    return sum(size > 1 for size in shape) > 1 and NO_DECAY.search(name) is None


def multiplier(config: OptimizerConfig, name: str, new: Collection[str]) -> float:
    """The factor of one parameter's learning rate."""
    if name in new:
        return config.new_multiplier
    return config.encoder_multiplier if name.startswith("encoder.") else config.decoder_multiplier


def frozen_by(config: OptimizerConfig, names: Collection[str]) -> Callable[[str], bool]:
    """Which parameters the config freezes. Raises ConfigError for a pattern that is none, or that matches nothing."""
    patterns = [r"^encoder\."] if config.freeze_encoder else []
    for pattern in config.freeze:
        try:
            matches = any(re.search(pattern, name) for name in names)
        except re.error as error:
            raise ConfigError(f"optimizer.freeze: {pattern!r} is no regular expression: {error}") from None
        if not matches:
            raise ConfigError(f"optimizer.freeze: {pattern!r} is found in no parameter's name, as {min(names)}")
        patterns.append(pattern)
    return lambda name: any(re.search(pattern, name) for pattern in patterns)
