"""`GenerationConfig`: the decoding options that are honoured, and a table of those that are refused."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from ved_core.configs.base import Config, as_mapping, read_json
from ved_core.configs.fields import LARGEST_SIZE, checked, size, token, tokens
from ved_core.errors import ConfigError

GENERATION_CONFIG_FILE = "generation_config.json"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_SIZE


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(_is_count(item) for item in value)


def _optional(wanted: str, fine: Callable[[Any], bool]) -> Any:
    """A field that may be None, «not set»."""
    return checked(None, lambda value: None if value is None or fine(value) else f"{wanted}, or null")


def _flag() -> Any:
    return _optional("true or false", lambda value: isinstance(value, bool))


def _count() -> Any:
    return _optional("a whole number of at least 0", _is_count)


def _number() -> Any:
    return _optional("a number", _is_number)


def _ids() -> Any:
    return _optional(
        "a list of token ids", lambda value: isinstance(value, list | tuple) and all(_is_count(item) for item in value)
    )


def _sequences() -> Any:
    return _optional(
        "a list of lists of token ids",
        lambda value: isinstance(value, list | tuple) and all(_is_sequence(item) for item in value),
    )


def _is_bias(value: Any) -> bool:
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    return isinstance(pairs, list | tuple) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and _is_sequence(pair[0]) and _is_number(pair[1])
        for pair in pairs
    )


def _strings(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list | tuple) and all(isinstance(item, str) for item in value))


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class GenerationConfig(Config):
    """generation_config.json: the fields that decoding honours; None is «not set». Others are kept and written back.

    Values are checked for their type here, and for their range where a call uses them: a file may hold a temperature of
    0 beside do_sample = false.
    """

    # Length.
    max_length: int | None = size(None, optional=True)
    max_new_tokens: int | None = size(None, optional=True)
    min_length: int | None = _count()
    min_new_tokens: int | None = _count()
    stop_strings: str | list[str] | None = _optional("a string or a list of strings", _strings)
    # Search.
    do_sample: bool | None = _flag()
    num_beams: int | None = size(None, optional=True)
    num_return_sequences: int | None = size(None, optional=True)
    length_penalty: float | None = _number()
    early_stopping: bool | str | None = _optional(
        'true, false or "never"', lambda value: isinstance(value, bool) or value == "never"
    )
    # Sampling.
    temperature: float | None = _number()
    top_k: int | None = _count()
    top_p: float | None = _number()
    min_p: float | None = _number()
    typical_p: float | None = _number()
    epsilon_cutoff: float | None = _number()
    eta_cutoff: float | None = _number()
    # Changes to the scores.
    repetition_penalty: float | None = _number()
    no_repeat_ngram_size: int | None = _count()
    bad_words_ids: list[list[int]] | None = _sequences()
    sequence_bias: Any = _optional("a list of [token ids, bias]", _is_bias)
    suppress_tokens: list[int] | None = _ids()
    begin_suppress_tokens: list[int] | None = _ids()
    forced_bos_token_id: int | None = token(None)
    forced_eos_token_id: int | list[int] | None = tokens(None)
    renormalize_logits: bool | None = _flag()
    # Special tokens.
    bos_token_id: int | None = token(None)
    pad_token_id: int | None = token(None)
    eos_token_id: int | list[int] | None = tokens(None)
    decoder_start_token_id: int | None = token(None)
    # Outputs.
    return_dict_in_generate: bool | None = _flag()
    output_scores: bool | None = _flag()
    output_logits: bool | None = _flag()
    output_attentions: bool | None = _flag()
    output_hidden_states: bool | None = _flag()

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Read the folder's generation_config.json; empty where there is none. Raises ConfigError naming the file."""
        path = folder / GENERATION_CONFIG_FILE
        if not path.exists():
            return cls()
        try:
            return cls.from_dict(read_json(path))
        except ConfigError as error:
            raise error if str(path) in str(error) else ConfigError(f"{path}: {error}") from None

    @classmethod
    def of(cls, value: Any) -> Self:
        """One of ours as it is, or made of a dict or of transformers' object. Raises ConfigError."""
        if isinstance(value, cls):
            return value
        return cls.from_dict({k: v for k, v in as_mapping(value, "generation_config").items() if v is not None})

    def to_dict(self) -> dict[str, Any]:
        """The fields that are set, and every kept extra."""
        values = super().to_dict()
        if isinstance(self.sequence_bias, Mapping):  # JSON has no keys but strings
            values["sequence_bias"] = [[list(ids), bias] for ids, bias in self.sequence_bias.items()]
        return {name: value for name, value in values.items() if value is not None or name in self._extras}


def _any_value(value: Any) -> bool:
    return True


def _only(*inert: Any) -> Callable[[Any], bool]:
    return lambda value: any(value is known or (type(value) is type(known) and value == known) for known in inert)


INERT: dict[str, Callable[[Any], bool]] = {
    "num_beam_groups": _only(1),
    "diversity_penalty": _only(0.0, 0),
    "penalty_alpha": _only(0.0, 0),
    "top_h": _only(),
    "use_cache": _any_value,  # keys and values are always cached; the ids do not depend on it
    "encoder_repetition_penalty": _only(1.0, 1),
    "encoder_no_repeat_ngram_size": _only(0),
    "force_words_ids": _only(),
    "constraints": _only(),
    "exponential_decay_length_penalty": _only(),
    "guidance_scale": _only(1.0, 1),
    "remove_invalid_values": _only(False),
    "max_time": _only(),
    "watermarking_config": _only(),
    "token_healing": _only(False),
    "low_memory": _only(False),
    "cache_implementation": _any_value,  # as use_cache
    "prompt_lookup_num_tokens": _only(),
    "assistant_early_exit": _only(),
    "use_mtp": _only(False),
    "dola_layers": _only(),
}
"""Fields that are known and not honoured, each with the test that its value asks for nothing. None never does."""

TOKENS_AND_LENGTH = (
    "max_length",
    "max_new_tokens",
    "bos_token_id",
    "pad_token_id",
    "eos_token_id",
    "decoder_start_token_id",
)
"""Fields that are read wherever a checkpoint has them. All others are its decoding strategy."""
