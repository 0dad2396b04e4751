"""A checkpoint's name or path -> a local folder."""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath, PureWindowsPath

from ved_core import links
from ved_core.errors import HubError

TEXT_PATTERNS = ("*.json", "*.txt", "*.model", "*.jinja", "enc_to_dec_proj.safetensors")
"""Config, processor and tokenizer, and what a decoder taken out of a model keeps beside it."""
WEIGHT_PATTERNS = {
    "safetensors": "model*.safetensors",
    "torch": "pytorch_model*.bin",
    "flax": "flax_model*.msgpack",
    "tf": "tf_model*.h5",
    "orbax": "orbax_model/*",
}
"""Format -> its files. Of several formats the first is fetched."""

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".msgpack", ".h5", ".ckpt", ".index")
_TF1_INDEX = ".ckpt.index"
_TF1_ADVICE = (
    "TensorFlow 1 checkpoints (*.ckpt.index) are not read; convert it once with transformers 4, "
    "`from_pretrained(..., from_tf=True).save_pretrained(folder)`, then give that folder"
)


def resolve(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    formats: Collection[str] | None = None,
    allow_patterns: Sequence[str] | None = None,
) -> Path:
    """Return the local folder of a checkpoint, downloading what is missing of it.

    `name_or_path` is a folder, or a name on the Hugging Face hub ("owner/name"), of which the files directly in
    `subfolder` (by default the top) are fetched, at `revision` (a branch, tag or commit): those that match
    `allow_patterns`, by default TEXT_PATTERNS and the weights in one format, the first that is there of `formats` or
    of all. If the hub cannot be reached, what the cache holds is used. A `pathlib.Path` is always a folder, never a
    name. Raises HubError.
    """
    inside = _relative(subfolder)
    if not os.fspath(name_or_path):
        raise HubError("the name of the checkpoint is empty; give a folder or a name on the hub ('owner/name')")
    path = Path(os.path.expanduser(name_or_path))
    if path.is_dir():
        if revision is not None:
            raise HubError(f"{str(path)!r} is a local folder, which has no revision {revision!r}; leave revision out")
        return _checked_folder(path / inside)
    _refuse_paths(name_or_path, path)
    return _checked_folder(_snapshot(str(name_or_path), revision, inside, formats, allow_patterns))


def _relative(subfolder: str | None) -> PurePosixPath:
    text = (subfolder or "").replace("\\", "/")
    inside = PurePosixPath(text)
    if inside.is_absolute() or PureWindowsPath(text).drive or ".." in inside.parts:
        raise HubError(f"subfolder {subfolder!r} leaves the checkpoint; give a relative path without '..'")
    return inside


def _refuse_paths(name_or_path: str | os.PathLike[str], path: Path) -> None:
    """Raise for whatever is meant as a path, so that the hub is never asked for a mistyped folder."""
    text = str(name_or_path)
    if text.endswith(_TF1_INDEX):
        raise HubError(f"{text!r}: {_TF1_ADVICE}")
    if path.exists():
        raise HubError(f"{text!r} is a file; give its folder, {str(path.parent)!r}")
    if (
        not isinstance(name_or_path, str)
        or text.startswith((".", "/", "~"))
        or "\\" in text
        or text.count("/") > 1
        or text.endswith(_WEIGHT_SUFFIXES)
    ):
        raise HubError(f"no such folder: {text!r}; check the path (a name on the hub reads 'owner/name')")


def _checked_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise HubError(f"no such folder: {str(folder)!r}; check subfolder")
    if link := links.leaving(folder):
        raise HubError(links.complaint(link))
    names = [entry.name for entry in folder.iterdir()]
    if any(name.endswith(_TF1_INDEX) for name in names):
        others = [name for name in names if name.endswith(_WEIGHT_SUFFIXES) and not name.endswith(_TF1_INDEX)]
        if not others:
            raise HubError(f"{str(folder)!r}: {_TF1_ADVICE}")
    return folder


