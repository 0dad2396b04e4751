"""Text in pieces: nothing is taken back, and the pieces together are the whole."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.cases import READER
from ved_core.errors import GenerationError
from ved_core.processing import Processor
from ved_core.streaming import TextStream

CORPUS = [
    "naïve café 😀😁, 東京の駅! don't we're it's I'm",
    "👩‍👩‍👧 the family; the end. what? yes, no!",
    "one two three",
] * 3
SPECIAL = ["<pad>", "<unk>", "</s>"]

Decode = Callable[[NDArray[np.int64]], list[str]]


def byte_level() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    return core


def word_piece() -> Any:
    """With the pieces of contractions, whose spaces the clean-up takes away."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = [*SPECIAL, *".?!,'", *"nstmdvex", "do", "ve", "re", "not", "it", "##s", "##n", "##'", "東", "京"]
    core = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    return core


def metaspace() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = [*SPECIAL, *"▁onetwé東", "▁one", "two", "▁three", "▁▁"]
    core = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=1))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    return core


def byte_fallback() -> Any:
    from tokenizers import Tokenizer, decoders, models

    spelled = [f"<0x{byte:02X}>" for byte in range(256)]
    core = Tokenizer(models.Unigram([(p, -1.0) for p in [*SPECIAL, *spelled, "▁one", "a"]], 1, byte_fallback=True))
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return core


@cache
def tokenizer(make: Callable[[], Any], clean: bool = False) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=make(),
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        clean_up_tokenization_spaces=clean,
    )


def decoder(make: Callable[[], Any], clean: bool = False) -> Decode:
    known = tokenizer(make, clean)
    return lambda ids: list(known.batch_decode(ids.tolist(), skip_special_tokens=True))


@cache
def reader() -> Processor:
    return Processor.from_pretrained(READER)


def streamed(decode: Decode, ids: Any, most: int = 1, rng: np.random.Generator | None = None) -> list[str]:
    stream = TextStream(decode, skip_prompt=False)
    pieces = []
    place = 0
    while place < len(ids):
        step = most if rng is None else int(rng.integers(1, most + 1))
        pieces.append(stream.put(ids[place : place + step]))
        place += step
    return [*pieces, stream.end()]


def test_the_reader_of_digits() -> None:
    ids = np.array([0, *reader().tokenizer("three one six")["input_ids"], 2])
    assert streamed(reader().decode, ids) == ["", "three", "", " one", "", " six"]
    long = np.array(reader().tokenizer("seven " * 4)["input_ids"])
    assert "".join(streamed(reader().decode, long)[:-1]).startswith("seven seven")


KINDS = [(byte_level, False), (word_piece, False), (word_piece, True), (metaspace, False), (None, False)]


@pytest.mark.parametrize("length", [1, 5, 30, 400])
@pytest.mark.parametrize(("make", "clean"), KINDS)
def test_the_pieces_are_the_whole(make: Callable[[], Any] | None, clean: bool, length: int) -> None:
    decode = decoder(make, clean) if make else reader().decode
    size = len(tokenizer(make, clean)) if make else 57
    rng = np.random.default_rng(length)
    for most in (1, 1, 1, 3, 50):
        ids = rng.integers(0, size, length)
        assert "".join(streamed(decode, ids, most, rng)) == decode(ids[None])[0]


def test_what_is_written_by_a_tokenizer_is_the_whole() -> None:
    for text in (" ".join(CORPUS), "".join(CORPUS) * 5, "東京の駅" * 50, "😀" * 200):
        ids = tokenizer(byte_level)(text)["input_ids"]
        pieces = streamed(decoder(byte_level), ids)
        assert "".join(pieces) == text
        assert "\ufffd" not in "".join(pieces[:-1])


def test_an_unfinished_character_is_held_back() -> None:
    vocabulary = tokenizer(byte_level).get_vocab()
    bytes_of_smile = [vocabulary[piece] for piece in "ðŁĺĢ"]
    pieces = streamed(decoder(byte_level), [vocabulary["a"], *bytes_of_smile, vocabulary["b"]])
    assert pieces == ["a", "", "", "", "😀", "b", ""]
    assert streamed(decoder(byte_level), [vocabulary["a"], *bytes_of_smile[:2]]) == ["a", "", "", "\ufffd"]


def test_bytes_that_are_no_character_are_not_held_for_ever() -> None:
    wrong = tokenizer(byte_level).get_vocab()["Ģ"]
    pieces = streamed(decoder(byte_level), [wrong] * 200)
    assert "".join(pieces) == "\ufffd" * 200
    assert len(pieces[-1]) < 40


