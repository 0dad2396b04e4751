"""generate(): against reference numbers, transformers' own decoding, and its own promises, in both frameworks."""

import itertools
import json

import numpy as np
import pytest

from tests import cases, decoding, test_donut
from tests.cases import READER
from tests.decoding import Allowed, Result, folder, load, pixels, run
from ved_core.donut import DonutGrammar, token2json
from ved_core.errors import ConfigError, GenerationError
from ved_core.generation.config import GenerationConfig
from ved_core.processing import Processor

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
frameworks = pytest.mark.parametrize("framework", decoding.FRAMEWORKS)

FIXED = {
    "greedy": {"max_new_tokens": 15},
    "greedy_processors": {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "min_new_tokens": 6}
    | {"bad_words_ids": [[5], [7, 9]], "max_new_tokens": 15},
    "beam4": {"num_beams": 4, "max_new_tokens": 12},
    "beam3": {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 2.0, "early_stopping": True}
    | {"no_repeat_ngram_size": 3, "max_new_tokens": 12},
    "prompted": {"max_new_tokens": 8},
}


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("decoding")


@pytest.fixture(scope="module")
def digits():
    return pixels(READER, 4)


def fixture_cases():
    """Every fixture in both frameworks; in Flax, where each is compiled anew, most are left to the full run."""
    quick = {("vit-gpt2", key) for key in FIXED} | {("deit-roberta", "prompted"), ("swin-bart", "beam3")}
    for framework, name, key in itertools.product(decoding.FRAMEWORKS, cases.PAIRS, FIXED):
        later = framework == "flax" and (name, key) not in quick
        yield pytest.param(framework, name, key, marks=[pytest.mark.slow] if later else [])


@pytest.mark.parametrize(("framework", "name", "key"), list(fixture_cases()))
def test_fixtures(framework, name, key):
    path, expected, _ = cases.fixture(name)
    options = dict(FIXED[key])
    if key == "prompted":
        options["decoder_input_ids"] = expected["decoder_input_ids"][:, :4]
    found = run(framework, path, expected["pixel_values"], options)
    np.testing.assert_array_equal(found.ids, expected[key])
    if options.get("num_beams"):
        np.testing.assert_allclose(found.scores, expected[f"{key}_scores"], atol=1e-4)


# A live, seeded matrix ------------------------------------------------------------------------------------------------

COMBINATIONS = 150
QUICK = {"flax": 8, "torch": 40}


def matrix():
    for framework in decoding.FRAMEWORKS:
        for seed in range(COMBINATIONS):
            yield pytest.param(framework, seed, marks=[pytest.mark.slow] if seed >= QUICK[framework] else [])


@pytest.mark.oracle
@pytest.mark.parametrize(("framework", "seed"), list(matrix()))
def test_combinations_decode_as_in_transformers(framework, seed, root, record_property):
    """How many differences were excused is counted and bounded in conftest.py."""
    path = folder(decoding.MODELS[seed % len(decoding.MODELS)], root)
    images = pixels(path, 3)
    options = decoding.combination(seed, load("torch", path).config.decoder.vocab_size)
    expected = run("reference", path, images, options)
    found = run(framework, path, images, options)
    same = found.ids.shape == expected.ids.shape and bool((found.ids == expected.ids).all())
    assert same or decoding.excused(found, expected), options
    record_property("combination", "same" if same else "excused")
    if found.scores is not None:
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)


# Sampling -------------------------------------------------------------------------------------------------------------

WARPERS = {
    "plain": {"top_k": 0},
    "temperature": {"temperature": 2.5, "top_k": 0},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.7, "top_k": 0},
    "min_p": {"min_p": 0.2, "top_k": 0},
    "typical_p": {"typical_p": 0.6, "top_k": 0},
    "epsilon_cutoff": {"epsilon_cutoff": 0.03, "top_k": 0},
    "eta_cutoff": {"eta_cutoff": 0.1, "top_k": 0},
    "default": {},
    "nucleus": {"temperature": 1.5, "top_k": 20, "top_p": 0.9},
    "all": {"temperature": 3.0, "top_k": 30, "top_p": 0.95, "min_p": 0.02, "typical_p": 0.95}
    | {"epsilon_cutoff": 0.005, "eta_cutoff": 0.01},
    "penalised": {"repetition_penalty": 1.5, "suppress_tokens": [5, 9, 11], "temperature": 0.8, "top_k": 12},
}
DRAWS = 20_000


def chi_square(counts, probs):
    """p of the counts being drawn from the probabilities; cells of less than 5 expected are taken together."""
    from scipy.stats import chisquare

    expected = probs / probs.sum() * counts.sum()
    small = expected < 5
    observed = np.append(counts[~small], counts[small].sum())
    expected = np.append(expected[~small], expected[small].sum())
    return chisquare(observed[expected > 0], expected[expected > 0]).pvalue


def draws():
    for framework, name in itertools.product(decoding.FRAMEWORKS, WARPERS):
        later = framework == "flax" and name not in ("plain", "all")
        yield pytest.param(framework, name, marks=[pytest.mark.slow] if later else [])


