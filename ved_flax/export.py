"""A model as StableHLO programs (`jax.export`), which run on CPUs, NVIDIA GPUs and TPUs without this library.

A folder holds export.json, which describes the rest; params.safetensors, the parameters, which programs take as a tuple
in the description's order; and in files that `jax.export.deserialize` reads a program each: `generate`, pixels to ids
with the options that were given, as one loop; and for a loop of one's own `encode`, `init_cache` and `decode_step`.
All take any batch size.
"""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export

from conversion.formats import safetensors
from ved_core.configs.fields import as_pair
from ved_core.errors import CheckpointError, ConfigError
from ved_core.exported import DESCRIPTION, described
from ved_core.generation.plan import Request
from ved_flax.compiled import ArrayLike, parameters, pure_steps, structure
from ved_flax.layers.cache import Cache, KeyValue
from ved_flax.model import FlaxVisionEncoderDecoderModel

FORMAT, VERSION = "ved-stablehlo", 1
PLATFORMS = ("cpu", "cuda", "tpu")
PARAMETERS, SUFFIX = "params.safetensors", ".stablehlo"
BACKENDS = {"gpu": "cuda"}
"""JAX's name of what runs -> the platform that programs are exported for, where it is another."""

Arrays = tuple[jax.Array, ...]


class Generated(NamedTuple):
    """`ids` (R, L) int32, the prompt first, padded behind the end; `log_probs` (R, L - prompt) float32, 0 there;
    `confidences` (R,): geometric means of the tokens' probabilities."""

    ids: jax.Array
    log_probs: jax.Array
    confidences: jax.Array


