"""Configs that try to run code, ask, fetch or allocate: a typed error, or, where they only carry such a wish along, a
model that has not granted it."""

import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.cases import FIXTURES, READER
from tests.torture import Attack, Outcome
from tests.torture.worker import Worker

MEMORY = 256 * 2**20
"""What building a model without numbers may take: it is compiled in part."""
EVIL = "import pathlib\npathlib.Path(__file__).with_name('outside-secret').touch()\nclass Evil: pass\n"
NUMBERS = (10**12, 2**63, -1, 0, 1.5, float("nan"), float("inf"), "8", "", True, [], {}, [8, 8, 8], "os.system('true')")
FIELDS = {
    "vit-gpt2": {
        "encoder": ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size",
                    "patch_size", "num_channels"),
        "decoder": ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"),
    },
    "swin-bert": {
        "encoder": ("embed_dim", "window_size", "patch_size", "image_size"),
        "decoder": ("hidden_size", "max_position_embeddings", "vocab_size", "type_vocab_size"),
    },
}  # fmt: skip
LARGE = (
    *(("vit-gpt2", "encoder", name, 2**31 - 1) for name in ("hidden_size", "intermediate_size", "image_size")),
    *(("vit-gpt2", "decoder", name, 2**31 - 1) for name in ("vocab_size", "n_positions", "n_embd")),
    *(("swin-bert", "encoder", name, 2**31 - 1) for name in ("window_size", "image_size", "embed_dim")),
    *(("swin-bert", "encoder", "image_size", 2**20), ("swin-bert", "encoder", "window_size", 2**12)),
    *(("swin-bert", "encoder", "depths", [10**6, 2]), ("swin-bert", "encoder", "depths", [2] * 10**5)),
    *(
        ("swin-bert", "encoder", "num_heads", [2**31 - 1, 1]),
        ("swin-bert", "decoder", "max_position_embeddings", 2**31 - 1),
    ),
    *(("vit-gpt2", "encoder", "num_hidden_layers", 1000), ("vit-gpt2", "decoder", "n_layer", 1000)),
    *(("vit-gpt2", "encoder", "num_hidden_layers", 10**6), ("vit-gpt2", "decoder", "n_layer", 10**9)),
)
"""Sizes that a field may have, each for itself, and that no file has the weights for."""
AUTO_MAP = {
    "AutoConfig": "evil.Evil",
    "AutoModel": "evil.Evil",
    "AutoModelForVision2Seq": "owner/name--evil.Evil",
    "AutoTokenizer": ["evil.Evil", "evil.Evil"],
    "AutoImageProcessor": "evil.Evil",
    "AutoProcessor": "owner/name--evil.Evil",
}
IGNORED: dict[str, Any] = {
    "auto_map": AUTO_MAP,
    "trust_remote_code": True,
    "custom_pipelines": {"a": {"impl": "evil.Evil"}},
    "_name_or_path": "http://127.0.0.1:9/x",
    "quantization_config": {"quant_method": "evil"},
    "architectures": ["evil.Evil"],
    "torch_dtype": "__import__('os')",
}
GENERATION: dict[str, Any] = {
    "eos_token_id": "x",
    "max_length": "9",
    "pad_token_id": -5,
    "num_beams": 1.5,
    "do_sample": "yes",
    "bos_token_id": [1],
}
Change = Callable[[Path], None]


def run(seed: int, count: int) -> Iterator[Outcome]:
    """Every case through Flax or PyTorch in turn; those of texts through the processor."""
    order = list(cases(random.Random(seed)))
    random.Random(seed).shuffle(order)
    with tempfile.TemporaryDirectory() as place, Worker() as worker:
        for number, (case, fixture, ways, change, may_live) in enumerate(order[:count]):
            folder = Path(place, str(number))
            shutil.copytree(FIXTURES / fixture, folder)
            (folder / "expected.npz").unlink()
            for text in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
                shutil.copy(READER / text, folder)
            (folder / "evil.py").write_text(EVIL)
            change(folder)
            way = ways[number % len(ways)]
            yield attempt(worker, f"{case}, {way}", way, folder, may_live)


def attempt(worker: Worker, case: str, way: str, folder: Path, may_live: bool) -> Outcome:
    """Load a folder, and look what it has brought about."""
    answer = worker.ask(way, folder)
    if list(folder.rglob("outside-secret")):
        return Outcome(case, "failed", "its code has run")
    if answer.grown > MEMORY:
        return Outcome(case, "failed", f"takes {answer.grown >> 20} MiB; {answer.detail}")
    if answer.kind == "done" and may_live:
        return Outcome(case, "survived")
    return Outcome(case, "refused" if answer.kind == "refused" else "failed", answer.detail or "is loaded")


