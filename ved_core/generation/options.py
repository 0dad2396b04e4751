"""Where each decoding option comes from: the call, what a person assigned, or one of a checkpoint's files."""

import difflib
from collections.abc import Mapping
from typing import Any

from ved_core.configs.base import Config, shorten
from ved_core.configs.model import VisionEncoderDecoderConfig
from ved_core.errors import ConfigError, GenerationError
from ved_core.generation.config import INERT, TOKENS_AND_LENGTH, GenerationConfig

DEFAULT_MAX_LENGTH = 20
"""transformers' own default. Old releases wrote it into every config.json: there it means «not set»."""


class Options:
    """All sources of decoding options in the order of their precedence.

    The call's arguments, its `generation_config` among them; what a person assigned to `model.generation_config` or
    `model.config` after loading; generation_config.json; config.json's top level; its decoder part.
    """

    def __init__(
        self,
        call: Mapping[str, Any],
        generation: GenerationConfig,
        config: VisionEncoderDecoderConfig,
        given: GenerationConfig | None = None,
    ) -> None:
        self.call = call
        self.sources: list[tuple[str, Mapping[str, Any] | Config]] = [
            ("generate()'s generation_config", {} if given is None else given),
            ("model.generation_config", {name: generation.get(name) for name in generation.assigned}),
            ("model.config", {name: config.get(name) for name in config.assigned}),
            ("generation_config.json", generation),
            ("config.json", config),
            ("config.json's decoder", config.decoder),
        ]
        self.generation = generation

    @property
    def strategies(self) -> list[tuple[str, Mapping[str, Any] | Config]]:
        """The sources that may name a strategy: a checkpoint with a generation_config.json has it there; before there
        was one, in config.json."""
        complete = self.generation.to_dict().keys() - {"return_dict_in_generate"}
        return self.sources[:-2] if complete else self.sources

    def value(self, name: str) -> Any:
        """The first value that is set, or None. A call's None takes a field of the strategy away."""
        if self.call.get(name) is not None:
            return self.call[name]
        if name not in TOKENS_AND_LENGTH and name in self.call:
            return None
        for source, values in self.sources if name in TOKENS_AND_LENGTH else self.strategies:
            value = values.get(name)
            unset = name == "max_length" and value == DEFAULT_MAX_LENGTH and source.startswith("config.json")
            if value is not None and not unset:
                return value
        return None

    def config(self) -> GenerationConfig:
        """All values together. Raises ConfigError for one of a wrong type."""
        values = {name: self.value(name) for name in GenerationConfig.field_names()}
        return GenerationConfig.from_dict({name: value for name, value in values.items() if value is not None})

    def refuse_unsupported(self) -> None:
        """Raise GenerationError for an option that asks for what decoding does not do, naming where it stands."""
        for name, value in self.call.items():
            if name not in INERT and name not in GenerationConfig.field_names():
                near = difflib.get_close_matches(name, [*INERT, *GenerationConfig.field_names()], 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise GenerationError(f"generate() has no option {name!r}{hint}")
            if name in INERT and value is not None and not INERT[name](value):
                raise GenerationError(f"{name} = {shorten(value)} is not supported: leave it out")
        for source, values in self.strategies:
            for name, inert in INERT.items():
                value = values.get(name)
                if name not in self.call and value is not None and not inert(value):
                    raise GenerationError(
                        f"{source} asks for {name} = {shorten(value)}, which is not supported. "
                        f"Pass {name}=None to generate() to decode without it"
                    )


def completed(generation: GenerationConfig, config: VisionEncoderDecoderConfig) -> GenerationConfig:
    """A copy in which every field is set that decoding would find elsewhere."""
    complete = generation.copy()
    options = Options({}, generation, config)
    for name in GenerationConfig.field_names():
        value = options.value(name)
        if value is not None:
            setattr(complete, name, value)
    return complete


def start_and_pad(generation: GenerationConfig, config: VisionEncoderDecoderConfig) -> tuple[int, int]:
    """The tokens that turn labels into the decoder's inputs. Raises ConfigError where one is not set."""
    options = Options({}, generation, config)
    tokens = []
    for name in ("decoder_start_token_id", "pad_token_id"):
        value = options.value(name)
        if value is None:
            raise ConfigError(f"{name} is not set, and labels need it: set it with model.config.{name} = ...")
        tokens.append(value)
    return tokens[0], tokens[1]
