"""Decoding options: where they come from, which are honoured, and which are refused.

Greedy decoding is what this version does. A field that asks for anything else raises; a field at the value that leaves
greedy decoding as it is passes.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from ved_core.configs.base import Config, read_json, shorten
from ved_core.configs.fields import flag, size, token, tokens
from ved_core.configs.model import VisionEncoderDecoderConfig
from ved_core.errors import ConfigError, GenerationError

GENERATION_CONFIG_FILE = "generation_config.json"

DEFAULT_MAX_LENGTH = 20
"""transformers' own default. Old releases wrote it into every config.json: there it means «not set»."""


def _any_value(value: Any) -> bool:
    return True


def _only(*inert: Any) -> Callable[[Any], bool]:
    return lambda value: any(value is known or (type(value) is type(known) and value == known) for known in inert)


INERT: dict[str, Callable[[Any], bool]] = {
    # Search strategy.
    "do_sample": _only(False),
    "num_beams": _only(1),
    "num_beam_groups": _only(1),
    "num_return_sequences": _only(1),
    "penalty_alpha": _only(0.0, 0),
    "use_cache": _any_value,  # keys and values are always cached; the ids do not depend on it
    # Sampling and beam search only: without those, nothing reads them.
    "temperature": _any_value,
    "top_k": _any_value,
    "top_p": _any_value,
    "min_p": _any_value,
    "typical_p": _any_value,
    "epsilon_cutoff": _any_value,
    "eta_cutoff": _any_value,
    "length_penalty": _any_value,
    "early_stopping": _any_value,
    "diversity_penalty": _any_value,
    # Changes to the scores.
    "min_length": _only(0),
    "min_new_tokens": _only(0),
    "repetition_penalty": _only(1.0, 1),
    "encoder_repetition_penalty": _only(1.0, 1),
    "no_repeat_ngram_size": _only(0),
    "encoder_no_repeat_ngram_size": _only(0),
    "bad_words_ids": _only(),
    "force_words_ids": _only(),
    "constraints": _only(),
    "sequence_bias": _only(),
    "forced_bos_token_id": _only(),
    "forced_eos_token_id": _only(),
    "suppress_tokens": _only(),
    "begin_suppress_tokens": _only(),
    "exponential_decay_length_penalty": _only(),
    "guidance_scale": _only(1.0, 1),
    "renormalize_logits": _only(False),
    "remove_invalid_values": _only(False),
    "stop_strings": _only(),
    "max_time": _only(),
    "watermarking_config": _only(),
    "token_healing": _only(False),
    "prompt_lookup_num_tokens": _only(),
    "dola_layers": _only(),
    # Outputs.
    "output_attentions": _only(False),
    "output_hidden_states": _only(False),
    "output_scores": _only(False),
    "output_logits": _only(False),
}
"""Fields that are known and not honoured, each with the test that its value asks for nothing. None never does."""


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class GenerationConfig(Config):
    """generation_config.json: the fields that decoding honours; None is «not set». Others are kept and written back."""

    max_length: int | None = size(None, optional=True)
    max_new_tokens: int | None = size(None, optional=True)
    bos_token_id: int | None = token(None)
    pad_token_id: int | None = token(None)
    eos_token_id: int | list[int] | None = tokens(None)
    decoder_start_token_id: int | None = token(None)
    return_dict_in_generate: bool = flag(False)

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Read the folder's generation_config.json; empty where there is none. Raises ConfigError naming the file."""
        path = folder / GENERATION_CONFIG_FILE
        if not path.is_file():
            return cls()
        try:
            return cls.from_dict(read_json(path))
        except ConfigError as error:
            raise error if str(path) in str(error) else ConfigError(f"{path}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The fields that are set, and every kept extra."""
        return {name: value for name, value in super().to_dict().items() if value is not None or name in self._extras}


class DecodingPlan(NamedTuple):
    """What the compiled loop depends on: hashable, and part of the key of its compilation."""

    max_length: int
    """Longest sequence, the start token included."""
    start: int
    pad: int
    eos: tuple[int, ...]
    """Ids that end a sequence; empty where only the length does."""


class Options:
    """All sources of decoding options in the order of their precedence.

    The call's arguments; what a person assigned to `model.generation_config` or `model.config` after loading;
    generation_config.json; config.json's top level; its decoder part.
    """

    def __init__(
        self, call: Mapping[str, Any], generation: GenerationConfig, config: VisionEncoderDecoderConfig
    ) -> None:
        self.call = call
        self.files: list[tuple[str, Mapping[str, Any] | Config]] = [
            ("model.generation_config", {name: generation.get(name) for name in generation.assigned}),
            ("model.config", {name: config.get(name) for name in config.assigned}),
            ("generation_config.json", generation),
            ("config.json", config),
            ("config.json's decoder", config.decoder),
        ]

    @property
    def strategies(self) -> int:
        """How many of the sources may name a strategy: a checkpoint with a generation_config.json has it there; before
        there was one, in config.json."""
        generation = self.files[2][1]
        assert isinstance(generation, Config)
        return 3 if generation.to_dict().keys() - {"return_dict_in_generate"} else len(self.files)

    def value(self, name: str) -> Any:
        """The first value that is set, or None."""
        if self.call.get(name) is not None:
            return self.call[name]
        for source, values in self.files:
            value = values.get(name)
            unset = name == "max_length" and value == DEFAULT_MAX_LENGTH and source.startswith("config.json")
            if value is not None and not unset:
                return value
        return None

    def refuse_unsupported(self) -> None:
        """Raise GenerationError for an option that asks for what decoding does not do, naming where it stands."""
        for name, value in self.call.items():
            if name not in INERT and name not in GenerationConfig.field_names():
                near = difflib.get_close_matches(name, [*INERT, *GenerationConfig.field_names()], 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise GenerationError(f"generate() has no option {name!r}{hint}")
            if name in INERT and value is not None and not INERT[name](value):
                raise GenerationError(f"{name} = {shorten(value)} is not supported: this version decodes greedily")
        for source, values in self.files[: self.strategies]:
            for name, inert in INERT.items():
                value = values.get(name)
                if name not in self.call and value is not None and not inert(value):
                    raise GenerationError(
                        f"{source} asks for {name} = {shorten(value)}, which is not supported: this version decodes "
                        f"greedily. Pass {name}=None to generate() to decode without it"
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


def plan_decoding(
    call: Mapping[str, Any],
    generation: GenerationConfig,
    config: VisionEncoderDecoderConfig,
    *,
    longest: int | None,
) -> DecodingPlan:
    """Resolve a call's options. `longest`: positions that the decoder has, None where it has no end.

    Raises GenerationError for an unsupported option, a missing start token, ids outside the vocabulary or a length
    beyond the decoder's positions; ConfigError for values of a wrong type.
    """
    options = Options(call, generation, config)
    options.refuse_unsupported()
    checked = GenerationConfig.from_dict(
        {name: options.value(name) for name in GenerationConfig.field_names() if options.value(name) is not None}
    )
    start = checked.decoder_start_token_id
    start = checked.bos_token_id if start is None else start
    if start is None:
        raise GenerationError(
            "decoder_start_token_id is not set: decoding needs a first token. Set it with "
            "model.config.decoder_start_token_id = ... (often the tokenizer's cls_token_id or bos_token_id)"
        )
    eos = checked.eos_token_id
    ends = () if eos is None else tuple(eos) if isinstance(eos, list | tuple) else (eos,)
    pad = checked.pad_token_id
    if pad is None:
        # As transformers does. Without an end token no row is ever padded.
        pad = ends[0] if ends else 0
    _check_vocabulary(config.decoder.vocab_size, decoder_start_token_id=start, pad_token_id=pad)
    return DecodingPlan(_max_length(options, checked, longest), start, pad, ends)


def _max_length(options: Options, checked: GenerationConfig, longest: int | None) -> int:
    length = checked.max_length
    if checked.max_new_tokens is not None:
        length = checked.max_new_tokens + 1
    elif length is None:
        length = DEFAULT_MAX_LENGTH + 1
        if longest is not None:
            length = min(length, longest)
    if length < 2:
        raise GenerationError(f"max_length = {length} leaves no room behind the start token; 2 is the least")
    # The last token is never fed back, so it needs no position.
    if longest is not None and length > longest + 1:
        raise GenerationError(
            f"max_length = {length} (the start token included) is more than the decoder's {longest} positions allow; "
            f"the most is {longest + 1}, or max_new_tokens = {longest}"
        )
    return length


def _check_vocabulary(vocab_size: int, **ids: int) -> None:
    for name, value in ids.items():
        if value >= vocab_size:
            raise GenerationError(f"{name} = {value} is outside the vocabulary of {vocab_size} tokens")
