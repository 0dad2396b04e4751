"""A checkpoint in any format -> a checkpoint folder in any format: whole, one half of it, or two halves joined."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from conversion import parts
from conversion.checkpoint import canonical, of_part, part_of_its_own, state_dtype, without_foreign
from conversion.folder import consistent
from conversion.formats import torch_bin
from conversion.names import listed
from conversion.originals import Original, translate
from conversion.parts import KINDS
from conversion.projection import PROJECTION_FILE, fitting, read_projection
from conversion.saving import Stored, checked_format, texts_beside, write
from conversion.source import Source, Wanted, find
from conversion.tables import table_of
from conversion.tensors import Tensor, cast
from ved_core import digests
from ved_core.configs import CONFIG_FILE, Config, VisionEncoderDecoderConfig
from ved_core.configs.base import read_json
from ved_core.configs.model import read_config
from ved_core.errors import CheckpointError
from ved_core.generation.config import GENERATION_CONFIG_FILE, GenerationConfig
from ved_core.hub import resolve

DTYPES: dict[str, np.dtype] = {
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "fp16": np.dtype(np.float16),
    "fp32": np.dtype(np.float32),
}
IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")
"""What belongs to an encoder by itself; all other texts are a decoder's."""
TOKENS = ("decoder_start_token_id", "bos_token_id", "pad_token_id", "eos_token_id")

Place = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class Opened:
    """A checkpoint to be converted: its tensors by the names of its config's table, and the texts beside them.

    `own`: whether config.json may be copied as it is.
    """

    source: Source
    stored: Stored
    texts: Mapping[str, bytes]
    own: bool = True


def convert(
    source: Place,
    target: Place,
    to: str = "safetensors",
    *,
    dtype: str | None = None,
    shard_size: int | str | None = None,
    part: parts.Part | None = None,
    config: Place | None = None,
    wanted: Wanted = None,
    revision: str | None = None,
    subfolder: str | None = None,
    check_digests: bool | None = None,
) -> None:
    """Write the checkpoint `source` (folder, file, or name on the hub; its format is found by looking) as the folder
    `target` in the format `to`, one tensor in memory at a time. Config, processor and tokenizer files travel along.

    `dtype`: bf16, fp16 or fp32, by default each tensor's own, whose numbers then stay bit for bit; `shard_size`: the
    most bytes in one file ("2GB"); `part`: "encoder" or "decoder", that half by itself, the decoder with the projection
    before its cross-attention; `config`: a config.json in place of the one beside the weights; `wanted`: formats to
    look for. A target that is the source's folder gets the new format beside the old one. Checkpoints in the original
    layouts of TrOCR and Donut are converted into Hugging Face's. `check_digests`: whether a source that has a
    ved_digests.json is compared with it first, by default yes, unless the environment's VED_CHECK_DIGESTS is 0.

    Raises CheckpointError, ConfigError or HubError naming the file and the fix, OSError where the disk refuses; the
    target is then as it was.
    """
    checked_format(to, shard_size)
    folder = _target(target)
    opened = open_checkpoint(
        source,
        part=part,
        config=config,
        wanted=wanted,
        revision=revision,
        subfolder=subfolder,
        check_digests=check_digests,
    )
    beside = _beside(opened.source, folder, opened.own and dtype is None and config is None)
    _write(opened, folder, to, dtype, shard_size, beside)


