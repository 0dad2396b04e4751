"""Samples of a Hugging Face dataset, saved to disk or by its name on the hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ved_core.errors import DataError, SampleError
from ved_flax.train.data.config import DataConfig
from ved_flax.train.data.manifest import IMAGE_COLUMNS
from ved_flax.train.data.samples import Sample, digest, texts_of

if TYPE_CHECKING:
    from datasets import Dataset

HUB = "hub:"
_LOOKED_AT = 1000
"""Texts that the fingerprint is made of, evenly spread."""


class HuggingFaceSource:
    """A dataset in Arrow files, which are mapped into memory, not read. Raises DataError."""

    def __init__(self, source: str, config: DataConfig, split: str | None) -> None:
        self.source, self.split = source, split
        dataset = _from_hub(source, config, split) if source.startswith(HUB) else _from_disk(source, split)
        self.folder = Path(config.image_folder) if config.image_folder else None
        self.image = next((n for n in _wanted_images(config) if n in dataset.column_names), "")
        self.text, self.id = config.text_column or "text", config.id_column
        for field, name in (("image", self.image), ("text", self.text), ("id", self.id)):
            if name is not None and name not in dataset.column_names:
                wanted = " or ".join(_wanted_images(config)) if field == "image" else name
                raise DataError(
                    f"{source}: has the columns {', '.join(dataset.column_names)}, and no {wanted}; "
                    f"set data.{field}_column"
                )
        if not len(dataset):
            raise DataError(f"{source}: holds no rows")
        self.dataset = _stored_images(dataset, self.image)
        # The library's own fingerprint changes with the times of files, and so from one machine to another.
        looked_at = sorted({place * (len(dataset) - 1) // _LOOKED_AT for place in range(_LOOKED_AT + 1)})
        texts = dataset.select_columns([self.text]).select(looked_at)[self.text]
        self.fingerprint = digest(str(len(dataset)), *map(repr, texts))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        try:
            row = self.dataset[index]
            name = self.name(index) if self.id is None else str(row[self.id])
            return Sample(name, self._image(row[self.image]), texts_of(row[self.text]))
        except SampleError as error:
            raise SampleError(f"{self.source}, row {index}: {error}") from None
        except Exception as error:  # Arrow's own, for damaged files
            raise SampleError(f"{self.source}, row {index}: {type(error).__name__}: {error}") from error

    def name(self, index: int) -> str:
        return str(index)

    def _image(self, cell: Any) -> Any:
        if isinstance(cell, dict):  # the stored form of datasets.Image
            cell = cell.get("bytes") or cell.get("path")
            return Path(cell) if isinstance(cell, str) else self._content(cell)
        if isinstance(cell, str):
            if self.folder is None:
                raise SampleError(f"{self.image} holds paths; set data.image_folder to the folder that they start from")
            return self.folder / cell
        return self._content(cell)

    def _content(self, cell: Any) -> Any:
        if cell is None:
            raise SampleError(f"no {self.image}")
        return cell if isinstance(cell, bytes) else np.asarray(cell, np.uint8)


def _wanted_images(config: DataConfig) -> tuple[str, ...]:
    return (config.image_column,) if config.image_column else IMAGE_COLUMNS


def _stored_images(dataset: "Dataset", column: str) -> "Dataset":
    """The dataset with images as they are stored: they are decoded in one place, `ved_core.images`."""
    import datasets

    if isinstance(dataset.features[column], datasets.Image):
        return dataset.cast_column(column, datasets.Image(decode=False))
    return dataset


def _from_disk(source: str, split: str | None) -> "Dataset":
    datasets = _library()
    try:
        found = datasets.load_from_disk(source)
    except Exception as error:  # it has no errors of its own
        raise DataError(f"{source}: cannot be read as a saved dataset ({type(error).__name__}: {error})") from error
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise DataError(f"{source}: has the splits {', '.join(found)}; set data.split to one of them, not {split}")
        return found[split]
    if split is not None and str(found.split) != split:
        raise DataError(f"{source}: was saved as one split ({found.split}); leave data.split out")
    return found


def _from_hub(source: str, config: DataConfig, split: str | None) -> "Dataset":
    datasets = _library()
    name = source.removeprefix(HUB)
    if split is None:
        raise DataError(f"{source}: set data.split (data.evaluation_split), as in train or test[:1000]")
    try:
        return datasets.load_dataset(name, config.subset, split=split)
    except Exception as error:  # of the network, the hub, the files
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise DataError(
            f"{source}: cannot be loaded ({type(error).__name__}: {reason}); check its name, data.subset and "
            "data.split, or download it elsewhere, save it with save_to_disk and name the folder"
        ) from error


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"Hugging Face datasets need the package datasets ({error}): pip install 'ved[train]'"
        ) from error
    return datasets
