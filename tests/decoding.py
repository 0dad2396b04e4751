"""Decoding in either framework and in transformers, with the same options: seeded combinations of them, and results as
NumPy arrays."""

import dataclasses
import functools
import importlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import reference
from tests.cases import READER, inputs

FRAMEWORKS = {"flax": "FlaxVisionEncoderDecoderModel", "torch": "VisionEncoderDecoderModel"}
TRAINED = "digits"
RANDOM = [("vit", "gpt2"), ("swin", "bert"), ("vit", "roberta"), ("deit", "trocr"), ("donut", "mbart")]
MODELS = [TRAINED, *("+".join(pair) for pair in RANDOM)]
SLOW = pytest.mark.slow
NEAR = 1e-5
"""Two candidates of the reference that are this near may come in either order."""


def both(values: dict[Any, Any], quick: Collection[Any]) -> list[Any]:
    """Parameters `framework` and a value, by its name. In Flax, where each is compiled anew, those that are not named
    in `quick` are left to the full run."""
    return [
        pytest.param(
            framework, value, id=f"{framework}-{name}", marks=SLOW if framework == "flax" and name not in quick else ()
        )
        for framework in FRAMEWORKS
        for name, value in values.items()
    ]


@dataclasses.dataclass(frozen=True)
class Result:
    """`ids` (R, L); beam search's `scores` (R,); the reference's scores of every step (S, B * K, V)."""

    ids: np.ndarray
    scores: np.ndarray | None
    steps: np.ndarray | None = None


@functools.cache
def folder(name: str, root: Path) -> Path:
    """The checkpoint of one of MODELS."""
    if name == TRAINED:
        return READER
    path = root / name
    reference.build(*name.split("+"), path)
    return path


@functools.cache
def load(framework: str, path: Path) -> Any:
    """A model of one framework, or of transformers ("reference")."""
    if framework != "flax":
        import torch

        torch.set_num_threads(1)  # on tiny tensors a second one only costs
    if framework == "reference":
        import transformers

        return transformers.VisionEncoderDecoderModel.from_pretrained(path, attn_implementation="eager").eval()
    return getattr(importlib.import_module(f"ved_{framework}"), FRAMEWORKS[framework]).from_pretrained(path)


def pixels(path: Path, batch: int, seed: int = 0) -> np.ndarray:
    """Images for a checkpoint."""
    if path == READER:
        from tests.cases import DIGITS
        from ved_core.processing import Processor

        return Processor.from_pretrained(READER).pixel_values(sorted(DIGITS.glob("*.png"))[:batch])
    return inputs(load("torch", path).config.to_dict(), batch=batch, seed=seed).pixel_values


def run(framework: str, path: Path, pixel_values: np.ndarray, options: dict[str, Any]) -> Result:
    """One call of generate()."""
    options = dict(options)
    model = load(framework, path)
    if options.pop("custom", False):
        options["logits_processor"] = CUSTOM[framework]
    if framework == "reference":
        return _reference(model, pixel_values, options)
    out = model.generate(pixel_values, return_dict_in_generate=True, **options)
    scores = out.sequences_scores
    return Result(np.asarray(out.sequences), None if scores is None else np.asarray(scores))


def _reference(model: Any, pixel_values: np.ndarray, options: dict[str, Any]) -> Result:
    import torch

    if "decoder_input_ids" in options:
        options["decoder_input_ids"] = torch.tensor(options["decoder_input_ids"])
    with torch.no_grad():
        out = model.generate(torch.tensor(pixel_values), return_dict_in_generate=True, output_scores=True, **options)
    scores = out.get("sequences_scores")
    steps = np.stack([step.numpy() for step in out.scores])
    return Result(out.sequences.numpy(), None if scores is None else scores.numpy(), steps)


# A processor of the user's: what it adds depends on how many tokens there are, and on the last one.


def _bias(length: Any, last: Any, vocabulary: int, where: Any) -> Any:
    return 2.0 * where((last + length) % vocabulary == 3, 1.0, -0.1)


def _flax_processor(ids: Any, scores: Any, columns: Any) -> Any:
    import jax.numpy as jnp

    last = jnp.take(ids, columns - 1, axis=1)[:, None] + jnp.arange(scores.shape[1])
    return scores + _bias(columns, last, scores.shape[1], jnp.where)