def _snapshot(
    name: str,
    revision: str | None,
    inside: PurePosixPath,
    formats: Collection[str] | None,
    patterns: Sequence[str] | None,
) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RevisionNotFoundError

    # The hub's `*` crosses folders: without ignore_patterns, "*.json" would fetch every folder's.
    below = "" if inside == PurePosixPath() else f"{glob.escape(str(inside))}/"

    def fetch(patterns: Sequence[str], *, from_cache: bool) -> Path:
        deeper = any("/" in pattern for pattern in patterns)
        snapshot = snapshot_download(
            name,
            revision=revision,
            allow_patterns=[below + pattern for pattern in patterns],
            ignore_patterns=None if deeper else [f"{below}*/*"],
            local_files_only=from_cache,
        )
        return Path(snapshot) / inside

    def cached() -> Path:
        if patterns is not None:
            return fetch(patterns, from_cache=True)
        missing: Exception = LocalEntryNotFoundError("nothing of it is in the cache")
        for each, pattern in WEIGHT_PATTERNS.items():
            if formats is None or each in formats:
                try:
                    folder = fetch([*TEXT_PATTERNS, pattern], from_cache=True)
                except LocalEntryNotFoundError as error:
                    missing = error
                else:
                    if any(folder.glob(pattern)):
                        return folder
        raise missing

    # snapshot_download asks this too, but waits for ever if a server accepts and never answers.
    try:
        info = HfApi().model_info(name, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except (HFValidationError, RevisionNotFoundError) as error:
        raise HubError(_explain(name, revision, error)) from error
    except Exception as error:  # whatever kept the hub from answering, the cache may still hold the files
        try:
            return cached()
        except LocalEntryNotFoundError:
            raise HubError(_explain(name, revision, error)) from error
    if patterns is None:
        names = [sibling.rfilename for sibling in info.siblings or ()]
        patterns = [*TEXT_PATTERNS, *_weights(names, below, formats)]
    try:
        folder = fetch(patterns, from_cache=False)
    except Exception as error:  # network, disk and server faults, each with a type of its own
        raise HubError(_explain(name, revision, error)) from error
    if not folder.is_dir():
        where = below.rstrip("/") or "its top folder"
        raise HubError(f"{name!r} has no file like {', '.join(patterns)} in {where}; check name and subfolder")
    return folder


def _weights(names: Sequence[str], below: str, formats: Collection[str] | None) -> list[str]:
    """The pattern of the first format of which there are files."""
    for each, pattern in WEIGHT_PATTERNS.items():
        if (formats is None or each in formats) and any(fnmatchcase(name, below + pattern) for name in names):
            return [pattern]
    return []


def _explain(name: str, revision: str | None, error: Exception) -> str:
    """One line: what failed and what to do."""
    from huggingface_hub import errors

    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    match error:
        case errors.HFValidationError():
            return f"{name!r} is neither a folder nor a name on the hub ('owner/name'); check its spelling"
        case errors.OfflineModeIsEnabled():
            return f"{name!r} is not in the cache, and HF_HUB_OFFLINE is set; unset it, or give a local folder"
        case errors.RevisionNotFoundError():
            return f"{name!r} has no revision {revision or 'main'!r}; check the branch, tag or commit"
        case errors.GatedRepoError():
            return f"{name!r} is gated; accept its terms on its page, then `hf auth login` or set HF_TOKEN"
        case errors.RepositoryNotFoundError():
            return f"{name!r} is not on the hub, or is private; check the name, or `hf auth login` or set HF_TOKEN"
        case _ if status in (401, 403):
            return f"{name!r}: the hub refused access ({status}); check your token: `hf auth login` or HF_TOKEN"
        case _ if status is not None:
            return f"{name!r}: the hub answered with status {status}; try again later, or give a local folder"
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{name!r} is no folder here, and could not be fetched ({reason}); check path, network and HF_ENDPOINT"
