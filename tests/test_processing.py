"""A checkpoint's own image processor and tokenizer, used as transformers would use them."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cases import DIGITS, READER, ROOT
from ved_core.errors import ImageError, ProcessorError
from ved_core.processing import Processor

EXAMPLES = sorted(DIGITS.glob("*.png"))
SETTINGS: dict[str, Any] = json.loads((READER / "preprocessor_config.json").read_text())
UNTYPED = {key: value for key, value in SETTINGS.items() if key != "image_processor_type"}


@pytest.fixture
def reader() -> Processor:
    return Processor.from_pretrained(READER)


def folder_with(folder: Path, **files: Any) -> Processor:
    """A folder of JSON files, named without their suffix."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return Processor.from_pretrained(folder)


def test_pixel_values_are_those_of_transformers(reader: Processor) -> None:
    from transformers import AutoImageProcessor

    images = [Image.open(path).convert("RGB") for path in EXAMPLES]
    theirs = AutoImageProcessor.from_pretrained(READER, backend="pil")(images=images, return_tensors="np")
    ours = reader.pixel_values(EXAMPLES)
    assert (ours.shape, ours.dtype) == ((len(EXAMPLES), 3, 48, 48), np.float32)
    assert np.array_equal(ours, theirs["pixel_values"])


def test_every_source_gives_the_same_pixel_values(reader: Processor) -> None:
    image = Image.open(EXAMPLES[0])
    array = np.asarray(image)
    ours = reader.pixel_values([str(EXAMPLES[0]), image, array, np.moveaxis(array, -1, 0), array / 255])
    assert (ours == ours[:1]).all()
    assert np.array_equal(reader.pixel_values(np.stack([array] * 2)), ours[:2])


@pytest.mark.parametrize("size", [(50, 3), (3, 50), (1, 1), (200, 100)])
def test_thin_images_keep_their_axes(reader: Processor, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    resized = Image.fromarray(pixels).resize((48, 48), Image.Resampling.BILINEAR)
    expected = (np.moveaxis(np.asarray(resized), -1, 0) / 255 - 0.5) / 0.5
    assert np.allclose(reader.pixel_values([pixels])[0], expected, atol=1e-5)


def test_decode_is_that_of_transformers(reader: Processor) -> None:
    from transformers import AutoTokenizer

    ids = np.random.default_rng(0).integers(0, len(reader.tokenizer), (5, 9))
    expected = AutoTokenizer.from_pretrained(READER).batch_decode(ids, skip_special_tokens=True)
    for dtype in (np.int32, np.int64, np.uint16):
        assert reader.decode(ids.astype(dtype)) == expected
    assert reader.decode(ids.tolist()) == expected


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)])
def test_nothing_to_decode(reader: Processor, shape: tuple[int, int]) -> None:
    assert reader.decode(np.zeros(shape, np.int32)) == [""] * shape[0]


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        ([[5, -100]], "id -100 is negative.*ignored labels"),
        ([[5, -1]], "id -1 is negative"),
        ([[5, 57]], r"id 57 is outside of the vocabulary \(0 to 56\)"),
        ([[2**40]], "id 1099511627776 is outside"),
        ([5, 6], "integers of shape"),
        ([[5.0, 6.0]], "not float64"),
        ([[True]], "not bool"),
        ([[5], [6, 7]], "rows of one length"),
    ],
)
def test_ids_that_are_not_tokens(reader: Processor, ids: list[Any], reason: str) -> None:
    with pytest.raises(ProcessorError, match=reason):
        reader.decode(ids)


def test_a_vocabulary_with_a_gap(tmp_path: Path) -> None:
    tokenizer = json.loads((READER / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 99, "content": "<far>", "special": False})
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, dict):
        vocabulary["<far>"] = 99
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    shutil.copy(READER / "tokenizer_config.json", tmp_path)
    processor = Processor.from_pretrained(tmp_path)
    assert processor.decode([[99]]) == ["<far>"]
    with pytest.raises(ProcessorError, match="0 to 99"):
        processor.decode([[100]])


@pytest.mark.parametrize("kind", ["ViT", "DeiT", "Donut", "Beit"])
@pytest.mark.parametrize("key", ["image_processor_type", "feature_extractor_type"])
def test_spellings_of_the_type(tmp_path: Path, kind: str, key: str) -> None:
    name = kind + ("ImageProcessor" if key.startswith("image") else "FeatureExtractor")
    processor = folder_with(tmp_path, preprocessor_config={**UNTYPED, "do_center_crop": False, key: name})
    assert type(processor.image_processor).__name__ == f"{kind}ImageProcessorPil"
    assert processor.pixel_values(EXAMPLES[:2]).shape == (2, 3, 48, 48)