@pytest.mark.parametrize(("framework", "name"), list(draws()))
def test_draws(framework, name, root):
    path = folder("vit+gpt2", root)
    options = {"do_sample": True, "max_new_tokens": 1, **WARPERS[name]}
    image = pixels(path, 1)
    model, theirs = load(framework, path), load("reference", path)
    kept = {"output_scores": True, "return_dict_in_generate": True}
    with torch.no_grad():
        wanted = theirs.generate(torch.tensor(image), **options, **kept).scores[0][0]
    with torch.no_grad():
        encoded = np.asarray(model.encode(image).last_hidden_state).repeat(DRAWS // 10, axis=0)
    if framework == "torch":
        encoded = torch.tensor(encoded)
        torch.manual_seed(0)
    out = model.generate(encoder_outputs=encoded, num_return_sequences=10, **options, **kept)
    np.testing.assert_array_equal(np.isfinite(np.asarray(out.scores[0])[0]), np.isfinite(wanted.numpy()))
    counts = np.bincount(np.asarray(out.sequences)[:, 1], minlength=len(wanted))
    assert counts.sum() == DRAWS
    assert chi_square(counts, wanted.softmax(dim=0).double().numpy()) > 1e-3


@frameworks
def test_beam_sampling_draws_without_replacement(framework, root):
    path = folder("vit+gpt2", root)
    image = np.repeat(pixels(path, 1), 4000, axis=0)
    options = {"do_sample": True, "max_new_tokens": 1, "top_k": 6, "num_beams": 2, "num_return_sequences": 2}
    model, theirs = load(framework, path), load("reference", path)
    with torch.no_grad():
        out = theirs.generate(torch.tensor(image[:1]), **options, output_scores=True, return_dict_in_generate=True)
    probs = out.scores[0][0].softmax(dim=0).double().numpy()
    likely = np.flatnonzero(probs)
    assert len(likely) == 6
    pairs = list(itertools.combinations(likely, 2))
    expected = np.array([probs[a] * probs[b] * (1 / (1 - probs[a]) + 1 / (1 - probs[b])) for a, b in pairs])
    if framework == "torch":
        torch.manual_seed(1)
    ids = np.sort(np.asarray(model.generate(image, **options))[:, 1].reshape(-1, 2), axis=1)
    counts = np.array([np.all(ids == pair, axis=1).sum() for pair in pairs])
    assert counts.sum() == len(image)
    assert chi_square(counts, expected) > 1e-3


def sampler(framework, seed):
    """The options that fix what is drawn."""
    if framework == "flax":
        return {"prng_key": jax.random.key(seed)}
    return {"generator": torch.Generator().manual_seed(seed)}


@frameworks
@pytest.mark.parametrize("beams", [1, 3])
def test_sampling_is_reproducible_row_by_row(framework, beams, root):
    path = folder("vit+gpt2", root)
    model, images = load(framework, path), pixels(path, 5)
    options = {"do_sample": True, "max_new_tokens": 9, "num_return_sequences": 2, "num_beams": beams}
    if beams == 1:
        options["temperature"] = 2.0

    def draw(images, seed=0, **more):
        return np.asarray(model.generate(images, **options, **sampler(framework, seed), **more))

    def rows(ids, count):
        return [row[row != 1].tolist() for row in ids[: 2 * count]]

    whole = draw(images)
    np.testing.assert_array_equal(draw(images), whole)
    assert not np.array_equal(draw(images, 1)[:, :3], whole[:, :3])
    assert rows(draw(images[:2]), 2) == rows(whole, 2)
    assert rows(draw(images[:3], batch_buckets=[8]), 3) == rows(whole, 3)


# Rows and prompts -----------------------------------------------------------------------------------------------------

TOGETHER = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "early_stopping": True},
    "options": {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "min_length": 4, "bad_words_ids": [[5], [6, 7]]},
    "beam options": {"num_beams": 2, "length_penalty": 0.0, "min_new_tokens": 3, "sequence_bias": [[[8, 9], 2.0]]},
}


def together():
    for framework, name in itertools.product(decoding.FRAMEWORKS, TOGETHER):
        later = framework == "flax" and name in ("greedy", "options")
        yield pytest.param(
            framework, TOGETHER[name], id=f"{framework}-{name}", marks=[pytest.mark.slow] if later else []
        )


@pytest.mark.parametrize(("framework", "options"), list(together()))
def test_a_row_is_what_it_is_alone(framework, options, digits):
    model = load(framework, READER)
    count = options.get("num_return_sequences", 1)

    def rows(ids):
        return [row[row != 1].tolist() for row in np.asarray(ids)]

    whole = rows(model.generate(digits, **options))
    assert len(whole) == 4 * count
    for places in ([0], [2], [3, 1]):
        alone = rows(model.generate(digits[places], **options))
        assert alone == [whole[place * count + n] for place in places for n in range(count)]
    assert rows(model.generate(digits[:3], batch_buckets=[4, 9], **options)) == whole[: 3 * count]


