"""Decoding options on the command line: a flag for every field of `GenerationConfig`."""

import argparse
import dataclasses
import json
from typing import Any

from ved_core.generation.config import GenerationConfig

OUTPUTS = ("return_dict_in_generate", "output_scores", "output_logits", "output_attentions", "output_hidden_states")
"""Fields that say what a program wants back."""
HELP = {
    "max_length": "longest text in tokens, prompt included",
    "max_new_tokens": "longest text in tokens, prompt left out",
    "min_length": "shortest text, prompt included",
    "min_new_tokens": "shortest text, prompt left out",
    "stop_strings": "end behind this text, or one of a JSON list",
    "do_sample": "draw tokens by their probabilities",
    "num_beams": "beam search with so many hypotheses",
    "num_return_sequences": "so many texts for each image",
    "length_penalty": "of beam search: above 0 for longer texts",
    "early_stopping": 'when beam search ends: true, false or "never"',
    "temperature": "of sampling: below 1 is more certain",
    "top_k": "draw from the K likeliest tokens",
    "top_p": "draw from the likeliest tokens, together so probable",
    "min_p": "draw from tokens of so large a share of the likeliest one's probability",
    "typical_p": "draw from the most typical tokens, together so probable",
    "epsilon_cutoff": "draw from tokens of at least this probability",
    "eta_cutoff": "epsilon_cutoff that falls with the uncertainty",
    "repetition_penalty": "above 1: fewer tokens twice",
    "no_repeat_ngram_size": "no run of so many tokens twice",
    "bad_words_ids": "forbidden tokens, [[5], [7, 9]]",
    "sequence_bias": "added to scores, [[[5], -2.0], [[7, 9], 1.5]]",
    "suppress_tokens": "forbidden tokens, [5, 7]",
    "begin_suppress_tokens": "tokens that may not come first, [5, 7]",
    "forced_bos_token_id": "the first token",
    "forced_eos_token_id": "the last token of a text of max_length",
    "renormalize_logits": "make scores probabilities again after processing",
    "bos_token_id": "begins a text where there is no decoder_start_token_id",
    "pad_token_id": "fills the shorter texts of a batch",
    "eos_token_id": "ends a text, or a JSON list of such tokens",
    "decoder_start_token_id": "begins a text",
}


def add_arguments(parser: argparse.ArgumentParser, *, seed: bool = True) -> None:
    """Add the flags, in a group of their own; the one of --seed where it is wanted."""
    group = parser.add_argument_group(
        "decoding", "The fields of generation_config.json, which has their defaults; values as JSON or plain text."
    )
    for field in dataclasses.fields(GenerationConfig):
        if field.name in OUTPUTS:
            continue
        kind: dict[str, Any] = {"type": value, "metavar": "X"}
        if field.type == bool | None:
            kind = {"action": argparse.BooleanOptionalAction}
        group.add_argument(flag(field.name), dest=field.name, help=HELP[field.name], **kind)
    if seed:
        group.add_argument("--seed", type=int, default=0, metavar="N", help="of sampling (default: 0)")
    group.add_argument("--prompt", metavar="TEXT", help="what each text begins with, as a Donut model's task token")


def flag(name: str) -> str:
    """--max-new-tokens for max_new_tokens."""
    return "--" + name.replace("_", "-")


def value(text: str) -> Any:
    """A JSON value, or the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def given(options: argparse.Namespace) -> dict[str, Any]:
    """The options of `generate` that were given."""
    values = {name: getattr(options, name, None) for name in (*GenerationConfig.field_names(), "prompt")}
    return {name: value for name, value in values.items() if value is not None}
