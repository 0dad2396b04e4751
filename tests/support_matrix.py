"""The tables of README and docs, made from the code. `python -m tests.support_matrix` rewrites them."""

from collections.abc import Mapping

import ved_flax.decoders
import ved_flax.encoders
import ved_torch.decoders
import ved_torch.encoders
from conversion.formats import FORMATS
from tests import exit_table, options_table, settings_table, speed_table, tpu_table
from tests.cases import ROOT
from ved_core import configs

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]

PUBLISHED = {
    "vit": "microsoft/trocr-base-handwritten",
    "deit": "microsoft/trocr-small-handwritten",
    "beit": "microsoft/beit-base-patch16-224",
    "swin": "microsoft/swin-tiny-patch4-window7-224",
    "donut-swin": "naver-clova-ix/donut-base",
    "swinv2": "microsoft/swinv2-tiny-patch4-window8-256",
    "dinov2": "facebook/dinov2-base",
    "dinov2_with_registers": "facebook/dinov2-with-registers-base",
    "bart": "facebook/bart-base",
    "bert": "kha-white/manga-ocr-base",
    "camembert": "almanach/camembert-base",
    "distilbert": "distilbert/distilbert-base-uncased",
    "electra": "google/electra-small-generator",
    "gpt2": "nlpconnect/vit-gpt2-image-captioning",
    "mbart": "naver-clova-ix/donut-base",
    "roberta": "FacebookAI/roberta-base",
    "trocr": "microsoft/trocr-base-handwritten",
    "xlm-roberta": "FacebookAI/xlm-roberta-base",
}
"""model_type -> a well-known checkpoint that has it, as a whole model where there is one."""


def rows(part: str, known: Mapping[str, object], flax: Mapping[str, object], torch: Mapping[str, object]) -> list[str]:
    """One line for each architecture that has a config."""
    marks = ((name, ["yes" if name in registry else "no" for registry in (flax, torch)]) for name in known)
    return [f"| {part} | `{name}` | `{PUBLISHED[name]}` | {' | '.join(answers)} |" for name, answers in marks]


def matrix() -> str:
    """The table and the line below it."""
    lines = ["| part | model_type | as in | Flax | PyTorch |", "|---|---|---|---|---|"]
    lines += rows("encoder", configs.ENCODERS, ved_flax.encoders.ENCODERS, ved_torch.encoders.ENCODERS)
    lines += rows("decoder", configs.DECODERS, ved_flax.decoders.DECODERS, ved_torch.decoders.DECODERS)
    stored = [f"{each.title} (`{each.weights}`)" for each in FORMATS.values()]
    return "\n".join([*lines, "", f"Weights are read and written as {', '.join(stored)}; in one file or several."])


def conversion() -> str:
    """What `python benchmarks/conversion.py --write` last measured."""
    return (ROOT / "benchmarks" / "results" / "conversion.md").read_text(encoding="utf-8").strip()


TABLES = {
    "support matrix": matrix,
    "decoding options": options_table.table,
    "training settings": settings_table.table,
    "conversion benchmark": conversion,
    "TPU": tpu_table.table,
    "exit statuses": exit_table.table,
    "speed": speed_table.table,
}
"""The name of a table in a page's comments -> what makes it."""


def rewritten(text: str) -> str:
    """A page's text with its tables as they should be."""
    for name, make in TABLES.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, found, rest = text.partition(begin)
        if found:
            text = f"{before}{begin}\n{make()}\n{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(rewritten(page.read_text(encoding="utf-8")), encoding="utf-8")