PROMPTED = {
    "greedy": {"max_new_tokens": 7},
    "options": {"max_new_tokens": 7, "no_repeat_ngram_size": 1, "forced_eos_token_id": 2, "min_length": 8},
    "beams": {"max_length": 12, "num_beams": 3, "repetition_penalty": 1.3, "sequence_bias": [[[8, 9], 2.0]]},
}


def prompt_cases():
    sides = ["left", "right"]
    for framework, name, side, key in itertools.product(decoding.FRAMEWORKS, decoding.MODELS[1:], sides, PROMPTED):
        quick = {("vit+gpt2", "right", "options"), ("vit+roberta", "left", "beams")}
        later = framework == "flax" and (name, side, key) not in quick
        yield pytest.param(framework, name, side, key, marks=[pytest.mark.slow] if later else [])


@pytest.mark.parametrize(("framework", "name", "side", "key"), list(prompt_cases()))
def test_prompts_of_unequal_length(framework, name, side, key, root):
    path = folder(name, root)
    model, images = load(framework, path), pixels(path, 3)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 40, length) for length in (2, 5, 4)]
    width, pad = 6, model.config.decoder.pad_token_id
    ids, mask = np.full((3, width), pad), np.zeros((3, width), int)
    for row, prompt in enumerate(prompts):
        place = slice(width - len(prompt), None) if side == "left" else slice(len(prompt))
        ids[row, place], mask[row, place] = prompt, 1
    options = PROMPTED[key]
    whole = np.asarray(model.generate(images, decoder_input_ids=ids, decoder_attention_mask=mask, **options))
    begun = not name.startswith("donut")  # the start token stands before the prompt
    first = width + begun
    np.testing.assert_array_equal(whole[:, begun:first], ids)
    for row, prompt in enumerate(prompts):
        alone = model.generate(images[row : row + 1], decoder_input_ids=prompt[None], **options)
        new = np.asarray(alone)[0, len(prompt) + begun :]
        assert whole[row, first : first + len(new)].tolist() == new.tolist()
        assert set(whole[row, first + len(new) :].tolist()) <= {model.generation_config.pad_token_id}


@pytest.mark.oracle
@frameworks
@pytest.mark.parametrize("name", ["vit+gpt2", "donut+mbart"])
def test_the_start_token_is_prepended_where_transformers_does(framework, name, root):
    path = folder(name, root)
    model, images = load(framework, path), pixels(path, 2)
    for prompt in ([[7, 8], [9, 7]], [[2, 8], [2, 7]], [[2, 8], [9, 7]]):
        options = {"decoder_input_ids": np.array(prompt), "max_new_tokens": 2}
        expected = run("reference", path, images, options).ids
        np.testing.assert_array_equal(run(framework, path, images, options).ids, expected)
    options["decoder_input_ids"] = np.array([[7, 8]] * 2)
    as_given = np.asarray(model.generate(images, prepend_start=False, **options))
    assert as_given[:, :2].tolist() == [[7, 8]] * 2
    begun = np.asarray(model.generate(images, prepend_start=True, **options))
    assert begun[:, 0].tolist() == [2, 2]


@frameworks
@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"decoder_input_ids": np.array([3, 4])}, r"of shape \(4, T\)"),
        ({"decoder_input_ids": np.array([[3.0]] * 4)}, "should be integers"),
        ({"decoder_input_ids": np.array([[57]] * 4)}, "outside the vocabulary of 57"),
        ({"decoder_attention_mask": np.ones((4, 2))}, "give both"),
        ({"decoder_input_ids": np.ones((4, 2), int), "decoder_attention_mask": np.ones((4, 3))}, r"is \(4, 3\)"),
        ({"decoder_input_ids": np.ones((4, 2), int), "decoder_attention_mask": np.zeros((4, 2))}, "without any token"),
        ({"decoder_input_ids": np.full((4, 9), 5), "max_length": 10}, "leaves no room behind a prompt of 10"),
    ],
)
def test_bad_prompts_are_refused(framework, prompt, message, digits):
    with pytest.raises(GenerationError, match=message):
        load(framework, READER).generate(digits, **prompt)


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


@frameworks
@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "length_penalty": 1.5}], ids=["greedy", "beams"])
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


@frameworks
@pytest.mark.parametrize("chunk_size", [1, 3, 50])
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


@frameworks
@pytest.mark.parametrize("beams", [1, 3])
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


@frameworks
@pytest.mark.parametrize("beams", [1, 3])
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


@frameworks
def test_a_checkpoints_strategy(framework, tmp_path, digits):
    import shutil

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


def test_results_that_differ_are_excused_only_where_the_reference_is_undecided():
    clear = np.array([[[0.0, -1.0, -5.0]]])
    near = np.array([[[0.0, -1e-6, -5.0]]])
    found = Result(np.zeros((1, 2)), None)
    assert not decoding.excused(found, Result(np.ones((1, 2)), None, clear))
    assert decoding.excused(found, Result(np.ones((1, 2)), None, near))