def join(
    encoder: Place,
    decoder: Place,
    target: Place,
    to: str = "safetensors",
    *,
    dtype: str | None = None,
    shard_size: int | str | None = None,
    wanted: Wanted = None,
    revision: str | None = None,
    check_digests: bool | None = None,
) -> None:
    """Write the encoder out of one checkpoint and the decoder out of another as one model; the arguments and errors of
    `convert`. Raises CheckpointError, too, where the decoder has no cross-attention or the projection that the two
    widths need is missing: a model has to be trained then, and `from_encoder_decoder_pretrained` makes it.
    """
    checked_format(to, shard_size)
    folder = _target(target)
    asked: dict[str, Any] = {"wanted": wanted, "revision": revision, "check_digests": check_digests}
    places = {"encoder": encoder, "decoder": decoder}
    halves = {part: open_checkpoint(place, part=part, **asked) for part, place in places.items()}
    texts = {name: text for name, text in halves["encoder"].texts.items() if name in IMAGE_FILES}
    texts |= {name: text for name, text in halves["decoder"].texts.items() if name not in texts}
    configs = [half.stored.config.to_dict() for half in halves.values()]
    if configs[1].get("is_encoder_decoder"):  # of a whole text model, whose own encoder stays behind
        configs[1]["is_encoder_decoder"] = False
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        *configs, architectures=["VisionEncoderDecoderModel"]
    )
    if GENERATION_CONFIG_FILE in texts:
        generation = GenerationConfig.from_folder(halves["decoder"].source.folder)
        for name in TOKENS:
            if generation.get(name) is not None:
                setattr(config, name, generation.get(name))
    tensors = {f"{part}.{name}": x for part, half in halves.items() for name, x in half.stored.tensors.items()}
    if config.needs_projection:
        tensors |= _fitting_projection(halves["decoder"], config)
    opened = Opened(halves["decoder"].source, Stored(tensors, config), texts, own=False)
    for half in halves.values():
        _beside(half.source, folder, False)
    _write(opened, folder, to, dtype, shard_size, beside=False)


def open_checkpoint(
    source: Place,
    *,
    part: parts.Part | None = None,
    config: Place | None = None,
    wanted: Wanted = None,
    revision: str | None = None,
    subfolder: str | None = None,
    check_digests: bool | None = None,
) -> Opened:
    """A checkpoint's tensors and texts, or those of one half; the arguments and errors of `convert`."""
    if part not in (None, *KINDS):
        raise CheckpointError(f"part {part!r} should be encoder or decoder")
    place = locate(source, wanted=wanted, revision=revision, subfolder=subfolder)
    folder = place.parent if place.is_file() else place
    return consistent(folder, lambda: _opened(place, part, config, wanted, digests.wanted(check_digests)))


def _opened(place: Path, part: parts.Part | None, config: Place | None, wanted: Wanted, check: bool) -> Opened:
    found, described = open_place(place, config=config, wanted=wanted)
    if check:
        found.check(texts_beside(found.folder))  # which travel along
    texts = texts_beside(found.folder)
    given = None if config is None else _expanded(config)
    if given is not None:
        texts[CONFIG_FILE] = given.read_bytes()
    original = original_of(found, described)
    if original is not None:
        opened = Opened(found, Stored(original.tensors, original.config), texts, own=False)
    elif part is not None and not isinstance(described, VisionEncoderDecoderConfig):
        return _half_of_another(found, texts, part, wanted, given)
    else:
        described = read_config(found.folder / CONFIG_FILE) if described is None else described
        stored = canonical(found.tensors(), table_of(described), str(found.place))
        opened = Opened(found, Stored(stored, described, read_projection(found.folder)), texts)
    return opened if part is None else _half(opened, part)


def open_place(
    source: Place,
    *,
    config: Place | None = None,
    wanted: Wanted = None,
    revision: str | None = None,
    subfolder: str | None = None,
) -> tuple[Source, Config | None]:
    """Where a checkpoint's weights are, and its config: None where there is none that this library knows."""
    found = find(locate(source, wanted=wanted, revision=revision, subfolder=subfolder), wanted)
    if config is not None:
        return found, read_config(_expanded(config))
    path = found.folder / CONFIG_FILE
    foreign = not path.is_file() or read_json(path).get("model_type") in ("donut", None)
    return found, None if foreign else read_config(path)


def locate(source: Place, *, wanted: Wanted = None, revision: str | None = None, subfolder: str | None = None) -> Path:
    """The file or folder that is meant, fetched where it is a name on the hub. Raises CheckpointError, HubError."""
    place = _expanded(source)
    if not place.is_file():
        return resolve(source, revision=revision, subfolder=subfolder, formats=wanted)
    if revision is not None or subfolder is not None:
        raise CheckpointError(f"{place}: is a file, which has no revision or subfolder; leave them out")
    return place


def original_of(found: Source, described: Config | None) -> Original | None:
    """A checkpoint in the layout of the repository that first published it, in Hugging Face's; else None."""
    if found.format.name not in ("torch", "safetensors"):
        return None
    config = described if isinstance(described, VisionEncoderDecoderConfig) else None
    in_one_file = found.format.name == "torch" and not found.place.name.endswith(".json")
    tensors = torch_bin.read_inside(found.place) if in_one_file else found.stored()
    return translate(tensors, str(found.place), config) if tensors else None


