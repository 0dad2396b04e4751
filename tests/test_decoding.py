"""generate(): against reference numbers and transformers' own decoding, and row by row, in both frameworks."""

import itertools

import numpy as np
import pytest

from tests import cases, decoding
from tests.cases import READER
from tests.decoding import Result, both, folder, load, pixels, run
from ved_core.errors import GenerationError

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


QUICK = {f"vit-gpt2-{key}" for key in FIXED} | {"deit-roberta-prompted", "swin-bart-beam3"}


@pytest.mark.parametrize(
    ("framework", "case"),
    both({f"{name}-{key}": (name, key) for name, key in itertools.product(cases.PAIRS, FIXED)}, QUICK),
)
def test_fixtures(framework, case):
    name, key = case
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
SHORT = {"flax": 6, "torch": 40}


def matrix():
    for framework in decoding.FRAMEWORKS:
        for seed in range(COMBINATIONS):
            yield pytest.param(framework, seed, marks=[pytest.mark.slow] if seed >= SHORT[framework] else [])


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


@pytest.mark.parametrize(("framework", "warpers"), both(WARPERS, ["all"]))
def test_draws(framework, warpers, root):
    path = folder("vit+gpt2", root)
    options = {"do_sample": True, "max_new_tokens": 1, **warpers}
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


@pytest.mark.parametrize(("framework", "beams"), both({1: 1, 3: 3}, [3]))
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


@pytest.mark.parametrize(("framework", "options"), both(TOGETHER, ["beam options"]))
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


@pytest.mark.parametrize(
    ("framework", "case"),
    both(
        {"-".join(case): case for case in itertools.product(decoding.MODELS[1:], ["left", "right"], PROMPTED)},
        ["vit+roberta-left-beams"],
    ),
)
def test_prompts_of_unequal_length(framework, case, root):
    name, side, key = case
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
@pytest.mark.parametrize(
    ("framework", "name"), both({name: name for name in ("vit+gpt2", "donut+mbart")}, ["vit+gpt2"])
)
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


def test_results_that_differ_are_excused_only_where_the_reference_is_undecided():
    clear = np.array([[[0.0, -1.0, -5.0]]])
    near = np.array([[[0.0, -1e-6, -5.0]]])
    found = Result(np.zeros((1, 2)), None)
    assert not decoding.excused(found, Result(np.ones((1, 2)), None, clear))
    assert decoding.excused(found, Result(np.ones((1, 2)), None, near))
