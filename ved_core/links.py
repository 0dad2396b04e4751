"""Links in a checkpoint folder that lead out of it: a stranger's archive may have them, and nothing follows them."""

import os
from collections.abc import Iterator
from pathlib import Path

SUFFIXES = (
    *(".json", ".txt", ".model", ".jinja", ".md", ".tiktoken"),
    *(".safetensors", ".bin", ".pt", ".pth", ".msgpack", ".h5", ".ckpt", ".index"),
)
"""How the names of files end that anything here reads."""
FOLDERS = ("orbax_model", ".ved-commit")
"""Folders that are read whole."""


def leaving(folder: Path, but: Path | None = None) -> Path | None:
    """The first link among a checkpoint folder's files that leads out of the folder, or None. One of the Hugging Face
    hub's cache (from snapshots to blobs), or to its blobs, does not count, nor does `but`, which a person named."""
    inside = Path(os.path.realpath(folder))
    allowed = [inside, *_blobs(inside)]
    for link in _links(folder):
        target = Path(os.path.realpath(link))
        if link != but and not any(target.is_relative_to(place) for place in allowed) and not _is_blob(target):
            return link
    return None


def complaint(link: Path) -> str:
    """What to say of such a link."""
    return f"{link}: is a link out of its folder, to {os.readlink(link)!r}, and not followed; put the file itself there"


def _blobs(inside: Path) -> Iterator[Path]:
    """Where the hub's cache has the files that a snapshot links to."""
    for parent in inside.parents:
        if parent.name == "snapshots":
            yield parent.parent / "blobs"


def _is_blob(target: Path) -> bool:
    """Whether a file is the hub's cache's: `hf download --local-dir` has made links to it."""
    from huggingface_hub import constants

    cache = Path(os.path.realpath(constants.HF_HUB_CACHE))
    return target.parent.name == "blobs" and target.parent.parent.parent == cache


def _links(folder: Path) -> Iterator[Path]:
    for entry in os.scandir(folder):
        if entry.name in FOLDERS:
            yield from _below(Path(folder, entry.name))
        elif entry.is_symlink() and entry.name.endswith(SUFFIXES):
            yield Path(folder, entry.name)


def _below(folder: Path) -> Iterator[Path]:
    """A folder itself, and all in it, as far as they are links."""
    if folder.is_symlink():
        yield folder
        return
    for place, folders, files in os.walk(folder):
        yield from (path for name in (*folders, *files) if (path := Path(place, name)).is_symlink())