def _half(opened: Opened, part: parts.Part) -> Opened:
    """One half of a whole model, by itself."""
    assert isinstance(opened.stored.config, VisionEncoderDecoderConfig)
    config = part_of_its_own(getattr(opened.stored.config, part))
    tensors = without_foreign(of_part(opened.stored.tensors, part), config)
    kept = opened.stored.tensors if part == "decoder" else {}
    projection = {name: tensor for name, tensor in kept.items() if name.startswith("enc_to_dec_proj.")}
    texts = _texts_of(opened.texts, part)
    return Opened(opened.source, Stored(tensors, config, projection), texts, own=False)


def _half_of_another(
    found: Source, texts: Mapping[str, bytes], part: parts.Part, wanted: Wanted, config: Path | None
) -> Opened:
    """A half out of a checkpoint by itself, or with other heads."""
    source = parts.open_source(found.folder, part, wanted, found.place, config, check_digests=False)
    read = parts.read_stored(source, source.config)
    if read.new:
        new = ", ".join(f"{kind} ({listed([row.stored for row in rows])})" for kind, rows in read.new.items())
        raise CheckpointError(
            f"{found.place}: has no {new}; a model with it has to be trained, and "
            "FlaxVisionEncoderDecoderModel.from_encoder_decoder_pretrained makes one that begins with these weights"
        )
    own = part_of_its_own(source.config)
    stored = Stored(read.tensors, own, read_projection(found.folder) if part == "decoder" else {})
    return Opened(found, stored, _texts_of(texts, part), own=False)


def _texts_of(texts: Mapping[str, bytes], part: parts.Part) -> dict[str, bytes]:
    encoder = part == "encoder"
    return {name: text for name, text in texts.items() if (name in IMAGE_FILES) == encoder and name != CONFIG_FILE}


def _fitting_projection(decoder: Opened, config: VisionEncoderDecoderConfig) -> Mapping[str, Tensor]:
    """The projection of a joined model, as it was kept beside the decoder. Raises CheckpointError."""
    kept = fitting(dict(decoder.stored.projection), config)
    if not kept:
        raise CheckpointError(
            f"{decoder.source.place}: the encoder is of another width, and beside this decoder is no projection from "
            f"{config.encoder.hidden_size} to {config.decoder.hidden_size} ({PROJECTION_FILE}, which --part decoder "
            "writes); it has to be trained, and FlaxVisionEncoderDecoderModel.from_encoder_decoder_pretrained makes a "
            "model with a new one"
        )
    return kept


def _expanded(place: Place) -> Path:
    return Path(os.path.expanduser(place))


def _target(target: Place) -> Path:
    """The folder to be written. Raises CheckpointError where its name is empty: that would be the working directory."""
    if not os.fspath(target):
        raise CheckpointError("the name of the target is empty; give a folder")
    return _expanded(target)


def _beside(source: Source, target: Path, same: bool) -> bool:
    """Whether the target is the source's folder. Raises CheckpointError where it may not be, or cannot be a folder."""
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{target}: is a file; give a folder")
    own = target.resolve() == source.folder.resolve()
    if own and not same:
        raise CheckpointError(f"{target}: is the source's own folder, whose model it would replace; give another one")
    if source.place.is_dir() and target.resolve().is_relative_to(source.place.resolve()):
        raise CheckpointError(f"{target}: lies inside the source {source.place}; give another folder")
    return own


def _write(
    opened: Opened, target: Path, to: str, dtype: str | None, shard_size: int | str | None, beside: bool
) -> None:
    if dtype is not None and dtype not in DTYPES:
        raise CheckpointError(f"dtype {dtype!r} should be one of {', '.join(DTYPES)}")
    wanted = None if dtype is None else DTYPES[dtype]
    stored = opened.stored
    tensors = {name: cast(name, tensor, wanted) for name, tensor in stored.tensors.items()}
    projection = {name: cast(name, tensor, wanted) for name, tensor in stored.projection.items()}
    texts = dict(opened.texts)
    if wanted is not None or not opened.own:
        config = stored.config.copy()
        state_dtype(config, wanted or next(iter(tensors.values())).dtype)
        texts[CONFIG_FILE] = config.to_json().encode()
    if beside:
        texts = {}
    write(target, Stored(tensors, stored.config, projection), texts, to, shard_size, beside=beside)
