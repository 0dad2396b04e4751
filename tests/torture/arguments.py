"""Odd arguments for the model's methods, in both frameworks: each is refused with a typed error that names the argument
and what was expected, before anything is compiled, or gives the right result."""

import contextlib
import importlib.util
import random
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np

from tests.cases import model_config
from tests.torture import Attack, Outcome
from ved_core.errors import ConfigError, GenerationError, InputError

Case = tuple[str, Callable[[Any], Any], str]
"""What it is, the call, and what the error must say; "" where the call is to go through."""
PAIR = ("vit-nobias-1layer", "gpt2-unscaled-1layer")
"""One channel, 35 pixels; 61 tokens, 40 positions."""
PIXELS = np.random.default_rng(0).standard_normal((2, 1, 35, 35)).astype(np.float32)
HIDDEN = np.zeros((2, 17, 32), np.float32)
IDS = np.array([[2, 5, 7], [2, 9, 11]])
COMPILED = "/jax/core/compile/backend_compile_duration"
FAR = 2**40


@cache
def model(framework: str, pair: tuple[str, str] = PAIR) -> Any:
    """A small model, the same numbers in each run."""
    if framework == "flax":
        from ved_flax import FlaxVisionEncoderDecoderModel

        return FlaxVisionEncoderDecoderModel(model_config(*pair))
    import torch

    from ved_torch import VisionEncoderDecoderModel

    return VisionEncoderDecoderModel(model_config(*pair), generator=torch.Generator().manual_seed(0)).eval()


def spoilt(value: float) -> np.ndarray:
    """Pixels one of which is another."""
    pixels = PIXELS.copy()
    pixels[1, 0, 17, 3] = value
    return pixels


def changed(value: int) -> np.ndarray:
    """Ids one of which is another."""
    ids = IDS.copy()
    ids[1, 2] = value
    return ids


def of_pixels(m: Any) -> Iterator[Case]:
    """Images that are none."""
    odd: list[tuple[str, Any, str]] = [
        ("one image without its batch", PIXELS[0], r"pixel_values.*\(B, 1, H, W\)"),
        ("channels behind", PIXELS.transpose(0, 2, 3, 1), r"\(B, 1, H, W\)"),
        ("three channels", PIXELS.repeat(3, axis=1), r"\(B, 1, H, W\)"),
        ("no images", PIXELS[:0], "at least one image"),
        ("no rows", PIXELS[:, :, :0], "at least one image"),
        ("of another size", PIXELS[:, :, :30], "interpolate_pos_encoding=True"),
        ("bytes", (PIXELS * 9 + 90).astype(np.uint8), "floating-point"),
        ("booleans", PIXELS > 0, "floating-point"),
        ("complex numbers", PIXELS.astype(complex), "floating-point"),
        ("NaN", spoilt(np.nan), "NaN"),
        ("infinity", spoilt(np.inf), "finite"),
        ("minus infinity", spoilt(-np.inf), "finite"),
        ("more than float32 holds", spoilt(1).astype(np.float64) * 1e300, "finite"),
        ("a file's name", "page.png", "pixel_values"),
        ("nested lists of unequal length", [[1.0], [2.0, 3.0]], "pixel_values"),
        ("objects", np.array([object()]), "pixel_values"),
        ("a dict", {"pixel_values": PIXELS}, "pixel_values"),
    ]
    for name, value, message in odd:
        yield f"generate, pixels: {name}", lambda value=value: m.generate(value, max_new_tokens=2), message
        yield f"call, pixels: {name}", lambda value=value: m(value, IDS), message
    yield "smaller than a patch", lambda: m(PIXELS[..., :4, :4], IDS, interpolate_pos_encoding=True), "patch"
    yield "pixels and image tokens", lambda: m(PIXELS, IDS, encoder_outputs=as_theirs(m, HIDDEN)), "give either"
    yield "neither", lambda: m.generate(), "give either"
    yield "encode, NaN", lambda: m.encode(spoilt(np.nan)), "NaN"
    yield "pixels of float64", lambda: m(PIXELS.astype(np.float64), IDS), ""
    yield "pixels of float16", lambda: m(PIXELS.astype(np.float16), IDS), ""
    yield "pixels that lie apart", lambda: m(PIXELS[::-1][::-1], IDS), ""
    yield "a stream of NaN", lambda: m.stream(spoilt(np.nan), max_new_tokens=2), "NaN"


