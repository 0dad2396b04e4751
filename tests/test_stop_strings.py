"""Stop strings over token ids: the same stops as transformers, found by one table look-up per token."""

import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.cases import READER
from ved_core.errors import GenerationError
from ved_core.stop_strings import START, StopStrings, stop_strings

CORPUS = [
    "stop the opera at the stopper, abcdef; don't stop here. it's on top!",
    "Überraschung: naïve café, 東京の駅 and 東京都, 😀 😁 end",
    "one two three. four? five, six seven; stops topping pots",
] * 4
SPECIAL = ["<pad>", "<unk>", "</s>"]


def byte_level() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=340, special_tokens=SPECIAL, initial_alphabet=sorted(alphabet), show_progress=False
        ),
    )
    core.add_tokens(["a word with spaces"])
    return wrapped(core)


def word_piece() -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    core = Tokenizer(models.WordPiece(unk_token="<unk>"))
    core.normalizer = normalizers.BertNormalizer(strip_accents=False)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=180, special_tokens=SPECIAL, show_progress=False)
    )
    return wrapped(core)


def unigram() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False),
    )
    return wrapped(core)


def byte_fallback() -> Any:
    """As in Llama: unknown characters are spelled in bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = [
        *SPECIAL,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *"▁stopehrabcdfn",
        "▁st",
        "op",
        "stop",
        "▁the",
        "é",
    ]
    core = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=1, byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrapped(core)


def reader() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(READER)


def wrapped(core: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")


MAKERS = {make.__name__: make for make in (byte_level, word_piece, unigram, byte_fallback, reader)}


@cache
def made(name: str) -> Any:
    return MAKERS[name]()


def stopping(tables: StopStrings, ids: NDArray[Any]) -> NDArray[np.bool_]:
    """Which tokens of each row of ids (B, T) complete a stop string."""
    states = np.full(len(ids), START, np.int32)
    stops = np.zeros(ids.shape, bool)
    for column, tokens in enumerate(ids.T):
        stops[:, column] = tables.stops[states, tokens]
        states = tables.next_state[states, tokens]
    return stops


def oracle(tokenizer: Any, strings: str | Sequence[str], ids: NDArray[Any]) -> NDArray[np.bool_]:
    torch = pytest.importorskip("torch")
    from transformers import StopStringCriteria

    criteria = StopStringCriteria(tokenizer, strings if isinstance(strings, str) else list(strings))
    steps = [criteria(torch.tensor(ids[:, : step + 1]), None).numpy() for step in range(ids.shape[1])]
    return np.stack(steps, axis=1)


def likely(tokenizer: Any, strings: Sequence[str], rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[Any]:
    """Ids that are at random, but for half of them from the spelling of the strings, so that these do occur."""
    spelled = tokenizer("".join(strings) + " ".join(strings), add_special_tokens=False)["input_ids"]
    letters = [token for text in strings for letter in text for token in tokenizer(letter)["input_ids"]]
    chosen = rng.choice([*spelled, *letters], shape)
    for row in chosen:  # and with whole runs of it
        start, length = rng.integers(len(spelled)), rng.integers(1, 6)
        run = spelled[start : start + length]
        place = rng.integers(shape[1] - len(run))
        row[place : place + len(run)] = run
    return np.where(rng.random(shape) < 0.15, rng.integers(0, len(tokenizer), shape), chosen)


CASES: dict[str, list[str]] = {
    "one": ["stop"],
    "letter": ["t"],
    "overlapping": ["stop", "topper", "pots", "opera"],
    "suffix": ["stop", "op", "p"],
    "inside": ["stopper here", "top", "the stopp"],
    "repeating": ["eee", "ee ee", "tete"],
    "long": ["stop the opera at the stopper"],
    "spaces": ["the ", " the", "e, a", ". "],
    "non-ascii": ["é", "東京", "京都", "😀", "naïve café"],
    "special": ["</s>", "the"],
    "digits": ["three", "ve six", "ne", " seven"],
}


@pytest.mark.oracle
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("case", CASES)
def test_stops_are_those_of_transformers(name: str, case: str) -> None:
    tokenizer, strings = made(name), CASES[case]
    if name == "reader":
        strings = CASES["digits"] if case != "letter" else ["e", "x"]
    rng = np.random.default_rng(list(MAKERS).index(name) * 100 + list(CASES).index(case))
    ids = likely(tokenizer, strings, rng, (48, 24))
    expected = oracle(tokenizer, strings, ids)
    assert np.array_equal(stopping(stop_strings(tokenizer, strings, len(tokenizer)), ids), expected)
    assert expected.any() or case in ("long", "special", "non-ascii", "spaces")


@pytest.mark.parametrize("name", MAKERS)
def test_stops_where_the_decoded_text_first_has_the_string(name: str) -> None:
    tokenizer = made(name)
    text = "nine three" if name == "reader" else "the stop here"
    string = "e thr" if name == "reader" else "e stop"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    seen = [string in tokenizer.decode(ids[: end + 1]) for end in range(len(ids))]
    stops = stopping(stop_strings(tokenizer, string, len(tokenizer)), np.array([ids]))[0]
    assert seen.index(True) == stops.tolist().index(True)
    assert stops.sum() == 1


def test_characters_spelled_in_bytes() -> None:
    for name in ("byte_level", "byte_fallback"):
        tokenizer = made(name)
        ids = np.array([tokenizer("x東é", add_special_tokens=False)["input_ids"]])
        stops = stopping(stop_strings(tokenizer, ["東"], len(tokenizer)), ids)[0]
        place = next(end for end in range(ids.shape[1]) if "東" in tokenizer.decode(ids[0, : end + 1]))
        assert np.flatnonzero(stops).tolist() == [place]


@pytest.mark.oracle
def test_transformers_forgets_what_is_further_back_than_the_string_is_long() -> None:
    """It looks at as many tokens as the longest string has letters, so that tokens without text hide the beginning."""
    from tokenizers import AddedToken, Tokenizer, decoders, models

    core = Tokenizer(models.WordLevel({"a": 0, "b": 1, "▁": 2, "abcdef": 3, "<unk>": 4}, unk_token="<unk>"))
    core.decoder = decoders.Replace("▁", "")
    core.add_tokens([AddedToken("abcdef")])
    tokenizer = wrapped(core)
    ids = np.array([[0, 2, 1], [3, 0, 1]])
    assert tokenizer.decode(ids[0]) == "ab"
    assert oracle(tokenizer, "ab", ids)[:, 2].tolist() == [False, True]
    assert stopping(stop_strings(tokenizer, "ab", len(tokenizer)), ids)[:, 2].tolist() == [True, True]


@pytest.mark.oracle
def test_transformers_needs_a_vocabulary_that_can_spell_abcdef() -> None:
    from tokenizers import Tokenizer, decoders, models

    core = Tokenizer(models.WordPiece({"one": 0, "##s": 1, "two": 2, "<unk>": 3}, unk_token="<unk>"))
    core.decoder = decoders.WordPiece()
    tokenizer = wrapped(core)
    with pytest.raises(ValueError, match="substring not found"):
        oracle(tokenizer, "s t", np.array([[0]]))
    stops = stopping(stop_strings(tokenizer, "s t", len(tokenizer)), np.array([[0, 1, 2, 0], [0, 2, 1, 0]]))
    assert stops.tolist() == [[False, False, True, False], [False, False, False, False]]


def test_a_vocabulary_that_can_spell_no_letter_of_abcdef() -> None:
    from tokenizers import Tokenizer, decoders, models

    core = Tokenizer(models.BPE({"▁two": 0, "▁three": 1}, []))
    core.decoder = decoders.Metaspace()
    assert core.encode("abcdef").ids == []
    stops = stopping(stop_strings(wrapped(core), "o t", 2), np.array([[0, 1, 0]]))
    assert stops.tolist() == [[False, True, False]]


def test_a_stop_before_the_last_token_is_over() -> None:
    tokenizer = made("reader")
    one, two = tokenizer.convert_tokens_to_ids(["one", "two"])
    assert stopping(stop_strings(tokenizer, "one", 57), np.array([[one, two, one]])).tolist() == [[True, False, True]]


def test_ids_without_text_change_nothing() -> None:
    tokenizer = made("reader")
    th, ree = tokenizer.convert_tokens_to_ids(["thr", "ee"])
    tables = stop_strings(tokenizer, ["three"], 64)
    assert (tables.next_state.shape, tables.next_state.dtype) == ((6, 64), np.int32)
    assert (tables.stops.shape, tables.stops.dtype) == ((6, 64), bool)
    assert np.array_equal(tables.next_state[:, 60], np.arange(6))
    assert stopping(tables, np.array([[th, 60, 63, ree]])).tolist() == [[False, False, False, True]]


def test_a_vocabulary_that_is_cut_short() -> None:
    tokenizer = made("reader")
    whole, short = stop_strings(tokenizer, "one", 57), stop_strings(tokenizer, "one", 30)
    assert np.array_equal(short.next_state, whole.next_state[:, :30])
    assert np.array_equal(short.stops, whole.stops[:, :30])


def test_follow_goes_on_from_a_prompt() -> None:
    tokenizer = made("byte_level")
    tables = stop_strings(tokenizer, ["stop", "opera"], len(tokenizer))
    s, t, o, p = tokenizer.convert_tokens_to_ids(list("stop"))
    prompts = np.array([[-1, s, t, o], [s, t, -100, o], [s, t, o, p], [p, p, p, p]])
    states = tables.follow(prompts, prompts >= 0)
    assert states.dtype == np.int32
    assert states[0] == states[1]
    assert tables.stops[states, p].tolist() == [True, True, False, False]
    assert tables.follow(prompts[2:], None).tolist() == states[2:].tolist()
    assert tables.follow(np.zeros((2, 0), int)).tolist() == [START, START]


@pytest.mark.parametrize(
    ("ids", "mask", "reason"),
    [
        ([1, 2], None, "integers"),
        ([[1.0]], None, "float64"),
        ([[1, 2]], [[True]], "mask of the same shape"),
        ([[57]], None, r"outside of the vocabulary \(0 to 56\)"),
        ([[-1, 3]], [[True, False]], "outside of the vocabulary"),
    ],
)
def test_prompts_that_are_not_tokens(ids: Any, mask: Any, reason: str) -> None:
    with pytest.raises(GenerationError, match=f"stop_strings.*{reason}"):
        stop_strings(made("reader"), "one", 57).follow(ids, mask)


@pytest.mark.parametrize(
    ("strings", "reason"),
    [
        ("", "empty string.*remove it"),
        (["one", ""], "empty string"),
        ([], "is empty; give at least one"),
        ([3], "must be strings, not int"),
        (None, "must be strings, not NoneType"),
        (b"one", "must be strings"),
        (["\ud83d"], "half a character"),
        (["ONE", "é"], "no token can complete 'ONE' or 'é'; write them as"),
        ("one" * 10**6, "too long together: over 524288 bytes.*fewer or shorter"),
    ],
)
def test_strings_that_cannot_be_used(strings: Any, reason: str) -> None:
    with pytest.raises(GenerationError, match=f"stop_strings.*{reason}"):
        stop_strings(made("reader"), strings, 57)


def test_what_else_is_wanted() -> None:
    with pytest.raises(GenerationError, match=r"stop_strings needs the tokenizer; give tokenizer="):
        stop_strings(None, "one", 57)
    with pytest.raises(GenerationError, match="vocab_size must be positive"):
        stop_strings(made("reader"), "one", 0)


def test_the_result_is_kept_until_the_tokenizer_changes() -> None:
    tokenizer = reader()
    first = stop_strings(tokenizer, ["one"], 64)
    assert stop_strings(tokenizer, "one", 64) is first
    assert not first.stops.flags.writeable
    tokenizer.add_tokens(["clone"])
    assert not first.stops[START, 57]
    assert stop_strings(tokenizer, "one", 64).stops[START, 57]


def test_a_large_vocabulary_is_quick() -> None:
    from tokenizers import Tokenizer, decoders, models

    rng = np.random.default_rng(0)
    pieces = ("".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), rng.integers(2, 12))) for _ in range(10**6))
    words = list(dict.fromkeys(["<unk>", *("▁" + piece for _, piece in zip(range(60_000), pieces, strict=False))]))
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    core.decoder = decoders.Metaspace()
    tokenizer = wrapped(core)
    start = time.perf_counter()
    tables = stop_strings(tokenizer, ["a stop string", "another one", "</s>"], len(words))
    assert tables.next_state.shape[1] > 50_000
    assert time.perf_counter() - start < 5  # 0.5 s where nothing else runs
