"""Training data from manifests: CSV, TSV and JSONL beside images, and what is refused as a source."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("grain")
pytest.importorskip("datasets")

from tests.training_data import opened, png, reader_processor, texts, written
from ved_core.errors import DataError
from ved_flax.train.data import DataConfig
from ved_flax.train.data.batches import training_batches

ODD = [
    ("list.csv", 'image,text\na.png,"one, ""two"""\nb.png,"a\nb"\n', ['one, "two"', "a\nb"]),
    ("list.csv", "\ufeffimage,text\r\na.png,ä€😀\r\n\r\nb.png,\r\n", ["ä€😀", ""]),
    ("list.csv", "text,n,file_name\none,1,a.png\ntwo,2,sub/../b.png\n", ["one", "two"]),
    ("list.tsv", 'image\ttext\na.png\t"one, two\nb.png\t three"\n', ['"one, two', ' three"']),
    (
        "list.jsonl",
        '\ufeff{"image": "a.png", "text": "a\\nb"}\n\n{"text": "\u2028", "image": "b.png"}',
        ["a\nb", "\u2028"],
    ),
]


@pytest.mark.parametrize(("name", "content", "expected"), ODD)
def test_odd_manifests(tmp_path: Path, name: str, content: str, expected: list[str]) -> None:
    (tmp_path / name).write_bytes(content.encode())
    source = opened(tmp_path / name)
    assert [sample for _, (sample,) in texts(source)] == expected
    assert [source[i].image.resolve() for i in (0, 1)] == [tmp_path / "a.png", tmp_path / "b.png"]


def test_manifest_options(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "metadata.jsonl").write_text(
        '{"path": "a.png", "captions": ["one", "two"], "key": 7}\n{"path": "b.png", "captions": "three", "key": 8}\n'
    )
    names = {"image_column": "path", "text_column": "captions", "id_column": "key"}
    source = opened(tmp_path, image_folder=str(tmp_path / "images"), **names)  # the folder of a metadata file
    assert texts(source) == [("7", ("one", "two")), ("8", ("three",))]
    assert source[0].image == tmp_path / "images" / "a.png"
    other = opened(tmp_path, image_folder=str(tmp_path / "images"), **names | {"id_column": None})
    assert other.fingerprint != source.fingerprint


REFUSED = [
    ("list.csv", "", "holds no rows"),
    ("list.csv", "image,text\n", "holds no rows"),
    ("list.csv", "image,words\na.png,b\n", "has no column text.*data.text_column"),
    ("list.csv", "a.png,one\n", "no column image or file_name"),
    ("list.csv", "image,text,text\na.png,b,c\n", "one column twice"),
    ("list.csv", 'image,text\na.png,"one\nb.png,two\n', "line 2: unexpected end of data.*quotes"),
    ("list.csv", "image,text\na.png,one\n../b.png,two\n", "line 3: '../b.png' leaves the image folder"),
    ("list.csv", "image,text\n/etc/passwd,one\n", "leaves the image folder.*data.image_folder"),
    ("list.csv", b"image,text\na.png,\xe9\n", "is not UTF-8"),
    ("list.csv", "image,text\na.png,one,more\n", "1 of 1 rows are bad.*line 2: 3 cells, where the first line has 2"),
    ("list.jsonl", '{"image": "a.png"}\n', "line 1: no text"),
    ("list.jsonl", '{"image": "a.png", "text": 3}\n', "its text is 3"),
    ("list.jsonl", '{"image": "a.png", "text": []}\n', "neither a text nor a list of at least one"),
    ("list.jsonl", '{"image": "a.png", "text": "\\ud800"}\n', "surrogate"),
    ("list.jsonl", '{"image": "a\\u0000.png", "text": "a"}\n', "zero byte"),
    ("list.jsonl", '{"image": null, "text": "a"}\n', "no path of an image"),
    ("list.jsonl", "[1]\n", "not a JSON object"),
    ("list.jsonl", "{\n", "not JSON"),
    ("list.jsonl", "[" * 100_000 + "\n", "not JSON"),
    ("list.txt", "a", "of no known kind"),
]


@pytest.mark.parametrize(("name", "content", "match"), REFUSED)
def test_manifests_that_are_refused(tmp_path: Path, name: str, content: str | bytes, match: str) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=match) as caught:
        opened(tmp_path / name)
    assert name in str(caught.value)


def test_rows_that_are_bad_are_bad_samples(tmp_path: Path) -> None:
    manifest = written(tmp_path, [("a.png", "one"), ("b.png", "two"), ("c.png", "three"), ("d.png", "four")])
    manifest.write_text(manifest.read_text() + "e.png\n")
    (tmp_path / "b.png").write_bytes(png(1)[:60])
    (tmp_path / "c.png").unlink()
    config = DataConfig(source=str(manifest), shuffle=False, max_bad_share=0.6)
    with training_batches(config, reader_processor(), batch_size=5) as batches:
        assert next(batches)["weight"].tolist() == [1, 0, 0, 1, 0]
        assert {problem.split(":")[0] for problem in batches._named} == {"b.png", "c.png", f"{manifest}, line 6"}


@pytest.mark.parametrize(
    ("source", "options", "match"),
    [
        ("", {}, "data.source is not set"),
        ("missing.csv", {}, "no such file"),
        ("gs://bucket/a.tar", {}, "only local files"),
        ("pipe:cat a.tar", {}, "only local files"),
        ("a{5..1}.tar", {}, "count upwards"),
        ("a{0..99999999}.tar", {}, "count upwards"),
        ("a{0..2}.tar", {}, "a0.tar: no such file, of"),
        ("x.csv", {"split": "train"}, "only Hugging Face datasets have splits"),
        ("tests", {}, "a folder with 0 of metadata.csv"),
        ("hub:nobody/nothing-here", {}, "set data.split"),
        ("hub:nobody/nothing-here", {"split": "train"}, "cannot be loaded"),
    ],
)
def test_sources_that_are_refused(source: str, options: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        opened(source, **options)
