"""Parsers of strangers' bytes, searched by Hypothesis: damaged files of the corpus, and well-formed ones.

`FUZZ=5000` in the environment tries as many of each.
"""

import json
import os
import pickle
import struct

import msgpack
import pytest

pytest.importorskip("hypothesis")
pytest.importorskip("h5py")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.parsers import READERS, corpus, parse

pytestmark = pytest.mark.slow
EXAMPLES = int(os.environ.get("FUZZ", "40"))
searched = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    derandomize=EXAMPLES < 100,
)
PIECES = st.one_of(
    st.binary(max_size=12),
    st.sampled_from(
        [b"\0" * 8, b"\xff" * 8, b"..", b"../", b"\x7f\xff\xff\xff", b"[" * 200, b"{}", b"null", b"-1", b"1e999"]
    ),
)
EDIT = st.tuples(st.floats(0, 1), st.integers(0, 16), PIECES)
"""Where, how many bytes go, and what comes in their place."""


@pytest.mark.parametrize("name", READERS)
def test_the_corpus_itself(name):
    assert any(parse(name, data) for data in corpus(name))


@pytest.mark.parametrize("name", READERS)
@searched
@given(data=st.data())
def test_damaged_files(name, data):
    content = data.draw(st.sampled_from(corpus(name)))
    for place, gone, piece in data.draw(st.lists(EDIT, min_size=1, max_size=5)):
        start = int(place * len(content))
        content = content[:start] + piece + content[start + gone :]
    parse(name, content)


NAMES = st.one_of(
    st.sampled_from(["a", "b", "weight", "__metadata__", "__msgpack_chunked_array__", "shape", "chunks", "0"]),
    st.text(),
)
SIZES = st.one_of(st.integers(-2, 5), st.sampled_from([2**31, 2**40, 2**62, 2**63 - 1]))
ARRAYS = st.builds(
    lambda shape, dtype, content, code: msgpack.ExtType(code, msgpack.packb((shape, dtype, content))),
    st.lists(SIZES, max_size=4),
    st.sampled_from(["float32", "int8", "bfloat16", "object", "V4", "f4,f4", ""]),
    st.binary(max_size=16),
    st.sampled_from([1, 1, 1, 3, 2]),
)
PLAIN = st.one_of(st.none(), st.booleans(), SIZES, st.floats(), st.text(), st.binary(max_size=9))
TREES = st.recursive(st.one_of(ARRAYS, PLAIN), lambda inner: st.dictionaries(NAMES, inner, max_size=4), max_leaves=12)


@searched
@given(tree=TREES)
def test_trees_of_msgpack(tree):
    parse("flax", msgpack.packb(tree, datetime=False, unicode_errors="surrogatepass"))


ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "I8", "F128", "", None, 5]),
        "shape": st.lists(st.one_of(SIZES, PLAIN.filter(lambda x: not isinstance(x, bytes))), max_size=4),
        "data_offsets": st.lists(SIZES, max_size=3),
    },
)


@searched
@given(header=st.dictionaries(NAMES, ENTRIES, max_size=4), body=st.binary(max_size=64), longer=st.integers(-2, 2))
def test_headers_of_safetensors(header, body, longer):
    text = json.dumps(header).encode()
    parse("safetensors", struct.pack("<Q", max(0, len(text) + longer)) + text + body)


STATES = st.recursive(
    st.one_of(PLAIN, st.integers()),
    lambda inner: st.one_of(st.lists(inner), st.tuples(inner), st.dictionaries(NAMES, inner), st.sets(st.integers())),
    max_leaves=20,
)


@searched
@given(state=STATES, protocol=st.integers(0, 5))
def test_pickles(state, protocol):
    for name in ("torch", "pickle"):
        parse(name, pickle.dumps(state, protocol))


FIELDS = (
    "hidden_size",
    "n_layer",
    "vocab_size",
    "image_size",
    "depths",
    "model_type",
    "eos_token_id",
    "auto_map",
    "num_beams",
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), SIZES, st.floats(), st.text(max_size=9)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4)),
    max_leaves=12,
)


@pytest.mark.parametrize("name", ["config", "generation", "index", "digests"])
@searched
@given(
    changes=st.dictionaries(st.sampled_from((*FIELDS, "encoder", "decoder", "weight_map", "about", "digest")), JSON),
    data=st.data(),
)
def test_json(name, changes, data):
    values = json.loads(data.draw(st.sampled_from([x for x in corpus(name) if x.startswith(b"{")])))
    inside = data.draw(st.sampled_from([values, *(value for value in values.values() if isinstance(value, dict))]))
    inside.update(changes)
    parse(name, json.dumps(values).encode())
