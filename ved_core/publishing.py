"""`push`: files to a repository on the Hugging Face hub, as one commit."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ved_core.cards import Result, model_card, read_results
from ved_core.errors import HubError

CARD = "README.md"


def push(
    repo_id: str,
    save: Callable[[Path], None],
    *,
    card: Callable[[], str] | None = None,
    replace_card: bool = False,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload with ved",
) -> str:
    """Commit what `save` writes into a folder to "owner/name", which is made where it is not there, and return the
    commit's address.

    `card`: makes README.md, written where the repository has none, or with `replace_card`; `private`: of a repository
    that is made; `token`: the stored one or HF_TOKEN by default; `revision`: a branch; `create_pr`: propose the commit
    instead. Files that are there and are not written stay. Raises HubError, and what `save` raises before anything is
    sent.
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory(prefix="ved-push-") as folder:
        save(Path(folder))
        api = HfApi(token=token)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            if card is not None and (replace_card or not api.file_exists(repo_id, CARD)):
                Path(folder, CARD).write_text(card(), encoding="utf-8")
            done = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
            )
        except Exception as error:  # network, disk and server faults, each with a type of its own
            raise HubError(_explain(repo_id, revision, error)) from error
    return str(done)


def push_model(
    model: Any,
    repo_id: str,
    *,
    processor: Any = None,
    format: str = "safetensors",
    max_shard_size: int | str | None = None,
    results: Sequence[Result] | None = None,
    **hub: Any,
) -> str:
    """`push` of a model of either framework, with its processor where it is given, and a model card. `results`: what
    the card says was measured, by default what `ved eval --save` left in the processor's folder."""

    def save(folder: Path) -> None:
        model.save_pretrained(folder, format=format, max_shard_size=max_shard_size)
        if processor is not None:
            processor.save_pretrained(folder)

    if results is None:
        results = [] if processor is None else read_results(processor.folder)
    return push(repo_id, save, card=lambda: model_card(model.config, repo_id, results), **hub)


def _explain(name: str, revision: str | None, error: Exception) -> str:
    """One line: what failed and what to do."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    match error:
        case errors.HFValidationError():
            return f"{name!r} is no name on the hub ('owner/name'); check its spelling"
        case errors.OfflineModeIsEnabled():
            return f"{name!r}: nothing is pushed while HF_HUB_OFFLINE is set; unset it"
        case errors.RevisionNotFoundError():
            return f"{name!r} has no branch {revision or 'main'!r}; make it first, or leave revision out"
        case _ if status in (401, 403, 404):
            return f"{name!r}: the hub refused ({status}); `hf auth login` or set HF_TOKEN, with a token that may write"
        case _ if status is not None:
            return f"{name!r}: the hub answered with status {status}; try again later"
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{name!r} could not be pushed to ({reason}); check network and HF_ENDPOINT"
