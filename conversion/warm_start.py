"""`from_encoder_decoder_pretrained`, as far as no framework is concerned: what is asked for, and what was found."""

import dataclasses
import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from conversion import checkpoint, parts
from conversion.names import listed
from conversion.parts import KINDS, Part, PartWeights, Source
from conversion.projection import fitting, read_projection
from conversion.rules import Framework, Row
from conversion.source import asked as asked_formats
from conversion.tables import Table, projection_rows
from conversion.tensors import Tensor
from ved_core.configs import Config, DecoderConfig, EncoderConfig, VisionEncoderDecoderConfig
from ved_core.errors import ConfigError
from ved_core.hub import resolve

LOGGER = logging.getLogger("ved")

UNNEEDED = frozenset({"use_safetensors", "add_pooling_layer"})
"""Options of other libraries that change nothing here."""
FORMATS = ("from_pt", "from_flax", "from_tf")
"""Options that choose where a checkpoint has weights in several formats."""
HUB_OPTIONS = frozenset({"cache_dir", "force_download", "local_files_only", "proxies", "token", "trust_remote_code"})
"""Options that would otherwise end up in a config, a secret among them."""


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """A model to be made: its config, and where each half comes from."""

    config: VisionEncoderDecoderConfig
    sources: Mapping[Part, Source]
    """Of the halves that are to be read."""
    built: Mapping[Part, Any]
    """The halves that are there already."""

    def projection(self, framework: Framework) -> dict[str, Tensor]:
        """The parameters of `enc_to_dec_proj`, where they were kept beside the decoder and fit; else none."""
        source = self.sources.get("decoder")
        kept = read_projection(source.folder) if source and self.config.needs_projection else {}
        rows = tuple(projection_rows(self.config))
        return dict(checkpoint.to_weights(fitting(kept, self.config), Table(rows, {}), framework).parameters)

    def read(self, part: Part, framework: Framework) -> PartWeights:
        """A half's weights. Raises CheckpointError."""
        return parts.read(self.sources[part], getattr(self.config, part), framework)


def plan(
    encoder: str | Path | None,
    decoder: str | Path | None,
    options: Mapping[str, Any],
) -> WarmStart:
    """Read both configs, change them as `options` say, and join them. `revision`, `subfolder` and
    `check_digests` without a prefix are both halves'. Raises HubError, ConfigError."""
    own, top = split_options(options)
    both = {name: top.pop(name, None) for name in ("revision", "subfolder", "check_digests", *FORMATS)}
    configs: dict[Part, Config] = {}
    sources: dict[Part, Source] = {}
    built: dict[Part, Any] = {}
    for part, name in (("encoder", encoder), ("decoder", decoder)):
        asked = both | own[part]
        if asked.get("model") is not None:
            configs[part] = built_config(asked, part)
            built[part] = asked["model"]
        else:
            sources[part], configs[part] = found(name, asked, part)
    top["tie_word_embeddings"] = False
    half = configs["decoder"].to_dict()
    if half.get("is_encoder_decoder"):  # of a whole text model, whose own encoder stays behind
        half["is_encoder_decoder"] = False
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(configs["encoder"], half, **top)
    return WarmStart(config, sources, built)


def split_options(options: Mapping[str, Any]) -> tuple[dict[Part, dict[str, Any]], dict[str, Any]]:
    """Options with a half's prefix, without it, by half; and the rest, fields of the whole config."""
    own: dict[Part, dict[str, Any]] = {part: {} for part in KINDS}
    top: dict[str, Any] = {}
    for name, value in options.items():
        # decoder_start_token_id is a field of the whole model, whatever its name begins with.
        whole = name in VisionEncoderDecoderConfig.field_names()
        part = None if whole else next((part for part in KINDS if name.startswith(f"{part}_")), None)
        bare = name.removeprefix(f"{part}_")
        if bare in HUB_OPTIONS:
            raise ConfigError(f"{name} is no option here; the environment has it (HF_HOME, HF_TOKEN, HF_HUB_OFFLINE)")
        if bare not in UNNEEDED:
            (own[part] if part else top)[bare] = value
    return own, top


def built_config(asked: Mapping[str, Any], part: Part) -> Config:
    """The config of a half that is there already. Raises ConfigError where it has none, or is to be changed."""
    config = getattr(asked["model"], "config", None)
    if not isinstance(config, EncoderConfig if part == "encoder" else DecoderConfig):
        raise ConfigError(
            f"{part}_model should be {KINDS[part][0]} of this library, got {type(asked['model']).__name__}"
        )
    others = sorted(name for name, value in asked.items() if name != "model" and value is not None)
    if others:
        raise ConfigError(f"{part}_model is built already: leave out {', '.join(f'{part}_{name}' for name in others)}")
    return config


def found(name: str | Path | None, asked: Mapping[str, Any], part: Part) -> tuple[Source, Config]:
    """A half's source, and its config with the changes that are asked for."""
    if name is None:
        raise ConfigError(
            f"{part}_pretrained_model_name_or_path is missing: give a folder or a name on the hub that has "
            f"{KINDS[part][0]}, or one that is built already as {part}_model"
        )
    fields = dict(asked)
    wanted = asked_formats(*(fields.pop(option) for option in FORMATS))
    folder = resolve(name, revision=fields.pop("revision"), subfolder=fields.pop("subfolder"), formats=wanted)
    given, check_digests = fields.pop("config", None), fields.pop("check_digests")
    source = parts.open_source(folder, part, wanted, check_digests=check_digests)
    config = source.config if given is None else parts.checked_part(given, part)
    return source, parts.overridden(config, fields, part) if fields else config


def report(warm: WarmStart, halves: Mapping[Part, PartWeights]) -> None:
    """Log, each once, what the new model has from nowhere, what it leaves out, and what was no part of it."""
    new = {kind: [f"decoder.{row.stored}" for row in rows] for kind, rows in halves_new(halves).items()}
    if warm.config.needs_projection and not warm.projection("flax"):
        new["projection"] = [row.stored for row in projection_rows(warm.config) if isinstance(row, Row)]
    if new:
        kinds = "; ".join(f"{kind} ({len(rows)} tensors: {', '.join(patterns(rows))})" for kind, rows in new.items())
        LOGGER.warning("Newly initialised, to be trained: %s", kinds)
    for part, half in halves.items():
        folder = warm.sources[part].folder
        if half.left_out:
            LOGGER.warning("%s: left out, as the %s's config is changed: %s", folder, part, listed(half.left_out))
        if half.ignored:
            LOGGER.info("%s: no part of the %s: %s", folder, part, ", ".join(patterns(half.ignored)))


def halves_new(halves: Mapping[Part, PartWeights]) -> dict[str, list[Row]]:
    """What is new in all halves, by kind; only a decoder's tensors are of such kinds."""
    return {kind: rows for half in halves.values() for kind, rows in half.new.items()}


def patterns(names: Collection[str]) -> list[str]:
    """Names with a star for each number, once each: layers differ in nothing else."""
    return list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names))