def write(
    model: FlaxVisionEncoderDecoderModel,
    folder: Path,
    *,
    platforms: Sequence[str] = PLATFORMS,
    image_size: tuple[int, int] | None = None,
    **options: Any,
) -> None:
    """Write the programs of a model into a folder that exists. `image_size`: height and width of pixel_values, those of
    the config by default; for others, positions are interpolated. `options`: those of `generate`, which the program has
    from then on. Raises GenerationError, and ConfigError for what cannot leave this process."""
    own = as_pair(model.config.encoder.image_size)
    request = model.generation_request(1, **options)
    programs = Programs(model, request, interpolate=image_size not in (None, own))
    described = {}
    for name, (function, inputs) in programs.all(image_size or own).items():
        exported = export.export(jax.jit(function), platforms=list(platforms))(programs.shapes, *inputs)
        (folder / (name + SUFFIX)).write_bytes(exported.serialize())
        described[name] = {
            "inputs": list(map(str, exported.in_avals[len(programs.names) :])),
            "outputs": list(map(str, exported.out_avals)),
            "calling_convention_version": exported.calling_convention_version,
        }
    safetensors.write(folder / PARAMETERS, dict(zip(programs.names, map(np.asarray, programs.leaves), strict=True)))
    description = {
        "format": FORMAT,
        "version": VERSION,
        "jax": jax.__version__,
        "platforms": list(platforms),
        "image_size": list(image_size or own),
        "prompt_tokens": request.plan.prompt,
        "max_new_tokens": request.plan.steps,
        "sequences_per_image": request.plan.returned,
        "options": {name: value for name, value in request.config.to_dict().items() if value is not None},
        "programs": described,
        "parameters": programs.names,
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


class Programs:
    """The functions that are exported, of a tuple of parameters and of arrays."""

    def __init__(self, model: FlaxVisionEncoderDecoderModel, request: Request, *, interpolate: bool) -> None:
        if request.plan.allowed is not None:
            raise ConfigError("prefix_allowed_tokens_fn runs in this process and cannot be exported: leave it out")
        graph, state = nnx.split(model)
        model = nnx.merge(graph, state)  # of the same arrays, so that the caller's keeps its kernels
        model.set_attn_implementation("xla")  # which all platforms have
        self.channels = model.config.encoder.num_channels
        self.request = request
        self.steps = pure_steps(structure(model), interpolate)
        named, self.tree = jax.tree.flatten_with_path(parameters(model))
        self.names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in named]
        self.leaves: Arrays = tuple(array for _, array in named)

    @property
    def shapes(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        return tuple(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in self.leaves)

    def all(self, size: tuple[int, int]) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
        """Each function, and the shapes of its arguments behind the parameters."""
        (batch,) = export.symbolic_shape("b")
        pixels = jax.ShapeDtypeStruct((batch, self.channels, *size), jnp.float32)
        encoded = jax.eval_shape(self.encode, self.shapes, pixels)
        cache = jax.eval_shape(self.init_cache, self.shapes, encoded)
        return {
            "generate": (self.generate, (pixels, jax.ShapeDtypeStruct((), jnp.uint32))),
            "encode": (self.encode, (pixels,)),
            "init_cache": (self.init_cache, (encoded,)),
            "decode_step": (self.decode_step, (jax.ShapeDtypeStruct((batch,), jnp.int32), *cache)),
        }

    def _params(self, leaves: Arrays) -> dict[str, Any]:
        return jax.tree.unflatten(self.tree, leaves)

    def generate(self, leaves: Arrays, pixels_BCHW: jax.Array, seed: jax.Array) -> Arrays:
        plan, params = self.request.plan, self._params(leaves)
        batch = pixels_BCHW.shape[0]
        rows: Any = jax.tree.map(lambda one: jnp.broadcast_to(one, (batch, *one.shape[1:])), self.request.rows)
        rows = rows._replace(row_B=jnp.arange(batch, dtype=jnp.int32))
        numbers = jax.tree.map(jnp.asarray, self.request.numbers) | {"key": jax.random.key(seed)}
        found = self.steps.generate(params, pixels_BCHW, rows, numbers, plan)
        lengths = (found.path_RS >= 0).sum(axis=1)
        confidences = jnp.exp(found.log_probs_RS.sum(axis=1) / jnp.maximum(lengths, 1))
        return found.ids_RL, found.log_probs_RS, confidences

    def encode(self, leaves: Arrays, pixels_BCHW: jax.Array) -> jax.Array:
        return self.steps.encode(self._params(leaves), pixels_BCHW)

    def init_cache(self, leaves: Arrays, encoded_BPD: jax.Array) -> Arrays:
        cache = self.steps.init_cache(self._params(leaves), encoded_BPD, self.request.plan.length)
        return tuple(jax.tree.leaves(cache))

    def decode_step(self, leaves: Arrays, ids_B: jax.Array, *cache: jax.Array) -> Arrays:
        layers = (len(cache) - 2) // 4
        pairs = [KeyValue(*cache[i : i + 2]) for i in range(0, 4 * layers, 2)]
        before = Cache(tuple(pairs[:layers]), tuple(pairs[layers:]), *cache[-2:])
        scores, after = self.steps.decode_step(self._params(leaves), ids_B, before)
        return (scores, *jax.tree.leaves(after))


class ExportedModel:
    """The programs of a folder that `write` wrote, compiled for this machine when first called."""

    def __init__(self, folder: str | Path) -> None:
        """Raises CheckpointError naming the file, ConfigError on a platform that the programs are not for."""
        self.folder = Path(folder)
        self.description = described(self.folder, FORMAT, VERSION)
        platform = BACKENDS.get(jax.default_backend(), jax.default_backend())
        if platform not in self.description["platforms"]:
            raise ConfigError(
                f"{self.folder} was exported for {', '.join(self.description['platforms'])}, not for {platform}: "
                f"export it again with --platforms {platform}"
            )
        self._programs: dict[str, Callable[..., Any]] = {}

    @cached_property
    def parameters(self) -> Arrays:
        """On the default device."""
        found = safetensors.read(self.folder / PARAMETERS)
        if missing := [name for name in self.description["parameters"] if name not in found]:
            raise CheckpointError(f"{self.folder / PARAMETERS}: lacks {missing[0]}; export the model again")
        return tuple(jnp.array(found[name]) for name in self.description["parameters"])

    def call(self, program: str, *arguments: Any) -> Any:
        """A program by its name, with its arguments behind the parameters. Raises CheckpointError."""
        if program not in self._programs:
            path = self.folder / (program + SUFFIX)
            try:
                exported = export.deserialize(bytearray(path.read_bytes()))
            except Exception as error:  # flatbuffers has no error of its own
                raise CheckpointError(f"{path}: is no exported program ({type(error).__name__}: {error})") from None
            self._programs[program] = jax.jit(exported.call)
        return self._programs[program](self.parameters, *arguments)

    def generate(self, pixel_values: ArrayLike, seed: int = 0) -> Generated:
        """Images (B, C, H, W) to texts, with the options of the export; `seed`: of sampling."""
        return Generated(*self.call("generate", jnp.asarray(pixel_values, jnp.float32), np.uint32(seed)))

    def encode(self, pixel_values: ArrayLike) -> jax.Array:
        """Images to tokens (B, P, D)."""
        return self.call("encode", jnp.asarray(pixel_values, jnp.float32))

    def init_cache(self, encoded: jax.Array) -> Arrays:
        """A cache for texts as long as `generate` makes, for images that are encoded."""
        return tuple(self.call("init_cache", encoded))

    def decode_step(self, ids: ArrayLike, cache: Arrays) -> tuple[jax.Array, Arrays]:
        """Scores (B, V) float32 of what follows ids (B,), and the next cache."""
        scores, *after = self.call("decode_step", jnp.asarray(ids, jnp.int32), *cache)
        return scores, tuple(after)