def cases(rng: random.Random) -> Iterator[tuple[str, str, tuple[str, ...], Change, bool]]:
    """What it is, of which fixture, the ways it may be loaded, what does it, and whether a model may come of it."""
    both = ("flax", "torch")
    for fixture, halves in FIXTURES_FIELDS:
        for half, names in halves.items():
            for name in names:
                for value in rng.sample(NUMBERS, 3):
                    if name in ("image_size", "patch_size") and value == 0:
                        continue
                    yield f"{half}.{name} = {value!r}", fixture, both, field(half, name, value), False
    for fixture, half, name, value in LARGE:
        unused = fixture == "swin-bert" and name == "image_size"  # no weight's shape depends on it
        yield f"{half}.{name} = {value!r:.40}", fixture, both, field(half, name, value), unused
    for half in ("encoder", "decoder"):
        for value in ("evil", "vision-encoder-decoder", "llama", None, 5, ["gpt2"], {"a": 1}, "../evil", "gpt2\0"):
            yield f"{half}.model_type = {value!r}", "vit-gpt2", both, field(half, "model_type", value), False
        for value in (
            None,
            "evil.json",
            [],
            5,
            {},
            {"model_type": "vision-encoder-decoder", "encoder": {}, "decoder": {}},
        ):
            yield f"{half} = {value!r:.40}", "vit-gpt2", both, top(half, value), False
        yield f"{half}.auto_map", "vit-gpt2", both, field(half, "auto_map", AUTO_MAP), True
        yield f"{half} in 900 others", "vit-gpt2", both, nested(half, 900), False
    for value in ("evil", "donut", None, 5, [], "VisionEncoderDecoderModel"):
        yield f"model_type = {value!r}", "vit-gpt2", both, top("model_type", value), value is None
    for name, value in IGNORED.items():
        yield f"{name} = {value!r:.40}", "vit-gpt2", both, top(name, value), True
    for name in ("tokenizer_config.json", "preprocessor_config.json"):
        kind = "tokenizer_class" if name.startswith("tokenizer") else "image_processor_type"
        for value in ("Evil", "evil.Evil", "../evil", 5):
            changes = {"auto_map": AUTO_MAP, kind: value}
            yield f"{name}: {kind} = {value!r}", "vit-gpt2", ("processor",), text(name, changes), False
        yield f"{name}: auto_map", "vit-gpt2", ("processor",), text(name, {"auto_map": AUTO_MAP}), True
        yield (
            f"{name}: trust",
            "vit-gpt2",
            ("processor",),
            text(name, {"trust_remote_code": True, "auto_map": AUTO_MAP}),
            True,
        )
    yield "tokenizer_config.json is a pipe", "vit-gpt2", ("processor",), pipe("tokenizer_config.json"), False
    yield "tokenizer.json is a pipe", "vit-gpt2", ("processor",), pipe("tokenizer.json"), False
    for name in ("config.json", "generation_config.json", "preprocessor_config.json"):
        way = ("processor",) if name.startswith("pre") else both
        for content in (
            b"",
            b"[" * 10**5,
            b"\xff\xfe{}",
            b"[]",
            b"null",
            b"{'a': 1}",
            b'{"a":[0' + b",0" * 10**6 + b"]}",
        ):
            yield f"{name}: {content[:20]!r}", "vit-gpt2", way, raw(name, content), False
        yield f"{name} is a pipe", "vit-gpt2", way, pipe(name), False
        yield f"{name} is a folder", "vit-gpt2", way, instead(name), False
    for name, value in GENERATION.items():
        yield f"generation: {name} = {value!r}", "vit-gpt2", both, text("generation_config.json", {name: value}), False


FIXTURES_FIELDS = tuple(FIELDS.items())


def text(name: str, values: dict[str, Any]) -> Change:
    """Other values in a JSON file."""

    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def top(name: str, value: Any) -> Change:
    return text("config.json", {name: value})


def field(half: str, name: str, value: Any) -> Change:
    """Another value in a half's config."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        values = json.loads(path.read_text())
        values[half][name] = value
        path.write_text(json.dumps(values))

    return change


def nested(half: str, depth: int) -> Change:
    """A half inside halves inside halves."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        values = json.loads(path.read_text())
        for _ in range(depth):
            values[half] = {"model_type": "vision-encoder-decoder", "encoder": values[half], "decoder": {}}
        path.write_text(json.dumps(values))

    return change


def raw(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content) and None


def pipe(name: str) -> Change:
    """A pipe that nobody writes into."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def instead(name: str) -> Change:
    """A folder in a file's place."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


ATTACK = Attack("configs that run, ask, fetch or allocate", len(list(cases(random.Random(0)))), run, short=8)