def of_tokens(m: Any) -> Iterator[Case]:
    """Tokens, masks and labels that are none."""
    outside = "outside the vocabulary of 61 tokens"
    odd: list[tuple[str, dict[str, Any], str]] = [
        ("the first id behind the vocabulary", {"decoder_input_ids": changed(61)}, outside),
        ("a far id", {"decoder_input_ids": changed(FAR)}, outside),
        ("an id that wraps to a token in 32 bits", {"decoder_input_ids": changed(2**32 + 5)}, outside),
        ("a negative id", {"decoder_input_ids": changed(-1)}, outside),
        ("labels' -100 as ids", {"decoder_input_ids": changed(-100)}, outside),
        ("ids that are floats", {"decoder_input_ids": IDS * 1.0}, "decoder_input_ids.*integers"),
        ("ids that are booleans", {"decoder_input_ids": IDS > 2}, "decoder_input_ids.*integers"),
        ("ids of rank 1", {"decoder_input_ids": IDS[0]}, r"\(B, T\)|\(2, T\)"),
        ("ids of rank 3", {"decoder_input_ids": IDS[None]}, r"\(B, T\)|\(2, T\)"),
        ("no ids", {"decoder_input_ids": IDS[:, :0]}, "at least one|integers of shape"),
        ("more rows than images", {"decoder_input_ids": np.concatenate([IDS, IDS[:1]])}, r"2 images|\(2, T\)"),
        ("more than the positions", {"decoder_input_ids": np.full((2, 41), 3)}, "40 positions|no room"),
        ("a mask of another length", {"decoder_attention_mask": np.ones((2, 2), int)}, r"mask.*\(2, 2\)"),
        ("a mask of rank 1", {"decoder_attention_mask": np.ones(3, int)}, r"mask.*\(3,\)"),
        ("a mask that is added", {"decoder_attention_mask": np.where(IDS > 5, 0, -1e9)}, "1 for tokens"),
        ("a mask of text", {"decoder_attention_mask": np.full(IDS.shape, "yes")}, "mask"),
    ]
    for name, change, message in odd:
        given = {"decoder_input_ids": IDS} | change
        yield f"call, {name}", lambda given=given: m(PIXELS, **given), message
        yield f"generate, {name}", lambda given=given: m.generate(PIXELS, **given, max_new_tokens=2), message
    for name, labels, message in [
        ("behind the vocabulary", changed(61), outside),
        ("-1", changed(-1), outside),
        ("-1 beside -100", np.array([[2, -100, -1], [2, 3, 4]]), outside),
        ("floats", IDS * 1.0, "labels.*integers"),
        ("of rank 1", IDS[0], r"labels.*\(B, T\)"),
        ("of one image", IDS[[0, 0, 0]], "2 images"),
        ("too many", np.full((2, 41), 3), "40 positions"),
    ]:
        yield f"labels, {name}", lambda labels=labels: m(PIXELS, labels=labels), message
    yield "labels of another length", lambda: m(PIXELS, IDS, labels=IDS[:, :2]), "one for each token"
    yield "labels that are all ignored", lambda: m(PIXELS, labels=np.full((2, 3), -100)), ""
    yield "only a mask", lambda: m.generate(PIXELS, decoder_attention_mask=IDS > 0), "give both"
    yield "no tokens", lambda: m(PIXELS), "give either"
    yield "a row that is all padding", lambda: m(PIXELS, IDS, IDS * [[0], [1]] > 0), ""
    yield "ids of uint8", lambda: m(PIXELS, IDS.astype(np.uint8)), ""
    yield "ids as lists", lambda: m(PIXELS, IDS.tolist()), ""


def of_images(m: Any) -> Iterator[Case]:
    """Image tokens, embeddings and caches."""
    for name, value, message in [
        ("of rank 2", HIDDEN[0], r"\(B, T, 32\)"),
        ("of another width", HIDDEN[..., :8], r"\(B, T, 32\)"),
        ("no images", HIDDEN[:0], r"\(B, T, 32\)"),
        ("integers", HIDDEN.astype(int), "floating-point"),
    ]:
        given = as_theirs(m, value)
        yield f"image tokens {name}", lambda given=given: m(None, IDS, encoder_outputs=given), message
        yield f"generate from image tokens {name}", lambda given=given: m.generate(encoder_outputs=given), message
    yield "image tokens that are a dict", lambda: m.generate(encoder_outputs={0: "x"}), "encoder_outputs"
    embeds = np.zeros((2, 3, 24), np.float32)
    yield "embeddings of rank 2", lambda: m(PIXELS, decoder_inputs_embeds=embeds[0]), r"\(B, T, 24\)"
    yield "embeddings of another width", lambda: m(PIXELS, decoder_inputs_embeds=embeds[..., :9]), r"\(B, T, 24\)"
    yield "embeddings and ids", lambda: m(PIXELS, IDS, decoder_inputs_embeds=embeds), "give either"
    images = as_theirs(m, HIDDEN)
    for length in (0, -1, 2.5, "8", True):
        yield f"a cache of {length!r}", lambda length=length: m.init_cache(2, length, images), "max_length"
    yield "a cache of other images", lambda: m.init_cache(3, 8, images), "batch_size = 3"
    if type(m).__name__.startswith("Flax"):  # PyTorch's caches grow
        short = m.init_cache(2, 2, images)
        yield "a cache that is full", lambda: m.decode(IDS, images, cache=short), "no room"


