"""`DataConfig`: where samples come from and what is done to them."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from ved_core.errors import ConfigError

SPECIAL_TOKENS = ("end", "tokenizer", "none")


def _field(default: Any, doc: str) -> Any:
    return dataclasses.field(default=default, metadata={"doc": " ".join(doc.split())})


@dataclasses.dataclass(kw_only=True)
class DataConfig:
    """Data of a training job. Raises ConfigError for a value that cannot be."""

    source: str = _field(
        "",
        """Training samples: a manifest (.csv or .tsv with a header line, .jsonl; quotes enclose cells in .csv, and are
        characters like others in .tsv) beside its images or a folder with a
        metadata.csv, metadata.tsv or metadata.jsonl; a folder that a Hugging Face dataset was saved to; hub:NAME, a
        dataset on the Hugging Face hub; webdataset shards (.tar) or ArrayRecord files (.array_record, .arrayrecord),
        several by glob pattern or {000..127}.""",
    )
    evaluation_source: str | None = _field(None, "Samples for evaluation, of any kind that `source` may be.")
    subset: str | None = _field(None, "Configuration of a dataset on the hub that has several.")
    split: str | None = _field(None, "Split of a Hugging Face dataset that `source` takes, slices as in train[:90%].")
    evaluation_split: str | None = _field(None, "Split that `evaluation_source` takes.")
    image_column: str | None = _field(
        None,
        """Column, key or, in tar shards, extension of the image. Not set: image or file_name; in tar shards, the
        extension of any image format; in ArrayRecord also jpg, png and image/encoded.""",
    )
    text_column: str | None = _field(
        None,
        """Column, key or, in tar shards, extension of the text, which may be a list of texts that are all right. In
        tar shards also a key of the sample's .json. Not set: text; in tar shards, txt and then text in the .json.""",
    )
    id_column: str | None = _field(
        None, "Column or key that names a sample. Not set: the image's path, the key in the shard, or the row's number."
    )
    image_folder: str | None = _field(None, "Folder that a manifest's image paths start from. Not set: the manifest's.")
    index_folder: str | None = _field(
        None,
        "Where indexes of tar shards are kept between jobs. Not set: ved/shards in $XDG_CACHE_HOME or ~/.cache.",
    )
    max_length: int = _field(64, "Label tokens of a text, end token included; longer texts are cut, and counted.")
    special_tokens: str = _field(
        "end",
        """What stands around a text: end, the end token behind it (the start token is made by shifting); tokenizer,
        what the tokenizer itself adds, as [CLS] and [SEP]; none, for texts that bring their own.""",
    )
    shuffle: bool = _field(True, "Training samples in another order in each epoch.")
    seed: int = _field(0, "What order and augmentation are drawn from.")
    workers: int = _field(0, "Processes that decode images; 0 for threads in the training process.")
    prefetch: int = _field(2, "Batches that each worker has ready.")
    max_bad_share: float = _field(
        0.01,
        """Share of an epoch's samples that may be bad: they are named in the log and left out. Beyond it, counted in
        each process for its part, the job stops.""",
    )
    augment: float = _field(0.0, "Share of training images that are augmented as text lines; 0 for none.")
    augment_rotation: float = _field(1.5, "Largest turn, in degrees.")
    augment_shear: float = _field(0.15, "Largest slant: horizontal shift per unit of height.")
    augment_scale: float = _field(0.1, "Largest relative change of width and height, each.")
    augment_blur: float = _field(0.8, "Largest radius of Gaussian blur, in pixels of the original image.")
    augment_contrast: float = _field(0.3, "Largest relative change of contrast and of brightness, each.")
    augment_noise: float = _field(8.0, "Largest standard deviation of noise, in grey levels of 255.")

    def __post_init__(self) -> None:
        for name, (wanted, fine) in _CHECKS.items():
            value = getattr(self, name)
            if not fine(value):
                raise ConfigError(f"data.{name} = {value!r} should be {wanted}")


Check = tuple[str, Callable[[Any], bool]]


def _whole(least: int, most: int) -> Check:
    return (
        f"a whole number from {least} to {most}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most,
    )


def _number(least: float, most: float) -> Check:
    return (
        f"a number from {least:g} to {most:g}",
        lambda value: (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and math.isfinite(value)
            and least <= value <= most
        ),
    )


_TEXT: Check = "text", lambda value: isinstance(value, str)
_OPTIONAL: Check = (
    "text that is not empty, or null",
    lambda value: value is None or (isinstance(value, str) and value != ""),
)

_CHECKS: dict[str, Check] = {
    "source": _TEXT,
    "evaluation_source": _OPTIONAL,
    "subset": _OPTIONAL,
    "split": _OPTIONAL,
    "evaluation_split": _OPTIONAL,
    "image_column": _OPTIONAL,
    "text_column": _OPTIONAL,
    "id_column": _OPTIONAL,
    "image_folder": _OPTIONAL,
    "index_folder": _OPTIONAL,
    "max_length": _whole(1, 2**20),
    "special_tokens": (f"one of {', '.join(SPECIAL_TOKENS)}", lambda value: value in SPECIAL_TOKENS),
    "shuffle": ("true or false", lambda value: isinstance(value, bool)),
    "seed": _whole(0, 2**32 - 1),
    "workers": _whole(0, 1024),
    "prefetch": _whole(1, 1024),
    "max_bad_share": _number(0, 1),
    "augment": _number(0, 1),
    "augment_rotation": _number(0, 45),
    "augment_shear": _number(0, 1),
    "augment_scale": _number(0, 0.9),
    "augment_blur": _number(0, 20),
    "augment_contrast": _number(0, 0.9),
    "augment_noise": _number(0, 128),
}
