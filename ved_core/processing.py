"""Images -> pixel_values and ids -> text, by the image processor and the tokenizer of a checkpoint."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ved_core import digests, json_text, links
from ved_core.errors import CheckpointError, ProcessorError
from ved_core.images import ImageSource, load_image
from ved_core.publishing import push

_IMAGE_FILE = "preprocessor_config.json"
_NESTED_FILE = "processor_config.json"  # transformers 5: the image processor is one of its entries
_VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "*.tiktoken")


_TEXTS = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
_NOT_OURS = {digests.FILE, "config.json", "generation_config.json"}


class Processor:
    """What a checkpoint's folder says about its input images and its output text.

    `image_processor` and `tokenizer` are loaded when first used, so that a folder may lack the one that is not needed;
    either may be assigned, to replace the folder's own.
    """

    def __init__(self, folder: Path, check_digests: bool | None = None) -> None:
        self.folder = folder
        self.check_digests = check_digests

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], *, check_digests: bool | None = None) -> Self:
        """Take a local folder. Raises ProcessorError if there is none; its files are read on first use, and compared
        with the folder's ved_digests.json unless `check_digests` or the environment's VED_CHECK_DIGESTS says no."""
        path = Path(folder)
        if not path.is_dir():
            raise ProcessorError(f"no such folder: {str(path)!r}; resolve a name on the hub to a local folder first")
        if link := links.leaving(path):
            raise ProcessorError(links.complaint(link))
        return cls(path, check_digests)

    @cached_property
    def image_processor(self) -> Any:
        """transformers' image processor, with its PIL backend. Raises ProcessorError."""
        if not self.describes_images():
            raise self._missing("image processor", _IMAGE_FILE)
        return self._load("image processor", _IMAGE_FILE, "AutoImageProcessor", backend="pil")

    @cached_property
    def tokenizer(self) -> Any:
        """transformers' tokenizer. Raises ProcessorError."""
        if not self.has_vocabulary():  # transformers would make up a tokenizer without any word
            raise self._missing("tokenizer", "tokenizer.json")
        return self._load("tokenizer", "tokenizer.json", "AutoTokenizer")

    def pixel_values(self, images: Sequence[ImageSource] | NDArray[Any]) -> NDArray[np.float32]:
        """Return a list of images, or an array of rank 4, ready for the encoder: float32 (B, C, H, W).

        Raises ImageError, ProcessorError.
        """
        is_path = isinstance(images, (str, bytes, os.PathLike))
        if is_path or not hasattr(images, "__len__") or getattr(images, "ndim", 4) != 4:
            raise ProcessorError(f"a list of images is wanted, not one {type(images).__name__}; put it in a list")
        if len(images) == 0:
            raise ProcessorError("no images: the list is empty")
        loaded = [load_image(image) for image in images]
        try:
            arrays = self.image_processor(images=loaded)["pixel_values"]
        except ProcessorError:
            raise
        except Exception as error:
            raise ProcessorError(f"the image processor of {str(self.folder)!r} failed: {_reason(error)}") from error
        shapes = [np.shape(array) for array in arrays]
        if len(shapes) != len(loaded) or any(len(shape) != 3 for shape in shapes):
            raise ProcessorError(
                f"the image processor of {str(self.folder)!r} makes arrays of shapes {sorted(set(shapes))} from "
                f"{len(loaded)} images, not one (C, H, W) each; it is not made for this kind of model"
            )
        if len(set(shapes)) > 1:
            raise ProcessorError(
                f"the images have different processed sizes {sorted(set(shapes))} and cannot be one batch; "
                f"give them one by one, or a fixed height and width as 'size' in {_IMAGE_FILE}"
            )
        return np.stack(arrays).astype(np.float32, copy=False)

    def picture(self, pixels_CHW: NDArray[Any]) -> NDArray[np.uint8]:
        """An encoder's input as an image (H, W, 3): what is left of it after resizing and padding."""
        settings = self.image_processor
        pixels = np.asarray(pixels_CHW, np.float32).transpose(1, 2, 0)
        if getattr(settings, "do_normalize", False):
            pixels = pixels * np.asarray(settings.image_std, np.float32) + np.asarray(settings.image_mean, np.float32)
        if getattr(settings, "do_rescale", False):
            pixels = pixels / settings.rescale_factor
        pixels = np.rint(pixels.clip(0, 255)).astype(np.uint8)
        return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels

    def encode(self, text: str) -> NDArray[np.int64]:
        """Return a prompt's ids (1, T), without added special tokens. Raises ProcessorError."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise ProcessorError(f"prompt {text!r} has no tokens; leave it out")
        return np.array([ids], np.int64)

    def decode(self, ids: ArrayLike, *, skip_special_tokens: bool = True) -> list[str]:
        """Return the text of each row of ids, integers (B, T), without special tokens (Donut's tags are such) unless
        they are wanted. Raises ProcessorError."""
        try:
            array = np.asarray(ids)
        except ValueError as error:
            raise ProcessorError("ids must be rows of one length; pad the shorter ones") from error
        if array.ndim != 2 or array.dtype.kind not in "ui":
            raise ProcessorError(f"ids must be integers of shape (B, T), not {array.dtype} of shape {array.shape}")
        if len(array) == 0:  # batch_decode would take no row for one empty row
            return []
        if array.size:
            self._refuse_outside_vocabulary(array)
        return list(self.tokenizer.batch_decode(array.tolist(), skip_special_tokens=skip_special_tokens))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the image processor and the tokenizer, or the one that there is. Raises ProcessorError if neither."""
        parts = []
        if "image_processor" in self.__dict__ or self.describes_images():
            parts.append(self.image_processor)
        if "tokenizer" in self.__dict__ or self.has_vocabulary():
            parts.append(self.tokenizer)
        if not parts:
            raise self._missing("image processor or tokenizer", f"{_IMAGE_FILE} or tokenizer.json")
        for part in parts:
            part.save_pretrained(str(folder))
        digests.refresh(Path(folder), _texts(Path(folder)))

    def push_to_hub(self, repo_id: str, **hub: Any) -> str:
        """save_pretrained to "owner/name" on the Hugging Face hub; `hub`: options of `ved_core.publishing.push`.
        Returns the commit's address. Raises HubError, ProcessorError."""
        return push(repo_id, self.save_pretrained, **hub)

    def _refuse_outside_vocabulary(self, ids: NDArray[Any]) -> None:
        low, high = int(ids.min()), int(ids.max())
        if low < 0:
            hint = "; replace the -100 of ignored labels by the padding id" if low == -100 else ""
            raise ProcessorError(f"id {low} is negative and stands for no token{hint}")
        size = len(self.tokenizer)
        if high >= size and high > (last := max(self.tokenizer.get_vocab().values())):  # ids may have gaps
            raise ProcessorError(
                f"id {high} is outside of the vocabulary (0 to {last}) of {str(self.folder)!r}; "
                "is this the tokenizer of the model that made it?"
            )

    def describes_images(self) -> bool:
        """Whether the folder has an image processor. Raises ProcessorError where that cannot be told."""
        nested = self.folder / _NESTED_FILE
        if (self.folder / _IMAGE_FILE).is_file() or not nested.is_file():
            return (self.folder / _IMAGE_FILE).is_file()
        try:
            return "image_processor" in json_text.read(nested)
        except (OSError, ValueError, TypeError) as error:
            raise ProcessorError(f"{str(nested)!r} cannot be read ({error}); copy or download it again") from error

    def has_vocabulary(self) -> bool:
        """Whether the folder has a tokenizer."""
        return any(path.is_file() for pattern in _VOCABULARY_FILES for path in self.folder.glob(pattern))

    def _check(self) -> None:
        """Raise ProcessorError where a file is not what was saved, or a pipe, which would be waited for."""
        for name in _texts(self.folder):
            path = self.folder / name
            if path.exists() and not path.is_file() and not path.is_dir():
                raise ProcessorError(f"{path}: is no regular file; copy it from the checkpoint that it comes from")
        if not digests.wanted(self.check_digests):
            return
        try:
            wrong = digests.damaged(self.folder, digests.read(self.folder), _texts(self.folder))
        except (CheckpointError, OSError) as error:
            raise ProcessorError(f"{error}") from error
        if wrong:
            raise ProcessorError(f"{self.folder / wrong[0]}: is not what was saved; {digests.ADVICE}")

    def _missing(self, part: str, file: str) -> ProcessorError:
        return ProcessorError(
            f"{str(self.folder)!r} has no {part} ({file}); copy it there from the checkpoint that the model comes from"
        )

    def _load(self, part: str, file: str, auto_class: str, **options: Any) -> Any:
        self._check()
        try:
            with without_torch_advice():
                import transformers

                from_pretrained = getattr(transformers, auto_class).from_pretrained
                return from_pretrained(str(self.folder), local_files_only=True, trust_remote_code=False, **options)
        except Exception as error:  # transformers and tokenizers have no common error for a file they cannot use
            raise ProcessorError(
                f"the {part} of {str(self.folder)!r} cannot be loaded ({_reason(error)}); it needs a {file} of a class "
                "that the installed transformers has: code that comes with a checkpoint is never run"
            ) from error


def _texts(folder: Path) -> list[str]:
    """The files of a folder that image processors and tokenizers may read, by name."""
    return sorted(path.name for pattern in _TEXTS for path in folder.glob(pattern) if path.name not in _NOT_OURS)


def _reason(error: Exception) -> str:
    """The first sentence: transformers goes on with advice that does not apply here."""
    return " ".join(f"{type(error).__name__}: {error}".split()).split(". ")[0]


@contextmanager
def without_torch_advice() -> Iterator[None]:
    """Drop the message that transformers logs, at each of its two imports of itself, if there is no PyTorch."""

    def keep(record: logging.LogRecord) -> bool:
        return "PyTorch was not found" not in record.getMessage()

    logger = logging.getLogger("transformers")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