def test_the_fast_spelling_still_means_pil(tmp_path: Path) -> None:
    processor = folder_with(tmp_path, preprocessor_config={**UNTYPED, "image_processor_type": "ViTImageProcessorFast"})
    assert processor.image_processor.backend == "pil"


def test_the_nested_file(tmp_path: Path, reader: Processor) -> None:
    nested = {"image_processor": SETTINGS, "processor_class": "TrOCRProcessor"}
    processor = folder_with(tmp_path, processor_config=nested)
    assert np.array_equal(processor.pixel_values(EXAMPLES), reader.pixel_values(EXAMPLES))


def test_each_part_works_without_the_other(tmp_path: Path) -> None:
    images = folder_with(tmp_path / "images", preprocessor_config=SETTINGS)
    assert images.pixel_values(EXAMPLES).shape == (len(EXAMPLES), 3, 48, 48)
    with pytest.raises(ProcessorError, match=r"images' has no tokenizer \(tokenizer\.json\); copy it"):
        images.decode([[5]])

    text = folder_with(tmp_path / "text")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(READER / name, text.folder)
    assert text.decode([[0, 5, 2]]) == ["g"]
    with pytest.raises(ProcessorError, match=r"text' has no image processor \(preprocessor_config\.json\); copy it"):
        text.pixel_values(EXAMPLES)


@pytest.mark.parametrize("nested", [None, {"processor_class": "TrOCRProcessor"}])
def test_a_processor_config_without_an_image_processor(tmp_path: Path, nested: dict[str, str] | None) -> None:
    processor = folder_with(tmp_path, **({} if nested is None else {"processor_config": nested}))
    with pytest.raises(ProcessorError, match="has no image processor"):
        _ = processor.image_processor


@pytest.mark.parametrize("config", [{}, {"tokenizer_class": "RobertaTokenizer"}])
def test_no_tokenizer_is_made_up(tmp_path: Path, config: dict[str, str]) -> None:
    shutil.copy(READER / "config.json", tmp_path)
    with pytest.raises(ProcessorError, match="has no tokenizer"):
        _ = folder_with(tmp_path, tokenizer_config=config).tokenizer


@pytest.mark.parametrize("settings", [UNTYPED, {**UNTYPED, "image_processor_type": "NoSuchImageProcessor"}, [], 3])
def test_an_image_processor_that_transformers_lacks(tmp_path: Path, settings: Any) -> None:
    with pytest.raises(ProcessorError, match=r"cannot be loaded.*preprocessor_config\.json of a class"):
        _ = folder_with(tmp_path, preprocessor_config=settings).image_processor


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json", "tokenizer.json"])
def test_a_damaged_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"cut": ')
    processor = Processor.from_pretrained(tmp_path)
    with pytest.raises(ProcessorError, match="cannot be"):
        _ = processor.tokenizer if name.startswith("tokenizer") else processor.image_processor


def test_no_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", EXAMPLES[0]):
        with pytest.raises(ProcessorError, match="no such folder"):
            Processor.from_pretrained(path)


HOSTILE = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nclass Evil: pass\n"