def of_lengths(m: Any) -> Iterator[Case]:
    """Lengths beyond what there is, and other options of decoding."""
    for name, options, message in [
        ("longer than the positions", {"max_length": 42}, "40 positions"),
        ("far longer", {"max_length": FAR}, "max_length"),
        ("more new ones than positions", {"max_new_tokens": 41}, "40 positions"),
        ("none", {"max_new_tokens": 0}, "max_new_tokens"),
        ("negative", {"max_length": -5}, "max_length"),
        ("NaN", {"max_length": float("nan")}, "max_length"),
        ("text", {"max_new_tokens": "many"}, "max_new_tokens"),
        ("a prompt that fills it", {"decoder_input_ids": IDS, "max_length": 3}, "no room"),
        ("a temperature of NaN", {"do_sample": True, "temperature": float("nan")}, "temperature"),
        ("a temperature of 0", {"do_sample": True, "temperature": 0.0}, "temperature"),
        ("a penalty of infinity", {"repetition_penalty": float("inf")}, "repetition_penalty"),
        ("no beams", {"num_beams": 0}, "num_beams"),
        ("half a beam", {"num_beams": 1.5}, "num_beams"),
        ("an end outside the vocabulary that forces", {"forced_eos_token_id": 61}, "outside the vocabulary"),
        ("a start outside the vocabulary", {"decoder_start_token_id": 61}, "outside the vocabulary"),
        ("padding outside the vocabulary", {"pad_token_id": 61}, "outside the vocabulary"),
        ("an unknown option", {"max_new_token": 3}, "did you mean max_new_tokens"),
    ]:
        yield f"length: {name}", lambda options=options: m.generate(PIXELS, **options), message


def of_endless(framework: str) -> Iterator[Case]:
    """Lengths for a decoder without a last position."""
    m = model(framework, ("vit-nobias-1layer", "trocr-sinusoidal"))
    for length in (2**31, FAR):
        yield f"length: {length} without positions", lambda n=length: m.generate(PIXELS, max_length=n), "max_length"


def as_theirs(m: Any, array: np.ndarray) -> Any:
    """The framework's own array."""
    if type(m).__name__.startswith("Flax"):
        return array
    import torch

    return torch.as_tensor(array)


def traced() -> Iterator[Case]:
    """In compiled code values are not known: what is no token gives NaN, and nothing else."""
    import jax

    m = model("flax")

    def call(ids: np.ndarray, **options: Any) -> None:
        out = jax.jit(lambda ids: m(PIXELS, ids, **options).logits)(ids)
        assert np.isnan(out[1, 2:]).all(), "what follows an id that is none should be NaN"
        assert np.isfinite(out[0]).all(), "another row is touched"

    def loss(labels: np.ndarray) -> None:
        assert np.isnan(jax.jit(lambda x: m(PIXELS, IDS, labels=x).loss)(labels))

    for value in (61, -1, -61, -100, 2**31 - 1):
        yield f"compiled, id {value}", lambda value=value: call(changed(value).astype(np.int32)), ""
    for value in (61, -1, -61):
        yield f"compiled, label {value}", lambda value=value: loss(changed(value).astype(np.int32)), ""


def cases(framework: str) -> list[Case]:
    """All of a framework."""
    m = model(framework)
    kinds = [of_pixels(m), of_tokens(m), of_images(m), of_lengths(m), of_endless(framework)]
    if framework == "flax":
        kinds.append(traced())
    return [case for kind in kinds for case in kind]


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """What JAX compiles meanwhile."""
    found: list[str] = []
    if not importlib.util.find_spec("jax"):
        yield found
        return
    from jax import monitoring

    def listen(event: str, *_: Any, **__: Any) -> None:
        if event == COMPILED:
            found.append(event)

    monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        monitoring.unregister_event_duration_listener(listen)


def tried(framework: str, case: Case) -> Outcome:
    """One case."""
    name, call, message = case
    title = f"{framework}, {name}"
    with compilations() as compiled:
        try:
            call()
        except (InputError, GenerationError, ConfigError) as error:
            if not message or not re.search(message, str(error), re.DOTALL):
                return Outcome(title, "failed", f"the error says {str(error)!r}, not {message!r}")
            if compiled:
                return Outcome(title, "failed", f"{len(compiled)} programs were compiled before the error")
            return Outcome(title, "refused", str(error))
        except Exception as error:
            return Outcome(title, "failed", f"{type(error).__name__}: {error}")
    return Outcome(title, "failed", "went through") if message else Outcome(title, "survived")


def run(seed: int, count: int) -> Iterator[Outcome]:
    """All cases for 80 or more of them, else some of all kinds."""
    frameworks = [name for name in ("flax", "torch") if importlib.util.find_spec(name)]
    every = [(framework, case) for framework in frameworks for case in cases(framework)]
    if count < 80:
        every = random.Random(seed).sample(every, count)
    for framework, case in every:
        yield tried(framework, case)


ATTACK = Attack("odd arguments of the model's methods", 80, run, short=24)