def _torch_processor(ids: Any, scores: Any) -> Any:
    import torch

    last = ids[:, -1:] + torch.arange(scores.shape[1])
    return scores + _bias(ids.shape[1], last, scores.shape[1], torch.where)


CUSTOM = {
    "flax": _flax_processor,
    "torch": _torch_processor,
    "reference": [_torch_processor],
}


class Allowed:
    """A prefix_allowed_tokens_fn: a few tokens that depend on the image and on the last token."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def __call__(self, row: int, ids: Any) -> list[int]:
        return sorted({(int(ids[-1]) * 7 + 5 * k + row) % self.vocabulary for k in range(9)} | {2})


def combination(seed: int, vocabulary: int, prompt: bool = True) -> dict[str, Any]:
    """Options of one deterministic call: a few of all, with values that matter on a small vocabulary."""
    rng = np.random.default_rng(seed)

    def ids(count: int) -> list[int]:
        return [int(i) for i in rng.choice(np.arange(3, vocabulary), count, replace=False)]

    options: dict[str, Any] = {"num_beams": int(rng.choice([1, 2, 3, 4, 5])), "do_sample": False}
    new = int(rng.integers(3, 13))
    columns = 1
    if prompt and rng.random() < 0.3:
        columns = int(rng.integers(1, 5))
        options["decoder_input_ids"] = rng.integers(3, vocabulary, (3, columns))
        columns += 1
    if rng.random() < 0.5:
        options["max_new_tokens"] = new
    else:
        options["max_length"] = columns + new
    choices = {
        "min_length": lambda: int(rng.integers(1, columns + new)),
        "min_new_tokens": lambda: int(rng.integers(1, new + 1)),
        "repetition_penalty": lambda: float(rng.choice([0.7, 1.3, 2.0])),
        "no_repeat_ngram_size": lambda: int(rng.integers(1, 4)),
        "bad_words_ids": lambda: [ids(1), ids(2), ids(1), ids(3)],
        "sequence_bias": lambda: [[ids(1), 3.0], [ids(2), -4.0], [ids(2), 5.0]],
        "suppress_tokens": lambda: ids(vocabulary // 4),
        "begin_suppress_tokens": lambda: ids(vocabulary // 2),
        "forced_bos_token_id": lambda: ids(1)[0],
        "forced_eos_token_id": lambda: [2, *ids(1)] if rng.random() < 0.5 else 2,
        "eos_token_id": lambda: [2, *ids(vocabulary // 8)],
        "renormalize_logits": lambda: True,
        "prefix_allowed_tokens_fn": lambda: Allowed(vocabulary),
        "custom": lambda: True,
    }
    if options["num_beams"] > 1:
        # What only beam search reads.
        choices |= {
            "length_penalty": lambda: float(rng.choice([-1.0, 0.0, 0.5, 2.0])),
            "early_stopping": lambda: [True, False, "never"][rng.integers(3)],
            "num_return_sequences": lambda: int(rng.integers(1, options["num_beams"] + 1)),
        }
    for name in rng.choice(list(choices), int(rng.integers(1, 6)), replace=False):
        options[str(name)] = choices[str(name)]()
    if "min_new_tokens" in options:
        options.pop("min_length", None)
    if {options.get("forced_bos_token_id")} & set(options.get("suppress_tokens", ())):
        del options["suppress_tokens"]  # both refuse it
    return options


def excused(found: Result, expected: Result) -> bool:
    """Whether two results differ only in the order of candidates that the reference finds equally good: its two best
    continuations of some step, or two of its sequences, are nearer than NEAR."""
    if expected.scores is not None and len(expected.scores) > 1:
        gaps = np.abs(np.subtract.outer(expected.scores, expected.scores))[~np.eye(len(expected.scores), dtype=bool)]
        if gaps.min() < NEAR:
            return True
    assert expected.steps is not None
    best = np.sort(expected.steps, axis=-1)[..., ::-1][..., :2]
    gap = np.where(np.isfinite(best).all(axis=-1), best[..., 0] - best[..., 1], np.inf)
    return bool(gap.min() < NEAR)
