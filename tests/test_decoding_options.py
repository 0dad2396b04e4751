"""generate(): what comes back, streams, constraints, and where its options come from, in both frameworks."""

import itertools
import json
import shutil

import numpy as np
import pytest

from tests import decoding, test_donut
from tests.cases import READER
from tests.decoding import Allowed, both, folder, load, pixels, run
from ved_core.donut import DonutGrammar, token2json
from ved_core.errors import ConfigError, GenerationError
from ved_core.generation.config import GenerationConfig
from ved_core.processing import Processor

torch = pytest.importorskip("torch")
pytest.importorskip("jax")
frameworks = pytest.mark.parametrize("framework", decoding.FRAMEWORKS)


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("decoding")


@pytest.fixture(scope="module")
def digits():
    return pixels(READER, 4)


# Outputs --------------------------------------------------------------------------------------------------------------


@pytest.mark.oracle
@frameworks
@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}], ids=["greedy", "beams"])
def test_outputs(framework, options, root):
    path = folder("vit+gpt2", root)
    model, theirs, images = load(framework, path), load("reference", path), pixels(path, 2)
    wanted = {"output_scores": True, "output_logits": True, "output_attentions": True, "output_hidden_states": True}
    wanted |= {"return_dict_in_generate": True, "max_new_tokens": 5, "eos_token_id": 60, **options}
    with torch.no_grad():
        expected = theirs.generate(torch.tensor(images), do_sample=False, **wanted)
    found = model.generate(images, **wanted)

    def same(ours, other):
        np.testing.assert_allclose(np.asarray(ours), other.numpy(), atol=1e-4)

    same(found.sequences, expected.sequences)
    for name in ("scores", "logits"):
        assert len(getattr(found, name)) == len(expected[name])
        for ours, other in zip(getattr(found, name), expected[name], strict=True):
            same(ours, other)
    for name in ("encoder_attentions", "encoder_hidden_states"):
        for ours, other in zip(getattr(found, name), expected[name], strict=True):
            same(ours, other)
    if options:
        same(found.sequences_scores, expected.sequences_scores)
        same(found.beam_indices, expected.beam_indices)
    else:
        assert found.sequences_scores is None
        assert found.beam_indices is None
    # transformers has the running hypotheses' at every step, we the returned sequences'.
    rows = np.arange(2)[:, None] if not options else np.asarray(found.beam_indices)
    for layer in range(2):
        for step in range(found.sequences.shape[1] - 1):
            picked = rows[:, min(step, rows.shape[1] - 1)]
            # A hypothesis is fed before the one that it becomes is chosen.
            for name in ("cross_attentions", "decoder_hidden_states"):
                index = layer + (name == "decoder_hidden_states")
                other = expected[name][step][index].numpy()[picked]
                ours = np.asarray(getattr(found, name)[index])
                ours = ours[:, :, step : step + 1] if ours.ndim == 4 else ours[:, step : step + 1]
                np.testing.assert_allclose(ours, other, atol=1e-4)


@pytest.mark.parametrize(
    ("framework", "options"), both({"greedy": {}, "beams": {"num_beams": 3, "length_penalty": 1.5}}, ["beams"])
)
def test_log_probabilities_and_confidences(framework, options, digits):
    model = load(framework, READER)
    out = model.generate(digits, return_dict_in_generate=True, **options)
    ids, log_probs = np.asarray(out.sequences), np.asarray(out.token_log_probs)
    encoded = model.encode(digits)
    with torch.no_grad():
        logits = model.decode(ids[:, :-1], encoded).logits
    logits = np.asarray(logits.detach() if framework == "torch" else logits, np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    for row, length in enumerate((ids[:, 1:] == 2).argmax(axis=1) + 1):
        mine = [expected[row, place, ids[row, place + 1]] for place in range(length)]
        np.testing.assert_allclose(log_probs[row, :length], mine, atol=1e-4)
        assert not log_probs[row, length:].any()
        np.testing.assert_allclose(np.asarray(out.confidences)[row], np.exp(np.mean(mine)), rtol=1e-4)
        if options:
            np.testing.assert_allclose(np.asarray(out.sequences_scores)[row], np.sum(mine) / length**1.5, atol=1e-4)


# Streams --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("framework", "chunk_size"), both({1: 1, 3: 3, 50: 50}, [3]))
def test_a_stream_is_the_result_in_pieces(framework, chunk_size, digits):
    model = load(framework, READER)
    whole = np.asarray(model.generate(digits))
    pieces = list(model.stream(digits, chunk_size=chunk_size))
    assert all(piece.shape[1] <= chunk_size for piece in pieces)
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole[:, 1:])

    class Streamer:
        def __init__(self):
            self.seen = []

        def put(self, ids):
            self.seen.append(np.asarray(ids))

        def end(self):
            self.seen.append("end")

    streamer = Streamer()
    np.testing.assert_array_equal(np.asarray(model.generate(digits, streamer=streamer, chunk_size=chunk_size)), whole)
    assert streamer.seen.pop() == "end"
    np.testing.assert_array_equal(streamer.seen[0], whole[:, :1])
    np.testing.assert_array_equal(np.stack(streamer.seen[1:], axis=1), whole[:, 1:])


