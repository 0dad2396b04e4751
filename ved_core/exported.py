"""Exported models without a framework: greedy decoding around any step, and ONNX graphs run by onnxruntime."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ved_core.configs import VisionEncoderDecoderConfig
from ved_core.errors import CheckpointError, ConfigError, VedError
from ved_core.generation.config import GenerationConfig
from ved_core.generation.options import DEFAULT_MAX_LENGTH, Options

DESCRIPTION = "export.json"
"""Says what the other files of an exported model are."""
ENCODER, DECODER = "onnx/encoder_model.onnx", "onnx/decoder_model_merged.onnx"


def described(folder: Path, kind: str, version: int) -> dict[str, Any]:
    """A folder's description. Raises CheckpointError where it is of another kind or version, or none."""
    path = folder / DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        known = description["format"], description["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: describes no exported model ({error}); export one to here") from None
    if known != (kind, version):
        raise CheckpointError(f"{path}: is {known[0]} {known[1]}, this release reads {kind} {version}")
    return description


def greedy(
    step: Callable[[np.ndarray], np.ndarray],
    batch: int,
    config: VisionEncoderDecoderConfig,
    generation: GenerationConfig,
    max_new_tokens: int | None = None,
) -> np.ndarray:
    """Ids (B, L) int64 of the likeliest tokens, the start token first, padding behind the end. `step`: new ids (B, T)
    to scores (B, V) of what follows them, with a memory of its own for those before. Tokens, forced ones too, and
    lengths are looked up as `generate` does; its other options are not for this. Raises ConfigError where there is no
    start or end token."""
    options = Options({} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}, generation, config)
    start = options.value("decoder_start_token_id")
    start = options.value("bos_token_id") if start is None else start
    ends = options.value("eos_token_id")
    if start is None or ends is None:
        raise ConfigError("decoding needs a start and an end token: set decoder_start_token_id and eos_token_id")
    ends = np.atleast_1d(ends)
    padding = options.value("pad_token_id")
    padding = int(ends[0]) if padding is None else padding
    new = options.value("max_new_tokens")
    if new is None:
        new = (options.value("max_length") or DEFAULT_MAX_LENGTH) - 1
    places = {"forced_bos_token_id": 1, "forced_eos_token_id": new}
    forced = {place: token for name, place in places.items() if (token := options.value(name)) is not None}
    ids = np.full((batch, 1), start, np.int64)
    done = np.zeros(batch, bool)
    while ids.shape[1] <= new and not done.all():
        token = step(ids[:, -1:]).argmax(axis=-1)
        if ids.shape[1] in forced:
            token[:] = np.min(forced[ids.shape[1]])  # of several, all with the same score
        token = np.where(done, padding, token)
        done |= np.isin(token, ends)
        ids = np.concatenate([ids, token[:, None]], axis=1)
    return ids


class OnnxModel:
    """The ONNX graphs of a folder, in optimum's layout, run by onnxruntime: PyTorch is not needed."""

    def __init__(self, folder: str | Path, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        """Raises VedError where onnxruntime is missing, CheckpointError naming the file, ConfigError."""
        try:
            import onnxruntime
        except ImportError as error:
            raise VedError('onnxruntime is not installed: pip install "ved[export]"') from error
        self.folder = Path(folder)
        self.config = VisionEncoderDecoderConfig.from_pretrained(self.folder)
        self.generation_config = GenerationConfig.from_folder(self.folder)
        self.sessions = {}
        for name in (ENCODER, DECODER):
            path = self.folder / name
            try:
                self.sessions[name] = onnxruntime.InferenceSession(str(path), providers=list(providers))
            except Exception as error:  # its errors share no class of their own
                reason = " ".join(str(error).split())
                raise CheckpointError(f"{path}: cannot be run ({reason}); export the model again") from None

    def greedy(self, pixel_values: np.ndarray, max_new_tokens: int | None = None) -> np.ndarray:
        """Images (B, C, H, W) to ids (B, L) by the likeliest tokens, as `greedy`."""
        hidden = self.sessions[ENCODER].run(None, {"pixel_values": np.asarray(pixel_values, np.float32)})[0]
        decoder = self.sessions[DECODER]
        fixed: dict[str, np.ndarray] = {"encoder_hidden_states": hidden}
        past = {
            entry.name: np.zeros((len(hidden), entry.shape[1], 0, entry.shape[3]), np.float32)
            for entry in decoder.get_inputs()
            if entry.name.startswith("past_key_values")
        }
        names = [entry.name for entry in decoder.get_outputs()]
        cached = False

        def step(ids_BT: np.ndarray) -> np.ndarray:
            nonlocal past, cached
            feeds = {"input_ids": ids_BT, "use_cache_branch": np.array([cached]), **fixed, **past}
            logits, *present = decoder.run(names, feeds)
            after = zip(names[1:], present, strict=True)
            past = {name.replace("present", "past_key_values"): value for name, value in after}
            cached = True
            return logits[:, -1]

        return greedy(step, len(hidden), self.config, self.generation_config, max_new_tokens)
