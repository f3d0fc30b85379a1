"""Models and LoRAs on the Hugging Face Hub: only their own files are fetched, into the Hub's usual cache.

`org/repo`, `org/repo@revision`, `org/repo:folder` or `org/repo:file`. HF_HOME, HF_TOKEN and HF_HUB_OFFLINE count.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import Any

from loraport.errors import InputError
from loraport.files.adapters.peft_fields import CONFIG_NAME, WEIGHTS_NAME
from loraport.files.models.locate import ShardFilter, choose, read_index, shard_set
from loraport.files.models.shards import SAFETENSORS, WEIGHTS, index_of, sets_among

PATIENCE = 10.0
"""Seconds to wait for the Hub's first answer."""
_HUB_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?(:(?P<inside>[^:\\]+))?")


def looks_like_hub_id(where: str) -> bool:
    """Return whether a string that is not a path can name a Hub model; `folder/name.safetensors` is a missing file."""
    match = _HUB_ID.fullmatch(where)
    return match is not None and not match["repo"].lower().endswith((*WEIGHTS, ".json"))


def fetch(where: str, needed: ShardFilter | None = None) -> Path:
    """Return the local file or folder of a Hub model, downloaded where it is not in the cache yet.

    Of shards with an index only those that are `needed` are fetched, where that is given: the index comes first. A
    broken connection is taken up again where it broke; after a kill, finished files are there and a half one begins
    anew (so huggingface_hub does it).
    Raises InputError where huggingface_hub is not installed, the repository or the network cannot be reached, the model
    is not in the cache in offline mode, or the repository holds several models and none is named.
    """
    hub, repo, revision, inside = _parsed(where)

    def chosen(files: list[str]) -> list[str]:
        wanted = _wanted(files, repo, inside, where)
        indexes = [name for name in wanted if index_of(name.rpartition("/")[2])]
        if needed is None or len(indexes) != 1:
            return wanted
        shards = needed(read_index(Path(hub.hf_hub_download(repo, indexes[0], revision=revision))))
        return [name for name in wanted if not name.lower().endswith(WEIGHTS) or name.rpartition("/")[2] in shards]

    root = _snapshot(hub, repo, revision, where, chosen)
    if not (root / inside).exists():
        raise InputError(f"{where}: {inside!r} is not in the local copy of {repo}; fetch it once with network access")
    return root / inside


@dataclass(frozen=True)
class Download:
    """What opening a model would fetch: those of its files that are not in the cache, each with its size."""

    where: str
    sizes: Mapping[str, int]

    @property
    def bytes(self) -> int:
        """Bytes of all these files."""
        return sum(self.sizes.values())


@dataclass(frozen=True)
class HubFiles:
    """The files of a model on the Hub, by the repository's listing: the size of each, and its place in the cache."""

    repo: str
    revision: str | None
    sizes: Mapping[str, int]
    cached: Mapping[str, Path]
    has_index: bool
    """Whether an index lists its shards, so that only those that are needed are fetched."""

    @property
    def missing(self) -> dict[str, int]:
        """The files that are not in the cache."""
        return {name: size for name, size in self.sizes.items() if name not in self.cached}


def files_on_hub(where: str) -> HubFiles | None:
    """Return the files of a model on the Hub; None offline and where it cannot be asked.

    Only the repository's listing is read. Raises InputError where it holds no model, or several and none is named.
    """
    return _listed(where, lambda files, repo, inside: _wanted(files, repo, inside, where))


def lora_files_on_hub(where: str) -> HubFiles | None:
    """Return the same of a LoRA on the Hub. Raises InputError where it holds none, or several and none is named."""
    return _listed(where, lambda files, repo, inside: _beside(_lora_file(files, repo, inside, where)))


def _listed(where: str, chosen: Callable[[list[str], str, str], Iterable[str]]) -> HubFiles | None:
    hub, repo, revision, inside = _parsed(where)
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or _refusal(hub) is not None:
        return None
    try:
        tree = hub.HfApi().list_repo_tree(repo, recursive=True, revision=revision)
        sizes = {file.path: file.size for file in tree if getattr(file, "size", None) is not None}
    except Exception:  # as in _snapshot: the client raises many kinds, and fetching says what is wrong
        return None
    wanted = {name: sizes[name] for name in chosen(list(sizes), repo, inside) if name in sizes}
    found = {name: hub.try_to_load_from_cache(repo, name, revision=revision) for name in wanted}
    cached = {name: Path(place) for name, place in found.items() if isinstance(place, str)}
    indexes = [name for name in wanted if index_of(name.rpartition("/")[2])]
    return HubFiles(repo, revision, wanted, cached, len(indexes) == 1)


def header_on_hub(repo: str, name: str, revision: str | None) -> dict[str, Any]:
    """Return the header of a safetensors file on the Hub as its JSON has it, by range requests for the header alone.

    Raises InputError where it cannot be had.
    """
    import huggingface_hub as hub

    try:
        header = hub.HfApi().parse_safetensors_file_metadata(repo, name, revision=revision)
    except Exception as error:  # as in _snapshot
        raise InputError(f"{repo}: the header of {name} cannot be read from the Hub ({_first_line(error)})") from error
    entries: dict[str, Any] = {
        key: {"dtype": one.dtype, "shape": list(one.shape), "data_offsets": list(one.data_offsets)}
        for key, one in header.tensors.items()
    }
    return {**entries, "__metadata__": dict(header.metadata)}


