"""What a checkpoint folder would do, found out without loading it: headers are read, and nothing in it is run."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from conversion.formats.files import sniffed
from conversion.formats.torch_bin import pickled_names
from conversion.formats.torch_pickle import verdict
from conversion.listing import architecture, describe
from conversion.source import Source, found_in
from ved_core import digests, json_text, links
from ved_core.configs import CONFIG_FILE
from ved_core.configs.model import read_config
from ved_core.errors import CheckpointError, VedError
from ved_core.generation.config import GenerationConfig
from ved_core.processing import Processor

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
CODE = (".py", ".so", ".pyd", ".dll", ".sh", ".ipynb")
TEXTS = (CONFIG_FILE, "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
"""Where other libraries look for code to run (`auto_map`, `custom_pipelines`)."""
WISHES = ("auto_map", "custom_pipelines", "trust_remote_code")


@dataclasses.dataclass(frozen=True)
class Weights:
    """One format's. `problem`: why it cannot be read, or what of it is missing or unexpected; None where it fits."""

    format: str
    files: Mapping[str, int]
    """Name -> bytes."""
    parameters: int
    tensors: int
    dtypes: list[str]
    problem: str | None


@dataclasses.dataclass(frozen=True)
class Pickle:
    """A file that other libraries unpickle. `refused`: names in it, of which nothing is known to be harmless."""

    file: str
    names: list[str]
    refused: list[str]
    problem: str | None


@dataclasses.dataclass(frozen=True)
class Inspection:
    """A folder's content. `config`: architecture of encoder and decoder; `remote_code`: what asks for code to be run,
    which nothing here does; `digests`: "none", "there", "hold", or what does not."""

    place: str
    config: str | None
    config_problem: str | None
    weights: list[Weights]
    pickles: list[Pickle]
    code: list[str]
    remote_code: list[str]
    tokenizer: bool
    image_processor: bool
    generation: Mapping[str, Any]
    digests: str
    link: str | None

    @property
    def loads(self) -> bool:
        """Whether a model can be loaded from it, as far as can be told without doing so."""
        return self.config is not None and bool(self.weights) and self.weights[0].problem is None and self.link is None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return dataclasses.asdict(self) | {"loads": self.loads}


def inspect(folder: Path, check_digests: bool = False) -> Inspection:
    """Look into a folder; `check_digests`: read every file whole, and compare it. Raises CheckpointError where there is
    no such folder; whatever is wrong inside is part of the result."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    link = links.leaving(folder)
    config = config_problem = None
    try:
        config = architecture(read_config(folder / CONFIG_FILE))
    except VedError as error:
        config_problem = str(error)
    processor = Processor(folder)
    return Inspection(
        place=str(folder),
        config=config,
        config_problem=config_problem,
        weights=[_weights(source) for source in found_in(folder).values()] if link is None else [],
        pickles=list(_pickles(folder)),
        code=sorted(path.relative_to(folder).as_posix() for path in _files(folder) if path.suffix in CODE),
        remote_code=list(_remote_code(folder)),
        tokenizer=processor.has_vocabulary(),
        image_processor=_attempt(processor.describes_images) is True,
        generation=_generation(folder),
        digests=_digests(folder, check_digests),
        link=None if link is None else links.complaint(link),
    )


def _attempt(function: Any) -> Any:
    """What a function returns, or its VedError."""
    try:
        return function()
    except VedError as error:
        return error


def _files(folder: Path) -> Iterator[Path]:
    """A folder's own files and those two levels down; links are not followed."""
    for place, folders, names in os.walk(folder):
        if len(Path(place).relative_to(folder).parts) >= 2:
            folders.clear()
        yield from (path for name in names if (path := Path(place, name)).is_file() and not path.is_symlink())


def _weights(source: Source) -> Weights:
    sizes = {
        path.relative_to(source.folder).as_posix(): path.stat().st_size for path in source.files() if path.is_file()
    }
    try:
        listing = describe(source.place if source.place.is_file() else source.folder, wanted=[source.format.name])
    except VedError as error:
        return Weights(source.format.name, sizes, 0, 0, [], str(error))
    unexpected = [line.name for line in listing.lines if line.role == "unexpected"]
    problems = [f"{what}: {', '.join(names[:4])}" + ", ..." * (len(names) > 4)
                for what, names in (("missing", listing.missing), ("unexpected", unexpected)) if names]  # fmt: skip
    kinds = sorted({line.dtype for line in listing.lines})
    count = listing.count("parameter")
    return Weights(source.format.name, sizes, count, len(listing.lines), kinds, "; ".join(problems) or None)


def _pickles(folder: Path) -> Iterator[Pickle]:
    for path in sorted(_files(folder)):
        if path.suffix in PICKLES or _attempt(lambda path=path: sniffed(path)) == "torch":
            name = path.relative_to(folder).as_posix()
            found = _attempt(lambda path=path: pickled_names(path))
            if isinstance(found, VedError):
                yield Pickle(name, [], [], str(found))
            elif found or path.suffix in PICKLES:  # and no other archive
                yield Pickle(name, found, [each for each in found if verdict(each) == "refused"], None)


def _remote_code(folder: Path) -> Iterator[str]:
    for name in TEXTS:
        try:
            values = json_text.read(folder / name)
        except (OSError, ValueError):
            continue
        yield from (f"{name}: {wish}" for wish in _wishes(values, ""))


def _wishes(value: Any, inside: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name in WISHES and inner:
                yield f"{inside}{name} = {inner}"
            else:
                yield from _wishes(inner, f"{inside}{name}.")


def _generation(folder: Path) -> dict[str, Any]:
    found = _attempt(lambda: GenerationConfig.from_folder(folder))
    if isinstance(found, VedError):
        return {"problem": str(found)}
    return {name: value for name, value in found.to_dict().items() if value is not None}


def _digests(folder: Path, check: bool) -> str:
    try:
        promised = digests.read(folder)
        if promised is None:
            return "none"
        if not check:
            return "there"
        wrong = digests.damaged(folder, promised, promised.files)
        return f"not what was saved: {', '.join(wrong)}" if wrong else "hold"
    except (VedError, OSError) as error:
        return str(error)
