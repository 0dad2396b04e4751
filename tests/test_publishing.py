"""Measuring models, their cards, and pushing them to a hub on the loopback interface."""

import csv
import json
import shutil
from pathlib import Path

import pytest

import ved_cli
from tests.cases import DIGITS, READER
from tests.hub_server import Hub, Uploads, serve
from ved_core import cards
from ved_core.configs import VisionEncoderDecoderConfig
from ved_core.errors import ConfigError, HubError
from ved_core.processing import Processor
from ved_core.publishing import push

pytest.importorskip("jiwer")
torch = pytest.importorskip("torch")
TEXTS = [sample["greedy_text"] for sample in json.loads((DIGITS / "expected.json").read_text())["samples"]]
IMAGES = sorted(DIGITS.glob("*.png"))[:4]
pytestmark = pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning")  # of the hub's client
TOKEN, NAME = "hf_mayiwrite", "someone/reader"
RESULT = {"dataset": "lines.csv", "samples": 40, "metrics": {"cer": 0.0123, "bleu": 71.5}}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that this process asks, with a cache of its own."""
    from huggingface_hub import constants

    with serve({}, uploads=Uploads(tmp_path / "uploads", TOKEN)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server


def pushed(tmp_path: Path) -> Path:
    return tmp_path / "uploads" / NAME


def reader(framework="torch", folder=READER):
    library = pytest.importorskip(f"ved_{framework}")
    return library.ImageToText.from_pretrained(folder)


def test_what_is_pushed_is_a_model(hub: Hub, tmp_path):
    one = reader()
    address = one.push_to_hub(NAME, token=TOKEN, results=[RESULT])
    assert address.startswith(f"{hub.endpoint}/{NAME}/commit/")
    assert sum("/commit/" in asked for asked in hub.requests) == 1
    assert any(asked.startswith("PUT /lfs/") for asked in hub.requests) or (tmp_path / "uploads" / "lfs").is_dir()
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "README.md"} <= {
        path.name for path in pushed(tmp_path).iterdir()
    }
    again = reader(folder=NAME)
    assert [found.text for found in again(IMAGES)] == TEXTS[:4]


def test_a_card_that_is_there_stays(hub: Hub, tmp_path):
    processor, card = Processor.from_pretrained(READER), pushed(tmp_path) / "README.md"
    for text, options in (("first", {}), ("second", {}), ("third", {"replace_card": True})):
        push(NAME, processor.save_pretrained, card=lambda text=text: text, token=TOKEN, **options)
        assert card.read_text() == ("third" if text == "third" else "first")
    card.write_text("by hand")
    processor.push_to_hub(NAME, token=TOKEN)
    assert card.read_text() == "by hand"


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["flax", "torch"])
def test_what_is_pushed_works_everywhere(framework, hub: Hub, tmp_path):
    transformers = pytest.importorskip("transformers")
    reader(framework).push_to_hub(NAME, token=TOKEN)
    for other in ("flax", "torch"):
        assert [found.text for found in reader(other, NAME)(IMAGES)] == TEXTS[:4]
    folder = pushed(tmp_path)
    model = transformers.VisionEncoderDecoderModel.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pixels = torch.tensor(Processor.from_pretrained(folder).pixel_values(IMAGES))
    assert tokenizer.batch_decode(model.generate(pixels), skip_special_tokens=True) == TEXTS[:4]


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [(NAME, "hf_wrong", r"refused \(401\).*HF_TOKEN"), ("a--b/c", TOKEN, "no name on the hub")],
)
def test_what_the_hub_refuses(hub: Hub, name, token, message):
    with pytest.raises(HubError, match=message) as caught:
        Processor.from_pretrained(READER).push_to_hub(name, token=token)
    assert "\n" not in str(caught.value)


def test_nothing_is_pushed_offline(hub: Hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError):
        Processor.from_pretrained(READER).push_to_hub(NAME, token=TOKEN)


# Cards ---------------------------------------------------------------------------------------------------------------


def test_a_card_tells_what_was_measured():
    from huggingface_hub import ModelCard

    config = VisionEncoderDecoderConfig.from_pretrained(READER)
    card = ModelCard(cards.model_card(config, NAME, [RESULT]))
    assert card.data.pipeline_tag == "image-to-text"
    assert card.data.model_name == "reader"
    assert {(found.metric_type, found.metric_value) for found in card.data.eval_results} == {
        ("cer", 0.0123),
        ("bleu", 71.5),
    }
    assert "| lines.csv | 40 | 1.23% | 71.5 |" in card.text
    assert f'from_pretrained("{NAME}")' in card.text
    assert "Results" not in cards.model_card(config, NAME)


def test_results_that_are_none(tmp_path):
    assert cards.read_results(tmp_path) == []
    for text in ("{", "{}", '[{"dataset": 1}]', '[{"dataset": "x", "samples": 1, "metrics": 3}]', '["x"]'):
        (tmp_path / cards.RESULTS).write_text(text)
        if text == "{}":
            continue
        with pytest.raises(ConfigError, match=r"eval_results\.json.*measure again"):
            cards.read_results(tmp_path)


# ved eval ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def lines(tmp_path):
    """A manifest of four images, of which the second is said to be something else."""
    folder = tmp_path / "lines"
    folder.mkdir()
    with open(folder / "metadata.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "text"])
        for place, (image, text) in enumerate(zip(IMAGES, TEXTS, strict=False)):
            shutil.copy(image, folder / image.name)
            rows.writerow([image.name, f"{text} x" if place == 1 else text])
    return folder


@pytest.fixture
def ved(capsys):
    def call(*arguments):
        status = ved_cli.main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.mark.parametrize("framework", ["torch", pytest.param("flax", marks=pytest.mark.slow)])
def test_eval(framework, ved, lines, tmp_path):
    pytest.importorskip(framework)
    model = shutil.copytree(READER, tmp_path / "model")
    output = tmp_path / "predictions.jsonl"
    arguments = ["eval", model, lines, "--framework", framework, "--metrics", "exact_match,cer,wer", "--batch-size", 3]
    status, out, err = ved(*arguments, "--json", "--output", output, "--save")
    assert (status, err) == (0, "")
    found = json.loads(out)
    letters = sum(map(len, TEXTS[:4])) + 2
    words = sum(len(text.split()) for text in TEXTS[:4]) + 1
    assert found["metrics"] == pytest.approx({"exact_match": 0.75, "cer": 2 / letters, "wer": 1 / words})
    assert (found["samples"], found["bad_samples"], found["dataset"]) == (4, 0, "lines")
    predictions = [json.loads(line) for line in output.read_text().splitlines()]
    assert [each["prediction"] for each in predictions] == TEXTS[:4]
    (kept,) = cards.read_results(model)
    assert kept["metrics"] == found["metrics"]
    assert cards.with_result([kept], RESULT) == [kept, RESULT]
    assert cards.with_result([RESULT, kept], RESULT | {"samples": 1})[-1]["samples"] == 1


def test_eval_goes_on_without_bad_samples(ved, lines):
    (lines / IMAGES[0].name).write_bytes(b"none")
    (lines / IMAGES[2].name).unlink()
    status, out, err = ved("eval", READER, lines, "--framework", "torch", "--max-new-tokens", 8)
    assert status == 1
    assert {line.split()[0] for line in out.splitlines()} == {"exact_match", "cer", "wer", "samples", "bad"}
    assert "50.00%" in out
    assert all(image.name in err for image in (IMAGES[0], IMAGES[2]))
    status, out, _ = ved("eval", READER, lines, "--framework", "torch", "--limit", 1)
    assert (status, out) == (2, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "cer,zer"], "no metric 'zer'"),
        (["--save"], "--save writes into the model's folder"),
        (["--split", "test"], "only Hugging Face datasets have splits"),
    ],
)
def test_wrong_usage_of_eval(ved, lines, arguments, message):
    model = "someone/model" if "--save" in arguments else READER
    status, out, err = ved("eval", model, lines, "--framework", "torch", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err