@frameworks
def test_a_stream_of_transformers_streamers(framework, digits, capsys):
    import transformers

    tokenizer = Processor.from_pretrained(READER).tokenizer
    streamer = transformers.TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    load(framework, READER).generate(digits[:1], streamer=streamer)
    assert capsys.readouterr().out.strip() == "three two"


@frameworks
def test_beams_are_not_streamed(framework, digits):
    with pytest.raises(GenerationError, match="num_beams=1"):
        load(framework, READER).stream(digits, num_beams=2)
    with pytest.raises(ValueError, match="chunk_size = 0"):
        load(framework, READER).stream(digits, chunk_size=0)


# Constraints and stop strings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("framework", "beams"), both({1: 1, 3: 3}, [3]))
def test_allowed_tokens(framework, beams, root):
    path = folder("vit+gpt2", root)
    allowed = Allowed(61)
    ids = np.asarray(load(framework, path).generate(pixels(path, 3), prefix_allowed_tokens_fn=allowed, num_beams=beams))
    for row, tokens in enumerate(ids):
        for before, token in itertools.pairwise(tokens[: (tokens[1:] == 2).argmax() + 2 if 2 in tokens[1:] else None]):
            assert token in allowed(row, [before])


@frameworks
def test_a_constraint_that_allows_nothing(framework, digits):
    def nothing(row, ids):
        return []

    with pytest.raises(GenerationError, match=r"prefix_allowed_tokens_fn.* allows no token in row 0"):
        load(framework, READER).generate(digits, prefix_allowed_tokens_fn=nothing)
    with pytest.raises(GenerationError, match="allows no token"):
        list(load(framework, READER).stream(digits, prefix_allowed_tokens_fn=nothing))


@pytest.mark.parametrize(("framework", "beams"), both({1: 1, 3: 3}, [3]))
def test_a_grammar_keeps_donuts_output_well_formed(framework, beams, root):
    words, path = test_donut.tokenizer(), folder("donut+mbart", root)
    grammar = DonutGrammar(words, test_donut.START, max_length=24)
    options = {"max_length": 24, "num_beams": beams, "repetition_penalty": 1.5}
    options["decoder_input_ids"] = np.full((3, 1), words.convert_tokens_to_ids(test_donut.START))
    free = np.asarray(load(framework, path).generate(pixels(path, 3), **options))
    ids = np.asarray(load(framework, path).generate(pixels(path, 3), prefix_allowed_tokens_fn=grammar, **options))
    assert not np.array_equal(free, ids)
    for row in ids:
        tokens = words.convert_ids_to_tokens(row)
        tokens = tokens[1 : tokens.index("</s>")]
        open_keys = []
        for token in tokens:
            if token.startswith("<s_") and "</" + token[1:] in words.get_vocab():
                open_keys.append(token)
            elif token.startswith("</s_") and token != "</s_lone>":
                assert token == "</" + open_keys.pop()[1:]
        assert not open_keys
        assert "text_sequence" not in token2json("".join(tokens)) or not tokens


@pytest.mark.oracle
@frameworks
@pytest.mark.parametrize(
    "options",
    [
        {"stop_strings": ["wo"]},
        {"stop_strings": "e t", "num_beams": 3, "num_return_sequences": 2},
        {"stop_strings": ["ee", "x", "wo"], "max_new_tokens": 9},
        {"stop_strings": "t", "decoder_input_ids": np.array([[25]] * 4)},
    ],
    ids=str,
)
def test_stop_strings(framework, options, digits):
    tokenizer = Processor.from_pretrained(READER).tokenizer
    options = {"tokenizer": tokenizer, **options}
    expected = run("reference", READER, digits, {"do_sample": False, **options})
    found = run(framework, READER, digits, options)
    np.testing.assert_array_equal(found.ids, expected.ids)
    free = run(framework, READER, digits, {k: v for k, v in options.items() if k not in ("stop_strings", "tokenizer")})
    assert not np.array_equal(found.ids, free.ids)


@frameworks
def test_stop_strings_need_a_tokenizer(framework, digits):
    with pytest.raises(GenerationError, match=r"stop_strings = 'a'.*pass tokenizer="):
        load(framework, READER).generate(digits, stop_strings="a")


# Options --------------------------------------------------------------------------------------------------------------


