"""The output of Donut models: read as transformers reads it, and kept well-formed while it is decoded."""

import random
import re
import time
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

from ved_core.donut import DonutGrammar, token2json
from ved_core.errors import GenerationError, ProcessorError

KEYS = ["menu", "nm", "price", "sub", "NM"]
CATEGORIES = ["<yes/>", "<no/>"]
TEXTS = ["▁", "▁one", "two", "é", "<", "/", "s", "S", "_", ">", "sep", "▁<s", "</", "nm", "<s_", "5.00"]
START = "<s_task>"


@cache
def tokenizer() -> Any:
    """A small XLM-R, as Donut has it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    pieces = ["<s>", "<pad>", "</s>", "<unk>", *TEXTS]
    core = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=3))
    core.decoder = decoders.Metaspace()
    tags = [tag for key in KEYS for tag in (f"<s_{key}>", f"</s_{key}>")]
    core.add_special_tokens([AddedToken(token) for token in [*tags, "<sep/>", START, *CATEGORIES, "<s_odd/>"]])
    core.add_tokens(["plain", "</s_lone>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def ids_of(*tokens: str) -> list[int]:
    vocabulary = tokenizer().get_vocab()
    return [vocabulary[token] for token in tokens]


def allowed(grammar: DonutGrammar, *tokens: str) -> set[str]:
    found = grammar(0, ids_of(*tokens))
    assert found.dtype == np.int64
    assert len(set(found.tolist())) == len(found)
    return set(tokenizer().convert_ids_to_tokens(found.tolist()))


# token2json


def oracle(text: str, added: list[str]) -> Any:
    pytest.importorskip("torch")
    from transformers import DonutProcessor

    return DonutProcessor.token2json(DonutProcessor.__new__(DonutProcessor), text, added_vocab=added)


CASES: list[tuple[str, Any]] = [
    ("", {"text_sequence": ""}),
    (" plain text ", {"text_sequence": " plain text "}),
    ("<s_a>1</s_a>", {"a": "1"}),
    ("<s_a> 1 2\n</s_a> ", {"a": "1 2"}),
    ("<s_a></s_a>", {"a": ""}),
    ("<s_a>1</s_a><s_b>2</s_b>", {"a": "1", "b": "2"}),
    ("<s_a>1</s_a><s_a>2</s_a>", {"a": "2"}),
    ("<s_a>1<sep/> 2<sep/></s_a>", {"a": ["1", "2", ""]}),
    ("<s_a><s_b>1</s_b><s_c>2</s_c></s_a>", {"a": {"b": "1", "c": "2"}}),
    ("<s_a><s_b>1</s_b> <sep/><s_b>2</s_b></s_a>", {"a": [{"b": "1"}, {"b": "2"}]}),
    ("<s_a><s_b>1</s_b><sep/></s_a>", {"a": {"b": "1"}}),
    ("<s_a>1</s_a><sep/><s_a>2</s_a>", [{"a": "1"}, {"a": "2"}]),
    ("<s_a>1</s_a><sep/>", [{"a": "1"}]),
    ("<s_a><yes/></s_a>", {"a": "yes"}),
    ("<s_a><yes/><sep/><maybe/></s_a>", {"a": ["yes", "<maybe/>"]}),
    ("<s_task><s_a>1</s_a></s>", {"a": "1"}),
    ("<s_a>1", {"text_sequence": "1"}),
    ("<s_a>1<s_b>2</s_b>", {"b": "2"}),
    ("<s_a><s_b>1</s_a>", {"a": "<s_b>1"}),
    ("<s_a><s_b>1</s_a>2</s_b>", {"a": "<s_b>1"}),
    ("<s_a><s_a>1</s_a></s_a>", {"a": "<s_a>1"}),
    ("</s_a><s_a>1", {"text_sequence": "1"}),
    ("</s_a>1", {"text_sequence": "</s_a>1"}),
    ("</s_a><sep/><s_a>1</s_a>", [{"a": "1"}, {"a": "1"}]),
    ("<S_Key>1</s_kEY>", {"Key": "1"}),
    ("<s_é>1</S_É>", {"é": "1"}),
    ("ßß<s_a>ß</s_A><s_b>2</s_b>", {"a": "ß", "b": "2"}),
    ("<s_a", {"text_sequence": "<s_a"}),
    ("<s_>1</s_>", {"": "1"}),
    ("<s_a.*>1</s_a.*>", {"a.*": "1"}),
    ("x<s_a>1</s_a>y<sep/><s_b>2</s_b>z", {"a": "1", "b": "2"}),
    ("<s_x><s_a><s_b>1<s_x>2</s_b></s_a>", {"a": {"b": "12"}}),
    ("<s<s_x>_a>1</s_a>", {"a": "1"}),
    (" <s_b></s_a> <s_a> 1 ", {"text_sequence": " 1"}),
    ("<s_a> <s_b>1</s_c></s_a>", {"text_sequence": ""}),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_texts(text: str, expected: Any) -> None:
    assert token2json(text, [*CATEGORIES, "<s_a>"]) == expected


@pytest.mark.oracle
@pytest.mark.parametrize("text", [text for text, _ in CASES])
def test_texts_as_transformers_reads_them(text: str) -> None:
    assert token2json(text, CATEGORIES) == oracle(text, CATEGORIES)


def written(rng: random.Random, depth: int) -> str:
    """Well-formed text of random keys."""
    if depth == 0 or rng.random() < 0.3:
        return "<sep/>".join(rng.choice(["x", " y z", "<yes/>", ""]) for _ in range(rng.choice([1, 1, 2])))
    objects = (
        "".join(f"<s_{key}>{written(rng, depth - 1)}</s_{key}>" for key in rng.choices("abcdA", k=rng.randint(1, 3)))
        for _ in range(rng.choice([1, 1, 2]))
    )
    return "<sep/>".join(objects)


SCRAPS = ["<s_a>", "</s_a>", "<S_b>", "</s_B>", "<s_c>", "<sep/>", *"x \n<>/éſ", "</s_", "s_"]


def damaged(rng: random.Random, text: str) -> str:
    for _ in range(rng.randint(1, 4)):
        parts = re.findall(r"<[^>]*>|[^<]+|<", text) or [""]
        first, second = rng.randrange(len(parts)), rng.randrange(len(parts))
        place = rng.randint(0, len(text))
        how = rng.randrange(4)
        if how == 0:
            text = text[:place] + text[place + rng.randint(1, 6) :]
        elif how == 1:
            text = text[:place] + rng.choice(SCRAPS) + text[place:]
        else:
            parts[first], parts[second] = parts[second], parts[first] if how == 2 else ""
            text = "".join(parts)
    return text


@pytest.mark.oracle
def test_random_texts_as_transformers_reads_them() -> None:
    rng = random.Random(0)
    for _ in range(1500):
        text = written(rng, 3)
        for each in (text, damaged(rng, text), "".join(rng.choices(SCRAPS, k=rng.randint(1, 25)))):
            assert token2json(each, CATEGORIES) == oracle(each, CATEGORIES), each


def test_a_long_output_takes_no_time() -> None:
    many = 50_000
    start = time.perf_counter()
    assert len(token2json("".join(f"<s_{n}>x</s_{n}>" for n in range(many)))) == many
    assert len(token2json("<s_a>x</s_a><sep/>" * many)) == many
    assert token2json("<s_a>" * many + "x</s_a>") == {"a": "<s_a>" * (many - 1) + "x"}
    assert token2json("<s_a>" * many + "x") == {"text_sequence": "x"}
    assert token2json("<" * many) == {"text_sequence": "<" * many}
    deep = "".join(f"<s_{n}>" for n in range(90)) + "x" * many + "".join(f"</s_{n}>" for n in reversed(range(90)))
    found = token2json(deep)
    for n in range(90):
        found = found[str(n)]  # type: ignore[call-overload]
    assert found == "x" * many
    assert time.perf_counter() - start < 5  # 0.5 s where nothing else runs


HOSTILE = {
    "nested": "".join(f"<s_{n}>" for n in range(10**5)) + "".join(f"</s_{n}>" for n in reversed(range(10**5))),
    "unclosed": "".join(f"<s_{n}>" for n in range(10**5)),
    "unclosed, and irregular letters": "ß" + "".join(f"<s_{n}>" for n in range(10**5)),
    "unclosed and closed": "".join(f"<s_{n}><s_a>1</s_a>" for n in range(10**5)),
    "unopened": "</s_a>" * 10**5 + "<s_a>1</s_a>",
    "unopened at each depth": "".join(f"</s_{n}>" * 20 + f"<s_{n}>" for n in range(50))
    + "".join(f"</s_{n}>" for n in reversed(range(50))),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_refused_at_once(name: str) -> None:
    start = time.perf_counter()
    with pytest.raises(ProcessorError, match="more than 100 deep" if name == "nested" else "too many damaged tags"):
        token2json(HOSTILE[name])
    assert time.perf_counter() - start < 5  # at most 1 s where nothing else runs


def test_all_that_a_model_can_write_is_read() -> None:
    tags = [f"<s_key_number_{n}>" for n in range(1500)]
    assert token2json("".join(tags)) == {"text_sequence": ""}


@pytest.mark.parametrize("text", [None, b"<s_a>", ["<s_a>1</s_a>"]])
def test_what_is_not_text(text: Any) -> None:
    with pytest.raises(ProcessorError, match="wants the text of one output"):
        token2json(text)


# DonutGrammar


OPENINGS = {f"<s_{key}>" for key in KEYS}
TEXT = {*TEXTS, *CATEGORIES, "plain"} - {"<s_"}  # which alone begins a tag


def test_what_is_allowed_where() -> None:
    grammar = DonutGrammar(tokenizer(), START)
    assert allowed(grammar, START) == OPENINGS | {"</s>"}
    begun = [START, "<s_menu>"]
    assert allowed(grammar, *begun) == OPENINGS - {"<s_menu>"} | TEXT | {"</s_menu>", "<sep/>"}
    assert allowed(grammar, *begun, "two") == OPENINGS - {"<s_menu>"} | TEXT | {"</s_menu>", "<sep/>"}
    assert allowed(grammar, *begun, "two", "<sep/>") == TEXT | {"</s_menu>", "<sep/>"}
    begun.append("<s_nm>")
    assert allowed(grammar, *begun) == {"<s_price>", "<s_sub>"} | TEXT | {"</s_nm>", "<sep/>"}
    begun.append("</s_nm>")
    assert allowed(grammar, *begun) == OPENINGS - {"<s_menu>"} | {"</s_menu>", "<sep/>"}
    assert allowed(grammar, *begun, "<sep/>") == OPENINGS - {"<s_menu>"} | {"</s_menu>"}
    begun.append("</s_menu>")
    assert allowed(grammar, *begun) == OPENINGS | {"</s>", "<sep/>"}
    assert allowed(grammar, *begun, "<sep/>") == OPENINGS | {"</s>"}
    assert allowed(grammar, *begun, "</s>") == {"<pad>"}
    assert allowed(grammar, *begun, "</s>", "<pad>") == {"<pad>"}


def test_text_cannot_spell_a_tag() -> None:
    grammar = DonutGrammar(tokenizer(), START)
    begun = [START, "<s_menu>"]
    assert "_" in allowed(grammar, *begun, "s")
    assert TEXT - allowed(grammar, *begun, "<", "s") == {"_"}
    assert TEXT - allowed(grammar, *begun, "▁<s") == {"_"}
    assert TEXT - allowed(grammar, *begun, "<", "/", "S") == {"_"}
    assert TEXT - allowed(grammar, *begun, "<", "sep", "/") == {">"}
    assert allowed(grammar, *begun, "<", "s", "<sep/>") >= TEXT


def test_the_prompt() -> None:
    whole = DonutGrammar(tokenizer())
    assert allowed(whole) == OPENINGS | {"</s>"}
    assert allowed(whole, "</s>") == OPENINGS | {"</s>"}  # where the end token also starts the decoder
    assert allowed(whole, "</s>", "</s>") == {"<pad>"}
    assert "</s_nm>" in allowed(whole, START, "<s_menu>", "two", "</s_menu>", "<s_nm>")
    assert "</s_nm>" in allowed(whole, "<s_nm>")
    started = DonutGrammar(tokenizer(), START)
    assert "</s_nm>" in allowed(started, "<pad>", "</s_menu>", "</s>", START, "<s_nm>")
    closed = DonutGrammar(tokenizer(), "<s_menu>")  # a start token that has a closing tag is a key
    assert "</s_menu>" in allowed(closed, "<s>", "<s_menu>")


def test_another_end_token() -> None:
    grammar = DonutGrammar(tokenizer(), START, eos_token_id=ids_of("<unk>")[0])
    assert allowed(grammar, START) == OPENINGS | {"<unk>"}
    assert allowed(grammar, START, "<unk>") == {"<pad>"}


def test_near_max_length_keys_only_close() -> None:
    grammar = DonutGrammar(tokenizer(), START, max_length=6)
    assert "<s_menu>" in allowed(grammar, START)
    assert allowed(grammar, START, "<s_menu>") >= {"</s_menu>", "two", "<sep/>", "<s_nm>"}
    assert allowed(grammar, START, "<s_menu>", "<s_nm>") == {"</s_nm>"}
    assert allowed(grammar, START, "<s_menu>", "two") == TEXT | {"</s_menu>", "<sep/>"}
    assert allowed(grammar, START, "<s_menu>", "two", "two") == {"</s_menu>"}
    assert allowed(grammar, START, "<s_menu>", "two", "two", "</s_menu>") == {"</s>"}


def objects(tokens: Iterator[str], closing: str) -> list[dict[str, Any]]:
    """The objects up to a closing tag, by the tags alone."""
    found: list[dict[str, Any]] = [{}]
    for token in tokens:
        if token == closing:
            break
        if token == "<sep/>":
            found.append({})
        elif token in OPENINGS:
            found[-1][token[3:-1]] = value(tokens, "</" + token[1:])
    return found


def value(tokens: Iterator[str], closing: str) -> Any:
    inside: list[str] = []
    for token in tokens:
        if token == closing:
            break
        inside.append(token)
    if not OPENINGS & set(inside):
        texts: list[list[str]] = [[]]
        for token in inside:
            texts.append([]) if token == "<sep/>" else texts[-1].append(token)
        leaves = ["".join(text).replace("▁", " ").strip() for text in texts]
        leaves = [leaf[1:-2] if leaf in CATEGORIES else leaf for leaf in leaves]
        return leaves[0] if len(leaves) == 1 else leaves
    found = objects(iter(inside), closing)
    found = found if found[-1] else found[:-1]
    return found[0] if len(found) == 1 else found


def walk(rng: np.random.Generator, grammar: DonutGrammar, max_length: int) -> list[int]:
    """Random tokens: of text, or of tags that open more often than they close."""
    ids = ids_of(START)
    text = set(ids_of(*TEXT))
    while ids[-1] != tokenizer().eos_token_id:
        assert len(ids) < max_length
        found = grammar(0, np.array(ids))
        tags = [token for token in found.tolist() if token not in text]
        ids.append(int(rng.choice(found if rng.random() < 0.4 else tags)))
    return ids


@pytest.mark.parametrize("max_length", [2, 3, 5, 12, 40, 100])
def test_random_walks_end_and_come_back(max_length: int) -> None:
    grammar = DonutGrammar(tokenizer(), START, max_length=max_length)
    rng = np.random.default_rng(max_length)
    lengths = []
    for _ in range(60):
        ids = walk(rng, grammar, max_length)
        lengths.append(len(ids))
        text = tokenizer().decode(ids[1:-1], skip_special_tokens=False)
        expected = objects(iter(tokenizer().convert_ids_to_tokens(ids[1:-1])), "")
        whole = expected if expected[-1] else expected[:-1]
        nested = whole if len(expected) > 1 else expected[0] or {"text_sequence": ""}
        assert token2json(text, CATEGORIES) == nested, text
    assert max(lengths) > max_length * 0.6


def test_ids_of_any_kind() -> None:
    torch = pytest.importorskip("torch")
    grammar = DonutGrammar(tokenizer(), START)
    ids = ids_of(START, "<s_menu>")
    expected = grammar(0, ids).tolist()
    for each in (np.array(ids, np.int32), np.array(ids, np.uint16), torch.tensor(ids)):
        assert grammar(3, each).tolist() == expected


@pytest.mark.oracle
def test_transformers_takes_it() -> None:
    torch = pytest.importorskip("torch")
    from transformers import PrefixConstrainedLogitsProcessor

    processor = PrefixConstrainedLogitsProcessor(DonutGrammar(tokenizer(), START), num_beams=2)
    rows = torch.tensor([ids_of(START, "<s_menu>"), ids_of(START, "</s>")])
    scores = processor(rows, torch.zeros(2, len(tokenizer())))
    assert torch.isfinite(scores[1]).nonzero().flatten().tolist() == [tokenizer().pad_token_id]
    assert torch.isfinite(scores[0, ids_of("</s_menu>", "two")]).all()


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        (["<s_menu>", "</s_nm>"], "out of place"),
        (["</s_nm>"], "out of place"),
        (["<s_nm>", "<s_NM>"], "out of place"),
        (["<s_nm>", "<sep/>", "<s_menu>"], "out of place"),
        (["<sep/>"], "out of place"),
        (["<s_menu>", "<s_nm>", "</s_nm>", "two", "<sep/>"], "out of place"),
        (["<s_menu>", "<s_nm>", "<s_sub>", "two"], "max_length=6 leaves no room to close 3 open keys.*by 3 or more"),
        (["<s_menu>", "</s_menu>", "<s_nm>", "</s_nm>", "<s_nm>"], "max_length=6 leaves no room"),
    ],
)
def test_prefixes_that_are_not_of_the_grammar(tokens: list[str], reason: str) -> None:
    with pytest.raises(GenerationError, match=reason):
        DonutGrammar(tokenizer(), START, max_length=6)(0, ids_of(START, *tokens))


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        ([[1, 2]], "integers"),
        ([1.0], "float64"),
        ([-1], "outside of the vocabulary"),
        ([10**6], "outside of the vocabulary"),
        ([1], "start token .* is not in the prompt"),
    ],
)
def test_ids_that_are_not_a_prefix(ids: Any, reason: str) -> None:
    with pytest.raises(GenerationError, match=reason):
        DonutGrammar(tokenizer(), START)(0, ids)


def test_tokenizers_that_do_not_fit() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    with pytest.raises(GenerationError, match="start='<s_other>' is not one token"):
        DonutGrammar(tokenizer(), "<s_other>")
    core = Tokenizer(models.WordLevel({"<unk>": 0, "one": 1}, unk_token="<unk>"))
    bare = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    with pytest.raises(GenerationError, match="lacks; give eos_token_id"):
        DonutGrammar(bare)
    with pytest.raises(GenerationError, match="no pair <s_key>, </s_key>"):
        DonutGrammar(bare, eos_token_id=0)


def test_a_large_vocabulary_is_quick() -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "</s>": 1, **{f"▁w{n}": n for n in range(2, 57_000)}}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.decoder = decoders.Metaspace()
    keys = [f"key{n}" for n in range(200)]
    core.add_special_tokens([AddedToken(tag) for key in keys for tag in (f"<s_{key}>", f"</s_{key}>")])
    large = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")
    grammar = DonutGrammar(large, max_length=1000)
    opening, closing = large.convert_tokens_to_ids(["<s_key7>", "</s_key7>"])
    ids = np.array([0, *([opening, 5, 6, 7, closing] * 150), opening, 9])
    start = time.perf_counter()
    for _ in range(100):
        assert len(grammar(0, ids)) > 57_000
    assert time.perf_counter() - start < 2  # 0.03 s where nothing else runs
