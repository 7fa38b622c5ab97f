"""Finds a scorer's weights: a local folder or file, or a repository of the Hugging Face hub at a revision."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

#: owner/name, as the Hugging Face hub spells it.
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

#: Seconds to wait for the hub's first answer.
HUB_TIMEOUT = 10.0

#: Files of a repository that a model of transformers needs.
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")

#: Files among these that no model here reads: the same weights once more in half precision, as diffusers names them.
VARIANTS = ("*.fp16.safetensors", "*.fp16-*.safetensors")


def folder(
    name: str, *, revision: str | None = None, files: Sequence[str] = MODEL_FILES, what: str = "weights"
) -> Path:
    """Return a local folder, or the hub repository `name` (only `files` of it), downloaded or from the hub's cache.

    Never waits long for a hub that cannot be reached. ValueError names `what` is missing, where it was looked for, and
    what to do.
    """
    local = Path(name).expanduser().absolute()
    if local.is_dir():
        return local
    if not _is_hub_name(name):
        raise ValueError(f"no {what} {name!r}: there is no folder {local}; give a folder, or owner/name on the hub")
    import huggingface_hub

    reachable, reason = _hub_answers()
    try:
        path = huggingface_hub.snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(files),
            ignore_patterns=list(VARIANTS),
            local_files_only=not reachable,
        )
    except OSError as error:
        raise ValueError(_missing(what, name, name, revision, reason or str(error), "a local folder")) from error
    return Path(path)


def file(name: str, filename: str, *, revision: str | None = None, what: str = "weights") -> Path:
    """Return a local file `name`, or `filename` in a local folder or hub repository `name`. Errors as `folder`."""
    local = Path(name).expanduser().absolute()
    if local.is_file():
        return local
    if local.is_dir():
        if (local / filename).is_file():
            return local / filename
        raise ValueError(f"no {what}: the folder {local} holds no {filename}; give the file itself, or its folder")
    if not _is_hub_name(name):
        raise ValueError(f"no {what} {name!r}: there is no file {local}; give a file, or owner/name on the hub")
    import huggingface_hub

    reachable, reason = _hub_answers()
    try:
        return Path(huggingface_hub.hf_hub_download(name, filename, revision=revision, local_files_only=not reachable))
    except OSError as error:
        raise ValueError(
            _missing(what, f"{name}/{filename}", name, revision, reason or str(error), "a local file")
        ) from error


def _is_hub_name(name: str) -> bool:
    # "runs/first" looks like a repository, but a folder runs/ here says that a local path was meant.
    return bool(HUB_NAME.fullmatch(name)) and Path(name).parts[0] not in (".", "..") and not Path(name).parent.is_dir()


def _hub_answers() -> tuple[bool, str]:
    """Return whether the hub can be reached, and if not, why."""
    import huggingface_hub
    from huggingface_hub.utils import get_session

    try:
        get_session().head(huggingface_hub.constants.ENDPOINT, timeout=HUB_TIMEOUT)
    except Exception as error:  # the client's own errors, by version: requests, httpx, or offline mode
        return False, f"the hub cannot be reached ({error}) and its cache here does not have it"
    return True, ""


def _missing(what: str, name: str, repository: str, revision: str | None, why: str, local: str) -> str:
    where = f"revision {revision!r} of " if revision else ""
    return f"no {what} {name!r}: {where}hub repository {repository}: {why}; or give {local} in its place"
