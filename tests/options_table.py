"""README's table of decoding options: what each does, and the test that shows it."""

from ved_cli.decoding import HELP
from ved_core.generation.config import GenerationConfig

MATRIX = "test_combinations_decode_as_in_transformers"

SHOWN_BY = {
    "max_length": MATRIX,
    "max_new_tokens": MATRIX,
    "min_length": MATRIX,
    "min_new_tokens": MATRIX,
    "stop_strings": "test_stop_strings",
    "do_sample": "test_draws",
    "num_beams": MATRIX,
    "num_return_sequences": MATRIX,
    "length_penalty": MATRIX,
    "early_stopping": MATRIX,
    "temperature": "test_draws",
    "top_k": "test_draws",
    "top_p": "test_draws",
    "min_p": "test_draws",
    "typical_p": "test_draws",
    "epsilon_cutoff": "test_draws",
    "eta_cutoff": "test_draws",
    "repetition_penalty": MATRIX,
    "no_repeat_ngram_size": MATRIX,
    "bad_words_ids": MATRIX,
    "sequence_bias": MATRIX,
    "suppress_tokens": MATRIX,
    "begin_suppress_tokens": MATRIX,
    "forced_bos_token_id": MATRIX,
    "forced_eos_token_id": MATRIX,
    "renormalize_logits": MATRIX,
    "bos_token_id": "test_special_tokens_are_looked_up_in_order",
    "pad_token_id": "test_padding_falls_back_to_the_end_token",
    "eos_token_id": MATRIX,
    "decoder_start_token_id": "test_special_tokens_are_looked_up_in_order",
    "return_dict_in_generate": "test_outputs",
    "output_scores": "test_outputs",
    "output_logits": "test_outputs",
    "output_attentions": "test_outputs",
    "output_hidden_states": "test_outputs",
    "decoder_input_ids": "test_fixtures",
    "decoder_attention_mask": "test_prompts_of_unequal_length",
    "prepend_start": "test_the_start_token_is_prepended_where_transformers_does",
    "prefix_allowed_tokens_fn": MATRIX,
    "logits_processor": MATRIX,
    "generation_config": "test_where_options_come_from",
    "batch_buckets": "test_a_row_is_what_it_is_alone",
    "streamer": "test_a_stream_is_the_result_in_pieces",
    "prng_key, generator": "test_sampling_is_reproducible_row_by_row",
}
"""Option -> the test (tests/test_decoding*.py, tests/test_flax_generate.py) in which it matters."""

MEANINGS = HELP | {
    "return_dict_in_generate": "a GenerateOutput: sequences, log-probabilities, confidences and what follows",
    "output_scores": "each step's scores after processing",
    "output_logits": "each step's scores before processing",
    "output_attentions": "attentions of the returned sequences, to image tokens too",
    "output_hidden_states": "hidden states of the returned sequences",
    "decoder_input_ids": "prompts",
    "decoder_attention_mask": "which of the prompts' tokens are padding, on either side",
    "prepend_start": "whether the start token stands before the prompt; transformers' rule by default",
    "prefix_allowed_tokens_fn": "function of row and ids: which tokens may follow, as `ved_core.donut.DonutGrammar`",
    "logits_processor": "pure functions of ids and scores",
    "generation_config": "fields behind the call's own",
    "batch_buckets": "batch sizes, to the next of which a batch is filled up",
    "streamer": "is given tokens as they come; `model.stream(...)` yields them",
    "prng_key, generator": "what sampling draws from, in Flax and in PyTorch",
}


def table() -> str:
    """One line for each option."""
    assert set(GenerationConfig.field_names()) <= SHOWN_BY.keys()
    lines = ["| option of `generate` | meaning | shown by |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| `{name}` | {MEANINGS[name]} | `{test}` |" for name, test in SHOWN_BY.items())])
