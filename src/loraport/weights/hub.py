"""Models on the Hugging Face Hub: only the network's own files are fetched, into the Hub's usual cache.

`org/repo`, `org/repo@revision`, `org/repo:folder` or `org/repo:file`. HF_HOME, HF_TOKEN and HF_HUB_OFFLINE count.
"""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import Any

from loraport.errors import InputError
from loraport.weights.places import INDEX, PICKLES, SAFETENSORS, choose, shard_set

_HUB_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?(:(?P<inside>[^:\\]+))?")


def looks_like_hub_id(where: str) -> bool:
    """Whether a string that is no path can name a Hub model; `folder/name.safetensors` is a missing file instead."""
    match = _HUB_ID.fullmatch(where)
    return match is not None and not match["repo"].lower().endswith((*SAFETENSORS, *PICKLES, ".gguf", ".json"))


def fetch(where: str) -> Path:
    """The local file or folder of a Hub model, downloaded where it is not in the cache yet.

    Raises InputError where huggingface_hub is not installed, the repository or the network cannot be reached, the model
    is not in the cache in offline mode, or the repository holds several models and none is named.
    """
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise InputError(
            f"{where} does not exist here; to fetch it from the Hub: pip install 'loraport[hub]' (huggingface_hub)"
        ) from error
    match = _HUB_ID.fullmatch(where)
    if match is None:
        raise InputError(f"{where!r} is no Hub id; write org/repo, org/repo@revision or org/repo:folder")
    repo, revision, inside = match["repo"], match["revision"], (match["inside"] or "").strip("/")
    if ".." in inside.split("/"):
        raise InputError(f"{where!r} leaves the repository; name a folder or file inside it")
    try:
        if hub.constants.HF_HUB_OFFLINE:
            root = _local_copy(hub, repo, revision)
        else:
            wanted = _wanted(hub, repo, revision, inside, where)
            root = Path(hub.snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except InputError:
        raise
    except Exception as error:  # the Hub's client raises its own, requests' or httpx's errors
        try:
            root = _local_copy(hub, repo, revision)
        except Exception:
            raise InputError(
                f"{where} is neither a path here nor a Hub model that can be reached ({_first_line(error)}); check the "
                "name, the network and, for gated models, `hf auth login`"
            ) from error
    if not (root / inside).exists():
        raise InputError(f"{where}: {inside!r} is not in the local copy of {repo}; fetch it once with network access")
    return root / inside


def _local_copy(hub: Any, repo: str, revision: str | None) -> Path:
    return Path(hub.snapshot_download(repo, revision=revision, local_files_only=True))


def _wanted(hub: Any, repo: str, revision: str | None, inside: str, where: str) -> list[str]:
    """The files to download, as patterns that match nothing else; ambiguity is refused before a byte is fetched."""
    files: list[str] = hub.HfApi().list_repo_files(repo, revision=revision)
    if inside.lower().endswith((*SAFETENSORS, *PICKLES, INDEX)):
        folder, _, name = inside.rpartition("/")
        start = f"{folder}/" if folder else ""
        siblings = [file.removeprefix(start) for file in files if file.startswith(start)]
        if name not in siblings:
            raise InputError(f"{repo} has no file {inside!r}; its weights: {', '.join(_weights(files)) or 'none'}")
        chosen = _stem_mates(name, siblings) if name.endswith(INDEX) else shard_set(name, siblings, where)
    else:
        start = f"{inside}/" if inside else ""
        if not any(file.startswith(start) for file in files):
            raise InputError(f"{repo} has no folder {inside!r}; its weights: {', '.join(_weights(files)) or 'none'}")
        place = choose(
            [file.removeprefix(start) for file in files if file.startswith(start)], where, "/" if inside else ":"
        )
        start += f"{place.folder}/" if place.folder else ""
        chosen = (*place.names, *([place.index] if place.index else []))
    names = [start + name for name in chosen] + [start + "config.json", "model_index.json"]
    return [glob.escape(name) for name in names]


def _stem_mates(index: str, siblings: list[str]) -> tuple[str, ...]:
    stem = index.removesuffix(INDEX)
    return (index, *(name for name in siblings if name.startswith(f"{stem}-") and name.endswith(SAFETENSORS)))


def _weights(files: list[str]) -> list[str]:
    return [file for file in files if file.endswith((*SAFETENSORS, *PICKLES))][:20]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