@frameworks
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_return_sequences": 2}, "greedy decoding has one result"),
        ({"num_beams": 2, "num_return_sequences": 3}, "more than num_beams = 2"),
        ({"do_sample": True, "temperature": 0.0}, "temperature = 0.0 should be above 0"),
        ({"do_sample": True, "top_p": 1.5}, "top_p = 1.5 should be at most 1"),
        ({"do_sample": True, "epsilon_cutoff": 1.5}, "epsilon_cutoff = 1.5 should be below 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty = 0.0 should be above 0"),
        ({"bad_words_ids": [[3, 57]]}, "bad_words_ids = 57 is outside the vocabulary of 57"),
        ({"forced_bos_token_id": 5, "suppress_tokens": [5]}, "forced_bos_token_id = 5 is suppressed"),
        ({"logits_processor": 3}, "logits_processor = 3 should be a function"),
        ({"num_beam_groups": 2}, "num_beam_groups = 2 is not supported"),
        ({"penalty_alpha": 0.6}, "penalty_alpha = 0.6 is not supported"),
        ({"stopping_criteria": []}, "no option 'stopping_criteria'"),
        ({"max_new_token": 3}, "did you mean max_new_tokens"),
        ({"max_new_tokens": 33}, "32 positions"),
        ({"max_length": 1}, "no room"),
        ({"decoder_start_token_id": 57}, "outside the vocabulary of 57"),
    ],
)
def test_what_cannot_be_done_is_refused(framework, options, message, digits):
    with pytest.raises(GenerationError, match=message):
        load(framework, READER).generate(digits, **options)


@frameworks
@pytest.mark.parametrize(
    "options",
    [
        {"max_length": "16"},
        {"max_new_tokens": 0},
        {"eos_token_id": 1.5},
        {"pad_token_id": -1},
        {"num_beams": 0},
        {"do_sample": 1},
        {"early_stopping": "always"},
        {"bad_words_ids": [5]},
        {"sequence_bias": [[5, 1.0]]},
        {"stop_strings": [5]},
        {"temperature": "hot"},
    ],
    ids=str,
)
def test_wrong_types_are_refused(framework, options, digits):
    with pytest.raises(ConfigError, match=next(iter(options))):
        load(framework, READER).generate(digits, **options)


def test_every_field_of_transformers_is_known():
    """A field that a new release brings is either honoured or refused: here is where it is noticed."""
    import transformers

    from ved_core.generation.config import INERT

    technical = {"transformers_version", "_from_model_config", "max_cache_len", "cache_config", "compile_config"}
    technical |= {"disable_compile", "return_legacy_cache", "prefill_chunk_size", "is_assistant"}
    technical |= {"continuous_batching_config", "max_matching_ngram_size", "target_lookbehind"}
    fields = {name for name in transformers.GenerationConfig().to_dict() if not name.startswith("_")}
    fields = {name for name in fields if "assistant" not in name and "speculat" not in name} - technical
    assert fields - INERT.keys() - set(GenerationConfig.field_names()) == set()


@frameworks
def test_where_options_come_from(framework, digits):
    import transformers

    model = load(framework, READER)
    beams = np.asarray(model.generate(digits, num_beams=3, length_penalty=-2.0))
    for given in (
        {"num_beams": 3, "length_penalty": -2.0},
        GenerationConfig(num_beams=3, length_penalty=-2.0),
        transformers.GenerationConfig(num_beams=3, length_penalty=-2.0),
    ):
        np.testing.assert_array_equal(np.asarray(model.generate(digits, generation_config=given)), beams)
    more = np.asarray(model.generate(digits, generation_config={"num_beams": 3, "max_new_tokens": 2}, max_new_tokens=1))
    assert more.shape[1] == 2


@pytest.mark.parametrize(("framework"), ["torch", pytest.param("flax", marks=pytest.mark.slow)])
def test_a_checkpoints_strategy(framework, tmp_path, digits):
    path = shutil.copytree(READER, tmp_path / "reader")
    file = path / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_beams": 3, "length_penalty": -2.0}))
    model, plain = load(framework, path), load(framework, READER)
    beams = np.asarray(plain.generate(digits, num_beams=3, length_penalty=-2.0))
    np.testing.assert_array_equal(np.asarray(model.generate(digits)), beams)
    greedy = np.asarray(plain.generate(digits))
    np.testing.assert_array_equal(np.asarray(model.generate(digits, num_beams=None)), greedy)
    model.generation_config.num_beams = 1
    np.testing.assert_array_equal(np.asarray(model.generate(digits)), greedy)
    # Where there is a generation_config.json, config.json's strategy is an old leftover; else it is the strategy.
    file.write_text(json.dumps(json.loads((READER / "generation_config.json").read_text())))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"num_beams": 3, "length_penalty": -2.0}))
    reload = type(model).from_pretrained
    np.testing.assert_array_equal(np.asarray(reload(path).generate(digits)), greedy)
    file.unlink()
    np.testing.assert_array_equal(np.asarray(reload(path).generate(digits, max_length=16)), beams)


def test_a_generation_config_is_written_as_json(tmp_path):
    config = GenerationConfig(sequence_bias={(3, 4): 2.0}, num_beams=2)
    assert json.loads(config.to_json()) == {"sequence_bias": [[[3, 4], 2.0]], "num_beams": 2}
    assert GenerationConfig.from_dict(json.loads(config.to_json())) == config