def test_text_without_spaces_is_not_held_back() -> None:
    ids = tokenizer(metaspace).convert_tokens_to_ids(["東", "é", "two"])
    assert streamed(decoder(metaspace), ids) == ["東", "é", "two", ""]


def test_a_space_that_is_cleaned_away_later() -> None:
    vocabulary = tokenizer(word_piece, True).get_vocab()
    decode = decoder(word_piece, True)
    ids = [vocabulary[piece] for piece in ("do", "n", "'", "t", "not", "##s", "##s", "##s", ".")]
    assert [decode(np.array([ids[:end]]))[0] for end in (2, 3, 4)] == ["do n", "do n '", "don't"]
    assert streamed(decode, ids) == ["do", "", "", "n't", "", "", "", " notsss", ".", ""]


def test_characters_spelled_in_bytes() -> None:
    """The decoder shows a whole run of bytes as replaced, as long as its last character is unfinished."""
    vocabulary = tokenizer(byte_fallback).get_vocab()
    ids = [vocabulary[f"<0x{byte:02X}>"] for byte in "東".encode()] * 100
    for lead in ([], ["a"], ["a", "a"]):
        pieces = streamed(decoder(byte_fallback), [*(vocabulary[letter] for letter in lead), *ids])
        assert pieces == [*lead, *["", "", "東"] * 100, ""]


def test_a_broken_run_of_bytes_goes_on_at_the_same_length() -> None:
    """This decoder takes back good characters next to which there is a bad one: no stream can follow it."""
    vocabulary = tokenizer(byte_fallback).get_vocab()
    good, bad = [vocabulary["<0xC3>"], vocabulary["<0xA9>"]], vocabulary["<0xFF>"]
    decode = decoder(byte_fallback)
    assert "".join(streamed(decode, good * 100)) == "é" * 100
    assert decode(np.array([[*good, bad]])) == ["\ufffd" * 3]
    assert streamed(decode, [*good, bad]) == ["", "é", "", "\ufffd" * 2]
    ids = [*good, bad, *[vocabulary["a"]] * 200]
    pieces = streamed(decode, ids)
    assert "".join(pieces) == "é" + decode(np.array([ids]))[0][1:]
    assert len(pieces[-1]) < 10


@pytest.mark.parametrize("make", [byte_level, metaspace, word_piece])
def test_the_cost_is_linear(make: Callable[[], Any]) -> None:
    decoded = 0
    decode = decoder(make)

    def counted(ids: NDArray[np.int64]) -> list[str]:
        nonlocal decoded
        decoded += ids.size
        return decode(ids)

    ids = np.random.default_rng(0).integers(3, len(tokenizer(make)), 3000)
    assert "".join(streamed(counted, ids)) == decode(ids[None])[0]
    assert decoded < 100 * len(ids)


def test_the_prompt() -> None:
    three, one = reader().tokenizer("three one")["input_ids"]
    for prompt in (np.array([[0, one]]), np.array([], int), np.array([0])):
        stream = TextStream(reader().decode)
        assert stream.put(prompt) == ""
        assert stream.put(np.array([three])) == "three"
        assert stream.put(one) + stream.end() == " one"
        assert stream.put(prompt) == ""  # the next stream
        assert stream.put([three]) == "three"
        assert stream.end() == ""
    whole = TextStream(reader().decode, skip_prompt=False)
    assert whole.put([[0, three]]) + whole.put([one]) + whole.end() == "three one"
    assert whole.end() == ""


def test_ids_of_torch() -> None:
    torch = pytest.importorskip("torch")
    stream = TextStream(reader().decode, skip_prompt=False)
    assert stream.put(torch.tensor([reader().tokenizer("three")["input_ids"]])) == "three"


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        (np.zeros((2, 3), int), r"only one row can be streamed.*\(2, 3\)"),
        (np.zeros((1, 1, 1), int), "only one row"),
        (np.zeros(2), "must be integers, not float64"),
        ([True], "must be integers, not bool"),
        (None, "must be integers, not object"),
    ],
)
def test_ids_that_cannot_be_streamed(ids: Any, reason: str) -> None:
    for stream in (TextStream(reader().decode), TextStream(reader().decode, skip_prompt=False)):
        with pytest.raises(GenerationError, match=f"streamer: .*{reason}"):
            stream.put(ids)