@pytest.mark.parametrize("known", [True, False])
def test_code_of_a_checkpoint_is_never_run(tmp_path: Path, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    questions: list[object] = []

    def refuse(question: object = "") -> str:
        questions.append(question)
        return "n"

    monkeypatch.setattr("builtins.input", refuse)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    evil_map = {
        "AutoImageProcessor": "evil.Evil",
        "AutoTokenizer": ["evil.Evil", "evil.Evil"],
        "AutoConfig": "evil.Evil",
    }
    image_type = "ViTImageProcessor" if known else "EvilImageProcessor"
    tokenizer_class = "PreTrainedTokenizerFast" if known else "EvilTokenizer"
    processor = folder_with(
        tmp_path,
        preprocessor_config={**UNTYPED, "image_processor_type": image_type, "auto_map": evil_map},
        tokenizer_config={"tokenizer_class": tokenizer_class, "auto_map": evil_map},
        config={"model_type": "evil", "auto_map": evil_map},
    )
    shutil.copy(READER / "tokenizer.json", tmp_path)
    (tmp_path / "evil.py").write_text(HOSTILE)
    if known:
        assert processor.pixel_values(EXAMPLES[:1]).shape == (1, 3, 48, 48)
        assert processor.decode([[0, 5, 2]])
    else:
        for part in ("image_processor", "tokenizer"):
            with pytest.raises(ProcessorError, match="never run") as caught:
                getattr(processor, part)
            assert "trust_remote_code" not in str(caught.value)
    assert not questions
    assert not list(tmp_path.rglob("ran"))


def test_what_transformers_is_asked_for(reader: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def echo(*_: object, **options: object) -> dict[str, object]:
        return options

    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", echo)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", echo)
    common = {"local_files_only": True, "trust_remote_code": False}
    assert reader.image_processor == {**common, "backend": "pil"}  # even where torchvision is installed
    assert reader.tokenizer == common


def test_the_network_is_never_asked(reader: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert reader.image_processor
    assert reader.tokenizer


@pytest.mark.parametrize("images", ["x.png", Path("x.png"), b"x", np.zeros((4, 4, 3)), Image.new("L", (2, 2)), 3])
def test_one_image_is_not_a_list(reader: Processor, images: Any) -> None:
    with pytest.raises(ProcessorError, match="put it in a list"):
        reader.pixel_values(images)


def test_no_images(reader: Processor) -> None:
    with pytest.raises(ProcessorError, match="empty"):
        reader.pixel_values([])


def test_a_bad_image_is_named(reader: Processor, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"absent\.png"):
        reader.pixel_values([EXAMPLES[0], tmp_path / "absent.png"])


def test_sizes_that_do_not_make_a_batch(tmp_path: Path) -> None:
    settings = {**UNTYPED, "image_processor_type": "CLIPImageProcessor", "do_center_crop": False}
    processor = folder_with(tmp_path, preprocessor_config={**settings, "size": {"shortest_edge": 32}})
    wide, tall = np.zeros((32, 64), np.uint8), np.zeros((64, 32), np.uint8)
    assert processor.pixel_values([wide, wide]).shape == (2, 3, 32, 64)
    with pytest.raises(ProcessorError, match=r"different processed sizes \[\(3, 32, 64\), \(3, 64, 32\)\]"):
        processor.pixel_values([wide, tall])


@pytest.mark.parametrize("answer", [{}, {"pixel_values": []}, {"pixel_values": [np.zeros((2, 3, 4, 4))]}])
def test_an_image_processor_of_another_kind_of_model(reader: Processor, answer: dict[str, Any]) -> None:
    reader.image_processor = lambda images: answer
    with pytest.raises(ProcessorError, match="image processor of"):
        reader.pixel_values(EXAMPLES[:1])


def test_save_pretrained(reader: Processor, tmp_path: Path) -> None:
    reader.save_pretrained(tmp_path)
    again = Processor.from_pretrained(tmp_path)
    assert np.array_equal(again.pixel_values(EXAMPLES), reader.pixel_values(EXAMPLES))
    assert again.decode([[0, 5, 6, 2]]) == reader.decode([[0, 5, 6, 2]])
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "ViTImageProcessor"


def test_save_pretrained_of_one_part_or_none(tmp_path: Path, reader: Processor) -> None:
    images = folder_with(tmp_path / "images", preprocessor_config=SETTINGS)
    images.save_pretrained(tmp_path / "saved")
    assert [path.name for path in (tmp_path / "saved").iterdir()] == ["preprocessor_config.json"]
    empty = folder_with(tmp_path / "empty")
    with pytest.raises(ProcessorError, match="has no image processor or tokenizer"):
        empty.save_pretrained(tmp_path / "saved")
    empty.tokenizer = reader.tokenizer
    empty.save_pretrained(tmp_path / "assigned")
    assert Processor.from_pretrained(tmp_path / "assigned").decode([[0, 5, 2]]) == ["g"]


def run(code: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)


def test_import_is_cheap() -> None:
    heavy = "{'transformers', 'torch', 'jax', 'PIL', 'huggingface_hub', 'tokenizers'}"
    assert run(f"import sys, ved_core.processing; print(sorted({heavy} & set(sys.modules)))").stdout.strip() == "[]"


@pytest.mark.parametrize("hidden", ["()", "('torch', 'torchvision')"])
def test_without_torch_nothing_is_said_about_it(hidden: str) -> None:
    done = run(
        "import importlib.util, logging\n"
        "find = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name, *rest: None if name in {hidden} else find(name, *rest)\n"
        "from ved_core.processing import Processor\n"
        f"reader = Processor.from_pretrained({str(READER)!r})\n"
        f"print(reader.pixel_values([{str(EXAMPLES[0])!r}]).shape, reader.decode([[0, 5, 2]]))\n"
        "print(reader.image_processor.backend, logging.getLogger('transformers').filters)\n"
    )
    assert done.stdout.split("\n")[:2] == ["(1, 3, 48, 48) ['g']", "pil []"]
    assert "PyTorch" not in done.stderr