def listing(where: str) -> tuple[str, ...] | None:
    """Return the names of a repository's files, `org/repo` or `org/repo@revision`; offline, of those that are here.

    None where there is no answer: no client, no network and no local copy, or no such repository.
    """
    try:
        hub, repo, revision, _ = _parsed(where)
        from huggingface_hub import constants

        if not constants.HF_HUB_OFFLINE and _refusal(hub) is None:
            return tuple(hub.HfApi().list_repo_files(repo, revision=revision))
    except InputError:
        return None
    except Exception:  # the Hub's client raises its own, requests' or httpx's errors
        pass
    try:
        root = _local_copy(hub, repo, revision)
    except Exception:  # likewise: there is no copy
        return None
    return tuple(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


PARTS = ("scheduler", "guider", "tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "transformer",
         "transformer_2", "unet")  # fmt: skip
"""The folders of a pipeline that sample latents."""
PLAIN = (".safetensors", ".json", ".txt", ".model", ".jinja")
"""What of them is fetched: no second copies in other formats."""


def fetch_pipeline(where: str, *, whole: bool = False) -> Path:
    """Return the local folder of a diffusers pipeline on the Hub, `org/repo` or `org/repo@revision`.

    Without the weights of its VAE, which makes pictures of latents, unless it is asked for as a whole.
    Raises InputError as `fetch` does.
    """
    hub, repo, revision, inside = _parsed(where)
    if inside:
        raise InputError(f"{where}: a pipeline is a whole repository; write {repo} without {inside!r}")
    parts = (*PARTS, "vae") if whole else PARTS

    def wanted(files: list[str]) -> list[str]:
        own = [file for file in files if file.partition("/")[0] in parts and file.endswith(PLAIN)]
        variants = {file for file in own if ".fp16." in file and file.replace(".fp16.", ".") in own}
        beside = ["model_index.json", *([] if whole else ["vae/config.json"])]
        return [file for file in files if file in beside or (file in own and file not in variants)]

    return _snapshot(hub, repo, revision, where, wanted)


def cached_files(repo: str, revision: str, names: Sequence[str]) -> Path | None:
    """Return the folder of the Hub's cache in which some files of a repository lie; None where one is not there.

    Nothing is fetched or asked for.
    """
    try:
        import huggingface_hub as hub
    except ImportError:
        return None
    found = [hub.try_to_load_from_cache(repo, name, revision=revision) for name in names]
    if not names or not all(isinstance(path, str) for path in found):
        return None
    return Path(str(found[0])).parents[names[0].count("/")]


def fetch_files(repo: str, revision: str, names: Sequence[str]) -> Path:
    """Fetch some files of a repository into the Hub's cache and return the folder in which they lie.

    Raises InputError where they cannot be had.
    """
    hub, _, _, _ = _parsed(repo)

    def chosen(files: list[str]) -> Sequence[str]:
        if missing := [name for name in names if name not in files]:
            raise InputError(f"{repo} at {revision} has no {', '.join(missing)}; its files may have moved")
        return names

    root = _snapshot(hub, repo, revision, repo, chosen)
    if missing := [name for name in names if not (root / name).is_file()]:
        raise InputError(f"{', '.join(missing)} of {repo} cannot be fetched: the Hub is not reached; try again later")
    return root


def fetch_lora(where: str) -> Path:
    """Return the local file of a LoRA on the Hub, fetched with PEFT's configuration beside it and nothing else.

    `org/repo:file` picks a file; a folder or a repository has to hold one LoRA. Raises InputError as `fetch` does.
    """
    hub, repo, revision, inside = _parsed(where)
    root = _snapshot(hub, repo, revision, where, lambda files: _beside(_lora_file(files, repo, inside, where)))
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return root / _lora_file(files, repo, inside, where, "the local copy of ")


def _parsed(where: str) -> tuple[Any, str, str | None, str]:
    """Return (the Hub's client, repository, revision, folder or file inside) of a Hub id."""
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise InputError(
            f"{where} does not exist here; to fetch it from the Hub: pip install 'loraport[hub]' (huggingface_hub)"
        ) from error
    match = _HUB_ID.fullmatch(where)
    if match is None:
        raise InputError(f"{where!r} is not a valid Hub id; write org/repo, org/repo@revision or org/repo:folder")
    repo, revision, inside = match["repo"], match["revision"], (match["inside"] or "").strip("/")
    if ".." in inside.split("/"):
        raise InputError(f"{where!r} leaves the repository; name a folder or file inside it")
    return hub, repo, revision, inside


def _snapshot(
    hub: Any, repo: str, revision: str | None, where: str, choose: Callable[[list[str]], Iterable[str]]
) -> Path:
    """Return a repository's folder with the files that are chosen from its listing; offline, with those that it has."""
    from huggingface_hub import constants  # the package itself does not offer it in every version

    try:
        if constants.HF_HUB_OFFLINE:
            return _local_copy(hub, repo, revision)
        if (refusal := _refusal(hub)) is not None:
            raise refusal
        files: list[str] = hub.HfApi().list_repo_files(repo, revision=revision)
        wanted = [glob.escape(name) for name in choose(files)]  # patterns that match nothing else
        return Path(hub.snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except InputError:
        raise
    except Exception as error:  # the Hub's client raises its own, requests' or httpx's errors
        try:
            return _local_copy(hub, repo, revision)
        except Exception:
            if constants.HF_HUB_OFFLINE:
                raise InputError(
                    f"{where} is not a path here, and not in the Hub's cache; HF_HUB_OFFLINE forbids to fetch it: "
                    "unset that, or fetch it once with a network"
                ) from error
            raise InputError(
                f"{where} is neither a path here nor a Hub model that can be reached ({_first_line(error)}); check the "
                "name, the network and, for gated models, `hf auth login`"
            ) from error


@cache
def _refusal(hub: Any) -> Exception | None:
    """Return why the Hub cannot be reached; asked once a process, without the client's retries, which take 25 s."""
    session = getattr(hub, "get_session", None)
    try:
        if session is not None:
            session().head(hub.constants.ENDPOINT, timeout=PATIENCE)
    except Exception as error:  # as in _snapshot
        return error
    return None


def _local_copy(hub: Any, repo: str, revision: str | None) -> Path:
    """Return what the cache holds of a repository; newer clients refuse an incomplete copy, but name its folder."""
    try:
        return Path(hub.snapshot_download(repo, revision=revision, local_files_only=True))
    except Exception as error:
        folder = getattr(error, "snapshot_path", None)
        if folder is None:
            raise
        return Path(folder)


def _wanted(files: list[str], repo: str, inside: str, where: str) -> list[str]:
    """Return the files of a model to download; ambiguity is refused before a byte is fetched."""
    if inside.lower().endswith(WEIGHTS) or index_of(inside.rpartition("/")[2]):
        folder, _, name = inside.rpartition("/")
        start = f"{folder}/" if folder else ""
        siblings = [file.removeprefix(start) for file in files if file.startswith(start)]
        if name not in siblings:
            raise InputError(f"{repo} has no file {inside!r}; its weights: {', '.join(_weights(files)) or 'none'}")
        chosen = _stem_mates(name, siblings) if index_of(name) else shard_set(name, siblings, where)
    else:
        start = f"{inside}/" if inside else ""
        if not any(file.startswith(start) for file in files):
            raise InputError(f"{repo} has no folder {inside!r}; its weights: {', '.join(_weights(files)) or 'none'}")
        choice = choose(
            [file.removeprefix(start) for file in files if file.startswith(start)], where, "/" if inside else ":"
        )
        start += f"{choice.folder}/" if choice.folder else ""
        chosen = (*choice.names, *([choice.index] if choice.index else []))
    return [start + name for name in chosen] + [start + "config.json", "model_index.json"]


def _lora_file(files: list[str], repo: str, inside: str, where: str, kind: str = "") -> str:
    """Return the one LoRA among a repository's files: the named one, PEFT's, or the folder's only safetensors file."""
    loras = [file for file in files if file.endswith(SAFETENSORS)]
    if inside in loras:
        return inside
    start = f"{inside}/" if inside else ""
    inside_folder = [file for file in loras if file.startswith(start) and "/" not in file.removeprefix(start)]
    if start + WEIGHTS_NAME in inside_folder:
        return start + WEIGHTS_NAME
    if len(inside_folder) > 1:
        shown = ", ".join(f"{repo}:{file}" for file in inside_folder[:8]) + (", …" if len(inside_folder) > 8 else "")
        raise InputError(f"{where} holds {len(inside_folder)} safetensors files; name one of: {shown}")
    if not inside_folder:
        known = ", ".join(loras[:20]) or "none"
        raise InputError(f"{kind}{repo} has no LoRA {f'at {inside!r}' if inside else 'at its top'}; its files: {known}")
    return inside_folder[0]


def _beside(file: str) -> tuple[str, str]:
    """Return a LoRA's file, and the configuration that PEFT puts into the same folder."""
    folder, slash, _ = file.rpartition("/")
    return file, f"{folder}{slash}{CONFIG_NAME}"


def _stem_mates(index: str, siblings: list[str]) -> tuple[str, ...]:
    """Return an index, and all the shards that can be its own, of whatever count."""
    found = index_of(index)
    files = [name for name in siblings if found and "/" not in name and name.lower().endswith(found.endings)]
    own = [name for one in sets_among(files) if found and one.stem == found.stem for name in one.wanted]
    return (index, *(name for name in own if name in files))


def _weights(files: list[str]) -> list[str]:
    return [file for file in files if file.lower().endswith(WEIGHTS)][:20]


def _first_line(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {shorten(text, 200, placeholder=' …')}"
