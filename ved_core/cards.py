"""Model cards: what a model is, how to use it, and how well it did."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ved_core.configs import VisionEncoderDecoderConfig
from ved_core.errors import ConfigError

RESULTS = "eval_results.json"
"""Beside a model: what `ved eval --save` measured, a list of objects with dataset, samples and metrics."""
PERCENT = frozenset({"exact_match", "cer", "wer"})

Result = Mapping[str, Any]

_TEXT = """# {name}

{kind}, for the images and texts that it was trained on.

| | model type | width | layers |
|---|---|---|---|
| encoder | `{encoder[model_type]}` | {encoder[width]} | {encoder[layers]} |
| decoder | `{decoder[model_type]}` | {decoder[width]} | {decoder[layers]} |
{results}
## Use

```python
from ved_flax import ImageToText  # JAX; or: from ved_torch import ImageToText

read = ImageToText.from_pretrained("{repo}")
reading = read("image.png")
reading.text, reading.confidence
```

```python
from transformers import AutoImageProcessor, AutoTokenizer, VisionEncoderDecoderModel

model = VisionEncoderDecoderModel.from_pretrained("{repo}")
processor = AutoImageProcessor.from_pretrained("{repo}")
tokenizer = AutoTokenizer.from_pretrained("{repo}")
pixels = processor(image, return_tensors="pt").pixel_values  # a PIL image in RGB
tokenizer.batch_decode(model.generate(pixels), skip_special_tokens=True)
```
"""


def model_card(config: VisionEncoderDecoderConfig, repo_id: str, results: Sequence[Result] = ()) -> str:
    """The README.md of a model on the hub: its metadata, with every metric, and text."""
    from huggingface_hub import EvalResult, ModelCardData

    name = repo_id.split("/")[-1]
    halves = {part: _described(half) for part, half in (("encoder", config.encoder), ("decoder", config.decoder))}
    measured = [
        EvalResult(
            task_type="image-to-text",
            dataset_type=str(result["dataset"]),
            dataset_name=str(result["dataset"]),
            metric_type=metric,
            metric_value=round(float(value), 6),
        )
        for result in results
        for metric, value in result["metrics"].items()
    ]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-to-text",
        tags=["ved", "jax", "pytorch", "vision-encoder-decoder", *(half["model_type"] for half in halves.values())],
        model_name=name if measured else None,
        eval_results=measured or None,
        metrics=sorted({result.metric_type for result in measured}) or None,
    )
    kind = f"An image-to-text model: a {halves['encoder']['model_type']} encoder with a "
    kind += f"{halves['decoder']['model_type']} decoder"
    text = _TEXT.format(name=name, repo=repo_id, kind=kind, results=_table(results), **halves)
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def read_results(folder: Path) -> list[dict[str, Any]]:
    """What was measured of the model in a folder; nothing where there is no such file. Raises ConfigError."""
    path = folder / RESULTS
    if not path.is_file():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        for result in found:
            str(result["dataset"]), int(result["samples"]), {n: float(v) for n, v in result["metrics"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: holds no results of ved eval ({error}); measure again, or delete it") from None
    return list(found)


def with_result(results: Sequence[Result], new: Result) -> list[Result]:
    """The results with a new one, in the place of that on the same dataset."""
    return [*(result for result in results if result["dataset"] != new["dataset"]), new]


def shown(metric: str, value: float) -> str:
    """A metric as people read it."""
    return f"{value:.2%}" if metric in PERCENT else f"{value:.4g}"


def _described(half: Any) -> dict[str, Any]:
    depths = half.get("depths")
    layers = sum(depths) if depths else half.get("decoder_layers") or half.num_hidden_layers
    return {"model_type": half.model_type, "width": half.hidden_size, "layers": layers}


def _table(results: Sequence[Result]) -> str:
    if not results:
        return ""
    metrics = list(dict.fromkeys(name for result in results for name in result["metrics"]))
    lines = ["", "## Results", "", "| dataset | samples | " + " | ".join(metrics) + " |"]
    lines.append("|---" * (2 + len(metrics)) + "|")
    for result in results:
        cells = [shown(name, result["metrics"][name]) if name in result["metrics"] else "" for name in metrics]
        lines.append(f"| {result['dataset']} | {result['samples']} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])
